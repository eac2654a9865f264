//! The configuration files of a cluster of `up`: ordinary files of Swift, which Martlet's and Python's programs run from.
//!
//! Paste lets DEFAULT win over an app's own section, so DEFAULT holds only what no section sets. The options which
//! Python Swift does not know (`embedded_cache`, `expose_metrics`) it ignores.
//!
//! All nodes are on 127.0.0.1 and differ by their ports: further loopback addresses do not exist everywhere.

use std::path::Path;

use super::settings::Settings;

/// Seconds between two passes of each daemon: short, since a person waits for it, but long enough for an idle cluster to
/// cost next to nothing. When a node comes back `up` does not wait for them.
const REPLICATOR_INTERVAL: u32 = 30;
const UPDATER_INTERVAL: u32 = 10;
const AUDITOR_INTERVAL: u32 = 300;
/// Of the daemons that work on the whole cluster.
const CLUSTER_INTERVAL: u32 = 10;
const SYNC_INTERVAL: u32 = 10;
/// Of each policy on each node; a process that is all of a cluster keeps fewer than a server would.
const KNOWN_OBJECTS: usize = 1024;
/// Of each account and container server, and of each of their replicators.
const KNOWN_DATABASES: usize = 1024;
/// Containers of the cluster are synced to one another by `//martlet/local/ACCOUNT/CONTAINER`.
const REALM: &str = "martlet";
const CLUSTER: &str = "local";
const ENDPOINT: &str = "cluster_local";
/// No rsync daemon runs.
const DATABASE_REPLICATOR: &str = "sync_method = usync\ninterval = 30\nconcurrency = 2\n";

/// A storage policy of `up`.
pub struct Policy {
    pub index: u32,
    pub name: &'static str,
    pub replicas: u16,
    /// For its section.
    words: &'static str,
}

impl Policy {
    pub fn ring_name(&self) -> String {
        if self.index == 0 { "object".to_owned() } else { format!("object-{}", self.index) }
    }

    fn is_erasure(&self) -> bool {
        self.words.contains("erasure_coding")
    }
}

/// Two replicated policies, and an erasure coded one where there are devices enough for its fragments.
pub fn policies(settings: &Settings) -> impl Iterator<Item = Policy> + use<> {
    let devices = u32::from(settings.nodes) * u32::from(settings.devices);
    let replicas = settings.replicas;
    let policies = [
        Policy { index: 0, name: "standard", replicas, words: "default = yes\npolicy_type = replication\n" },
        Policy { index: 1, name: "archive", replicas, words: "policy_type = replication\n" },
        Policy {
            index: 2,
            name: "erasure",
            replicas: 6,
            words: "policy_type = erasure_coding\nec_type = isa_l_rs_vand\nec_num_data_fragments = 4\n\
                    ec_num_parity_fragments = 2\n",
        },
    ];
    policies.into_iter().filter(move |policy| u32::from(policy.replicas) <= devices)
}

/// `prefix` and `suffix` are random and stay for the life of the cluster.
pub fn swift_conf(settings: &Settings, prefix: &str, suffix: &str) -> String {
    let mut text = format!(
        "# Changing the prefix or the suffix loses every object.\n[swift-hash]\n\
         swift_hash_path_prefix = {prefix}\nswift_hash_path_suffix = {suffix}\n"
    );
    for Policy { index, name, words, .. } in policies(settings) {
        text += &format!("\n[storage-policy:{index}]\nname = {name}\n{words}");
    }
    text
}

/// Where the parts of a cluster are.
pub struct Places<'a> {
    pub settings: &'a Settings,
    /// The data folder, absolute.
    pub data: &'a Path,
    /// Who runs it: a Python server that root starts wants to know whom to become.
    pub user: &'a str,
}

impl Places<'_> {
    fn default_section(&self, ip: &str, port: u16) -> String {
        format!(
            "[DEFAULT]\nbind_ip = {ip}\nbind_port = {port}\nswift_dir = {}/etc\nuser = {}\nworkers = 1\n",
            self.data.display(),
            self.user
        )
    }

    fn node_default(&self, node: u16, port: u16) -> String {
        let data = self.data.display();
        format!(
            "{}devices = {data}/node{node}\nmount_check = false\nrecon_cache_path = {data}/cache/node{node}\n\
             log_requests = no\n",
            self.default_section("127.0.0.1", port)
        )
    }

    fn storage_pipeline(server: &str, egg: &str, options: &str) -> String {
        format!(
            "\n[pipeline:main]\npipeline = healthcheck recon {server}\n\n[app:{server}]\nuse = egg:swift#{egg}\n{options}\n\
             [filter:healthcheck]\nuse = egg:swift#healthcheck\n\n[filter:recon]\nuse = egg:swift#recon\n"
        )
    }

    pub fn object_server(&self, node: u16) -> String {
        let reconstructor = match policies(self.settings).any(|policy| policy.is_erasure()) {
            true => {
                format!("[object-reconstructor]\ninterval = {REPLICATOR_INTERVAL}\nconcurrency = 2\n\n")
            }
            false => String::new(),
        };
        format!(
            "{}{}\n[object-replicator]\nsync_method = ssync\ninterval = {REPLICATOR_INTERVAL}\nconcurrency = 2\n\n\
             {reconstructor}\
             [object-updater]\ninterval = {UPDATER_INTERVAL}\nconcurrency = 1\n\n\
             [object-auditor]\ninterval = {AUDITOR_INTERVAL}\nfiles_per_second = 100\n",
            self.node_default(node, self.settings.object_port(node)),
            Self::storage_pipeline("object-server", "object", &format!("known_objects = {KNOWN_OBJECTS}\n")),
        )
    }

    pub fn container_server(&self, node: u16) -> String {
        format!(
            "{}{}\n[container-replicator]\n{DATABASE_REPLICATOR}known_databases = {KNOWN_DATABASES}\n\n[container-updater]\ninterval = {UPDATER_INTERVAL}\nconcurrency = 1\n\
             \n[container-auditor]\n\n[container-sync]\ninterval = {SYNC_INTERVAL}\n\
             internal_client_conf_path = {}/etc/internal-client.conf\n",
            self.node_default(node, self.settings.container_port(node)),
            Self::storage_pipeline(
                "container-server",
                "container",
                &format!("known_databases = {KNOWN_DATABASES}\n")
            ),
            self.data.display(),
        )
    }

    pub fn account_server(&self, node: u16) -> String {
        format!(
            "{}{}\n[account-replicator]\n{DATABASE_REPLICATOR}known_databases = {KNOWN_DATABASES}\n\n[account-auditor]\n\n[account-reaper]\n",
            self.node_default(node, self.settings.account_port(node)),
            Self::storage_pipeline(
                "account-server",
                "account",
                &format!("known_databases = {KNOWN_DATABASES}\n")
            ),
        )
    }

    pub fn proxy_server(&self) -> String {
        let pipeline = "catch_errors gatekeeper healthcheck proxy-logging cache listing_formats container_sync tempauth copy \
                        slo dlo symlink proxy-logging proxy-server";
        let mut text = self.default_section(&self.settings.ip, self.settings.port);
        text += &format!(
            "\n[pipeline:main]\npipeline = {pipeline}\n\n[app:proxy-server]\nuse = egg:swift#proxy\n\
             account_autocreate = true\nallow_account_management = true\nexpose_metrics = true\n"
        );
        for (name, egg, words) in [
            ("catch_errors", "catch_errors", String::new()),
            ("gatekeeper", "gatekeeper", String::new()),
            ("healthcheck", "healthcheck", String::new()),
            ("proxy-logging", "proxy_logging", String::new()),
            ("cache", "memcache", self.cache()),
            ("listing_formats", "listing_formats", String::new()),
            ("container_sync", "container_sync", format!("current = //{REALM}/{CLUSTER}\n")),
            ("tempauth", "tempauth", Self::users()),
            ("copy", "copy", String::new()),
            ("slo", "slo", String::new()),
            ("dlo", "dlo", String::new()),
            ("symlink", "symlink", String::new()),
        ] {
            text += &format!("\n[filter:{name}]\nuse = egg:swift#{egg}\n{words}");
        }
        text
    }

    /// The object-expirer or the container-reconciler, with a pipeline of its own: what it does, it does as a proxy.
    pub fn cluster_daemon(&self, name: &str) -> String {
        let data = self.data.display();
        format!(
            "[DEFAULT]\nswift_dir = {data}/etc\nuser = {}\nrecon_cache_path = {data}/cache/proxy\n\n\
             [{name}]\ninterval = {CLUSTER_INTERVAL}\n\n{}",
            self.user,
            self.internal_pipeline()
        )
    }

    /// The pipeline that container-sync reads objects through.
    pub fn internal_client(&self) -> String {
        let (data, pipeline) = (self.data.display(), self.internal_pipeline());
        format!("[DEFAULT]\nswift_dir = {data}/etc\nuser = {}\n\n{pipeline}", self.user)
    }

    fn internal_pipeline(&self) -> String {
        let mut text =
            "[pipeline:main]\npipeline = catch_errors proxy-logging cache symlink proxy-server\n\n\
                        [app:proxy-server]\nuse = egg:swift#proxy\n"
                .to_owned();
        for (name, egg, words) in [
            ("catch_errors", "catch_errors", String::new()),
            ("proxy-logging", "proxy_logging", String::new()),
            ("cache", "memcache", self.cache()),
            ("symlink", "symlink", String::new()),
        ] {
            text += &format!("\n[filter:{name}]\nuse = egg:swift#{egg}\n{words}");
        }
        text
    }

    /// One realm with this cluster in it, so that its containers can be synced to one another.
    pub fn container_sync_realms(&self, key: &str) -> String {
        with_endpoint(
            &format!("[{REALM}]\nkey = {key}\n{ENDPOINT} =\n"),
            &self.settings.ip,
            self.settings.port,
        )
    }

    fn cache(&self) -> String {
        format!("embedded_cache = true\nmemcache_servers = 127.0.0.1:{}\n", self.settings.memcached_port())
    }

    fn users() -> String {
        "user_admin_admin = admin .admin .reseller_admin\nuser_test_tester = testing .admin\n\
         user_test2_tester2 = testing2 .admin\nuser_test_tester3 = testing3\n"
            .to_owned()
    }
}

/// `text` with another address of the proxy.
pub fn with_address(text: &str, ip: &str, port: u16) -> String {
    let mut out = String::new();
    let mut in_default = false;
    for line in text.lines() {
        if line.starts_with('[') {
            in_default = line.trim() == "[DEFAULT]";
        }
        let option = line.split('=').next().unwrap_or_default().trim();
        match option {
            "bind_ip" if in_default => out += &format!("bind_ip = {ip}"),
            "bind_port" if in_default => out += &format!("bind_port = {port}"),
            _ => out += line,
        }
        out.push('\n');
    }
    out
}

/// `text`, of the realms, with another address of the proxy.
pub fn with_endpoint(text: &str, ip: &str, port: u16) -> String {
    let is_endpoint = |line: &str| line.split('=').next().is_some_and(|option| option.trim() == ENDPOINT);
    let ip = if ip == "0.0.0.0" { "127.0.0.1" } else { ip };
    let lines = text.lines().map(|line| match is_endpoint(line) {
        true => format!("{ENDPOINT} = http://{ip}:{port}/v1/\n"),
        false => format!("{line}\n"),
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::super::settings::Wished;
    use super::*;
    use common::container_sync_realms::{Realms, Target, validate_sync_to};
    use common::{Conf, Paste, SwiftConf};

    fn places(settings: &Settings) -> Places<'_> {
        Places { settings, data: Path::new("/srv/data"), user: "swift" }
    }

    #[test]
    fn every_file_is_a_pipeline_that_can_be_read() {
        let settings = Wished::default().for_new().unwrap();
        let places = places(&settings);
        for (text, uses, port) in [
            (places.object_server(1), "egg:swift#object", "6210"),
            (places.container_server(2), "egg:swift#container", "6221"),
            (places.account_server(4), "egg:swift#account", "6242"),
            (places.proxy_server(), "egg:swift#proxy", "8080"),
        ] {
            let paste = Paste::parse(&text, "x.conf", "main").unwrap();
            assert_eq!(paste.app.uses, uses);
            assert_eq!(paste.app.section.get("bind_port"), Some(port));
            assert!(!paste.warnings().iter().any(|w| w.contains("DEFAULT")), "{:?}", paste.warnings());
        }
    }

    #[test]
    fn daemons_find_their_sections() {
        let settings = Wished::default().for_new().unwrap();
        let conf = Conf::parse(&places(&settings).object_server(3), "x.conf").unwrap();
        let section = conf.require("object-replicator").unwrap();
        assert_eq!(
            (section.get("sync_method"), section.get("devices")),
            (Some("ssync"), Some("/srv/data/node3"))
        );
        assert!(conf.section("object-updater").is_some());
        let mut settings = settings;
        let has_reconstructor = |settings: &Settings| {
            let conf = Conf::parse(&places(settings).object_server(1), "x.conf").unwrap();
            conf.section("object-reconstructor").is_some()
        };
        assert!(has_reconstructor(&settings));
        (settings.nodes, settings.devices) = (1, 3);
        assert!(!has_reconstructor(&settings), "there is nothing for it to do");
    }

    #[test]
    fn daemons_of_the_cluster_have_pipelines_of_their_own() {
        let settings = Wished::default().for_new().unwrap();
        for name in ["object-expirer", "container-reconciler"] {
            let text = places(&settings).cluster_daemon(name);
            let paste = Paste::parse(&text, "x.conf", "main").unwrap();
            assert_eq!((paste.app.uses.as_str(), paste.filters.len()), ("egg:swift#proxy", 4));
            let section = Conf::parse(&text, "x.conf").unwrap().require(name).unwrap();
            assert_eq!(section.get("recon_cache_path"), Some("/srv/data/cache/proxy"));
        }
    }

    #[test]
    fn containers_can_be_synced_within_the_cluster() {
        let settings = Wished::default().for_new().unwrap();
        let places = places(&settings);
        let pipeline = Paste::parse(&places.internal_client(), "x.conf", "main").unwrap();
        assert_eq!((pipeline.app.uses.as_str(), pipeline.filters.len()), ("egg:swift#proxy", 4));
        let conf = Conf::parse(&places.container_server(1), "x.conf").unwrap();
        let path = conf.require("container-sync").unwrap().str("internal_client_conf_path", "");
        assert_eq!(path, "/srv/data/etc/internal-client.conf");
        let text = places.container_sync_realms("secret");
        for (text, url) in [
            (with_endpoint(&text, "0.0.0.0", 9090), "http://127.0.0.1:9090/v1/AUTH_a/c"),
            (text, "http://127.0.0.1:8080/v1/AUTH_a/c"),
        ] {
            let realms = Realms::from_conf(&Conf::parse(&text, "x.conf").unwrap());
            let target = validate_sync_to(&format!("//{REALM}/{CLUSTER}/AUTH_a/c"), &[], &realms);
            let realm = Some(("MARTLET".to_owned(), "secret".to_owned()));
            assert_eq!(target, Ok(Some(Target { url: url.to_owned(), realm })));
        }
    }

    #[test]
    fn swift_conf_has_an_erasure_coded_policy_if_there_are_devices_for_it() {
        let mut settings = Wished::default().for_new().unwrap();
        let names = |settings: &Settings| -> Vec<(String, bool)> {
            let text = swift_conf(settings, "p", "s");
            let conf = SwiftConf::parse(text.as_bytes(), "swift.conf", Path::new("/")).unwrap();
            assert_eq!((conf.hash.prefix.as_slice(), conf.hash.suffix.as_slice()), (&b"p"[..], &b"s"[..]));
            conf.policies.iter().map(|p| (p.name.clone(), p.is_default)).collect()
        };
        let expected = [("standard", true), ("archive", false), ("erasure", false)];
        let expected = expected.map(|(name, is_default)| (name.to_owned(), is_default));
        assert_eq!(names(&settings), expected);
        settings.devices = 1;
        assert_eq!(names(&settings), expected[..2]);
    }

    #[test]
    fn the_address_of_the_proxy_can_be_changed() {
        let settings = Wished::default().for_new().unwrap();
        let text = with_address(&places(&settings).proxy_server(), "0.0.0.0", 9090);
        let section = Paste::parse(&text, "x.conf", "main").unwrap().app.section;
        assert_eq!((section.get("bind_ip"), section.get("bind_port")), (Some("0.0.0.0"), Some("9090")));
    }
}
