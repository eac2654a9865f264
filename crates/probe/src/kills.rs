//! A program that is stopped at every step that it takes, and the disks that it leaves.
//!
//! A child does a scenario on a copy of the same disk, first undisturbed and with a journal (`common::fs`) of the fail points
//! that it passes, so that none can be forgotten; then once for each of them, killed there, and once more, where that step
//! fails with EIO. Of each killed child the disks are made that a loss of power may leave: what was synced, and of the rest
//! nothing, or any part. A name and the end of the one that it was moved from are one part, as in the journal of a file system.
//!
//! The child is this very program, started as `PROGRAM FOLDER act SCENARIO`; it prints `acknowledged` in the end, or something else.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use ring::{Device, FormatVersion, RingBuilder};

pub struct Scenario {
    pub name: &'static str,
    /// Fail points that are armed in all of its children.
    pub armed: &'static str,
    /// Whether what was acknowledged survives a loss of power; what is only tidied up need not.
    pub durable: bool,
    /// Disks that a loss of power leaves, the first of them without anything unsynced.
    pub power_cuts: u64,
    /// Steps that may fail, and nobody is told.
    pub harmless: &'static [&'static str],
}

/// How a child is to end.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Undisturbed,
    Killed,
    Failing,
}

/// The program: `FOLDER [SCENARIO]` runs all scenarios or one, and in a child `FOLDER act SCENARIO` does it. `act` arms the fail
/// points when all is ready, and says whether what it did was acknowledged.
pub fn main(scenarios: &[Scenario], run: impl Fn(&Scenario, &Path), act: impl FnOnce(&Path, &str) -> bool) {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [folder, "act", name] => {
            println!("{}", if act(folder.as_ref(), name) { "acknowledged" } else { "refused" });
        }
        [folder] => scenarios.iter().for_each(|scenario| run(scenario, folder.as_ref())),
        [folder, name] => {
            let scenario = scenarios.iter().find(|scenario| scenario.name == name);
            run(scenario.expect("no such scenario"), folder.as_ref());
        }
        _ => panic!("FOLDER [SCENARIO]"),
    }
}

/// Runs the scenario's children on copies of the disk in FOLDER/before. `expect` is shown the disk before, and as it is after the
/// undisturbed scenario; what it returns looks at each disk that is left, and is told whether the scenario was acknowledged there.
pub fn stop_everywhere<Check: Fn(&Path, bool)>(
    scenario: &Scenario,
    folder: &Path,
    expect: impl FnOnce(&Path, &Path) -> Check,
) {
    let Scenario { name, armed, durable, power_cuts, harmless } = *scenario;
    // Nobody may be given the inodes of what was there before: they tell what is what.
    let before = Tree::of(&folder.join("before"));
    let (old, copy) = (folder.join("old"), folder.join("new"));
    before.write(&old);
    let child = Child::run(name, &before, &folder.join("0"), armed, End::Undisturbed);
    assert!(child.acknowledged, "{name} is not acknowledged undisturbed");
    child.after.write(&copy);
    let look = expect(&old, &copy);
    let mut disks = 0;
    let mut check = |child: &Child, end: End, what: &str| {
        let folder = &child.folder;
        let acknowledged = child.acknowledged;
        let check = |folder: &Path, acknowledged: bool, what: &str| {
            let looked =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(folder, acknowledged)));
            if looked.is_err() {
                panic!("{name} {what}: see {}", folder.display());
            }
        };
        let cuts = if end == End::Failing { 0 } else { power_cuts };
        for seed in 0..cuts {
            let cut = PathBuf::from(format!("{}-cut{seed}", folder.display()));
            child.power_cut(seed).write(&cut);
            check(&cut, acknowledged && durable, &format!("{what}, then a loss of power ({seed})"));
            disks += 1;
        }
        check(folder, acknowledged, what);
        disks += 1;
    };
    check(&child, End::Undisturbed, "undisturbed");

    let mut passes: HashMap<String, usize> = HashMap::new();
    let points = child.points;
    assert!(!points.is_empty(), "{name} passes no fail point");
    for (number, point) in points.iter().enumerate() {
        let pass = passes.entry(point.clone()).or_default();
        *pass += 1;
        for (end, action) in [(End::Killed, "kill"), (End::Failing, "err:EIO")] {
            let what = format!("{point}={action}@{pass}");
            let harmless = harmless.contains(&point.as_str()) || armed.starts_with(point.as_str());
            if end == End::Failing && harmless {
                continue;
            }
            let folder = folder.join(format!("{}-{end:?}", number + 1));
            let child = Child::run(name, &before, &folder, &format!("{armed},{what}"), end);
            check(&child, end, &what);
        }
    }
    println!("{name}: {} fail points, {disks} disks", points.len());
}

/// The names in a directory, in their order.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A device of a ring, with its server at a port here.
pub fn device(id: u32, name: &str, port: u16) -> Device {
    Device {
        id,
        region: 1,
        zone: id,
        ip: "127.0.0.1".into(),
        port,
        device: name.into(),
        weight: 1.0,
        replication_ip: "127.0.0.1".into(),
        replication_port: port,
        meta: String::new(),
        extra: Default::default(),
    }
}

/// A ring in which sda2 has every partition, and sda1 none.
pub fn save_ring(path: &Path, part_power: u32, next_part_power: Option<u32>, port: u16) {
    let mut builder = RingBuilder::new(part_power, 1.0, 1).unwrap();
    builder.add_dev(device(2, "sda2", port)).unwrap();
    builder.rebalance(1).unwrap();
    let mut data = builder.to_ring_data().unwrap();
    data.devs[1] = Some(Arc::new(Device { weight: 0.0, ..device(1, "sda1", port) }));
    data.next_part_power = next_part_power;
    data.save(path, FormatVersion::V1).unwrap();
}

/// A child after its end.
struct Child {
    folder: PathBuf,
    points: Vec<String>,
    acknowledged: bool,
    before: Tree,
    after: Tree,
    /// The last state of each inode that is on disk for certain.
    synced: HashMap<u64, Inode>,
}

impl Child {
    fn run(scenario: &str, template: &Tree, folder: &Path, armed: &str, end: End) -> Self {
        template.write(folder);
        let before = Tree::of(folder);
        let journal = folder.with_extension("journal");
        std::fs::create_dir(&journal).unwrap();
        let ended = Command::new(std::env::current_exe().unwrap())
            .args([folder.as_os_str(), "act".as_ref(), scenario.as_ref()])
            .env("MARTLET_FAIL_POINT", armed)
            .env("MARTLET_FAIL_JOURNAL", &journal)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        let as_told = match end {
            End::Killed => signal == Some(9),
            End::Undisturbed | End::Failing => ended.status.success(),
        };
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(as_told, "{scenario} with {armed}: {}\n{stderr}", ended.status);
        let points = std::fs::read_to_string(journal.join("points")).unwrap_or_default();
        let synced = names(&journal).into_iter().filter_map(|name| {
            let mut parts = name.split('.').skip(1);
            let inode = parts.next()?.parse().ok()?;
            let path = journal.join(&name);
            match parts.next()? {
                "file" => Some((inode, Inode::File(Contents::of(&File::open(path).unwrap())))),
                "dir" => {
                    Some((inode, Inode::Dir(Inode::parse_entries(&std::fs::read_to_string(path).unwrap()))))
                }
                _ => None,
            }
        });
        Child {
            folder: folder.to_owned(),
            points: points.lines().map(str::to_owned).collect(),
            acknowledged: ended.stdout == b"acknowledged\n",
            after: Tree::of(folder),
            before,
            synced: synced.collect(),
        }
    }

    /// The state of an inode that no loss of power can take away.
    fn durable(&self, entry: Entry) -> Inode {
        let known = self.synced.get(&entry.inode).or_else(|| self.before.inodes.get(&entry.inode));
        known.cloned().unwrap_or_else(|| match entry.is_dir {
            true => Inode::Dir(Entries::new()),
            false => Inode::File(Contents::default()),
        })
    }

    /// The disk after a loss of power: without anything unsynced for seed 0, else with a part of it.
    fn power_cut(&self, seed: u64) -> Tree {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut happens = || {
            // xorshift64
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            seed > 0 && random & 64 != 0
        };
        // All that was there at any time, as the disk has it for certain.
        let mut inodes = BTreeMap::from([(self.before.root.inode, self.durable(self.before.root))]);
        let mut todo = vec![self.before.root];
        while let Some(entry) = todo.pop() {
            let listings = [inodes.get(&entry.inode), self.after.inodes.get(&entry.inode)];
            let below: Vec<Entry> =
                listings.into_iter().flatten().flat_map(Inode::entries).map(|(_, e)| *e).collect();
            for entry in below {
                inodes.entry(entry.inode).or_insert_with(|| {
                    todo.push(entry);
                    self.durable(entry)
                });
            }
        }
        let groups = self.groups(&inodes);
        for group in groups.into_iter().filter(|_| happens()) {
            for Change { dir, name, to, .. } in group {
                let Some(Inode::Dir(entries)) = inodes.get_mut(&dir) else {
                    unreachable!("a change of an entry")
                };
                match to {
                    Some(entry) => drop(entries.insert(name, entry)),
                    None => drop(entries.remove(&name)),
                }
            }
        }
        for (number, inode) in &mut inodes {
            if let (Inode::File(_), Some(Inode::File(now))) = (&inode, self.after.inodes.get(number))
                && happens()
            {
                *inode = Inode::File(now.clone());
            }
        }
        Tree { root: self.before.root, inodes, _open: Vec::new() }
    }

    /// The changes of directories that are not on disk for certain; those of one group happen together.
    fn groups(&self, durable: &BTreeMap<u64, Inode>) -> Vec<Vec<Change>> {
        let none = Entries::new();
        let mut changes = Vec::new();
        for (&dir, inode) in durable {
            let Inode::Dir(was) = inode else { continue };
            let is = match self.after.inodes.get(&dir) {
                Some(Inode::Dir(is)) => is,
                _ => &none,
            };
            let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            for name in names.into_iter().filter(|name| was.get(*name) != is.get(*name)) {
                let (from, to) = (was.get(name).copied(), is.get(name).copied());
                changes.push(Change { dir, name: name.clone(), from, to });
            }
        }
        let mut group: Vec<usize> = (0..changes.len()).collect();
        let mut join = |a: usize, b: usize| {
            let (a, b) = (group[a], group[b]);
            group.iter_mut().filter(|g| **g == a).for_each(|g| *g = b);
        };
        let inode = |entry: Option<Entry>| entry.map(|entry| entry.inode);
        for (a, one) in changes.iter().enumerate() {
            for (b, other) in changes.iter().enumerate() {
                let moved = one.from.is_some() && inode(one.from) == inode(other.to);
                // A directory is removed after its entries; an entry is moved into one after that has been made, and those
                // above it.
                let emptied = one.to.is_none() && inode(one.from) == Some(other.dir);
                let moved_into =
                    changes.iter().any(|from| inode(from.from) == inode(one.to) && one.to.is_some());
                let made =
                    moved_into && inode(other.to).is_some_and(|made| self.after.is_within(one.dir, made));
                if moved || emptied || made {
                    join(a, b);
                }
            }
        }
        let mut groups: BTreeMap<usize, Vec<Change>> = BTreeMap::new();
        for (group, change) in group.into_iter().zip(changes) {
            groups.entry(group).or_default().push(change);
        }
        groups.into_values().collect()
    }
}

/// An entry of a directory that became another.
struct Change {
    dir: u64,
    name: String,
    from: Option<Entry>,
    to: Option<Entry>,
}

#[derive(Clone, Copy, PartialEq)]
struct Entry {
    inode: u64,
    is_dir: bool,
}

type Entries = BTreeMap<String, Entry>;

#[derive(Clone)]
enum Inode {
    Dir(Entries),
    File(Contents),
}

#[derive(Clone, Default)]
struct Contents {
    data: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Contents {
    fn of(file: &File) -> Self {
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut &*file, &mut data).unwrap();
        let mut names = vec![0; 4096];
        let length = rustix::fs::flistxattr(file, &mut names[..]).unwrap();
        let names = String::from_utf8(names[..length].to_vec()).unwrap();
        let value = |name: &str| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::fgetxattr(file, name, &mut value[..]).unwrap();
            value[..length].to_vec()
        };
        let names = names.split('\0').filter(|name| name.starts_with("user."));
        Contents { data, xattrs: names.map(|name| (name.to_owned(), value(name))).collect() }
    }

    fn write(&self, path: &Path) {
        let file = File::create(path).unwrap();
        std::io::Write::write_all(&mut &file, &self.data).unwrap();
        for (name, value) in &self.xattrs {
            rustix::fs::fsetxattr(&file, name.as_str(), value, rustix::fs::XattrFlags::empty()).unwrap();
        }
    }
}

impl Inode {
    fn entries(&self) -> impl Iterator<Item = (&String, &Entry)> {
        let entries = if let Inode::Dir(entries) = self { Some(entries) } else { None };
        entries.into_iter().flatten()
    }

    /// Lines `INODE d|f NAME`.
    fn parse_entries(text: &str) -> Entries {
        let entry = |line: &str| {
            let mut words = line.splitn(3, ' ');
            let (inode, kind) = (words.next().unwrap().parse().unwrap(), words.next().unwrap());
            (words.next().unwrap().to_owned(), Entry { inode, is_dir: kind == "d" })
        };
        text.lines().map(entry).collect()
    }
}

/// Files below a folder, by inode.
pub struct Tree {
    root: Entry,
    inodes: BTreeMap<u64, Inode>,
    /// So that none of the inodes is given to another file.
    _open: Vec<File>,
}

impl Tree {
    pub fn of(folder: &Path) -> Self {
        let root = Entry { inode: std::fs::metadata(folder).unwrap().ino(), is_dir: true };
        let mut tree = Tree { root, inodes: BTreeMap::new(), _open: Vec::new() };
        let mut todo = vec![(folder.to_owned(), root)];
        while let Some((path, entry)) = todo.pop() {
            let file = File::open(&path).unwrap();
            let inode = match entry.is_dir {
                false => Inode::File(Contents::of(&file)),
                true => {
                    let entries = std::fs::read_dir(&path).unwrap().map(|entry| {
                        let entry = entry.unwrap();
                        let is_dir = entry.file_type().unwrap().is_dir();
                        (entry.file_name().into_string().unwrap(), Entry { inode: entry.ino(), is_dir })
                    });
                    let entries: Entries = entries.collect();
                    todo.extend(entries.iter().map(|(name, entry)| (path.join(name), *entry)));
                    Inode::Dir(entries)
                }
            };
            tree._open.push(file);
            tree.inodes.insert(entry.inode, inode);
        }
        tree
    }

    /// Whether a directory is another, or lies in it.
    fn is_within(&self, dir: u64, above: u64) -> bool {
        let below = |entry: &Entry| entry.is_dir && self.is_within(dir, entry.inode);
        dir == above
            || self.inodes.get(&above).is_some_and(|above| above.entries().any(|(_, entry)| below(entry)))
    }

    /// Makes the same files and links in a folder that there is not yet.
    pub fn write(&self, folder: &Path) {
        let mut written: HashMap<u64, PathBuf> = HashMap::new();
        let mut todo = vec![(folder.to_owned(), self.root)];
        while let Some((path, entry)) = todo.pop() {
            if let Some(first) = written.get(&entry.inode) {
                std::fs::hard_link(first, &path).unwrap();
                continue;
            }
            match &self.inodes[&entry.inode] {
                Inode::File(contents) => {
                    contents.write(&path);
                    written.insert(entry.inode, path);
                }
                Inode::Dir(entries) => {
                    std::fs::create_dir(&path).unwrap();
                    todo.extend(entries.iter().map(|(name, entry)| (path.join(name), *entry)));
                }
            }
        }
    }
}
