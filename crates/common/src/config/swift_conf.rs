//! swift.conf: what all services of a cluster must agree on.
//!
//! Unlike the services' own files, its option names ignore case and `%` must be doubled. The hash prefix and
//! suffix are bytes: the file is read as Latin-1 for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ini::{Ini, Interpolation, OptionCase, Options};
use super::{ConfigError, read_file};
use crate::constraints::Constraints;
use crate::hash::HashConf;
use crate::policy::Policies;

const HASH_SECTION: &str = "swift-hash";
const POLICY_PREFIX: &str = "storage-policy:";

/// swift.conf, read and checked.
#[derive(Debug, Clone)]
pub struct SwiftConf {
    pub hash: HashConf,
    pub policies: Policies,
    pub constraints: Constraints,
    /// Where it was found; the rings are beside it.
    pub dir: PathBuf,
}

impl SwiftConf {
    /// Reads `swift.conf` in `swift_dir`.
    pub fn load(swift_dir: &Path) -> Result<Arc<Self>, ConfigError> {
        let path = swift_dir.join("swift.conf");
        let bytes = read_file(&path)?;
        Self::parse(&bytes, &path.display().to_string(), swift_dir).map(Arc::new)
    }

    /// The same from the bytes of a file.
    pub fn parse(bytes: &[u8], file: &str, dir: &Path) -> Result<Self, ConfigError> {
        let latin1: String = bytes.iter().map(|&b| char::from(b)).collect();
        let mut raw = Ini::new(file, OptionCase::Lower);
        raw.read_str(&latin1, file)?;
        let mut ini = Ini::new(file, OptionCase::Lower);
        ini.read_str(&String::from_utf8_lossy(bytes), file)?;
        Ok(Self {
            hash: read_hash(&raw)?,
            policies: read_policies(&ini)?,
            constraints: read_constraints(&ini)?,
            dir: dir.to_owned(),
        })
    }
}

fn read_hash(ini: &Ini) -> Result<HashConf, ConfigError> {
    let get = |option| -> Result<Vec<u8>, ConfigError> {
        let value = match ini.has_section(HASH_SECTION) {
            true => ini.get(HASH_SECTION, option, Interpolation::Basic)?.unwrap_or_default(),
            false => String::new(),
        };
        // Read as Latin-1, so that every char is one byte.
        Ok(value.chars().map(|c| c as u32 as u8).collect())
    };
    let hash = HashConf { prefix: get("swift_hash_path_prefix")?, suffix: get("swift_hash_path_suffix")? };
    if hash == HashConf::default() {
        let problem = "expected swift_hash_path_suffix or swift_hash_path_prefix";
        return Err(ConfigError::in_section(ini.file(), HASH_SECTION, problem));
    }
    Ok(hash)
}

fn read_policies(ini: &Ini) -> Result<Policies, ConfigError> {
    let names: Vec<&str> = ini.section_names().filter(|s| s.starts_with(POLICY_PREFIX)).collect();
    let sections: Vec<(String, Options)> = names
        .into_iter()
        .map(|s| Ok((s.to_owned(), ini.interpolated(s, Interpolation::Basic)?)))
        .collect::<Result<_, ConfigError>>()?;
    let options = sections.iter().map(|(s, options)| {
        (&s[POLICY_PREFIX.len()..], options.iter().map(|(k, v)| (k.as_str(), v.as_str())))
    });
    Policies::from_sections(options).map_err(|e| {
        let mut error = ConfigError::in_file(ini.file(), e.problem);
        if let Some(index) = e.index {
            error = error.of_section(format!("{POLICY_PREFIX}{index}"));
        }
        match e.option {
            Some((option, value)) => error.of_option(option, Some(value)),
            None => error,
        }
    })
}

fn read_constraints(ini: &Ini) -> Result<Constraints, ConfigError> {
    const SECTION: &str = "swift-constraints";
    let mut constraints = Constraints::default();
    if !ini.has_section(SECTION) {
        return Ok(constraints);
    }
    for name in Constraints::NAMES {
        if let Some(value) = ini.get(SECTION, name, Interpolation::Basic)? {
            constraints
                .set(name, &value)
                .map_err(|problem| ConfigError::in_option(ini.file(), SECTION, *name, &value, problem))?;
        }
    }
    Ok(constraints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicyIndex;

    fn parse(text: &[u8]) -> Result<SwiftConf, ConfigError> {
        SwiftConf::parse(text, "swift.conf", Path::new("/etc/swift"))
    }

    #[test]
    fn a_minimal_file_has_the_legacy_policy_and_defaults() {
        let conf = parse(b"[swift-hash]\nswift_hash_path_suffix = changeme\n").unwrap();
        assert_eq!(conf.hash.suffix, b"changeme");
        assert_eq!(conf.policies.default().name, "Policy-0");
        assert_eq!(conf.constraints, Constraints::default());
    }

    #[test]
    fn everything_is_read() {
        let conf = parse(
            b"[swift-hash]\nSwift_Hash_Path_Suffix = \xff%%\nswift_hash_path_prefix = p\n\
              [swift-constraints]\nmax_file_size = 1024\nvalid_api_versions = v1, v2\n\
              [storage-policy:0]\nname = gold\naliases = yellow, orange\ndefault = yes\n\
              [storage-policy:2]\nname = silver\ndeprecated = yes\n",
        )
        .unwrap();
        assert_eq!(conf.hash, HashConf { prefix: b"p".to_vec(), suffix: b"\xff%".to_vec() });
        assert_eq!(conf.constraints.max_file_size, 1024);
        assert_eq!(conf.constraints.valid_api_versions, ["v1", "v2"]);
        assert_eq!(conf.policies.by_name("ORANGE").unwrap().index, PolicyIndex(0));
        assert!(conf.policies.get(PolicyIndex(2)).unwrap().is_deprecated);
    }

    #[test]
    fn mistakes_name_section_and_option() {
        let error = |text: &[u8]| parse(text).unwrap_err().to_string();
        assert_eq!(
            error(b"[swift-hash]\n"),
            "swift.conf: [swift-hash]: expected swift_hash_path_suffix or swift_hash_path_prefix"
        );
        let with = |more: &str| error(format!("[swift-hash]\nswift_hash_path_suffix = x\n{more}").as_bytes());
        assert_eq!(
            with("[storage-policy:1]\nname = a\n"),
            "swift.conf: expected a section [storage-policy:0] beside the other policies"
        );
        assert_eq!(
            with("[storage-policy:0]\nname = a\ncolour = b\n"),
            "swift.conf: [storage-policy:0] colour = b: unknown option"
        );
        assert_eq!(
            with("[storage-policy:0]\nname = a b\n"),
            "swift.conf: [storage-policy:0] name = a b: expected letters, digits and dashes"
        );
        assert_eq!(
            with("[swift-constraints]\nmax_file_size = big\n"),
            "swift.conf: [swift-constraints] max_file_size = big: expected an integer"
        );
    }
}
