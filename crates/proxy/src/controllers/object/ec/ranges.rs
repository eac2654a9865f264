//! Ranges of an object as ranges of its fragment archives, and back. Pure.
//!
//! A backend is asked before the object's length is known, so each range of the client is widened to whole segments, and
//! these are counted in fragments. Of the last N bytes, one segment more than they need is asked for: where segments
//! begin, seen from the end, is not known; what then comes of a fragment that begins earlier is passed over.
//!
//! An object server leaves out ranges that it cannot satisfy, so the parts of its answer are found by resolving the
//! same ranges against the archive's length, which follows from the object's.

use service::http::range::Ranges;

use super::EcPolicy;

type Spec = (Option<u64>, Option<u64>);

/// What to ask object servers for.
pub fn of_archive(client: &Ranges, policy: &EcPolicy) -> Ranges {
    Ranges::from_specs(client.specs().iter().map(|spec| widen(*spec, policy)).collect())
}

fn widen((first, last): Spec, policy: &EcPolicy) -> Spec {
    let (segment, fragment) = (policy.segment_size, policy.fragment_size);
    match (first, last) {
        (Some(first), last) => {
            let first = (first / segment).saturating_mul(fragment);
            let end = last.map(|last| (last / segment).saturating_add(1).saturating_mul(fragment));
            (Some(first), end.map(|end| end - 1))
        }
        (None, Some(suffix)) => {
            (None, Some(suffix.div_ceil(segment).saturating_add(1).saturating_mul(fragment)))
        }
        (None, None) => (None, None),
    }
}

/// One part of an object server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Bytes of the archive, the end not included.
    pub start: u64,
    pub end: u64,
    /// What the client gets of it: bytes of the object, the end not included. `None` if nothing.
    pub wanted: Option<(u64, u64)>,
}

impl Part {
    /// All of an archive.
    pub fn whole(object_len: u64, policy: &EcPolicy) -> Part {
        Part { start: 0, end: policy.archive_len(object_len), wanted: Some((0, object_len)) }
    }

    /// Where the first whole fragment begins.
    pub fn first_fragment(&self, policy: &EcPolicy) -> u64 {
        self.start.next_multiple_of(policy.fragment_size)
    }
}

/// The parts of an answer to [`of_archive`], in its order.
pub fn parts(client: &Ranges, object_len: u64, policy: &EcPolicy) -> Vec<Part> {
    let archive_len = policy.archive_len(object_len);
    let resolve = |spec: Spec, len| Ranges::from_specs(vec![spec]).resolve(len).first().copied();
    let part = |spec: &Spec| {
        let (start, end) = resolve(widen(*spec, policy), archive_len)?;
        Some(Part { start, end, wanted: resolve(*spec, object_len) })
    };
    client.specs().iter().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use common::policy::PolicyKind;
    use proptest::prelude::*;
    use service::http::range;

    use super::*;

    /// Segments of 100 bytes in fragments of 25 + 80.
    fn policy() -> EcPolicy {
        let kind = PolicyKind::Erasure {
            ec_type: "isa_l_rs_vand".to_owned(),
            ndata: 4,
            nparity: 2,
            segment_size: 100,
            duplication_factor: 1,
        };
        let codec = ec::Codec::of(&kind).expect("a code");
        EcPolicy {
            fragment_size: codec.fragment_len(100) as u64,
            codec,
            segment_size: 100,
            duplication: 1,
            description: String::new(),
        }
    }

    fn widened(header: &str) -> String {
        of_archive(&range::parse(header.as_bytes()).expect("ranges"), &policy()).to_string()
    }

    #[test]
    fn ranges_are_widened_to_fragments() {
        assert_eq!(widened("bytes=0-0"), "bytes=0-104");
        assert_eq!(widened("bytes=99-100"), "bytes=0-209");
        assert_eq!(widened("bytes=100-"), "bytes=105-");
        assert_eq!(widened("bytes=-1"), "bytes=-210");
        assert_eq!(widened("bytes=-100"), "bytes=-210");
        assert_eq!(widened("bytes=-101"), "bytes=-315");
        assert_eq!(widened("bytes=0-1,250-260"), "bytes=0-104,210-314");
        let huge = widened("bytes=1-18446744073709551615");
        assert_eq!(huge, "bytes=0-18446744073709551614");
    }

    #[test]
    fn an_archive_is_as_long_as_its_fragments() {
        let policy = policy();
        assert_eq!([0, 1, 100, 101, 340].map(|len| policy.archive_len(len)), [0, 81, 105, 186, 405]);
    }

    #[test]
    fn what_only_the_archive_satisfies_is_not_wanted() {
        let client = range::parse(b"bytes=10-20,350-360,50-").expect("ranges");
        let found = parts(&client, 340, &policy());
        let part = |start, end, wanted| Part { start, end, wanted };
        assert_eq!(
            found,
            [part(0, 105, Some((10, 21))), part(315, 405, None), part(0, 405, Some((50, 340))),]
        );
    }

    proptest! {
        /// Whatever is wanted lies in the whole fragments of its part.
        #[test]
        fn parts_hold_what_is_wanted(first in 0u64..500, len in 1u64..500, suffix: bool, object_len in 1u64..400) {
            let policy = policy();
            let spec = if suffix { (None, Some(len)) } else { (Some(first), Some(first + len - 1)) };
            for part in parts(&Ranges::from_specs(vec![spec]), object_len, &policy) {
                let Some((start, end)) = part.wanted else { continue };
                let first_byte = part.first_fragment(&policy) / policy.fragment_size * policy.segment_size;
                let archive_len = policy.archive_len(object_len);
                prop_assert!(part.end == archive_len || part.end % policy.fragment_size == 0);
                let last_byte = match part.end == archive_len {
                    true => object_len,
                    false => part.end / policy.fragment_size * policy.segment_size,
                };
                prop_assert!(first_byte <= start && end <= last_byte, "{part:?}");
            }
        }
    }
}
