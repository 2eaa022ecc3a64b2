//! Which objects there are, for clients that ask before they write or read.

use rustc_hash::FxHashSet;

use super::{Answer, Storage};
use crate::op::{Condition, ErrorKind, Key, Op, Tick, Verb};

/// Storage that begins empty and knows what was written to it since: other objects are not found, and writes on the
/// condition that there is none fail where there is one. Both take effect when an operation is admitted.
#[derive(Debug)]
pub struct Present<S> {
    storage: S,
    /// None where nobody asks: millions of objects need not be remembered for that.
    objects: Option<FxHashSet<Key>>,
}

impl<S> Present<S> {
    /// `storage`, empty.
    pub fn new(storage: S) -> Self {
        Self { storage, objects: Some(FxHashSet::default()) }
    }

    /// `storage` for somebody who knows by himself what he wrote: it holds whatever it is asked for.
    pub const fn unasked(storage: S) -> Self {
        Self { storage, objects: None }
    }
}

impl<S: Storage> Storage for Present<S> {
    fn admit(&mut self, op: &Op, now: Tick) -> Answer {
        let mut answer = self.storage.admit(op, now);
        if answer.result.is_err() {
            return answer;
        }
        let Some(objects) = &mut self.objects else { return answer };
        let there = objects.contains(&op.key);
        match op.verb {
            Verb::Get | Verb::Stat if !there => answer.result = Err(ErrorKind::NotFound),
            Verb::Put if there && op.condition == Condition::IfAbsent => answer.result = Err(ErrorKind::Condition),
            Verb::Put | Verb::Multipart => _ = objects.insert(op.key),
            Verb::Delete => _ = objects.remove(&op.key),
            Verb::Get | Verb::Stat | Verb::List => {}
        }
        answer
    }

    fn concurrency(&self) -> usize {
        self.storage.concurrency()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Instant;

    #[test]
    fn what_was_written_is_there_and_nothing_else() {
        let mut storage = Present::new(Instant);
        let key = Key { id: 7, ..Key::ZERO };
        let mut result = |op: Op| storage.admit(&op, Tick::ZERO).result;
        let absent = Op { condition: Condition::IfAbsent, ..Op::put(key, 3) };
        assert_eq!(result(Op::stat(key)), Err(ErrorKind::NotFound));
        assert_eq!(result(Op::get(key, 3)), Err(ErrorKind::NotFound));
        assert_eq!(result(absent), Ok(()));
        assert_eq!(result(absent), Err(ErrorKind::Condition));
        assert_eq!(result(Op::get(key, 3)), Ok(()));
        assert_eq!(result(Op::stat(Key { rank: 1, ..key })), Err(ErrorKind::NotFound));
        assert_eq!(result(Op::delete(key)), Ok(()));
        assert_eq!(result(Op::stat(key)), Err(ErrorKind::NotFound));
    }
}
