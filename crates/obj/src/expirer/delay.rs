//! How long objects stay after they have expired: `delay_reaping_ACCOUNT` and `delay_reaping_ACCOUNT/CONTAINER`.
//!
//! Names are quoted as in a URL. Objects that are to be deleted whatever they say are not delayed.

use std::collections::HashMap;

use common::config::{ConfigError, Section, parse_float};
use common::quote::unquote;

const PREFIX: &str = "delay_reaping_";

/// Seconds, by account and perhaps container.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Delays(HashMap<(String, Option<String>), f64>);

impl Delays {
    pub fn from_section(section: &Section) -> Result<Self, ConfigError> {
        let options: Vec<&str> = section.iter().map(|(name, _)| name).collect();
        let mut delays = HashMap::new();
        for option in options {
            let Some(quoted) = option.strip_prefix(PREFIX) else { continue };
            let path = String::from_utf8_lossy(&unquote(quoted.as_bytes())).into_owned();
            let parts: Vec<&str> = path.split('/').collect();
            let key = match parts[..] {
                [account] if !account.is_empty() => (account.to_owned(), None),
                [account, container] if !account.is_empty() && !container.is_empty() => {
                    (account.to_owned(), Some(container.to_owned()))
                }
                _ => {
                    let expected = "expected a name of the form delay_reaping_ACCOUNT or \
                                    delay_reaping_ACCOUNT/CONTAINER";
                    return Err(section.error(option, expected));
                }
            };
            let secs = section.get(option).and_then(parse_float).filter(|secs| *secs >= 0.0);
            let secs = secs.ok_or_else(|| section.error(option, "expected a number, 0 or more"))?;
            delays.insert(key, secs);
        }
        Ok(Delays(delays))
    }

    pub fn get(&self, account: &str, container: &str) -> f64 {
        let find = |container: Option<&str>| {
            self.0.get(&(account.to_owned(), container.map(str::to_owned))).copied()
        };
        if self.0.is_empty() { 0.0 } else { find(Some(container)).or_else(|| find(None)).unwrap_or(0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(option: &str, value: &str) -> Result<Delays, ConfigError> {
        Delays::from_section(&Section::from_pairs("object-expirer", [(option, value), ("interval", "5")]))
    }

    #[test]
    fn a_container_may_differ_from_its_account() {
        let section = Section::from_pairs(
            "object-expirer",
            [("delay_reaping_a%C3%A9", "300"), ("delay_reaping_a%C3%A9/c%2Dd", "0.5")],
        );
        let delays = Delays::from_section(&section).unwrap();
        assert_eq!(
            (delays.get("aé", "c-d"), delays.get("aé", "x"), delays.get("b", "c-d")),
            (0.5, 300.0, 0.0)
        );
    }

    #[test]
    fn what_is_no_name_or_no_number_is_refused() {
        for (option, value) in [
            ("delay_reaping_", "5"),
            ("delay_reaping_/a", "5"),
            ("delay_reaping_a/", "5"),
            ("delay_reaping_a/b/c", "5"),
            ("delay_reaping_a", "-1"),
            ("delay_reaping_a", "soon"),
        ] {
            assert!(delays(option, value).is_err(), "{option} = {value}");
        }
        assert!(delays("delay_reaping_a", "0").is_ok());
    }
}
