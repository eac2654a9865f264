//! Files which are not rings: one line that says why and names the file, and never a panic.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;

use proptest::prelude::*;
use ring::{Ring, RingData};

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.ring.gz"));
    std::fs::read(path).unwrap()
}

fn gzip(raw: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(raw).unwrap();
    gz.finish().unwrap()
}

fn v1(json: &str, table: &[u8]) -> Vec<u8> {
    let mut raw = b"R1NG\x00\x01".to_vec();
    raw.extend_from_slice(&(json.len() as u32).to_be_bytes());
    raw.extend_from_slice(json.as_bytes());
    raw.extend_from_slice(table);
    gzip(&raw)
}

fn device(id: u32) -> String {
    format!(r#"{{"id":{id},"zone":1,"ip":"10.0.0.1","port":6200,"device":"sda"}}"#)
}

#[test]
fn the_error_is_one_line_with_the_file_and_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let one = device(0);
    let nested = "[".repeat(100_000);
    for (bytes, cause) in [
        (b"".to_vec(), "truncated"),
        (b"not gzip at all, just text".to_vec(), "gzip"),
        (gzip(b"R1N"), "truncated: magic needs 4 bytes, 3 are left"),
        (gzip(b"PK\x03\x04\x00\x01"), "does not start with R1NG"),
        (gzip(b"R1NG\x00\x03"), "format 3 is not known"),
        (gzip(b"R1NG\x00\x01\xff\xff\xff\xff{}"), "header needs 4294967295 bytes, 2 are left"),
        (gzip(b"R1NG\x00\x02"), "truncated: no index"),
        (v1("[1]", b""), "header is not a JSON object"),
        (v1("{\n}", b""), "part_shift is missing"),
        (v1("{\n", b""), "header is not JSON"),
        (v1(&nested, b""), "header is not JSON"),
        (v1(r#"{"part_shift":33}"#, b""), "part_shift is 33"),
        (v1(r#"{"part_shift":31,"replica_count":1}"#, b"\0\0"), "devs is missing"),
        (v1(r#"{"part_shift":31,"replica_count":1e99,"devs":[]}"#, b"\0\0"), "replica_count is 1e"),
        (v1(r#"{"part_shift":31,"replica_count":0,"devs":[]}"#, b""), "no partition is assigned"),
        (
            v1(&format!(r#"{{"part_shift":31,"replica_count":2,"devs":[{one}]}}"#), b"\0\0"),
            "the table ends in replica 0 of 2",
        ),
        (
            v1(&format!(r#"{{"part_shift":31,"replica_count":1,"devs":[{one}]}}"#), b"\0\0\x05\0"),
            "partition 1 replica 0 is assigned to device 5",
        ),
        (
            v1(&format!(r#"{{"part_shift":31,"replica_count":1,"devs":[{one}]}}"#), b"\0\0\0"),
            "ends inside of a device id",
        ),
        (
            v1(&format!(r#"{{"part_shift":31,"replica_count":1,"devs":[null,{one}]}}"#), b"\x01\0\x01\0"),
            "device 0 stands at position 1",
        ),
        (
            v1(r#"{"part_shift":31,"replica_count":1,"devs":[{"id":0,"port":"x"}]}"#, b"\0\0\0\0"),
            "device 0: ip is missing",
        ),
        (
            v1(r#"{"part_shift":31,"replica_count":1,"devs":[{"ip":"::1","port":70000}]}"#, b"\0\0\0\0"),
            "port is 70000",
        ),
    ] {
        let path = dir.path().join("object.ring.gz");
        std::fs::write(&path, &bytes).unwrap();
        let err = Ring::load(&path).unwrap_err();
        let text = err.to_string();
        assert!(text.contains(cause), "{text:?} lacks {cause:?}");
        assert!(text.starts_with(&path.display().to_string()) && !text.contains('\n'), "{text:?}");
        assert!(!err.missing);
    }
}

#[test]
fn a_missing_file_is_told_apart() {
    let err = Ring::load(Path::new("/nonexistent/object.ring.gz")).unwrap_err();
    assert!(err.missing);
    assert!(err.to_string().starts_with("/nonexistent/object.ring.gz: cannot read ring: "), "{err}");
}

#[test]
fn every_truncation_is_noticed() {
    for name in ["saio", "five-regions", "fraction-1.5", "wide-ids"] {
        let file = golden(name);
        for len in 0..file.len() {
            assert!(RingData::from_bytes(&file[..len]).is_err(), "{name} cut to {len} of {}", file.len());
        }
    }
}

#[test]
fn a_flipped_byte_in_a_table_is_noticed() {
    for name in ["saio", "five-regions"] {
        let file = golden(name);
        for at in file.len() - 40..file.len() - 5 {
            let mut bad = file.clone();
            bad[at] ^= 0x10;
            // Either refused, or a byte that means nothing; never another ring.
            if let Ok(data) = RingData::from_bytes(&bad) {
                assert_eq!(
                    data.replica2part2dev_id,
                    RingData::from_bytes(&file).unwrap().replica2part2dev_id
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Ring::from_bytes(&bytes);
        let mut raw = b"R1NG\x00".to_vec();
        raw.extend_from_slice(&bytes);
        let _ = Ring::from_bytes(&gzip(&raw));
        for version in [1, 2] {
            let mut raw = vec![b'R', b'1', b'N', b'G', 0, version];
            raw.extend_from_slice(&bytes);
            prop_assert!(Ring::from_bytes(&gzip(&raw)).is_err());
        }
    }

    #[test]
    fn damaged_rings_never_panic(at in 0usize..4000, value in any::<u8>(), pick in 0usize..4) {
        use std::io::Read;
        let file = golden(["saio", "five-regions", "wide-ids", "fraction-3.25"][pick]);
        let mut raw = Vec::new();
        flate2::read::GzDecoder::new(&file[..]).read_to_end(&mut raw).unwrap();
        let at = at % raw.len();
        raw[at] = value;
        // Compressed again, so that only our own checks stand between the damage and the lookups.
        if let Ok(ring) = Ring::from_bytes(&gzip(&raw)) {
            let ring = std::sync::Arc::new(ring);
            for part in [0, 1, 77, u32::MAX] {
                let _ = (ring.get_part_nodes(part), ring.get_more_nodes(part).count());
            }
        }
    }
}
