//! MD5 of small bodies that are asked for at about the same time.
//!
//! Who has read a body adds it to a group; who needs a digest computes it together with those of fifteen others that are there
//! and have not been asked for ([`super::kernels`]): sixteen at a time cost little more than one. Nobody waits for others to come,
//! nor for somebody else's computation: a body that is in other hands at that moment is hashed once more, alone.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;

use super::kernels::{Block, INITIAL, MAX_LANES, State, compress_many};
use super::{digest_of, md5};

/// Bodies whose digests nobody has asked for. Clones share them.
#[derive(Clone, Default)]
pub struct Md5Group(Arc<Mutex<Vec<Arc<Member>>>>);

struct Member {
    body: Bytes,
    digest: OnceLock<[u8; 16]>,
}

impl Md5Group {
    pub fn add(&self, body: Bytes) -> GroupedMd5 {
        let member = Arc::new(Member { body, digest: OnceLock::new() });
        self.0.lock().push(member.clone());
        GroupedMd5 { group: self.clone(), member }
    }

    /// Takes a member, if it is still there, and others of those that have been there for the longest.
    fn take_with_company(&self, member: &Arc<Member>) -> Vec<Arc<Member>> {
        let mut members = self.0.lock();
        let Some(at) = members.iter().position(|other| Arc::ptr_eq(other, member)) else { return Vec::new() };
        members.swap(0, at);
        let count = members.len().min(MAX_LANES);
        members.drain(..count).collect()
    }
}

/// The digest of a body that has been added to a group.
pub struct GroupedMd5 {
    group: Md5Group,
    member: Arc<Member>,
}

impl GroupedMd5 {
    pub fn digest(&self) -> [u8; 16] {
        if let Some(digest) = self.member.digest.get() {
            return *digest;
        }
        let company = self.group.take_with_company(&self.member);
        let bodies: Vec<&[u8]> = company.iter().map(|member| &member.body[..]).collect();
        for (member, digest) in company.iter().zip(md5_of_each(&bodies)) {
            // Its owner may have hashed it meanwhile, to the same digest.
            let _ = member.digest.set(digest);
        }
        *self.member.digest.get_or_init(|| md5(&self.member.body))
    }
}

impl Drop for GroupedMd5 {
    fn drop(&mut self) {
        if self.member.digest.get().is_none() {
            self.group.0.lock().retain(|other| !Arc::ptr_eq(other, &self.member));
        }
    }
}

/// A body on its way through the kernels.
struct Lane<'a> {
    state: State,
    /// What comes next.
    blocks: &'a [Block],
    /// What comes after that: the rest of the body and its length.
    end: &'a [Block],
}

/// The digests of at most [`MAX_LANES`] bodies.
fn md5_of_each(bodies: &[&[u8]]) -> Vec<[u8; 16]> {
    let ends: Vec<Vec<Block>> = bodies.iter().map(|body| end_of(body)).collect();
    let mut lanes: Vec<Lane<'_>> = bodies
        .iter()
        .zip(&ends)
        .map(|(body, end)| Lane { state: INITIAL, blocks: body.as_chunks().0, end })
        .collect();
    loop {
        let mut live: Vec<&mut Lane<'_>> = lanes.iter_mut().filter_map(Lane::with_blocks).collect();
        let Some(blocks) = live.iter().map(|lane| lane.blocks.len()).min() else { break };
        let data: Vec<&[Block]> = live.iter().map(|lane| lane.blocks).collect();
        let mut states: Vec<State> = live.iter().map(|lane| lane.state).collect();
        compress_many(&mut states, &data, blocks);
        for (lane, state) in live.iter_mut().zip(states) {
            lane.state = state;
            lane.blocks = &lane.blocks[blocks..];
        }
    }
    lanes.iter().map(|lane| digest_of(lane.state)).collect()
}

impl Lane<'_> {
    /// `None` if it has reached its end.
    fn with_blocks(&mut self) -> Option<&mut Self> {
        if self.blocks.is_empty() {
            self.blocks = std::mem::take(&mut self.end);
        }
        (!self.blocks.is_empty()).then_some(self)
    }
}

/// What of a body does not fill a block, padded, with the body's length in bits.
fn end_of(body: &[u8]) -> Vec<Block> {
    let rest = body.as_chunks::<64>().1;
    let mut end = vec![[0; 64]; if rest.len() < 56 { 1 } else { 2 }];
    let bytes = end.as_flattened_mut();
    bytes[..rest.len()].copy_from_slice(rest);
    bytes[rest.len()] = 0x80;
    let length_at = bytes.len() - 8;
    bytes[length_at..].copy_from_slice(&(body.len() as u64).wrapping_mul(8).to_le_bytes());
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use md5::Digest;
    use proptest::prelude::*;

    fn expected(body: &[u8]) -> [u8; 16] {
        md5::Md5::digest(body).into()
    }

    fn body(n: usize, length: usize) -> Bytes {
        (0..length).map(|i| (i * 31 + i / 251 + n * 97) as u8).collect()
    }

    proptest! {
        #[test]
        fn each_of_a_group_has_its_own_digest_in_any_order_of_asking(
            lengths in proptest::collection::vec(0..700usize, 1..40),
            picks in proptest::collection::vec(any::<proptest::sample::Index>(), 40),
            dropped in 0..4usize,
        ) {
            let group = Md5Group::default();
            let mut left: Vec<_> =
                lengths.iter().enumerate().map(|(n, length)| (body(n, *length), group.add(body(n, *length)))).collect();
            for (n, pick) in picks.iter().enumerate() {
                if left.is_empty() {
                    break;
                }
                let (body, md5) = left.swap_remove(pick.index(left.len()));
                if n >= dropped {
                    prop_assert_eq!(md5.digest(), expected(&body));
                }
            }
            drop(left);
            prop_assert!(group.0.lock().is_empty());
        }
    }

    #[test]
    fn who_asks_first_hashes_for_the_others() {
        let group = Md5Group::default();
        let md5s: Vec<_> = (0..20).map(|n| group.add(body(n, 4096 + n))).collect();
        md5s[7].digest();
        let done = |n: usize| md5s[n].member.digest.get().copied();
        assert_eq!((0..20).filter(|n| done(*n).is_some()).count(), MAX_LANES);
        assert_eq!(done(0), Some(expected(&body(0, 4096))));
        assert_eq!(done(19), None);
        assert_eq!(md5s[19].digest(), expected(&body(19, 4096 + 19)));
    }

    #[test]
    fn a_body_that_another_thread_has_taken_is_not_waited_for() {
        let group = Md5Group::default();
        let md5 = group.add(body(0, 5000));
        let taken = group.take_with_company(&md5.member);
        assert_eq!(taken.len(), 1);
        assert_eq!(md5.digest(), expected(&body(0, 5000)));
    }
}
