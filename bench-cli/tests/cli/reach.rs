//! Ways to reach an S3 endpoint: several of them, TLS with and without a known authority, virtual hosts, profiles.

use std::net::ToSocketAddrs;
use std::process::Command;

use serde_json::Value;

use crate::program::{
    ACCESS_KEY, BUCKET, Place, SECRET_KEY, Server, ended, holds, no_errors, number, operations, report, target,
};

/// 100 reads and their report.
fn reads(command: &mut Command, more: &[&str]) -> Value {
    command.args(["run", "ops", "--count", "100", "--warm-up", "0s", "--objects", "20", "--quiet", "--format", "json"]);
    let report = report(command.args(["--target", &target()]).args(more));
    no_errors(&report);
    assert_eq!(number(&operations(&report)[0]["count"]), 100);
    report
}

#[test]
fn several_endpoints_share_the_load() {
    let place = Place::new();
    let log = |name: &str| place.path(name).display().to_string();
    let (first, second) = (log("first.csv"), log("second.csv"));
    let serve = |file: &str| Server::start(&place, &["--store", "synth", "--access-log", file]);
    let servers = [serve(&first), serve(&second)];
    let mut command = servers[0].client(&place);
    command.env_remove("AWS_ENDPOINT_URL");
    // Synth stores know an object by its key, and objects are written through one endpoint.
    for (server, name) in servers.iter().zip(["first", "second"]) {
        reads(&mut server.client(&place), &["--keep-data", "--out", name]);
    }
    let urls = ["--endpoint-url", &servers[0].url, "--endpoint-url", &servers[1].url];
    let report = reads(&mut command, &[&urls[..], &["--reuse", "--keep-data", "--out", "r", "--depth", "8"]].concat());
    assert!(report["run"]["target"].as_str().is_some_and(|name| servers.iter().all(|s| name.contains(&s.url))));
    for server in servers {
        server.running.signal("TERM");
        server.running.end().passed();
    }
    let gets = |file: &str| std::fs::read_to_string(file).expect(file).matches(",get,").count();
    // 100 each alone, and about half of 100 together.
    assert!(gets(&first) > 120 && gets(&second) > 120, "{} and {}", gets(&first), gets(&second));
}

#[test]
fn the_aws_sdk_client_and_profiles_of_the_configuration_files() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let report = reads(&mut server.client(&place), &["--s3-client", "aws-sdk", "--out", "sdk"]);
    assert_eq!(report["run"]["transport"], "s3-aws-sdk");
    std::fs::create_dir(place.path(".aws")).expect("a directory");
    let keys = format!("[bench]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    place.write(".aws/credentials", &keys);
    place.write(".aws/config", &format!("[profile bench]\nregion = eu-central-1\nendpoint_url = {}\n", server.url));
    let mut by_flag = place.gpufeed();
    // Keys in the environment give way to a profile that was asked for.
    by_flag.env("AWS_ACCESS_KEY_ID", "other").env("AWS_SECRET_ACCESS_KEY", "other");
    reads(&mut by_flag, &["--aws-profile", "bench", "--out", "flag"]);
    reads(place.gpufeed().env("AWS_PROFILE", "bench"), &["--out", "variable"]);
    for directory in ["sdk", "flag", "variable"] {
        assert!(!holds(&place.path(directory), SECRET_KEY), "{directory} holds the secret");
    }
    assert!(holds(&place.path(".aws"), SECRET_KEY), "the search finds secrets");
}

#[test]
fn tls_with_a_known_authority_or_none() {
    let place = Place::new();
    let certificate =
        rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("a certificate");
    let cert = place.write("cert.pem", &certificate.cert.pem());
    let key = place.write("key.pem", &certificate.key_pair.serialize_pem());
    let server = Server::start(&place, &["--tls-cert", &cert, "--tls-key", &key]);
    assert!(server.url.starts_with("https://"));
    for client in ["raw", "aws-sdk"] {
        let known = &mut server.client(&place);
        reads(known.env("AWS_CA_BUNDLE", &cert), &["--s3-client", client, "--out", &format!("known-{client}")]);
        let any = format!("any-{client}");
        reads(&mut server.client(&place), &["--s3-client", client, "--no-verify-tls", "--out", &any]);
    }
    let unknown = &mut server.client(&place);
    unknown.args(["run", "ops", "--count", "10", "--out", "r", "--target", &target()]);
    ended(unknown).said(1, &["certificate", "AWS_CA_BUNDLE", "--no-verify-tls"]);
    let absent = &mut server.client(&place);
    absent.env("AWS_CA_BUNDLE", "absent.pem").args([
        "run",
        "ops",
        "--count",
        "10",
        "--out",
        "r",
        "--target",
        &target(),
    ]);
    ended(absent).said(1, &["absent.pem"]);
}

#[test]
fn buckets_as_host_names() {
    let host = format!("{BUCKET}.localhost");
    if (host.as_str(), 80).to_socket_addrs().is_err() {
        return; // This machine does not resolve names below localhost.
    }
    let place = Place::new();
    let server = Server::start(&place, &["--domain", "localhost"]);
    let url = server.url.replace("127.0.0.1", "localhost");
    for client in ["raw", "aws-sdk"] {
        let mut command = server.client(&place);
        command.env("AWS_ENDPOINT_URL", &url);
        reads(&mut command, &["--addressing", "virtual", "--s3-client", client, "--out", client]);
    }
}
