//! Where the bytes of an answer land in an operation's buffer.

use gpufeed_io::arena::Buf;

/// Copies the part of a chunk, which starts at byte `start` of the answer, that lies in the window `from..from + capacity` of the answer.
pub fn land(buf: &mut Buf, from: u64, start: u64, chunk: &[u8]) {
    let skip = usize::try_from(from.saturating_sub(start)).unwrap_or(usize::MAX).min(chunk.len());
    let chunk = &chunk[skip..];
    let at = usize::try_from((start + skip as u64).saturating_sub(from)).unwrap_or(usize::MAX);
    let room = buf.capacity().saturating_sub(at);
    let len = chunk.len().min(room);
    if len > 0 {
        buf.spare()[at..at + len].copy_from_slice(&chunk[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpufeed_io::arena::Arena;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_of_any_size_leave_the_window_of_the_answer(
            from in 0usize..9000,
            cuts in prop::collection::vec(1usize..3000, 0..12),
        ) {
            let arena = Arena::new(4096, 1).expect("small");
            let mut buf = arena.take().expect("free");
            buf.spare().fill(0xee);
            let total: usize = cuts.iter().sum();
            let answer: Vec<u8> = (0..total).map(|i| (i % 251) as u8).collect();
            let mut at = 0;
            for cut in cuts {
                land(&mut buf, from as u64, at as u64, &answer[at..at + cut]);
                at += cut;
            }
            let window = &answer[from.min(total)..total.min(from + 4096)];
            prop_assert_eq!(&buf.spare()[..window.len()], window);
            prop_assert!(buf.spare()[window.len()..].iter().all(|&b| b == 0xee));
        }
    }
}
