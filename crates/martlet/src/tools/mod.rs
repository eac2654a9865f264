//! Swift's tools for operators: they do one thing and end. What they print is Swift's to the byte, as scripts read it; their
//! help is in words of our own.

mod db_info;
mod get_nodes;
mod locations;
mod object_info;
mod object_relinker;
mod reconciler_enqueue;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use common::SwiftConf;
use ring::{Ring, RingError};

use crate::cli::optparse::Ended;

const SWIFT_DIR: &str = "/etc/swift";

/// A tool of Swift.
pub struct Tool {
    /// `object-info`.
    pub name: &'static str,
    pub about: &'static str,
    run: fn(&str, &[String]) -> Output,
}

pub const TOOLS: [Tool; 6] = [
    Tool { name: "account-info", about: "shows what an account's database holds", run: db_info::run_account },
    Tool {
        name: "container-info",
        about: "shows what a container's database holds",
        run: db_info::run_container,
    },
    Tool { name: "object-info", about: "shows what an object's file holds", run: object_info::run },
    Tool {
        name: "object-relinker",
        about: "links objects into the partitions of a greater part power",
        run: object_relinker::run,
    },
    Tool {
        name: "reconciler-enqueue",
        about: "puts an object into the container-reconciler's queue",
        run: reconciler_enqueue::run,
    },
    Tool { name: "get-nodes", about: "shows where the ring puts something", run: get_nodes::run },
];

/// The tool called `name`, with or without `swift-` before it.
pub fn find(name: &str) -> Option<&'static Tool> {
    let name = name.strip_prefix("swift-").unwrap_or(name);
    TOOLS.iter().find(|tool| tool.name == name)
}

impl Tool {
    /// Runs the tool with these words after its name; `prog` is how it was called.
    pub fn run(&self, prog: &str, words: &[String]) -> ExitCode {
        let output = (self.run)(prog, words);
        // Nobody is left to tell when the streams are gone.
        let _ = std::io::stdout().lock().write_all(&output.stdout);
        let _ = std::io::stderr().lock().write_all(output.stderr.as_bytes());
        ExitCode::from(output.code)
    }
}

/// What a tool says, and the code it ends with. Names and values on disk may be any bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Output {
    code: u8,
    stdout: Vec<u8>,
    stderr: String,
}

impl Output {
    fn line(&mut self, text: impl AsRef<[u8]>) {
        self.stdout.extend_from_slice(text.as_ref());
        self.stdout.push(b'\n');
    }

    /// The end, with what went wrong on stderr unless it has been said.
    fn fail(mut self, error: impl std::fmt::Display) -> Self {
        self.code = 1;
        self.stderr = error.to_string();
        if !self.stderr.is_empty() {
            self.stderr.push('\n');
        }
        self
    }
}

impl From<Ended> for Output {
    fn from(ended: Ended) -> Self {
        Output { code: ended.code, stdout: ended.stdout.into_bytes(), stderr: ended.stderr }
    }
}

/// `swift.conf` and the rings beside it.
struct Cluster {
    dir: PathBuf,
    conf: Arc<SwiftConf>,
}

impl Cluster {
    fn open(dir: &str) -> Result<Self, common::ConfigError> {
        Ok(Cluster { dir: dir.into(), conf: SwiftConf::load(Path::new(dir))? })
    }

    /// The ring `NAME.ring.gz`.
    fn ring(&self, name: &str) -> Result<Arc<Ring>, RingError> {
        Ring::load(&self.dir.join(format!("{name}.ring.gz"))).map(Arc::new)
    }
}
