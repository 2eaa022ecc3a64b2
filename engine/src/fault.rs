//! A transport that delays, fails or damages operations of another one, as a test tells it to.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use gpufeed_io::arena::Arena;
use gpufeed_io::timer::Timer;
use gpufeed_workloads::op::{Carrier, ErrorKind, Op};

use crate::transport::{Clock, Data, Done, Lane, Limits, OpError, Transport};

/// What happens to one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Injection {
    /// Service time added before the answer; exact to the timer.
    pub delay: Duration,
    /// Fails in this way, after the delay.
    pub error: Option<ErrorKind>,
    /// Flips a bit of what was read.
    pub corrupt: bool,
    /// Never answers.
    pub hang: bool,
}

/// A transport with faults: `inject` is asked for every attempt, with the number of those before it on this core.
#[derive(Debug)]
pub struct Faulty<T, F> {
    inner: T,
    inject: Rc<F>,
    clock: Clock,
    count: Rc<Cell<u64>>,
}

impl<T, F: Fn(u64, &Op) -> Injection> Faulty<T, F> {
    /// Wraps one core's transport.
    pub fn new(inner: T, clock: Clock, inject: F) -> Self {
        Self { inner, inject: Rc::new(inject), clock, count: Rc::default() }
    }
}

impl<T: Transport, F: Fn(u64, &Op) -> Injection + 'static> Transport for Faulty<T, F> {
    type Lane = FaultyLane<T::Lane, F>;

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn arena(&self) -> &Arena {
        self.inner.arena()
    }

    fn carrier(&self) -> Option<Carrier> {
        self.inner.carrier()
    }

    async fn lane(&self) -> Result<Self::Lane, OpError> {
        let timer =
            Timer::new().map_err(|error| OpError::new(ErrorKind::Io, format!("cannot make a timer: {error}")))?;
        let (inject, count) = (Rc::clone(&self.inject), Rc::clone(&self.count));
        Ok(FaultyLane { inner: self.inner.lane().await?, inject, clock: self.clock, count, timer })
    }

    async fn turn(&self) {
        self.inner.turn().await;
    }
}

/// A lane of a [`Faulty`] transport.
#[derive(Debug)]
pub struct FaultyLane<L, F> {
    inner: L,
    inject: Rc<F>,
    clock: Clock,
    count: Rc<Cell<u64>>,
    timer: Timer,
}

impl<L: Lane, F: Fn(u64, &Op) -> Injection> Lane for FaultyLane<L, F> {
    async fn call(&mut self, op: &Op, data: &mut Data) -> Done {
        let number = self.count.replace(self.count.get() + 1);
        let Injection { delay, error, corrupt, hang } = (self.inject)(number, op);
        let mut done = self.inner.call(op, data).await;
        if hang {
            std::future::pending::<()>().await;
        }
        if !delay.is_zero() {
            let due = done.sent + delay;
            if let Err(error) = self.timer.until(self.clock.instant(due)).await {
                done.result = Err(OpError::new(ErrorKind::Io, format!("cannot wait: {error}")));
            }
            let now = self.clock.now();
            (done.first_byte, done.done) = (now, now);
        }
        if let Data::Into { buf, .. } = data
            && corrupt
            && let Some(byte) = buf.first_mut()
        {
            *byte ^= 0x80;
        }
        if let Some(kind) = error {
            done.result = Err(OpError::new(kind, format!("{} failed as injected", op.verb)));
        }
        done
    }
}
