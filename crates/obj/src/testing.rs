//! What the tests of more than one daemon need.

use std::path::Path;

use ring::{Device, FormatVersion, RingBuilder};

/// A container ring of three replicas, on the devices c0, c1 and c2 of one server at `port`.
pub fn save_container_ring(dir: &Path, port: u16) {
    let mut builder = RingBuilder::new(2, 3.0, 0).unwrap();
    for zone in 0..3u32 {
        let device = Device {
            id: zone,
            region: 1,
            zone,
            ip: "127.0.0.1".into(),
            port,
            replication_ip: "127.0.0.1".into(),
            replication_port: port,
            device: format!("c{zone}"),
            weight: 1.0,
            meta: String::new(),
            extra: Default::default(),
        };
        builder.add_dev(device).unwrap();
    }
    builder.rebalance(1).unwrap();
    builder.save_ring(&dir.join("container.ring.gz"), FormatVersion::V1).unwrap();
}
