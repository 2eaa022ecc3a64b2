//! `gpufeed search`: the knee, by ordinary runs at ever nearer levels.

pub(crate) mod args;
mod book;
mod judge;
mod plan;
mod words;

use std::sync::Arc;

use anyhow::{Context, bail};
use gpufeed_reports::search as tables;
use gpufeed_schema::{SearchProbe, SearchReport, SearchStatus, SearchedStorage, Verdict};
use gpufeed_workloads::kv::{BaselineKind, Requests, Window, baseline};
use gpufeed_workloads::search::{End, Found, Next};

use self::args::SearchArgs;
use self::book::Book;
use self::judge::Offered;
use self::plan::{Criterion, Request};
use crate::args::RunFormat;
use crate::client::Target;
use crate::exit::{Exit, OrUsage, usage};
use crate::output;
use crate::plan::{KvPlan, Plan, SpecPlan};
use crate::progress::Show;
use crate::run::directory::Directory;
use crate::run::interrupt::Interrupt;
use crate::run::{measure_on, member};

/// Searches, and says what was found.
///
/// # Errors
/// One sentence: what could not be resolved, opened, run, judged or written.
pub(crate) fn run(args: SearchArgs) -> anyhow::Result<Exit> {
    let request = plan::request(args.workload)?;
    if request.dry_run {
        return dry_run(&request).map(|()| Exit::Passed);
    }
    let trace = Trace::of(&request)?;
    let mut book = Book::open(&request)?;
    book.report.trace_span_s = trace.as_ref().map(|trace| trace.span_s);
    if book.resumed && !request.quiet {
        let done: usize = book.report.storages.iter().map(|storage| storage.probes.len()).sum();
        output::say(&format!("going on with a search of {done} probes"));
    }
    let searched = Searcher { request: &request, trace, interrupt: Interrupt::listen() }.run(&mut book);
    // What is known is shown even where the rest failed.
    words::conclude(&mut book.report, request.criterion);
    book.write()?;
    let page = book.write_page()?;
    print(&book.report, &request)?;
    if !request.quiet && request.format == RunFormat::Text {
        output::say(&format!("curves: {}", page.display()));
    }
    searched?;
    Ok(exit(book.report.status))
}

/// How the search of the measured target ends the program.
const fn exit(status: SearchStatus) -> Exit {
    match status {
        SearchStatus::Found => Exit::Passed,
        SearchStatus::BelowLowest => Exit::Missed,
        SearchStatus::AboveHighest | SearchStatus::ClientLimited | SearchStatus::OutOfProbes => Exit::Inconclusive,
        SearchStatus::Unfinished => Exit::Failed,
    }
}

fn dry_run(request: &Request) -> anyhow::Result<()> {
    let resolved = request.resolved()?;
    match request.format {
        RunFormat::Json => output::result(&(serde_json::to_string_pretty(&resolved)? + "\n")),
        RunFormat::Text | RunFormat::Markdown => output::result(&toml::to_string(&resolved)?),
    }
}

fn print(report: &SearchReport, request: &Request) -> anyhow::Result<()> {
    match request.format {
        RunFormat::Text => output::result(&tables::text(report)),
        RunFormat::Markdown => output::result(&tables::markdown(report)),
        RunFormat::Json => output::result(&(serde_json::to_string_pretty(report)? + "\n")),
    }?;
    if request.format == RunFormat::Json && !request.quiet {
        output::say(&report.summary);
    }
    Ok(())
}

/// What a search over a trace needs of it.
struct Trace {
    /// The plan at the lowest level.
    plan: KvPlan,
    requests: Arc<Requests>,
    /// From its first arrival to its last.
    span_s: f64,
    /// Requests per second as the trace has them.
    per_s: f64,
}

impl Trace {
    fn of(request: &Request) -> anyhow::Result<Option<Self>> {
        let plan = request.at(request.spec.domain.least)?;
        let Some(SpecPlan::Kv(plan)) = plan.members.into_iter().next().map(|member| member.spec) else {
            return Ok(None);
        };
        let requests = member::requests(&plan)?;
        let first = requests.list().first().map_or(0, |first| first.at_ns);
        let span_s = requests.span_ns().saturating_sub(first) as f64 / 1e9;
        if span_s <= 0.0 {
            return Err(usage("all requests of the trace arrive at once: there is no rate to search"));
        }
        // Gaps, not requests: a trace of one a second has one less of them.
        let per_s = (requests.list().len() - 1) as f64 / span_s;
        Ok(Some(Self { plan: *plan, requests, span_s, per_s }))
    }
}

struct Searcher<'a> {
    request: &'a Request,
    trace: Option<Trace>,
    interrupt: Arc<Interrupt>,
}

impl Searcher<'_> {
    /// Searches each storage in turn.
    fn run(&self, book: &mut Book) -> anyhow::Result<()> {
        let mut target = None;
        for index in 0..book.report.storages.len() {
            loop {
                let storage = &book.report.storages[index];
                let votes = judge::votes(&storage.probes, self.request.criterion);
                let level = match self.request.search.next(&votes) {
                    Next::Probe(level) => level,
                    Next::Done(found) => {
                        self.found(&mut book.report, index, &found);
                        book.write()?;
                        break;
                    }
                };
                if self.interrupt.asked() {
                    bail!("interrupted; run the same search again to go on with it");
                }
                let probe = match index {
                    0 => self.probe(book, &mut target, level)?,
                    _ => self.virtual_probe(&book.report.storages[index].storage, level)?,
                };
                self.tell(&book.report.storages[index], &probe);
                book.report.storages[index].probes.push(probe);
                book.write()?;
            }
        }
        if let Some(target) = &target {
            self.clean_up(target, book);
        }
        Ok(())
    }

    /// One ordinary run at a level, on a target that all probes share, with the data that is there.
    fn probe(&self, book: &Book, target: &mut Option<Target>, level: f64) -> anyhow::Result<SearchProbe> {
        let plan = self.request.at(level)?;
        let target = match target {
            Some(target) => target,
            None => {
                let open = Target::open(&plan.target, plan.seed);
                target.insert(open.with_context(|| format!("target {}", plan.target.name()))?)
            }
        };
        let (name, path) = book.place()?;
        let directory = Directory::create(Some(&path), &plan)?;
        let show = Show::fitting(self.request.quiet || self.request.format == RunFormat::Json);
        let (report, failure) = measure_on(target, false, &plan, &directory, &self.interrupt, show);
        if let Some(report) = &report {
            directory.write_report(report)?;
        } else {
            directory.remove_if_empty();
        }
        let report = match (report, failure) {
            (_, Some(error)) => return Err(error.context(format!("the run at {}", self.named(level)))),
            (Some(report), None) if !report.interrupted => report,
            _ if self.interrupt.asked() => bail!("interrupted; run the same search again to go on with it"),
            _ => bail!("the run at {} was cut short", self.named(level)),
        };
        judge::probe(level, &report, self.request.criterion, self.offered(&plan, level), name)
    }

    fn offered(&self, plan: &Plan, level: f64) -> Offered {
        match plan.members.first().map(|member| &member.spec) {
            Some(SpecPlan::Kv(kv)) => {
                Offered { per_s: self.trace.as_ref().map(|trace| trace.per_s * level), time_scale: kv.spec.time_scale }
            }
            Some(SpecPlan::Rag(rag)) => Offered { per_s: Some(level), time_scale: rag.spec.time_scale },
            _ => Offered { per_s: None, time_scale: 1.0 },
        }
    }

    /// The same trace at a level on other storage, in virtual time.
    fn virtual_probe(&self, storage: &str, level: f64) -> anyhow::Result<SearchProbe> {
        let kind = match storage {
            "no_cache" => BaselineKind::NoCache,
            "local" => BaselineKind::Local,
            _ => BaselineKind::IdealStorage,
        };
        let trace = self.trace.as_ref().context("a search in virtual time has a trace")?;
        let mut spec = trace.plan.spec.clone();
        spec.rate_scale = level;
        let section = baseline(&spec, &trace.plan.cost, &trace.requests, kind, Window::default()).or_usage()?;
        let Criterion::Goodput { share_ratio, .. } = self.request.criterion else {
            bail!("a search in virtual time is over goodput");
        };
        Ok(judge::virtual_probe(level, &section, share_ratio, Some(trace.per_s * level)))
    }

    /// Enters what was found on a storage.
    fn found(&self, report: &mut SearchReport, index: usize, found: &Found) {
        let throughput = matches!(self.request.criterion, Criterion::Throughput { .. });
        let probes = judge::votes(&report.storages[index].probes, self.request.criterion);
        let storage = &mut report.storages[index];
        for (probe, vote) in storage.probes.iter_mut().zip(&probes) {
            probe.passed = vote.passed;
        }
        // Where throughput stops growing is the first level that does not grow; elsewhere the knee is the last that passes.
        (storage.knee, storage.neighbor) =
            if throughput { (found.above, found.knee) } else { (found.knee, found.above) };
        storage.levels = words::levels(&storage.probes, &found.curve);
        storage.knee_per_s = storage.knee.and_then(|knee| {
            let level = storage.levels.iter().find(|level| level.level == knee)?;
            let figures = &level.figures;
            figures.goodput_per_s.or(figures.samples_per_s).or(figures.ops_per_s)
        });
        storage.status = match found.end {
            End::AtMost => SearchStatus::AboveHighest,
            End::OutOfProbes => SearchStatus::OutOfProbes,
            End::Found | End::NotEvenLeast if client_limited(storage, found) => SearchStatus::ClientLimited,
            // One client that saturates the storage is its knee.
            End::Found => SearchStatus::Found,
            End::NotEvenLeast if throughput => SearchStatus::Found,
            End::NotEvenLeast => SearchStatus::BelowLowest,
        };
    }

    fn tell(&self, storage: &SearchedStorage, probe: &SearchProbe) {
        if self.request.quiet || self.request.format == RunFormat::Json {
            return;
        }
        let number = storage.probes.len() + 1;
        let place =
            if storage.virtual_time { format!("{} ", storage.storage.replace('_', " ")) } else { String::new() };
        let verdict = match (self.request.criterion, probe.passed) {
            (Criterion::Throughput { .. }, _) => "",
            (_, true) => ", passes",
            (_, false) => ", does not pass",
        };
        let figures = tables::figures(&probe.figures);
        output::say(&format!("{place}probe {number}: {}: {figures}{verdict}", self.named(probe.level)));
    }

    /// A level with its unit.
    fn named(&self, level: f64) -> String {
        format!("{} {}", tables::level(level), self.request.parameter.unit())
    }

    /// Takes the data away that all probes shared; a failure to is said, and no reason to lose the results.
    fn clean_up(&self, target: &Target, book: &Book) {
        let most = book
            .report
            .storages
            .first()
            .and_then(|target| target.probes.iter().map(|probe| probe.level).max_by(f64::total_cmp));
        let Some(most) = most.filter(|_| !self.request.keep_data) else { return };
        let removed = self.request.at(most).and_then(|plan| match plan.target.self_test() {
            // The data goes with the server.
            true => Ok(()),
            false => member::remove_data(&plan, target),
        });
        if let Err(error) = removed {
            output::say(&format!("gpufeed: the data of the search was not removed: {error:#}"));
        }
    }
}

/// Whether what failed above the knee failed by this client: most runs of the lowest level that does not pass.
fn client_limited(storage: &SearchedStorage, found: &Found) -> bool {
    let failing = storage.probes.iter().filter(|probe| Some(probe.level) == found.above && !probe.passed);
    let (by_client, all) = failing.fold((0, 0), |(by_client, all), probe| {
        (by_client + usize::from(probe.verdict == Some(Verdict::ClientLimited)), all + 1)
    });
    by_client * 2 > all
}

#[cfg(test)]
mod tests {
    use gpufeed_schema::SearchFigures;

    use super::*;

    fn storage(probes: &[(f64, bool, Verdict)]) -> SearchedStorage {
        let probe = |&(level, passed, verdict): &(f64, bool, Verdict)| SearchProbe {
            level,
            directory: None,
            passed,
            verdict: Some(verdict),
            verdict_detail: None,
            failure: None,
            figures: SearchFigures::default(),
        };
        SearchedStorage {
            storage: "target".to_owned(),
            virtual_time: false,
            status: SearchStatus::Unfinished,
            knee: None,
            neighbor: None,
            knee_per_s: None,
            levels: Vec::new(),
            probes: probes.iter().map(probe).collect(),
        }
    }

    #[test]
    fn a_knee_is_the_client_s_where_the_client_failed_above_it() {
        use Verdict::{ClientLimited, StorageLimited};
        let found = Found { end: End::Found, knee: Some(4.0), above: Some(5.0), curve: Vec::new() };
        let limited = |probes: &[(f64, bool, Verdict)]| client_limited(&storage(probes), &found);
        assert!(limited(&[(4.0, true, StorageLimited), (5.0, false, ClientLimited), (5.0, false, ClientLimited)]));
        // Only what failed, and only just above, decides.
        assert!(!limited(&[(4.0, true, ClientLimited), (5.0, false, StorageLimited), (8.0, false, ClientLimited)]));
        assert!(!limited(&[(5.0, true, ClientLimited), (5.0, false, StorageLimited)]));
        assert!(!limited(&[(5.0, false, ClientLimited), (5.0, false, StorageLimited)]), "even is no majority");
    }

    #[test]
    fn statuses_end_the_program_as_scripts_expect() {
        let codes = [
            (SearchStatus::Found, Exit::Passed),
            (SearchStatus::BelowLowest, Exit::Missed),
            (SearchStatus::ClientLimited, Exit::Inconclusive),
            (SearchStatus::AboveHighest, Exit::Inconclusive),
            (SearchStatus::OutOfProbes, Exit::Inconclusive),
            (SearchStatus::Unfinished, Exit::Failed),
        ];
        assert!(codes.into_iter().all(|(status, code)| exit(status) == code));
    }
}
