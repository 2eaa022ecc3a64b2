//! `run kv --client kvbm|lmcache`: what the server's access log has is what the real client would have asked of it, key by
//! key and in its order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use gpufeed_profiles::units::Bytes;
use gpufeed_server::Server;
use gpufeed_server::config::{AccessLog, Config, Key, LogFormat, StoreKind};
use gpufeed_workloads::kv::{OutputBlocks, Requests};
use gpufeed_workloads::random::mix;
use gpufeed_workloads::trace::Trace;
use serde_json::Value;

use super::support::{GPUFEED, Run, run_with};

/// A line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    op: String,
    key: String,
    status: u16,
    bytes: u64,
}

/// The second prompt drives the first's blocks out of GPU memory; the third is the first again.
fn write_trace(path: &Path, tokens: u64) {
    let line = |at_ms: u64, talk: u64| {
        let ids: Vec<u64> = (0..tokens.div_ceil(512)).map(|i| talk * 1000 + i).collect();
        format!("{{\"timestamp\":{at_ms},\"input_length\":{tokens},\"output_length\":1,\"hash_ids\":{ids:?}}}\n")
    };
    std::fs::write(path, [line(0, 1), line(1000, 2), line(2000, 1)].concat()).expect("written");
}

/// A run of one worker of two GPUs on an empty server: its report, the hashes of the first two prompts' blocks, and what
/// the server was asked under the run's prefix, by time.
fn run_client(client: &str, tokens: u64, block_tokens: u32) -> (Run, [Vec<u64>; 2], Vec<Line>) {
    let dir = tempfile::tempdir().expect("a directory");
    let (log, trace) = (dir.path().join("access.csv"), dir.path().join("trace.jsonl"));
    write_trace(&trace, tokens);
    let key = Key { access_key: "tester".into(), secret_key: "a-secret-for-tests".into() };
    let server = Server::start(Config {
        s3: SocketAddr::from(([127, 0, 0, 1], 0)),
        keys: vec![key.clone()],
        buckets: vec!["data".into()],
        store: StoreKind::Mem { capacity: Bytes(512 << 20) },
        access_log: Some(AccessLog { path: log.clone(), format: LogFormat::Csv }),
        ..Config::default()
    })
    .expect("the server starts");
    let url = format!("http://{}", server.s3_addr);
    let g1 = format!("kv.g1_blocks={}", tokens.div_ceil(u64::from(block_tokens)));
    let mut args = vec!["kv", "--target", "s3://data/x", "--endpoint-url", &url, "--client", client];
    args.extend(["--trace", trace.to_str().expect("text"), "--model", "llama-3.1-8b", "--gpu", "h100-sxm"]);
    args.extend(["--tp", "2", "--workers", "1", "--host-cache", "0", "--load-policy", "always"]);
    args.extend(["--no-baselines", "--set", &g1]);
    let env = [
        ("AWS_ACCESS_KEY_ID", key.access_key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", &key.secret_key),
        ("AWS_REGION", "us-east-1"),
    ];
    let run = run_with(&args, &env);
    server.shutdown(Duration::from_secs(10));

    let requests = Requests::from_trace(&Trace::load(&trace).expect("a trace"), OutputBlocks::None, block_tokens);
    let hashes = [0, 1].map(|i| requests.blocks(&requests.list()[i]).iter().map(|&id| mix(id)).collect());
    let mut lines: Vec<(u64, Line)> = csv::Reader::from_path(&log)
        .expect("a log")
        .deserialize::<BTreeMap<String, String>>()
        .map(|line| {
            let line = line.expect("a line of the log");
            let number = |name: &str| line[name].parse::<u64>().expect("a number");
            let status = u16::try_from(number("status")).expect("a status");
            let (op, key) = (line["op"].clone(), line["key"].clone());
            (number("time_unix_ns"), Line { op, key, status, bytes: number("bytes") })
        })
        .filter(|(_, line)| line.key.starts_with("x/"))
        .collect();
    lines.sort_by_key(|(at, _)| *at);
    (run, hashes, lines.into_iter().map(|(_, line)| line).collect())
}

fn line(op: &str, key: &str, status: u16, bytes: u64) -> Line {
    Line { op: op.into(), key: key.into(), status, bytes }
}

/// What was asked, without its order.
fn sorted(lines: &[Line]) -> Vec<String> {
    let mut all: Vec<String> = lines.iter().map(|line| format!("{line:?}")).collect();
    all.sort();
    all
}

/// Base 58 of eight bytes, by long division of digits: another way than the program's.
fn base58(hash: u64) -> String {
    const ALPHABET: &[u8] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let bytes = hash.to_be_bytes();
    let mut digits: Vec<u32> = Vec::new();
    for &byte in &bytes {
        let mut carry = u32::from(byte);
        for digit in &mut digits {
            carry += *digit << 8;
            *digit = carry % 58;
            carry /= 58;
        }
        while carry > 0 {
            digits.push(carry % 58);
            carry /= 58;
        }
    }
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    let text = digits.iter().rev().map(|&digit| char::from(ALPHABET[digit as usize]));
    std::iter::repeat_n('1', zeros).chain(text).collect()
}

#[test]
fn kvbm_asks_the_server_what_the_real_client_would() {
    // 70 tokens are four blocks of 16 and a rest that is never stored.
    let (run, hashes, lines) = run_client("kvbm", 70, 16);
    // 131,072 bytes a token, half of them on each rank; a lock is JSON of a UUID and two times, a mark is empty.
    let (object, lock) = (16 * 65_536, 155);
    let mut wanted = Vec::new();
    for (hashes, again) in hashes.iter().zip([true, false]) {
        assert_eq!(hashes.len(), 4);
        for (position, &hash) in hashes.iter().enumerate() {
            let parent =
                position.checked_sub(1).map(|before| format!(":{}", base58(hashes[before]))).unwrap_or_default();
            let name = format!("{position}:{}{parent}", base58(hash));
            let data = |op: &str, status, bytes| {
                [0, 1].map(|rank| line(op, &format!("x/gpufeed/kv/{rank}/{name}"), status, bytes))
            };
            let beside =
                |op: &str, of: &str, status, bytes| [line(op, &format!("x/gpufeed/kv/{name}.{of}"), status, bytes)];
            let steps = [
                &data("head", 404, 0)[..],
                &beside("head", "meta", 404, 0),
                &beside("put", "lock", 200, lock),
                &data("put", 200, object),
                &beside("put", "meta", 200, 0),
                &beside("delete", "lock", 204, 0),
                &data("head", 200, 0),
                &data("get", 200, object),
            ];
            let steps = if again { &steps[..] } else { &steps[..6] };
            // One step begins when the one before has ended; within a step ranks are side by side.
            let own: Vec<Line> = lines.iter().filter(|line| line.key.contains(&format!("/{name}"))).cloned().collect();
            let mut rest = &own[..];
            for step in steps {
                assert!(rest.len() >= step.len(), "{name}: {own:#?}");
                let (these, after) = rest.split_at(step.len());
                assert_eq!(sorted(these), sorted(step), "block {position}: {own:#?}");
                rest = after;
            }
            assert!(rest.is_empty(), "{rest:?}");
            wanted.extend(steps.concat());
        }
    }
    assert_eq!(sorted(&lines), sorted(&wanted), "nothing else was asked");
    let kv = &run.member()["kv"];
    assert_eq!((&kv["hits_by_tier"]["g4"], &kv["block_tokens"]), (&Value::from(64), &Value::from(16)));
    assert_eq!(kv["inputs"]["blocks"], "16 tokens, derived: the trace has blocks of 512");
}

#[test]
fn lmcache_asks_the_server_what_the_real_client_would() {
    // 600 tokens are two chunks of 256 and a rest that is never stored.
    let (run, hashes, lines) = run_client("lmcache", 600, 256);
    let object = 256 * 65_536;
    let of = |op: &str, hash: u64, status, bytes| {
        [0, 1].map(|rank| line(op, &format!("x/gpufeed/kv/llama-3.1-8b@2@{rank}@{hash:016x}@bfloat16"), status, bytes))
    };
    let mut wanted = Vec::new();
    for hashes in &hashes {
        assert_eq!(hashes.len(), 2);
        // The first chunk is not there, so no other is asked for. What a client wrote it never asks for again.
        wanted.extend(of("head", hashes[0], 404, 0));
        wanted.extend(hashes.iter().flat_map(|&hash| of("put", hash, 200, object)));
    }
    let read: Vec<Line> = hashes[0].iter().flat_map(|&hash| of("get", hash, 200, object)).collect();
    wanted.extend(read.clone());
    assert_eq!(sorted(&lines), sorted(&wanted));
    assert_eq!(sorted(&lines[lines.len() - read.len()..]), sorted(&read), "read last, all at once");
    for hash in hashes.iter().flatten() {
        for rank in [0, 1] {
            let key = format!("@{rank}@{hash:016x}@");
            let ops: Vec<&str> = lines.iter().filter(|l| l.key.contains(&key)).map(|l| l.op.as_str()).collect();
            assert!(matches!(ops[..], ["put"] | ["put", "get"] | ["head", "put"] | ["head", "put", "get"]), "{ops:?}");
        }
    }
    assert_eq!(run.member()["kv"]["hits_by_tier"]["g4"], 512);
    // A miss is an answer: none of the look-ups failed.
    let asked = lines.iter().filter(|line| line.op == "head").count();
    let row = run.op("stat");
    assert_eq!((&row["count"], row["errors"].as_object().map(serde_json::Map::len)), (&asked.into(), Some(0)), "{row}");
}

/// What `--dry-run` prints, or what it complains of.
fn dry_run(args: &[&str]) -> Result<String, String> {
    let base = ["run", "kv", "--dry-run"];
    let output = std::process::Command::new(GPUFEED).args(base).args(args).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.code() {
        Some(0) => Ok(text(&output.stdout)),
        Some(2) => Err(text(&output.stderr)),
        other => panic!("{other:?}: {}", text(&output.stderr)),
    }
}

#[test]
fn other_clients_are_data() {
    let plan = |client: &str, model: &str, gpu: &str, tp: &str| {
        let text = dry_run(&["--client", client, "--model", model, "--gpu", gpu, "--tp", tp]).expect("a plan");
        let plan: toml::Table = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        plan["members"][0]["spec"]["kv"]["spec"].as_table().expect("a table").clone()
    };
    let of = |client: &str| plan(client, "llama-3.1-8b", "h100-sxm", "2");
    let integer = |spec: &toml::Table, key: &str| spec[key].as_integer().expect("a number");
    for (client, tokens, in_flight, per_rank) in [
        ("kvbm", 16, 32, true),
        ("kvbm-nixl", 16, 32, true),
        ("lmcache", 256, 640, true),
        ("mooncake", 512, 16, false),
        ("vllm", 16, 16, false),
        ("hicache", 64, 128, false),
        ("memkv", 16, 64, false),
        ("nixl-obj", 256, 16, false),
    ] {
        let spec = of(client);
        assert_eq!(integer(&spec, "block_tokens"), tokens, "{client}");
        assert_eq!(integer(&spec, "get_in_flight"), in_flight, "{client}");
        assert_eq!(spec["per_rank"].as_bool(), Some(per_rank), "{client}");
    }
    let shape = |client: &str, key: &str| of(client)["shape"].get(key).cloned();
    assert_eq!(shape("kvbm-nixl", "poll").as_ref().and_then(toml::Value::as_str), Some("50ms"));
    assert_eq!(shape("hicache", "batch_blocks").and_then(|value| value.as_integer()), Some(128));
    assert_eq!(shape("nixl-obj", "ranged_get").and_then(|value| value.as_bool()), Some(true));
    assert_eq!(integer(&of("hicache"), "min_hit_tokens"), 256);
    // The latent of MLA is the same on every rank: one copy.
    assert_eq!(plan("lmcache", "deepseek-v3", "h200", "8")["per_rank"].as_bool(), Some(false));
    // 2 MiB of a model with 327,680 bytes a token.
    assert_eq!(integer(&plan("memkv", "llama-3.1-70b", "h100-sxm", "4"), "block_tokens"), 6);
}

#[test]
fn a_block_that_no_target_takes_is_refused_at_once() {
    let args = ["--gpu", "h100-sxm", "--model", "llama-3.1-8b", "--client", "plain", "--block-tokens"];
    let error = dry_run(&[&args[..], &["50000"]].concat()).expect_err("refused");
    let wanted = "a block of 50000 tokens of llama-3.1-8b is an object of 6.10 GiB, more than the 5 GiB that S3 takes in one \
                  PUT: use --block-tokens 40960 or less";
    assert!(error.contains(wanted), "{error}");
    dry_run(&[&args[..], &["40960"]].concat()).expect("5 GiB are taken");
    assert!(dry_run(&[&args[..], &["0"]].concat()).expect_err("refused").contains("--block-tokens must be at least 1"));
}
