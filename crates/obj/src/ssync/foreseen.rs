//! What the receiver of a session will surely want, rebuilt before it has said so.
//!
//! Of a suffix in which it has no fragment of its own it lacks every object. The first few of those are made while the session waits
//! for its turn: a receiver takes one at a time for each device, so that whatever is done while it listens holds up all others.
//! What it does not want in the end has been made by somebody else meanwhile, and is dropped.

use std::future::Future;
use std::pin::pin;

use common::hash::ObjHash;
use indexmap::IndexMap;
use service::http::BoxFuture;

use super::protocol::Wanted;
use super::update::Batch;

/// Objects of a session; each is small, or is left until it is wanted.
pub(super) const MOST_FORESEEN: usize = 4;

/// Objects in the making.
pub(super) struct Foreseen<'a> {
    objects: Vec<ObjHash>,
    making: BoxFuture<'a, Batch>,
    made: Option<Batch>,
}

impl<'a> Foreseen<'a> {
    pub(super) fn new(objects: Vec<ObjHash>, making: impl Future<Output = Batch> + Send + 'a) -> Self {
        Self { made: objects.is_empty().then(Vec::new), objects, making: Box::pin(making) }
    }

    /// Does something else, and goes on making them meanwhile.
    pub(super) async fn beside<T>(&mut self, something: impl Future<Output = T>) -> T {
        let mut something = pin!(something);
        loop {
            tokio::select! {
                done = &mut something => return done,
                made = &mut self.making, if self.made.is_none() => self.made = Some(made),
            }
        }
    }

    /// Those that are wanted, which they are no longer then.
    pub(super) async fn take(self, wanted: &mut IndexMap<ObjHash, Wanted>) -> Batch {
        const ALL: Wanted = Wanted { data: true, meta: true };
        if !self.objects.iter().any(|hash| wanted.get(hash) == Some(&ALL)) {
            return Vec::new();
        }
        let mut made = match self.made {
            Some(made) => made,
            None => self.making.await,
        };
        made.retain(|(hash, _)| wanted.get(hash) == Some(&ALL));
        for (hash, _) in &made {
            wanted.shift_remove(hash);
        }
        made
    }
}

#[cfg(test)]
mod tests {
    use super::super::update::Update;
    use super::*;

    fn hash(n: u8) -> ObjHash {
        ObjHash::parse(&format!("{n:032x}")).unwrap()
    }

    fn wanted(of: &[(u8, bool, bool)]) -> IndexMap<ObjHash, Wanted> {
        of.iter().map(|(n, data, meta)| (hash(*n), Wanted { data: *data, meta: *meta })).collect()
    }

    fn hashes(updates: &[(ObjHash, Update)]) -> Vec<ObjHash> {
        updates.iter().map(|(hash, _)| *hash).collect()
    }

    async fn made(of: &[u8]) -> Batch {
        tokio::task::yield_now().await;
        of.iter().map(|n| (hash(*n), Update::default())).collect()
    }

    #[tokio::test]
    async fn what_is_wanted_as_foreseen_is_taken() {
        for made_before in [true, false] {
            let mut foreseen = Foreseen::new(vec![hash(1), hash(2), hash(3)], made(&[1, 2]));
            if made_before {
                let others = async {
                    tokio::task::yield_now().await;
                    tokio::task::yield_now().await;
                    7
                };
                assert_eq!(foreseen.beside(others).await, 7);
            }
            assert_eq!(foreseen.made.is_some(), made_before);
            let mut wanted = wanted(&[(1, false, true), (2, true, true), (3, true, true), (4, true, true)]);
            assert_eq!(hashes(&foreseen.take(&mut wanted).await), [hash(2)]);
            assert_eq!(wanted.keys().copied().collect::<Vec<_>>(), [hash(1), hash(3), hash(4)]);
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_what_is_not_wanted() {
        let foreseen = Foreseen::new(vec![hash(1)], std::future::pending());
        let mut wanted = wanted(&[(1, false, true), (2, true, true)]);
        assert!(foreseen.take(&mut wanted).await.is_empty());
        assert_eq!(wanted.len(), 2);
    }
}
