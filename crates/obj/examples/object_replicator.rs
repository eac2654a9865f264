//! One pass of the object replicator: `object_replicator CONF`.
use common::config::Conf;
use service::context::{Context, Process};
use service::daemon::{Mode, run};

#[tokio::main]
async fn main() {
    let path = std::env::args().nth(1).expect("CONF");
    let conf = Conf::load(path.as_ref()).expect("conf");
    let process = Process::new().with_console();
    let ctx = Context::new(&process, "object-replicator", &conf.section_or_default("object-replicator"))
        .expect("ctx");
    let daemon = obj::replicator::build(&conf, &ctx).expect("daemon");
    run(daemon, &ctx, Mode::Once).await;
}
