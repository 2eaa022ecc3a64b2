//! Targets that are not there, or do not let us in: status 1 and one sentence with the way out, nothing left behind.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

use crate::program::{ACCESS_KEY, BUCKET, Place, SECRET_KEY, Server, ended, target};

/// A run against `target` fails before anything is measured, and leaves nothing behind.
fn fails(place: &Place, command: &mut Command, target: &str, words: &[&str]) {
    let before = place.names();
    command.args(["run", "ops", "--duration", "500ms", "--out", "r", "--target", target]);
    ended(command).said(1, words);
    assert_eq!(place.names(), before);
}

/// The program with keys, for an endpoint.
fn keyed(place: &Place, url: &str) -> Command {
    let mut command = place.gpufeed();
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command.env("AWS_ENDPOINT_URL", url);
    command
}

/// An endpoint that answers every request the same way.
fn answering(status: &'static str, code: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut part = [0; 4096];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(bytes) if bytes > 0 => request.extend_from_slice(&part[..bytes]),
                    _ => break,
                }
            }
            let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/xml\r\nconnection: close\r\n");
            let _ = stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
    url
}

#[test]
fn endpoints_that_are_not_there() {
    let place = Place::new();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let url = format!("http://{free}");
    fails(&place, &mut keyed(&place, &url), &target(), &[&url, "nothing listens there", "--endpoint-url"]);
    let url = "http://no-such-host.invalid:9000";
    fails(&place, &mut keyed(&place, url), &target(), &[url, "--endpoint-url"]);
    let url = "over there";
    fails(&place, &mut keyed(&place, url), &target(), &["`over there`", "https://host:9000"]);
}

/// A server that takes connections and never answers must not hold the run for long.
#[test]
fn an_endpoint_that_says_nothing() {
    let place = Place::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    fails(&place, &mut keyed(&place, &url), &target(), &[&url, "answer"]);
}

#[test]
fn wrong_keys_missing_keys_and_a_missing_bucket() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let with = |name: &str, value: &str| {
        let mut command = server.client(&place);
        command.env(name, value);
        command
    };
    let wrong = &mut with("AWS_SECRET_ACCESS_KEY", "not-the-secret-key");
    fails(&place, wrong, &target(), &["403", "AWS_SECRET_ACCESS_KEY"]);
    fails(&place, &mut with("AWS_ACCESS_KEY_ID", "nobody"), &target(), &["403", "AWS_ACCESS_KEY_ID"]);
    let none = &mut server.client(&place);
    none.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    fails(&place, none, &target(), &["no AWS credentials", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"]);
    let bucket = &mut server.client(&place);
    fails(&place, bucket, "s3://no-such-bucket/x", &["no-such-bucket", "does not exist"]);
    let profile = &mut server.client(&place);
    profile.args(["run", "ops", "--aws-profile", "absent", "--out", "r", "--target", &target()]);
    ended(profile).said(1, &["`absent`"]);
    assert!(place.names().is_empty());
}

#[test]
fn session_tokens_that_are_expired_or_unknown() {
    let place = Place::new();
    for (code, words) in [
        ("ExpiredToken", ["ExpiredToken", "the session token has expired: get new credentials"]),
        ("InvalidToken", ["InvalidToken", "check AWS_SESSION_TOKEN"]),
    ] {
        let mut command = keyed(&place, &answering("400 Bad Request", code));
        fails(&place, command.env("AWS_SESSION_TOKEN", "bogus"), &target(), &words);
    }
}

#[test]
fn an_endpoint_that_refuses_or_is_no_storage() {
    let place = Place::new();
    fails(&place, &mut keyed(&place, &answering("403 Forbidden", "AccessDenied")), &target(), &["403", "AccessDenied"]);
    fails(&place, &mut keyed(&place, &answering("503 Slow Down", "SlowDown")), &target(), &["503", "SlowDown"]);
    fails(&place, &mut keyed(&place, &answering("302 Found", "Elsewhere")), &target(), &["302"]);
}

#[test]
fn plain_text_is_not_taken_for_tls() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let url = server.url.replace("http://", "https://");
    fails(&place, &mut keyed(&place, &url), &target(), &[&url]);
}

#[test]
fn directories_that_cannot_be_used() {
    let place = Place::new();
    let file = place.write("file", "not a directory");
    fails(&place, &mut place.gpufeed(), &format!("file://{file}/below"), &["file"]);
    fails(&place, &mut place.gpufeed(), "file:///proc/gpufeed-test", &["/proc/gpufeed-test"]);
}

#[test]
fn a_server_that_cannot_listen_or_read_its_certificate_says_so() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    place.run(&["serve", "--listen", &address, "--metrics", "none"]).said(1, &[&address]);
    let file = place.write("cert.pem", "no certificate");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--metrics", "none"];
    let ended = place.run(&[&serve[..], &["--tls-cert", &file, "--tls-key", &file]].concat());
    ended.said(1, &["cert.pem"]);
    // Keys that everybody knows are for this machine alone.
    let open = place.run(&["serve", "--listen", "0.0.0.0:0", "--metrics", "none", "--bucket", BUCKET]);
    open.said(2, &["0.0.0.0:0", "access key"]);
}
