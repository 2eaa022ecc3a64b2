//! Bodies of requests.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::connection::Progress;

/// A body that can be read on after whoever it was handed to has dropped it: a client that is still sending does not see
/// an answer, so what it sends is read even when the answer is known.
#[derive(Debug, Clone)]
pub(crate) struct Inbound {
    body: Arc<Mutex<Incoming>>,
    progress: Arc<Progress>,
}

impl Inbound {
    pub(crate) fn new(body: Incoming, progress: Arc<Progress>) -> Self {
        Self { body: Arc::new(Mutex::new(body)), progress }
    }

    /// Reads what is left, up to `most` bytes.
    pub(crate) async fn drain(mut self, most: u64) {
        let mut drained = 0;
        while drained < most
            && !self.is_end_stream()
            && let Some(Ok(frame)) = std::future::poll_fn(|cx| Pin::new(&mut self).poll_frame(cx)).await
        {
            drained += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // Never contended: the body is handed on, not shared.
        let mut body = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        let polled = Pin::new(&mut *body).poll_frame(cx);
        self.progress.polled(match &polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(frame.data_ref().map_or(0, Bytes::len)),
            Poll::Ready(_) => Poll::Ready(0),
        });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
