//! Pipelines as paste.deploy builds them from a file: which app, behind which filters, with which options.
//!
//! The options of an app or filter are those of DEFAULT, then every `set name = value` of the pipeline and of its
//! own section, then its own options. Paste skips an own option that DEFAULT has too: DEFAULT wins, unless `set`
//! overrides it. That surprises operators, so a `Section` remembers such options and warns.
//!
//! `use` names a factory (`egg:swift#object`), another section of the file, or another file (`config:PATH#NAME`).
//! Composites, `filter-app` and `filter-with` are not read: no Swift configuration has them. Such a section is
//! an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::ini::{DEFAULT_SECTION, Ini, Interpolation, OptionCase, Options};
use super::option::Place;
use super::{ConfigError, Section, option};

/// `use` may refer to another section, which refers to another; longer chains are a mistake.
const MAX_USE_DEPTH: usize = 10;

/// A pipeline read from a file.
#[derive(Debug, Clone)]
pub struct Paste {
    pub file: PathBuf,
    /// From the outermost to the innermost.
    pub filters: Vec<Component>,
    pub app: Component,
}

/// One app or filter of a pipeline.
#[derive(Debug, Clone)]
pub struct Component {
    /// As the pipeline names it.
    pub name: String,
    /// The factory: `egg:swift#object`.
    pub uses: String,
    pub section: Section,
}

#[derive(Copy, Clone, PartialEq, Eq)]
enum Kind {
    App,
    Filter,
}

impl Kind {
    const fn prefixes(self) -> &'static [&'static str] {
        match self {
            Kind::App => &["app", "application", "composite", "composit", "pipeline", "filter-app"],
            Kind::Filter => &["filter"],
        }
    }
}

impl Paste {
    /// Reads the pipeline or app called `app_name` (`main` for what a server runs; an app's own name for its
    /// options alone) from a file or a folder of `*.conf` files.
    pub fn load(path: &Path, app_name: &str) -> Result<Self, ConfigError> {
        Loader::open(path)?.pipeline(app_name)
    }

    /// The same from text.
    pub fn parse(text: &str, file: &str, app_name: &str) -> Result<Self, ConfigError> {
        let mut ini = Ini::new(file, OptionCase::Keep);
        ini.read_str(text, file)?;
        Loader { path: PathBuf::from(file), ini }.pipeline(app_name)
    }

    /// The warnings of every section.
    pub fn warnings(&self) -> Vec<String> {
        self.filters.iter().chain([&self.app]).flat_map(|c| c.section.warnings()).collect()
    }
}

struct Loader {
    path: PathBuf,
    ini: Ini,
}

/// Options from around a section, and where each stands.
#[derive(Clone, Default)]
struct Outer {
    values: Options,
    places: BTreeMap<String, Place>,
}

impl Outer {
    fn add(&mut self, options: Options, place: impl Fn(&str) -> Place) {
        self.places.extend(options.keys().map(|option| (option.clone(), place(option))));
        self.values.extend(options);
    }
}

/// The options of a section in the terms of paste.
#[derive(Default)]
struct Local {
    /// `set name = value`
    set: Options,
    own: Options,
    shadowed: Vec<String>,
}

impl Loader {
    fn open(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self { path: path.to_owned(), ini: Ini::load(path, OptionCase::Keep)? })
    }

    fn pipeline(&self, name: &str) -> Result<Paste, ConfigError> {
        let section = self.find(Kind::App, name)?;
        let mut globals = self.globals()?;
        if !section.starts_with("pipeline:") {
            let app = self.component(Kind::App, name, &globals, 0)?;
            return Ok(Paste { file: self.path.clone(), filters: Vec::new(), app });
        }
        let local = self.local(&section, &globals.values)?;
        globals.add(local.set, |_| self.place(&section));
        if let Some((option, value)) = local.own.iter().find(|(o, _)| *o != "pipeline") {
            let problem = "a pipeline takes no option but \"pipeline\" and \"set ...\"";
            return Err(ConfigError::in_option(self.ini.file(), &section, option, value, problem));
        }
        let names = local.own.get("pipeline").map(String::as_str).unwrap_or_default();
        let mut names: Vec<&str> = names.split_whitespace().collect();
        let Some(app) = names.pop() else {
            let problem = "expected pipeline = FILTER... APP";
            return Err(ConfigError::in_section(self.ini.file(), &section, problem));
        };
        Ok(Paste {
            file: self.path.clone(),
            app: self.component(Kind::App, app, &globals, 0)?,
            filters: names
                .into_iter()
                .map(|name| self.component(Kind::Filter, name, &globals, 0))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The options of DEFAULT with `here` and `__file__`.
    fn globals(&self) -> Result<Outer, ConfigError> {
        let mut globals = Outer::default();
        for options in [self.ini.interpolated_defaults()?, self.ini.builtin().clone()] {
            globals.add(options, |_| self.place(DEFAULT_SECTION));
        }
        Ok(globals)
    }

    fn place(&self, section: &str) -> Place {
        Place { file: self.ini.file().to_owned(), section: section.to_owned() }
    }

    fn component(
        &self,
        kind: Kind,
        name: &str,
        outer: &Outer,
        depth: usize,
    ) -> Result<Component, ConfigError> {
        if is_absolute(name) {
            // A factory named in place of a section: its options are the globals alone.
            let section = self.section(name, outer.clone(), &Local::default(), BTreeSet::new());
            return Ok(Component { name: name.to_owned(), uses: name.to_owned(), section });
        }
        let section = self.find(kind, name)?;
        if section.starts_with("composi") || section.starts_with("filter-app:") {
            let problem = "expected a section of the kind pipeline, app or filter";
            return Err(ConfigError::in_section(self.ini.file(), &section, problem));
        }
        if section.starts_with("pipeline:") {
            let problem = "expected an app, not a pipeline within a pipeline";
            return Err(ConfigError::in_section(self.ini.file(), &section, problem));
        }
        let mut local = self.local(&section, &outer.values)?;
        if local.own.contains_key("filter-with") {
            let problem = "filter-with isn't supported; name the filter in the pipeline";
            return Err(ConfigError::in_section(self.ini.file(), &section, problem));
        }
        let uses = local.own.shift_remove("use").or_else(|| explicit_factory(&mut local.own));
        let Some(uses) = uses else {
            let problem = "expected use = egg:PACKAGE#NAME";
            return Err(ConfigError::in_section(self.ini.file(), &section, problem));
        };
        let (uses, mut from, inherited_own) = self.follow_use(kind, &section, &uses, outer, depth)?;
        for options in [&local.set, &local.own] {
            from.add(options.clone(), |_| self.place(&section));
        }
        let mut own: BTreeSet<String> = local.own.keys().chain(local.set.keys()).cloned().collect();
        own.extend(inherited_own);
        Ok(Component { name: name.to_owned(), uses, section: self.section(&section, from, &local, own) })
    }

    /// The factory at the end of `use`, with the options that sections on the way have set.
    fn follow_use(
        &self,
        kind: Kind,
        section: &str,
        uses: &str,
        outer: &Outer,
        depth: usize,
    ) -> Result<(String, Outer, BTreeSet<String>), ConfigError> {
        if depth >= MAX_USE_DEPTH {
            let problem = "expected sections that use one another to end at a factory";
            return Err(ConfigError::in_option(self.ini.file(), section, "use", uses, problem));
        }
        let used = if let Some(reference) = uses.strip_prefix("config:") {
            let (path, name) = reference.split_once('#').unwrap_or((reference, "main"));
            let base = self.path.parent().unwrap_or(Path::new(""));
            let other = Loader::open(&base.join(path))?;
            // Paste: what this file sets stands over the other's DEFAULT.
            let mut globals = other.globals()?;
            globals.values.extend(outer.values.clone());
            globals.places.extend(outer.places.clone());
            other.component(kind, name, &globals, depth + 1)?
        } else if is_absolute(uses) {
            return Ok((uses.to_owned(), outer.clone(), BTreeSet::new()));
        } else {
            self.component(kind, uses, outer, depth + 1)?
        };
        let mut from = Outer::default();
        let values = used.section.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        from.add(values, |option| used.section.place(option));
        let own = used.section.unknown_options().into_iter().map(|(o, _)| o).collect();
        Ok((used.uses, from, own))
    }

    fn section(&self, name: &str, from: Outer, local: &Local, mut own: BTreeSet<String>) -> Section {
        let Outer { mut values, places } = from;
        for internal in ["here", "__file__"] {
            values.shift_remove(internal);
            own.remove(internal);
        }
        // The section's own options come first, so that listings of them are stable.
        let mut ordered: Options =
            local.own.keys().chain(local.set.keys()).filter_map(|k| values.swap_remove_entry(k)).collect();
        ordered.extend(values);
        Section::new(self.ini.file(), name, ordered, own, local.shadowed.clone(), places)
    }

    fn local(&self, section: &str, globals: &Options) -> Result<Local, ConfigError> {
        let mut local = Local::default();
        for (option, value) in self.ini.interpolated(section, Interpolation::Nicer)? {
            if !self.ini.is_own(section, &option) {
                continue;
            }
            if let Some(name) = option.strip_prefix("set ") {
                local.set.insert(name.trim().to_owned(), value);
            } else if let Some(name) = option.strip_prefix("get ") {
                let global = globals.get(&value).ok_or_else(|| {
                    let problem = "expected the name of an option of [DEFAULT]";
                    ConfigError::in_option(self.ini.file(), section, &option, &value, problem)
                })?;
                local.own.insert(name.trim().to_owned(), global.clone());
            } else if self.ini.is_own_default(&option) {
                local.shadowed.push(option);
            } else {
                local.own.insert(option, value);
            }
        }
        // The same value in both places is no surprise to anybody.
        local.shadowed.retain(|o| {
            let here = self.ini.get(section, o, Interpolation::Nicer).ok().flatten();
            here.as_ref() != globals.get(o)
        });
        Ok(local)
    }

    /// The one section called `PREFIX:NAME` for a prefix of this kind.
    fn find(&self, kind: Kind, name: &str) -> Result<String, ConfigError> {
        let named = |s: &&str| {
            s.split_once(':').is_some_and(|(prefix, n)| kind.prefixes().contains(&prefix) && n.trim() == name)
        };
        let found: Vec<&str> = self.ini.section_names().filter(named).collect();
        match found.as_slice() {
            [section] => Ok((*section).to_owned()),
            [] => Err(self.missing(kind, name)),
            [first, second, ..] => Err(ConfigError::in_section(
                self.ini.file(),
                *first,
                format!("[{second}] has the same name; expected one of them"),
            )),
        }
    }

    fn missing(&self, kind: Kind, name: &str) -> ConfigError {
        let wanted = match (kind, name) {
            (Kind::App, "main") => "pipeline:main".to_owned(),
            (Kind::App, _) => format!("app:{name}"),
            (Kind::Filter, _) => format!("filter:{name}"),
        };
        let problem = match option::nearest(&wanted, self.ini.section_names()) {
            Some(near) => format!("no such section; did you mean [{near}]?"),
            None => "no such section".to_owned(),
        };
        ConfigError::in_section(self.ini.file(), wanted, problem)
    }
}

/// `SCHEME:REST`, as in `egg:swift#object`.
fn is_absolute(name: &str) -> bool {
    name.split_once(':')
        .is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphabetic()))
}

/// `paste.filter_factory = module:function`, the older way to name a factory.
fn explicit_factory(own: &mut Options) -> Option<String> {
    let names = ["paste.app_factory", "paste.filter_factory", "paste.filter_app_factory"];
    names.iter().find_map(|name| own.shift_remove(*name)).map(|value| format!("call:{value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "\
[DEFAULT]
devices = /srv/node
mount_check = true
bind_port = 6200
[pipeline:main]
set log_level = DEBUG
pipeline = healthcheck recon object-server
[app:object-server]
use = egg:swift#object
mount_check = false
set bind_port = 6210
slow = 1
disks = %(devices)s/d1
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:recon]
use = base
recon_cache_path = /var/cache/swift
[filter:base]
use = egg:swift#recon
recon_cache_path = /tmp
level = base
";

    #[test]
    fn errors_name_the_section_where_the_option_stands() {
        let paste = Paste::parse(OBJECT, "object-server.conf", "main").unwrap();
        let place = |section: &Section, option: &str| {
            let said = section.error(option, "expected").to_string();
            said.strip_prefix("object-server.conf: ").unwrap().split(' ').next().unwrap().to_owned()
        };
        let recon = &paste.filters[1].section;
        for (section, option, expected) in [
            (&paste.app.section, "slow", "[app:object-server]"),
            (&paste.app.section, "bind_port", "[app:object-server]"),
            (&paste.app.section, "missing", "[app:object-server]"),
            (&paste.app.section, "devices", "[DEFAULT]"),
            // DEFAULT wins over the section.
            (&paste.app.section, "mount_check", "[DEFAULT]"),
            (&paste.app.section, "log_level", "[pipeline:main]"),
            (recon, "recon_cache_path", "[filter:recon]"),
            (recon, "level", "[filter:base]"),
            (recon, "bind_port", "[DEFAULT]"),
        ] {
            assert_eq!(place(section, option), expected, "{option}");
        }
    }

    #[test]
    fn options_are_those_that_paste_hands_to_a_factory() {
        let paste = Paste::parse(OBJECT, "object-server.conf", "main").unwrap();
        let names: Vec<_> = paste.filters.iter().map(|c| (c.name.as_str(), c.uses.as_str())).collect();
        assert_eq!(names, [("healthcheck", "egg:swift#healthcheck"), ("recon", "egg:swift#recon")]);
        let app = &paste.app;
        assert_eq!((app.name.as_str(), app.uses.as_str()), ("object-server", "egg:swift#object"));
        // DEFAULT wins over the section, unless `set` says otherwise.
        assert_eq!(app.section.get("mount_check"), Some("true"));
        assert_eq!(app.section.get("bind_port"), Some("6210"));
        assert_eq!(app.section.get("log_level"), Some("DEBUG"));
        assert_eq!(app.section.get("disks"), Some("/srv/node/d1"));
        assert_eq!(app.section.get("use"), None);
        let recon = &paste.filters[1].section;
        assert_eq!(recon.get("recon_cache_path"), Some("/var/cache/swift"));
        assert_eq!(recon.get("level"), Some("base"));
        assert_eq!(recon.get("bind_port"), Some("6200"));
    }

    #[test]
    fn shadowed_and_unknown_options_are_warned_about() {
        let paste = Paste::parse(OBJECT, "f", "main").unwrap();
        for asked in ["bind_port", "disks", "recon_cache_path", "level"] {
            paste.app.section.get(asked);
            paste.filters[1].section.get(asked);
        }
        assert_eq!(
            paste.warnings(),
            [
                "f: [app:object-server] slow: unknown option",
                "f: [app:object-server] mount_check: [DEFAULT] sets it too and wins; \
                 write \"set mount_check\" to override",
            ]
        );
    }

    #[test]
    fn an_app_can_be_read_without_its_pipeline() {
        let paste = Paste::parse(OBJECT, "f", "object-server").unwrap();
        assert!(paste.filters.is_empty());
        assert_eq!(paste.app.section.get("log_level"), None);
    }

    #[test]
    fn mistakes_are_one_clear_line() {
        let error = |text: &str| Paste::parse(text, "f", "main").unwrap_err().to_string();
        assert_eq!(error("[app:x]\n"), "f: [pipeline:main]: no such section");
        assert_eq!(error("[pipeline:main]\n"), "f: [pipeline:main]: expected pipeline = FILTER... APP");
        assert_eq!(
            error("[pipeline:main]\npipeline = proxy-serv\n[app:proxy-server]\nuse = egg:swift#proxy\n"),
            "f: [app:proxy-serv]: no such section; did you mean [app:proxy-server]?"
        );
        assert_eq!(
            error("[pipeline:main]\npipeline = x\n[app:x]\n"),
            "f: [app:x]: expected use = egg:PACKAGE#NAME"
        );
        assert_eq!(
            error("[pipeline:main]\npipeline = x\n[app:x]\nuse = y\n[app:y]\nuse = x\n"),
            "f: [app:x] use = y: expected sections that use one another to end at a factory"
        );
        assert_eq!(
            error("[pipeline:main]\npipeline = x\ncolour = red\n[app:x]\nuse = egg:a#b\n"),
            "f: [pipeline:main] colour = red: a pipeline takes no option but \"pipeline\" and \"set ...\""
        );
    }

    #[test]
    fn another_file_may_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("a.conf");
        std::fs::write(
            dir.path().join("b.conf"),
            "[DEFAULT]\nuser = b\nb = 1\n[app:y]\nuse = egg:s#y\ny = 2\n",
        )
        .unwrap();
        std::fs::write(
            &main,
            "[DEFAULT]\nuser = a\n[pipeline:main]\npipeline = x\n[app:x]\nuse = config:b.conf#y\nx = 3\n",
        )
        .unwrap();
        let paste = Paste::load(&main, "main").unwrap();
        assert_eq!(paste.app.uses, "egg:s#y");
        let get = |o| paste.app.section.get(o);
        assert_eq!([get("user"), get("b"), get("y"), get("x")], [Some("a"), Some("1"), Some("2"), Some("3")]);
    }
}
