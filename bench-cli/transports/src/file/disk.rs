//! Reads and writes of open files: by io_uring, or by `pread` and `pwrite` on helper threads.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use gpufeed_io::arena::Buf;
use gpufeed_io::ring::Ring;
use rustix::fs::{Mode, OFlags};

/// How a core does its file I/O. Buffers move in and come back; those of a dropped operation come back to their pool
/// when the kernel or the helper thread is done with them.
#[derive(Debug, Clone)]
pub(crate) enum Disk {
    Ring(Ring),
    Threads,
}

/// Runs a blocking call on a helper thread.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(call).await.map_err(io::Error::other)?
}

impl Disk {
    pub(crate) async fn read(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        mut buf: Buf,
        at: usize,
        len: usize,
    ) -> io::Result<(usize, Buf)> {
        match self {
            Self::Ring(ring) => pair(ring.read(file, offset, buf, at, len).await),
            Self::Threads => {
                let file = Arc::clone(file);
                blocking(move || {
                    let read =
                        rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut buf.spare()[at..at + len], offset))?;
                    Ok((read, buf))
                })
                .await
            }
        }
    }

    pub(crate) async fn write(
        &self,
        file: &Arc<OwnedFd>,
        offset: u64,
        mut buf: Buf,
        at: usize,
        len: usize,
    ) -> io::Result<(usize, Buf)> {
        match self {
            Self::Ring(ring) => pair(ring.write(file, offset, buf, at, len).await),
            Self::Threads => {
                let file = Arc::clone(file);
                blocking(move || {
                    let wrote =
                        rustix::io::retry_on_intr(|| rustix::io::pwrite(&file, &buf.spare()[at..at + len], offset))?;
                    Ok((wrote, buf))
                })
                .await
            }
        }
    }

    pub(crate) async fn write_bytes(&self, file: &Arc<OwnedFd>, offset: u64, bytes: Bytes) -> io::Result<usize> {
        match self {
            Self::Ring(ring) => ring.write_bytes(file, offset, bytes).await,
            Self::Threads => {
                let file = Arc::clone(file);
                blocking(move || Ok(rustix::io::retry_on_intr(|| rustix::io::pwrite(&file, &bytes, offset))?)).await
            }
        }
    }

    pub(crate) async fn sync_data(&self, file: &Arc<OwnedFd>) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.sync_data(file).await,
            Self::Threads => {
                let file = Arc::clone(file);
                blocking(move || Ok(rustix::fs::fdatasync(&file)?)).await
            }
        }
    }

    /// Opens for reading. The path's memory comes back unless the kernel kept it.
    pub(crate) async fn open(
        &self,
        dir: &Arc<OwnedFd>,
        path: CString,
        flags: OFlags,
    ) -> (io::Result<OwnedFd>, Option<CString>) {
        match self {
            Self::Ring(ring) => ring.open(dir, path, i32::from_ne_bytes(flags.bits().to_ne_bytes()), 0).await,
            Self::Threads => {
                let dir = Arc::clone(dir);
                let opened = blocking(move || {
                    let opened = rustix::fs::openat(&dir, path.as_c_str(), flags | OFlags::CLOEXEC, Mode::empty());
                    Ok((opened, path))
                });
                match opened.await {
                    Ok((opened, path)) => (opened.map_err(Into::into), Some(path)),
                    Err(error) => (Err(error), None),
                }
            }
        }
    }
}

fn pair((result, buf): (io::Result<usize>, Option<Buf>)) -> io::Result<(usize, Buf)> {
    let bytes = result?;
    buf.map(|buf| (bytes, buf)).ok_or_else(|| io::ErrorKind::Other.into())
}
