//! Precise waits of all requests of a core, on one timerfd.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use gpufeed_io::timer::Timer;

/// Deadlines in order, and who waits for them.
#[derive(Debug)]
pub(crate) struct Waits {
    timer: Timer,
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next: Cell<u64>,
}

impl Waits {
    /// To be called on the core's runtime; [`pump`](Self::pump) must run there.
    pub(crate) fn new() -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self { timer: Timer::new()?, waiting: RefCell::default(), next: Cell::new(0) }))
    }

    /// Wakes whoever is due, for ever.
    pub(crate) async fn pump(self: Rc<Self>) {
        loop {
            if let Err(error) = self.timer.expired().await {
                tracing::error!(%error, "the timer of injected delays failed");
                return;
            }
            let now = Instant::now();
            let mut waiting = self.waiting.borrow_mut();
            while let Some(first) = waiting.first_entry()
                && first.key().0 <= now
            {
                first.remove().wake();
            }
            let next = waiting.first_key_value().map(|((at, _), _)| *at);
            drop(waiting);
            self.arm(next);
        }
    }

    fn arm(&self, at: Option<Instant>) {
        if let Some(at) = at
            && let Err(error) = self.timer.arm(at)
        {
            tracing::error!(%error, "the timer of injected delays failed");
        }
    }

    /// Waits until `at`.
    pub(crate) fn until(self: &Rc<Self>, at: Instant) -> Until {
        Until { waits: Rc::clone(self), at, id: None }
    }
}

/// See [`Waits::until`].
#[derive(Debug)]
pub(crate) struct Until {
    waits: Rc<Waits>,
    at: Instant,
    id: Option<u64>,
}

impl Future for Until {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.at {
            return Poll::Ready(());
        }
        let id = self.id.unwrap_or_else(|| {
            let id = self.waits.next.get();
            self.waits.next.set(id + 1);
            id
        });
        self.id = Some(id);
        let first = {
            let mut waiting = self.waits.waiting.borrow_mut();
            waiting.insert((self.at, id), cx.waker().clone());
            waiting.first_key_value().is_some_and(|(key, _)| *key == (self.at, id))
        };
        if first {
            self.waits.arm(Some(self.at));
        }
        Poll::Pending
    }
}

impl Drop for Until {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.waits.waiting.borrow_mut().remove(&(self.at, id));
        }
    }
}
