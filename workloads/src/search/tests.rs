use proptest::prelude::*;

use super::*;

fn whole(least: u32, most: u32) -> Spec {
    let domain = Domain { least: f64::from(least), most: f64::from(most), whole: true, resolution_ratio: None };
    Spec { domain, start: f64::from(least), confirmations: 3, most_probes: 10_000 }
}

fn real(least: f64, most: f64, resolution: f64) -> Spec {
    let domain = Domain { least, most, whole: false, resolution_ratio: Some(resolution) };
    Spec { domain, start: least, confirmations: 3, most_probes: 10_000 }
}

/// Runs a search to its end on verdicts given by level and run of that level (from zero).
fn run(spec: Spec, mut judge: impl FnMut(f64, u32) -> bool) -> (Found, Vec<Vote>) {
    let search = Search::new(spec).expect("makes sense");
    let mut votes: Vec<Vote> = Vec::new();
    loop {
        match search.next(&votes) {
            Next::Done(found) => return (found, votes),
            Next::Probe(at) => {
                let nth = votes.iter().filter(|vote| vote.at == at).count() as u32;
                votes.push(Vote { at, passed: judge(at, nth) });
                assert!(votes.len() <= 10_000, "does not end");
            }
        }
    }
}

#[test]
fn climbs_bisects_and_confirms() {
    let (found, votes) = run(whole(1, 1000), |at, _| at <= 21.0);
    let tried: Vec<f64> = votes.iter().map(|vote| vote.at).collect();
    assert_eq!(tried, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 24.0, 20.0, 22.0, 21.0, 21.0, 22.0]);
    assert_eq!((found.end, found.knee, found.above), (End::Found, Some(21.0), Some(22.0)));
    let curve: Vec<(f64, u32, u32)> = found.curve.iter().map(|l| (l.at, l.passed, l.failed)).collect();
    assert_eq!(curve[6..], [(21.0, 2, 0), (22.0, 0, 2), (24.0, 0, 1), (32.0, 0, 1)]);
}

#[test]
fn descends_from_a_start_that_is_too_high() {
    let (found, votes) = run(Spec { start: 64.0, ..whole(1, 100) }, |at, _| at <= 5.0);
    let tried: Vec<f64> = votes.iter().map(|vote| vote.at).take(5).collect();
    assert_eq!(tried, [64.0, 32.0, 16.0, 8.0, 4.0]);
    assert_eq!((found.end, found.knee), (End::Found, Some(5.0)));
}

#[test]
fn ends_of_the_domain_are_told_from_a_knee() {
    let (found, votes) = run(whole(1, 12), |_, _| true);
    assert_eq!((found.end, found.knee, found.above), (End::AtMost, Some(12.0), None));
    assert_eq!(votes.iter().filter(|vote| vote.at == 12.0).count(), 2, "confirmed too");
    let (found, votes) = run(whole(3, 12), |_, _| false);
    assert_eq!((found.end, found.knee, found.above), (End::NotEvenLeast, None, Some(3.0)));
    assert_eq!(votes.len(), 2);
}

#[test]
fn out_of_probes_says_so_and_how_far_it_came() {
    let (found, votes) = run(Spec { most_probes: 7, ..whole(1, 1000) }, |at, _| at <= 21.0);
    assert_eq!(votes.len(), 7);
    assert_eq!((found.end, found.knee, found.above), (End::OutOfProbes, Some(16.0), Some(24.0)));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |spec: Spec| Search::new(spec).expect_err("refused");
    assert_eq!(refused(whole(8, 4)), SearchError::Empty { least: 8.0, most: 4.0 });
    assert_eq!(refused(whole(0, 4)), SearchError::Level(0.0));
    assert_eq!(refused(real(1.0, f64::INFINITY, 0.05)), SearchError::Level(f64::INFINITY));
    assert_eq!(refused(real(1.0, 2.0, 0.0)), SearchError::Resolution(0.0));
    assert!(matches!(refused(real(1.0, 2.0, f64::NAN)), SearchError::Resolution(_)));
    assert_eq!(refused(Spec { start: 1.5, ..whole(1, 4) }), SearchError::Fraction(1.5));
    assert_eq!(refused(Spec { confirmations: 2, ..whole(1, 4) }), SearchError::Confirmations(2));
    assert_eq!(refused(Spec { confirmations: 0, ..whole(1, 4) }), SearchError::Confirmations(0));
    assert_eq!(refused(Spec { most_probes: 0, ..whole(1, 4) }), SearchError::NoProbes);
    let endless = Domain { resolution_ratio: None, ..real(1.0, 2.0, 0.1).domain };
    assert_eq!(refused(Spec { domain: endless, ..real(1.0, 2.0, 0.1) }), SearchError::NoResolution);
}

/// Throughput of `depth` clients against a latency and a cap: `min(depth / latency, cap)`, which saturates at
/// `cap · latency` clients.
fn capped(depth: f64, saturates: f64) -> f64 {
    100.0 * depth.min(saturates)
}

fn saturation(saturates: f64, growth: f64, most: u32) -> Found {
    let search = Search::new(whole(1, most)).expect("makes sense");
    let mut figures: Vec<Figure> = Vec::new();
    loop {
        match search.next(&growing(&figures, growth)) {
            Next::Done(found) => return found,
            Next::Probe(at) => figures.push(Figure { at, per_s: capped(at, saturates) }),
        }
        assert!(figures.len() < 200, "does not end");
    }
}

#[test]
fn growth_ends_where_the_cap_is() {
    // The first depth beyond which none reaches a sixteenth more, a share that is exact in binary.
    for saturates in 2..=100u32 {
        let found = saturation(f64::from(saturates), 0.0625, 1024);
        let least = (f64::from(saturates) / 1.0625).floor() + 1.0;
        assert_eq!((found.end, found.above), (End::Found, Some(least)), "cap of {saturates}");
    }
    assert_eq!(saturation(1.0, 0.05, 64).end, End::NotEvenLeast);
    assert_eq!(saturation(1e9, 0.05, 64).end, End::AtMost);
}

#[test]
fn several_runs_of_a_level_count_by_their_median() {
    let at = |at: f64, per_s: f64| Figure { at, per_s };
    let figures = [at(1.0, 100.0), at(2.0, 104.0), at(2.0, 300.0), at(2.0, 101.0)];
    assert!(growing(&figures, 0.05).iter().all(|vote| !vote.passed));
    assert!(growing(&figures[..3], 0.05).iter().all(|vote| vote.passed));
}

proptest! {
    #[test]
    fn finds_every_whole_knee(least in 1u32..50, width in 0u32..5000, knee in 0u32..5100, start in 1u32..5100) {
        let most = least + width;
        let spec = Spec { start: f64::from(start), ..whole(least, most) };
        let (found, votes) = run(spec, |at, _| at <= f64::from(knee));
        if knee < least {
            prop_assert_eq!((found.end, found.knee), (End::NotEvenLeast, None));
        } else if knee >= most {
            prop_assert_eq!((found.end, found.knee), (End::AtMost, Some(f64::from(most))));
        } else {
            prop_assert_eq!((found.end, found.knee), (End::Found, Some(f64::from(knee))));
            prop_assert_eq!(found.above, Some(f64::from(knee + 1)));
        }
        // Climb, bisect, and two confirmations.
        let doublings = f64::from(most).log2().ceil() as usize + 1;
        prop_assert!(votes.len() <= 2 * doublings + 2, "{} probes up to {most}", votes.len());
    }

    #[test]
    fn finds_real_knees_to_their_resolution(
        least in 1e-3f64..10.0, factor in 1.0f64..1e4, at in 0.0f64..1.2, resolution in 1e-3f64..1.0, start in 0.0f64..1.0,
    ) {
        let most = least * factor;
        let truth = least * factor.powf(at) * 0.999;
        let spec = Spec { start: least * factor.powf(start), ..real(least, most, resolution) };
        let (found, _) = run(spec, |level, _| level <= truth);
        match found.end {
            End::Found => {
                let (knee, above) = (found.knee.expect("a knee"), found.above.expect("a neighbor"));
                prop_assert!(knee <= truth && truth < above && above <= knee * (1.0 + resolution));
                prop_assert!(knee >= least && above <= most);
            }
            End::AtMost => prop_assert!(truth >= most),
            End::NotEvenLeast => prop_assert!(truth < least),
            End::OutOfProbes => prop_assert!(false, "out of probes"),
        }
    }

    /// Of three runs of any level one may lie, whichever: the knee is still the true one.
    #[test]
    fn a_minority_of_lies_changes_nothing(
        width in 1u32..500, knee in 1u32..500, lies in prop::collection::vec(0u32..6, 512),
    ) {
        let knee = knee.min(width);
        let (found, _) = run(whole(1, width + 1), |at, nth| {
            let truth = at <= f64::from(knee);
            if lies[at as usize % lies.len()] == nth { !truth } else { truth }
        });
        prop_assert_eq!((found.end, found.knee, found.above), (End::Found, Some(f64::from(knee)), Some(f64::from(knee + 1))));
    }

    /// Whatever the verdicts: it ends, asks no level too often, and what it calls found is what the majority says.
    #[test]
    fn ends_on_any_noise(
        most in 1u32..300, start in 1u32..300, confirmations in 0u32..3, noise in prop::collection::vec(any::<bool>(), 4000),
    ) {
        let confirmations = 2 * confirmations + 1;
        let spec = Spec { confirmations, start: f64::from(start), ..whole(1, most) };
        let mut said = noise.into_iter().cycle();
        let (found, votes) = run(spec, |_, _| said.next().unwrap_or(true));
        prop_assert!(found.curve.iter().all(|level| level.passed + level.failed <= confirmations));
        prop_assert!(votes.iter().all(|vote| (1.0..=f64::from(most)).contains(&vote.at) && vote.at.fract() == 0.0));
        prop_assert!(found.end != End::OutOfProbes);
        let stands = |at: f64| found.curve.iter().find(|level| level.at == at).and_then(Level::stands);
        if found.end == End::Found {
            let (knee, above) = (found.knee.expect("a knee"), found.above.expect("a neighbor"));
            prop_assert_eq!((above - knee, stands(knee), stands(above)), (1.0, Some(true), Some(false)));
        }
    }

    /// Nothing but the verdicts is its state, in whatever order they come: a search goes on where it was.
    #[test]
    fn goes_on_from_kept_verdicts(most in 2u32..300, knee in 1u32..300, cut in 0usize..40) {
        let search = Search::new(whole(1, most)).expect("makes sense");
        let (found, votes) = run(whole(1, most), |at, _| at <= f64::from(knee));
        let mut kept: Vec<Vote> = votes[..cut.min(votes.len())].to_vec();
        let text = serde_json::to_string(&kept).expect("JSON");
        kept = serde_json::from_str(&text).expect("the same");
        kept.reverse();
        let next = votes.get(kept.len()).map_or(Next::Done(found), |vote| Next::Probe(vote.at));
        prop_assert_eq!(search.next(&kept), next);
    }

    /// A noisy plateau does not keep a search over growth from ending.
    #[test]
    fn growth_ends_on_any_noise(most in 1u32..200, noise in prop::collection::vec(0.1f64..10.0, 2000)) {
        let search = Search::new(whole(1, most)).expect("makes sense");
        let mut figures: Vec<Figure> = Vec::new();
        while let Next::Probe(at) = search.next(&growing(&figures, 0.05)) {
            figures.push(Figure { at, per_s: noise[figures.len()] });
            prop_assert!(figures.len() <= 3 * most as usize);
        }
    }
}
