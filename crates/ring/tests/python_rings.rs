//! Rings built by Swift 2.38.3 (`tests/golden/generate.py`): every partition's primaries and handoffs must be Python's, and a
//! ring written again must hold the same.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::digest;
use common::hash::HashConf;
use ring::{FormatVersion, Ring, RingData};
use serde_json::{Map, Value};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn expected() -> Map<String, Value> {
    let text = std::fs::read(golden().join("expected.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn ids(nodes: impl Iterator<Item = ring::Node>) -> String {
    nodes.map(|node| node.id.to_string()).collect::<Vec<_>>().join(",")
}

fn walk(ring: &Arc<Ring>, step: usize) -> (String, u64) {
    let mut lines = String::new();
    let mut handoffs = 0;
    for part in (0..ring.part_count()).step_by(step) {
        let primaries = ring.get_part_nodes(part as u32);
        assert!(primaries.iter().enumerate().all(|(n, node)| node.index == n));
        let more: Vec<_> = ring.get_more_nodes(part as u32).collect();
        assert!(more.iter().enumerate().all(|(n, node)| node.handoff_index == Some(n)));
        handoffs += more.len() as u64;
        lines += &format!("{part}:{}|{}\n", ids(primaries.into_iter()), ids(more.into_iter()));
    }
    (digest::hex(&digest::md5(lines.as_bytes())), handoffs)
}

#[test]
fn lookups_equal_pythons() {
    let expected = expected();
    assert!(expected.len() >= 20);
    let conf = HashConf { prefix: vec![], suffix: b"changeme".to_vec() };
    for (name, want) in &expected {
        let ring = Arc::new(Ring::load(&golden().join(format!("{name}.ring.gz"))).unwrap());
        let (md5, handoffs) = walk(&ring, want["step"].as_u64().unwrap() as usize);
        assert_eq!(handoffs, want["handoffs"], "{name}");
        assert_eq!(md5, want["md5"], "{name}");
        assert_eq!(ring.part_power(), want["part_power"], "{name}");
        assert_eq!(ring.replicas(), want["replicas"].as_f64().unwrap(), "{name}");
        assert_eq!(ring.version(), want["version"].as_u64(), "{name}");
        assert_eq!(ring.next_part_power().map(u64::from), want["next_part_power"].as_u64(), "{name}");
        assert_eq!(ring.devs().iter().flatten().count() as u64, want["devices"], "{name}");
        assert_eq!(ring.md5(), want["file_md5"], "{name}");
        assert_eq!(ring.size(), want["size"], "{name}");
        let (part, nodes) = ring.get_nodes(&conf, "AUTH_test", Some("cöntainer"), Some("object ☃"));
        assert_eq!(part, want["object_part"], "{name}");
        let nodes: Vec<Value> = nodes.iter().map(|node| Value::from(node.id)).collect();
        assert_eq!(Value::from(nodes), want["object_nodes"], "{name}");
    }
}

#[test]
fn a_partition_beyond_the_ring_has_no_primaries() {
    let ring = Ring::load(&golden().join("saio.ring.gz")).unwrap();
    assert!(ring.get_part_nodes(128).is_empty());
    assert!(ring.get_part_nodes(u32::MAX).is_empty());
}

#[test]
fn devices_are_read_whole() {
    let ring = Ring::load(&golden().join("unknown-keys.ring.gz")).unwrap();
    let dev = ring.devs()[1].as_ref().unwrap();
    assert_eq!((dev.ip.as_str(), dev.port, dev.device.as_str()), ("10.1.1.1", 6200, "sd1"));
    assert_eq!((dev.replication_ip.as_str(), dev.replication_port), ("10.1.1.1", 7200));
    assert_eq!((dev.extra["serial"].as_str(), dev.extra["slot"]["bay"].as_i64()), (Some("X1"), Some(1)));
    let ring = Ring::load(&golden().join("ipv6-meta.ring.gz")).unwrap();
    assert_eq!(ring.devs()[2].as_ref().unwrap().meta, "räck \"2\"\\");
    let ring = Ring::load(&golden().join("removed.ring.gz")).unwrap();
    assert!(ring.devs()[0].is_none() && ring.devs()[5].is_none() && ring.devs()[1].is_some());
}

#[test]
fn written_rings_hold_the_same() {
    for name in expected().keys() {
        let file = std::fs::read(golden().join(format!("{name}.ring.gz"))).unwrap();
        let data = RingData::from_bytes(&file).unwrap();
        for format in [FormatVersion::V1, FormatVersion::V2] {
            let written = match data.to_bytes(format, &format!("{name}.ring.gz")) {
                Ok(written) => written,
                Err(_) => {
                    assert!(data.dev_id_bytes == 4 && format == FormatVersion::V1, "{name}");
                    continue;
                }
            };
            let again = RingData::from_bytes(&written).unwrap();
            assert_eq!(again.devs, data.devs, "{name}");
            assert_eq!(again.replica2part2dev_id, data.replica2part2dev_id, "{name}");
            assert_eq!(
                (again.part_power, again.next_part_power, again.version),
                (data.part_power, data.next_part_power, data.version),
                "{name}"
            );
        }
    }
}

#[test]
fn the_json_inside_is_pythons_to_the_byte() {
    use std::io::Read;
    let raw = |file: &[u8]| {
        let mut raw = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut raw).unwrap();
        raw
    };
    for name in ["ipv6-meta", "unknown-keys", "weights", "next-part-power", "fraction-3.25", "removed"] {
        let file = std::fs::read(golden().join(format!("{name}.ring.gz"))).unwrap();
        let written = RingData::from_bytes(&file).unwrap().to_bytes(FormatVersion::V1, name).unwrap();
        assert_eq!(raw(&written), raw(&file), "{name}");
    }
}
