//! Configuration as Swift reads it: INI files of Python's ConfigParser, paste pipelines, swift.conf.
//!
//! * `ini` – the file format: sections, DEFAULT, continuation lines, interpolation; no meaning.
//! * `option` – a `Section` and its typed readers. Each reader names the option and its default in one place; what
//!   nobody has asked for is an unknown option, reported with the nearest name that somebody did ask for.
//! * `paste` – pipelines: which options an app or filter ends up with after `use`, `set` and DEFAULT.
//! * `swift_conf` – swift.conf: hash prefix and suffix, policies, constraints.
//!
//! Every error is one line: file, section, option, value, what was expected.

mod ini;
mod option;
mod paste;
mod swift_conf;

use std::fmt;
use std::path::Path;

pub use ini::{Ini, Interpolation, OptionCase};
pub use option::{FallocateReserve, NodeCount, Section, parse_float, parse_int, split_list};
pub use paste::{Component, Paste};
pub use swift_conf::SwiftConf;

/// What is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(Box<Detail>);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Detail {
    file: String,
    line: Option<usize>,
    section: Option<String>,
    option: Option<String>,
    value: Option<String>,
    problem: String,
}

impl ConfigError {
    pub fn in_file(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Self(Box::new(Detail { file: file.into(), problem: problem.into(), ..Detail::default() }))
    }

    pub fn in_section(
        file: impl Into<String>,
        section: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::in_file(file, problem).of_section(section)
    }

    pub fn in_option(
        file: impl Into<String>,
        section: impl Into<String>,
        option: impl Into<String>,
        value: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::in_section(file, section, problem).of_option(option, Some(value))
    }

    fn at_line(mut self, line: usize) -> Self {
        self.0.line = Some(line);
        self
    }

    fn of_section(mut self, section: impl Into<String>) -> Self {
        self.0.section = Some(section.into());
        self
    }

    fn of_option(mut self, option: impl Into<String>, value: Option<impl Into<String>>) -> Self {
        self.0.option = Some(option.into());
        self.0.value = value.map(Into::into);
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_line = |s: &str| s.replace('\n', "\\n");
        let Detail { file, line, section, option, value, problem } = &*self.0;
        f.write_str(file)?;
        if let Some(line) = line {
            write!(f, ":{line}")?;
        }
        f.write_str(":")?;
        if let Some(section) = section {
            write!(f, " [{}]", one_line(section))?;
        }
        if let Some(option) = option {
            write!(f, " {}", one_line(option))?;
            if let Some(value) = value {
                write!(f, " = {}", one_line(value))?;
            }
        }
        if section.is_some() || option.is_some() {
            f.write_str(":")?;
        }
        write!(f, " {}", one_line(problem))
    }
}

impl std::error::Error for ConfigError {}

/// A service's configuration file, or a folder of `*.conf` files read in the order of their names.
#[derive(Debug)]
pub struct Conf {
    file: String,
    defaults: Section,
    sections: Vec<Section>,
}

impl Conf {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::from_ini(&Ini::load(path, OptionCase::Keep)?)
    }

    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let mut ini = Ini::new(name, OptionCase::Keep);
        ini.read_str(text, name)?;
        Self::from_ini(&ini)
    }

    fn from_ini(ini: &Ini) -> Result<Self, ConfigError> {
        let defaults = Section::inherited(ini.file(), "DEFAULT", ini.interpolated_defaults()?);
        let sections = ini
            .section_names()
            .map(|name| {
                let own = ini.interpolated(name, Interpolation::Nicer)?;
                Ok(Section::layered(ini.file(), name, own, |o| ini.is_own(name, o)))
            })
            .collect::<Result<_, ConfigError>>()?;
        Ok(Self { file: ini.file().to_owned(), defaults, sections })
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    /// The section with the options of DEFAULT that it doesn't set itself.
    pub fn section(&self, name: &str) -> Option<Section> {
        self.sections.iter().find(|s| s.name() == name).cloned()
    }

    /// The section, or under its name the options of DEFAULT alone if the file has no such section.
    pub fn section_or_default(&self, name: &str) -> Section {
        self.section(name).unwrap_or_else(|| self.defaults.renamed(name))
    }

    /// The section, or an error that names those which there are.
    pub fn require(&self, name: &str) -> Result<Section, ConfigError> {
        self.section(name).ok_or_else(|| {
            let names: Vec<_> = self.sections.iter().map(|s| format!("[{}]", s.name())).collect();
            let problem = match option::nearest(name, self.section_names()) {
                Some(near) => format!("no such section; did you mean [{near}]?"),
                None if names.is_empty() => "no such section; the file has none".to_owned(),
                None => format!("no such section; the file has {}", names.join(", ")),
            };
            ConfigError::in_section(&self.file, name, problem)
        })
    }

    /// The options of DEFAULT.
    pub fn defaults(&self) -> &Section {
        &self.defaults
    }

    pub fn section_names(&self) -> impl Iterator<Item = &str> {
        self.sections.iter().map(|s| s.name())
    }
}

/// Reads a file of configuration; the error names what is wrong with the path.
fn read_file(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|e| {
        let problem = match e.kind() {
            std::io::ErrorKind::NotFound => "no such file".to_owned(),
            _ => format!("cannot be read: {e}"),
        };
        ConfigError::in_file(path.display().to_string(), problem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_see_defaults_and_override_them() {
        let conf = Conf::parse(
            "[DEFAULT]\ndevices = /srv/node\nworkers = 2\n[object-replicator]\nworkers = 8\n",
            "object-server.conf",
        )
        .unwrap();
        let section = conf.section("object-replicator").unwrap();
        assert_eq!(section.get("devices"), Some("/srv/node"));
        assert_eq!(section.get("workers"), Some("8"));
        assert!(conf.section("object-auditor").is_none());
        assert_eq!(conf.section_or_default("object-auditor").get("workers"), Some("2"));
        assert_eq!(conf.section_or_default("object-auditor").name(), "object-auditor");
        assert_eq!(
            section.error("devices", "expected").to_string(),
            "object-server.conf: [DEFAULT] devices = /srv/node: expected"
        );
        assert_eq!(
            section.error("workers", "expected").to_string(),
            "object-server.conf: [object-replicator] workers = 8: expected"
        );
        assert_eq!(
            conf.require("object-replicater").unwrap_err().to_string(),
            "object-server.conf: [object-replicater]: no such section; did you mean [object-replicator]?"
        );
    }

    #[test]
    fn a_missing_file_is_one_clear_line() {
        let error = Conf::load(Path::new("/nonexistent/x.conf")).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/x.conf: no such file");
    }

    #[test]
    fn errors_stay_on_one_line() {
        let error = ConfigError::in_option("f", "s", "o", "a\nb", "expected\nthis");
        assert_eq!(error.to_string(), "f: [s] o = a\\nb: expected\\nthis");
    }
}
