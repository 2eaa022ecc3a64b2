//! Starting and stopping: threads, listeners, connections spread over cores.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::Future;
use std::io::{self, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gpufeed_profiles::storage::ShapeError;
use rustix::thread::CpuSet;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use crate::books::{self, Counts, Log, LogSender, LogWriter};
use crate::config::{Config, ConfigError, Key, Limits, StoreKind, Tls};
use crate::front::{self, Core};
use crate::kv;
use crate::s3::{self, Wire};
use crate::shape::Shaping;
use crate::store::mem::MemStore;
use crate::store::synth::Synth;
use crate::store::{Store, StoreError};
use crate::waits::Waits;

/// How often connections are checked for clients that keep them waiting, and log lines are passed on.
const SWEEP: Duration = Duration::from_millis(250);
/// Connections waiting to be accepted.
const BACKLOG: i32 = 1024;
const BUSY: &[u8] = b"HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: 82\r\nretry-after: 1\r\nconnection: close\r\n\r\n<Error><Code>SlowDown</Code><Message>too many connections, retry</Message></Error>";

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The shape cannot be read.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate or key cannot be used.
    #[error("cannot use {path} for TLS: {reason}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The access log cannot be opened.
    #[error("cannot write the access log {path}")]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store cannot be set up.
    #[error("cannot set up the store: {0}")]
    Store(String),
    /// A thread cannot be started.
    #[error("cannot start a thread to serve from")]
    Thread(#[source] io::Error),
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// How far a server is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// No more connections; requests under way may take until then.
    Draining(Instant),
}

/// A way to stop a server from elsewhere, as a signal handler does.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<watch::Sender<Stage>>);

impl Stopper {
    /// Accepts no more connections, lets requests under way finish for up to `grace`, then ends.
    pub fn stop(&self, grace: Duration) {
        self.0.send_replace(Stage::Draining(Instant::now() + grace));
    }
}

/// A server that runs. Dropping it ends it at once.
#[derive(Debug)]
pub struct Running {
    /// Where S3 is served.
    pub s3_addr: SocketAddr,
    /// Where KV blocks are served, if they are.
    pub kv_addr: Option<SocketAddr>,
    /// Where metrics are served, if they are.
    pub metrics_addr: Option<SocketAddr>,
    stopper: Stopper,
    threads: Vec<JoinHandle<()>>,
    log: Option<LogWriter>,
}

impl Running {
    /// A way to stop it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Blocks until it has ended, which [`Stopper::stop`] makes it do.
    pub fn wait(mut self) {
        self.join();
    }

    /// Stops it and blocks until it has ended.
    pub fn shutdown(self, grace: Duration) {
        self.stopper.stop(grace);
        self.wait();
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a serving thread panicked");
            }
        }
        if let Some(log) = self.log.take() {
            log.finish();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.stopper.stop(Duration::ZERO);
            self.join();
        }
    }
}

/// The reference server.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Starts serving on threads of its own and returns once connections are accepted.
    ///
    /// # Errors
    /// A configuration that is refused, an address in use, files that cannot be opened.
    pub fn start(config: Config) -> Result<Running, StartError> {
        match &config.store {
            StoreKind::Mem { capacity } => {
                let store = MemStore::new(capacity.0);
                start(&config, store)
            }
            StoreKind::Synth { seed, capacity } => {
                let synth = Synth::new(*seed).map_err(|error| StartError::Store(error.to_string()))?;
                let store = MemStore::with_synth(capacity.0, synth);
                start(&config, store)
            }
        }
    }
}

/// What every core is made from.
struct Plan<S> {
    store: Arc<S>,
    wire: Arc<Wire<S>>,
    kv: Arc<kv::Shared>,
    keys: Vec<Key>,
    shaping: Option<Arc<Shaping>>,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    counts: Vec<Arc<Counts>>,
    log: Option<LogSender>,
}

fn start<S: Store>(config: &Config, store: S) -> Result<Running, StartError> {
    let keys = config.checked_keys()?;
    config.check_names()?;
    let shaping = Shaping::parse(&config.shape, config.shape_seed)?.map(Arc::new);
    let tls = config.tls.as_ref().map(acceptor).transpose()?;
    for bucket in &config.buckets {
        store.create_bucket(bucket)?;
    }
    let store = Arc::new(store);
    let s3 = listen(config.s3)?;
    let kv = config.kv.map(listen).transpose()?;
    let metrics = config.metrics.map(listen).transpose()?;
    let address = |listener: &TcpListener, asked| {
        listener.local_addr().map_err(|source| StartError::Listen { address: asked, source })
    };
    let s3_addr = address(&s3, config.s3)?;
    let other = |listener: &Option<TcpListener>, asked: Option<SocketAddr>| {
        listener.as_ref().zip(asked).map(|(listener, asked)| address(listener, asked)).transpose()
    };
    let (kv_addr, metrics_addr) = (other(&kv, config.kv)?, other(&metrics, config.metrics)?);
    let (log, sender) = match &config.access_log {
        None => (None, None),
        Some(log) => {
            let failed = |source| StartError::AccessLog { path: log.path.clone(), source };
            let (writer, sender) = LogWriter::start(log).map_err(failed)?;
            (Some(writer), Some(sender))
        }
    };
    let pins: Vec<Option<usize>> = if config.cores.is_empty() {
        vec![None; std::thread::available_parallelism().map_or(1, usize::from)]
    } else {
        config.cores.iter().copied().map(Some).collect()
    };
    let plan = Arc::new(Plan {
        wire: Arc::new(Wire::new(Arc::clone(&store), config)),
        store,
        kv: kv::Shared::new(&keys, config.kv_lease),
        keys,
        shaping,
        tls,
        limits: config.limits.clone(),
        counts: pins.iter().map(|_| Arc::default()).collect(),
        log: sender,
    });
    let (stage, stages) = watch::channel(Stage::Serving);
    let stopper = Stopper(Arc::new(stage));
    let mut running = Running { s3_addr, kv_addr, metrics_addr, stopper, threads: Vec::new(), log };
    let mut handed = Vec::new();
    let mut receivers = Vec::new();
    for _ in &pins {
        let (sender, receiver) = mpsc::unbounded_channel();
        handed.push(sender);
        receivers.push(receiver);
    }
    let mut doors = Some(Doors { s3, kv, metrics, handed });
    for (index, (pin, streams)) in pins.into_iter().zip(receivers).enumerate() {
        let (plan, stages, doors) = (Arc::clone(&plan), stages.clone(), doors.take());
        // On error, dropping `running` ends the threads started so far.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let run = move || {
            if let Some(core) = pin {
                pin_to(core);
            }
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, run_core(plan, index, streams, doors, stages));
        };
        let name = format!("serve-{index}");
        running.threads.push(std::thread::Builder::new().name(name).spawn(run).map_err(StartError::Thread)?);
    }
    Ok(running)
}

fn pin_to(core: usize) {
    let mut cores = CpuSet::new();
    if core < CpuSet::MAX_CPU {
        cores.set(core);
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &cores) {
        tracing::warn!(core, %error, "cannot pin a serving thread");
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let listen = || {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    listen().map_err(|source: io::Error| StartError::Listen { address, source })
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor, StartError> {
    let failed = |path: &Path, reason: &dyn std::fmt::Display| StartError::Tls {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    let open = |path: &Path| File::open(path).map(BufReader::new).map_err(|error| failed(path, &error));
    let certs: Result<Vec<_>, _> = rustls_pemfile::certs(&mut open(&tls.cert)?).collect();
    let certs = certs.map_err(|error| failed(&tls.cert, &error))?;
    let key = rustls_pemfile::private_key(&mut open(&tls.key)?).map_err(|error| failed(&tls.key, &error))?;
    let key = key.ok_or_else(|| failed(&tls.key, &"there is no private key in it"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&tls.cert, &error))?
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .map_err(|error| failed(&tls.cert, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What the first core holds for all: the listeners, and the way to each core.
struct Doors {
    s3: TcpListener,
    kv: Option<TcpListener>,
    metrics: Option<TcpListener>,
    handed: Vec<mpsc::UnboundedSender<(books::Wire, TcpStream)>>,
}

async fn run_core<S: Store>(
    plan: Arc<Plan<S>>,
    index: usize,
    mut streams: mpsc::UnboundedReceiver<(books::Wire, TcpStream)>,
    doors: Option<Doors>,
    mut stages: watch::Receiver<Stage>,
) {
    let waits = match Waits::new() {
        Ok(waits) => waits,
        Err(error) => {
            tracing::error!(%error, "cannot make a timer; this core does not serve");
            return;
        }
    };
    tokio::task::spawn_local(Rc::clone(&waits).pump());
    let core = Rc::new(Core {
        wire: Arc::clone(&plan.wire),
        service: s3::service(&plan.wire, &plan.keys),
        express: s3::express::Express::new(&plan.keys),
        shaping: plan.shaping.clone(),
        waits,
        books: Core::<S>::books(&plan.counts[index], plan.log.clone().map(Log::new)),
        limits: plan.limits.clone(),
        kv: Arc::clone(&plan.kv),
        connections: RefCell::default(),
        next: Cell::new(0),
        ended: tokio::sync::Notify::new(),
    });
    tokio::task::spawn_local(sweep(Rc::clone(&core)));
    if let Some(doors) = doors {
        if let Some(metrics) = doors.metrics {
            tokio::task::spawn_local(serve_metrics(metrics, Arc::clone(&plan), stages.clone()));
        }
        if let Some(kv) = doors.kv {
            let handed = doors.handed.clone();
            tokio::task::spawn_local(accept(kv, books::Wire::Kv, handed, Arc::clone(&plan), stages.clone()));
        }
        tokio::task::spawn_local(accept(doors.s3, books::Wire::S3, doors.handed, Arc::clone(&plan), stages.clone()));
    }
    let until = loop {
        tokio::select! {
            stream = streams.recv() => match stream {
                Some((wire, stream)) => take_in(&core, &plan, wire, stream),
                // The acceptor is gone, which it is only when the server drains.
                None => break draining(&mut stages).await,
            },
            until = draining(&mut stages) => break until,
        }
    };
    core.connections.borrow().values().for_each(|connection| connection.drain());
    let empty = async {
        while !core.connections.borrow().is_empty() {
            core.ended.notified().await;
        }
    };
    // Whatever is left then ends with the runtime.
    let _ = tokio::time::timeout_at(until.into(), empty).await;
    if let Some(log) = &core.books.log {
        log.flush();
    }
}

/// When the server is told to drain: until when it may.
async fn draining(stages: &mut watch::Receiver<Stage>) -> Instant {
    match stages.wait_for(|stage| matches!(stage, Stage::Draining(_))).await.map(|stage| *stage) {
        Ok(Stage::Draining(until)) => until,
        // The sender is gone only when `Running` is.
        Ok(Stage::Serving) | Err(_) => Instant::now(),
    }
}

fn take_in<S: Store>(core: &Rc<Core<S>>, plan: &Plan<S>, wire: books::Wire, stream: TcpStream) {
    let stream = match stream.set_nodelay(true).and_then(|()| tokio::net::TcpStream::from_std(stream)) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "a connection was lost before it was served");
            return;
        }
    };
    match plan.tls.clone() {
        None => core.spawn(wire, std::future::ready(Ok(stream))),
        Some(tls) => core.spawn(wire, async move { tls.accept(stream).await }),
    }
}

/// Ends connections whose clients keep them waiting; passes log lines on.
async fn sweep<S: Store>(core: Rc<Core<S>>) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        core.connections.borrow().values().for_each(|connection| connection.check(now, &core.limits));
        if let Some(log) = &core.books.log {
            log.flush();
        }
    }
}

/// Accepts until the server drains.
async fn accept_each(
    listener: TcpListener,
    mut stages: watch::Receiver<Stage>,
    mut each: impl FnMut(tokio::net::TcpStream),
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot accept connections");
            return;
        }
    };
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => each(stream),
                Err(error) => {
                    // Out of file descriptors, most likely: those in use have to go first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        _ = draining(&mut stages) => {}
    }
}

/// Spreads connections over the cores, each to the one that has fewest.
fn accept<S: Store>(
    listener: TcpListener,
    wire: books::Wire,
    handed: Vec<mpsc::UnboundedSender<(books::Wire, TcpStream)>>,
    plan: Arc<Plan<S>>,
    stages: watch::Receiver<Stage>,
) -> impl Future<Output = ()> {
    // Handed over, whether the core knows yet or not.
    let mut last = 0;
    accept_each(listener, stages, move |stream| {
        let open: Vec<u64> = plan.counts.iter().map(|counts| counts.connections.load(Relaxed)).collect();
        if open.iter().sum::<u64>() >= plan.limits.connections as u64 {
            if wire == books::Wire::S3 {
                // A fresh socket's buffer has room for this; if not, the close says it.
                let _ = stream.try_write(BUSY);
            }
            return;
        }
        // Of the cores with fewest, the next in turn: several may arrive before a core has counted them.
        let turn = |i: usize| (last + 1 + i) % open.len();
        let Some(core) = (0..open.len()).map(turn).min_by_key(|core| open[*core]) else { return };
        last = core;
        if let Ok(stream) = stream.into_std() {
            // A core that is gone has been reported.
            let _ = handed[core].send((wire, stream));
        }
    })
}

fn serve_metrics<S: Store>(
    listener: TcpListener,
    plan: Arc<Plan<S>>,
    stages: watch::Receiver<Stage>,
) -> impl Future<Output = ()> {
    let stage = stages.clone();
    accept_each(listener, stages, move |stream| {
        let plan = Arc::clone(&plan);
        let metrics = move || books::prometheus(&plan.counts, plan.store.usage(), plan.kv.blocks.evicted());
        let stage = stage.clone();
        let ready = move || *stage.borrow() == Stage::Serving;
        tokio::task::spawn_local(front::admin(stream, metrics, ready));
    })
}
