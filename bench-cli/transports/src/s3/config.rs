//! What a run needs to know about an S3 target: endpoints, bucket, keys, and which certificates to believe.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gpufeed_engine::transport::OpError;
use gpufeed_workloads::op::ErrorKind;
use http::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

/// Keys of an S3 account.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Public part.
    pub access_key: String,
    /// Secret part.
    pub secret_key: String,
    /// Token of temporary keys.
    pub session_token: Option<String>,
}

impl Credentials {
    /// Keys from their texts.
    #[must_use]
    pub fn new(access_key: &str, secret_key: &str, session_token: Option<&str>) -> Self {
        Self {
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            session_token: session_token.map(str::to_owned),
        }
    }
}

impl fmt::Debug for Credentials {
    /// Never shows the secret or the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// Where the bucket's name goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addressing {
    /// Into the host name on AWS, into the path elsewhere.
    #[default]
    Auto,
    /// `endpoint/bucket/key`
    Path,
    /// `bucket.endpoint/key`
    VirtualHost,
}

/// Which certificates to believe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Whether to check the server's certificate at all.
    pub verify: bool,
    /// A PEM file of authorities to believe besides the system's (`AWS_CA_BUNDLE`).
    pub ca_bundle: Option<PathBuf>,
}

impl Default for Tls {
    fn default() -> Self {
        Self { verify: true, ca_bundle: None }
    }
}

/// An S3 target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Config {
    /// Scheme, host and port of each endpoint; none means AWS in `region`. Lanes are spread over them in turn.
    pub endpoints: Vec<Uri>,
    /// Bucket.
    pub bucket: String,
    /// Region that requests are signed for.
    pub region: String,
    /// Keys; without them requests are not signed.
    pub credentials: Option<Credentials>,
    /// Where the bucket's name goes.
    pub addressing: Addressing,
    /// Which certificates to believe.
    pub tls: Tls,
}

fn unreadable(path: &Path, why: &dyn fmt::Display) -> OpError {
    let path = path.display();
    OpError::new(ErrorKind::Io, format!("cannot read the certificates in {path} (AWS_CA_BUNDLE): {why}"))
}

/// The authorities of a PEM file, as text for other TLS users.
///
/// # Errors
/// When the file cannot be read.
pub fn trusted_pem(path: &Path) -> Result<Vec<u8>, OpError> {
    std::fs::read(path).map_err(|error| unreadable(path, &error))
}

/// A TLS client for HTTP/1.1: the system's authorities, those of the bundle, or no check at all.
///
/// # Errors
/// When the bundle cannot be read or no authority is known.
pub fn client_tls(tls: &Tls) -> Result<Arc<rustls::ClientConfig>, OpError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| OpError::new(ErrorKind::Protocol, format!("cannot set up TLS: {error}")))?;
    let mut config = if tls.verify {
        let mut roots = rustls::RootCertStore::empty();
        let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = &tls.ca_bundle {
            let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unreadable(path, &error))?;
            let mut some = false;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| unreadable(path, &error))?;
                roots.add(certificate).map_err(|error| unreadable(path, &error))?;
                some = true;
            }
            if !some {
                return Err(unreadable(path, &"there is no PEM certificate in it"));
            }
        }
        if roots.is_empty() {
            return Err(OpError::new(
                ErrorKind::Connect,
                "no certificate authority is known; install ca-certificates, set AWS_CA_BUNDLE, or use --no-verify-tls",
            ));
        }
        builder.with_root_certificates(roots).with_no_client_auth()
    } else {
        let believe = Arc::new(BelieveAll(provider));
        builder.dangerous().with_custom_certificate_verifier(believe).with_no_client_auth()
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// For `--no-verify-tls`: any certificate will do, signatures of the handshake are still checked.
#[derive(Debug)]
struct BelieveAll(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for BelieveAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
