//! Client CPU per request of three contenders against a bare hyper server in a child process on another core, in
//! interleaved rounds: a bare loop (hyper and aws-sigv4 without anything around them), [`RawS3`] lanes, and those lanes
//! under the engine with its recorder, time-outs and the machine of plain load.
//!
//! `cargo bench -p gpufeed-transports --bench bare_loop [-- ROUNDS]`
//!
//! With `--only bare|raw|engine BYTES CONNECTIONS COUNT` one of them makes so many requests and nothing is timed: for
//! counting instructions, allocations and system calls from outside.

#![expect(clippy::print_stdout, reason = "prints what it measured")]

use std::cell::Cell;
use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_sigv4::http_request::{PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use gpufeed_engine::transport::{Clock, Data, Lane, Transport};
use gpufeed_engine::wall::{self, CoreSlot, Machines};
use gpufeed_engine::{Settings, WarmUp, Watch};
use gpufeed_io::arena::Arena;
use gpufeed_profiles::units::Bytes as Size;
use gpufeed_transports::s3::{Addressing, Credentials, RawS3, S3Config, S3Target, Tls};
use gpufeed_workloads::machine::Workload as _;
use gpufeed_workloads::op::{Key, KeyStyle, Names, Op, Space, Verb};
use gpufeed_workloads::ops::{Mix, Ops, OpsSpec, SizeSpec};
use gpufeed_workloads::schedule::Load;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

const SERVER: &str = "GPUFEED_BENCH_SERVER_CORE";
const WINDOW: Duration = Duration::from_millis(1000);

fn main() {
    let cores = sched_getaffinity(None).expect("own affinity");
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| cores.is_set(core)).collect();
    if let Ok(core) = std::env::var(SERVER) {
        pin(core.parse().expect("a core"));
        return serve();
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let only = words.iter().position(|word| word == "--only").map(|at| words[at + 1..].to_vec());
    let rounds = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(7);
    pin(cores[0]);
    let other = cores.last().expect("a core");
    let mut server = Command::new(std::env::current_exe().expect("own path"))
        .env(SERVER, other.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let address: SocketAddr = line.trim().parse().expect("an address");

    if let Some(only) = only {
        let number = |at: usize| only[at].parse::<u64>().expect("--only CONTENDER BYTES CONNECTIONS COUNT");
        let bound = Bound::Requests(number(3));
        match only[0].as_str() {
            "bare" => drop(bare(address, number(1), number(2) as usize, bound)),
            "raw" => drop(raw(address, number(1), number(2) as usize, bound)),
            _ => drop(engine(address, number(1), number(2) as usize, bound)),
        }
    } else {
        println!(
            "client on core {}, server on core {other}, {rounds} interleaved rounds of {WINDOW:?} each, medians",
            cores[0]
        );
        for (bytes, connections) in [(4 << 10, 16), (2 << 20, 16), (4 << 10, 1)] {
            let contenders = [bare, raw, engine];
            let mut all = Vec::new();
            for round in 0..rounds {
                let mut taken = [None; 3];
                // Whoever goes first alternates, so that drift of the machine favors none.
                for turn in 0..3 {
                    let which = (round + turn) % 3;
                    taken[which] = Some(contenders[which](address, bytes, connections, Bound::Window));
                }
                all.push(taken.map(|figures| figures.expect("each had a turn")));
            }
            show(bytes, connections, &all);
        }
    }
    drop(server.stdin.take());
    server.wait().expect("the child ends with its input");
}

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).expect("an allowed core");
}

#[derive(Clone, Copy)]
struct Figures {
    requests: f64,
    cpu_s: f64,
    wall_s: f64,
    p50_us: f64,
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What ends a contender's turn.
#[derive(Clone, Copy)]
enum Bound {
    Window,
    Requests(u64),
}

fn show(bytes: u64, connections: usize, rounds: &[[Figures; 3]]) {
    println!("\n{} KiB, {connections} connections", bytes >> 10);
    let gib = |f: &Figures| f.requests * bytes as f64 / f64::from(1 << 30);
    type Line<'a> = (&'a str, &'a dyn Fn(&Figures) -> f64);
    let lines: [Line<'_>; 5] = [
        ("requests/s", &|f| f.requests / f.wall_s),
        ("GiB/s", &|f| gib(f) / f.wall_s),
        ("CPU µs/request", &|f| f.cpu_s / f.requests * 1e6),
        ("CPU s/GiB", &|f| f.cpu_s / gib(f)),
        ("p50 µs", &|f| f.p50_us),
    ];
    for (name, of) in lines {
        let each = [0, 1, 2].map(|which| median(rounds.iter().map(|round| of(&round[which]))));
        let ratio = |which: usize| median(rounds.iter().map(|round| of(&round[which]) / of(&round[0])));
        println!(
            "{name:>16}: bare loop {:>10.3}   raw {:>10.3} ({:.3})   engine {:>10.3} ({:.3})",
            each[0],
            each[1],
            ratio(1),
            each[2],
            ratio(2)
        );
    }
}

/// Runs `connections` tasks for a window: each calls `one` over and over after a short warm-up.
fn measure<T: 'static>(
    connections: usize,
    bound: Bound,
    open: impl AsyncFn() -> T,
    one: impl AsyncFn(&mut T) + Clone + 'static,
) -> Figures {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    runtime.expect("a runtime").block_on(async {
        let stop = Rc::new(Cell::new(false));
        let taken: Rc<std::cell::RefCell<Vec<u32>>> = Rc::default();
        let mut tasks = Vec::new();
        for _ in 0..connections {
            let mut lane = open().await;
            let (stop, taken, one) = (Rc::clone(&stop), Rc::clone(&taken), one.clone());
            tasks.push(tokio::task::spawn_local(async move {
                while !stop.get() {
                    if let Bound::Requests(most) = bound
                        && taken.borrow().len() as u64 >= most
                    {
                        break;
                    }
                    let start = Instant::now();
                    one(&mut lane).await;
                    taken.borrow_mut().push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
                }
            }));
        }
        if let Bound::Requests(_) = bound {
            for task in tasks {
                task.await.expect("no panic");
            }
            return Figures { requests: taken.borrow().len() as f64, cpu_s: 0.0, wall_s: 0.0, p50_us: 0.0 };
        }
        tokio::time::sleep(WINDOW / 5).await;
        taken.borrow_mut().clear();
        let (cpu, wall) = (cpu_s(), Instant::now());
        tokio::time::sleep(WINDOW).await;
        let (cpu_s, wall_s) = (cpu_s() - cpu, wall.elapsed().as_secs_f64());
        stop.set(true);
        let mut taken = taken.take();
        for task in tasks {
            task.await.expect("no panic");
        }
        taken.sort_unstable();
        Figures { requests: taken.len() as f64, cpu_s, wall_s, p50_us: f64::from(taken[taken.len() / 2]) / 1e3 }
    })
}

fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn target(address: SocketAddr) -> S3Target {
    let config = S3Config {
        endpoints: vec![format!("http://{address}").parse().expect("a URI")],
        bucket: "bucket".into(),
        region: "us-east-1".into(),
        credentials: Some(Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)),
        addressing: Addressing::Auto,
        tls: Tls::default(),
    };
    S3Target::resolve(&config).expect("an address")
}

fn raw(address: SocketAddr, bytes: u64, connections: usize, bound: Bound) -> Figures {
    let space = Space { before: format!("{bytes}/"), after: String::new(), style: KeyStyle::Hash };
    let arena = Arena::new(4096, 1).expect("small");
    let names = Arc::new(Names { spaces: vec![space] });
    let transport = RawS3::new(target(address), names, arena, Clock::new(Instant::now()));
    measure(
        connections,
        bound,
        async || (transport.lane().await.expect("connects"), 0),
        async move |(lane, id)| {
            *id += 1;
            let key = Key { space: 0, rank: 0, id: *id, ..Key::ZERO };
            let done = lane.call(&Op::get(key, bytes), &mut Data::Discard).await;
            assert!(done.result.is_ok(), "{:?}", done.result);
        },
    )
}

/// A run as the command line makes it; its CPU time is that of the measuring thread in the measured window.
fn engine(address: SocketAddr, bytes: u64, connections: usize, bound: Bound) -> Figures {
    let depth = u32::try_from(connections).expect("few");
    let (count, duration, warm_up) = match bound {
        Bound::Window => (None, Some(WINDOW), WarmUp::Fixed(WINDOW / 5)),
        Bound::Requests(count) => (Some(count), None, WarmUp::None),
    };
    let spec = OpsSpec {
        sizes: SizeSpec::Fixed(Size(bytes)),
        load: Load::Closed { depth },
        prefix: format!("{bytes}/"),
        count,
        ..OpsSpec::new(Mix::only(Verb::Get))
    };
    let machine = Ops::split(&spec, 1).expect("plain load").remove(0);
    let (target, names) = (target(address), Arc::new(machine.names()));
    let open = |_: CoreSlot, clock: Clock| {
        let arena = Arena::new(4096, 1).expect("small");
        Ok(RawS3::new(target.clone(), Arc::clone(&names), arena, clock))
    };
    let settings = Settings { duration, warm_up, ..Settings::default() };
    let machines = Machines::PerCore(vec![machine]);
    let measured = wall::run(&settings, Clock::new(Instant::now()), open, machines, &Watch::new()).expect("runs");
    let wall_s = measured.window.1.since(measured.window.0).as_secs_f64();
    let cpu_s = measured.cpu.map_or(f64::NAN, |cpu| cpu.cpu_ratio * wall_s);
    assert!(measured.errors.is_empty(), "{:?}", measured.errors);
    let service = &measured.histograms[0].service;
    Figures { requests: service.len() as f64, cpu_s, wall_s, p50_us: service.value_at_quantile(0.5) as f64 / 1e3 }
}

fn bare(address: SocketAddr, bytes: u64, connections: usize, bound: Bound) -> Figures {
    let identity = aws_credential_types::Credentials::new(
        "AKIDEXAMPLE",
        "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        None,
        None,
        "bench",
    );
    let identity: aws_smithy_runtime_api::client::identity::Identity = identity.into();
    let open = async || {
        let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        stream.set_nodelay(true).expect("a socket");
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::task::spawn_local(connection);
        (sender, 0u64)
    };
    measure(connections, bound, open, async move |(sender, id)| {
        *id += 1;
        let uri = format!("http://{address}/bucket/{bytes}/{id:016x}");
        let mut request = Request::get(&uri).body(Empty::<Bytes>::new()).expect("a request");
        let mut settings = SigningSettings::default();
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region("us-east-1")
            .name("s3")
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .expect("all given")
            .into();
        let signable = SignableRequest::new("GET", &uri, std::iter::empty(), SignableBody::UnsignedPayload);
        let (instructions, _) = sign(signable.expect("a request"), &params).expect("signs").into_parts();
        instructions.apply_to_request_http1x(&mut request);
        request.headers_mut().insert("host", address.to_string().parse().expect("a host"));
        *request.uri_mut() = request.uri().path().parse().expect("a path");
        let mut body = sender.send_request(request).await.expect("an answer").into_body();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            received += frame.expect("a frame").data_ref().map_or(0, Bytes::len);
        }
        assert_eq!(received as u64, bytes);
    })
}

/// Answers `/bucket/BYTES/anything` with so many bytes, until its standard input ends.
fn serve() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).expect("own process");
    });
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("bound"));
    listener.set_nonblocking(true).expect("a socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default());
    runtime.expect("a runtime").block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let all = Bytes::from(vec![0x5a; 2 << 20]);
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            let all = all.clone();
            let answer = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let bytes: Option<usize> = request.uri().path().split('/').nth(2).and_then(|text| text.parse().ok());
                let body = all.slice(..bytes.expect("/bucket/BYTES/key"));
                async move { Ok::<_, Infallible>(Response::new(Full::new(body))) }
            });
            let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::task::spawn_local(serving);
        }
    });
}
