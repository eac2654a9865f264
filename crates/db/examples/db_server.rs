//! Serves the configuration of an account or container server until standard input ends: `db_server container-server CONF`.
//! With `container-updater` in front it makes one pass of that daemon instead.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use common::Conf;
use service::{Context, Mode, Process, Registry, daemon};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, conf] = &arguments[..] else {
        return Err("expected a server's name and its configuration".into());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    if name == "container-updater" {
        let conf = Conf::load(Path::new(conf))?;
        let ctx = Context::new(&Process::new(), name, &conf.section_or_default(name))?;
        let updater = db::container::updater::build(&conf, &ctx)?;
        runtime.block_on(daemon::run(updater, &ctx, Mode::Once));
        return Ok(());
    }
    let mut registry = Registry::new();
    db::register(&mut registry);
    let _inside = runtime.enter();
    let server =
        service::server::load(&Process::new(), &registry, name, Path::new(conf))?.bind_and_start()?;
    println!("{}", server.addrs().iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    runtime.block_on(server.stop(Duration::from_secs(1)));
    Ok(())
}
