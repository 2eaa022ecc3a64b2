//! Runs of the real binary, and what their reports say.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gpufeed::plan::Plan;
use serde_json::Value;
use tempfile::TempDir;

/// The program under test.
pub(crate) const GPUFEED: &str = env!("CARGO_BIN_EXE_gpufeed");

/// Milliseconds in nanoseconds.
pub(crate) const MS: f64 = 1e6;

/// Least tolerance of a percentile on the wall clock: 300 µs.
const LEAST_TOLERANCE_NS: f64 = 300e3;

/// How much more noise a shaped run has than its control: a delayed answer wakes the server a second time, so three times
/// somebody has to get a processor instead of twice.
const NOISE: f64 = 1.5;

/// Most that a delayed answer may cost beside its delay, on a machine where waking up is dear.
const MOST_WAKING_NS: f64 = 1e6;

/// The right to measure time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed does not make the others fail.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What may lie between a percentile and what it should be: 2% or 300 µs, whichever is more.
pub(crate) fn tolerance_ns(expected: f64) -> f64 {
    (0.02 * expected).max(LEAST_TOLERANCE_NS)
}

/// A finished run.
pub(crate) struct Run {
    /// Its report.
    pub(crate) report: Value,
    /// Its report directory.
    dir: TempDir,
}

/// Runs `gpufeed run` with these arguments and environment variables.
pub(crate) fn run_with(args: &[&str], env: &[(&str, &str)]) -> Run {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("report");
    let mut command = Command::new(GPUFEED);
    command.arg("run").args(args).args(["--format", "json", "--quiet", "--out"]).arg(&out);
    command.env_remove("AWS_PROFILE").env_remove("AWS_ENDPOINT_URL").env("AWS_EC2_METADATA_DISABLED", "true");
    let output = command.envs(env.iter().copied()).output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "gpufeed run {args:?}: {}: {errors}", output.status);
    let report = serde_json::from_slice(&output.stdout).expect("a report on standard output");
    Run { report, dir }
}

/// Runs against an embedded server.
pub(crate) fn run(args: &[&str]) -> Run {
    run_with(args, &[])
}

/// The same run with and without a shape.
pub(crate) fn shaped(args: &[&str], shape: &str) -> Run {
    run(&[args, &["--shape", shape]].concat())
}

impl Run {
    /// The report directory.
    pub(crate) fn out(&self) -> PathBuf {
        self.dir.path().join("report")
    }

    /// The plan that was run, as its directory has it.
    pub(crate) fn plan(&self) -> Plan {
        Plan::read(&self.out().join("plan.toml")).expect("the plan of a run reads back")
    }

    /// The first member.
    pub(crate) fn member(&self) -> &Value {
        &self.report["members"][0]
    }

    /// The row of an operation.
    pub(crate) fn op(&self, name: &str) -> &Value {
        let rows = self.member()["operations"].as_array().expect("rows");
        rows.iter().find(|row| row["op"] == name).unwrap_or_else(|| panic!("no {name} among {rows:?}"))
    }

    /// A figure of the only operation, as in `["response_time", "p50_ns"]`.
    pub(crate) fn get(&self, path: [&str; 2]) -> f64 {
        number(&self.op("get")[path[0]], path[1])
    }
}

/// A number that must be there.
pub(crate) fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// The least of some figures of latency over rounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Least {
    /// The least operation.
    pub(crate) min: f64,
    /// The least percentiles, of [`PERCENTILES`].
    pub(crate) at: [f64; PERCENTILES.len()],
}

/// Percentiles that are compared.
pub(crate) const PERCENTILES: [[&str; 2]; 4] =
    [["response_time", "p50_ns"], ["response_time", "p90_ns"], ["service_time", "p50_ns"], ["service_time", "p90_ns"]];

impl Least {
    /// Before the first round.
    pub(crate) const NONE: Self = Self { min: f64::INFINITY, at: [f64::INFINITY; PERCENTILES.len()] };
    /// A machine on which waking up costs nothing.
    pub(crate) const FREE_WAKING: [f64; PERCENTILES.len()] = [0.0; PERCENTILES.len()];

    /// Takes a round.
    pub(crate) fn add(&mut self, run: &Run) {
        self.min = self.min.min(run.get(["service_time", "min_ns"]));
        for (least, path) in self.at.iter_mut().zip(PERCENTILES) {
            *least = least.min(run.get(path));
        }
    }

    /// What a delayed answer costs this machine beside the delay of `probe_ns` that these runs had, against a control
    /// without any: the server sleeps and wakes once more, and the client sleeps longer, which takes longer to end.
    pub(crate) fn waking(&self, control: &Self, probe_ns: f64) -> [f64; PERCENTILES.len()] {
        std::array::from_fn(|i| (self.at[i] - control.at[i] - probe_ns).clamp(0.0, MOST_WAKING_NS))
    }

    /// What is not as `injected` and `control` say. The least operation has to be within the tolerance whatever the machine
    /// does; the percentiles may differ by the control's own noise, and by `waking`.
    pub(crate) fn off(
        &self,
        control: &Self,
        injected: [f64; PERCENTILES.len()],
        waking: [f64; PERCENTILES.len()],
    ) -> Vec<String> {
        let mut off = Vec::new();
        let mut check = |what: String, is: f64, control: f64, injected: f64, noise: f64, waking: f64| {
            let over = is - control - injected;
            let most = tolerance_ns(injected).max(noise);
            if over < -most || over > most + waking {
                off.push(format!(
                    "{what} is {is} ns for {injected} ns and the control's {control} ns, of noise {noise} ns, waking {waking} ns"
                ));
            }
        };
        check("the least".into(), self.min, control.min, injected[0], 0.0, 0.0);
        for (i, path) in PERCENTILES.iter().enumerate() {
            let noise = NOISE * (control.at[i] - control.min);
            check(path.join("."), self.at[i], control.at[i], injected[i], noise, waking[i]);
        }
        off
    }
}
