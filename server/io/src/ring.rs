#![expect(unsafe_code, reason = "hands memory to the kernel and takes descriptors from it")]
//! io_uring on tokio: one ring for a core, its completions announced to the runtime by an eventfd.
//!
//! What an operation needs (buffer, bytes, path, open file) moves into the ring and comes back with the completion. A
//! dropped operation leaves it there until the kernel is done with it, so that nothing is written after it was freed.
//! Operations are queued and submitted together when [`Ring::pump`] runs next: it must be polled beside them.

use std::cell::RefCell;
use std::ffi::CString;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::arena::{Arena, Buf};

/// One ring; clones share it. Lives on one thread.
#[derive(Clone)]
pub struct Ring {
    shared: Rc<RefCell<Shared>>,
}

struct Shared {
    uring: IoUring,
    event: Arc<OwnedFd>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
    /// Entries were queued since the last submission.
    queued: bool,
    pump: Option<Waker>,
    /// Arenas whose memory is registered, in the order of registration.
    registered: Vec<Arena>,
    /// Reused between reaps: woken when the ring is no longer borrowed.
    woken: Vec<Waker>,
}

struct Slot {
    keep: Keep,
    /// Open for as long as the operation runs.
    file: Option<Arc<OwnedFd>>,
    state: State,
}

enum State {
    Free,
    Waiting(Option<Waker>),
    /// Whoever asked is gone.
    Orphan,
    Done(i32),
}

/// Memory that the kernel reads or writes until the completion.
enum Keep {
    Nothing,
    Buf(Buf),
    /// Never read here: held so that the kernel can.
    Bytes(#[expect(dead_code, reason = "held for the kernel")] Bytes),
    Path(CString),
}

impl Ring {
    /// A ring for `entries` queued operations (a power of two); twice as many may complete between two pumps without
    /// the kernel buffering.
    ///
    /// # Errors
    /// When the kernel has no io_uring, forbids it (`kernel.io_uring_disabled`, seccomp), or lacks an operation used
    /// here (before Linux 5.6).
    pub fn new(entries: u32) -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .build(entries)
            // Kernels before 6.0 know neither flag.
            .or_else(|_| IoUring::new(entries))?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::ReadFixed::CODE,
            opcode::Fsync::CODE,
            opcode::OpenAt::CODE,
        ];
        if needed.iter().any(|&code| !probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        let shared = Shared {
            uring,
            event,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            queued: false,
            pump: None,
            registered: Vec::new(),
            woken: Vec::new(),
        };
        Ok(Self { shared: Rc::new(RefCell::new(shared)) })
    }

    /// Pins the memory of `arenas`, so that reads and writes of their buffers need not do so each time. To be called
    /// once, before any operation.
    ///
    /// # Errors
    /// When the kernel refuses: over the memlock limit, or a pool over 1 GiB. The ring works without.
    pub fn register(&self, arenas: &[&Arena]) -> io::Result<()> {
        let mut shared = self.shared.borrow_mut();
        let span = |arena: &&Arena| {
            let (start, len) = arena.span();
            libc::iovec { iov_base: start.as_ptr().cast(), iov_len: len }
        };
        let spans: Vec<libc::iovec> = arenas.iter().map(span).collect();
        // SAFETY: the regions live as long as the ring: it keeps the arenas.
        unsafe { shared.uring.submitter().register_buffers(&spans) }?;
        shared.registered = arenas.iter().copied().cloned().collect();
        Ok(())
    }

    /// Operations that the kernel has not completed, dropped ones among them.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.borrow().in_flight
    }

    /// Reads `len` bytes from `offset` of `file` into `buf` from its byte `at` on. Bytes read, zero at the end.
    ///
    /// # Panics
    /// When `at + len` is over the buffer's capacity.
    pub async fn read(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        buf: Buf,
        at: usize,
        len: usize,
    ) -> (io::Result<usize>, Option<Buf>) {
        let (pointer, len) = window(&buf, at, len);
        let fd = types::Fd(file.as_raw_fd());
        let entry = match self.shared.borrow().registration(&buf) {
            Some(index) => opcode::ReadFixed::new(fd, pointer, len, index).offset(offset).build(),
            None => opcode::Read::new(fd, pointer, len).offset(offset).build(),
        };
        self.transfer(entry, Some(Arc::clone(file)), buf).await
    }

    /// Writes bytes `at..at + len` of `buf` at `offset` of `file`. Bytes written.
    ///
    /// # Panics
    /// When `at + len` is over the buffer's capacity.
    pub async fn write(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        buf: Buf,
        at: usize,
        len: usize,
    ) -> (io::Result<usize>, Option<Buf>) {
        let (pointer, len) = window(&buf, at, len);
        let fd = types::Fd(file.as_raw_fd());
        let entry = match self.shared.borrow().registration(&buf) {
            Some(index) => opcode::WriteFixed::new(fd, pointer.cast_const(), len, index).offset(offset).build(),
            None => opcode::Write::new(fd, pointer.cast_const(), len).offset(offset).build(),
        };
        self.transfer(entry, Some(Arc::clone(file)), buf).await
    }

    async fn transfer(
        &self,
        entry: squeue::Entry,
        file: Option<Arc<OwnedFd>>,
        buf: Buf,
    ) -> (io::Result<usize>, Option<Buf>) {
        let (result, keep) = self.submit(entry, file, Keep::Buf(buf)).await;
        let buf = if let Keep::Buf(buf) = keep { Some(buf) } else { None };
        (result.map(|bytes| usize::try_from(bytes).unwrap_or(0)), buf)
    }

    /// Writes `bytes` at `offset` of `file`. Bytes written.
    ///
    /// # Errors
    /// Those of `pwrite`.
    pub async fn write_bytes(&self, file: &Arc<OwnedFd>, offset: u64, bytes: Bytes) -> io::Result<usize> {
        let len = u32::try_from(bytes.len()).unwrap_or(!4095);
        let fd = types::Fd(file.as_raw_fd());
        let entry = opcode::Write::new(fd, bytes.as_ptr(), len).offset(offset).build();
        let (result, _) = self.submit(entry, Some(Arc::clone(file)), Keep::Bytes(bytes)).await;
        result.map(|bytes| usize::try_from(bytes).unwrap_or(0))
    }

    /// Makes the data of `file` durable.
    ///
    /// # Errors
    /// Those of `fdatasync`.
    pub async fn sync_data(&self, file: &Arc<OwnedFd>) -> io::Result<()> {
        let fd = types::Fd(file.as_raw_fd());
        let entry = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
        self.submit(entry, Some(Arc::clone(file)), Keep::Nothing).await.0.map(|_| ())
    }

    /// Opens `path` below the directory `dir` with `flags` and `mode` as of `openat`. The path comes back for reuse.
    pub async fn open(
        &self,
        dir: &Arc<OwnedFd>,
        path: CString,
        flags: i32,
        mode: u32,
    ) -> (io::Result<OwnedFd>, Option<CString>) {
        let fd = types::Fd(dir.as_raw_fd());
        // The text does not move with its `CString`.
        let entry = opcode::OpenAt::new(fd, path.as_ptr()).flags(flags | libc::O_CLOEXEC).mode(mode).build();
        let (result, keep) = self.submit(entry, Some(Arc::clone(dir)), Keep::Path(path)).await;
        let path = if let Keep::Path(path) = keep { Some(path) } else { None };
        // SAFETY: the kernel has just made this descriptor for us.
        (result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }), path)
    }

    fn submit(&self, entry: squeue::Entry, file: Option<Arc<OwnedFd>>, keep: Keep) -> Pending {
        let pending = self.shared.borrow_mut().queue(entry, file, keep);
        let slot = match pending {
            Ok(slot) => Ok(slot),
            Err((error, keep)) => Err(Some((error, keep))),
        };
        Pending { shared: Rc::clone(&self.shared), slot }
    }

    /// Submits what was queued and wakes what has completed, for as long as it is polled. One at a time.
    ///
    /// # Errors
    /// When the eventfd cannot be registered with the runtime (descriptors used up).
    pub async fn pump(&self) -> io::Result<()> {
        let event = Arc::clone(&self.shared.borrow().event);
        // SAFETY: the eventfd is owned by the `Arc` inside the registration, so it stays open as long as that.
        let event = unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }.map_err(io::Error::from)?;
        poll_fn(|cx| {
            loop {
                let mut shared = self.shared.borrow_mut();
                if !shared.pump.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    shared.pump = Some(cx.waker().clone());
                }
                if let Err(error) = shared.flush() {
                    return Poll::Ready(Err(error));
                }
                // Readiness is edge-triggered and every completion writes to the eventfd, so it is never read; it is
                // cleared before the queue is emptied, so that no completion is missed.
                let ready = match event.poll_read_ready(cx) {
                    Poll::Ready(Ok(mut guard)) => {
                        guard.clear_ready();
                        true
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => false,
                };
                shared.reap();
                let mut woken = std::mem::take(&mut shared.woken);
                drop(shared);
                woken.drain(..).for_each(Waker::wake);
                self.shared.borrow_mut().woken = woken;
                if !ready {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

/// The window's address and length for the kernel.
fn window(buf: &Buf, at: usize, len: usize) -> (*mut u8, u32) {
    assert!(at.checked_add(len).is_some_and(|end| end <= buf.capacity()), "{at}+{len} in {} bytes", buf.capacity());
    // SAFETY: `at` lies within the buffer, as just asserted.
    let pointer = unsafe { buf.as_ptr().add(at) };
    // The kernel transfers at most 2 GiB less a page at once; what is left is for the caller's next turn.
    (pointer.as_ptr(), u32::try_from(len).unwrap_or(!4095))
}

impl Shared {
    fn registration(&self, buf: &Buf) -> Option<u16> {
        let address = buf.as_ptr().addr().get();
        let holds = |arena: &Arena| {
            let (start, len) = arena.span();
            (start.addr().get()..start.addr().get() + len).contains(&address)
        };
        self.registered.iter().position(holds).and_then(|index| u16::try_from(index).ok())
    }

    fn queue(
        &mut self,
        entry: squeue::Entry,
        file: Option<Arc<OwnedFd>>,
        keep: Keep,
    ) -> Result<u32, (io::Error, Keep)> {
        if self.uring.submission().is_full()
            && let Err(error) = self.flush()
        {
            return Err((error, keep));
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { keep: Keep::Nothing, file: None, state: State::Free });
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.slots[index as usize] = Slot { keep, file, state: State::Waiting(None) };
        // SAFETY: buffer, bytes, path and file of the entry are owned by the slot until its completion is reaped.
        let pushed = unsafe { self.uring.submission().push(&entry.user_data(u64::from(index))) };
        if pushed.is_err() {
            let slot = std::mem::replace(
                &mut self.slots[index as usize],
                Slot { keep: Keep::Nothing, file: None, state: State::Free },
            );
            self.free.push(index);
            return Err((io::ErrorKind::WouldBlock.into(), slot.keep));
        }
        self.in_flight += 1;
        self.queued = true;
        if let Some(pump) = &self.pump {
            pump.wake_by_ref();
        }
        Ok(index)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.queued {
            match self.uring.submit() {
                Ok(_) => self.queued = !self.uring.submission().is_empty(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The completion queue is full or memory is short: completions make room.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {
                    if self.reap() == 0 {
                        self.uring.submitter().submit_and_wait(1)?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes every completion off the queue; how many there were.
    fn reap(&mut self) -> usize {
        let mut count = 0;
        loop {
            for completion in self.uring.completion() {
                count += 1;
                self.in_flight -= 1;
                let index = u32::try_from(completion.user_data()).unwrap_or(u32::MAX);
                let Some(slot) = self.slots.get_mut(index as usize) else { continue };
                slot.file = None;
                match std::mem::replace(&mut slot.state, State::Done(completion.result())) {
                    State::Waiting(waker) => self.woken.extend(waker),
                    State::Orphan => {
                        close_opened(&slot.keep, completion.result());
                        slot.keep = Keep::Nothing;
                        slot.state = State::Free;
                        self.free.push(index);
                    }
                    State::Free | State::Done(_) => {}
                }
            }
            // What did not fit waits in the kernel, and nothing announces it: it is asked for.
            if !self.uring.submission().cq_overflow() || self.uring.submitter().submit_and_wait(0).is_err() {
                return count;
            }
        }
    }
}

/// Closes what an open made for nobody.
fn close_opened(keep: &Keep, result: RawFd) {
    if matches!(keep, Keep::Path(_)) && result >= 0 {
        // SAFETY: the kernel has made this descriptor for an operation whose asker is gone.
        drop(unsafe { OwnedFd::from_raw_fd(result) });
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            match self.uring.submit_and_wait(1) {
                Ok(_) => {
                    self.reap();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // The kernel may still write: better to lose the memory than to have it written to.
                    std::mem::forget(std::mem::take(&mut self.slots));
                    return;
                }
            }
        }
    }
}

/// An operation under way.
struct Pending {
    shared: Rc<RefCell<Shared>>,
    /// The slot, or why there is none (taken when told).
    slot: Result<u32, Option<(io::Error, Keep)>>,
}

impl Future for Pending {
    type Output = (io::Result<i32>, Keep);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let index = match &mut self.slot {
            Ok(index) => *index,
            Err(refused) => {
                let (error, keep) = refused.take().unwrap_or((io::ErrorKind::Other.into(), Keep::Nothing));
                return Poll::Ready((Err(error), keep));
            }
        };
        let mut shared = self.shared.borrow_mut();
        let slot = &mut shared.slots[index as usize];
        match &mut slot.state {
            State::Done(result) => {
                let result = *result;
                let keep = std::mem::replace(&mut slot.keep, Keep::Nothing);
                slot.state = State::Free;
                shared.free.push(index);
                drop(shared);
                self.slot = Err(None);
                let result = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) };
                Poll::Ready((result, keep))
            }
            State::Waiting(waker) => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            State::Free | State::Orphan => Poll::Pending,
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Ok(index) = self.slot else { return };
        let mut shared = self.shared.borrow_mut();
        let slot = &mut shared.slots[index as usize];
        let state = std::mem::replace(&mut slot.state, State::Orphan);
        if let State::Done(result) = state {
            close_opened(&slot.keep, result);
            let keep = std::mem::replace(&mut slot.keep, Keep::Nothing);
            slot.state = State::Free;
            shared.free.push(index);
            drop(shared);
            drop(keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::PAGE;
    use crate::payload::Payloads;
    use rustix::fs::{Mode, OFlags};
    use std::time::Duration;

    /// Runs `test` with a ring that is pumped, where this kernel allows one.
    fn with_ring(entries: u32, test: impl AsyncFnOnce(Ring)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let ring = match Ring::new(entries) {
            Ok(ring) => ring,
            Err(error) => {
                assert!(
                    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported)
                        || error.raw_os_error() == Some(libc::ENOSYS),
                    "{error}"
                );
                return;
            }
        };
        runtime.block_on(async {
            tokio::select! {
                pumped = ring.pump() => panic!("the pump ended: {pumped:?}"),
                () = test(ring.clone()) => {}
                () = tokio::time::sleep(Duration::from_secs(60)) => panic!("an operation never completed"),
            }
        });
    }

    async fn file(ring: &Ring, dir: &std::path::Path, name: &str) -> Arc<OwnedFd> {
        let dir = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).expect("a directory");
        let name = CString::new(name).expect("a name");
        let (fd, name) = ring.open(&Arc::new(dir), name, libc::O_RDWR | libc::O_CREAT, 0o600).await;
        assert!(name.is_some());
        Arc::new(fd.expect("a new file"))
    }

    #[test]
    fn what_is_written_is_read_back_with_and_without_registration() {
        for register in [false, true] {
            with_ring(8, async |ring| {
                let dir = tempfile::tempdir().expect("a directory");
                let file = file(&ring, dir.path(), "a").await;
                let arena = Arena::new(2 * PAGE, 4).expect("small");
                if register {
                    ring.register(&[&arena]).expect("32 KiB may be pinned");
                }
                let payload = Payloads::new(1).of("a");
                let mut buf = arena.take().expect("free");
                payload.fill(0, buf.spare());
                let (wrote, buf) = ring.write(&file, 0, buf, 0, 2 * PAGE).await;
                assert_eq!(wrote.expect("writes"), 2 * PAGE);
                let (wrote, _) = ring.write(&file, 2 * PAGE as u64, buf.expect("back"), 0, 100).await;
                assert_eq!(wrote.expect("writes"), 100);
                let bytes = Bytes::from_static(b"tail");
                assert_eq!(ring.write_bytes(&file, 2 * PAGE as u64, bytes).await.expect("writes"), 4);
                ring.sync_data(&file).await.expect("syncs");

                let (read, buf) = ring.read(&file, 100, arena.take().expect("free"), 50, 1000).await;
                assert_eq!(read.expect("reads"), 1000);
                let mut buf = buf.expect("back");
                assert_eq!(payload.verify(100, &buf.spare()[50..1050]), Ok(()));
                let (read, buf) = ring.read(&file, 2 * PAGE as u64, buf, 0, PAGE).await;
                assert_eq!(read.expect("reads"), 100);
                assert_eq!(&buf.expect("back").spare()[..4], b"tail");
                assert_eq!(arena.free(), 4);
            });
        }
    }

    #[test]
    fn more_operations_than_entries_all_complete() {
        with_ring(2, async |ring| {
            let dir = tempfile::tempdir().expect("a directory");
            let file = file(&ring, dir.path(), "a").await;
            let arena = Arena::new(PAGE, 64).expect("small");
            let one = async |i: u64| {
                let mut buf = arena.take().expect("free");
                buf.spare().fill(i as u8);
                ring.write(&file, i * PAGE as u64, buf, 0, PAGE).await.0.expect("writes");
                let (read, buf) = ring.read(&file, i * PAGE as u64, arena.take().expect("free"), 0, PAGE).await;
                assert_eq!(read.expect("reads"), PAGE);
                assert!(buf.expect("back").spare().iter().all(|&b| b == i as u8));
            };
            let mut all: Vec<_> = (0..32).map(|i| Box::pin(one(i))).collect();
            poll_fn(|cx| {
                all.retain_mut(|future| future.as_mut().poll(cx).is_pending());
                if all.is_empty() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            assert_eq!((ring.in_flight(), arena.free()), (0, 64));
        });
    }

    #[test]
    fn a_dropped_operation_keeps_its_buffer_until_the_kernel_is_done() {
        with_ring(8, async |ring| {
            // A pipe: the read cannot complete before something is written.
            let (read_end, write_end) = rustix::pipe::pipe().expect("a pipe");
            let read_end = Arc::new(read_end);
            let arena = Arena::new(PAGE, 1).expect("small");
            {
                let mut read = Box::pin(ring.read(&read_end, u64::MAX, arena.take().expect("free"), 0, 5));
                poll_fn(|cx| {
                    assert!(read.as_mut().poll(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
            }
            tokio::task::yield_now().await;
            assert_eq!((ring.in_flight(), arena.free()), (1, 0), "the kernel still has it");
            rustix::io::write(&write_end, b"hello").expect("writes");
            while ring.in_flight() > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(&arena.take().expect("back in its pool").spare()[..5], b"hello");
        });
    }

    #[test]
    fn an_open_nobody_waits_for_is_closed() {
        with_ring(8, async |ring| {
            let dir = tempfile::tempdir().expect("a directory");
            let handle = rustix::fs::open(dir.path(), OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty());
            let handle = Arc::new(handle.expect("a directory"));
            let path = CString::new("never-waited-for").expect("a name");
            drop(
                ring.submit(
                    opcode::OpenAt::new(types::Fd(handle.as_raw_fd()), path.as_ptr())
                        .flags(libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC)
                        .mode(0o600)
                        .build(),
                    Some(Arc::clone(&handle)),
                    Keep::Path(path),
                ),
            );
            while ring.in_flight() > 0 {
                tokio::task::yield_now().await;
            }
            assert!(dir.path().join("never-waited-for").exists());
            let open = std::fs::read_dir("/proc/self/fd").expect("procfs").flatten();
            let open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
            assert_eq!(open.filter(|path| path.ends_with("never-waited-for")).count(), 0);
        });
    }

    #[test]
    fn errors_are_those_of_the_call() {
        with_ring(8, async |ring| {
            let dir = tempfile::tempdir().expect("a directory");
            let handle = rustix::fs::open(dir.path(), OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty());
            let missing = CString::new("missing").expect("a name");
            let (opened, path) = ring.open(&Arc::new(handle.expect("a directory")), missing, libc::O_RDONLY, 0).await;
            assert_eq!(opened.expect_err("absent").kind(), io::ErrorKind::NotFound);
            assert_eq!(path.expect("back").as_bytes(), b"missing");
        });
    }
}
