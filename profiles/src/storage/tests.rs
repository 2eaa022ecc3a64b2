use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;

fn shaper(text: &str) -> Shaper {
    Shaper::new(&text.parse().expect(text), 7)
}

fn get(shaper: &mut Shaper, bytes: u64, at: u64) -> Fate {
    shaper.admit(ShapedOp::Get, bytes, at)
}

/// Latencies of `n` GETs that arrive a second apart, sorted.
fn sorted(text: &str, n: u64) -> Vec<u64> {
    let mut shaper = shaper(text);
    let mut latencies: Vec<u64> = (0..n).map(|i| get(&mut shaper, 0, i * S).done_ns - i * S).collect();
    latencies.sort_unstable();
    latencies
}

#[test]
fn an_empty_shape_is_instant() {
    let shape = Shape::parse(&[""; 0]).expect("empty");
    assert!(shape.is_empty() && "".parse::<Shape>().expect("empty").is_empty());
    let fate = Shaper::new(&shape, 1).admit(ShapedOp::Put, 1 << 30, 42);
    assert_eq!(fate, Fate { first_byte_ns: 42, done_ns: 42, fault: None });
}

#[test]
fn fixed_latency_is_exact_and_only_for_the_operation_named() {
    let mut shaper = shaper("get:latency=5ms");
    assert_eq!(get(&mut shaper, 9, 100).done_ns, 5 * MS + 100);
    assert_eq!(shaper.admit(ShapedOp::Put, 9, 200).done_ns, 200);
}

#[test]
fn the_last_latency_that_names_an_operation_counts() {
    let mut shaper = shaper("latency=1ms,get:latency=5ms");
    assert_eq!(get(&mut shaper, 0, 0).done_ns, 5 * MS);
    assert_eq!(shaper.admit(ShapedOp::Stat, 0, 0).done_ns, MS);
}

#[test]
fn a_mixture_has_its_shares() {
    let n = 100_000;
    let latencies = sorted("get:latency=mix(98%:1ms,2%:50ms)", n);
    let slow = latencies.iter().filter(|l| **l == 50 * MS).count() as f64;
    assert_eq!(latencies.iter().filter(|l| **l == MS).count() as f64 + slow, n as f64);
    // Five standard deviations of a binomial.
    assert!((slow - 2000.0).abs() < 5.0 * (n as f64 * 0.02 * 0.98).sqrt(), "{slow} slow ones");
}

#[test]
fn a_lognormal_has_its_median_and_sigma() {
    let n = 100_000;
    let latencies = sorted("latency=lognormal(2ms,0.3)", n);
    let logs: Vec<f64> = latencies.iter().map(|l| (*l as f64 / (2 * MS) as f64).ln()).collect();
    let mean = logs.iter().sum::<f64>() / n as f64;
    let deviation = (logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
    assert!(mean.abs() < 0.005 && (deviation - 0.3).abs() < 0.005, "mean {mean}, deviation {deviation}");
    assert!((latencies[n as usize / 2] as f64 / (2 * MS) as f64 - 1.0).abs() < 0.006);
}

#[test]
fn uniform_and_exponential_have_their_moments() {
    let uniform = sorted("latency=uniform(1ms,3ms)", 100_000);
    assert!(uniform[0] >= MS && uniform[99_999] <= 3 * MS);
    let mean = |latencies: &[u64]| latencies.iter().sum::<u64>() as f64 / latencies.len() as f64;
    assert!((mean(&uniform) / (2 * MS) as f64 - 1.0).abs() < 0.005);
    let exponential = sorted("latency=exp(2ms)", 100_000);
    assert!((mean(&exponential) / (2 * MS) as f64 - 1.0).abs() < 0.02);
    let median = exponential[50_000] as f64 / (2 * MS) as f64;
    assert!((median - std::f64::consts::LN_2).abs() < 0.02, "median {median} of the mean");
}

#[test]
fn bandwidth_is_a_queue_without_rounding_drift() {
    // 3 bytes per ns: a byte takes a third of a nanosecond, which must not be rounded away a million times.
    let mut shaper = shaper("get:bandwidth=3GB/s");
    let mut last = 0;
    for _ in 0..1_000_000 {
        last = get(&mut shaper, 1, 0).done_ns;
    }
    assert!(last.abs_diff(333_333) <= 1, "{last}");
    let fate = get(&mut shaper, 3_000_000_000, 10 * S);
    assert_eq!(fate, Fate { first_byte_ns: 10 * S, done_ns: 11 * S, fault: None });
}

#[test]
fn latency_and_transfer_overlap() {
    let mut shaper = shaper("latency=5ms,bandwidth=1GB/s");
    let small = get(&mut shaper, 1_000_000, 0);
    assert_eq!((small.first_byte_ns, small.done_ns), (5 * MS, 5 * MS));
    let large = shaper.admit(ShapedOp::Put, 20_000_000, 0);
    assert_eq!((large.first_byte_ns, large.done_ns), (5 * MS, 21 * MS));
}

#[test]
fn iops_let_one_in_per_interval() {
    let mut shaper = shaper("iops=1000,latency=5ms");
    for i in 0..100 {
        assert_eq!(get(&mut shaper, 0, 0).first_byte_ns, i * MS + 5 * MS);
    }
    assert_eq!(get(&mut shaper, 0, S).done_ns, S + 5 * MS);
}

#[test]
fn nothing_leaves_during_a_stall() {
    let mut shaper = shaper("latency=5ms,stall=1s/10s,stall=2s@25s");
    for (arrival, done) in [
        (9 * S, 9 * S + 5 * MS),
        (10 * S - 5 * MS - 1, 10 * S - 1),
        // In service when it begins, arrived in it, arrived just before its end, and after.
        (10 * S - 2 * MS, 11 * S),
        (10 * S + 500 * MS, 11 * S),
        (11 * S - MS, 11 * S + 4 * MS),
        (11 * S, 11 * S + 5 * MS),
        (20 * S, 21 * S),
        (26 * S, 27 * S),
        (30 * S + 1, 31 * S),
    ] {
        assert_eq!(get(&mut shaper, 0, arrival).done_ns, done, "arrival {arrival}");
    }
}

#[test]
fn a_stall_at_an_open_loop_has_its_closed_form() {
    // 200/s, 1 s every 10 s: of each period's 2,000 arrivals 200 wait, evenly up to 1 s.
    let mut shaper = shaper("stall=1s/10s");
    let arrivals = (2000..22_000).map(|i| i * 5 * MS);
    let mut latencies: Vec<u64> = arrivals.map(|at| get(&mut shaper, 0, at).done_ns - at).collect();
    latencies.sort_unstable();
    assert_eq!(latencies.iter().filter(|l| **l > 0).count(), 2000);
    assert_eq!(latencies[19_999], S);
    // A tenth waits, evenly up to 1 s, so the 99th percentile is nine tenths up that.
    assert_eq!(latencies[19_800], 905 * MS);
}

#[test]
fn queues_stand_still_during_a_stall() {
    // 1 GB at 1 GB/s from 9.5 s: half a second before the stall, half after it.
    let mut once = shaper("bandwidth=1GB/s,stall=1s@10s");
    assert_eq!(get(&mut once, 1_000_000_000, 9 * S + S / 2).done_ns, 11 * S + S / 2);
    // 25 s of work from 5 s, through stalls at 10, 20 and 30 s.
    let mut periodic = shaper("bandwidth=1GB/s,stall=1s/10s");
    assert_eq!(get(&mut periodic, 25_000_000_000, 5 * S).done_ns, 33 * S);
    let mut both = shaper("bandwidth=1GB/s,stall=1s/10s,stall=2s@12s,stall=1s@10s");
    assert_eq!(get(&mut both, 25_000_000_000, 5 * S).done_ns, 35 * S);
    let mut iops = shaper("iops=10,stall=1s@1s");
    let starts: Vec<u64> = (0..12).map(|_| get(&mut iops, 0, 900 * MS).first_byte_ns).collect();
    assert_eq!(starts[..3], [900 * MS, 2 * S, 2 * S + 100 * MS]);
}

#[test]
fn faults_have_their_rates_and_kinds() {
    let mut shaper = shaper("errors=1%,put:errors=2%:500,corrupt=3%,short=4%,bandwidth=1kB/s");
    let n = 100_000;
    let mut counts = [0f64; 5];
    for _ in 0..n {
        match get(&mut shaper, 0, 0).fault {
            Some(Fault::Error(503)) => counts[0] += 1.0,
            Some(Fault::Corrupt) => counts[1] += 1.0,
            Some(Fault::Short) => counts[2] += 1.0,
            Some(Fault::Error(other)) => panic!("{other}"),
            None => {}
        }
        match shaper.admit(ShapedOp::Put, 0, 0).fault {
            Some(Fault::Error(503)) => counts[3] += 1.0,
            Some(Fault::Error(500)) => counts[4] += 1.0,
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }
    // The first rule that hits wins: errors before corrupt before short.
    let expected = [0.01, 0.99 * 0.03, 0.99 * 0.97 * 0.04, 0.01, 0.99 * 0.02];
    for (count, rate) in counts.into_iter().zip(expected) {
        let sigma = (f64::from(n) * rate * (1.0 - rate)).sqrt();
        assert!((count - f64::from(n) * rate).abs() < 5.0 * sigma, "{count} at rate {rate}");
    }
}

#[test]
fn an_error_moves_no_payload() {
    let mut shaper = shaper("get:errors=100%:429,bandwidth=1GB/s,latency=1ms");
    let fate = get(&mut shaper, 1_000_000_000, 0);
    assert_eq!(fate, Fate { first_byte_ns: MS, done_ns: MS, fault: Some(Fault::Error(429)) });
    assert_eq!(shaper.admit(ShapedOp::Put, 1_000_000_000, 0).done_ns, S);
}

#[test]
fn the_same_seed_gives_the_same_fates_and_another_does_not() {
    let shape: Shape = "latency=exp(2ms),errors=10%".parse().expect("shape");
    let fates = |seed| {
        let mut shaper = Shaper::new(&shape, seed);
        (0..100).map(|i| get(&mut shaper, 0, i)).collect::<Vec<_>>()
    };
    assert_eq!(fates(1), fates(1));
    assert_ne!(fates(1), fates(2));
}

#[test]
fn shapes_write_back_as_they_were() {
    for text in [
        "get:latency=lognormal(2ms,0.3)",
        "latency=5ms",
        "put:latency=mix(98%:1ms,2%:50ms)",
        "latency=mix(50%:uniform(1ms,3ms),50%:mix(10%:exp(2ms),90%:0s))",
        "bandwidth=1GB/s,get:iops=1000",
        "bandwidth=2.5MB/s,bandwidth=7B/s",
        "errors=1%,errors=0.1%:500",
        "stall=1s/10s,stall=1s@5s",
        "stall=10ms/1s@200ms",
        "corrupt=0.1%,short=0.1%",
    ] {
        let shape: Shape = text.parse().expect(text);
        assert_eq!(shape.to_string(), text);
        let json = serde_json::to_string(&shape).expect("json");
        assert_eq!(serde_json::from_str::<Shape>(&json).expect(&json), shape);
    }
    assert_eq!("all:latency=5ms , errors=0.01".parse::<Shape>().expect("shape").to_string(), "latency=5ms,errors=1%");
    assert_eq!(Shape::parse(&["latency=5ms", "iops=10"]).expect("two"), "latency=5ms,iops=10".parse().expect("one"));
}

#[test]
fn what_cannot_be_read_is_named_with_what_can() {
    for (text, says) in [
        ("get:latncy=5ms", "no effect is called `latncy`, did you mean `latency`"),
        ("fetch:latency=5ms", "no operation is called `fetch`; allowed are get, put, stat, list, delete and all"),
        ("latency", "expected `effect=value`"),
        ("latency=5 parsecs", "a latency is 5ms, uniform"),
        ("latency=normal(1ms,2ms)", "write 5ms, uniform"),
        ("latency=uniform(1ms", "closing parenthesis"),
        ("latency=uniform(3ms,1ms)", "wrong way round"),
        ("latency=lognormal(2ms,-1)", "sigma"),
        ("latency=mix(90%:1ms,20%:2ms)", "sum to 110%"),
        ("latency=mix(1ms)", "lacks its share"),
        ("latency=mix()", "write 5ms"),
        ("bandwidth=fast", "write it like 2.5GB/s"),
        ("bandwidth=0", "more than zero"),
        ("iops=0", "more than zero"),
        ("iops=nan", "more than zero"),
        ("errors=101%", "at most 100%"),
        ("errors=1%:200", "from 400 to 599"),
        ("stall=1s", "say when"),
        ("stall=10s/1s", "never end"),
        ("stall=0s@1s", "longer than zero"),
        ("stall=1s/10s,get:stall=1s/7s", "already stalls"),
        ("put:corrupt=1%", "bodies of GETs"),
    ] {
        let error = text.parse::<Shape>().expect_err(text).to_string();
        assert!(error.contains(says), "{text}: {error}");
        assert!(error.starts_with("cannot read `") && !error.ends_with('.'), "{error}");
    }
    let endless = format!("latency={}1ms{}", "mix(100%:".repeat(50), ")".repeat(50));
    assert!(endless.parse::<Shape>().is_err());
}

fn any_latency() -> impl Strategy<Value = Latency> {
    let leaf = prop_oneof![
        (0..100 * MS).prop_map(Latency::Fixed),
        (0..10 * MS, 0..10 * MS).prop_map(|(low, more)| Latency::Uniform(low, low + more)),
        (0..10 * MS).prop_map(Latency::Exponential),
        (1..10 * MS, 0.0..2.0).prop_map(|(median, sigma)| Latency::LogNormal(median, sigma)),
    ];
    leaf.prop_recursive(2, 8, 2, |inner| {
        (0..=100u32, inner.clone(), inner)
            .prop_map(|(share, a, b)| Latency::Mix(vec![(f64::from(share), a), (f64::from(100 - share), b)]))
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let effect = prop_oneof![
        any_latency().prop_map(Effect::Latency),
        (1.0..1e12).prop_map(Effect::Bandwidth),
        (0.1..1e7).prop_map(Effect::Iops),
        (0.0..=100.0, 400..600u16).prop_map(|(percent, status)| Effect::Errors { percent, status }),
        (1..S, 0..20 * S).prop_map(|(length, first)| Effect::Stall(Stall { length, first, every: None })),
    ];
    let on = prop_oneof![Just(None), (0..5usize).prop_map(|i| Some(ShapedOp::ALL[i]))];
    (on, effect).prop_map(|(on, effect)| Rule { on, effect })
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let periodic = proptest::option::of((1..S, 0..5 * S, 1..5 * S).prop_map(|(length, first, more)| Rule {
        on: None,
        effect: Effect::Stall(Stall { length, first, every: Some(length + more) }),
    }));
    (proptest::collection::vec(any_rule(), 0..6), periodic).prop_map(|(mut rules, periodic)| {
        rules.extend(periodic);
        Shape { rules }
    })
}

proptest! {
    #[test]
    fn text_reads_back(shape in any_shape()) {
        let text = shape.to_string();
        prop_assert_eq!(text.parse::<Shape>().expect(&text), shape);
    }

    #[test]
    fn time_runs_forward_and_stalls_are_silent(
        shape in any_shape(), seed: u64, arrivals in proptest::collection::vec((0..S, 0..10_000_000u64, 0..5usize), 1..60)
    ) {
        let mut shaper = Shaper::new(&shape, seed);
        let mut now = 0;
        for (gap, bytes, op) in arrivals {
            now += gap;
            let op = ShapedOp::ALL[op];
            let fate = shaper.admit(op, bytes, now);
            prop_assert!(fate.done_ns >= fate.first_byte_ns && fate.first_byte_ns >= now);
            for at in [fate.first_byte_ns, fate.done_ns] {
                prop_assert_eq!(shaper.stalls[op as usize].release(at), at);
            }
        }
    }

    #[test]
    fn queues_are_first_come_first_served(
        bandwidth in 1e3..1e9, iops in 1.0..1e5, gaps in proptest::collection::vec((0..10 * MS, 0..1_000_000u64), 1..100)
    ) {
        let shape: Shape = format!("bandwidth={bandwidth}B/s,iops={iops},stall=20ms/100ms").parse().expect("shape");
        let mut shaper = Shaper::new(&shape, 0);
        let (mut now, mut before) = (0, Fate { first_byte_ns: 0, done_ns: 0, fault: None });
        for (gap, bytes) in gaps {
            now += gap;
            let fate = get(&mut shaper, bytes, now);
            prop_assert!(fate.first_byte_ns >= before.first_byte_ns && fate.done_ns >= before.done_ns);
            before = fate;
        }
    }

    /// Up-time and its inverse agree with walking the clock.
    #[test]
    fn a_queue_is_served_for_as_long_as_its_work(
        length in 1..50u64, first in 0..100u64, more in 1..50u64, once in 0..200u64, at in 0..300u64, work in 1..300u64
    ) {
        let stalls = Stalls { once: vec![(once, once + 17)], periodic: Some((length, first, length + more)) };
        let start = stalls.release(at);
        let end = stalls.after(start, work);
        let served = (start..end).filter(|t| stalls.release(*t) == *t).count() as u64;
        prop_assert_eq!(served, work);
    }
}
