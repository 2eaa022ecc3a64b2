//! `trace` and `profile`: figures under fixed keys, and what one command writes the others read.

use std::process::Stdio;

use serde_json::Value;

use crate::program::{Place, number};

fn info(place: &Place, args: &[&str]) -> Value {
    serde_json::from_str(&place.run(&[&["trace", "info", "--json"], args].concat()).passed().out).expect("JSON")
}

/// Two requests share one block of 512 tokens; the second is 600 tokens long.
const SMALL: &str = "{\"timestamp\": 0, \"input_length\": 1000, \"output_length\": 10, \"hash_ids\": [7, 8]}\n\
                     {\"timestamp\": 3000, \"input_length\": 600, \"output_length\": 30, \"hash_ids\": [7, 9]}\n";

#[test]
fn info_has_the_keys_and_figures_scripts_rely_on() {
    let place = Place::new();
    let file = place.write("small.jsonl", SMALL);
    let found = info(&place, &[&file, "--lru", "1,100"]);
    assert_eq!(found["format"], "mooncake");
    assert_eq!(found["requests"], 2);
    assert_eq!(found["duration_s"], 3.0);
    assert_eq!(found["block_tokens"], 512);
    assert_eq!(found["input_tokens"], serde_json::json!({"mean": 800.0, "median": 800.0, "max": 1000}));
    assert_eq!(found["output_tokens"], serde_json::json!({"mean": 20.0, "median": 20.0, "max": 30}));
    assert_eq!((number(&found["blocks_total"]), number(&found["blocks_unique"])), (4, 3));
    assert_eq!(found["prefix_hit_blocks"], 1);
    assert_eq!(found["prefix_hit_ratio"], 0.25);
    assert_eq!(found["token_hit_ratio"], 512.0 / 1600.0);
    let lru = |capacity: u64, hits: u64| serde_json::json!({"capacity_blocks": capacity, "hit_blocks": hits, "hit_ratio": hits as f64 / 4.0});
    assert_eq!(found["lru"], serde_json::json!([lru(1, 0), lru(100, 1)]));
    let text = place.run(&["trace", "info", &file]).passed().out;
    assert!(text.contains("mooncake") && text.contains("25.00%"), "{text}");
}

#[test]
fn a_trace_without_blocks_has_null_block_figures() {
    let place = Place::new();
    let rows = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,100,20\n\
                2023-11-16 18:15:50.9951690,300,40\n";
    let found = info(&place, &[&place.write("azure.csv", rows)]);
    assert_eq!(found["requests"], 2);
    for key in ["block_tokens", "blocks_total", "blocks_unique", "prefix_hit_blocks", "prefix_hit_ratio", "lru"] {
        assert!(found[key].is_null() && found.get(key).is_some(), "{key}: {found}");
    }
}

#[test]
fn what_synth_writes_info_convert_and_window_read() {
    for kind in ["multi-turn", "agentic", "rag"] {
        let place = Place::new();
        let args = ["trace", "synth", kind, "--set", "sessions=30"];
        let text = place.run(&args).passed().out;
        assert_eq!(text, place.run(&args).passed().out, "the same seed makes the same trace");
        assert_ne!(text, place.run(&[&args[..], &["--seed", "7"]].concat()).passed().out);
        let file = place.write("t.jsonl", &text);
        let whole = info(&place, &[&file]);
        assert_eq!(number(&whole["requests"]), text.lines().count() as u64);
        let converted = place.run(&["trace", "convert", &file]).passed().out;
        let again = info(&place, &[&place.write("c.jsonl", &converted)]);
        for key in ["requests", "input_tokens", "output_tokens", "blocks_total", "blocks_unique", "prefix_hit_blocks"] {
            assert_eq!(whole[key], again[key], "{kind}: {key}");
        }
        let cut = place.run(&["trace", "window", &file, "--from", "2s", "--to", "20s"]).passed().out;
        let part = info(&place, &[&place.write("w.jsonl", &cut)]);
        assert!(number(&part["requests"]) > 0 && number(&part["requests"]) < number(&whole["requests"]));
        assert!(part["duration_s"].as_f64() < Some(18.0));
        place.run(&["trace", "window", &file, "--from", "9000h", "--to", "9001h"]).said(2, &["no request", "9000"]);
    }
}

#[test]
fn parameters_of_synth_are_listed_and_taken() {
    let place = Place::new();
    let help = place.run(&["trace", "synth", "rag", "--set", "help"]).passed().out;
    assert!(help.contains("retrieval.passages=") && help.contains("sessions="), "{help}");
    for line in help.lines() {
        place.run(&["trace", "synth", "rag", "--set", "sessions=3", "--set", line, "--out", "t.jsonl"]).passed();
    }
}

/// `gpufeed … | head` is no error.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    for args in [&["trace", "synth", "rag"][..], &["report", "--schema"], &["man"]] {
        let mut command = place.gpufeed();
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program");
        drop(child.stdout.take());
        let ended = child.wait_with_output().expect("the end");
        assert!(ended.status.success() && ended.stderr.is_empty(), "{args:?}: {ended:?}");
    }
}

#[test]
fn profiles_are_listed_and_shown() {
    let place = Place::new();
    let text = place.run(&["profile", "list"]).passed().out;
    let list: Value = serde_json::from_str(&place.run(&["profile", "list", "--json"]).passed().out).expect("JSON");
    let list = list.as_array().expect("a list");
    for kind in ["model", "gpu", "engine", "training", "kv-client"] {
        assert!(list.iter().any(|entry| entry["kind"] == kind), "{kind}");
    }
    assert_eq!(text.lines().count(), list.len());
    for name in ["llama-3.1-8b", "h100-sxm", "unet3d-h100", "mooncake", "vllm"] {
        assert!(place.run(&["profile", "show", name]).passed().out.contains("source"), "{name} has sources");
        let shown = place.run(&["profile", "show", name, "--json"]).passed().out;
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        assert!(shown[0]["profile"].is_object(), "{shown}");
    }
    for entry in list {
        place.run(&["profile", "show", entry["name"].as_str().expect("a name")]).passed();
    }
}
