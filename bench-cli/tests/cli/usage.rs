//! What makes no sense is refused with status 2 and one sentence that names the thing and the way out, before anything
//! is done.

use std::fs;

use crate::program::Place;

/// Each is refused at once: the words after the arguments are in the sentence.
fn refused(cases: &[(&str, &[&str])]) {
    for (args, words) in cases {
        let place = Place::new();
        let args: Vec<&str> = args.split(' ').collect();
        let ended = place.run(&args);
        ended.said(2, words);
        assert!(place.names().is_empty(), "{args:?} left {:?}", place.names());
    }
}

#[test]
fn unknown_names_get_the_nearest_known_ones() {
    refused(&[
        ("run quik", &["`quik`", "did you mean quick"]),
        ("run kv --model lama-3.1-8b", &["`lama-3.1-8b`", "did you mean", "`llama-3.1-8b`"]),
        ("run kv --gpu h10", &["gpu", "`h10`", "`h100`"]),
        ("run rag --gpu l40x", &["gpu", "`l40x`", "`l40s`"]),
        ("run training --profile unet3d-h10", &["`unet3d-h10`", "`unet3d-h100`"]),
        ("run kv --client lmcach", &["`lmcach`", "`lmcache`"]),
        ("run ops --op git", &["`git`", "get, put, stat"]),
        ("profile show resnet5", &["`resnet5`", "`resnet50"]),
        ("trace synth chat", &["`chat`", "multi-turn, agentic and rag"]),
        ("trace synth rag --set sessons=1", &["`sessons`", "sessions"]),
    ]);
}

#[test]
fn unknown_settings_are_refused_and_none_is_lost() {
    refused(&[
        ("run kv --set model.hiden=1", &["model.hiden=1", "`hidden`"]),
        ("run kv --set kv.g2_byte=1", &["kv.g2_byte", "kv.g2_bytes"]),
        ("run kv --set nowhere.key=1", &["`nowhere`", "model"]),
        ("run kv --set model", &["`--set model`", "section.key=value"]),
        ("run kv --set training.batch=1", &["training.batch=1", "run kv", "kv.key=value"]),
        ("run training --set training.bach=1", &["training.bach=1", "`batch`"]),
        ("run training --set model.hidden=1", &["model.hidden=1", "training.key=value"]),
        ("run rag --set kv-client.in_flight=1", &["kv-client.in_flight=1", "rag.key=value"]),
        ("run ops --set ops.object=1", &["ops.object", "ops.objects"]),
        ("run ops --set gpu.tflops=1", &["gpu.tflops=1", "ops.key=value"]),
        ("run kv --set gpu.hbm_bytes=much", &["gpu.hbm_bytes=much"]),
    ]);
}

#[test]
fn numbers_that_make_no_run_are_refused() {
    refused(&[
        ("run ops --duration 0s", &["duration of zero", "--duration"]),
        ("run quick --duration 0ms", &["duration of zero", "--duration"]),
        ("run ops --op-timeout 0s", &["--op-timeout"]),
        ("run ops --threads 0", &["--threads"]),
        ("run ops --depth 0", &["depth of at least 1"]),
        ("run ops --rate 0", &["rate of 0", "above 0"]),
        ("run ops --rate nan", &["rate"]),
        ("run ops --count 0", &["count of 0", "at least 1"]),
        ("run ops --objects 0", &["no object"]),
        ("run ops --size 4Kilo", &["`4Kilo`", "4KiB"]),
        ("run ops --part-size 0", &["--part-size 0"]),
        ("run ops --verify 2", &["--verify 2", "full"]),
        ("run ops --shape latency", &["`latency`", "effect=value"]),
        ("run kv --workers 0", &["--workers"]),
        ("run kv --time-scale 0", &["time_scale", "above 0"]),
        ("run rag --nprobe 0", &["--nprobe 0"]),
        ("run rag --rate 0", &["rate", "above 0"]),
        ("run training --accelerators 0", &["accelerators", "at least 1"]),
        ("run training --files 0", &["files", "at least 1"]),
    ]);
}

#[test]
fn windows_and_targets_are_read_strictly() {
    refused(&[
        ("run kv --window noon --trace x", &["--window noon", "0s..10m"]),
        ("run kv --window 10s..5s --trace x", &["--window 10s..5s", "end must be after"]),
        ("run kv --window 0s..5s", &["--window", "--trace"]),
        ("run ops --target ftp://x", &["`ftp://x`", "s3://bucket/prefix"]),
        ("run ops --target s3://", &["`s3://`", "bucket"]),
        ("run ops --target file://here", &["`file://here`", "file:///directory"]),
        ("run ops --target mem: --shape get:latency=1ms", &["--shape", "embedded"]),
        ("serve --bucket Capital --metrics none", &["`Capital`", "bucket name"]),
        ("serve --access-key only --metrics none", &["--secret-key"]),
        ("serve --metrics everywhere", &["`everywhere`", "none"]),
    ]);
}

/// Sentences of the argument parser begin with `error:`.
#[test]
fn wrong_syntax_is_status_2() {
    for args in [
        &["frobnicate"][..],
        &[],
        &["run"],
        &["run", "ops", "--sise", "4KiB"],
        &["run", "ops", "--duration", "soon"],
        &["run", "kv", "--host-cache", "lots"],
        &["serve", "--store", "tape"],
        &["report"],
        &["report", "x", "--schema"],
        &["trace", "window", "x"],
    ] {
        let ended = Place::new().run(args);
        assert_eq!(ended.status.code(), Some(2), "{args:?}: {}", ended.err);
        assert!(ended.out.is_empty() && !ended.err.is_empty(), "{args:?}");
    }
}

#[test]
fn models_too_big_are_refused_before_anything_is_written() {
    for workload in ["kv", "rag"] {
        for last in ["--dry-run", "--quiet"] {
            let place = Place::new();
            let ended = place.run(&["run", workload, "--model", "llama-3.1-405b", "--gpu", "l40s", "--out", "r", last]);
            ended.said(2, &["llama-3.1-405b does not fit l40s × 1", "--tp 32", "fp8"]);
            assert!(place.names().is_empty(), "{:?}", place.names());
        }
    }
}

#[test]
fn a_malformed_trace_line_is_named() {
    let place = Place::new();
    let good = r#"{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}"#;
    let file = place.write("broken.jsonl", &format!("{good}\n{good}\n{{\"timestamp\": 1, \"input_le\n{good}\n"));
    for args in [&["trace", "info", &file][..], &["run", "kv", "--trace", &file], &["trace", "convert", &file]] {
        place.run(args).said(2, &["line 3", "broken.jsonl"]);
    }
    assert_eq!(place.names(), ["broken.jsonl"]);
    place.run(&["trace", "info", "absent.jsonl"]).said(2, &["absent.jsonl"]);
    place.run(&["run", "kv", "--dry-run", "--trace", "absent.jsonl"]).said(2, &["absent.jsonl"]);
    let empty = place.write("empty.jsonl", "");
    place.run(&["trace", "info", &empty]).said(2, &["empty.jsonl"]);
}

#[test]
fn a_plan_with_an_unknown_field_is_refused_with_its_line() {
    let place = Place::new();
    let plan = place.run(&["run", "ops", "--dry-run"]).passed().out;
    let mut lines: Vec<&str> = plan.lines().collect();
    lines.insert(2, "colour = \"blue\"");
    place.write("odd.toml", &lines.join("\n"));
    place.run(&["run", "odd.toml"]).said(2, &["odd.toml", "line 3", "`colour`"]);
    place.write("newer.toml", &plan.replace("plan_version = 1", "plan_version = 99"));
    place.run(&["run", "newer.toml"]).said(2, &["newer.toml", "99"]);
    place.write("half.toml", &plan[..plan.len() / 2]);
    place.run(&["run", "half.toml"]).said(2, &["half.toml"]);
    place.run(&["run", "absent.toml"]).said(2, &["absent.toml"]);
    let wrong = plan.replace("store = \"mem\"", "store = \"tape\"");
    place.write("tape.toml", &wrong);
    place.run(&["run", "tape.toml"]).said(2, &["`tape`", "mem or synth"]);
    assert_eq!(fs::read_dir(place.path("")).expect("the place").count(), 4, "{:?}", place.names());
}
