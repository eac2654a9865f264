//! A map of what was used lately, with a bound: the clock algorithm ("second chance"; Corbató, A Paging Experiment with the Multics System).
//!
//! When it is full, a hand goes round: what has not been asked for since the hand came by last makes room for what is new. So a
//! look-up only sets a flag, and everything that fits stays.

use std::hash::Hash;

use indexmap::{Equivalent, IndexMap};
use parking_lot::Mutex;

pub struct UsedLately<K, V> {
    capacity: usize,
    round: Mutex<Round<K, V>>,
}

struct Round<K, V> {
    kept: IndexMap<K, Kept<V>>,
    hand: usize,
}

struct Kept<V> {
    value: V,
    asked: bool,
}

impl<K: Eq + Hash, V: Clone> UsedLately<K, V> {
    pub fn new(capacity: usize) -> Self {
        Self { capacity, round: Mutex::new(Round { kept: IndexMap::new(), hand: 0 }) }
    }

    /// Whether there is any room.
    pub fn is_enabled(&self) -> bool {
        self.capacity > 0
    }

    pub fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<V> {
        let mut round = self.round.lock();
        let kept = round.kept.get_mut(key)?;
        kept.asked = true;
        Some(kept.value.clone())
    }

    pub fn remove<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) {
        let removed = self.round.lock().kept.swap_remove(key);
        // Without the lock.
        drop(removed);
    }

    pub fn insert(&self, key: K, value: V) {
        if !self.is_enabled() {
            return;
        }
        let kept = Kept { value, asked: false };
        let mut round = self.round.lock();
        let is_full = round.kept.len() >= self.capacity;
        let replaced = match is_full && !round.kept.contains_key(&key) {
            true => round.replace_eldest(key, kept),
            false => round.kept.insert(key, kept),
        };
        drop(round);
        drop(replaced);
    }
}

impl<K: Eq + Hash, V> Round<K, V> {
    /// The map is full, and has no such key.
    fn replace_eldest(&mut self, key: K, kept: Kept<V>) -> Option<Kept<V>> {
        loop {
            let at = self.hand % self.kept.len();
            self.hand = at + 1;
            if !std::mem::take(&mut self.kept[at].asked) {
                return match self.kept.replace_index(at, key) {
                    Ok(_) => Some(std::mem::replace(&mut self.kept[at], kept)),
                    Err((at, _)) => Some(std::mem::replace(&mut self.kept[at], kept)),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use proptest::prelude::*;

    fn found(kept: &UsedLately<u32, u32>, range: std::ops::Range<u32>) -> Vec<u32> {
        range.filter(|n| kept.round.lock().kept.contains_key(n)).collect()
    }

    #[test]
    fn what_is_not_asked_for_makes_room() {
        let kept = UsedLately::new(4);
        (0..4).for_each(|n| kept.insert(n, n));
        kept.get(&0);
        kept.get(&2);
        kept.insert(4, 4);
        kept.insert(5, 5);
        assert_eq!(found(&kept, 0..6), [0, 2, 4, 5]);
        // Each has had its second chance.
        kept.insert(6, 6);
        assert_eq!(found(&kept, 0..7), [2, 4, 5, 6]);
    }

    #[test]
    fn what_fits_stays_in_whatever_order_it_is_asked_for() {
        let kept = UsedLately::new(100);
        (0..100).for_each(|n| kept.insert(n, n));
        for n in (0..1000).map(|n| n * 7 % 100) {
            assert_eq!(kept.get(&n), Some(n));
        }
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let kept = UsedLately::new(0);
        kept.insert(1, 1);
        assert!(!kept.is_enabled() && kept.get(&1).is_none());
    }

    proptest! {
        #[test]
        fn it_gives_what_was_put_last_and_never_holds_more_than_its_bound(
            capacity in 0..6usize,
            steps in proptest::collection::vec((0..3u8, 0..10u32), 0..200),
        ) {
            let kept = UsedLately::new(capacity);
            let mut put = HashMap::new();
            for (n, (what, key)) in (0u32..).zip(steps) {
                match what {
                    0 => { kept.insert(key, n); put.insert(key, n); }
                    1 => { kept.remove(&key); put.remove(&key); }
                    _ => if let Some(value) = kept.get(&key) { prop_assert_eq!(Some(&value), put.get(&key)); }
                }
                prop_assert!(kept.round.lock().kept.len() <= capacity);
            }
        }
    }
}
