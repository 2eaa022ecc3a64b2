//! `gpufeed serve`: the reference server, by hand or as the child of a run.

use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use gpufeed_profiles::storage::Shape;
use gpufeed_server::Server;
use gpufeed_server::config::{
    AccessLog, Config, DEFAULT_ACCESS_KEY, DEFAULT_SECRET_KEY, EtagKind, Key, LogFormat, StoreKind, Tls,
};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{ServeArgs, StoreArg};
use crate::embedded::Ready;
use crate::exit::{OrUsage, usage};
use crate::output;
use crate::target::DEFAULT_BUCKET;

/// Longest wait for requests in flight when told to end.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until told to end.
///
/// # Errors
/// When the configuration is wrong or an address cannot be listened on.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    if args.embedded { child() } else { by_hand(args) }
}

fn by_hand(args: &ServeArgs) -> anyhow::Result<()> {
    let config = config(args)?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let default_keys = config.keys.is_empty();
    let runtime = runtime()?;
    // From before the address is said on, so that whoever reads it may end the server in order.
    let told = runtime.block_on(async { told_to_end() })?;
    let running = Server::start(config)?;
    output::say(&format!("S3 on {scheme}://{}", running.s3_addr));
    if let Some(kv) = running.kv_addr {
        output::say(&format!("KV blocks on kv://{kv}"));
    }
    if let Some(metrics) = running.metrics_addr {
        output::say(&format!("health and metrics on http://{metrics}"));
    }
    if default_keys {
        output::say(&format!("access key {DEFAULT_ACCESS_KEY}, secret key {DEFAULT_SECRET_KEY} (loopback only)"));
    }
    runtime.block_on(told);
    output::say("finishing what is in flight");
    running.shutdown(GRACE);
    Ok(())
}

fn config(args: &ServeArgs) -> anyhow::Result<Config> {
    let keys = match (&args.access_key, &args.secret_key) {
        (Some(access_key), Some(secret_key)) => {
            vec![Key { access_key: access_key.clone(), secret_key: secret_key.clone() }]
        }
        (None, None) => Vec::new(),
        _ => return Err(usage("--access-key and --secret-key go together: give both or neither")),
    };
    let optional = |address: &str, example: &str| match address {
        "none" => Ok(None),
        address => match address.parse::<SocketAddr>() {
            Ok(address) => Ok(Some(address)),
            Err(_) => Err(usage(format!("`{address}` is not an address: write {example} or none"))),
        },
    };
    let metrics = optional(&args.metrics, "127.0.0.1:9090")?;
    let kv = optional(&args.kv_listen, "127.0.0.1:9900")?;
    Shape::parse(&args.shape).or_usage()?;
    let cores = crate::host::cores();
    let config = Config {
        s3: args.listen,
        kv,
        metrics,
        keys,
        store: match args.store {
            StoreArg::Mem => StoreKind::Mem { capacity: args.capacity },
            StoreArg::Synth => StoreKind::Synth { seed: args.seed, capacity: args.capacity },
        },
        etag: EtagKind::Md5,
        buckets: if args.bucket.is_empty() { vec![DEFAULT_BUCKET.to_owned()] } else { args.bucket.clone() },
        domains: args.domain.clone(),
        tls: args.tls_cert.clone().zip(args.tls_key.clone()).map(|(cert, key)| Tls { cert, key }),
        cores: args.threads.map(|threads| cores.into_iter().take(threads.max(1)).collect()).unwrap_or_default(),
        shape: args.shape.clone(),
        shape_seed: args.seed,
        access_log: args.access_log.clone().map(|path| AccessLog { path, format: LogFormat::Csv }),
        ..Config::default()
    };
    config.checked_keys().or_usage()?;
    config.check_names().or_usage()?;
    Ok(config)
}

/// Serves a run that started this process: configuration on standard input, address on standard output, until the
/// input ends. The kernel ends this process with its parent even if that is killed.
fn child() -> anyhow::Result<()> {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the configuration")?;
    let config: Config = serde_json::from_str(&line).context("cannot read the configuration")?;
    // Ctrl-C and a time-out's SIGTERM reach the whole group: the parent ends this process when it has drained.
    ignore_signals();
    let running = Server::start(config)?;
    let ready = Ready { s3: running.s3_addr, kv: running.kv_addr };
    output::result(&(serde_json::to_string(&ready)? + "\n"))?;
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    running.shutdown(Duration::from_secs(1));
    Ok(())
}

fn ignore_signals() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            let (Ok(mut interrupts), Ok(mut ends)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            loop {
                tokio::select! { _ = interrupts.recv() => {}, _ = ends.recv() => {} }
            }
        });
    });
}

/// Listens for SIGTERM and Ctrl-C from now on.
fn told_to_end() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}
