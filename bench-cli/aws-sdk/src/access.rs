//! How to reach S3: what the user said, completed by the usual AWS environment variables, profiles and config files.

use std::time::SystemTime;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{Credentials as SdkCredentials, ProvideCredentials, SharedCredentialsProvider};
use aws_types::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use gpufeed_engine::transport::OpError;
use gpufeed_transports::s3::{Addressing, Credentials, S3Config, Tls};
use gpufeed_workloads::op::ErrorKind;
use http::Uri;

/// Region of requests to endpoints that are not AWS, where nothing names one.
const DEFAULT_REGION: &str = "us-east-1";

/// What the user said; what is missing comes from the environment and the profile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// `--endpoint-url`, each.
    pub endpoints: Vec<String>,
    /// `--region`.
    pub region: Option<String>,
    /// `--profile`, instead of `AWS_PROFILE`.
    pub aws_profile: Option<String>,
    /// Keys that need no looking up (those of the embedded server).
    pub credentials: Option<Credentials>,
    /// Where the bucket's name goes.
    pub addressing: Addressing,
    /// Which certificates to believe; `AWS_CA_BUNDLE` is read where it names none.
    pub tls: Tls,
}

/// Keys with the moment they end.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The keys.
    pub credentials: Credentials,
    /// When temporary ones end.
    pub expires: Option<SystemTime>,
}

/// Everything needed to talk to S3.
#[derive(Debug, Clone)]
pub struct Session {
    sdk: SdkConfig,
    provider: SharedCredentialsProvider,
    endpoints: Vec<Uri>,
    region: String,
    addressing: Addressing,
    tls: Tls,
}

impl Access {
    /// Completes what the user said. Reads environment and files; asks the network only where the profile says that
    /// credentials come from there.
    ///
    /// # Errors
    /// When an endpoint is no URL, certificates cannot be read, or there are no credentials to be found.
    pub async fn session(&self) -> Result<Session, OpError> {
        let mut tls = self.tls.clone();
        if tls.ca_bundle.is_none() {
            tls.ca_bundle = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()).map(Into::into);
        }
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(crate::http::client(&tls)?)
            .retry_config(RetryConfig::disabled());
        if let Some(profile) = &self.aws_profile {
            // A profile that was asked for goes before keys that happen to be in the environment, as in the AWS CLI.
            let config = ProviderConfig::without_region().with_http_client(crate::http::client(&tls)?);
            let keys = ProfileFileCredentialsProvider::builder().profile_name(profile).configure(&config).build();
            keys.provide_credentials().await.map_err(|error| {
                let detail =
                    format!("profile `{profile}` of the AWS configuration files gives no credentials: {error}");
                OpError::new(ErrorKind::Denied, detail)
            })?;
            loader = loader.profile_name(profile).credentials_provider(keys);
        }
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        } else if self.credentials.is_some() {
            loader = loader.region(Region::new(DEFAULT_REGION));
        }
        if let Some(keys) = &self.credentials {
            let token = keys.session_token.clone();
            let keys = SdkCredentials::new(&keys.access_key, &keys.secret_key, token, None, "gpufeed");
            loader = loader.credentials_provider(keys);
        }
        let sdk = loader.load().await;
        let mut written = self.endpoints.clone();
        if written.is_empty() {
            written.extend(configured_endpoint(&sdk));
        }
        let mut endpoints = Vec::new();
        for text in written {
            let endpoint = text.parse::<Uri>().ok().filter(|uri| uri.scheme().is_some() && uri.host().is_some());
            endpoints.push(endpoint.ok_or_else(|| {
                let detail = format!("`{text}` is no endpoint; write it like https://host:9000");
                OpError::new(ErrorKind::Client, detail)
            })?);
        }
        let region = match sdk.region() {
            Some(region) => region.to_string(),
            None if !endpoints.is_empty() => DEFAULT_REGION.to_owned(),
            None => {
                let detail = "no region is set; set AWS_REGION, or name an endpoint with --endpoint-url";
                return Err(OpError::new(ErrorKind::Client, detail));
            }
        };
        let provider = sdk.credentials_provider().ok_or_else(|| no_credentials("no provider"))?;
        Ok(Session { sdk, provider, endpoints, region, addressing: self.addressing, tls })
    }
}

/// `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, or the profile's.
fn configured_endpoint(sdk: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id("S3").env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let of_service = key.ok().and_then(|key| sdk.service_config()?.load_config(key));
    of_service.or_else(|| sdk.endpoint_url().map(str::to_owned))
}

fn no_credentials(why: &str) -> OpError {
    let detail = format!(
        "no AWS credentials were found ({why}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or choose a profile \
         with AWS_PROFILE"
    );
    OpError::new(ErrorKind::Denied, detail)
}

impl Session {
    /// Region that requests are signed for.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Endpoints; none means AWS.
    #[must_use]
    pub fn endpoints(&self) -> &[Uri] {
        &self.endpoints
    }

    /// The keys as of now; those that end are renewed by whoever gave them when asked again.
    ///
    /// # Errors
    /// When there are none.
    pub async fn keys(&self) -> Result<Keys, OpError> {
        let keys = self.provider.provide_credentials().await.map_err(|error| {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            // The chain's own words go on over several lines.
            let words = format!("{error}{source}");
            no_credentials(
                words.lines().next().unwrap_or_default().trim_end_matches(" Attempted:").trim_end_matches('.'),
            )
        })?;
        Ok(Keys {
            credentials: Credentials::new(keys.access_key_id(), keys.secret_access_key(), keys.session_token()),
            expires: keys.expiry(),
        })
    }

    /// What raw S3 needs to reach `bucket` the same way.
    ///
    /// # Errors
    /// When there are no credentials.
    pub async fn raw(&self, bucket: &str) -> Result<S3Config, OpError> {
        Ok(S3Config {
            endpoints: self.endpoints.clone(),
            bucket: bucket.to_owned(),
            region: self.region.clone(),
            credentials: Some(self.keys().await?.credentials),
            addressing: self.addressing,
            tls: self.tls.clone(),
        })
    }

    /// One client for each endpoint, as an application would hold it, without retries. Each call makes its own
    /// connection pool, so a core does not share one with another.
    ///
    /// # Errors
    /// When certificates cannot be read.
    pub(crate) fn clients(&self) -> Result<Vec<(String, aws_sdk_s3::Client)>, OpError> {
        let http = crate::http::client(&self.tls)?;
        let base = aws_sdk_s3::config::Builder::from(&self.sdk)
            .http_client(http)
            .region(Region::new(self.region.clone()))
            .retry_config(RetryConfig::disabled());
        let path_style = match self.addressing {
            Addressing::Path => true,
            Addressing::VirtualHost => false,
            Addressing::Auto => !self.endpoints.is_empty(),
        };
        if self.endpoints.is_empty() {
            let config = base.force_path_style(path_style).build();
            return Ok(vec![(format!("AWS in {}", self.region), aws_sdk_s3::Client::from_conf(config))]);
        }
        let client = |endpoint: &Uri| {
            let aws = endpoint.host().is_some_and(|host| host.ends_with(".amazonaws.com"));
            let path_style = path_style && !(aws && self.addressing == Addressing::Auto);
            let text = endpoint.to_string().trim_end_matches('/').to_owned();
            let config = base.clone().endpoint_url(&text).force_path_style(path_style).build();
            (text, aws_sdk_s3::Client::from_conf(config))
        };
        Ok(self.endpoints.iter().map(client).collect())
    }
}
