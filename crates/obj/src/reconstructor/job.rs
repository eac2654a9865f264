//! What is to be done with one partition of an EC policy: one job for each index of which there are fragments.
//!
//! Of the primaries of a partition, the first keeps fragment 0, the second fragment 1, and so on; with duplicated fragments
//! it begins again at 0. What is here of a device's own index is compared with what its partners have of theirs (sync); all
//! else belongs elsewhere (revert). Tombstones have no index: they go along with whatever job there is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use common::hash::Suffix;
use common::policy::PolicyKind;
use ring::{Device, Node, Ring};
use service::rng::Rng;

use crate::diskfile::{DiskFileManager, SuffixHashes};

/// How the fragments of a policy are spread over the primaries of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    pub ndata: usize,
    /// Fragments that differ. Swift: `ec_n_unique_fragments`.
    pub unique: usize,
    pub duplication: usize,
}

impl Scheme {
    /// `None` of a replication policy.
    pub fn of(kind: &PolicyKind) -> Option<Self> {
        match kind {
            PolicyKind::Replication => None,
            PolicyKind::Erasure { ndata, nparity, duplication_factor, .. } => {
                Some(Scheme { ndata: *ndata, unique: ndata + nparity, duplication: *duplication_factor })
            }
        }
    }

    /// The fragment of the primary, or handoff, of this place in the order.
    pub fn backend_index(&self, node_index: usize) -> u32 {
        (node_index % self.unique.max(1)) as u32
    }
}

/// A partition on a device of this machine.
pub struct Part {
    pub manager: Arc<DiskFileManager>,
    pub ring: Arc<Ring>,
    pub scheme: Scheme,
    pub dev: Arc<Device>,
    pub partition: u32,
    /// The partition's directory.
    pub path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sync,
    Revert,
}

pub struct Job {
    pub kind: Kind,
    /// `None`: nothing but tombstones.
    pub frag_index: Option<u32>,
    pub suffixes: Vec<Suffix>,
    pub sync_to: Vec<Node>,
    /// The fragment that this device is a primary for.
    pub primary_frag_index: Option<u32>,
}

/// The primaries to the left, to the right and opposite, each once, without the one they are partners of.
fn partners(index: usize, nodes: &[Node]) -> Vec<Node> {
    let count = nodes.len();
    let mut found: Vec<Node> = Vec::new();
    for other in [index + count - 1, index + 1, index + count / 2] {
        let node = &nodes[other % count];
        if node.index != index && found.iter().all(|partner| partner.index != node.index) {
            found.push(node.clone());
        }
    }
    found
}

impl Part {
    /// The jobs of the partition, whose hashes are these; and the indexes for which the ring has no place. Without a job
    /// there is nothing of value in a partition that does not belong here.
    pub fn jobs(&self, hashes: &SuffixHashes, rng: &Rng) -> (Vec<Job>, Vec<u32>) {
        let mut tombstones = Vec::new();
        let mut by_index: BTreeMap<u32, Vec<Suffix>> = BTreeMap::new();
        for (suffix, hash) in hashes.iter() {
            // One that could not be hashed is the next pass's; one of nothing but meta files nobody can do anything with.
            let Some(hash) = hash.filter(|hash| !hash.is_empty()) else { continue };
            let before = by_index.values().map(Vec::len).sum::<usize>();
            for index in hash.frag_indexes() {
                by_index.entry(index).or_default().push(suffix);
            }
            if by_index.values().map(Vec::len).sum::<usize>() == before {
                tombstones.push(suffix);
            }
        }
        let nodes = self.ring.get_part_nodes(self.partition);
        let mut jobs = Vec::new();
        let mine = nodes.iter().find(|node| node.id == self.dev.id);
        let primary_frag_index = mine.map(|node| self.scheme.backend_index(node.index));
        if let (Some(node), Some(index)) = (mine, primary_frag_index) {
            jobs.push(Job {
                kind: Kind::Sync,
                frag_index: Some(index),
                suffixes: by_index.remove(&index).unwrap_or_default(),
                sync_to: partners(node.index, &nodes),
                primary_frag_index,
            });
        }
        let mut ordered: Vec<(u32, Vec<Suffix>)> = by_index.into_iter().collect();
        ordered.sort_by_key(|(index, suffixes)| (suffixes.len(), *index));
        let mut homeless = Vec::new();
        for (index, suffixes) in ordered {
            // With duplicated fragments all of its primaries get it.
            let homes = (0..self.scheme.duplication).map(|nth| index as usize + nth * self.scheme.unique);
            let sync_to: Vec<Node> = homes.filter_map(|home| nodes.get(home).cloned()).collect();
            if sync_to.len() < self.scheme.duplication || sync_to.is_empty() {
                homeless.push(index);
                continue;
            }
            let frag_index = Some(index);
            jobs.push(Job { kind: Kind::Revert, frag_index, suffixes, sync_to, primary_frag_index });
        }
        match jobs.first_mut() {
            _ if tombstones.is_empty() => {}
            Some(job) => job.suffixes.extend(tombstones),
            None if !homeless.is_empty() => {}
            None => {
                // Enough primaries that those which have all data without them are too few to read anything.
                let sample =
                    (self.scheme.unique * self.scheme.duplication + 1).saturating_sub(self.scheme.ndata);
                let mut sync_to = nodes;
                rng.shuffle(&mut sync_to);
                sync_to.truncate(sample);
                jobs.push(Job {
                    kind: Kind::Revert,
                    frag_index: None,
                    suffixes: tombstones,
                    sync_to,
                    primary_frag_index,
                });
            }
        }
        (jobs, homeless)
    }
}

/// The suffixes in which this side differs from the other, each side by its own fragments.
pub fn suffix_delta(
    local: &SuffixHashes,
    local_index: Option<u32>,
    remote: &SuffixHashes,
    remote_index: u32,
) -> Vec<Suffix> {
    let differs = |(suffix, hash): &(Suffix, Option<&crate::diskfile::SuffixHash>)| {
        let Some(local) = hash else { return true };
        let remote = remote.get(*suffix);
        local.of(None) != remote.and_then(|remote| remote.of(None))
            || local.of(local_index) != remote.and_then(|remote| remote.of(Some(remote_index)))
    };
    local.iter().filter(differs).map(|(suffix, _)| suffix).collect()
}

#[cfg(test)]
mod tests {
    use common::Clock;
    use common::config::SwiftConf;
    use common::pickle::{self, Value};
    use ring::RingBuilder;
    use service::logs::Logger;
    use service::statsd::Statsd;

    use super::*;
    use crate::diskfile::{DiskFileConf, DiskFileRouter};

    /// A partition of a ring of `replicas`, 2+1 with `duplication`, on device `on` or, without, on a handoff.
    fn part(replicas: u32, duplication: usize, place: Option<usize>) -> Part {
        let mut builder = RingBuilder::new(1, f64::from(replicas), 0).unwrap();
        for id in 0..replicas + 1 {
            let ip = "127.0.0.1".to_owned();
            let device = Device {
                id,
                region: 1,
                zone: id,
                ip: ip.clone(),
                port: 6200,
                replication_ip: ip,
                replication_port: 6200,
                device: format!("sd{id}"),
                weight: 1.0,
                meta: String::new(),
                extra: Default::default(),
            };
            builder.add_dev(device).unwrap();
        }
        builder.rebalance(1).unwrap();
        let ring = Arc::new(Ring::new(builder.to_ring_data().unwrap()).unwrap());
        let primaries = ring.get_part_nodes(0);
        let dev = match place {
            Some(place) => primaries[place].dev.clone(),
            None => ring.get_more_nodes(0).next().unwrap().dev.clone(),
        };
        let policy = b"[swift-hash]\nswift_hash_path_suffix = s\n";
        let swift_conf = SwiftConf::parse(policy, "swift.conf", "/".as_ref()).unwrap();
        let (logger, _) = Logger::memory();
        let conf = DiskFileConf::default();
        let router = DiskFileRouter::new(&conf, &swift_conf, &Clock::system(), &logger, &Statsd::disabled());
        let manager = router.iter().next().unwrap().clone();
        let scheme = Scheme { ndata: 2, unique: replicas as usize / duplication, duplication };
        Part { manager, ring, scheme, dev, partition: 0, path: "/p".into() }
    }

    fn hashes(of: &[(&str, &[Option<i64>])]) -> SuffixHashes {
        let hash = |key: &Option<i64>| {
            let key = key.map_or(Value::None, Value::Int);
            (key, Value::Str("hash".to_owned()))
        };
        let suffix = |(suffix, keys): &(&str, &[Option<i64>])| {
            (Value::Str((*suffix).to_owned()), Value::Dict(keys.iter().map(hash).collect()))
        };
        let hashes = Value::Dict(of.iter().map(suffix).collect());
        SuffixHashes::from_answer(&pickle::dumps(&hashes)).unwrap()
    }

    /// Kind, index, suffixes and the places it goes to.
    type Told = (Kind, Option<u32>, Vec<String>, Vec<usize>);

    fn told(part: &Part, hashes: &SuffixHashes) -> Vec<Told> {
        let (jobs, _) = part.jobs(hashes, &Rng::seeded(1));
        let tell = |job: Job| {
            let suffixes = job.suffixes.iter().map(Suffix::to_string).collect();
            (job.kind, job.frag_index, suffixes, job.sync_to.iter().map(|node| node.index).collect())
        };
        jobs.into_iter().map(tell).collect()
    }

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_primary_syncs_its_own_fragment_and_reverts_others() {
        let part = part(6, 1, Some(2));
        let hashes = hashes(&[
            ("00a", &[Some(2), None]),
            ("00b", &[Some(2), Some(4), None]),
            ("00c", &[Some(1)]),
            ("00d", &[None]),
            ("00e", &[Some(4)]),
        ]);
        let expected = [
            (Kind::Sync, Some(2), names("00a 00b 00d"), vec![1, 3, 5]),
            (Kind::Revert, Some(1), names("00c"), vec![1]),
            (Kind::Revert, Some(4), names("00b 00e"), vec![4]),
        ];
        assert_eq!(told(&part, &hashes), expected);
        assert_eq!(told(&part, &SuffixHashes::default()), [(Kind::Sync, Some(2), vec![], vec![1, 3, 5])]);
    }

    #[test]
    fn a_handoff_reverts_all_and_tombstones_to_a_sample() {
        let part = part(6, 1, None);
        assert!(told(&part, &SuffixHashes::default()).is_empty());
        let both = hashes(&[("00a", &[Some(3)]), ("00b", &[None])]);
        assert_eq!(told(&part, &both), [(Kind::Revert, Some(3), names("00a 00b"), vec![3])]);
        let jobs = told(&part, &hashes(&[("00b", &[None])]));
        let [(Kind::Revert, None, suffixes, to)] = &jobs[..] else { panic!("{jobs:?}") };
        assert_eq!((suffixes, to.len()), (&names("00b"), 5), "6 fragments, of which 2 are enough");
    }

    #[test]
    fn duplicated_fragments_go_to_all_of_their_primaries() {
        let part = part(6, 2, Some(4));
        let hashes = hashes(&[("00a", &[Some(0), Some(1)])]);
        let expected = [
            (Kind::Sync, Some(1), names("00a"), vec![3, 5, 1]),
            (Kind::Revert, Some(0), names("00a"), vec![0, 3]),
        ];
        assert_eq!(told(&part, &hashes), expected);
    }

    #[test]
    fn an_index_without_a_place_keeps_everything_where_it_is() {
        let part = part(6, 1, None);
        let hashes = hashes(&[("00a", &[Some(6)]), ("00b", &[None])]);
        let (jobs, homeless) = part.jobs(&hashes, &Rng::seeded(1));
        assert_eq!((jobs.len(), homeless), (0, vec![6]));
    }

    #[test]
    fn partners_in_small_rings_are_others_and_different() {
        let partners_of = |count: u32, index: usize| {
            let nodes = part(count, 1, None).ring.get_part_nodes(0);
            partners(index, &nodes).iter().map(|node| node.index).collect::<Vec<_>>()
        };
        assert_eq!(partners_of(3, 0), [2, 1]);
        assert_eq!(partners_of(2, 1), [0]);
        assert!(partners_of(1, 0).is_empty());
    }

    #[test]
    fn what_differs_is_compared_by_the_index_of_each_side() {
        let local =
            hashes(&[("00a", &[Some(1), None]), ("00b", &[Some(1)]), ("00c", &[Some(1)]), ("00d", &[None])]);
        let remote = hashes(&[("00a", &[None, Some(2)]), ("00b", &[Some(1)]), ("00c", &[Some(2), None])]);
        let delta = suffix_delta(&local, Some(1), &remote, 2);
        let delta: Vec<String> = delta.iter().map(Suffix::to_string).collect();
        assert_eq!(delta, names("00b 00c 00d"));
    }
}
