//! Arguments to plan to run.
//!
//! [`args`] is what the user typed, [`resolve`] turns it into a [`plan`] without touching the target, [`run`] does it.

pub mod args;
mod calibrate;
mod capacity;
mod client;
mod data;
mod drive;
mod embedded;
mod exit;
mod host;
mod output;
pub mod plan;
mod profile;
mod progress;
mod report;
mod resolve;
mod run;
mod search;
mod serve;
mod target;
mod trace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command};
use crate::exit::{Exit, of};

/// The program: reads the command line, does it, and says how it ended.
pub fn main() -> ExitCode {
    run_with(std::env::args_os()).into()
}

fn run_with(args: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap knows where each goes.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Passed };
        }
    };
    log_to_stderr();
    let done = match cli.command {
        Command::Run(args) => run::run(args.workload),
        Command::Serve(args) => serve::run(&args).map(|()| Exit::Passed),
        Command::Plan(args) => capacity::run(&args),
        Command::Search(args) => search::run(*args),
        Command::Trace(command) => trace::run(command).map(|()| Exit::Passed),
        Command::Profile(command) => profile::run(command).map(|()| Exit::Passed),
        Command::Report(args) => report::run(&args).map(|()| Exit::Passed),
        Command::Calibrate(args) => calibrate::run(&args).map(|()| Exit::Passed),
        Command::Completions { shell } => completions(shell).map(|()| Exit::Passed),
        Command::Man => man().map(|()| Exit::Passed),
    };
    done.unwrap_or_else(|error| {
        output::say(&format!("gpufeed: {error:#}"));
        of(&error)
    })
}

/// Diagnostics of libraries, off unless `RUST_LOG` asks for them.
fn log_to_stderr() {
    let off = tracing_subscriber::filter::LevelFilter::OFF.into();
    let filter = tracing_subscriber::EnvFilter::builder().with_default_directive(off).from_env_lossy();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "gpufeed", &mut script);
    output::result(&String::from_utf8(script)?)
}

fn man() -> anyhow::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    output::result(&String::from_utf8(page)?)
}
