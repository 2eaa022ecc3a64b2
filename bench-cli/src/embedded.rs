//! The embedded target: `gpufeed serve` as a child process that dies with its parent.
//!
//! The child gets its whole configuration, random credentials included, through its standard input, says its address on
//! its standard output, and ends when its standard input does.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use gpufeed_server::config::{Config, Key};
use serde::{Deserialize, Serialize};

/// Longest time a child may take to start.
const START: Duration = Duration::from_secs(20);
/// Longest time a child may take to end once told to.
const END: Duration = Duration::from_secs(5);

/// What the child says once it serves.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// Address of the S3 endpoint.
    pub s3: SocketAddr,
    /// Address of the KV block protocol.
    pub kv: Option<SocketAddr>,
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Embedded {
    child: Child,
    /// Address of its S3 endpoint.
    pub s3: SocketAddr,
    /// Where it speaks the KV block protocol, if it was asked to.
    pub kv: Option<SocketAddr>,
    /// Credentials made for this run alone.
    pub key: Key,
    /// Cores it is pinned to.
    pub cores: u32,
}

impl Embedded {
    /// Starts the server `config` describes, with credentials of its own on a free loopback port.
    ///
    /// # Errors
    /// When the child cannot be started, or says within 20 s why it cannot serve.
    pub(crate) fn start(mut config: Config) -> anyhow::Result<Self> {
        let secret = |bytes: usize| (0..bytes).map(|_| format!("{:02x}", rand::random::<u8>())).collect::<String>();
        let key = Key { access_key: format!("run{}", secret(8)), secret_key: secret(20) };
        config.s3 = SocketAddr::from(([127, 0, 0, 1], 0));
        config.kv = config.kv.map(|_| config.s3);
        config.keys = vec![key.clone()];
        let program = std::env::current_exe().context("cannot find this program's own file to start the server")?;
        let mut child = Command::new(program)
            .args(["serve", "--embedded"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the embedded server")?;
        match Self::hand_shake(&mut child, &config) {
            Ok(ready) => {
                let cores = u32::try_from(config.cores.len()).unwrap_or(u32::MAX);
                Ok(Self { child, s3: ready.s3, kv: ready.kv, key, cores })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context("the embedded server did not start"))
            }
        }
    }

    fn hand_shake(child: &mut Child, config: &Config) -> anyhow::Result<Ready> {
        let input = child.stdin.as_mut().context("it has no standard input")?;
        let config = serde_json::to_string(config)?;
        writeln!(input, "{config}").and_then(|()| input.flush()).context("it closed its standard input")?;
        let output = child.stdout.take().context("it has no standard output")?;
        let (said, heard) = mpsc::sync_channel(1);
        // A thread of its own, so that a child that says nothing cannot hang the run.
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(output).read_line(&mut line);
            let _ = said.send(read.map(|_| line));
        });
        let line = match heard.recv_timeout(START) {
            Ok(line) => line.context("it said nothing")?,
            Err(_) => bail!("it did not say its address within {} s", START.as_secs()),
        };
        if line.trim().is_empty() {
            bail!("it ended at once; its own message is above");
        }
        serde_json::from_str(&line).with_context(|| format!("it said `{}`", line.trim()))
    }

    /// A meter of its CPU time, for other threads.
    pub(crate) fn cpu_meter(&self) -> CpuMeter {
        CpuMeter { process: self.child.id() }
    }

    /// Most memory it has had resident, in bytes.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
    }
}

/// Reads the CPU time of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuMeter {
    process: u32,
}

impl CpuMeter {
    /// CPU time used so far, user and system.
    pub(crate) fn used(self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process)).ok()?;
        // Fields 14 and 15, counted from after the name, which may hold spaces.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Closing its standard input asks it to end.
        drop(self.child.stdin.take());
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
