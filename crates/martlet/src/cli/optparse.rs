//! Options as Python's `optparse` reads them: anywhere among the words, long ones shortened, `-vo` and `-d sda1` and
//! `-dsda1`. Usage goes to stderr with exit code 2 for a bad option, help to stdout.

use std::fmt::Write as _;

/// An option that some program takes.
#[derive(Debug)]
pub struct Opt {
    pub short: Option<char>,
    pub long: &'static str,
    /// How the value is called; None for a switch.
    pub value: Option<&'static str>,
    pub help: &'static str,
}

pub const HELP: Opt =
    Opt { short: Some('h'), long: "help", value: None, help: "show this help message and exit" };

/// A command line after which there is nothing to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: u8,
    pub stdout: String,
    pub stderr: String,
}

/// Options with their values, in the order of the words.
pub type Found = Vec<(&'static Opt, String)>;

/// What a program can be asked.
pub struct Usage<'a> {
    pub prog: &'a str,
    /// What follows `Usage: `.
    pub text: String,
    pub options: &'static [&'static Opt],
}

impl Usage<'_> {
    /// Options with their values, and the words that are none. Asked for help, nothing else is looked at.
    pub fn split(&self, words: &[String]) -> Result<(Found, Vec<String>), Ended> {
        let (mut found, mut positional) = (Found::new(), Vec::new());
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            if word == "--" {
                positional.extend(rest.by_ref().cloned());
            } else if let Some(long) = word.strip_prefix("--") {
                let (name, inline) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                let option = self.find_long(name)?;
                let value = self.take_value(option, &format!("--{}", option.long), inline, &mut rest)?;
                found.push((option, value));
            } else if word.len() > 1 && word.starts_with('-') {
                self.split_short(&word[1..], &mut rest, &mut found)?;
            } else {
                positional.push(word.clone());
            }
        }
        if found.iter().any(|(option, _)| option.long == HELP.long) {
            return Err(Ended { code: 0, stdout: self.help(), stderr: String::new() });
        }
        Ok((found, positional))
    }

    /// `-vo`, `-d sda1`, `-dsda1`.
    fn split_short<'w>(
        &self,
        cluster: &str,
        rest: &mut impl Iterator<Item = &'w String>,
        found: &mut Found,
    ) -> Result<(), Ended> {
        for (at, c) in cluster.char_indices() {
            let option = self.options.iter().find(|o| o.short == Some(c));
            let option = option.ok_or_else(|| self.bad_option(&format!("no such option: -{c}")))?;
            let tail = &cluster[at + c.len_utf8()..];
            let inline = (option.value.is_some() && !tail.is_empty()).then(|| tail.to_owned());
            let took_tail = inline.is_some();
            let value = self.take_value(option, &format!("-{c}"), inline, rest)?;
            found.push((option, value));
            if took_tail {
                break;
            }
        }
        Ok(())
    }

    fn find_long(&self, name: &str) -> Result<&'static Opt, Ended> {
        if let Some(exact) = self.options.iter().find(|o| o.long == name) {
            return Ok(exact);
        }
        let matches: Vec<_> = self.options.iter().filter(|o| o.long.starts_with(name)).collect();
        match matches[..] {
            [one] => Ok(one),
            [] => Err(self.bad_option(&format!("no such option: --{name}"))),
            _ => {
                let names: Vec<_> = matches.iter().map(|o| format!("--{}", o.long)).collect();
                Err(self.bad_option(&format!("ambiguous option: --{name} ({}?)", names.join(", "))))
            }
        }
    }

    fn take_value<'w>(
        &self,
        option: &Opt,
        shown: &str,
        inline: Option<String>,
        rest: &mut impl Iterator<Item = &'w String>,
    ) -> Result<String, Ended> {
        match (option.value, inline) {
            (None, None) => Ok(String::new()),
            (None, Some(_)) => Err(self.bad_option(&format!("{shown} option does not take a value"))),
            (Some(_), Some(value)) => Ok(value),
            (Some(_), None) => rest
                .next()
                .cloned()
                .ok_or_else(|| self.bad_option(&format!("{shown} option requires 1 argument"))),
        }
    }

    pub fn bad_option(&self, error: &str) -> Ended {
        let stderr = format!("Usage: {}\n\n{}: error: {error}\n", self.text, self.prog);
        Ended { code: 2, stdout: String::new(), stderr }
    }

    pub fn help(&self) -> String {
        let mut out = format!("Usage: {}\n\nOptions:\n", self.text);
        for option in self.options {
            let (space, equals) = match option.value {
                Some(value) => (format!(" {value}"), format!("={value}")),
                None => Default::default(),
            };
            let short = option.short.map(|short| format!("-{short}{space}, ")).unwrap_or_default();
            let shown = format!("{short}--{}{equals}", option.long);
            // Writing to a String cannot fail.
            let _ = match shown.len() {
                0..=38 => writeln!(out, "  {shown:<38} {}", option.help),
                _ => writeln!(out, "  {shown}\n{:41}{}", "", option.help),
            };
        }
        out
    }
}
