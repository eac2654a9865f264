//! The programs in this binary: Swift's servers and daemons, each by its name without `swift-`.

use std::process::ExitCode;
use std::sync::Arc;

use common::{Conf, ConfigError};
use service::daemonize::{self, Build, Threads};
use service::supervisor;
use service::{Context, Daemon, Registry};

use crate::cli::swift::{self, Takes};

/// Threads of a daemon's runtime, by its name.
fn threads(daemon: &str) -> Threads {
    match daemon {
        "object-reconstructor" => Threads::Workers("reconstructor_workers"),
        // TLS.
        "container-sync" => Threads::Cores,
        _ => Threads::One,
    }
}

/// A server or daemon of Swift.
pub struct Program {
    /// `object-server`, `object-replicator`: also the name of its section.
    pub name: &'static str,
    pub about: &'static str,
    kind: Kind,
}

#[derive(Copy, Clone)]
enum Kind {
    Server,
    Daemon(Build, Takes),
    /// One that works on the whole cluster, through a proxy's pipeline of its own.
    ClusterDaemon(Build, Takes),
}

pub const PROGRAMS: [Program; 17] = [
    Program { name: "proxy-server", about: "answers clients", kind: Kind::Server },
    Program { name: "account-server", about: "keeps the listings of accounts", kind: Kind::Server },
    Program {
        name: "account-replicator",
        about: "keeps the replicas of accounts alike",
        kind: Kind::Daemon(db::account::replicator::build, Takes::WithoutPolicies),
    },
    Program {
        name: "account-auditor",
        about: "finds accounts that have gone bad",
        kind: Kind::Daemon(db::account::auditor::build, Takes::Daemon),
    },
    Program {
        name: "account-reaper",
        about: "empties accounts that were deleted",
        kind: Kind::Daemon(db::account::reaper::build, Takes::Daemon),
    },
    Program { name: "container-server", about: "keeps the listings of containers", kind: Kind::Server },
    Program {
        name: "container-replicator",
        about: "keeps the replicas of containers alike",
        kind: Kind::Daemon(db::container::replicator::build, Takes::WithoutPolicies),
    },
    Program {
        name: "container-auditor",
        about: "finds containers that have gone bad",
        kind: Kind::Daemon(db::container::auditor::build, Takes::Daemon),
    },
    Program {
        name: "container-updater",
        about: "tells accounts of their containers",
        kind: Kind::Daemon(db::container::updater::build, Takes::Daemon),
    },
    Program {
        name: "container-sync",
        about: "sends the objects of containers to other containers",
        kind: Kind::Daemon(build_container_sync, Takes::Daemon),
    },
    Program {
        name: "container-reconciler",
        about: "moves objects to their containers' storage policies",
        kind: Kind::ClusterDaemon(build_reconciler, Takes::Daemon),
    },
    Program { name: "object-server", about: "keeps objects", kind: Kind::Server },
    Program {
        name: "object-replicator",
        about: "brings objects to where the ring wants them",
        kind: Kind::Daemon(obj::replicator::build, Takes::Replicator),
    },
    Program {
        name: "object-reconstructor",
        about: "brings fragments to where the ring wants them, and rebuilds lost ones",
        kind: Kind::Daemon(obj::reconstructor::build, Takes::WithoutPolicies),
    },
    Program {
        name: "object-updater",
        about: "sends container updates that were put off",
        kind: Kind::Daemon(obj::updater::build, Takes::Daemon),
    },
    Program {
        name: "object-auditor",
        about: "finds objects that have gone bad",
        kind: Kind::Daemon(obj::auditor::build, Takes::ObjectAuditor),
    },
    Program {
        name: "object-expirer",
        about: "deletes objects whose time has come",
        kind: Kind::ClusterDaemon(build_expirer, Takes::ObjectExpirer),
    },
];

fn build_expirer(conf: &Conf, ctx: &Context) -> Result<Arc<dyn Daemon>, ConfigError> {
    obj::expirer::build(conf, ctx, &registry())
}

/// On each node; its objects come through a proxy's pipeline of its own.
fn build_container_sync(conf: &Conf, ctx: &Context) -> Result<Arc<dyn Daemon>, ConfigError> {
    db::container::sync::build(conf, ctx, &registry())
}

fn build_reconciler(conf: &Conf, ctx: &Context) -> Result<Arc<dyn Daemon>, ConfigError> {
    db::container::reconciler::build(conf, ctx, &registry())
}

/// The program called `name`, with or without `swift-` before it.
pub fn find(name: &str) -> Option<&'static Program> {
    let name = name.strip_prefix("swift-").unwrap_or(name);
    PROGRAMS.iter().find(|program| program.name == name)
}

/// Every app and filter.
pub fn registry() -> Registry {
    let mut registry = Registry::new();
    obj::register(&mut registry);
    db::register(&mut registry);
    proxy::register(&mut registry);
    registry
}

impl Program {
    /// How to build it, if it is a daemon that each node has.
    pub fn build_on_node(&self) -> Option<Build> {
        match self.kind {
            Kind::Daemon(build, _) => Some(build),
            _ => None,
        }
    }

    /// How to build it, if it is a daemon of which one is enough for a cluster.
    pub fn build_on_cluster(&self) -> Option<Build> {
        match self.kind {
            Kind::ClusterDaemon(build, _) => Some(build),
            _ => None,
        }
    }

    /// Runs the program with these words after its name; `prog` is how it was called. Under Swift's name it also takes
    /// Swift's signals to the letter.
    pub fn run(&self, prog: &str, words: &[String]) -> ExitCode {
        let takes = match self.kind {
            Kind::Server => Takes::Server,
            Kind::Daemon(_, takes) | Kind::ClusterDaemon(_, takes) => takes,
        };
        let asked = match swift::parse(prog, takes, words, |path| path.exists()) {
            Ok(asked) => asked,
            Err(ended) => {
                print!("{}", ended.stdout);
                eprint!("{}", ended.stderr);
                return ExitCode::from(ended.code);
            }
        };
        match self.kind {
            Kind::Server => self.run_server(prog, &asked),
            Kind::Daemon(build, _) | Kind::ClusterDaemon(build, _) => {
                daemonize::run_daemon(&self.daemon_launch(asked), build)
            }
        }
    }

    fn run_server(&self, prog: &str, asked: &swift::Asked) -> ExitCode {
        let swift_signals = prog.starts_with("swift-");
        let launch = supervisor::Launch::new(self.name, &asked.conf_path, asked.verbose, swift_signals);
        let launch = match launch {
            Ok(launch) => launch,
            Err(err) => {
                eprintln!("{prog}: {err}");
                return ExitCode::FAILURE;
            }
        };
        if !asked.test_config {
            return supervisor::run_server(&launch, &registry());
        }
        match supervisor::test_config(&launch, &registry()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(err) => {
                eprintln!("{err}");
                ExitCode::FAILURE
            }
        }
    }

    fn daemon_launch(&self, asked: swift::Asked) -> daemonize::Launch {
        daemonize::Launch {
            name: self.name.to_owned(),
            conf_path: asked.conf_path,
            once: asked.once,
            verbose: asked.verbose,
            args: asked.args,
            threads: threads(self.name),
        }
    }
}

/// Ours, and Swift's.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (Swift 2.38.3)");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_both_their_names() {
        assert_eq!(find("swift-object-server").map(|p| p.name), Some("object-server"));
        assert_eq!(find("container-updater").map(|p| p.name), Some("container-updater"));
        assert!(find("up").is_none() && find("swift-").is_none());
    }

    #[test]
    fn the_version_names_the_swift_that_the_services_say_they_are() {
        assert!(VERSION.ends_with(&format!("(Swift {})", service::VERSION)));
    }
}
