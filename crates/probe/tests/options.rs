//! Every option of Swift's sample of object-server.conf is known: with all of them set none is warned of as unknown, and each
//! value that the sample shows is accepted.

use anyhow::{Context as _, Result, ensure};
use common::config::Conf;
use probe::peer;
use service::logs::{Level, Lines};
use service::{Context, Process, Registry};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The options that the sample shows, by section, commented out or not; of several values the last, as prose comes first.
fn options_of(sample: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut section = String::new();
    for line in sample.lines() {
        let line = line.trim_start_matches('#').trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let name = name.trim();
        let name = name.strip_prefix("set ").unwrap_or(name);
        if !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            sections.entry(section.clone()).or_default().insert(name.to_owned(), value.trim().to_owned());
        }
    }
    sections
}

/// The sample with every option set, for a node below `dir`.
fn conf_of(sections: &BTreeMap<String, BTreeMap<String, String>>, dir: &Path) -> String {
    let dir = dir.display().to_string();
    let mut conf = String::new();
    for (section, options) in sections {
        conf.push_str(&format!("[{section}]\n"));
        for (name, value) in options {
            let value = match name.as_str() {
                "swift_dir" | "devices" | "recon_cache_path" | "recon_lock_path" => dir.as_str(),
                "log_address" => "/nowhere",
                "bind_port" => "6200",
                "ionice_class" => "IOPRIO_CLASS_BE",
                "ionice_priority" | "nice_priority" => "0",
                // Of another file: the sample speaks of it.
                "entry_points" => continue,
                // Without a value of its own in the sample.
                _ if value.is_empty() || value.starts_with('<') => continue,
                _ => value,
            };
            conf.push_str(&format!("{name} = {value}\n"));
        }
    }
    conf
}

#[test]
fn every_option_of_the_object_servers_sample_is_known() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let sample = peer::sdist()?.join("etc/object-server.conf-sample");
    let sections = options_of(&std::fs::read_to_string(&sample)?);
    ensure!(
        sections["app:object-server"].len() > 20 && sections["object-updater"].len() > 15,
        "{sections:?}"
    );
    let conf_path = dir.join("object-server.conf");
    std::fs::write(&conf_path, conf_of(&sections, dir))?;
    std::fs::write(dir.join("swift.conf"), "[swift-hash]\nswift_hash_path_suffix = s\n")?;
    let lines = Lines::default();
    let process = Process::new().with_sinks(vec![Arc::new(lines.clone())]);
    let mut registry = Registry::new();
    obj::register(&mut registry);
    service::server::load(&process, &registry, "object-server", &conf_path)?;
    let conf = Conf::load(&conf_path)?;
    let daemons: [(&str, service::daemonize::Build); 3] = [
        ("object-updater", obj::updater::build),
        ("object-replicator", obj::replicator::build),
        ("object-auditor", obj::auditor::build),
    ];
    let mut warnings = lines.at_least(Level::Warning);
    for (name, build) in daemons {
        let section = conf.require(name)?;
        let ctx = Context::new(&process, name, &section)?;
        build(&conf, &ctx).with_context(|| name.to_owned())?;
        // What the program of a daemon asks for, and its logger, which is not this test's.
        for option in ["daemonize", "user", "log_address", "log_facility"] {
            section.get(option);
        }
        warnings.extend(section.warnings());
    }
    warnings.retain(|line| line.contains("unknown option"));
    ensure!(warnings.is_empty(), "{warnings:#?}");
    // The test sees what is unknown.
    let text = std::fs::read_to_string(&conf_path)?;
    std::fs::write(&conf_path, text.replace("[app:object-server]\n", "[app:object-server]\nsloww = 1\n"))?;
    service::server::load(&process, &registry, "object-server", &conf_path)?;
    let unknown = lines.at_least(Level::Warning);
    ensure!(unknown.iter().any(|line| line.contains("sloww: unknown option")), "{unknown:#?}");
    Ok(())
}
