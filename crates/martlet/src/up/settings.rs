//! The shape of a cluster of `up`, as its data folder remembers it: how many nodes, which ports.

use serde_json::{Value, json};

pub const DEFAULT_PORT: u16 = 8080;
pub const DEFAULT_BASE_PORT: u16 = 6200;

/// Below the nodes' ports, ten to a node: object, container and account server take the first three.
const PORTS_PER_NODE: u16 = 10;
/// Where the proxy's configuration says that a memcached is, for a Python proxy: ours has a cache of its own.
const MEMCACHED_OFFSET: u16 = 9;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The proxy's address.
    pub ip: String,
    pub port: u16,
    pub base_port: u16,
    pub nodes: u16,
    pub devices: u16,
    pub replicas: u16,
    pub part_power: u32,
}

/// What the command line says about a cluster; None is whatever the folder says, or the default for a new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wished {
    pub ip: Option<String>,
    pub port: Option<u16>,
    pub base_port: Option<u16>,
    pub nodes: Option<u16>,
    pub devices: Option<u16>,
    pub replicas: Option<u16>,
    pub part_power: Option<u32>,
}

impl Wished {
    /// The settings of a new cluster.
    pub fn for_new(&self) -> Result<Settings, String> {
        let settings = Settings {
            ip: self.ip.clone().unwrap_or_else(|| "127.0.0.1".to_owned()),
            port: self.port.unwrap_or(DEFAULT_PORT),
            base_port: self.base_port.unwrap_or(DEFAULT_BASE_PORT),
            nodes: self.nodes.unwrap_or(4),
            devices: self.devices.unwrap_or(2),
            replicas: self.replicas.unwrap_or(3),
            part_power: self.part_power.unwrap_or(6),
        };
        settings.check()?;
        Ok(settings)
    }

    /// The settings of a cluster that is there: its address may change, its shape may not.
    pub fn for_existing(&self, there: Settings) -> Result<Settings, String> {
        let unchanged = |option: &str, wished: Option<u64>, is: u64| match wished {
            Some(wished) if wished != is => Err(format!(
                "--{option} {wished}: this folder's cluster was made with {is}, which cannot be changed; \
                 leave the option out, or choose another --data"
            )),
            _ => Ok(()),
        };
        unchanged("base-port", self.base_port.map(u64::from), there.base_port.into())?;
        unchanged("nodes", self.nodes.map(u64::from), there.nodes.into())?;
        unchanged("devices", self.devices.map(u64::from), there.devices.into())?;
        unchanged("replicas", self.replicas.map(u64::from), there.replicas.into())?;
        unchanged("part-power", self.part_power.map(u64::from), there.part_power.into())?;
        let settings = Settings {
            ip: self.ip.clone().unwrap_or_else(|| there.ip.clone()),
            port: self.port.unwrap_or(there.port),
            ..there
        };
        settings.check()?;
        Ok(settings)
    }
}

impl Settings {
    fn check(&self) -> Result<(), String> {
        let expect = |ok: bool, what: String| if ok { Ok(()) } else { Err(what) };
        expect((1..=64).contains(&self.nodes), format!("--nodes {}: expected 1 to 64", self.nodes))?;
        expect((1..=64).contains(&self.devices), format!("--devices {}: expected 1 to 64", self.devices))?;
        let all = u32::from(self.nodes) * u32::from(self.devices);
        let fits = self.replicas >= 1 && u32::from(self.replicas) <= all;
        expect(fits, format!("--replicas {}: expected 1 to {all}, the number of devices", self.replicas))?;
        expect(self.part_power <= 16, format!("--part-power {}: expected 0 to 16", self.part_power))?;
        let last = u32::from(self.base_port) + u32::from(PORTS_PER_NODE) * u32::from(self.nodes + 1);
        expect(
            self.base_port > 0 && last <= 65_535,
            format!("--base-port {}: expected room for {last} ports or fewer above it", self.base_port),
        )?;
        expect(self.port > 0, "--port 0: expected 1 to 65535".to_owned())?;
        let taken = self.node_ports().chain([self.memcached_port()]).any(|port| port == self.port);
        expect(!taken, format!("--port {}: a storage node has that port; see --base-port", self.port))
    }

    pub fn object_port(&self, node: u16) -> u16 {
        self.base_port + PORTS_PER_NODE * node
    }

    pub fn container_port(&self, node: u16) -> u16 {
        self.object_port(node) + 1
    }

    pub fn account_port(&self, node: u16) -> u16 {
        self.object_port(node) + 2
    }

    pub fn memcached_port(&self) -> u16 {
        self.base_port + MEMCACHED_OFFSET
    }

    /// The ports of all servers but the proxy's.
    pub fn node_ports(&self) -> impl Iterator<Item = u16> + '_ {
        (1..=self.nodes).flat_map(|n| [self.object_port(n), self.container_port(n), self.account_port(n)])
    }

    /// The name of a device: unique in the cluster, so that logs and rings need no node beside it.
    pub fn device(node: u16, device: u16) -> String {
        format!("n{node}d{device}")
    }

    pub fn to_json(&self) -> Value {
        json!({
            "ip": self.ip, "port": self.port, "base_port": self.base_port, "nodes": self.nodes,
            "devices": self.devices, "replicas": self.replicas, "part_power": self.part_power,
        })
    }

    /// None for what `to_json` has not written.
    pub fn from_json(value: &Value) -> Option<Settings> {
        let number = |name: &str| value[name].as_u64();
        let short = |name: &str| number(name).and_then(|n| u16::try_from(n).ok());
        let settings = Settings {
            ip: value["ip"].as_str()?.to_owned(),
            port: short("port")?,
            base_port: short("base_port")?,
            nodes: short("nodes")?,
            devices: short("devices")?,
            replicas: short("replicas")?,
            part_power: number("part_power")?.try_into().ok()?,
        };
        settings.check().ok().map(|()| settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_their_json() {
        let settings = Wished { nodes: Some(3), ..Wished::default() }.for_new().unwrap();
        assert_eq!(Settings::from_json(&settings.to_json()), Some(settings));
        assert_eq!(Settings::from_json(&json!({"nodes": 4})), None);
    }

    #[test]
    fn the_shape_of_a_cluster_stays_while_its_address_may_change() {
        let there = Wished::default().for_new().unwrap();
        let moved = Wished { port: Some(9090), nodes: Some(4), ..Wished::default() };
        assert_eq!(moved.for_existing(there.clone()).unwrap().port, 9090);
        let err = Wished { nodes: Some(5), ..Wished::default() }.for_existing(there).unwrap_err();
        assert!(err.contains("--nodes 5: this folder's cluster was made with 4"), "{err}");
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let wished = |wished: Wished| wished.for_new().unwrap_err();
        assert!(wished(Wished { nodes: Some(0), ..Wished::default() }).contains("--nodes"));
        assert!(wished(Wished { replicas: Some(9), ..Wished::default() }).contains("1 to 8"));
        assert!(wished(Wished { base_port: Some(65_500), ..Wished::default() }).contains("--base-port"));
        assert!(wished(Wished { port: Some(6211), ..Wished::default() }).contains("--port 6211"));
    }
}
