//! Writes rings for `crates/probe/tests/peer/rings.py` to read: those that Swift built (read and written again in both formats)
//! and some of our own builder, each with a line per partition of its primaries and handoffs.
//!
//!     cargo run -p martlet-ring --example write_rings -- OUT

use std::path::Path;
use std::sync::Arc;

use ring::{Device, FormatVersion, Ring, RingBuilder, RingData};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let out = std::env::args_os().nth(1).ok_or("usage: write_rings OUT")?;
    let out = Path::new(&out);
    std::fs::create_dir_all(out)?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for entry in std::fs::read_dir(golden)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".ring.gz")) else {
            continue;
        };
        write(out, name, &RingData::from_bytes(&std::fs::read(&path)?)?)?;
    }
    for (name, part_power, replicas, zones, devices) in
        [("up", 8, 3.0, 4, 8), ("fraction", 7, 2.5, 3, 10), ("lone", 4, 1.0, 1, 1), ("wide", 10, 4.0, 9, 90)]
    {
        let mut builder = RingBuilder::new(part_power, replicas, 1)?;
        for id in 0..devices {
            builder.add_dev(device(id, zones))?;
        }
        builder.rebalance(u64::from(devices))?;
        write(out, &format!("built-{name}"), &builder.to_ring_data()?)?;
    }
    Ok(())
}

fn device(id: u32, zones: u32) -> Device {
    let ip = format!("127.0.0.{}", id % zones + 1);
    Device {
        id,
        region: 1 + id % 2,
        zone: id % zones,
        ip: ip.clone(),
        port: 6200,
        device: format!("d{id}"),
        weight: 100.0,
        replication_ip: ip,
        replication_port: 6200,
        meta: "räck".to_string(),
        extra: Default::default(),
    }
}

fn write(out: &Path, name: &str, data: &RingData) -> Result<()> {
    let ring = Arc::new(Ring::new(data.clone())?);
    let ids = |nodes: &mut dyn Iterator<Item = ring::Node>| {
        nodes.map(|node| node.id.to_string()).collect::<Vec<_>>().join(",")
    };
    let mut lines = String::new();
    for part in (0..ring.part_count() as u32).step_by(if ring.part_power() > 12 { 509 } else { 1 }) {
        let primaries = ids(&mut ring.get_part_nodes(part).into_iter());
        lines += &format!("{part}:{primaries}|{}\n", ids(&mut ring.get_more_nodes(part)));
    }
    for (format, suffix) in [(FormatVersion::V1, "v1"), (FormatVersion::V2, "v2")] {
        if data.dev_id_bytes > 2 && format == FormatVersion::V1 {
            continue;
        }
        let file = format!("{name}-{suffix}.ring.gz");
        std::fs::write(out.join(&file), data.to_bytes(format, &file)?)?;
        std::fs::write(out.join(format!("{name}-{suffix}.lines")), &lines)?;
    }
    Ok(())
}
