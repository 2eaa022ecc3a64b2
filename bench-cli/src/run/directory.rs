//! The report directory.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use gpufeed_reports::html;
use gpufeed_schema::RunReport;

use crate::exit::usage;
use crate::plan::Plan;

/// A directory of this run alone.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    several: bool,
}

impl Directory {
    /// Makes the directory and writes the plan into it, so that a full or read-only disk is found before the run.
    ///
    /// # Errors
    /// When it cannot be made, or holds a report already.
    pub(crate) fn create(out: Option<&Path>, plan: &Plan) -> anyhow::Result<Self> {
        let path = out.map_or_else(
            || PathBuf::from(format!("gpufeed-{}-{}", plan.workload, jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S"))),
            Path::to_owned,
        );
        if path.join("report.json").exists() {
            return Err(usage(format!("{} holds a report already: name another directory with --out", path.display())));
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make the report directory {}", path.display()))?;
        let directory = Self { path, several: plan.members.len() > 1 };
        directory.write("plan.toml", |to| Ok(to.write_all(plan.to_toml()?.as_bytes())?))?;
        Ok(directory)
    }

    /// A file of the directory.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A file of one member: named after it where there are several.
    pub(super) fn member_file(&self, member: &str, name: &str) -> PathBuf {
        if self.several { self.path.join(format!("{member}.{name}")) } else { self.path.join(name) }
    }

    /// Writes `report.json` and `report.html`.
    ///
    /// # Errors
    /// When the disk is full or the directory gone.
    pub(crate) fn write_report(&self, report: &RunReport) -> anyhow::Result<()> {
        self.write("report.json", |to| Ok(serde_json::to_writer_pretty(to, report)?))?;
        self.write("report.html", |mut to| Ok(html::render(report, &mut to)?))
    }

    fn write(&self, name: &str, fill: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
        write_whole(&self.file(name), fill)
    }

    /// Takes the directory away again if the run left nothing but its plan.
    pub(crate) fn remove_if_empty(&self) {
        let only_plan = fs::read_dir(&self.path).is_ok_and(|files| files.count() == 1);
        if only_plan {
            let _ = fs::remove_file(self.file("plan.toml"));
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Writes a file beside its place and moves it there, so that a full disk or a sudden end leaves no half of it.
///
/// # Errors
/// When the disk is full or the directory gone.
pub(crate) fn write_whole(path: &Path, fill: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".part");
    let draft = PathBuf::from(draft);
    let written = || -> anyhow::Result<()> {
        let mut to = BufWriter::new(File::create(&draft)?);
        fill(&mut to)?;
        to.flush()?;
        Ok(fs::rename(&draft, path)?)
    };
    written().inspect_err(|_| drop(fs::remove_file(&draft))).with_context(|| format!("cannot write {}", path.display()))
}
