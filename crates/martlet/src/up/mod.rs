//! `martlet up`: a whole cluster in one process, for a desk, a test or a demonstration.
//!
//! The configuration lies in the data folder as ordinary files, one per service, and every service is built from its
//! file by the code of the program of its name: any of them can be stopped here and run by hand, by Martlet or by Python
//! Swift, on the same disks.

mod cluster;
mod conf;
mod control;
mod folder;
mod settings;
mod show;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use service::Process;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

use cluster::Cluster;
use control::Command;
use folder::Folder;
use settings::Wished;
use show::{Log, Show};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = false)]
pub struct Options {
    /// Where everything is kept
    #[arg(long, global = true, default_value = "martlet-data", value_name = "DIR")]
    data: PathBuf,
    /// The proxy's address [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    ip: Option<String>,
    /// The proxy's port [default: 8080]
    #[arg(long)]
    port: Option<u16>,
    /// Storage nodes take ten ports each above this one [default: 6200]
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// Storage nodes [default: 4]
    #[arg(long)]
    nodes: Option<u16>,
    /// Devices of each node [default: 2]
    #[arg(long)]
    devices: Option<u16>,
    /// Replicas of everything [default: 3]
    #[arg(long)]
    replicas: Option<u16>,
    /// 2 to this power is the number of partitions [default: 6]
    #[arg(long, value_name = "POWER")]
    part_power: Option<u32>,
    /// Write the folder, start nothing
    #[arg(long)]
    prepare: bool,
    #[command(subcommand)]
    command: Option<Ask>,
}

/// Asked of the cluster that runs on the folder.
#[derive(Copy, Clone, Debug, clap::Subcommand)]
enum Ask {
    /// Take a storage node away: its servers refuse connections, its daemons end
    StopNode { node: u16 },
    /// Bring a storage node back
    StartNode { node: u16 },
    /// What runs, and what the daemons do
    Status,
}

pub fn run(options: &Options) -> Result<()> {
    if let Some(ask) = options.command {
        let command = match ask {
            Ask::StopNode { node } => Command::StopNode(node),
            Ask::StartNode { node } => Command::StartNode(node),
            Ask::Status => Command::Status,
        };
        say(&control::ask(&options.data, command)?);
        return Ok(());
    }
    let wished = Wished {
        ip: options.ip.clone(),
        port: options.port,
        base_port: options.base_port,
        nodes: options.nodes,
        devices: options.devices,
        replicas: options.replicas,
        part_power: options.part_power,
    };
    let began = Instant::now();
    let folder = Folder::open(&options.data, &wished)?;
    if options.prepare {
        say(&format!("{} is ready", folder.path.display()));
        return Ok(());
    }
    service::supervisor::raise_file_limit();
    let runtime = Builder::new_multi_thread().enable_all().build().context("cannot start a runtime")?;
    let done = runtime.block_on(serve(folder, began));
    runtime.shutdown_timeout(service::supervisor::STOP_GRACE);
    done
}

/// To stdout, which may have been closed by who has read enough.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

async fn serve(folder: Folder, began: Instant) -> Result<()> {
    let show = Show::new();
    let process = Process::new();
    let log = Log::open(&folder.path, process.clock.clone(), show.clone())?;
    let listener = control::listen(&folder.path)?;
    let cluster = Arc::new(Cluster::new(folder, process.with_sinks(vec![log])));
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    cluster.start().await?;
    let folder = cluster.folder();
    say(&show::welcome(&folder.settings, &folder.path));
    show.event(&format!("up after {:.2} s; Ctrl-C stops it", began.elapsed().as_secs_f64()));
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = control::serve(listener, cluster.clone(), show.clone()) => {}
        () = show.run(cluster.clone()) => {}
    }
    show.end();
    cluster.stop().await;
    Ok(())
}
