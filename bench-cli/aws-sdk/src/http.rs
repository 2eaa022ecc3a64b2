//! HTTP clients for the SDK: rustls with ring and the authorities the run believes.

use std::fmt;
use std::sync::Arc;

use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use gpufeed_engine::transport::OpError;
use gpufeed_transports::s3::{Tls, client_tls, trusted_pem};
use gpufeed_workloads::op::ErrorKind;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as Tcp;
use hyper_util::rt::TokioExecutor;

/// The client an application would build: the SDK's own connector. Without certificate checks, which that connector
/// does not offer, hyper's pooled client.
pub(crate) fn client(tls: &Tls) -> Result<SharedHttpClient, OpError> {
    if !tls.verify {
        return unverified(tls);
    }
    let mut trusted = TrustStore::default();
    if let Some(bundle) = &tls.ca_bundle {
        // Reads it with a sentence for what is wrong with it; the SDK's connector would panic later.
        client_tls(tls)?;
        trusted.add_pem_certificate(trusted_pem(bundle)?);
    }
    let context = TlsContext::builder().with_trust_store(trusted).build();
    let context = context.map_err(|error| OpError::new(ErrorKind::Connect, format!("cannot set up TLS: {error}")))?;
    Ok(Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context).build_https())
}

fn unverified(tls: &Tls) -> Result<SharedHttpClient, OpError> {
    let mut config = rustls::ClientConfig::clone(&*client_tls(tls)?);
    // The connector's builder says itself what it speaks.
    config.alpn_protocols.clear();
    let mut tcp = Tcp::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let https = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(tcp);
    let connector = SharedHttpConnector::new(Unverified(Arc::new(Client::builder(TokioExecutor::new()).build(https))));
    Ok(http_client_fn(move |_, _| connector.clone()))
}

struct Unverified(Arc<Client<HttpsConnector<Tcp>, SdkBody>>);

impl fmt::Debug for Unverified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unverified")
    }
}

impl HttpConnector for Unverified {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = Arc::clone(&self.0);
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let answer = client.request(request).await.map_err(|error| ConnectorError::io(error.into()))?;
            let answer = answer.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}
