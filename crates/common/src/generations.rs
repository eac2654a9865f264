//! A map of what was used lately, with a bound: two generations, the elder of which goes when the younger is half of what may be kept.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;

pub struct Generations<K, V> {
    capacity: usize,
    /// Young and old.
    generations: Mutex<(HashMap<K, V>, HashMap<K, V>)>,
}

impl<K: Eq + Hash, V: Clone> Generations<K, V> {
    pub fn new(capacity: usize) -> Self {
        Self { capacity, generations: Mutex::default() }
    }

    /// Whether there is any room.
    pub fn is_enabled(&self) -> bool {
        self.capacity > 0
    }

    /// What was kept; it is young again.
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let mut generations = self.generations.lock();
        if let Some(value) = generations.0.get(key) {
            return Some(value.clone());
        }
        let (key, value) = generations.1.remove_entry(key)?;
        self.add(&mut generations, key, value.clone());
        Some(value)
    }

    pub fn remove<Q: Eq + Hash + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let mut generations = self.generations.lock();
        generations.0.remove(key);
        generations.1.remove(key);
    }

    pub fn insert(&self, key: K, value: V) {
        if !self.is_enabled() {
            return;
        }
        self.add(&mut self.generations.lock(), key, value);
    }

    fn add(&self, (young, old): &mut (HashMap<K, V>, HashMap<K, V>), key: K, value: V) {
        if young.len() >= self.capacity.div_ceil(2) {
            *old = std::mem::take(young);
        }
        young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eldest_are_forgotten() {
        let kept = Generations::new(4);
        for n in 0..6 {
            kept.insert(n, n);
            // What is asked for stays.
            assert_eq!(kept.get(&0), Some(0));
        }
        let found: Vec<bool> = (0..6).map(|n| kept.get(&n).is_some()).collect();
        assert_eq!(found, [true, false, false, false, true, true]);
    }

    #[test]
    fn there_are_never_more_however_often_all_are_asked_for() {
        let kept = Generations::new(4);
        for n in 0..100 {
            kept.insert(n, n);
            for n in 0..=n {
                kept.get(&n);
            }
            let generations = kept.generations.lock();
            assert!(generations.0.len() + generations.1.len() <= 4);
        }
    }

    #[test]
    fn what_is_removed_is_gone_from_either_generation() {
        let kept = Generations::new(4);
        (0..4).for_each(|n| kept.insert(n, n));
        (0..4).for_each(|n| kept.remove(&n));
        assert!((0..4).all(|n| kept.get(&n).is_none()));
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let kept = Generations::new(0);
        kept.insert(1, 1);
        assert!(!kept.is_enabled() && kept.get(&1).is_none());
    }
}
