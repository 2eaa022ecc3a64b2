//! A bell between threads: an eventfd on tokio, rung only when somebody sleeps.
//!
//! It accompanies a lock-free queue. The producer pushes, then rings; the consumer, finding the queue empty, says that
//! it will sleep, looks once more, and waits. Ringing somebody who is awake costs one atomic operation.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use tokio::io::Ready;
use tokio::io::unix::AsyncFd;

use crate::timer::readable;

/// The side that rings. Cheap to clone, usable from any thread.
#[derive(Debug, Clone)]
pub struct Ringer {
    shared: Arc<Shared>,
}

/// The side that sleeps.
#[derive(Debug)]
pub struct Bell {
    shared: Arc<Shared>,
    fd: AsyncFd<OwnedFd>,
}

#[derive(Debug)]
struct Shared {
    fd: OwnedFd,
    asleep: AtomicBool,
}

/// A bell that the current runtime waits for, with its ringer.
///
/// # Errors
/// When the process is out of file descriptors.
pub fn bell(ringer: &Ringer) -> io::Result<Bell> {
    let fd = readable(ringer.shared.fd.as_fd().try_clone_to_owned()?)?;
    Ok(Bell { shared: Arc::clone(&ringer.shared), fd })
}

impl Ringer {
    /// A ringer whose [`bell`] can be hung up later, on another thread.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { shared: Arc::new(Shared { fd, asleep: AtomicBool::new(false) }) })
    }

    /// Wakes the sleeper, if it sleeps. To be called after what it should find is in place.
    pub fn ring(&self) {
        // With the fence in `sleep`: either the sleeper sees what was pushed, or this sees that it sleeps.
        fence(Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::Relaxed) && self.shared.asleep.swap(false, Ordering::AcqRel) {
            // Fails only when the counter is full, and then the sleeper is awake anyway.
            let _ = rustix::io::write(&self.shared.fd, &1u64.to_ne_bytes());
        }
    }
}

impl Bell {
    /// Sleeps until rung, unless `nothing_to_do` turns false on a second look.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn sleep(&self, nothing_to_do: impl Fn() -> bool) -> io::Result<()> {
        self.shared.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if !nothing_to_do() {
            self.shared.asleep.store(false, Ordering::Relaxed);
            return Ok(());
        }
        loop {
            let mut guard = poll_fn(|context| self.fd.poll_read_ready(context)).await?;
            let mut count = [0; 8];
            let read = rustix::io::read(&self.fd, &mut count);
            guard.clear_ready_matching(Ready::READABLE);
            match read {
                Ok(_) => break,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.shared.asleep.store(false, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_queue::ArrayQueue;

    #[test]
    fn nothing_pushed_is_slept_over() {
        const COUNT: u64 = 20_000;
        let ringer = Ringer::new().expect("eventfd");
        let queue = Arc::new(ArrayQueue::new(64));
        let producer = std::thread::spawn({
            let (ringer, queue) = (ringer.clone(), Arc::clone(&queue));
            move || {
                for i in 0..COUNT {
                    while queue.push(i).is_err() {
                        std::thread::yield_now();
                    }
                    ringer.ring();
                    // Give the consumer time to fall asleep now and then.
                    if i % 97 == 0 {
                        std::thread::yield_now();
                    }
                }
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let bell = bell(&ringer).expect("bell");
            let mut expected = 0;
            while expected < COUNT {
                while let Some(i) = queue.pop() {
                    assert_eq!(i, expected);
                    expected += 1;
                }
                if expected < COUNT {
                    bell.sleep(|| queue.is_empty()).await.expect("runtime");
                }
            }
        });
        producer.join().expect("no panic");
    }
}
