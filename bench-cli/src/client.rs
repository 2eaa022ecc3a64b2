//! An opened target: the one place where the transport is chosen.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use gpufeed_aws_sdk::{Access, Control, SdkTransport, Session};
use gpufeed_engine::measured::{Measured, RunError};
use gpufeed_engine::settings::Settings;
use gpufeed_engine::transport::{Clock, OpError, Transport};
use gpufeed_engine::two::Two;
use gpufeed_engine::wall::{self, CoreSlot, Machines};
use gpufeed_engine::watch::Watch;
use gpufeed_io::arena::Arena;
use gpufeed_server::config::{Config, EtagKind, StoreKind};
use gpufeed_transports::file::{FileConfig, FileStore, FileTarget};
use gpufeed_transports::kv::{KvConfig, KvTarget};
use gpufeed_transports::null::NullTarget;
use gpufeed_transports::s3::{Addressing, Credentials, RawS3, S3Target, Tls};
use gpufeed_workloads::machine::Workload;
use gpufeed_workloads::op::{ErrorKind, Names};

use crate::drive::Drive;
use crate::embedded::Embedded;
use crate::exit::usage;
use crate::host;
use crate::plan::TargetPlan;
use crate::target::DEFAULT_BUCKET;

/// Longest time a target may take to answer the first question.
const FIRST_ANSWER: Duration = Duration::from_secs(20);
/// Most memory of all payload buffers, as a share of the machine's.
const ARENA_SHARE: u64 = 8;

/// A target that answers.
#[derive(Debug)]
pub(crate) struct Target {
    kind: Kind,
    seed: u64,
    /// The server, where it is a child of ours.
    pub embedded: Option<Embedded>,
}

#[derive(Debug)]
enum Kind {
    Null,
    File(FileStore),
    S3(Box<S3>),
    /// The same store by S3, where it is ours: to list and to clean up.
    Kv(KvConfig, Option<Box<S3>>),
}

#[derive(Debug)]
struct S3 {
    raw: S3Target,
    session: Session,
    bucket: String,
    sdk_measures: bool,
    foreign: bool,
}

/// What a stretch of work is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Measurement, by the client that was asked for.
    Measure,
    /// Preparation and clean-up: aws-sdk-s3 on targets that are not ours.
    Control,
}

impl Target {
    /// Opens the target and asks it a first question, so that what is wrong with it is said before anything is done.
    ///
    /// # Errors
    /// One sentence: unreachable, refused, no bucket, no rights, no room.
    pub(crate) fn open(plan: &TargetPlan, seed: u64) -> anyhow::Result<Self> {
        let target = |kind| Self { kind, seed, embedded: None };
        match plan {
            TargetPlan::Null => Ok(target(Kind::Null)),
            TargetPlan::File { dir } => {
                let store = FileStore::open(&FileConfig::new(dir))?;
                Ok(target(Kind::File(store)))
            }
            TargetPlan::Embedded { store, capacity, shape, server_cores, s3_client, wire } => {
                let store = match store.as_str() {
                    "mem" => StoreKind::Mem { capacity: *capacity },
                    "synth" => StoreKind::Synth { seed, capacity: *capacity },
                    other => return Err(usage(format!("an embedded store is mem or synth, not `{other}`"))),
                };
                let embedded = Embedded::start(Config {
                    store,
                    etag: EtagKind::Fast,
                    buckets: vec![DEFAULT_BUCKET.to_owned()],
                    kv: (wire == "kv").then_some(([127, 0, 0, 1], 0).into()),
                    cores: server_cores.clone(),
                    shape: shape.clone(),
                    shape_seed: seed,
                    ..Config::default()
                })?;
                let access = Access {
                    endpoints: vec![format!("http://{}", embedded.s3)],
                    credentials: Some(Credentials::new(&embedded.key.access_key, &embedded.key.secret_key, None)),
                    addressing: Addressing::Path,
                    ..Access::default()
                };
                let s3 = Self::s3(&access, DEFAULT_BUCKET, s3_client, false)?;
                let kind = match (wire.as_str(), embedded.kv) {
                    ("s3", _) => Kind::S3(s3),
                    ("kv", Some(address)) => {
                        let credentials = Credentials::new(&embedded.key.access_key, &embedded.key.secret_key, None);
                        let bucket = DEFAULT_BUCKET.to_owned();
                        Kind::Kv(KvConfig { address: address.to_string(), credentials, bucket }, Some(s3))
                    }
                    (other, _) => return Err(usage(format!("a wire is s3 or kv, not `{other}`"))),
                };
                Ok(Self { kind, seed, embedded: Some(embedded) })
            }
            TargetPlan::Kv { address, bucket, aws_profile, .. } => {
                let access = Access { aws_profile: aws_profile.clone(), ..Access::default() };
                let credentials = block_on(async { Ok(access.session().await?.keys().await?.credentials) })?;
                let config = KvConfig { address: address.clone(), credentials, bucket: bucket.clone() };
                block_on(async {
                    let check = tokio::time::timeout(FIRST_ANSWER, gpufeed_transports::kv::check(&config)).await;
                    Ok(check.map_err(|_| no_answer(&format!("kv://{address}")))??)
                })?;
                Ok(target(Kind::Kv(config, None)))
            }
            TargetPlan::S3 { bucket, endpoints, region, aws_profile, addressing, verify_tls, s3_client, .. } => {
                let access = Access {
                    endpoints: endpoints.clone(),
                    region: region.clone(),
                    aws_profile: aws_profile.clone(),
                    credentials: None,
                    addressing: match addressing.as_str() {
                        "path" => Addressing::Path,
                        "virtual" => Addressing::VirtualHost,
                        "auto" => Addressing::Auto,
                        other => {
                            return Err(usage(format!(
                                "buckets are addressed by auto, path or virtual, not `{other}`"
                            )));
                        }
                    },
                    tls: Tls { verify: *verify_tls, ca_bundle: None },
                };
                Ok(target(Kind::S3(Self::s3(&access, bucket, s3_client, true)?)))
            }
        }
    }

    fn s3(access: &Access, bucket: &str, client: &str, foreign: bool) -> anyhow::Result<Box<S3>> {
        let sdk_measures = match client {
            "raw" => false,
            "aws-sdk" => true,
            other => return Err(usage(format!("an S3 client is raw or aws-sdk, not `{other}`"))),
        };
        block_on(async {
            let session = access.session().await?;
            // Before the endpoint is asked, so that missing keys are not taken for a fault of its.
            session.keys().await?;
            let control = Control::new(&session, bucket)?;
            let check = tokio::time::timeout(FIRST_ANSWER, control.check()).await;
            check.map_err(|_| no_answer("the target"))??;
            let raw = S3Target::resolve(&session.raw(bucket).await?)?;
            Ok(Box::new(S3 { raw, session, bucket: bucket.to_owned(), sdk_measures, foreign }))
        })
    }

    /// Runs machines against the target.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) fn drive<W: Workload + 'static>(
        &self,
        purpose: Purpose,
        settings: &Settings,
        machines: Machines<W>,
        watch: &Watch,
    ) -> Result<Measured<W>, RunError> {
        self.drive_beside(None, purpose, settings, machines, watch)
    }

    /// Runs machines against the target and a local drive beside it.
    ///
    /// # Errors
    /// Those of the engine.
    pub(crate) fn drive_beside<W: Workload + 'static>(
        &self,
        drive: Option<&Drive>,
        purpose: Purpose,
        settings: &Settings,
        machines: Machines<W>,
        watch: &Watch,
    ) -> Result<Measured<W>, RunError> {
        let clock = Clock::new(Instant::now());
        let names = match &machines {
            Machines::PerCore(machines) => machines.first().map(Workload::names).unwrap_or_default(),
            Machines::One(machine) => machine.names(),
        };
        let names = Arc::new(names);
        let names = || Arc::clone(&names);
        let beside = Beside { drive, names: names(), settings, clock, watch };
        match &self.kind {
            Kind::Null => {
                let open = |slot: CoreSlot, clock| Ok(NullTarget::new(names(), self.seed, arena(&slot)?, clock));
                beside.run(open, machines)
            }
            Kind::File(store) => {
                let open = |slot: CoreSlot, clock| FileTarget::new(store.clone(), names(), arena(&slot)?, clock);
                beside.run(open, machines)
            }
            Kind::S3(s3) if s3.sdk_measures || (s3.foreign && purpose == Purpose::Control) => {
                let open = |slot: CoreSlot, clock| {
                    SdkTransport::new(&s3.session, &s3.bucket, slot.index, names(), arena(&slot)?, clock)
                };
                beside.run(open, machines)
            }
            Kind::S3(s3) => {
                let open = |slot: CoreSlot, clock| Ok(RawS3::new(s3.raw.clone(), names(), arena(&slot)?, clock));
                beside.run(open, machines)
            }
            Kind::Kv(config, _) => {
                let open = |slot: CoreSlot, clock| Ok(KvTarget::new(config.clone(), names(), arena(&slot)?, clock));
                beside.run(open, machines)
            }
        }
    }

    /// Names and sizes of the objects under `prefix`.
    ///
    /// # Errors
    /// When the target cannot list.
    pub(crate) fn list(&self, prefix: &str) -> anyhow::Result<Vec<(String, u64)>> {
        match &self.kind {
            Kind::Null | Kind::Kv(_, None) => Ok(Vec::new()),
            Kind::File(store) => Ok(store.list(prefix)?),
            Kind::S3(s3) | Kind::Kv(_, Some(s3)) => {
                block_on(async { Ok(Control::new(&s3.session, &s3.bucket)?.list(prefix).await?) })
            }
        }
    }

    /// Removes every object under `prefix`; gives their number.
    ///
    /// # Errors
    /// When the target does not let go.
    pub(crate) fn delete_prefix(&self, prefix: &str) -> anyhow::Result<u64> {
        match &self.kind {
            // The KV block protocol cannot list; a KV server lets go of what is longest unused.
            Kind::Null | Kind::Kv(_, None) => Ok(0),
            Kind::File(store) => Ok(store.delete_prefix(prefix)?),
            Kind::S3(s3) | Kind::Kv(_, Some(s3)) => {
                block_on(async { Ok(Control::new(&s3.session, &s3.bucket)?.delete_prefix(prefix).await?) })
            }
        }
    }

    /// What the target does differently from what was asked, to be said in the report.
    pub(crate) fn notes(&self) -> &[String] {
        match &self.kind {
            Kind::File(store) => store.notes(),
            _ => &[],
        }
    }
}

/// What a target's transport runs beside.
struct Beside<'a> {
    drive: Option<&'a Drive>,
    names: Arc<Names>,
    settings: &'a Settings,
    clock: Clock,
    watch: &'a Watch,
}

impl Beside<'_> {
    fn run<T: Transport, W: Workload + 'static>(
        self,
        open: impl Fn(CoreSlot, Clock) -> Result<T, OpError> + Sync,
        machines: Machines<W>,
    ) -> Result<Measured<W>, RunError> {
        let Some(drive) = self.drive else {
            return wall::run(self.settings, self.clock, open, machines, self.watch);
        };
        let both = |slot, clock| {
            let target = open(slot, clock)?;
            let arena = target.arena().clone();
            let near = FileTarget::new(drive.store.clone(), Arc::clone(&self.names), arena, clock)?;
            Ok(Two::new(target, near, drive.from_space))
        };
        wall::run(self.settings, self.clock, both, machines, self.watch)
    }
}

/// Payload buffers of one core, in bounded memory: an operation that finds none free makes its payload while sending.
fn arena(slot: &CoreSlot) -> Result<Arena, OpError> {
    let buf_bytes = usize::try_from(slot.buffer_bytes).unwrap_or(usize::MAX).max(4096);
    let room = usize::try_from(host::memory_bytes() / ARENA_SHARE).unwrap_or(usize::MAX) / slot.cores.max(1);
    let count = slot.buffers.min((room / buf_bytes).max(2));
    Arena::new(buf_bytes, count).map_err(|error| OpError::new(ErrorKind::Io, error.to_string()))
}

fn no_answer(what: &str) -> anyhow::Error {
    anyhow::anyhow!("{what} did not answer within {} s: check the endpoint and the network", FIRST_ANSWER.as_secs())
}

/// Runs control-path work on a runtime of its own.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(future)
}
