//! `gpufeed plan ttft`, `plan itl` and `plan --validate`: what scripts read from them.

use serde_json::Value;

use crate::program::Place;

fn json(args: &str) -> Value {
    let place = Place::new();
    let args: Vec<&str> = args.split(' ').collect();
    let ended = place.run(&args);
    assert_eq!(ended.status.code(), Some(0), "{args:?}: {}", ended.err);
    serde_json::from_str(&ended.out).expect("JSON and nothing else")
}

fn adds_up(prediction: &Value) -> u64 {
    let terms = prediction["terms"].as_object().expect("terms");
    assert!(terms.keys().all(|name| name.ends_with("_ns")), "{terms:?}");
    let sum: u64 = terms.values().map(|ns| ns.as_u64().expect("whole nanoseconds")).sum();
    assert_eq!(prediction["predicted_ns"].as_u64(), Some(sum));
    sum
}

#[test]
fn a_ttft_is_the_sum_of_its_terms() {
    let base = "plan ttft --model llama-3.1-8b --gpu h100-sxm --tp 1 --context 30000 --format json";
    let cold = json(&format!("{base} --cached 0"));
    assert_eq!(cold["extrapolated"], false);
    // Row V30 of the published figures: 1.1 s cold, 98 ms with all of it in host memory.
    assert!((adds_up(&cold) as f64 / 1.1e9 - 1.0).abs() < 0.1, "{cold}");
    let reuse = json(&format!("{base} --cached 30000 --load-bytes-per-s 43.9GB/s"));
    assert!((adds_up(&reuse) as f64 / 98e6 - 1.0).abs() < 0.1, "{reuse}");
    let late = json(&format!("{base} --cached 30000 --load-bytes-per-s 43.9GB/s --load-latency 7ms"));
    assert_eq!(adds_up(&late), adds_up(&reuse) + 7_000_000);
}

#[test]
fn every_model_and_gpu_has_a_prediction_and_says_whether_it_is_one_of_a_fit() {
    for (model, gpu, tp) in [
        ("qwen3-235b-a22b", "h20", 8),
        ("deepseek-r1", "h200-sxm", 8),
        ("kimi-k2.5", "b300", 8),
        ("gpt-oss-120b", "gb200", 2),
        ("mixtral-8x22b", "mi300x", 4),
        ("llama-3.1-405b", "b200", 8),
        ("qwen2-7b", "a10g", 1),
        ("llama-3.3-70b", "l40s", 8),
        ("qwen3-coder-30b-a3b", "h800-sxm", 1),
        ("qwen2.5-72b", "a100-sxm", 4),
    ] {
        let itl =
            json(&format!("plan itl --model {model} --gpu {gpu} --tp {tp} --context 2000 --batch 4 --format json"));
        adds_up(&itl);
        assert_eq!(itl["extrapolated"], true, "{model} on {gpu}");
    }
}

#[test]
fn a_gpu_from_a_file_is_a_gpu() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../profiles/calibrate/example.toml");
    let itl = json(&format!("plan itl --model llama-3.1-8b --gpu {file} --context 1000 --format json"));
    assert!(adds_up(&itl) > 5_000_000 && itl["extrapolated"] == true, "{itl}");
}

#[test]
fn text_says_what_it_rests_on() {
    let place = Place::new();
    let ended = place.run(&["plan", "itl", "--model", "llama-3.1-8b", "--gpu", "h20", "--context", "1000"]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
    assert!(ended.out.contains("extrapolated: no cited measurement fits ITL of h20"), "{}", ended.out);
}

#[test]
fn validation_prints_every_row_and_holds() {
    let all = json("plan --validate --format json");
    assert_eq!(all["passed"], true);
    let rows = all["rows"].as_array().expect("rows");
    for id in ["V10", "W50", "D235k", "D4k", "A2500", "PF", "MK128", "OC64", "ITL-fp8", "Eq2-H800"] {
        assert!(rows.iter().any(|row| row["id"] == id), "{id}");
    }
    let place = Place::new();
    let ended = place.run(&["plan", "--validate"]);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
    assert!(ended.out.contains("not gated: ") && ended.out.contains("gated rows hold"), "{}", ended.out);
}

#[test]
fn what_makes_no_sense_is_refused_with_a_way_out() {
    for (args, words) in [
        ("plan itl --model lama-3.1-8b --gpu h100-sxm --context 1", &["`lama-3.1-8b`", "`llama-3.1-8b`"][..]),
        ("plan itl --model llama-3.1-405b --gpu h100-sxm --context 1", &["812 GB", "--tp 16 would"]),
        ("plan itl --model llama-3.1-8b --gpu h100-sxm --tp 3 --context 1", &["32 attention heads", "--tp 3"]),
        ("plan itl --model llama-3.1-8b --gpu h100-sxm --context 1 --batch 0", &["--batch"]),
        ("plan ttft --model llama-3.1-8b --gpu h100-sxm --context 10 --cached 11", &["--cached 11", "--context 10"]),
        ("plan ttft --model llama-3.1-8b --gpu h100-sxm --context 0", &["--context must be at least 1"]),
        ("plan ttft --model llama-3.1-8b --gpu h100-sxm --context 1 --load-bytes-per-s 0GB/s", &["more than zero"]),
        (
            "plan ttft --model llama-3.1-8b --gpu h100-sxm --context 1 --set training.batch=1",
            &["training", "model, gpu"],
        ),
    ] {
        let place = Place::new();
        let args: Vec<&str> = args.split(' ').collect();
        place.run(&args).said(2, words);
    }
}
