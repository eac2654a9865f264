//! One end of SSYNC for `crates/probe/tests/peer/ssync.py`: `object_peer object-server CONF` serves until it is killed,
//! `object_peer object-replicator CONF` makes one pass.

use std::path::Path;

use common::config::Conf;
use service::{Context, Mode, Process, Registry, daemon};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, conf] = &arguments[..] else {
        return Err("expected a program's name and its configuration".into());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let process = Process::new().with_console();
    if name == "object-replicator" {
        let conf = Conf::load(Path::new(conf))?;
        let ctx = Context::new(&process, name, &conf.section_or_default(name))?;
        let replicator = obj::replicator::build(&conf, &ctx)?;
        runtime.block_on(daemon::run(replicator, &ctx, Mode::Once));
        return Ok(());
    }
    let mut registry = Registry::new();
    obj::register(&mut registry);
    let _inside = runtime.enter();
    let _server = service::server::load(&process, &registry, name, Path::new(conf))?.bind_and_start()?;
    runtime.block_on(std::future::pending::<()>());
    Ok(())
}
