//! Files as a target: every way of doing I/O against a plain model of what the files hold.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gpufeed_engine::transport::{Clock, Data, Done, Lane, Transport};
use gpufeed_io::arena::Arena;
use gpufeed_io::payload::Payloads;
use gpufeed_transports::file::{FileConfig, FileLane, FileStore, FileTarget, Fsync};
use gpufeed_workloads::op::{Carrier, Condition, ErrorKind, Key, KeyStyle, Names, Op, Space};
use proptest::prelude::*;

fn names() -> Arc<Names> {
    let space = |before: &str| Space { before: before.into(), after: ".bin".into(), style: KeyStyle::Index(4) };
    Arc::new(Names { spaces: vec![space("data/deep/x_"), space("../outside/"), space("data/deep/x_0001.bin/")] })
}

const fn key(space: u16, id: u64) -> Key {
    Key { space, rank: 0, id, ..Key::ZERO }
}

/// Every combination of page cache and io_uring, on a real file system below the build directory.
fn ways(root: &Path) -> Vec<FileConfig> {
    let mut ways = Vec::new();
    for direct in [true, false] {
        for io_uring in [true, false] {
            let fsync = if direct { Fsync::Always } else { Fsync::Never };
            ways.push(FileConfig {
                direct,
                io_uring,
                fsync,
                ..FileConfig::new(root.join(format!("{direct}-{io_uring}")))
            });
        }
    }
    ways
}

fn directory() -> tempfile::TempDir {
    // `/tmp` may be in memory; where the test binary lies usually is not.
    let here = std::env::current_exe().expect("own path");
    tempfile::tempdir_in(here.parent().expect("a directory")).expect("a directory")
}

fn target(store: &FileStore, buf_bytes: usize) -> FileTarget {
    let arena = Arena::new(buf_bytes, 8).expect("small");
    FileTarget::new(store.clone(), names(), arena, Clock::new(Instant::now())).expect("a ring")
}

fn block_on<F: Future>(target: &FileTarget, test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::select! {
            done = test => done,
            () = target.turn() => unreachable!("turns for ever"),
            () = tokio::time::sleep(Duration::from_secs(120)) => panic!("an operation never completed"),
        }
    })
}

async fn ok(lane: &mut FileLane, op: Op, data: &mut Data) -> Done {
    let done = lane.call(&op, data).await;
    assert!(done.result.is_ok(), "{op:?}: {:?}", done.result);
    assert!(done.sent <= done.first_byte && done.first_byte <= done.done);
    done
}

async fn fails(lane: &mut FileLane, op: Op, data: &mut Data) -> (ErrorKind, String) {
    let error = lane.call(&op, data).await.result.expect_err("an error");
    (error.kind, error.to_string())
}

fn payload(id: u64, bytes: usize) -> Bytes {
    let mut all = vec![0; bytes];
    Payloads::new(5).of(&names().of(key(0, id))).fill(0, &mut all);
    all.into()
}

#[test]
fn written_objects_are_read_listed_and_removed() {
    let root = directory();
    for config in ways(root.path()) {
        let store = FileStore::open(&config).expect("a directory");
        let target = target(&store, 1 << 20);
        block_on(&target, async {
            let mut lane = target.lane().await.expect("opens");
            let (a, b) = (key(0, 1), key(0, 2));
            // From aligned memory, from any memory, and made while it is written; whole pages and not.
            let mut aligned = target.arena().take().expect("free");
            aligned.spare()[..10_000].copy_from_slice(&payload(1, 10_000));
            aligned.set_len(10_000);
            let done = ok(&mut lane, Op::put(a, 10_000), &mut Data::From(aligned.freeze())).await;
            assert_eq!((done.bytes, done.carrier), (10_000, store.carrier()));
            let derived = Payloads::new(5).of(&names().of(b));
            ok(&mut lane, Op::multipart(b, 9 << 20, 5 << 20), &mut Data::Derived(derived)).await;
            let mut unaligned = vec![7; 8193];
            unaligned[1..].copy_from_slice(&payload(3, 8192));
            ok(&mut lane, Op::put(key(0, 3), 8192), &mut Data::From(Bytes::from(unaligned).slice(1..))).await;
            ok(&mut lane, Op::put(key(0, 4), 0), &mut Data::None).await;

            for (id, bytes) in [(1, 10_000), (2, 9 << 20), (3, 8192), (4, 0)] {
                let on_disk = std::fs::read(config.root.join(names().of(key(0, id)))).expect("a file");
                assert!(on_disk == payload(id, bytes), "object {id} of {config:?}");
                let done = ok(&mut lane, Op::get(key(0, id), bytes as u64), &mut Data::Discard).await;
                assert_eq!(done.bytes, bytes as u64);
                ok(&mut lane, Op::stat(key(0, id)), &mut Data::None).await;
            }
            ok(&mut lane, Op::list(0, 1000), &mut Data::None).await;
            let listed = store.list("data/deep/x_").expect("lists");
            assert_eq!(listed.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(), [10_000, 9 << 20, 8192, 0]);
            assert_eq!(listed[0].0, names().of(a));

            ok(&mut lane, Op::delete(a), &mut Data::None).await;
            ok(&mut lane, Op::delete(a), &mut Data::None).await;
            assert_eq!(fails(&mut lane, Op::get(a, 10_000), &mut Data::Discard).await.0, ErrorKind::NotFound);
            assert_eq!(fails(&mut lane, Op::stat(a), &mut Data::None).await.0, ErrorKind::NotFound);
        });
        assert_eq!(store.delete_prefix("data/deep/x_").expect("removes"), 3);
        assert!(!config.root.join("data").exists(), "empty directories go with their last file");
        assert_eq!(std::fs::read_dir(config.root.join(".gpufeed-tmp")).expect("there").count(), 0);
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let root = directory();
    for config in ways(root.path()) {
        let store = FileStore::open(&config).expect("a directory");
        let target = target(&store, 1 << 20);
        block_on(&target, async {
            let mut lane = target.lane().await.expect("opens");
            let (kind, said) =
                fails(&mut lane, Op::put(key(1, 1), 4), &mut Data::From(Bytes::from_static(b"abcd"))).await;
            assert_eq!(kind, ErrorKind::Client);
            assert!(said.contains("`../outside/0001.bin` cannot be a file name"), "{said}");
            ok(&mut lane, Op::put(key(0, 1), 4), &mut Data::From(Bytes::from_static(b"abcd"))).await;
            // An object cannot also be a directory.
            let (kind, said) =
                fails(&mut lane, Op::put(key(2, 1), 4), &mut Data::From(Bytes::from_static(b"abcd"))).await;
            assert!(matches!(kind, ErrorKind::Client | ErrorKind::Condition), "{said}");
            let absent = Op { condition: Condition::IfAbsent, ..Op::put(key(0, 1), 4) };
            let (kind, _) = fails(&mut lane, absent, &mut Data::From(Bytes::from_static(b"wxyz"))).await;
            assert_eq!(kind, ErrorKind::Condition);
            let absent = Op { condition: Condition::IfAbsent, ..Op::put(key(0, 2), 4) };
            ok(&mut lane, absent, &mut Data::From(Bytes::from_static(b"wxyz"))).await;
            assert_eq!(std::fs::read(config.root.join("data/deep/x_0001.bin")).expect("there"), b"abcd");
            let (kind, said) = fails(&mut lane, Op::get(key(0, 1), 5), &mut Data::Discard).await;
            assert_eq!(kind, ErrorKind::ShortBody);
            assert!(said.contains("4 bytes long, not 5"), "{said}");
            assert_eq!(fails(&mut lane, Op::get_range(key(0, 1), 2, 5), &mut Data::Hold).await.0, ErrorKind::ShortBody);
            assert_eq!(fails(&mut lane, Op::put(key(0, 1), 5), &mut Data::None).await.0, ErrorKind::Client);
        });
        assert_eq!(std::fs::read_dir(config.root.join(".gpufeed-tmp")).expect("there").count(), 0);
    }
}

#[test]
fn other_cores_see_what_was_written_over_and_removed() {
    let root = directory();
    let store = FileStore::open(&FileConfig::new(root.path())).expect("a directory");
    let (one, other) = (target(&store, 4096), target(&store, 4096));
    let put = |text: &'static [u8]| {
        block_on(&one, async {
            let mut lane = one.lane().await.expect("opens");
            ok(&mut lane, Op::put(key(0, 1), text.len() as u64), &mut Data::From(Bytes::from_static(text))).await;
        });
    };
    let read = |bytes| {
        block_on(&other, async {
            let mut lane = other.lane().await.expect("opens");
            let mut data = Data::Into { buf: other.arena().take().expect("free"), from: 0 };
            ok(&mut lane, Op::get(key(0, 1), bytes), &mut data).await;
            let Data::Into { buf, .. } = data else { panic!("the buffer comes back") };
            buf.to_vec()
        })
    };
    put(b"first");
    assert_eq!((read(5), read(5)), (b"first".to_vec(), b"first".to_vec()));
    put(b"seconds");
    assert_eq!(read(7), b"seconds");
}

#[test]
fn a_dropped_read_gives_its_buffer_back_to_the_pool_and_leaves_the_lane_usable() {
    let root = directory();
    for config in ways(root.path()) {
        let store = FileStore::open(&config).expect("a directory");
        let target = target(&store, 1 << 20);
        block_on(&target, async {
            let mut lane = target.lane().await.expect("opens");
            let bytes = payload(1, 1 << 20);
            ok(&mut lane, Op::put(key(0, 1), 1 << 20), &mut Data::From(bytes.clone())).await;
            for _ in 0..20 {
                let mut data = Data::Into { buf: target.arena().take().expect("free"), from: 0 };
                {
                    let op = Op::get(key(0, 1), 1 << 20);
                    let mut call = Box::pin(lane.call(&op, &mut data));
                    let _ = std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx))).await;
                }
                drop(data);
                let mut data = Data::Into { buf: target.arena().take().expect("free"), from: 0 };
                ok(&mut lane, Op::get(key(0, 1), 1 << 20), &mut data).await;
                let Data::Into { buf, .. } = data else { panic!("the buffer comes back") };
                assert!(buf[..] == bytes[..]);
                drop(buf);
                while target.arena().free() < 8 {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
}

#[test]
fn a_file_system_in_memory_is_called_cached() {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return;
    }
    let Ok(root) = tempfile::tempdir_in(memory) else { return };
    let store = FileStore::open(&FileConfig::new(root.path())).expect("a directory");
    assert_eq!(store.carrier(), Carrier::FileCached);
    assert!(store.notes().iter().any(|note| note.contains("page cache")), "{:?}", store.notes());
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let error = FileStore::open(&FileConfig::new("/proc/gpufeed")).expect_err("nobody writes there");
    assert!(error.to_string().starts_with("cannot make the directory /proc/gpufeed"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_range_lands_in_any_window(
        bytes in 1usize..40_000,
        at in any::<prop::sample::Index>(),
        len in any::<prop::sample::Index>(),
        from in prop_oneof![Just(0usize), 0usize..20_000],
        pages in 1usize..12,
        whole: bool,
    ) {
        let offset = if whole { 0 } else { at.index(bytes) };
        let len = if whole { bytes } else { 1 + len.index(bytes - offset) };
        let root = directory();
        for config in ways(root.path()) {
            let store = FileStore::open(&FileConfig { fsync: Fsync::Never, ..config }).expect("a directory");
            let target = target(&store, pages * 4096);
            let all = payload(1, bytes);
            let (read, got) = block_on(&target, async {
                let mut lane = target.lane().await.expect("opens");
                ok(&mut lane, Op::put(key(0, 1), bytes as u64), &mut Data::From(all.clone())).await;
                let op = if whole {
                    Op::get(key(0, 1), bytes as u64)
                } else {
                    Op::get_range(key(0, 1), offset as u64, len as u64)
                };
                let mut data = Data::Into { buf: target.arena().take().expect("free"), from: from as u64 };
                let done = ok(&mut lane, op, &mut data).await;
                let Data::Into { buf, .. } = data else { panic!("the buffer comes back") };
                (done.bytes, buf.to_vec())
            });
            let window = &all[offset + from.min(len)..(offset + len).min(offset + from.min(len) + pages * 4096)];
            prop_assert_eq!(read, len as u64);
            prop_assert!(got == window, "{} bytes of {}", got.len(), window.len());
        }
    }
}
