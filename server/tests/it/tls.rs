//! TLS, and buckets as host names.

use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use gpufeed_server::config::Tls;
use gpufeed_server::{Config, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::support::{BUCKET, SECRET, bytes, client, config, serve};

#[tokio::test]
async fn https() {
    let dir = tempfile::tempdir().expect("a directory");
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let tls = Tls { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    std::fs::write(&tls.cert, issued.cert.pem()).expect("write");
    let absent = Server::start(Config { tls: Some(tls.clone()), ..config() }).expect_err("no key");
    assert!(absent.to_string().contains("key.pem"), "{absent}");
    std::fs::write(&tls.key, issued.key_pair.serialize_pem()).expect("write");
    let server = serve(Config { tls: Some(tls), ..config() });
    let trust = TrustStore::empty().with_pem_certificate(issued.cert.pem());
    let context = TlsContext::builder().with_trust_store(trust).build().expect("a context");
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context)
        .build_https();
    let plain = super::support::client_at(&format!("https://localhost:{}", server.s3_addr.port()), "tester", SECRET);
    let client = aws_sdk_s3::Client::from_conf(plain.config().to_builder().http_client(http).build());
    let body = bytes(3_000_000, 4);
    client.put_object().bucket(BUCKET).key("k").body(body.clone().into()).send().await.expect("put");
    let got = client.get_object().bucket(BUCKET).key("k").send().await.expect("get");
    assert!(got.body.collect().await.expect("body").to_vec() == body);
}

#[tokio::test]
async fn buckets_as_host_names() {
    let server = serve(Config { domains: vec!["s3.test".into()], ..config() });
    let path_style = client(&server);
    path_style.put_object().bucket(BUCKET).key("a/k").body(bytes(10, 0).into()).send().await.expect("put");
    let virtual_style = aws_sdk_s3::Client::from_conf(
        path_style
            .config()
            .to_builder()
            .force_path_style(false)
            .endpoint_url(format!("http://s3.test:{}", server.s3_addr.port()))
            .build(),
    );
    let lasting = aws_sdk_s3::presigning::PresigningConfig::expires_in(std::time::Duration::from_secs(60));
    let signed = virtual_style.get_object().bucket(BUCKET).key("a/k").presigned(lasting.expect("valid")).await;
    let signed = signed.expect("presign");
    let (host, path) = signed.uri().trim_start_matches("http://").split_once('/').expect("a path");
    assert!(host.starts_with("data.s3.test"), "{host}");
    let mut stream = tokio::net::TcpStream::connect(server.s3_addr).await.expect("connect");
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(&bytes(10, 0)));
}
