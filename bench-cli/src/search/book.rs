//! `search.json` and the directory it lies in: all that a search knows, written after every probe, so that one that was
//! interrupted goes on where it was.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use gpufeed_reports::html;
use gpufeed_schema::{
    SEARCH_SCHEMA_VERSION, SearchCriterion, SearchParameter, SearchReport, SearchStatus, SearchedStorage, Tool,
};
use xxhash_rust::xxh3::xxh3_64;

use super::plan::{Criterion, Request};
use crate::exit::usage;
use crate::host;
use crate::run::directory::write_whole;

const STATE: &str = "search.json";

/// A search and its directory.
#[derive(Debug)]
pub(super) struct Book {
    path: PathBuf,
    /// All that is known.
    pub(super) report: SearchReport,
    /// Whether some of it was there before.
    pub(super) resumed: bool,
}

impl Book {
    /// Begins a search, or goes on with the same one.
    ///
    /// # Errors
    /// When the directory holds another search or a report, or cannot be written to.
    pub(super) fn open(request: &Request) -> anyhow::Result<Self> {
        if request.resume && request.out.is_none() {
            return Err(usage("--resume goes on with a search: name its directory with --out"));
        }
        let fresh = fresh(request)?;
        let path = request.out.clone().unwrap_or_else(|| {
            let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
            PathBuf::from(format!("gpufeed-search-{}-{now}", request.workload()))
        });
        let state = path.join(STATE);
        if state.exists() {
            let report = read(&state)?;
            if report.search_hash != fresh.search_hash {
                return Err(usage(format!(
                    "{} holds another search: name another directory with --out, or give the arguments it was begun with",
                    path.display()
                )));
            }
            return Ok(Self { path, report, resumed: true });
        }
        if request.resume {
            return Err(usage(format!("{} holds no search to go on with: leave --resume out", path.display())));
        }
        if path.join("report.json").exists() {
            return Err(usage(format!("{} holds a report: name another directory with --out", path.display())));
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make the directory {}", path.display()))?;
        let book = Self { path, report: fresh, resumed: false };
        // A full or read-only disk is found before the first probe.
        book.write()?;
        Ok(book)
    }

    /// Writes what is known.
    ///
    /// # Errors
    /// When the disk is full or the directory gone.
    pub(super) fn write(&self) -> anyhow::Result<()> {
        write_whole(&self.path.join(STATE), |to| Ok(serde_json::to_writer_pretty(to, &self.report)?))
    }

    /// Writes the page with the curves, and says where.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) fn write_page(&self) -> anyhow::Result<PathBuf> {
        let path = self.path.join("search.html");
        write_whole(&path, |to: &mut dyn Write| Ok(to.write_all(html::search::page(&self.report).as_bytes())?))?;
        Ok(path)
    }

    /// An empty place for the next probe on the measured target: its name and its path.
    ///
    /// # Errors
    /// When what an interrupted probe left there cannot be taken away.
    pub(super) fn place(&self) -> anyhow::Result<(String, PathBuf)> {
        let number = self.report.storages.first().map_or(0, |target| target.probes.len()) + 1;
        let name = format!("probe-{number:03}");
        let path = self.path.join(&name);
        if path.exists() {
            // No verdict came of it, or it would be counted.
            fs::remove_dir_all(&path).with_context(|| format!("cannot take away {}", path.display()))?;
        }
        Ok((name, path))
    }
}

fn read(path: &Path) -> anyhow::Result<SearchReport> {
    let unreadable = |why: String| usage(format!("{} is no search to go on with: {why}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))
}

/// A search of which nothing is known yet.
fn fresh(request: &Request) -> anyhow::Result<SearchReport> {
    let plan = request.at(request.spec.domain.least)?;
    let resolved = serde_json::to_string(&request.resolved()?)?;
    let mut names = vec!["target"];
    if request.virtual_baselines {
        names.extend(["no_cache", "local", "ideal_storage"]);
    }
    let storage = |name: &str| SearchedStorage {
        storage: name.to_owned(),
        virtual_time: name != "target",
        status: SearchStatus::Unfinished,
        knee: None,
        neighbor: None,
        knee_per_s: None,
        levels: Vec::new(),
        probes: Vec::new(),
    };
    let (threshold_ratio, threshold_ns) = match request.criterion {
        Criterion::Au { threshold_ratio: ratio } | Criterion::Throughput { growth_ratio: ratio } => (Some(ratio), None),
        Criterion::Goodput { share_ratio, slo_ttft_ns } => (Some(share_ratio), Some(slo_ttft_ns)),
        Criterion::P99 { slo_ns } => (None, Some(slo_ns)),
    };
    Ok(SearchReport {
        schema_version: SEARCH_SCHEMA_VERSION.to_owned(),
        tool: Tool {
            name: "gpufeed".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("GPUFEED_COMMIT").to_owned(),
        },
        host: host::look(),
        status: SearchStatus::Unfinished,
        summary: String::new(),
        workload: request.workload().to_owned(),
        target: plan.target.name(),
        seed: plan.seed,
        started_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        parameter: SearchParameter {
            name: request.parameter.name().to_owned(),
            unit: request.parameter.unit().to_owned(),
            least: request.spec.domain.least,
            most: request.spec.domain.most,
            start: request.spec.start,
            resolution_ratio: request.spec.domain.resolution_ratio,
        },
        criterion: SearchCriterion {
            metric: request.criterion.name().to_owned(),
            text: request.criterion.words(),
            threshold_ratio,
            threshold_ns,
        },
        confirmations: request.spec.confirmations,
        most_probes: request.spec.most_probes,
        storages: names.into_iter().map(storage).collect(),
        trace_span_s: None,
        notes: Vec::new(),
        search_hash: format!("{:016x}", xxh3_64(resolved.as_bytes())),
        plan: serde_json::to_value(&plan)?,
    })
}
