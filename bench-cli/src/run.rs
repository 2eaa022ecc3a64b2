//! `gpufeed run`: the straight line from a plan to a report.

mod assemble;
pub(crate) mod directory;
pub(crate) mod interrupt;
mod matrix;
pub(crate) mod member;
mod modeled;

use std::sync::Arc;

use anyhow::{Context, bail};
use gpufeed_reports::{markdown, terminal, verdict};
use gpufeed_schema::{RunReport, ValidityStatus};

use crate::args::{RunFormat, WorkloadArgs};
use crate::client::Target;
use crate::exit::Exit;
use crate::plan::Plan;
use crate::progress::Show;
use crate::resolve::{Request, resolve};
use crate::{calibrate, output};
use assemble::Draft;
use directory::Directory;
use interrupt::Interrupt;

/// Resolves, runs and reports.
///
/// # Errors
/// One sentence: what could not be resolved, opened, prepared or written.
pub(crate) fn run(workload: WorkloadArgs) -> anyhow::Result<Exit> {
    let request = resolve(workload)?;
    if request.dry_run {
        return dry_run(&request).map(|()| Exit::Passed);
    }
    let directory = Directory::create(request.out.as_deref(), &request.plan)?;
    let interrupt = Interrupt::listen();
    let show = Show::fitting(request.quiet || request.format == RunFormat::Json);
    let (report, failure) = measure(&request.plan, &directory, &interrupt, show);
    if let Some(report) = &report {
        // What was measured is shown even where it cannot be kept.
        let written = directory.write_report(report);
        let printed = print(report, &request);
        written.and(printed)?;
        if !request.quiet && request.format == RunFormat::Text {
            output::say(&format!("report: {}", directory.file("report.html").display()));
        }
    } else {
        directory.remove_if_empty();
    }
    match failure {
        Some(error) => Err(error),
        None if interrupt.asked() => Ok(Exit::Failed),
        None => report.as_ref().map_or(Ok(Exit::Passed), ended),
    }
}

/// How a run ends that nobody cut short: well, unless its target died on it or its figures or files are not what they
/// should be.
fn ended(report: &RunReport) -> anyhow::Result<Exit> {
    match report.validity.iter().find(|check| check.status == ValidityStatus::Fail) {
        Some(check) => bail!("{}", check.detail),
        None if report.interrupted => bail!("the run was cut short; results are partial"),
        None => Ok(Exit::Passed),
    }
}

/// Prints what would be done, with the size of the data set.
fn dry_run(request: &Request) -> anyhow::Result<()> {
    for (name, count, bytes) in member::data_sets(&request.plan)? {
        output::say(&format!("{name}: a data set of {count} objects, {bytes}"));
    }
    match request.format {
        RunFormat::Json => output::result(&(serde_json::to_string_pretty(&request.plan)? + "\n")),
        RunFormat::Text | RunFormat::Markdown => output::result(&request.plan.to_toml()?),
    }
}

/// Opens the target and runs the members on it.
fn measure(
    plan: &Plan,
    directory: &Directory,
    interrupt: &Arc<Interrupt>,
    show: Show,
) -> (Option<RunReport>, Option<anyhow::Error>) {
    match Target::open(&plan.target, plan.seed).with_context(|| format!("target {}", plan.target.name())) {
        // With a single member nothing else uses the target: an embedded one takes its data with it.
        Ok(target) => measure_on(&target, plan.members.len() == 1, plan, directory, interrupt, show),
        Err(error) => (None, Some(error)),
    }
}

/// Runs the members one after the other on a target that answers; `last_use` when nobody needs it afterwards. What was
/// measured before a failure is reported, marked as cut short.
pub(crate) fn measure_on(
    target: &Target,
    last_use: bool,
    plan: &Plan,
    directory: &Directory,
    interrupt: &Arc<Interrupt>,
    show: Show,
) -> (Option<RunReport>, Option<anyhow::Error>) {
    let mut draft = Draft::new(plan);
    let mut work = || -> anyhow::Result<()> {
        if !plan.target.self_test() {
            draft.set_ceiling(calibrate::ceiling(&plan.run.cores, show)?);
        }
        for member in &plan.members {
            if interrupt.asked() {
                draft.cut_short();
                break;
            }
            let stretch = member::Stretch { plan, member, target, last_use, directory, interrupt, show };
            let outcome = stretch.run().with_context(|| format!("member {}", member.name))?;
            draft.add(member, outcome);
        }
        draft.note(target);
        Ok(())
    };
    match work() {
        Ok(()) => (Some(draft.finish()), None),
        Err(error) if draft.is_empty() => (None, Some(error)),
        Err(error) => {
            draft.cut_short();
            (Some(draft.finish()), Some(error))
        }
    }
}

fn print(report: &RunReport, request: &Request) -> anyhow::Result<()> {
    match request.format {
        RunFormat::Text => output::result(&terminal::render(report, crate::report::terminal_style(true))),
        RunFormat::Markdown => output::result(&markdown::render(report)),
        RunFormat::Json => output::result(&(serde_json::to_string_pretty(report)? + "\n")),
    }?;
    if request.format == RunFormat::Json && !request.quiet {
        output::say(&verdict::sentence(report));
    }
    Ok(())
}
