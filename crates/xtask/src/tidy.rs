//! The rules of the house that neither rustfmt nor clippy knows: each is a pure function from a file to complaints.
//!
//! * every Rust file says at its top (`//!`) what it is;
//! * no file is longer than [`MAX_LINES`], no line longer than [`MAX_COLUMNS`], no trailing white space;
//! * no module is called `utils` or `helpers`;
//! * durable syscalls are named only in `common::fs` (clippy.toml bans `std::fs::rename` as well);
//! * `obj`, `db` and `proxy` do not depend on one another.

use crate::cmd;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

const MAX_LINES: usize = 1_200;
const MAX_COLUMNS: usize = 160;

pub fn run() -> Result<()> {
    let files = cmd::output(
        Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(cmd::root()),
    )?;
    let mut complaints = Vec::new();
    for file in files.lines() {
        let Ok(text) = std::fs::read_to_string(cmd::root().join(file)) else { continue };
        complaints.extend(check(file, &text).into_iter().map(|c| format!("{file}: {c}")));
    }
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    if complaints.is_empty() { Ok(()) } else { bail!("tidy: {} complaints", complaints.len()) }
}

fn check(file: &str, text: &str) -> Vec<String> {
    let golden = file.contains("/golden/");
    let mut complaints = Vec::new();
    if !golden
        && (file.ends_with(".rs")
            || file.ends_with(".md")
            || file.ends_with(".py")
            || file.ends_with(".toml"))
    {
        complaints.extend(white_space(text));
    }
    if file.ends_with(".rs") && !golden {
        complaints.extend(rust(file, text));
    }
    if file.starts_with("crates/") && file.ends_with("Cargo.toml") {
        complaints.extend(layers(file, text));
    }
    complaints
}

fn white_space(text: &str) -> Vec<String> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, l)| l.ends_with([' ', '\t']))
        .map(|(i, _)| format!("line {}: trailing white space", i + 1))
        .collect()
}

fn rust(file: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    // A libFuzzer target must begin with an attribute.
    let opens = text.trim_start_matches("#![no_main]\n").trim_start().starts_with("//!");
    if !opens {
        complaints.push("does not open with `//!`: what is this file?".into());
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        complaints.push(format!("{lines} lines, more than {MAX_LINES}: split it by noun"));
    }
    // Golden strings stay on one line.
    let too_long = |line: &str| line.chars().count() > MAX_COLUMNS && !line.contains('"');
    for (i, line) in text.lines().enumerate().filter(|(_, l)| too_long(l)) {
        complaints.push(format!("line {}: {} columns, more than {MAX_COLUMNS}", i + 1, line.chars().count()));
    }
    let stem = Path::new(file).file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    if ["utils", "util", "helpers", "misc"].contains(&stem) {
        complaints.push(format!("a file named {stem} owns no noun"));
    }
    let ours = file.starts_with("crates/common/src/fs") || file.starts_with("crates/xtask/");
    if !ours {
        let found = durable_calls(text).into_iter();
        complaints.extend(found.map(|name| format!("{name}: durable syscalls belong in common::fs")));
    }
    complaints
}

/// Names of durable syscalls that a file takes from rustix, libc or std, by path or by import.
fn durable_calls(text: &str) -> Vec<&'static str> {
    const NAMES: [&str; 7] = ["fsync", "fdatasync", "linkat", "renameat", "rename", "syncfs", "fallocate"];
    let mut found: Vec<&str> =
        [".sync_all()", ".sync_data()"].into_iter().filter(|n| text.contains(n)).collect();
    for (at, _) in text.match_indices("rustix::fs::").chain(text.match_indices("libc::")) {
        let path = text[at..].split_once("fs::").or_else(|| text[at..].split_once("::")).map_or("", |p| p.1);
        // One name, or a list in braces.
        let list = path.strip_prefix('{').and_then(|p| p.split('}').next());
        let names = list.unwrap_or_else(|| {
            path.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
        });
        let words: Vec<&str> = names.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        found.extend(NAMES.into_iter().filter(|n| words.contains(n)));
    }
    found
}

fn layers(file: &str, text: &str) -> Vec<String> {
    let tiers = ["obj", "db", "proxy"];
    let Some(tier) = tiers.iter().find(|t| file == format!("crates/{t}/Cargo.toml")) else {
        return Vec::new();
    };
    let others =
        tiers.iter().filter(|t| t != &tier && text.lines().any(|l| l.starts_with(&format!("{t}.workspace"))));
    others.map(|t| format!("{tier} and {t} meet only over the wire")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_header_is_named() {
        assert!(check("crates/obj/src/a.rs", "fn a() {}\n")[0].contains("//!"));
        assert!(check("crates/obj/src/a.rs", "//! A.\nfn a() {}\n").is_empty());
    }

    #[test]
    fn tiers_may_not_depend_on_one_another() {
        assert_eq!(check("crates/obj/Cargo.toml", "[dependencies]\ndb.workspace = true\n").len(), 1);
        assert!(check("crates/obj/Cargo.toml", "[dependencies]\nring.workspace = true\n").is_empty());
    }

    #[test]
    fn durable_syscalls_stay_in_common_fs() {
        let list = "//! A.\nuse rustix::fs::{\n    CWD, fsync,\n};\n";
        assert_eq!(check("crates/obj/src/a.rs", list).len(), 1);
        let text = "//! A.\nfn f() { file.sync_all(); }\n";
        assert_eq!(check("crates/obj/src/a.rs", text).len(), 1);
        assert!(check("crates/common/src/fs.rs", text).is_empty());
    }
}
