//! Keys in order: a bucket's objects, and listing them.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::Entry;

/// What to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListQuery<'a> {
    /// Keys must begin with this.
    pub prefix: &'a str,
    /// Keys are rolled up to the first of these behind the prefix; empty for none.
    pub delimiter: &'a str,
    /// Only keys after this one; one that equals a rolled-up prefix skips all of it. Empty for none.
    pub after: &'a str,
    /// Most keys and rolled-up prefixes together.
    pub limit: usize,
}

/// A page of a listing.
#[derive(Debug)]
pub struct Listing<B> {
    /// Keys and their objects, in order.
    pub entries: Vec<(String, Arc<Entry<B>>)>,
    /// Rolled-up prefixes, in order.
    pub prefixes: Vec<String>,
    /// Where the next page begins ([`ListQuery::after`]), if there is one.
    pub next: Option<String>,
}

/// A key that can be looked up by bytes: text orders as its bytes do, and the end of a prefix need not be text.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key(Box<str>);

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The objects of one bucket.
#[derive(Debug)]
pub(super) struct Index<B>(BTreeMap<Key, Arc<Entry<B>>>);

impl<B> Default for Index<B> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<B> Index<B> {
    pub(super) fn get(&self, key: &str) -> Option<&Arc<Entry<B>>> {
        self.0.get(key.as_bytes())
    }

    pub(super) fn insert(&mut self, key: &str, entry: Arc<Entry<B>>) -> Option<Arc<Entry<B>>> {
        self.0.insert(Key(key.into()), entry)
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<Arc<Entry<B>>> {
        self.0.remove(key.as_bytes())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// A page of the keys.
    pub(super) fn list(&self, query: &ListQuery<'_>) -> Listing<B> {
        let mut page = Listing { entries: Vec::new(), prefixes: Vec::new(), next: None };
        let mut last: &str = "";
        let mut from = if query.after.as_bytes() >= query.prefix.as_bytes() && !query.after.is_empty() {
            Bound::Excluded(query.after.as_bytes().to_vec())
        } else {
            Bound::Included(query.prefix.as_bytes().to_vec())
        };
        loop {
            let bounds = (from.as_ref().map(Vec::as_slice), Bound::Unbounded);
            let mut skip_to = None;
            for (Key(key), entry) in self.0.range::<[u8], _>(bounds) {
                let Some(rest) = key.strip_prefix(query.prefix) else { return page };
                let rolled = (!query.delimiter.is_empty())
                    .then(|| rest.find(query.delimiter))
                    .flatten()
                    .map(|at| &key[..query.prefix.len() + at + query.delimiter.len()]);
                if rolled.is_some_and(|group| group == query.after) {
                    skip_to = rolled;
                    break;
                }
                if page.entries.len() + page.prefixes.len() == query.limit {
                    page.next = (query.limit > 0).then(|| last.to_owned());
                    return page;
                }
                if let Some(group) = rolled {
                    page.prefixes.push(group.to_owned());
                    last = group;
                    skip_to = rolled;
                    break;
                }
                page.entries.push((key.to_string(), Arc::clone(entry)));
                last = key;
            }
            match skip_to {
                Some(group) => from = Bound::Included(end_of(group)),
                None => return page,
            }
        }
    }
}

/// The first byte string after all that begin with `prefix`, which is text and not empty: no byte of text is 0xff.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::super::{Etag, Meta};
    use super::*;

    fn index(keys: &BTreeSet<String>) -> Index<()> {
        let mut index = Index::default();
        for key in keys {
            let meta = Meta {
                len: 0,
                etag: Etag::Fast(0),
                modified: SystemTime::UNIX_EPOCH,
                attributes: None,
                checksums: None,
                part_lens: None,
            };
            index.insert(key, Arc::new(Entry { meta, body: () }));
        }
        index
    }

    /// Rolled up one key at a time, as the S3 manual words it.
    fn reference(keys: &BTreeSet<String>, prefix: &str, delimiter: &str, after: &str) -> Vec<String> {
        let mut all = Vec::new();
        for key in keys.iter().filter(|key| key.starts_with(prefix) && (after.is_empty() || key.as_str() > after)) {
            let rest = &key[prefix.len()..];
            let name = match rest.split_once(delimiter) {
                Some((head, _)) if !delimiter.is_empty() => format!("{prefix}{head}{delimiter}"),
                _ => key.clone(),
            };
            if name != after && all.last() != Some(&name) {
                all.push(name);
            }
        }
        all
    }

    proptest! {
        #[test]
        fn pages_join_to_the_reference(
            keys in prop::collection::btree_set("[ab/é]{1,6}", 0..40),
            prefix in "[ab/é]{0,2}",
            delimiter in prop::sample::select(vec!["", "/", "é", "b/"]),
            after in prop::option::of("[ab/é]{1,4}"),
            limit in 1usize..7,
        ) {
            let index = index(&keys);
            let start = after.unwrap_or_default();
            let mut after = start.clone();
            let mut all = Vec::new();
            loop {
                let page = index.list(&ListQuery { prefix: &prefix, delimiter, after: &after, limit });
                prop_assert!(page.entries.len() + page.prefixes.len() <= limit);
                let mut names: Vec<_> = page.entries.into_iter().map(|(key, _)| key).chain(page.prefixes).collect();
                names.sort();
                all.extend(names);
                match page.next {
                    Some(next) => after = next,
                    None => break,
                }
            }
            prop_assert_eq!(all, reference(&keys, &prefix, delimiter, &start));
        }
    }

    #[test]
    fn no_keys_are_asked_for() {
        let index = index(&["a".to_owned()].into());
        let page = index.list(&ListQuery { limit: 0, ..ListQuery::default() });
        assert!(page.entries.is_empty() && page.next.is_none());
    }
}
