//! Objects of an erasure coded policy: proxies and object servers of either implementation, in one cluster, and each on
//! the other's disks. What a client sees of any mix is what it sees of Python's alone.
//!
//! The policy is 4+2, or twice 2+1 on the same devices.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use probe::cluster::{Cluster, SERVERS, listening};
use probe::peer::{self, PATIENCE, Peer};
use ring::Ring;

fn client(cluster: &Cluster, code: Code, step: &str) -> Result<String> {
    let mut script = peer::script("ec_client.py")?;
    script.args([&cluster.port.to_string(), step]);
    peer::success(match code {
        Code::Plain => &mut script,
        Code::Duplicated => script.arg("few"),
    })
}

fn start(cluster: &mut Cluster, storage: Peer, proxy: Peer) -> Result<()> {
    for server in SERVERS {
        cluster.start(if server == "proxy-server" { proxy } else { storage }, server)?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Code {
    Plain,
    Duplicated,
}

fn prepare(dir: &Path, code: Code) -> Result<Cluster> {
    let cluster = Cluster::prepare(dir)?;
    if code == Code::Duplicated {
        let path = cluster.dir.join("etc/swift.conf");
        let plain = std::fs::read_to_string(&path)?;
        let fragments = |data: u8, parity: u8| {
            format!("ec_num_data_fragments = {data}\nec_num_parity_fragments = {parity}\n")
        };
        let duplicated = plain.replace(&fragments(4, 2), &(fragments(2, 1) + "ec_duplication_factor = 2\n"));
        ensure!(duplicated != plain, "{} has no policy 4+2", path.display());
        std::fs::write(path, duplicated)?;
    }
    Ok(cluster)
}

/// What a client sees of a cluster that is all Python's, and then of what it reads after the loss of many fragments, where
/// they are there twice.
struct Expected {
    whole: String,
    degraded: String,
}

fn expected(code: Code) -> Result<Expected> {
    let temp = tempfile::tempdir()?;
    let mut cluster = prepare(temp.path(), code)?;
    let _memcached = cluster.memcached()?;
    start(&mut cluster, Peer::Python, Peer::Python)?;
    let whole = client(&cluster, code, "write")?;
    let degraded = match code {
        Code::Plain => reads(&whole),
        Code::Duplicated => {
            lose_fragments(&fragments(&cluster.dir)?)?;
            client(&cluster, code, "read")?
        }
    };
    Ok(Expected { whole, degraded })
}

/// The first line that differs.
fn compare(found: &str, expected: &str) -> Result<()> {
    for (found, expected) in found.lines().zip(expected.lines()) {
        ensure!(found == expected, "the client sees\n{found}\nand with Python\n{expected}");
    }
    let (found, expected) = (found.lines().count(), expected.lines().count());
    ensure!(found == expected, "{found} answers, and {expected} with Python");
    Ok(())
}

/// The part of what a client sees that only reads.
fn reads(seen: &str) -> String {
    let reads = seen.lines().skip_while(|line| !line.starts_with("GET /ec/object-"));
    reads.map(|line| format!("{line}\n")).collect()
}

/// Stores and reads with some programs, then reads with others on the same disks. Where fragments are there twice, many are
/// lost before that, and at last rebuilt.
fn store_then_serve(first: Who, second: Who, code: Code, expected: &Expected) -> Result<()> {
    let temp = tempfile::tempdir()?;
    let mut cluster = prepare(temp.path(), code)?;
    let _memcached = cluster.memcached()?;
    start(&mut cluster, first.0, first.1)?;
    compare(&client(&cluster, code, "write")?, &expected.whole)?;
    cluster.stop_all()?;
    let whole = fragments(&cluster.dir)?;
    if code == Code::Duplicated {
        lose_fragments(&whole)?;
    }
    start(&mut cluster, second.0, second.1)?;
    compare(&client(&cluster, code, "read")?, &expected.degraded)
        .context("on disks that others have written")?;
    if code == Code::Duplicated {
        cluster.once(first.0, "object-reconstructor")?;
        cluster.once(first.0, "object-reconstructor")?;
        ensure!(fragments(&cluster.dir)? == whole, "not all that was lost is rebuilt by {:?}", first.0);
        compare(&client(&cluster, code, "read")?, &reads(&expected.whole)).context("after all is rebuilt")?;
    }
    cluster.stop_all()?;
    let mut errors = cluster.syslog.errors();
    if code == Code::Duplicated {
        // A copy of a fragment is made when two others are there again, and not of the other copy.
        errors.retain(|line| !line.contains("Unable to get enough responses ("));
    }
    ensure!(errors.is_empty(), "errors were logged:\n{}", errors.join("\n"));
    Ok(())
}

/// The fragments of each object that has any, by its name: index -> hash dirs.
type Fragments = BTreeMap<String, BTreeMap<usize, Vec<PathBuf>>>;

fn fragments(data: &Path) -> Result<Fragments> {
    let mut found = Fragments::new();
    let mut dirs = vec![data.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in dir.read_dir().with_context(|| format!("cannot list {}", dir.display()))? {
            let (path, name) = (entry.as_ref().map(|e| e.path()), entry.as_ref().map(|e| e.file_name()));
            let (Ok(path), Ok(name)) = (path, name) else { continue };
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = name.to_string_lossy().into_owned();
            let Some((_, index)) = name.strip_suffix("#d.data").and_then(|stem| stem.split_once('#')) else {
                continue;
            };
            let metadata = obj::diskfile::read_metadata(&std::fs::File::open(&path)?, false)?;
            let object = String::from_utf8_lossy(metadata.get("name").unwrap_or_default()).into_owned();
            found.entry(object).or_default().entry(index.parse()?).or_default().push(dir.clone());
        }
    }
    found.values_mut().flat_map(BTreeMap::values_mut).for_each(|dirs| dirs.sort());
    Ok(found)
}

/// Of each object both copies of one fragment, and of every other object one copy of the others too: what is left is just
/// enough.
fn lose_fragments(whole: &Fragments) -> Result<()> {
    ensure!(whole.len() > 10, "{} objects", whole.len());
    for (number, object) in whole.values().enumerate() {
        ensure!(
            object.keys().eq(&[0, 1, 2]) && object.values().all(|copies| copies.len() == 2),
            "{object:?}"
        );
        for (index, copies) in object {
            let lost = match (number % 3 == *index, number % 2 == 0) {
                (true, _) => &copies[..],
                (false, true) => &copies[..1],
                (false, false) => &[],
            };
            for dir in lost {
                std::fs::remove_dir_all(dir)?;
                let partition = dir.ancestors().nth(2).context("a hash dir is below a partition")?;
                for file in ["hashes.pkl", "hashes.invalid"] {
                    common::fs::remove_file(&partition.join(file))?;
                }
            }
        }
    }
    Ok(())
}

/// With a node down, two of six fragments of each object are gone, and two handoffs stand in for them.
fn node_may_be_down(code: Code) -> Result<()> {
    let temp = tempfile::tempdir()?;
    let mut cluster = prepare(temp.path(), code)?;
    let _memcached = cluster.memcached()?;
    start(&mut cluster, Peer::Martlet, Peer::Martlet)?;
    let before = client(&cluster, code, "write")?;
    cluster.stop_node("object-server", 1)?;
    let after = client(&cluster, code, "degraded")?;
    for (found, expected) in after.lines().zip(reads(&before).lines()) {
        ensure!(found == expected, "the client sees\n{found}\nand before, with all nodes\n{expected}");
    }
    let stored = after.lines().filter(|line| line.starts_with("PUT ") && line.contains(" 201 ")).count();
    let wanted = if code == Code::Plain { 8 } else { 2 };
    ensure!(stored == wanted, "{stored} of {wanted} objects stored with a node down");
    Ok(())
}

#[test]
fn a_node_may_be_down() -> Result<()> {
    node_may_be_down(Code::Plain)?;
    node_may_be_down(Code::Duplicated)
}

/// Objects of one segment, which Martlet's proxy sends without waiting to be asked, where Python's object server refuses each
/// of them and hangs up: their place is on a device that is not there. They land on the handoffs where Python's proxy puts them.
#[test]
fn what_is_sent_unasked_to_an_unmounted_device_lands_on_a_handoff() -> Result<()> {
    const DEVICE: &str = "n1d1";
    let temp = tempfile::tempdir()?;
    let mut cluster = prepare(temp.path(), Code::Plain)?;
    let _memcached = cluster.memcached()?;
    let conf = cluster.confs("proxy-server")?.remove(0);
    // Nobody is passed by for what it said before.
    let text = std::fs::read_to_string(&conf)?
        .replace("egg:swift#proxy\n", "egg:swift#proxy\nerror_suppression_interval = 0\n");
    std::fs::write(&conf, text)?;
    std::fs::remove_dir_all(cluster.dir.join("node1").join(DEVICE))?;
    let address = listening(&cluster.confs("object-server")?[0])?;
    let refusal = format!(": {address}/{DEVICE}, error: ERROR Insufficient Storage");
    let ring = Ring::load(&cluster.dir.join("etc/object-2.ring.gz"))?;

    let mut run = |proxy: Peer| -> Result<(String, Fragments)> {
        let before = cluster.syslog.errors().len();
        start(&mut cluster, P, proxy)?;
        let seen = client(&cluster, Code::Plain, "refused")?;
        cluster.stop_all()?;
        let (stored, mut refused) = (fragments(&cluster.dir)?, 0);
        for (object, indexes) in &stored {
            ensure!(indexes.keys().eq(&[0, 1, 2, 3, 4, 5]), "{object}: {indexes:?}");
            for (index, dirs) in indexes {
                let parents: Vec<_> = dirs[0].iter().rev().map(|name| name.to_string_lossy()).collect();
                let primaries = ring.get_part_nodes(parents[2].parse()?);
                let at_home = parents[4] == primaries[*index].device;
                ensure!(
                    dirs.len() == 1 && at_home == (primaries[*index].device != DEVICE),
                    "{object}: {dirs:?}"
                );
                refused += usize::from(!at_home);
            }
        }
        let began = Instant::now();
        let said = || cluster.syslog.errors().split_off(before);
        while said().iter().filter(|line| line.contains(&refusal)).count() < refused {
            ensure!(
                began.elapsed() < PATIENCE,
                "{proxy:?}: {refused} refusals, and only these lines: {:?}",
                said()
            );
        }
        // The container may have its place on that device, too.
        let known = |line: &str| line.contains("Insufficient Storage") || line.contains("507 response from");
        let others: Vec<_> = said().into_iter().filter(|line| !known(line)).collect();
        ensure!(others.is_empty() && refused > 0, "{proxy:?}: {refused} refusals, {others:?}");
        Ok((seen, stored))
    };
    let (expected, placed) = run(P)?;
    let (seen, found) = run(M)?;
    compare(&seen, &expected)?;
    ensure!(found == placed, "{found:?}\nand with Python's proxy\n{placed:?}");
    ensure!(expected.lines().filter(|line| line.starts_with("PUT ") && line.contains(" 201 ")).count() == 24);
    Ok(())
}

/// Whose the servers are, and whose the proxy.
type Who = (Peer, Peer);

/// Who serves first, and on the same disks then.
fn mixes(code: Code, mixes: &[(Who, Who)]) -> Result<()> {
    // One test for each code, as each would ask Python first.
    let expected = expected(code)?;
    for &(first, second) in mixes {
        let what = || format!("servers and proxy {first:?}, then {second:?}");
        store_then_serve(first, second, code, &expected).with_context(what)?;
    }
    Ok(())
}

const M: Peer = Peer::Martlet;
const P: Peer = Peer::Python;

#[test]
fn a_client_cannot_tell_which_programs_serve_it() -> Result<()> {
    mixes(Code::Plain, &[((P, M), (P, P)), ((M, M), (P, P)), ((M, P), (M, M))])
}

#[test]
fn a_client_cannot_tell_who_serves_duplicated_fragments_of_which_many_are_lost() -> Result<()> {
    mixes(Code::Duplicated, &[((P, M), (M, P)), ((M, P), (P, M))])
}
