//! What a codec promises: PyECLib's bytes, and the segment back from whatever is left.

use bytes::Bytes;
use ec::{Codec, CodecError};
use proptest::prelude::*;

/// Bytes that differ from one place to the next, and from one page to the next.
fn segment(len: usize) -> Bytes {
    (0..len).map(|i| (i * 167 + (i >> 8) * 13 + 5) as u8).collect()
}

fn encode(codec: &Codec, segment: &Bytes) -> Vec<Bytes> {
    codec.encode(segment).iter().map(|f| f.to_bytes()).collect()
}

/// Some fragments of all, chosen by bits.
fn chosen(fragments: &[Bytes], bits: u32) -> Vec<Bytes> {
    (0..fragments.len()).filter(|i| bits >> i & 1 == 1).map(|i| fragments[i].clone()).collect()
}

fn decode(codec: &Codec, fragments: &[Bytes]) -> Result<Vec<u8>, CodecError> {
    codec.decode(fragments).map(|slices| slices.concat())
}

const CODES: &[(&str, usize, usize)] = &[
    ("isa_l_rs_vand", 4, 2),
    ("isa_l_rs_vand", 5, 3),
    ("isa_l_rs_cauchy", 4, 3),
    ("isa_l_rs_vand_inv", 4, 3),
    ("liberasurecode_rs_vand", 4, 3),
    ("jerasure_rs_vand", 4, 3),
    ("jerasure_rs_cauchy", 4, 3),
];

#[test]
fn fragments_are_pyeclibs() {
    let golden = include_str!("golden/fragments.txt");
    let mut lines = golden.lines().peekable();
    let mut codes = 0;
    while let Some(head) = lines.next() {
        let [ec_type, ndata, nparity, len] = head.split(' ').collect::<Vec<_>>()[..] else {
            panic!("not the head of a code: {head}");
        };
        let number = |text: &str| text.parse::<usize>().expect("a number");
        let codec = Codec::new(ec_type, number(ndata), number(nparity)).expect("a code");
        let made = encode(&codec, &segment(number(len)));
        for (index, fragment) in made.iter().enumerate() {
            let hex: String = fragment.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(Some(hex.as_str()), lines.next(), "{head}, fragment {index}");
        }
        codes += 1;
    }
    assert_eq!(codes, 8);
}

#[test]
fn payloads_are_jerasures() {
    use md5::{Digest, Md5};
    let golden = include_str!("golden/jerasure.txt");
    for line in golden.lines() {
        let [ec_type, ndata, nparity, len, digest] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("not a code, a length and a digest: {line}");
        };
        let number = |text: &str| text.parse::<usize>().expect("a number");
        let codec = Codec::new(ec_type, number(ndata), number(nparity)).expect("a code");
        let mut md5 = Md5::new();
        codec.encode(&segment(number(len))).iter().for_each(|f| md5.update(&f.payload));
        let found: String = md5.finalize().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, digest, "{line}");
    }
    assert_eq!(golden.lines().count(), 80);
}

#[test]
fn any_loss_up_to_the_parity_is_made_good() {
    for (ec_type, ndata, nparity) in CODES {
        let codec = Codec::new(ec_type, *ndata, *nparity).expect("a code");
        for len in [1, 2, 41, 4097] {
            let segment = segment(len);
            let all = encode(&codec, &segment);
            for bits in 0u32..1 << all.len() {
                let some = chosen(&all, bits);
                let case = || format!("{ec_type} {ndata}+{nparity}, {len} bytes, fragments {bits:b}");
                if some.len() < *ndata {
                    // Too few can still hold every byte of a tiny segment, but never count as enough.
                    assert_eq!(decode(&codec, &some), Err(CodecError::NotEnough), "{}", case());
                    continue;
                }
                assert_eq!(decode(&codec, &some).as_deref(), Ok(&segment[..]), "{}", case());
                for (index, fragment) in all.iter().enumerate() {
                    assert_eq!(codec.reconstruct(&some, index).as_ref(), Ok(fragment), "{} {index}", case());
                }
            }
        }
    }
}

/// The distance of these codes is less than their parity would allow; up to it all losses are made good, and one
/// that is larger is either made good or refused.
#[test]
fn flat_xor_makes_good_what_its_distance_promises() {
    for (ec_type, distance) in [("flat_xor_hd_3", 3), ("flat_xor_hd_4", 4)] {
        for (ndata, nparity) in [(5, 5), (6, 6)] {
            let codec = Codec::new(ec_type, ndata, nparity).expect("a code");
            let segment = segment(333);
            let all = encode(&codec, &segment);
            for bits in 0u32..1 << all.len() {
                let some = chosen(&all, bits);
                match decode(&codec, &some) {
                    Ok(found) => assert_eq!(found, segment, "{ec_type} {bits:b}"),
                    Err(error) => {
                        assert_eq!(error, CodecError::NotEnough);
                        assert!(all.len() - some.len() >= distance, "{ec_type} {bits:b}");
                    }
                }
            }
        }
    }
}

/// Five data and eight parity fragments of `isa_l_rs_vand`: six of the sets of five are singular.
#[test]
fn survivors_that_depend_on_each_other_are_passed_over() {
    let codec = Codec::new("isa_l_rs_vand", 5, 8).expect("a code");
    let segment = segment(1000);
    let all = encode(&codec, &segment);
    let fives = (0u32..1 << 13).filter(|bits| bits.count_ones() == 5);
    let singular: Vec<u32> =
        fives.filter(|bits| decode(&codec, &chosen(&all, *bits)) == Err(CodecError::NotEnough)).collect();
    assert_eq!(singular.len(), 6);
    for bits in singular {
        let indexes = (0..13).filter(|i| bits >> i & 1 == 1);
        assert!(!codec.can_decode(indexes));
        for more in (0..13).filter(|i| bits >> i & 1 == 0) {
            // Whatever the order in which they come.
            let mut six = chosen(&all, bits | 1 << more);
            assert_eq!(decode(&codec, &six).as_deref(), Ok(&segment[..]), "{bits:b} and {more}");
            six.reverse();
            assert_eq!(decode(&codec, &six).as_deref(), Ok(&segment[..]), "{bits:b} and {more}");
        }
    }
}

#[test]
fn data_that_is_there_is_not_copied() {
    let codec = Codec::new("isa_l_rs_vand", 4, 2).expect("a code");
    let segment = segment(4096);
    let fragments = codec.encode(&segment);
    assert_eq!(fragments[1].payload.as_ptr(), segment[1024..].as_ptr());
    let all = encode(&codec, &segment);
    let slices = codec.decode(&all[1..5]).expect("four fragments");
    assert_eq!(slices[1].as_ptr(), all[1][ec::HEADER_LEN..].as_ptr());
    assert_eq!(slices.concat(), segment);
}

#[test]
fn fragments_that_contradict_each_other_are_refused() {
    let codec = Codec::new("isa_l_rs_vand", 4, 2).expect("a code");
    let all = encode(&codec, &segment(400));
    let with = |other: Bytes| [all[1].clone(), all[2].clone(), all[3].clone(), other];
    // Of a longer segment with payloads of the same length, of a shorter one, cut off, too long.
    let longer = encode(&codec, &segment(399));
    assert_eq!(decode(&codec, &with(longer[4].clone())), Err(CodecError::Misfit(4)));
    let shorter = encode(&codec, &segment(100));
    assert_eq!(decode(&codec, &with(shorter[4].clone())), Err(CodecError::Misfit(4)));
    assert_eq!(decode(&codec, &with(all[4].slice(..100))), Err(CodecError::Misfit(4)));
    let long: Bytes = [&all[4][..], b"x"].concat().into();
    assert_eq!(decode(&codec, &with(long)), Err(CodecError::Misfit(4)));
    assert!(matches!(decode(&codec, &with(Bytes::from_static(b"x"))), Err(CodecError::Fragment(_))));
    // Another code's parity is of no use, its data is the same.
    let cauchy = Codec::new("isa_l_rs_cauchy", 4, 2).expect("a code");
    let foreign = encode(&cauchy, &segment(400));
    assert_eq!(decode(&codec, &with(foreign[4].clone())), Err(CodecError::Misfit(4)));
    assert_eq!(decode(&codec, &foreign[..4]).as_deref(), Ok(&segment(400)[..]));
    // One index twice is one fragment.
    assert_eq!(decode(&codec, &with(all[1].clone())), Err(CodecError::NotEnough));
}

#[test]
fn codes_that_do_not_exist_are_refused() {
    for (ec_type, ndata, nparity) in [
        ("isa_l_rs_vand", 0, 2),
        ("isa_l_rs_vand", 4, 0),
        ("isa_l_rs_vand", 30, 3),
        ("jerasure_rs_cauchy", 14, 3),
        ("flat_xor_hd_3", 4, 5),
        ("flat_xor_hd_4", 3, 3),
        ("shss", 4, 2),
    ] {
        assert!(Codec::new(ec_type, ndata, nparity).is_err(), "{ec_type} {ndata}+{nparity}");
    }
}

fn code() -> impl Strategy<Value = (&'static str, usize, usize)> {
    const TYPES: &[&str] =
        &["isa_l_rs_vand", "isa_l_rs_cauchy", "isa_l_rs_vand_inv", "liberasurecode_rs_vand"];
    (proptest::sample::select(TYPES), 1usize..16, 1usize..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_encoded_is_decoded(
        (ec_type, ndata, nparity) in code(),
        segment in proptest::collection::vec(any::<u8>(), 0..5000),
        lost in proptest::collection::vec(any::<proptest::sample::Index>(), 0..5),
    ) {
        let codec = Codec::new(ec_type, ndata, nparity).expect("a code");
        let segment = Bytes::from(segment);
        let all = encode(&codec, &segment);
        prop_assert!(all.iter().all(|f| f.len() == codec.fragment_len(segment.len())));
        let mut left = all.clone();
        for lost in lost.iter().take(nparity) {
            left.remove(lost.index(left.len()));
        }
        prop_assert_eq!(decode(&codec, &left), Ok(segment.to_vec()));
        for (index, fragment) in all.iter().enumerate() {
            prop_assert_eq!(codec.reconstruct(&left, index), Ok(fragment.clone()));
        }
    }

    #[test]
    fn damage_never_panics(
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
        cut in 0usize..200,
    ) {
        let codec = Codec::new("isa_l_rs_vand", 4, 2).expect("a code");
        let mut all = encode(&codec, &segment(300));
        let mut damaged = all[0].to_vec();
        let at = at.index(damaged.len());
        damaged[at] = byte;
        damaged.truncate(cut);
        all[0] = damaged.into();
        let _ = codec.decode(&all[..4]);
        let _ = codec.reconstruct(&all[..4], 5);
    }
}
