//! `sync_method = rsync`: suffixes travel by the program `rsync`, and the receiver is told by a REPLICATE request which of its
//! suffixes to hash again.
//!
//! The arguments, the lines of the log and what counts as success are Swift's. rsync puts files where the receiver's object
//! server knows nothing of them: until it has been told it answers with the hashes of before.
//!
//! Different from Swift's on purpose: the suffixes of a REPLICATE request are told in several requests when they are more
//! than a request line holds, which Swift's server would refuse.

use std::time::{Duration, Instant};

use common::config::{ConfigError, Section};
use common::hash::Suffix;
use common::policy::data_dir;
use common::repr::python_list;
use ring::Device;
use service::rsync::{Module, Rsync, returncode};

use super::job::Job;
use super::{Replicator, SyncError};

/// Suffixes in one REPLICATE request: Swift's servers take a request line of 8 KiB.
const SUFFIXES_A_REQUEST: usize = 1024;

/// The options of a transfer.
pub struct RsyncConf {
    timeout: Duration,
    /// As written, like the next one: rsync reads them.
    io_timeout: String,
    bwlimit: String,
    compress: bool,
    module: Module,
    log_transfers: bool,
    /// Characters of the lines that show the arguments; 0 for all.
    error_line_length: usize,
}

impl RsyncConf {
    pub fn from_section(section: &Section) -> Result<Self, ConfigError> {
        Ok(Self {
            timeout: Duration::from_secs(section.int("rsync_timeout", 900)?),
            io_timeout: section.str("rsync_io_timeout", "30"),
            bwlimit: section.str("rsync_bwlimit", "0"),
            compress: section.bool("rsync_compress", false)?,
            module: Module::from_section(section, "object")?,
            log_transfers: section.bool("log_rsync_transfers", true)?,
            error_line_length: section.int("rsync_error_log_line_length", 0)?,
        })
    }

    /// The command line that sends `sources`, suffix dirs of the job, to a node.
    fn args(&self, job: &Job, node: &Device, sources: impl Iterator<Item = String>) -> Vec<String> {
        let mut args: Vec<String> = [
            "rsync",
            "--recursive",
            "--whole-file",
            "--human-readable",
            "--xattrs",
            "--itemize-changes",
            "--ignore-existing",
        ]
        .map(str::to_string)
        .to_vec();
        args.push(format!("--timeout={}", self.io_timeout));
        args.push(format!("--contimeout={}", self.io_timeout));
        args.push(format!("--bwlimit={}", self.bwlimit));
        // rsync's own temporary files, when a transfer to this node is under way.
        args.push(format!("--exclude=.*.{}", "[0-9a-zA-Z]".repeat(6)));
        if self.compress && job.region != node.region {
            args.push("--compress".to_string());
        }
        args.extend(sources);
        let (module, objects) = (self.module.of(node), data_dir("objects", job.manager.policy()));
        args.push(format!("{module}/{}/{objects}/{}", node.device, job.partition));
        args
    }

    fn limited(&self, line: String) -> String {
        match self.error_line_length {
            0 => line,
            length => line.chars().take(length).collect(),
        }
    }
}

impl Replicator {
    /// Whether rsync has sent the suffixes.
    pub(super) async fn rsync(
        &self,
        conf: &RsyncConf,
        node: &Device,
        job: &Job,
        suffixes: &[Suffix],
    ) -> Result<bool, SyncError> {
        let paths: Vec<_> = suffixes.iter().map(|suffix| job.path.join(suffix.to_string())).collect();
        let there = move || paths.into_iter().filter(|path| path.exists()).collect::<Vec<_>>();
        let sources = self.ctx.disk_pools.run(&job.device, there).await;
        if sources.is_empty() {
            return Ok(false);
        }
        let sources = sources.iter().map(|path| path.display().to_string());
        let success = self.transfer(conf, &conf.args(job, node, sources)).await?;
        // Part of the files may be there although it failed. What a handoff has sent in vain it sends again.
        if success || !job.delete {
            for some in suffixes.chunks(SUFFIXES_A_REQUEST) {
                let names: Vec<String> = some.iter().map(ToString::to_string).collect();
                self.replicate_request(node, job, &names.join("-"))
                    .await
                    .map_err(|err| SyncError::Notify(err.to_string()))?;
            }
        }
        Ok(success)
    }

    /// Runs a command line and tells the log of it; whether it ended well.
    async fn transfer(&self, conf: &RsyncConf, args: &[String]) -> Result<bool, SyncError> {
        let started = Instant::now();
        let mut rsync = Rsync::start(args).map_err(SyncError::Rsync)?;
        let Ok(ended) = tokio::time::timeout(conf.timeout, rsync.end()).await else {
            self.logger.error(conf.limited(format!(
                "Killing long-running rsync after {}s: {}",
                conf.timeout.as_secs(),
                python_list(args)
            )));
            rsync.kill().await;
            return Ok(false);
        };
        let (output, status) = ended.map_err(SyncError::Rsync)?;
        self.log_output(conf, &output, status.success());
        if !status.success() {
            self.logger.error(conf.limited(format!(
                "Bad rsync return code: {} <- {}",
                returncode(status),
                python_list(args)
            )));
            return Ok(false);
        }
        let [.., source, destination] = args else { return Ok(true) };
        let source = &source[..source.len().saturating_sub(3)];
        let secs = started.elapsed().as_secs_f64();
        let line = format_args!("Successful rsync of {source}... to {destination} ({secs:.3})");
        if output.is_empty() {
            self.logger.debug(line);
        } else {
            self.logger.info(line);
        }
        Ok(true)
    }

    fn log_output(&self, conf: &RsyncConf, output: &[u8], success: bool) {
        for line in String::from_utf8_lossy(output).split('\n') {
            // Directories that were made say nothing; files that were sent begin with `<`.
            if line.is_empty() || line.starts_with("cd+") || (line.starts_with('<') && !conf.log_transfers) {
                continue;
            }
            if success {
                self.logger.debug(line);
            } else {
                self.logger.error(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_with_a_placeholder_that_does_not_exist_is_refused() {
        let section = |module: &str| Section::from_pairs("object-replicator", [("rsync_module", module)]);
        let problem = RsyncConf::from_section(&section("{host}::object")).err().unwrap().to_string();
        assert!(problem.contains("Cannot interpolate rsync_module, invalid variable: 'host'"), "{problem}");
        assert!(RsyncConf::from_section(&section("{ip}::object///")).is_ok());
    }
}
