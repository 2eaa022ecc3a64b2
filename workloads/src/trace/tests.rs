use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

/// The folder of public traces, where it is at hand: `GPUFEED_TRACES`, or `shared/traces` beside the checkout.
fn shared(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("GPUFEED_TRACES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/traces")), PathBuf::from);
    Some(folder.join(name)).filter(|path| path.exists())
}

fn read(name: &str, text: &str) -> Result<Trace, TraceError> {
    let (format, records) =
        records_from(name, std::io::Cursor::new(text.to_owned().into_bytes()), &Options::default(), None)?;
    Trace::from_records(format, records, None)
}

fn close(value: Option<f64>, expected: f64, digits: i32) {
    let value = value.expect("a figure");
    assert!((value - expected).abs() <= 0.5 * 10f64.powi(-digits), "{value} is not {expected}");
}

#[test]
fn mooncake_figures_come_out_to_the_last_digit() {
    let Some(path) = shared("mooncake/conversation_trace.jsonl") else { return };
    let trace = Trace::load(&path).expect("well-formed");
    let info = info(&trace, &[1000, 3000, 10_000, 30_000, 50_000, 100_000]);
    assert_eq!((info.format, info.requests, info.block_tokens), (Format::Mooncake, 12_031, Some(512)));
    assert_eq!(info.duration_s, 3536.999);
    close(info.input_tokens.mean, 12_035.06, 2);
    close(info.output_tokens.mean, 342.62, 2);
    assert_eq!((info.input_tokens.median, info.output_tokens.median), (Some(6909.0), Some(350.0)));
    assert_eq!((info.blocks_total, info.blocks_unique), (Some(288_500), Some(182_790)));
    assert_eq!(info.prefix_hit_blocks, Some(105_710));
    close(info.prefix_hit_ratio, 0.366_412, 6);
    close(info.token_hit_ratio, 0.373_624, 6);
    let hits: Vec<u64> = info.lru.expect("blocks").iter().map(|lru| lru.hit_blocks).collect();
    assert_eq!(hits, [12_831, 18_761, 60_921, 93_967, 102_290, 104_924]);
}

#[test]
fn ragpulse_figures_come_out_to_the_last_digit() {
    let Some(path) = shared("ragpulse/0_trace.jsonl") else { return };
    let trace = Trace::load(&path).expect("well-formed");
    assert_eq!(trace, Trace::load(path.parent().expect("a folder")).expect("the folder as well"));
    let info = info(&trace, &[]);
    assert_eq!((info.format, info.requests, info.block_tokens), (Format::Ragpulse, 7106, None));
    assert_eq!(info.duration_s, 604_603.0);
    close(info.input_tokens.mean, 2943.58, 2);
    close(info.output_tokens.mean, 283.24, 2);
    let components = info.components.expect("parts");
    close(Some(components.prefix_token_hit_ratio), 0.3345, 4);
    close(info.token_hit_ratio, 0.3345, 4);
    close(Some(components.any_position_token_hit_ratio), 0.7201, 4);
}

#[test]
fn weka_conversations_have_the_totals_they_state() {
    let Some(folder) = shared("weka-kv-cache-tester") else { return };
    let trace = Trace::load(&folder).expect("well-formed");
    // 12 + 14 + 306 + 11 of a sub-agent + 22 + 8 + 4.
    assert_eq!((trace.format, trace.requests().len(), trace.block_tokens), (Format::Weka, 377, Some(64)));
    assert_eq!(trace.sessions(), 7);
    let sum = |count: fn(&Request) -> u32| trace.requests().iter().map(|r| u64::from(count(r))).sum::<u64>();
    assert_eq!(sum(|r| r.input_tokens), 1_605_375 + 649_460 + 29_869_092 + 2_829_263 + 114_011 + 265_061);
    assert_eq!(sum(|r| r.output_tokens), 8929 + 4130 + 114_713 + 4972 + 1821 + 767);
    // Ids are local: the first request of each conversation has no hit.
    let info = info(&trace, &[]);
    assert!(info.token_hit_ratio.is_some_and(|ratio| (0.9..1.0).contains(&ratio)), "{info:?}");
    // The sub-agent begins when the request before it was answered: 225.501 s − 122.376 s.
    let agent = trace.requests().iter().find(|r| r.at == Duration::from_millis(103_125)).expect("its first request");
    assert_eq!((agent.turn, agent.input_tokens), (1, 16_885));
    assert_eq!(trace.requests()[agent.parent.expect("asked for") as usize].at, Duration::from_secs(62));
}

#[test]
fn azure_times_are_exact_and_blocks_are_none() {
    let Some(path) = shared("azure-llm-2023/AzureLLMInferenceTrace_code.csv") else { return };
    let trace = Trace::load(&path).expect("well-formed");
    assert_eq!((trace.format, trace.requests().len()), (Format::Azure, 8819));
    // 18:17:03.9799600 to 19:14:19.9280160.
    assert_eq!(trace.duration(), Duration::from_nanos(3_435_948_056_000));
    let info = serde_json::to_value(info(&trace, &[10])).expect("plain");
    for key in ["block_tokens", "blocks_total", "blocks_unique", "prefix_hit_blocks", "prefix_hit_ratio", "lru"] {
        assert!(info[key].is_null(), "{key}");
    }
    assert_eq!(info["token_hit_ratio"], serde_json::Value::Null);
}

#[test]
fn formats_are_told_by_content() {
    let mooncake = r#"{"timestamp": 27482, "input_length": 655, "output_length": 52, "hash_ids": [46, 47]}"#;
    let bailian = r#"{"chat_id":159,"parent_chat_id":-1,"timestamp":61.114,"input_length":521,"output_length":132,"type":"text","turn":1,"hash_ids":[1,2]}
{"chat_id":160,"parent_chat_id":159,"timestamp":62.5,"input_length":600,"output_length":1,"type":"text","turn":2,"hash_ids":[1,2,3]}"#;
    let burst = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n\n45.5,ChatGPT,1087,230,1317,API log\n";
    let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8";
    let aiperf = "{\"session_id\": \"a\", \"timestamp\": 1000, \"input_length\": 300, \"output_length\": 40}\n\n{\"session_id\": \"a\", \"delay\": 500, \"input_length\": 100, \"output_length\": 20}\n";
    let weka = "{\n \"id\": \"x\", \"block_size\": 64,\n \"requests\": [{\"t\": 1.5, \"in\": 130, \"out\": 2, \"hash_ids\": [7, 8], \"think_time\": 0.25}]}";
    let at = |trace: &Trace| trace.requests().iter().map(|r| r.at.as_nanos()).collect::<Vec<_>>();
    let cases = [
        (mooncake, Format::Mooncake, vec![0]),
        (bailian, Format::Bailian, vec![0, 1_386_000_000]),
        (burst, Format::Burstgpt, vec![0, 40_500_000_000]),
        (azure, Format::Azure, vec![0, 52_000_000]),
        (aiperf, Format::Aiperf, vec![0, 500_000_000]),
        (weka, Format::Weka, vec![0]),
    ];
    for (text, format, times) in cases {
        let trace = read("t", text).expect("the format as named");
        assert_eq!((trace.format, at(&trace)), (format, times));
        assert_eq!(read("t", &format!("\n\u{20}\n{text}\n\n")).expect("blank lines").requests(), trace.requests());
    }
    let chat = read("t", bailian).expect("bailian");
    assert_eq!((chat.requests()[1].parent, chat.requests()[1].session, chat.sessions()), (Some(0), Some(0), 1));
    let talk = read("t", aiperf).expect("aiperf");
    let second = &talk.requests()[1];
    assert_eq!((second.parent, second.turn, second.think_time), (Some(0), 2, Some(Duration::from_millis(500))));
    assert_eq!(talk.blocks(second), [0; 0]);
    assert_eq!(read("t", weka).expect("weka").requests()[0].think_time, Some(Duration::from_millis(250)));
}

#[test]
fn errors_name_file_line_and_fault() {
    let good = "{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [1]}\n";
    let message = |text: &str| read("trace.jsonl", text).expect_err("malformed").to_string();
    assert_eq!(
        message(&format!("{good}\n{{\"timestamp\": 1, \"input_length\": -5}}\n")),
        "line 3 of trace trace.jsonl is malformed: invalid value: integer `-5`, expected u64 at column 35"
    );
    assert_eq!(
        message(&format!("{good}{{\"timestamp\": 1, \"input_le")),
        "line 2 of trace trace.jsonl is malformed: EOF while parsing a string at column 26"
    );
    assert!(
        message(&format!("{good}{{\"timestamp\": \"noon\", \"input_length\": 1}}")).contains("`noon` is not a number")
    );
    assert!(message(&format!("{good}{{\"text_input\": \"hello\"}}")).contains("no input_length"));
    assert!(message("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,x,1\n").starts_with("line 2 of"));
    assert!(message("{\n\"requests\": [\n{\"t\": 1, \"in\": 5}\n]}").contains("must have t, in, out"));
    assert!(message("a,b,c\n1,2,3").contains("cannot tell the format"));
    assert_eq!(message("\n\n"), "trace trace.jsonl holds no requests");
    let rag = r#"{"timestamp": "82", "input_length": 3, "output_length": 1, "hash_ids": {"sys_prompt": [8302]}}"#;
    assert!(message(rag).contains("sys_prompt 8302 has no token length"));
    assert_eq!(
        Trace::load(Path::new("no/such/file.jsonl")).expect_err("absent").to_string(),
        "cannot open trace no/such/file.jsonl"
    );
}

#[test]
fn block_size_is_what_the_ids_agree_with() {
    let line = |tokens: u64, ids: u64| {
        let ids: Vec<u64> = (0..ids).collect();
        format!("{{\"timestamp\": 0, \"input_length\": {tokens}, \"output_length\": 1, \"hash_ids\": {ids:?}}}\n")
    };
    assert_eq!(read("t", &(line(1000, 2) + &line(513, 2))).expect("512").block_tokens, Some(512));
    assert_eq!(read("t", &(line(1000, 63) + &line(513, 33))).expect("16").block_tokens, Some(16));
    assert_eq!(read("t", &line(1000, 0)).expect("none").block_tokens, None);
}

#[test]
fn a_window_keeps_what_arrives_in_it() {
    let lines: String = (0..10)
        .map(|i| {
            format!(
                "{{\"timestamp\": {}, \"input_length\": {i}, \"output_length\": 1, \"hash_ids\": [{i}], \"session\": {}}}\n",
                1000 * i,
                i % 2
            )
        })
        .collect();
    let trace = read("t", &lines).expect("well-formed");
    let cut = trace.window(Duration::from_secs(3), Duration::from_secs(6));
    let kept: Vec<_> = cut.requests().iter().map(|r| (r.at.as_secs(), r.input_tokens, cut.blocks(r)[0])).collect();
    assert_eq!(kept, [(0, 3, 3), (1, 4, 4), (2, 5, 5)]);
    assert_eq!(cut.requests().iter().map(|r| r.parent).collect::<Vec<_>>(), [None, None, Some(0)]);
    assert_eq!(cut.sessions(), 2);
    assert!(trace.window(Duration::from_secs(60), Duration::from_secs(70)).requests().is_empty());
}

fn written(trace: &Trace) -> Trace {
    let mut text = Vec::new();
    write_mooncake(trace, &mut text).expect("a vector takes all");
    read("written", str::from_utf8(&text).expect("JSON")).expect("what we write we read")
}

#[test]
fn every_format_converts_to_mooncake() {
    for name in
        ["mooncake/conversation_trace.jsonl", "weka-kv-cache-tester", "azure-llm-2023/AzureLLMInferenceTrace_code.csv"]
    {
        let Some(path) = shared(name) else { continue };
        let trace = Trace::load(&path).expect("well-formed");
        let copy = written(&trace);
        assert_eq!(copy.duration(), trace.duration());
        let (mut before, after) = (info(&trace, &[500]), info(&copy, &[500]));
        before.format = Format::Mooncake;
        assert_eq!(before, after);
    }
    let Some(path) = shared("ragpulse") else { return };
    let trace = Trace::load(&path).expect("well-formed");
    let copy = written(&trace);
    assert_eq!(info(&copy, &[]).components, info(&trace, &[]).components);
    assert_eq!(copy.block_tokens, Some(512));
}

#[test]
fn synthesis_is_deterministic_and_reads_back() {
    for kind in [Kind::MultiTurn, Kind::Agentic, Kind::Rag] {
        let synth = Synth { sessions: 30, ..Synth::preset(kind) };
        let trace = synth.trace().expect("a preset");
        assert_eq!(trace, synth.trace().expect("again"));
        assert_ne!(trace, Synth { seed: 2, ..synth.clone() }.trace().expect("another seed"));
        let copy = written(&trace);
        assert_eq!(info(&copy, &[100]), info(&trace, &[100]));
        assert_eq!(copy.requests(), trace.requests());
        assert_eq!(copy, trace);
        assert_eq!(trace.has_parts(), kind == Kind::Rag);
    }
}

#[test]
fn a_conversation_reuses_exactly_the_whole_blocks_of_the_prompt_before() {
    let (sessions, turns, system, input, output, block) = (40u64, 6u64, 1200u64, 700u64, 90u64, 512u64);
    let synth = Synth {
        sessions: sessions as u32,
        turns: Spread::Fixed(turns as f64),
        system_prompts: 1,
        system_prompt_tokens: Spread::Fixed(system as f64),
        input_tokens: Spread::Fixed(input as f64),
        output_tokens: Spread::Fixed(output as f64),
        ..Synth::preset(Kind::MultiTurn)
    };
    let info = info(&synth.trace().expect("fixed"), &[]);
    let prompt = |turn: u64| system + turn * input + (turn - 1) * output;
    let later: u64 = (2..=turns).map(|turn| prompt(turn - 1) / block).sum();
    // All but the first conversation find the system prompt's whole blocks.
    assert_eq!(info.prefix_hit_blocks, Some(sessions * later + (sessions - 1) * (system / block)));
    assert_eq!(info.blocks_total, Some(sessions * (1..=turns).map(|turn| prompt(turn).div_ceil(block)).sum::<u64>()));
    assert_eq!(info.requests, sessions * turns);
    assert_eq!(info.input_tokens.max, Some(prompt(turns) as u32));
}

#[test]
fn synthetic_means_and_rates_are_the_parameters() {
    let synth = Synth {
        sessions: 20_000,
        sessions_per_s: 50.0,
        turns: Spread::Geometric(3.0),
        system_prompts: 10,
        system_prompt_zipf: 1.0,
        output_tokens: Spread::Exponential(200.0),
        ..Synth::preset(Kind::MultiTurn)
    };
    let trace = synth.trace().expect("valid");
    let n = trace.requests().len() as f64;
    // Geometric(3) has variance 6: within 5 standard errors.
    assert!((n / 20_000.0 - 3.0).abs() < 5.0 * (6.0f64 / 20_000.0).sqrt(), "{n}");
    let begins: Vec<Duration> = trace.requests().iter().filter(|r| r.turn == 1).map(|r| r.at).collect();
    let rate = (begins.len() - 1) as f64 / begins.iter().max().expect("some").as_secs_f64();
    assert!((rate / 50.0 - 1.0).abs() < 5.0 / 20_000f64.sqrt(), "{rate}");
    let mean = trace.requests().iter().map(|r| f64::from(r.output_tokens)).sum::<f64>() / n;
    assert!((mean / 200.0 - 1.0).abs() < 5.0 / n.sqrt(), "{mean}");
    // The most popular of ten prompts has 1/H(10) of the sessions.
    let mut shares: FxHashMap<u64, u32> = FxHashMap::default();
    for request in trace.requests().iter().filter(|r| r.turn == 1) {
        *shares.entry(trace.blocks(request)[0]).or_default() += 1;
    }
    let top = f64::from(*shares.values().max().expect("some")) / 20_000.0;
    let expected = 1.0 / (1..=10).map(|i| 1.0 / f64::from(i)).sum::<f64>();
    assert!((top - expected).abs() < 5.0 * (expected * (1.0 - expected) / 20_000.0).sqrt(), "{top} {expected}");
    // A later turn comes its answer and its think time after the one before.
    let follows = trace.requests().iter().find(|r| r.turn == 2).expect("one");
    let before = &trace.requests()[follows.parent.expect("turn 1") as usize];
    let answer = f64::from(before.output_tokens) * synth.token_time_s;
    let gap = (follows.at - before.at - follows.think_time.expect("given")).as_secs_f64();
    assert!((gap - answer).abs() < 0.002, "{gap} {answer}");
}

#[test]
fn rag_prompts_are_their_parts() {
    let synth = Synth::preset(Kind::Rag);
    let retrieval = synth.retrieval.clone().expect("rag");
    let trace = synth.trace().expect("preset");
    for request in trace.requests() {
        let parts = trace.parts(request);
        assert_eq!(parts.iter().map(|part| part.tokens).sum::<u32>(), request.input_tokens);
        assert!(parts.is_sorted_by_key(|part| part.component));
        let mut passages: Vec<u64> =
            parts.iter().filter(|part| part.component == Component::Passage).map(|part| part.id).collect();
        passages.sort_unstable();
        passages.dedup();
        assert_eq!(passages.len(), retrieval.passages_per_query as usize);
        assert_eq!(trace.blocks(request).len() as u32, request.input_tokens.div_ceil(512));
    }
    let all = Retrieval { passages: 6, passage_zipf: 5.0, ..retrieval };
    let trace = Synth { retrieval: Some(all), ..synth }.trace().expect("every passage in every prompt");
    let components = info(&trace, &[]).components.expect("parts");
    assert!(components.any_position_token_hit_ratio > components.prefix_token_hit_ratio);
}

#[test]
fn parameters_are_set_by_name() {
    let mut synth = Synth::preset(Kind::Rag);
    synth.set("sessions", "7").expect("a number");
    synth.set("think_time_s", "exp(2)").expect("a distribution");
    synth.set("retrieval.passages", "100").expect("nested");
    assert_eq!((synth.sessions, synth.think_time_s), (7, Spread::Exponential(2.0)));
    assert_eq!(synth.retrieval.as_ref().map(|r| r.passages), Some(100));
    let error = synth.set("session", "7").expect_err("no such name").to_string();
    assert!(error.contains("`session`") && error.contains("sessions_per_s"), "{error}");
    assert!(synth.set("sessions", "many").is_err());
    assert!(Synth { sessions_per_s: 0.0, ..synth }.trace().is_err());
}

/// The count by its definition, with lists and linear searches.
fn naive(requests: &[Vec<u64>], capacity: Option<usize>) -> u64 {
    let mut cache: Vec<u64> = Vec::new();
    let mut hits = 0;
    for ids in requests {
        for id in ids {
            if !cache.contains(id) {
                break;
            }
            hits += 1;
        }
        for id in ids {
            cache.retain(|held| held != id);
            cache.push(*id);
            if capacity.is_some_and(|capacity| cache.len() > capacity) {
                cache.remove(0);
            }
        }
    }
    hits
}

proptest! {
    #[test]
    fn prefix_hits_are_those_of_the_definition(
        requests in prop::collection::vec(prop::collection::vec(0u64..20, 0..12), 1..40),
        capacity in 0u64..24,
        block in 1u32..40,
    ) {
        let records = requests.iter().map(|ids| Ok(Record {
            input_tokens: (ids.len() as u32 * block).saturating_sub(block / 2),
            blocks: ids.clone(),
            ..Record::default()
        }));
        let trace = Trace::from_records(Format::Mooncake, records, Some(block)).expect("no errors among them");
        let info = info(&trace, &[capacity]);
        let total: usize = requests.iter().map(Vec::len).sum();
        if total == 0 {
            prop_assert!(info.lru.is_none() && info.blocks_total.is_none());
        } else {
            prop_assert_eq!(info.blocks_total, Some(total as u64));
            prop_assert_eq!(info.prefix_hit_blocks, Some(naive(&requests, None)));
            prop_assert_eq!(info.lru.expect("blocks")[0].hit_blocks, naive(&requests, Some(capacity as usize)));
            let tokens: u64 = (0..requests.len()).map(|i| {
                let before: std::collections::HashSet<_> = requests[..i].iter().flatten().collect();
                let hits = requests[i].iter().take_while(|id| before.contains(id)).count() as u64;
                (hits * u64::from(block)).min(u64::from(trace.requests()[i].input_tokens))
            }).sum();
            let input: u64 = trace.requests().iter().map(|r| u64::from(r.input_tokens)).sum();
            prop_assert_eq!(info.token_hit_ratio, (input > 0).then(|| tokens as f64 / input as f64));
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), format in prop::option::of(0usize..7)) {
        let options = Options { format: format.map(|i| Format::ALL[i]), block_tokens: None };
        if let Ok((format, records)) = records_from("x", std::io::Cursor::new(bytes), &options, None)
            && let Ok(trace) = Trace::from_records(format, records, None)
        {
            let _ = info(&trace, &[3]);
        }
    }

    /// Valid lines with one byte changed, removed or doubled get past the first token.
    #[test]
    fn no_damaged_line_makes_a_reader_panic(which in 0usize..6, at: prop::sample::Index, byte: u8, how in 0..3) {
        let lines = [
            r#"{"timestamp": 27482, "input_length": 655, "output_length": 52, "hash_ids": [46, 47], "session": 1, "turn": 2, "think_time_ms": 1.5, "parts": {"sys_prompt": [[1, 2]]}}"#,
            r#"{"chat_id":159,"parent_chat_id":55,"timestamp":61.114,"input_length":521,"output_length":132,"turn":2,"hash_ids":[1]}"#,
            r#"{"timestamp": "82", "input_length": 3112, "output_length": 192, "hash_ids": {"sys_prompt": []}, "session_id": "1"}"#,
            r#"{"id":"t","block_size":64,"hash_id_scope":"local","requests":[{"t":0.0,"in":5,"out":1,"hash_ids":[1]},{"t":2,"duration_ms":5,"requests":[]}]}"#,
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10",
            "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18",
        ];
        let mut bytes = lines[which].as_bytes().to_vec();
        let at = at.index(bytes.len());
        match how {
            0 => bytes[at] = byte,
            1 => drop(bytes.remove(at)),
            _ => bytes.insert(at, byte),
        }
        if let Ok((format, records)) = records_from("x", std::io::Cursor::new(bytes), &Options::default(), None)
            && let Ok(trace) = Trace::from_records(format, records, None)
        {
            let _ = info(&trace, &[3]);
            let _ = trace.window(Duration::ZERO, Duration::MAX);
        }
    }
}
