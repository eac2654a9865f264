//! What a person sees of a running cluster: a live table on a terminal, lines otherwise.
//!
//! The table has a line per node with what its daemons do just now; it is drawn once a second, and only when something
//! has changed. Without a terminal there is a line when the cluster is up, when a node is stopped or started, and for
//! every warning of a service. All lines of all services are in `martlet.log`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use service::daemon::{Snapshot, State};
use service::logs::{Level, Sink};

use super::cluster::{Cluster, NodeStatus, SharedCluster};
use super::settings::Settings;

/// The log is begun anew past this size; one old file is kept.
const LOG_BYTES: u64 = 64 << 20;
const REDRAW: Duration = Duration::from_secs(1);

/// Where to write to the person.
#[derive(Clone)]
pub struct Show {
    table: Option<MultiProgress>,
}

impl Show {
    pub fn new() -> Show {
        let is_terminal = std::io::stderr().is_terminal();
        Show {
            table: is_terminal
                .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(4))),
        }
    }

    /// Something that happened: a line above the table, or among the lines.
    pub fn event(&self, text: &str) {
        let written = match &self.table {
            Some(table) => table.println(text),
            None => writeln!(std::io::stderr().lock(), "{text}"),
        };
        // Nobody is left to tell when stderr is gone.
        let _ = written;
    }

    /// Keeps the table up to date for ever.
    pub async fn run(&self, cluster: SharedCluster) {
        let Some(table) = &self.table else { return std::future::pending().await };
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let bars: Vec<ProgressBar> = (0..cluster.folder().settings.nodes)
            .map(|_| table.add(ProgressBar::new(0).with_style(style.clone())))
            .collect();
        let mut shown = Vec::new();
        loop {
            let lines = node_lines(&cluster).await;
            if lines != shown {
                for (bar, line) in bars.iter().zip(&lines) {
                    bar.set_message(line.clone());
                }
                shown = lines;
            }
            tokio::time::sleep(REDRAW).await;
        }
    }

    /// Takes the table off the screen.
    pub fn end(&self) {
        if let Some(table) = &self.table {
            let _ = table.clear();
        }
    }
}

/// How to reach the cluster.
pub fn welcome(settings: &Settings, data: &Path) -> String {
    let ip = if settings.ip == "0.0.0.0" { "127.0.0.1" } else { &settings.ip };
    let auth = format!("http://{ip}:{}/auth/v1.0", settings.port);
    let (nodes, devices, replicas) = (settings.nodes, settings.devices, settings.replicas);
    format!(
        "The cluster is up: {nodes} nodes with {devices} devices each, {replicas} replicas, data in {data}\n\n  \
         curl -i -H 'X-Auth-User: test:tester' -H 'X-Auth-Key: testing' {auth}\n  \
         swift -A {auth} -U test:tester -K testing stat\n  \
         rclone lsd ':swift,user=\"test:tester\",key=testing,auth=\"{auth}\":'\n\n  \
         martlet up stop-node 3     takes a node away;  start-node 3 brings it back;  status shows them\n  \
         {log}     what all services say\n",
        data = data.display(),
        log = data.join(LOG).display(),
    )
}

/// What `martlet up status` prints.
pub async fn status(cluster: &Cluster) -> String {
    let settings = &cluster.folder().settings;
    let head = format!("proxy on {}:{}", settings.ip, settings.port);
    std::iter::once(head).chain(node_lines(cluster).await).collect::<Vec<_>>().join("\n")
}

async fn node_lines(cluster: &Cluster) -> Vec<String> {
    let daemons = cluster.process().progress.snapshots();
    cluster.status().await.iter().map(|node| node_line(node, &daemons)).collect()
}

fn node_line(node: &NodeStatus, daemons: &[Snapshot]) -> String {
    let NodeStatus { node, runs, object_port } = node;
    let head = format!("node {node} :{object_port}-{}", object_port + 2);
    if !runs {
        return format!("{head} stopped");
    }
    let name = format!("node{node}");
    let words: Vec<String> = daemons.iter().filter(|d| d.node == name).map(daemon_words).collect();
    format!("{head} up  {}", words.join("  ")).trim_end().to_owned()
}

/// `object-replicator 12/48 3s left` while it runs. The width changes little, so that the table stands still.
fn daemon_words(daemon: &Snapshot) -> String {
    let state = match (daemon.state, daemon.last_took) {
        (State::Running, _) if daemon.total > 0 => {
            let eta =
                daemon.eta.filter(|eta| eta.as_secs() > 0).map(|eta| format!(" {}s left", eta.as_secs()));
            format!("{}/{}{}", daemon.done, daemon.total, eta.unwrap_or_default())
        }
        (State::Running, _) => "runs".to_owned(),
        (State::Stopped, _) => "stopped".to_owned(),
        (State::Waiting, None) => "waits".to_owned(),
        (State::Waiting, Some(_)) => "idle".to_owned(),
    };
    format!("{} {state:<7}", daemon.name)
}

const LOG: &str = "martlet.log";

/// Writes the lines of all services to `martlet.log`, and warnings to the person too: those that differ only in numbers
/// once in [`QUIET`], or a node that is down would fill the screen.
pub struct Log {
    path: PathBuf,
    file: Mutex<(File, u64)>,
    clock: common::Clock,
    show: Show,
    shown: Mutex<HashMap<String, Instant>>,
}

/// A warning is not shown again so soon.
const QUIET: Duration = Duration::from_secs(60);
/// Kinds of warnings that are remembered.
const MAX_KINDS: usize = 256;

/// What a warning is about, without the numbers and ids in it.
fn kind_of(line: &str) -> String {
    let words = line.split_whitespace().filter(|word| !word.bytes().any(|b| b.is_ascii_digit()));
    words.take(8).collect::<Vec<_>>().join(" ")
}

impl Log {
    pub fn open(data: &Path, clock: common::Clock, show: Show) -> Result<Arc<Log>> {
        let path = data.join(LOG);
        let file = begin_anew(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Arc::new(Log { path, file: Mutex::new((file, 0)), clock, show, shown: Mutex::default() }))
    }
}

impl Log {
    fn is_news(&self, line: &str) -> bool {
        let mut shown = self.shown.lock();
        if shown.len() >= MAX_KINDS {
            shown.clear();
        }
        let before = shown.get(&kind_of(line)).is_some_and(|at| at.elapsed() < QUIET);
        if !before {
            shown.insert(kind_of(line), Instant::now());
        }
        !before
    }
}

fn begin_anew(path: &Path) -> std::io::Result<File> {
    if path.exists() {
        common::fs::rename(path, &path.with_extension("log.old"))?;
    }
    File::create(path)
}

impl Sink for Log {
    fn line(&self, level: Level, line: &str) {
        if level >= Level::Warning && self.is_news(line) {
            self.show.event(&format!("{} {line}", level.name()));
        }
        let text = format!("{} {} {line}\n", self.clock.now().isoformat(), level.name());
        let mut file = self.file.lock();
        if file.1 > LOG_BYTES
            && let Ok(new) = begin_anew(&self.path)
        {
            *file = (new, 0);
        }
        file.1 += text.len() as u64;
        // A full disk must not stop the services that it is the log of.
        let _ = file.0.write_all(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(state: State) -> Snapshot {
        Snapshot {
            node: "node1".into(),
            name: "object-replicator".into(),
            state,
            done: 12,
            total: 48,
            passes: 1,
            elapsed: Duration::from_secs(1),
            last_took: Some(Duration::from_millis(5)),
            rate: 12.0,
            eta: Some(Duration::from_secs(3)),
            note: String::new(),
        }
    }

    #[test]
    fn a_line_tells_of_a_node_and_its_daemons() {
        let up = NodeStatus { node: 1, runs: true, object_port: 6210 };
        let line = node_line(&up, &[snapshot(State::Running)]);
        assert_eq!(line, "node 1 :6210-6212 up  object-replicator 12/48 3s left");
        let idle = node_line(&up, &[snapshot(State::Waiting)]);
        assert_eq!(idle, "node 1 :6210-6212 up  object-replicator idle");
        let down = NodeStatus { runs: false, ..up };
        assert_eq!(node_line(&down, &[snapshot(State::Stopped)]), "node 1 :6210-6212 stopped");
    }

    #[test]
    fn the_same_trouble_is_shown_once_in_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), common::Clock::system(), Show { table: None }).unwrap();
        let trouble =
            |node: u16| format!("object-replicator: Error syncing with node: 127.0.0.1:62{node}/n1: refused");
        assert!(log.is_news(&trouble(10)) && !log.is_news(&trouble(20)));
        assert!(log.is_news("object-updater: no such device"));
    }

    #[test]
    fn the_log_of_the_run_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        for run in ["first", "second"] {
            let log = Log::open(dir.path(), common::Clock::system(), Show { table: None }).unwrap();
            log.line(Level::Info, run);
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("martlet.log").ends_with(" INFO second\n"));
        assert!(read("martlet.log.old").ends_with(" INFO first\n"));
    }
}
