//! `swift-reconciler-enqueue`: puts an object into the container-reconciler's queue, for an operator who knows that it is in the
//! wrong policy. As Swift's, it knows no other folder than /etc/swift.

use common::Clock;
use common::quote::quote_path;
use common::timestamp::decode_timestamps;
use db::container::reconciler_queue::{Op, ToEnqueue, enqueue};
use service::direct_client::DirectClient;
use service::http::{Pool, split_path};

use super::{Cluster, Output, SWIFT_DIR};
use crate::cli::optparse::{HELP, Opt, Usage};

const OP: Opt = Opt {
    short: Some('X'),
    long: "op",
    value: Some("OP"),
    help: "what was done to the object: PUT, the default, or DELETE",
};
const FORCE: Opt = Opt {
    short: Some('f'),
    long: "force",
    value: None,
    help: "put it into the queue again, even if it has been taken out later than the timestamp",
};

pub(super) fn run(prog: &str, words: &[String]) -> Output {
    run_in(SWIFT_DIR, prog, words)
}

fn run_in(swift_dir: &str, prog: &str, words: &[String]) -> Output {
    let usage = Usage {
        prog,
        text: format!(
            "{prog} <policy_index> </a/c/o> <timestamp> [options]\n\n\
             The object is in the policy of that index, with that timestamp."
        ),
        options: &[&HELP, &OP, &FORCE],
    };
    let (found, positional) = match usage.split(words) {
        Ok(split) => split,
        Err(ended) => return ended.into(),
    };
    let (mut op, mut force) = (Op::Put, false);
    for (option, value) in found {
        match (option.long, value.as_str()) {
            ("op", "PUT") => op = Op::Put,
            ("op", "DELETE") => op = Op::Delete,
            ("op", other) => {
                let problem = format!("option -X: invalid choice: '{other}' (choose from 'PUT', 'DELETE')");
                return usage.bad_option(&problem).into();
            }
            _ => force = true,
        }
    }
    let [policy_index, path, timestamp] = &positional[..] else {
        return Output { stdout: usage.help().into_bytes(), ..Output::default() };
    };
    let out = Output::default();
    match put(swift_dir, [policy_index, path, timestamp], op, force) {
        Ok(queue) => {
            let mut out = out;
            out.line(queue);
            out
        }
        Err(problem) => out.fail(problem),
    }
}

/// The queue's container that has it now.
fn put(
    swift_dir: &str,
    [policy_index, path, timestamp]: [&str; 3],
    op: Op,
    force: bool,
) -> Result<String, String> {
    let cluster = Cluster::open(swift_dir).map_err(|err| err.to_string())?;
    let ring = cluster.ring("container").map_err(|err| err.to_string())?;
    let policy = cluster.conf.policies.parse_header(Some(policy_index)).ok();
    // Swift does not say which one, either.
    let policy = policy.ok_or("ERROR: invalid storage policy index: None")?;
    let names = split_path(path, 3, 3, true);
    let names = names.map_err(|()| format!("ERROR: Invalid path: {}", quote_path(path)))?;
    let names: Vec<&str> = names.iter().flatten().map(String::as_str).collect();
    let [account, container, object] = names[..] else {
        return Err(format!("ERROR: Invalid path: {}", quote_path(path)));
    };
    decode_timestamps(timestamp, false).map_err(|err| err.to_string())?;
    let clock = Clock::system();
    let wanted = ToEnqueue {
        names: [account, container, object],
        policy_index: policy.index.0.into(),
        timestamp,
        op,
        recorded: force.then(|| clock.now()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let client = DirectClient::new(Pool::default(), clock).over_replication_network();
    let told = runtime.map_err(|err| err.to_string())?.block_on(enqueue(
        &client,
        &ring,
        &cluster.conf.hash,
        &wanted,
    ));
    told.ok_or_else(|| "ERROR: unable to enqueue!".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROG: &str = "swift-reconciler-enqueue";

    #[test]
    fn what_is_no_object_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[swift-hash]\nswift_hash_path_suffix = s\n[storage-policy:0]\nname = zero\n";
        std::fs::write(dir.path().join("swift.conf"), text).unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../ring/tests/golden/saio.ring.gz");
        std::fs::copy(golden, dir.path().join("container.ring.gz")).unwrap();
        let swift_dir = dir.path().display().to_string();
        for (line, code, stderr) in [
            ("7 /a/c/o 1", 1, "ERROR: invalid storage policy index: None\n"),
            ("x /a/c/o 1", 1, "ERROR: invalid storage policy index: None\n"),
            ("0 a/c/o 1", 1, "ERROR: Invalid path: a/c/o\n"),
            ("0 /a/c 1", 1, "ERROR: Invalid path: /a/c\n"),
            ("0 /a/c/o x", 1, "could not convert string to float: 'x'\n"),
            ("-f 0 /a/c/o", 0, ""),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let out = run_in(&swift_dir, PROG, &words);
            assert_eq!((out.code, out.stderr.as_str()), (code, stderr), "{line}");
            assert_eq!(out.stdout.starts_with(b"Usage: swift-reconciler-enqueue <policy_index>"), code == 0);
        }
        let words = ["-X", "POST", "0", "/a/c/o", "1"].map(str::to_owned);
        let out = run_in(&swift_dir, PROG, &words);
        assert_eq!(out.code, 2);
        assert!(out.stderr.ends_with("option -X: invalid choice: 'POST' (choose from 'PUT', 'DELETE')\n"));
    }
}
