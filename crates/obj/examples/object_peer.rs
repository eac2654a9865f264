//! One end of SSYNC for `crates/probe/tests/peer/ssync.py`: `object_peer object-server CONF` serves until it is killed,
//! `object_peer object-replicator CONF` and `object_peer object-reconstructor CONF` make one pass.

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
    let build = match name.as_str() {
        "object-replicator" => Some(obj::replicator::build as service::daemonize::Build),
        "object-reconstructor" => Some(obj::reconstructor::build as service::daemonize::Build),
        _ => None,
    };
    if let Some(build) = build {
        let conf = Conf::load(Path::new(conf))?;
        let ctx = Context::new(&process, name, &conf.section_or_default(name))?;
        runtime.block_on(daemon::run(build(&conf, &ctx)?, &ctx, Mode::Once));
        return Ok(());
    }
    let mut registry = Registry::new();
    obj::register(&mut registry);
    let _inside = runtime.enter();
    let _server = service::server::load(&process, &registry, name, Path::new(conf))?.bind_and_start()?;
    runtime.block_on(std::future::pending::<()>());
    Ok(())
}
