//! Precise absolute deadlines: a timerfd on tokio.
//!
//! tokio's own timers count milliseconds, so a wait of 5 ms ends up to 1 ms late. An absolute timerfd on the monotonic
//! clock, with the thread's timer slack at 1 ns, wakes tens of microseconds after its deadline. Re-arming is one system
//! call and no allocation.

use std::future::poll_fn;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// One timer, re-armed as often as needed. Lives on the runtime it was made in.
#[derive(Debug)]
pub struct Timer {
    fd: AsyncFd<OwnedFd>,
    /// The same moment on both faces of the monotonic clock: `Instant` does not show its nanoseconds.
    origin: (Instant, Duration),
}

impl Timer {
    /// A timer that is not armed. Sets the calling thread's timer slack to 1 ns; to be called inside a tokio runtime
    /// with I/O enabled.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = readable(timerfd_create(TimerfdClockId::Monotonic, flags)?)?;
        let before = Instant::now();
        let monotonic = clock_gettime(ClockId::Monotonic);
        let instant = before + before.elapsed() / 2;
        let whole = u64::try_from(monotonic.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(monotonic.tv_nsec).unwrap_or(0);
        Ok(Self { fd, origin: (instant, Duration::from_secs(whole) + Duration::from_nanos(nanos)) })
    }

    /// Sets the deadline, replacing an earlier one. A deadline in the past expires at once.
    ///
    /// # Errors
    /// Those of `timerfd_settime`; none are known for a valid timer.
    pub fn arm(&self, deadline: Instant) -> io::Result<()> {
        let (instant, monotonic) = self.origin;
        let at = match deadline.checked_duration_since(instant) {
            Some(later) => monotonic + later,
            // Zero would disarm the timer.
            None => monotonic.checked_sub(instant - deadline).unwrap_or_default().max(Duration::from_nanos(1)),
        };
        self.set(Timespec {
            tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(at.subsec_nanos()),
        })
    }

    /// Withdraws the deadline: [`expired`](Self::expired) stays pending until the next [`arm`](Self::arm).
    ///
    /// # Errors
    /// Those of `timerfd_settime`; none are known for a valid timer.
    pub fn disarm(&self) -> io::Result<()> {
        self.set(Timespec { tv_sec: 0, tv_nsec: 0 })
    }

    fn set(&self, it_value: Timespec) -> io::Result<()> {
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval, it_value })?;
        Ok(())
    }

    /// Waits until the armed deadline has passed. May be polled while another task re-arms the timer; may be dropped
    /// and called again.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn expired(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_expired(context)).await
    }

    /// [`expired`](Self::expired) as a poll.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub fn poll_expired(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(context))?;
            let mut expirations = [0; 8];
            let read = rustix::io::read(&self.fd, &mut expirations);
            // An expiry after this read wakes the task again, so what is known so far can be forgotten.
            guard.clear_ready_matching(Ready::READABLE);
            match read {
                Ok(_) => return Poll::Ready(Ok(())),
                // Re-armed or disarmed since it became readable.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Waits until `deadline`. Dropping the future cancels the wait.
    ///
    /// # Errors
    /// Those of [`arm`](Self::arm) and [`expired`](Self::expired).
    pub async fn until(&self, deadline: Instant) -> io::Result<()> {
        self.arm(deadline)?;
        self.expired().await
    }
}

/// Registers a file descriptor with the current runtime, to wait for it to become readable.
#[allow(unsafe_code)]
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and names one file until dropped, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<F: Future>(test: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(test)
    }

    #[test]
    fn deadlines_are_never_early_and_do_not_drift() {
        run(async {
            let timer = Timer::new().expect("timer");
            let start = Instant::now();
            for i in 1..=50u32 {
                let deadline = start + i * Duration::from_micros(700);
                timer.until(deadline).await.expect("timer");
                let late = Instant::now().checked_duration_since(deadline);
                // The two faces of the clock are matched to within one call of it.
                assert!(late.is_some() || deadline - Instant::now() < Duration::from_micros(5));
            }
        });
    }

    #[test]
    fn past_deadlines_expire_at_once_and_a_withdrawn_one_never() {
        run(async {
            let timer = Timer::new().expect("timer");
            timer.until(Instant::now() - Duration::from_secs(1)).await.expect("timer");
            timer.arm(Instant::now()).expect("arm");
            timer.disarm().expect("disarm");
            let waited = tokio::time::timeout(Duration::from_millis(20), timer.expired()).await;
            assert!(waited.is_err());
            timer.until(Instant::now() + Duration::from_millis(1)).await.expect("still usable");
        });
    }

    #[test]
    fn an_earlier_deadline_replaces_a_later_one_while_waiting() {
        run(async {
            let timer = Timer::new().expect("timer");
            let start = Instant::now();
            timer.arm(start + Duration::from_secs(3600)).expect("arm");
            let rearm = async {
                tokio::task::yield_now().await;
                timer.arm(start + Duration::from_millis(2)).expect("arm");
            };
            let (expired, ()) = tokio::join!(timer.expired(), rearm);
            expired.expect("expired");
            assert!(start.elapsed() < Duration::from_secs(60));
        });
    }
}
