//! `swift-get-nodes`: the nodes of an account, a container, an object or a partition.

use std::path::Path;
use std::sync::Arc;

use common::quote::{quote_path, unquote};
use common::{Policies, PolicyIndex, StoragePolicy};
use ring::Ring;

use super::locations::{Item, Locations};
use super::{Cluster, Output, SWIFT_DIR};
use crate::cli::optparse::{HELP, Opt, Usage};

const ALL: Opt = Opt { short: Some('a'), long: "all", value: None, help: "show all handoffs" };
const PARTITION: Opt = Opt {
    short: Some('p'),
    long: "partition",
    value: Some("PARTITION"),
    help: "show the nodes of this partition",
};
pub(super) const POLICY_NAME: Opt = Opt {
    short: Some('P'),
    long: "policy-name",
    value: Some("POLICY_NAME"),
    help: "the storage policy whose object ring to use",
};
pub(super) const DIR: Opt = Opt {
    short: Some('d'),
    long: "swift-dir",
    value: Some("SWIFT_DIR"),
    help: "where swift.conf and the rings are; /etc/swift by default",
};
const QUOTED: Opt =
    Opt { short: Some('Q'), long: "quoted", value: None, help: "the names given are percent-encoded" };

/// What the command line asks for.
#[derive(Debug, Default)]
struct Asked {
    all: bool,
    partition: Option<String>,
    policy_name: Option<String>,
    swift_dir: String,
    quoted: bool,
    words: Vec<String>,
}

/// Names, and the file of the ring if one is given.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    ring_path: Option<String>,
    names: Vec<String>,
}

pub(super) fn run(prog: &str, words: &[String]) -> Output {
    let forms = [
        "<ring.gz> <account> [<container> [<object>]]",
        "<ring.gz> -p partition",
        "-P policy_name <account> [<container> [<object>]]",
        "-P policy_name -p partition",
    ];
    let usage = Usage {
        prog,
        text: forms.map(|form| format!("{prog} [-a] {form}")).join("\n       "),
        options: &[&HELP, &ALL, &PARTITION, &POLICY_NAME, &DIR, &QUOTED],
    };
    let (found, positional) = match usage.split(words) {
        Ok(split) => split,
        Err(ended) => return ended.into(),
    };
    let mut asked = Asked { swift_dir: SWIFT_DIR.to_owned(), words: positional, ..Asked::default() };
    for (option, value) in found {
        let given = Some(value).filter(|value| !value.is_empty());
        match option.long {
            "all" => asked.all = true,
            "quoted" => asked.quoted = true,
            "partition" => asked.partition = given,
            "policy-name" => asked.policy_name = given,
            _ => asked.swift_dir = given.unwrap_or_default(),
        }
    }
    let out = Output::default();
    let cluster = match Cluster::open(&asked.swift_dir) {
        Ok(cluster) => cluster,
        Err(err) => return out.fail(err),
    };
    match wanted(&asked, &cluster.conf.policies, |path| path.exists()) {
        Ok(wanted) => show(&asked, &cluster, wanted),
        Err(error) => {
            let out = Output { stdout: usage.help().into_bytes(), ..out };
            out.fail(format_args!("ERROR: {error}"))
        }
    }
}

/// Which words are what.
fn wanted(asked: &Asked, policies: &Policies, exists: impl Fn(&Path) -> bool) -> Result<Wanted, String> {
    let mut names = asked.words.clone();
    let mut ring_path = None;
    match &asked.policy_name {
        Some(name) if policies.by_name(name).is_none() => return Err(format!("No policy named '{name}'")),
        Some(_) => {}
        None if names.first().is_some_and(|word| word.ends_with(".ring.gz")) => {
            let path = names.remove(0);
            if !exists(Path::new(&path)) {
                return Err("Ring file does not exist".to_owned());
            }
            ring_path = Some(path);
        }
        None => {}
    }
    if asked.quoted {
        let unquoted = |name: &String| String::from_utf8_lossy(&unquote(name.as_bytes())).into_owned();
        names = names.iter().map(unquoted).collect();
    }
    if let [path] = &names[..] {
        names = path.trim_matches('/').splitn(3, '/').map(str::to_owned).collect();
    }
    if ring_path.is_none() && asked.policy_name.is_none() {
        return Err("Need to specify policy_name or <ring.gz>".to_owned());
    }
    if names.is_empty() && asked.partition.is_none() {
        return Err("No target specified".to_owned());
    }
    if names.len() > 3 {
        return Err("Invalid arguments".to_owned());
    }
    Ok(Wanted { ring_path, names })
}

/// The ring of an item and what goes with it.
struct Found {
    ring: Arc<Ring>,
    datadir: String,
    policy: Option<PolicyIndex>,
}

fn show(asked: &Asked, cluster: &Cluster, wanted: Wanted) -> Output {
    let mut out = Output::default();
    let mut names = wanted.names.into_iter().map(|name| Some(name).filter(|name| !name.is_empty()));
    let mut name = || names.next().flatten();
    let mut item = Item { account: name(), container: name(), object: name(), partition: None };
    if let Some(partition) = &asked.partition {
        match common::config::parse_int(partition) {
            Some(number) => item.partition = Some(number),
            None => return out.fail(format_args!("invalid partition: {partition}")),
        }
    }
    let policy = asked.policy_name.as_deref().and_then(|name| cluster.conf.policies.by_name(name));
    let complaint = match (&item.account, &item.container, &item.object) {
        (None, Some(_), _) | (None, _, Some(_)) => Some("No account specified"),
        (_, None, Some(_)) => Some("No container specified"),
        (None, None, None) if item.partition.is_none() => Some("No target specified"),
        _ => None,
    };
    if let Some(complaint) = complaint {
        out.line(complaint);
        return out.fail("");
    }
    let found = match find_ring(&mut out, cluster, &item, wanted.ring_path.as_deref(), policy) {
        Ok(found) => found,
        Err(err) => return out.fail(err),
    };
    if let Some(account) = &item.account {
        out.line(format!("\nAccount  \t{}", quote_path(account)));
    }
    if let Some(container) = &item.container {
        out.line(format!("Container\t{}", quote_path(container)));
    }
    if let Some(object) = &item.object {
        out.line(format!("Object   \t{}\n\n", quote_path(object)));
    }
    let locations = Locations {
        ring: &found.ring,
        hash_conf: &cluster.conf.hash,
        datadir: &found.datadir,
        policy: found.policy,
        all_handoffs: asked.all,
    };
    locations.print(&mut out, &item);
    out
}

/// The ring that was named or, with a policy, the one that fits; warns if it does not fit.
fn find_ring(
    out: &mut Output,
    cluster: &Cluster,
    item: &Item,
    ring_path: Option<&str>,
    policy: Option<&StoragePolicy>,
) -> Result<Found, String> {
    let (mut name, mut ring, mut index) = (None, None, None);
    if let Some(path) = ring_path {
        let file = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
        name = Some(file.strip_suffix(".ring.gz").unwrap_or(&file).to_owned());
        ring = Some(Arc::new(Ring::load(Path::new(path)).map_err(|err| err.to_string())?));
    } else if let Some(policy) = policy.filter(|_| item.object.is_some() || item.partition.is_some()) {
        name = Some(policy.object_ring_name.clone());
        ring = Some(cluster.ring(&policy.object_ring_name).map_err(|err| err.to_string())?);
        index = Some(policy.index);
    }
    let mut datadir = "<type>".to_owned();
    if let Some(name) = name.as_deref().filter(|_| item.partition.is_some()) {
        datadir = match name.split_once('-').filter(|_| name.starts_with("object")) {
            Some((_, policy)) => format!("objects-{policy}"),
            None => format!("{name}s"),
        };
    }
    let server = match (&item.account, &item.container, &item.object) {
        (Some(_), Some(_), Some(_)) => {
            datadir = "objects".to_owned();
            let named = name.as_deref().filter(|name| name.starts_with("object"));
            if let Some((_, number)) = named.and_then(|name| name.rsplit_once('-')) {
                let policy =
                    number.parse().map_err(|_| format!("no policy index in the ring's name: {number}"));
                index = Some(PolicyIndex(policy?));
                datadir = format!("objects-{}", index.unwrap_or_default());
            }
            None
        }
        (Some(_), Some(_), None) => Some(("container", "account/container")),
        (Some(_), None, _) => Some(("account", "account")),
        (None, ..) => None,
    };
    if let Some((server, what)) = server {
        datadir = format!("{server}s");
        match &name {
            None => ring = Some(cluster.ring(server).map_err(|err| err.to_string())?),
            Some(name) if name != server => {
                out.line(format!("WARNING: {what} specified but ring not named \"{server}\""));
            }
            Some(_) => {}
        }
    }
    let ring = ring.ok_or("Need a ring or policy")?;
    Ok(Found { ring, datadir, policy: index })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(policy_name: Option<&str>, words: &[&str]) -> Result<Wanted, String> {
        let asked = Asked {
            policy_name: policy_name.map(str::to_owned),
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            ..Asked::default()
        };
        wanted(&asked, &<Policies as Default>::default(), |path| path == Path::new("o.ring.gz"))
    }

    #[test]
    fn names_are_words_or_one_path() {
        let names = |words: &[&str]| read(None, words).unwrap().names;
        assert_eq!(names(&["o.ring.gz", "a", "c", "o"]), ["a", "c", "o"]);
        assert_eq!(names(&["o.ring.gz", "/a/c/o/o/"]), ["a", "c", "o/o"]);
        let by_policy = read(Some("policy-0"), &["a", "o.ring.gz"]).unwrap();
        assert_eq!(by_policy, Wanted { ring_path: None, names: vec!["a".into(), "o.ring.gz".into()] });
    }

    #[test]
    fn mistakes_are_told_in_swifts_words() {
        assert_eq!(read(Some("gold"), &["a"]).unwrap_err(), "No policy named 'gold'");
        assert_eq!(read(None, &["x.ring.gz", "a"]).unwrap_err(), "Ring file does not exist");
        assert_eq!(read(None, &["a"]).unwrap_err(), "Need to specify policy_name or <ring.gz>");
        assert_eq!(read(None, &["o.ring.gz"]).unwrap_err(), "No target specified");
        assert_eq!(read(None, &["o.ring.gz", "a", "b", "c", "d"]).unwrap_err(), "Invalid arguments");
    }
}
