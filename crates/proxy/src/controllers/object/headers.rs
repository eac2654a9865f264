//! Which object server tells which container servers: `X-Container-*` and `X-Delete-At-*` of the backend requests.

use common::headers::{
    X_BACKEND_CLEAN_EXPIRING_OBJECT_QUEUE, X_BACKEND_QUOTED_CONTAINER_PATH, X_CONTAINER_DEVICE,
    X_CONTAINER_HOST, X_CONTAINER_PARTITION, X_CONTAINER_ROOT_DB_STATE, X_DELETE_AT_CONTAINER,
    X_DELETE_AT_DEVICE, X_DELETE_AT_HOST, X_DELETE_AT_PARTITION,
};
use common::quote::quote_path;
use ring::Node;
use service::http::Headers;

use crate::backend::ip_port;
use crate::quorum::num_container_updates;

/// How many object servers clean the expirer's queue after a DELETE. The queue entry does no harm if none does.
const QUEUE_CLEANERS: usize = 2;

/// The task container of an object that is to be deleted, and its servers.
pub struct DeleteAt {
    pub container: String,
    pub part: u32,
    pub nodes: Vec<Node>,
}

pub struct Updates<'a> {
    pub use_replication: bool,
    pub container_part: u32,
    pub containers: &'a [Node],
    /// Account and container of the shard that the containers are replicas of, if they are not the object's container itself.
    pub container_path: Option<&'a str>,
    pub db_state: &'a str,
    pub delete_at: Option<&'a DeleteAt>,
    pub object_quorum: usize,
}

impl Updates<'_> {
    /// `count` times the common headers, with the updates spread over them.
    pub fn headers(&self, common: &Headers, count: usize) -> Vec<Headers> {
        let mut all = vec![common.clone(); count];
        if count == 0 || self.containers.is_empty() {
            return all;
        }
        let needed = num_container_updates(self.containers.len(), count, self.object_quorum);
        for update in 0..needed {
            let headers = &mut all[update % count];
            self.name_container_server(headers, &self.containers[update % self.containers.len()]);
            if let Some(delete_at) = self.delete_at.filter(|delete_at| !delete_at.nodes.is_empty()) {
                // From the other end, so that no object server has all the work.
                let headers = &mut all[count - 1 - update % count];
                self.name_queue_server(headers, delete_at, &delete_at.nodes[update % delete_at.nodes.len()]);
            }
        }
        for (index, headers) in all.iter_mut().enumerate() {
            let clean = if index < QUEUE_CLEANERS { "t" } else { "f" };
            headers.insert_default(X_BACKEND_CLEAN_EXPIRING_OBJECT_QUEUE, clean);
        }
        all
    }

    fn name_container_server(&self, headers: &mut Headers, node: &Node) {
        let (ip, port) = ip_port(node, self.use_replication);
        headers.insert(X_CONTAINER_PARTITION, self.container_part);
        headers.append_joined(X_CONTAINER_HOST, format_args!("{ip}:{port}"));
        headers.append_joined(X_CONTAINER_DEVICE, &node.device);
        headers.insert(X_CONTAINER_ROOT_DB_STATE, self.db_state);
        if let Some(path) = self.container_path {
            headers.insert(X_BACKEND_QUOTED_CONTAINER_PATH, quote_path(path));
        }
    }

    fn name_queue_server(&self, headers: &mut Headers, delete_at: &DeleteAt, node: &Node) {
        let (ip, port) = ip_port(node, self.use_replication);
        headers.insert(X_DELETE_AT_CONTAINER, &delete_at.container);
        headers.insert(X_DELETE_AT_PARTITION, delete_at.part);
        headers.append_joined(X_DELETE_AT_HOST, format_args!("{ip}:{port}"));
        headers.append_joined(X_DELETE_AT_DEVICE, &node.device);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ring::Device;

    use super::*;

    fn nodes(count: u16, first_port: u16) -> Vec<Node> {
        let node = |index: u16| {
            let dev = Device {
                id: u32::from(index),
                region: 1,
                zone: 1,
                ip: "127.0.0.1".to_owned(),
                port: first_port + index,
                device: format!("sd{index}"),
                weight: 1.0,
                replication_ip: "127.0.0.2".to_owned(),
                replication_port: first_port + index,
                meta: String::new(),
                extra: Default::default(),
            };
            Node { dev: Arc::new(dev), index: usize::from(index), handoff_index: None }
        };
        (0..count).map(node).collect()
    }

    fn values(all: &[Headers], name: &str) -> Vec<String> {
        all.iter().map(|headers| headers.get_str(name).unwrap_or("-").to_owned()).collect()
    }

    /// As `swift.proxy.controllers.obj.BaseObjectController._backend_requests` distributes them.
    #[test]
    fn each_container_server_is_named_by_an_object_server() {
        let containers = nodes(3, 6001);
        let delete_at = DeleteAt { container: "1699919925".to_owned(), part: 7, nodes: nodes(3, 7001) };
        let mut updates = Updates {
            use_replication: false,
            container_part: 5,
            containers: &containers,
            container_path: None,
            db_state: "unsharded",
            delete_at: Some(&delete_at),
            object_quorum: 2,
        };
        let all = updates.headers(&Headers::new(), 3);
        assert_eq!(values(&all, X_CONTAINER_HOST), ["127.0.0.1:6001", "127.0.0.1:6002", "127.0.0.1:6003"]);
        assert_eq!(values(&all, X_CONTAINER_DEVICE), ["sd0", "sd1", "sd2"]);
        assert_eq!(values(&all, X_CONTAINER_PARTITION), ["5", "5", "5"]);
        assert_eq!(values(&all, X_DELETE_AT_HOST), ["127.0.0.1:7003", "127.0.0.1:7002", "127.0.0.1:7001"]);
        assert_eq!(values(&all, X_DELETE_AT_DEVICE), ["sd2", "sd1", "sd0"]);
        assert_eq!(values(&all, X_BACKEND_CLEAN_EXPIRING_OBJECT_QUEUE), ["t", "t", "f"]);

        updates.delete_at = None;
        updates.object_quorum = 1;
        let all = updates.headers(&Headers::new(), 2);
        assert_eq!(values(&all, X_CONTAINER_HOST), ["127.0.0.1:6001,127.0.0.1:6003", "127.0.0.1:6002"]);
        assert_eq!(values(&all, X_DELETE_AT_HOST), ["-", "-"]);
    }
}
