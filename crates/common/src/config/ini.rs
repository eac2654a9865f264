//! INI text as Python's ConfigParser reads it, with the settings that Swift and paste use.
//!
//! * `#` or `;` first on a line begins a comment; there are no comments behind a value.
//! * `name = value` or `name : value`, whichever comes first; names keep their case, except in swift.conf.
//! * A line indented deeper than its option continues the value, joined by a newline; empty lines inside a value
//!   belong to it, those at its end don't; a comment line within a value is dropped.
//! * A section or option twice in one file is an error; a later file of a folder overrides an earlier one.
//! * `%(name)s` is replaced from the section and DEFAULT, ten levels deep. Services read a value without `%(` as
//!   it stands; swift.conf demands that every other `%` is doubled.

use std::collections::HashSet;
use std::path::Path;

use indexmap::IndexMap;

use super::{ConfigError, read_file};

const MAX_INTERPOLATION_DEPTH: usize = 10;
pub(super) const DEFAULT_SECTION: &str = "DEFAULT";

/// Whether names of options keep their case.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum OptionCase {
    Keep,
    Lower,
}

/// How `%` in a value is read.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// ConfigParser's own rules.
    Basic,
    /// The same, but only for values with `%(` in them; so that `1%` may be written.
    Nicer,
}

pub(super) type Options = IndexMap<String, String>;

/// Sections and their raw values.
#[derive(Debug, Clone)]
pub struct Ini {
    file: String,
    case: OptionCase,
    defaults: Options,
    sections: IndexMap<String, Options>,
    /// `here` and `__file__`: they can be interpolated but are nobody's options.
    builtin: Options,
}

impl Ini {
    pub fn new(file: &str, case: OptionCase) -> Self {
        Self {
            file: file.to_owned(),
            case,
            defaults: Options::new(),
            sections: IndexMap::new(),
            builtin: Options::new(),
        }
    }

    /// Reads a file, or the `*.conf` files of a folder in the order of their names.
    pub fn load(path: &Path, case: OptionCase) -> Result<Self, ConfigError> {
        let mut ini = Self::new(&path.display().to_string(), case);
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let is_dir = path.is_dir();
        let here = if is_dir { Some(absolute.as_path()) } else { absolute.parent() };
        let here = here.unwrap_or(&absolute).display().to_string();
        ini.builtin.insert("here".to_owned(), here);
        ini.builtin.insert("__file__".to_owned(), absolute.display().to_string());
        if !is_dir {
            ini.read_path(path)?;
            return Ok(ini);
        }
        let files = conf_files(path)?;
        if files.is_empty() {
            return Err(ConfigError::in_file(&ini.file, "the folder holds no file named *.conf"));
        }
        for file in files {
            ini.read_path(&file)?;
        }
        Ok(ini)
    }

    fn read_path(&mut self, path: &Path) -> Result<(), ConfigError> {
        let name = path.display().to_string();
        let text = String::from_utf8(read_file(path)?)
            .map_err(|_| ConfigError::in_file(&name, "expected text in UTF-8"))?;
        self.read_str(&text, &name)
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    pub fn section_names(&self) -> impl Iterator<Item = &str> {
        self.sections.keys().map(String::as_str)
    }

    pub fn has_section(&self, name: &str) -> bool {
        self.sections.contains_key(name)
    }

    /// True if the section itself sets the option, false if it has it from DEFAULT.
    pub fn is_own(&self, section: &str, option: &str) -> bool {
        self.sections.get(section).is_some_and(|s| s.contains_key(option))
    }

    /// True if DEFAULT sets the option.
    pub(super) fn is_own_default(&self, option: &str) -> bool {
        self.defaults.contains_key(option)
    }

    pub(super) fn builtin(&self) -> &Options {
        &self.builtin
    }

    /// Adds the text of one file.
    pub fn read_str(&mut self, text: &str, file: &str) -> Result<(), ConfigError> {
        Reader { ini: self, file, seen: HashSet::new(), section: None, option: None, indent: 0 }.read(text)
    }

    /// One option, interpolated; `None` if neither the section nor DEFAULT has it.
    pub fn get(
        &self,
        section: &str,
        option: &str,
        interpolation: Interpolation,
    ) -> Result<Option<String>, ConfigError> {
        let merged = self.merged(section);
        merged.get(option).map(|v| self.interpolate(section, option, v, &merged, interpolation)).transpose()
    }

    /// Every option of a section and DEFAULT, the section's own first, interpolated.
    pub(super) fn interpolated(
        &self,
        section: &str,
        interpolation: Interpolation,
    ) -> Result<Options, ConfigError> {
        let merged = self.merged(section);
        let mut out = Options::with_capacity(merged.len());
        for (option, value) in &merged {
            if self.is_own(section, option) || self.defaults.contains_key(option) {
                let value = self.interpolate(section, option, value, &merged, interpolation)?;
                out.insert(option.clone(), value);
            }
        }
        Ok(out)
    }

    pub(super) fn interpolated_defaults(&self) -> Result<Options, ConfigError> {
        self.interpolated(DEFAULT_SECTION, Interpolation::Nicer)
    }

    fn merged(&self, section: &str) -> Options {
        let mut merged = self.sections.get(section).cloned().unwrap_or_default();
        for (option, value) in self.defaults.iter().chain(&self.builtin) {
            if !merged.contains_key(option) {
                merged.insert(option.clone(), value.clone());
            }
        }
        merged
    }

    fn interpolate(
        &self,
        section: &str,
        option: &str,
        value: &str,
        values: &Options,
        interpolation: Interpolation,
    ) -> Result<String, ConfigError> {
        if interpolation == Interpolation::Nicer && !value.contains("%(") {
            return Ok(value.to_owned());
        }
        let mut out = String::with_capacity(value.len());
        self.interpolate_some(values, value, 1, &mut out)
            .map_err(|problem| ConfigError::in_option(&self.file, section, option, value, problem))?;
        Ok(out)
    }

    fn interpolate_some(
        &self,
        values: &Options,
        value: &str,
        depth: usize,
        out: &mut String,
    ) -> Result<(), String> {
        if depth > MAX_INTERPOLATION_DEPTH {
            return Err(format!("expected at most {MAX_INTERPOLATION_DEPTH} levels of %(name)s"));
        }
        let mut rest = value;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                out.push('%');
                rest = after;
            } else if let Some(after) = rest.strip_prefix('(') {
                let (name, after) = after
                    .split_once(')')
                    .filter(|(name, _)| !name.is_empty())
                    .and_then(|(name, after)| Some((name, after.strip_prefix('s')?)))
                    .ok_or("expected %(name)s")?;
                let name = self.fold(name);
                let inner = values
                    .get(&name)
                    .ok_or_else(|| format!("%({name})s refers to an option that isn't set"))?;
                if inner.contains('%') {
                    self.interpolate_some(values, inner, depth + 1, out)?;
                } else {
                    out.push_str(inner);
                }
                rest = after;
            } else {
                return Err("expected '%' to be followed by '%' or '('".to_owned());
            }
        }
        out.push_str(rest);
        Ok(())
    }

    fn fold(&self, option: &str) -> String {
        match self.case {
            OptionCase::Keep => option.to_owned(),
            OptionCase::Lower => option.to_lowercase(),
        }
    }

    fn options_mut(&mut self, section: &str) -> &mut Options {
        if section == DEFAULT_SECTION {
            &mut self.defaults
        } else {
            self.sections.entry(section.to_owned()).or_default()
        }
    }
}

fn conf_files(dir: &Path) -> Result<Vec<std::path::PathBuf>, ConfigError> {
    let failed = |e| ConfigError::in_file(dir.display().to_string(), format!("cannot be read: {e}"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(name) = name.to_str()
            && name.ends_with(".conf")
            && !name.starts_with('.')
        {
            files.push(dir.join(name));
        }
    }
    files.sort();
    Ok(files)
}

/// The state of reading one file, line by line.
struct Reader<'a> {
    ini: &'a mut Ini,
    file: &'a str,
    /// Sections and options of this file alone.
    seen: HashSet<(String, Option<String>)>,
    section: Option<String>,
    option: Option<String>,
    indent: usize,
}

impl Reader<'_> {
    fn read(mut self, text: &str) -> Result<(), ConfigError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (number, line) in text.lines().enumerate() {
            self.line(line).map_err(|problem| {
                let error = ConfigError::in_file(self.file, problem).at_line(number + 1);
                match &self.section {
                    Some(section) => error.of_section(section),
                    None => error,
                }
            })?;
        }
        for options in self.ini.sections.values_mut().chain([&mut self.ini.defaults]) {
            for value in options.values_mut() {
                value.truncate(value.trim_end().len());
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let value = line.trim();
        if value.starts_with('#') || value.starts_with(';') {
            return Ok(());
        }
        if value.is_empty() {
            self.continue_value("");
            return Ok(());
        }
        let indent = line.len() - line.trim_start().len();
        if self.option.is_some() && indent > self.indent {
            self.continue_value(value);
            return Ok(());
        }
        self.indent = indent;
        // Python: the header ends at the last bracket of the line, and what follows it is ignored.
        if let Some(name) = value.strip_prefix('[').and_then(|v| Some(&v[..v.rfind(']')?]))
            && !name.is_empty()
        {
            return self.begin_section(name);
        }
        self.set_option(value)
    }

    fn continue_value(&mut self, line: &str) {
        if let (Some(section), Some(option)) = (&self.section, &self.option)
            && let Some(value) = self.ini.options_mut(section).get_mut(option)
        {
            value.push('\n');
            value.push_str(line);
        }
    }

    fn begin_section(&mut self, name: &str) -> Result<(), String> {
        self.option = None;
        let repeated = !self.seen.insert((name.to_owned(), None));
        self.section = Some(name.to_owned());
        if repeated && name != DEFAULT_SECTION {
            return Err("the section appears twice; expected it once".to_owned());
        }
        self.ini.options_mut(name);
        Ok(())
    }

    fn set_option(&mut self, line: &str) -> Result<(), String> {
        let Some(section) = self.section.clone() else {
            return Err(format!("expected a [section] before {line:?}"));
        };
        let at = line.find(['=', ':']).ok_or_else(|| format!("expected option = value, not {line:?}"))?;
        let (name, value) = (line[..at].trim(), line[at + 1..].trim());
        if name.is_empty() {
            return Err(format!("expected option = value, not {line:?}"));
        }
        let name = self.ini.fold(name);
        if !self.seen.insert((section.clone(), Some(name.clone()))) {
            return Err(format!("option {name} appears twice; expected it once"));
        }
        self.ini.options_mut(&section).insert(name.clone(), value.to_owned());
        self.option = Some(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `tests/golden/ini/*.conf` beside what Python's `readconf` makes of them (`make.py`): one JSON object a file,
    /// or `{"error": true}`.
    #[test]
    fn files_read_as_python_reads_them() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ini");
        let mut count = 0;
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "conf") {
                continue;
            }
            let expected = std::fs::read(path.with_extension("json")).unwrap();
            let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
            let ours = Ini::load(&path, OptionCase::Keep).and_then(|ini| {
                let names: Vec<String> = ini.section_names().map(str::to_owned).collect();
                names
                    .into_iter()
                    .map(|name| {
                        let options = ini.interpolated(&name, Interpolation::Nicer)?;
                        let options = options.into_iter().map(|(k, v)| (k, v.into())).collect();
                        Ok((name, serde_json::Value::Object(options)))
                    })
                    .collect::<Result<serde_json::Map<_, _>, ConfigError>>()
            });
            match ours {
                Err(error) => assert_eq!(expected["error"], true, "{path:?}: {error}"),
                Ok(sections) => assert_eq!(serde_json::Value::Object(sections), expected, "{path:?}"),
            }
            count += 1;
        }
        assert!(count >= 12);
    }

    #[test]
    fn errors_name_file_line_and_what_was_expected() {
        let read = |text: &str| Ini::new("f", OptionCase::Keep).read_str(text, "f").unwrap_err().to_string();
        assert_eq!(read("a = 1\n"), "f:1: expected a [section] before \"a = 1\"");
        assert_eq!(read("[s]\na\n"), "f:2: [s]: expected option = value, not \"a\"");
        assert_eq!(read("[s]\na = 1\na = 2\n"), "f:3: [s]: option a appears twice; expected it once");
        assert_eq!(read("[s]\n[t]\n[s]\n"), "f:3: [s]: the section appears twice; expected it once");
    }

    #[test]
    fn swift_conf_demands_doubled_percent_signs() {
        let mut ini = Ini::new("f", OptionCase::Lower);
        ini.read_str("[s]\nAbc = 100%%\nbad = 1%\n", "f").unwrap();
        assert_eq!(ini.get("s", "abc", Interpolation::Basic).unwrap().as_deref(), Some("100%"));
        let error = ini.get("s", "bad", Interpolation::Basic).unwrap_err().to_string();
        assert_eq!(error, "f: [s] bad = 1%: expected '%' to be followed by '%' or '('");
        assert_eq!(ini.get("s", "none", Interpolation::Basic).unwrap(), None);
    }

    #[test]
    fn later_files_of_a_folder_override_earlier_ones() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("10.conf"), "[DEFAULT]\na = 1\n[s]\nb = 1\nc = 1\n").unwrap();
        std::fs::write(dir.path().join("20.conf"), "[s]\nb = 2\n[t]\n").unwrap();
        std::fs::write(dir.path().join(".30.conf"), "[s]\nb = 3\n").unwrap();
        std::fs::write(dir.path().join("30.conf~"), "[s]\nb = 3\n").unwrap();
        let ini = Ini::load(dir.path(), OptionCase::Keep).unwrap();
        let get = |o| ini.get("s", o, Interpolation::Nicer).unwrap().unwrap();
        assert_eq!((get("a"), get("b"), get("c")), ("1".into(), "2".into(), "1".into()));
        assert_eq!(get("here"), dir.path().display().to_string());
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "[\\[\\]=:%()sa \\n#;é]*") {
            let mut ini = Ini::new("f", OptionCase::Keep);
            if ini.read_str(&text, "f").is_ok() {
                for name in ini.section_names().map(str::to_owned).collect::<Vec<_>>() {
                    let _ = ini.interpolated(&name, Interpolation::Basic);
                }
            }
        }
    }
}
