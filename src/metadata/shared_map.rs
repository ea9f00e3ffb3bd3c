//! An ordered map whose clones share what they have in common.
//!
//! The node takes a view of the catalog at every turn, while thousands of partitions report their leaders one by one: a
//! plain map would be copied whole for each. This one is a sorted list of sorted chunks, both behind reference counts. A
//! clone costs one count; a change after it copies the list of chunks (one count for each `CHUNK_MAX` entries) and the one chunk
//! that it touches. It is a two-level B-tree: enough for the sizes that `limits` allows, and small enough to be seen through.

use std::borrow::Borrow;
use std::sync::Arc;

/// Most entries of one chunk.
const CHUNK_MAX: usize = 128;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// An ordered map with cheap clones. Keys and values should be cheap to clone themselves: numbers and `Arc`s.
#[derive(Clone, Debug)]
pub struct SharedMap<K, V> {
    /// Invariant: no chunk is empty; keys ascend within and across chunks.
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        SharedMap { chunks: Arc::default(), len: 0 }
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value under `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let chunk = &self.chunks[self.chunk_of(key)?];
        let at = chunk.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
        Some(&chunk[at].1)
    }

    /// Puts a value under a key and returns the one that was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.chunk_of(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(at) = at else {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len += 1;
            return None;
        };
        let (full, last) = (chunks[at].len() == CHUNK_MAX, at + 1 == chunks.len());
        let chunk = Arc::make_mut(&mut chunks[at]);
        let within = match chunk.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(within) => return Some(std::mem::replace(&mut chunk[within].1, value)),
            Err(within) => within,
        };
        self.len += 1;
        if !full {
            chunk.insert(within, (key, value));
        } else if last && within == CHUNK_MAX {
            // Keys that only ever grow, as groups and revisions do, leave full chunks behind.
            chunks.push(Arc::new(vec![(key, value)]));
        } else {
            let mut upper = chunk.split_off(CHUNK_MAX / 2);
            match within.checked_sub(CHUNK_MAX / 2) {
                None => chunk.insert(within, (key, value)),
                Some(within) => upper.insert(within, (key, value)),
            }
            chunks.insert(at + 1, Arc::new(upper));
        }
        None
    }

    /// Takes an entry out. Neighbouring chunks that fit into one half-full chunk are joined.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.chunk_of(key)?;
        let within = self.chunks[at].binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let (_, removed) = Arc::make_mut(&mut chunks[at]).remove(within);
        self.len -= 1;
        if chunks[at].is_empty() {
            chunks.remove(at);
        } else if let Some(next) = chunks.get(at + 1).filter(|next| chunks[at].len() + next.len() <= CHUNK_MAX / 2) {
            let next = next.clone();
            Arc::make_mut(&mut chunks[at]).extend(next.iter().cloned());
            chunks.remove(at + 1);
        }
        Some(removed)
    }

    /// The entry with the lowest key.
    #[must_use]
    pub fn first(&self) -> Option<(&K, &V)> {
        self.chunks.first()?.first().map(|(key, value)| (key, value))
    }

    /// The entry with the highest key.
    #[must_use]
    pub fn last(&self) -> Option<(&K, &V)> {
        self.chunks.last()?.last().map(|(key, value)| (key, value))
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + Clone {
        self.chunks.iter().flat_map(|chunk| chunk.iter().map(|(key, value)| (key, value)))
    }

    /// All values in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// The entries whose keys lie above `key`, in order.
    pub fn after<'a>(&'a self, key: &'a K) -> impl Iterator<Item = (&'a K, &'a V)> {
        let start = self.chunk_of(key).unwrap_or(0);
        let entries = self.chunks[start..].iter().flat_map(|chunk| chunk.iter());
        entries.map(|(k, value)| (k, value)).skip_while(move |(k, _)| *k <= key)
    }

    /// The chunk that holds `key` or would take it; `None` if there are no chunks.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
    {
        let above = self.chunks.partition_point(|chunk| chunk[0].0.borrow() <= key);
        (!self.chunks.is_empty()).then(|| above.saturating_sub(1))
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = SharedMap::default();
        entries.into_iter().for_each(|(key, value)| drop(map.insert(key, value)));
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::StdRng, Rng, SeedableRng};
    use std::collections::BTreeMap;

    fn check(map: &SharedMap<u32, u32>, model: &BTreeMap<u32, u32>) {
        assert_eq!(map.len(), model.len());
        assert!(map.iter().eq(model.iter()));
        assert!(map.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_MAX));
        assert_eq!(map.first(), model.first_key_value());
        assert_eq!(map.last(), model.last_key_value());
    }

    #[test]
    fn it_holds_what_an_ordered_map_holds() {
        for seed in 0..40 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut map, mut model) = (SharedMap::default(), BTreeMap::new());
            let range = if seed % 2 == 0 { 300 } else { 3_000 };
            for step in 0..4_000u32 {
                let key = rng.gen_range(0..range);
                if rng.gen_bool(if step < 2_000 { 0.8 } else { 0.2 }) {
                    assert_eq!(map.insert(key, step), model.insert(key, step));
                } else {
                    assert_eq!(map.remove(&key), model.remove(&key));
                }
                assert_eq!(map.get(&key), model.get(&key));
                if step % 97 == 0 {
                    check(&map, &model);
                    assert!(map.after(&key).eq(model.range(key + 1..)), "after {key}");
                }
            }
            check(&map, &model);
        }
    }

    #[test]
    fn a_clone_never_changes() {
        let mut map: SharedMap<u32, u32> = (0..1_000).map(|key| (key, key)).collect();
        let clone = map.clone();
        for key in 0..1_000 {
            if key % 3 == 0 {
                map.remove(&key);
            } else {
                map.insert(key, 7);
            }
        }
        assert!(clone.iter().map(|(key, value)| (*key, *value)).eq((0..1_000).map(|key| (key, key))));
    }

    #[test]
    fn ascending_keys_fill_their_chunks_and_a_change_copies_one() {
        let mut map: SharedMap<u32, u32> = (0..12_800).map(|key| (key, key)).collect();
        assert_eq!(map.chunks.len(), 100);
        let clone = map.clone();
        map.insert(5_000, 0);
        let copied = map.chunks.iter().zip(clone.chunks.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!(copied, 1);
    }
}
