//! Where a ring puts an account, a container or an object, as lines for a person to read and commands to paste.

use std::net::Ipv6Addr;
use std::sync::Arc;

use common::hash::storage_directory;
use common::quote::quote_path;
use common::{HashConf, ObjHash, PolicyIndex};
use ring::{Node, Ring};

use super::Output;

/// What is looked for; a partition given by number goes before the one that the names lead to.
#[derive(Clone, Debug, Default)]
pub(super) struct Item {
    pub account: Option<String>,
    pub container: Option<String>,
    pub object: Option<String>,
    pub partition: Option<u32>,
}

impl Item {
    fn hash(&self, conf: &HashConf) -> Option<ObjHash> {
        let account = self.account.as_deref().filter(|_| self.partition.is_none())?;
        Some(conf.hash_path(account, self.container.as_deref(), self.object.as_deref()))
    }

    /// The path in URLs; a partition alone has none, which Python calls `None`.
    fn target(&self) -> String {
        let account = self.account.as_deref().unwrap_or("None");
        let rest = [&self.container, &self.object].into_iter().flatten();
        rest.fold(account.to_owned(), |path, name| path + "/" + name)
    }
}

/// What is to be shown of an item.
pub(super) struct Locations<'a> {
    pub ring: &'a Arc<Ring>,
    pub hash_conf: &'a HashConf,
    /// `objects-1`.
    pub datadir: &'a str,
    /// Goes into the requests if known.
    pub policy: Option<PolicyIndex>,
    pub all_handoffs: bool,
}

impl Locations<'_> {
    pub fn print(&self, out: &mut Output, item: &Item) {
        let hash = item.hash(self.hash_conf);
        let part = item.partition.or(hash.map(|hash| hash.partition(self.ring.part_power()))).unwrap_or(0);
        let primaries = self.ring.get_part_nodes(part);
        let limit = if self.all_handoffs { usize::MAX } else { primaries.len() };
        let handoffs = self.ring.get_more_nodes(part).take(limit);
        let nodes: Vec<Node> = primaries.into_iter().chain(handoffs).collect();

        out.line(format!("Partition\t{part}"));
        let shown = hash.map_or("None".to_owned(), |hash| hash.to_string());
        out.line(format!("Hash     \t{shown}\n"));
        for node in &nodes {
            let handoff = if is_handoff(node) { "\t [Handoff]" } else { "" };
            out.line(format!("Server:Port Device\t{}:{} {}{handoff}", node.ip, node.port, node.device));
        }
        out.line("\n");
        let target = quote_path(item.target());
        for node in &nodes {
            out.line(self.curl(node, part, &target));
        }
        out.line("\n\nUse your own device location of servers:");
        out.line("such as \"export DEVICE=/srv/node\"");
        let dir = match hash {
            Some(hash) => storage_directory(self.datadir, part, &hash).display().to_string(),
            None => format!("{}/{part}", self.datadir),
        };
        for node in &nodes {
            let (ip, device, mark) = (&node.ip, &node.device, mark(node));
            out.line(format!("ssh {ip} \"ls -lah ${{DEVICE:-/srv/node*}}/{device}/{dir}\"{mark}"));
        }
        out.line(
            "\nnote: `/srv/node*` is used as default value of `devices`, the real value is set in the config file \
             on each storage node.",
        );
    }

    fn curl(&self, node: &Node, part: u32, target: &str) -> String {
        let ip = match node.ip.parse::<Ipv6Addr>() {
            Ok(_) => format!("[{}]", node.ip),
            Err(_) => node.ip.clone(),
        };
        let policy = self.policy.map(|policy| format!(" -H \"X-Backend-Storage-Policy-Index: {policy}\""));
        format!(
            "curl -g -I -XHEAD \"http://{ip}:{}/{}/{part}/{target}\"{} --path-as-is{}",
            node.port,
            node.device,
            policy.unwrap_or_default(),
            mark(node)
        )
    }
}

fn is_handoff(node: &Node) -> bool {
    node.handoff_index.is_some()
}

fn mark(node: &Node) -> &'static str {
    if is_handoff(node) { " # [Handoff]" } else { "" }
}
