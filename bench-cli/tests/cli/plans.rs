//! Plans: the same plan and seed generate the same operations, a dry run touches nothing, and a plan runs again.

use serde_json::Value;

use crate::program::{Place, number, operations};

const OPS: [&str; 10] = ["run", "ops", "--op", "get=3,put=1", "--count", "300", "--target", "mem:", "--objects", "99"];

fn hashes(report: &Value) -> (String, String) {
    let hash = |name: &str| report["run"][name].as_str().unwrap_or_else(|| panic!("{name}: {report}")).to_owned();
    (hash("plan_hash"), hash("issued_hash"))
}

#[test]
fn plan_and_seed_decide_what_is_generated_and_issued() {
    let place = Place::new();
    let of = |more: &[&str]| hashes(&place.report(&[&OPS[..], more].concat()));
    let first = of(&["--out", "first"]);
    assert_eq!(first, of(&["--out", "second"]));
    let other = of(&["--out", "other", "--seed", "43"]);
    assert!(first.0 != other.0 && first.1 != other.1);
    assert_ne!(first.0, of(&["--out", "sized", "--size", "8KiB"]).0);
    assert_eq!(first.0, of(&["--out", "one", "--threads", "1"]).0, "how many cores share the work changes nothing");
    assert_eq!(first, hashes(&place.report(&["run", "first/plan.toml", "--out", "again"])));
}

#[test]
fn a_dry_run_does_nothing_and_prints_a_plan_that_runs() {
    for workload in ["quick", "ops", "training", "kv", "rag"] {
        let place = Place::new();
        let ended = place.run(&["run", workload, "--dry-run", "--duration", "1s"]).passed();
        assert!(place.names().is_empty(), "{:?}", place.names());
        assert!(ended.err.contains("a data set of"), "{}", ended.err);
        let plan: toml::Table = ended.out.parse().expect("TOML");
        assert_eq!(plan["workload"].as_str(), Some(workload));
        place.write("plan.toml", &ended.out);
        let again = place.run(&["run", "plan.toml", "--dry-run"]).passed();
        assert_eq!(again.out, ended.out, "a plan reads back as it was written");
        let json = place.run(&["run", "plan.toml", "--dry-run", "--format", "json"]).passed().out;
        let json: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["workload"], workload);
        assert_eq!(place.names(), ["plan.toml"]);
    }
}

#[test]
fn a_plan_runs_again_over_an_embedded_server() {
    let place = Place::new();
    let args = ["run", "ops", "--count", "200", "--size", "mix(90%:4KiB,10%:64KiB)", "--objects", "40", "--out", "a"];
    let first = place.report(&args);
    let second = place.report(&["run", "a/plan.toml", "--out", "b"]);
    assert_eq!(hashes(&first), hashes(&second));
    assert_eq!(first["plan"], second["plan"]);
    assert_eq!(number(&operations(&first)[0]["bytes"]), number(&operations(&second)[0]["bytes"]));
    let plans = ["a/plan.toml", "b/plan.toml"].map(|name| std::fs::read_to_string(place.path(name)).expect(name));
    assert_eq!(plans[0], plans[1]);
}

#[test]
fn workloads_of_the_same_seed_have_the_same_plan_hash() {
    let place = Place::new();
    for workload in ["training", "rag", "kv"] {
        let hash = |out: &str, seed: &str| {
            let args = ["run", workload, "--target", "mem:", "--duration", "300ms", "--out", out, "--seed", seed];
            let args = if workload == "kv" { [&args[..], &["--no-baselines"]].concat() } else { args.to_vec() };
            place.report(&args)["run"]["plan_hash"].clone()
        };
        let first = hash(&format!("{workload}-1"), "5");
        assert_eq!(first, hash(&format!("{workload}-2"), "5"), "{workload}");
        assert_ne!(first, hash(&format!("{workload}-3"), "6"), "{workload}");
    }
}
