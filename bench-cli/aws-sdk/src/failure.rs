//! The SDK's errors as one sentence each.

use std::error::Error;
use std::io;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use gpufeed_engine::transport::OpError;
use gpufeed_transports::s3::{Refusal, refusal};
use gpufeed_workloads::op::ErrorKind;

/// The innermost sentence of an error.
fn root(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn find_io(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = error.source();
    }
    None
}

/// What went wrong with `what` at `endpoint`.
pub(crate) fn failure<E>(what: &str, endpoint: &str, error: &SdkError<E, HttpResponse>) -> OpError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let request = format!("{what} at {endpoint}");
    match error {
        SdkError::ServiceError(answer) => refusal(Refusal {
            what: &request,
            status: answer.raw().status().as_u16(),
            code: answer.err().code().unwrap_or_default(),
            message: answer.err().message().unwrap_or_default(),
        }),
        SdkError::TimeoutError(_) => OpError::new(ErrorKind::Timeout, format!("{request} got no answer in time")),
        SdkError::ResponseError(_) => {
            let why = root(error);
            OpError::new(ErrorKind::Protocol, format!("{request} got an answer that cannot be read: {why}"))
        }
        SdkError::DispatchFailure(failure) => {
            let why = match find_io(error) {
                Some(io::ErrorKind::ConnectionRefused) => {
                    "nothing listens there; start the server or check --endpoint-url".to_owned()
                }
                _ if failure.is_timeout() => "no answer; check --endpoint-url and the firewall".to_owned(),
                _ => {
                    let why = root(error);
                    let way_out = if why.contains("certificate") {
                        "set AWS_CA_BUNDLE or use --no-verify-tls"
                    } else if why.contains("credentials") {
                        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
                    } else {
                        "check --endpoint-url"
                    };
                    format!("{why}; {way_out}")
                }
            };
            OpError::new(ErrorKind::Connect, format!("{request}: no connection: {why}"))
        }
        _ => OpError::new(ErrorKind::Client, format!("{request} could not be asked: {}", root(error))),
    }
}
