//! How `martlet up stop-node 3` reaches the process that runs the cluster: a local socket in the data folder.
//!
//! One JSON line is asked, one JSON line is answered: `{"command": "stop-node", "node": 3}`, `{"ok": "node 3 is stopped"}`
//! or `{"error": "..."}`. The path of a local socket is limited to about 100 bytes, which data folders are not: so the
//! socket is named through `/proc/self/fd`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::cluster::SharedCluster;
use super::show;

const SOCKET: &str = "control.sock";
/// A question is no longer than this.
const MAX_QUESTION: u64 = 4096;
/// A node needs a moment to stop and start.
const PATIENCE: Duration = Duration::from_secs(30);

/// What can be asked of a running cluster.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Command {
    StopNode(u16),
    StartNode(u16),
    Status,
}

impl Command {
    fn to_json(self) -> Value {
        match self {
            Command::StopNode(node) => json!({ "command": "stop-node", "node": node }),
            Command::StartNode(node) => json!({ "command": "start-node", "node": node }),
            Command::Status => json!({ "command": "status" }),
        }
    }

    fn from_json(value: &Value) -> Result<Command> {
        let node = || {
            let node = value["node"].as_u64().and_then(|node| u16::try_from(node).ok());
            node.context("expected the number of a node")
        };
        match value["command"].as_str().unwrap_or_default() {
            "stop-node" => Ok(Command::StopNode(node()?)),
            "start-node" => Ok(Command::StartNode(node()?)),
            "status" => Ok(Command::Status),
            other => Err(anyhow!("unknown command {other:?}")),
        }
    }
}

/// A short name for the socket in `dir`, valid while the file is open.
fn socket_path(dir: &Path) -> Result<(File, PathBuf)> {
    let open = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", open.as_raw_fd()));
    Ok((open, path))
}

/// Listens in the data folder. The folder's lock is held, so a socket that is there is a dead one.
pub fn listen(dir: &Path) -> Result<UnixListener> {
    let (_open, path) = socket_path(dir)?;
    if let Err(err) = std::fs::remove_file(&path)
        && err.kind() != std::io::ErrorKind::NotFound
    {
        return Err(err).with_context(|| format!("cannot remove {}", dir.join(SOCKET).display()));
    }
    UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", dir.join(SOCKET).display()))
}

/// Answers questions for ever.
pub async fn serve(listener: UnixListener, cluster: SharedCluster, show: show::Show) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let (cluster, show) = (cluster.clone(), show.clone());
        tokio::spawn(async move {
            let (read, mut write) = stream.into_split();
            let mut question = String::new();
            let mut lines = tokio::io::BufReader::new(read.take(MAX_QUESTION));
            if lines.read_line(&mut question).await.is_err() {
                return;
            }
            let answer = match answer(&question, &cluster, &show).await {
                Ok(text) => json!({ "ok": text }),
                Err(err) => json!({ "error": format!("{err:#}") }),
            };
            // Who asked may have gone.
            let _ = write.write_all(format!("{answer}\n").as_bytes()).await;
        });
    }
}

async fn answer(question: &str, cluster: &SharedCluster, show: &show::Show) -> Result<String> {
    let command = Command::from_json(&serde_json::from_str(question)?)?;
    let (changed, text) = match command {
        Command::Status => return Ok(show::status(cluster).await),
        Command::StopNode(node) if cluster.stop_node(node).await? => {
            (true, format!("node {node} is stopped"))
        }
        Command::StopNode(node) => (false, format!("node {node} was stopped already")),
        Command::StartNode(node) if cluster.start_node(node).await? => {
            (true, format!("node {node} is started"))
        }
        Command::StartNode(node) => (false, format!("node {node} runs already")),
    };
    if changed {
        show.event(&text);
    }
    Ok(text)
}

/// Asks the cluster that runs on `dir`.
pub fn ask(dir: &Path, command: Command) -> Result<String> {
    let nobody = || format!("no cluster runs on {}; start it with: martlet up --data {0}", dir.display());
    let (_open, path) = socket_path(dir).map_err(|_| anyhow!(nobody()))?;
    let mut stream = UnixStream::connect(&path).map_err(|_| anyhow!(nobody()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{}\n", command.to_json()).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the cluster did not answer")?;
    let answer: Value = serde_json::from_str(&line).context("the cluster did not answer")?;
    match (answer["ok"].as_str(), answer["error"].as_str()) {
        (Some(text), _) => Ok(text.to_owned()),
        (_, Some(error)) => bail!("{error}"),
        _ => bail!("the cluster answered {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_their_json() {
        for command in [Command::StopNode(3), Command::StartNode(1), Command::Status] {
            assert_eq!(Command::from_json(&command.to_json()).unwrap(), command);
        }
        assert!(Command::from_json(&json!({"command": "stop-node", "node": -1})).is_err());
    }

    #[test]
    fn asking_where_nothing_runs_says_how_to_start() {
        let dir = tempfile::tempdir().unwrap();
        let err = ask(dir.path(), Command::Status).unwrap_err().to_string();
        assert!(err.contains("no cluster runs on") && err.contains("martlet up --data"), "{err}");
    }
}
