//! Connections under watch: what a client does with one, and when it is ended for that.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::task::AbortHandle;

use crate::config::Limits;

/// What a connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between requests.
    Idle,
    /// A request has begun to arrive.
    Header,
    /// A request is being served.
    Busy,
}

/// How bodies move. Shared with request bodies, which s3s wants to be `Send`.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Whether nothing moves until the client does something.
    waits_for_client: AtomicBool,
    /// Bytes of bodies and answers moved so far.
    moved: AtomicU64,
}

impl Progress {
    /// Whether nothing moves until the client does something.
    pub(crate) fn waits_for_client(&self) -> bool {
        self.waits_for_client.load(Relaxed)
    }

    /// A poll that waits for the client, or moved this many bytes.
    pub(crate) fn polled(&self, moved: Poll<usize>) {
        self.waits_for_client.store(moved.is_pending(), Relaxed);
        if let Poll::Ready(bytes) = moved {
            self.moved.fetch_add(bytes as u64, Relaxed);
        }
    }
}

/// A connection, as its core sees it.
#[derive(Debug)]
pub(crate) struct Connection {
    phase: Cell<Phase>,
    since: Cell<Instant>,
    /// When, and at how many bytes, the client was last seen to move.
    mark: Cell<(Instant, u64)>,
    pub(crate) progress: Arc<Progress>,
    draining: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    task: RefCell<Option<AbortHandle>>,
}

impl Connection {
    /// A connection on which nothing has arrived yet. It must begin to within the time for a header.
    pub(crate) fn new() -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            phase: Cell::new(Phase::Header),
            since: Cell::new(now),
            mark: Cell::new((now, 0)),
            progress: Arc::default(),
            draining: Cell::new(false),
            waker: RefCell::default(),
            task: RefCell::default(),
        })
    }

    pub(crate) fn set_task(&self, task: AbortHandle) {
        *self.task.borrow_mut() = Some(task);
    }

    pub(crate) fn begin(&self) {
        self.phase.set(Phase::Busy);
    }

    pub(crate) fn end(&self) {
        self.phase.set(Phase::Idle);
        self.since.set(Instant::now());
    }

    /// Lets the request under way finish, and no other begin.
    pub(crate) fn drain(&self) {
        self.draining.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether it is to end; if not, the task is woken when it is.
    pub(crate) fn is_draining(&self, cx: &Context<'_>) -> bool {
        if !self.draining.get() {
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        self.draining.get()
    }

    /// Ends the connection if its client keeps it waiting too long.
    pub(crate) fn check(&self, now: Instant, limits: &Limits) {
        let waited = now.saturating_duration_since(self.since.get());
        let overdue = match self.phase.get() {
            Phase::Header => waited > limits.header_timeout,
            Phase::Idle if !self.progress.waits_for_client.load(Relaxed) => waited > limits.idle_timeout,
            Phase::Idle | Phase::Busy => self.stands_still(now, limits),
        };
        if overdue && let Some(task) = &*self.task.borrow() {
            task.abort();
        }
    }

    fn stands_still(&self, now: Instant, limits: &Limits) -> bool {
        let (then, moved_then) = self.mark.get();
        let moved = self.progress.moved.load(Relaxed);
        if self.progress.waits_for_client.load(Relaxed) && moved - moved_then < limits.body_progress_bytes {
            return now.saturating_duration_since(then) > limits.body_timeout;
        }
        self.mark.set((now, moved));
        false
    }
}

/// A stream whose connection is under watch.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    pub(crate) io: T,
    pub(crate) connection: Rc<Connection>,
}

impl<T> Watched<T> {
    fn wrote(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.connection.progress.polled(match &result {
            Poll::Pending => Poll::Pending,
            Poll::Ready(written) => Poll::Ready(*written.as_ref().unwrap_or(&0)),
        });
        result
    }
}

impl<T: Read + Unpin> Read for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let ready = Pin::new(&mut self.io).poll_read(cx, buf)?;
        if ready.is_ready() && self.connection.phase.get() == Phase::Idle {
            self.connection.phase.set(Phase::Header);
            self.connection.since.set(Instant::now());
        }
        ready.map(Ok)
    }
}

impl<T: Write + Unpin> Write for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }
}
