//! Filters without which a proxy does not work: put into a pipeline that lacks them, where they belong.
//!
//! `versioned_writes`, which Swift requires as well, is not written yet.

use common::config::{Component, Conf, Paste, Section};
use service::Context;

/// Each filter, and those which it must stand behind.
const REQUIRED: [(&str, &[&str]); 5] = [
    ("catch_errors", &[]),
    ("gatekeeper", &["catch_errors"]),
    ("listing_formats", &["catch_errors", "gatekeeper", "proxy_logging", "memcache"]),
    ("copy", &["staticweb", "tempauth", "keystoneauth", "catch_errors", "gatekeeper", "proxy_logging"]),
    (
        "dlo",
        &["copy", "staticweb", "tempauth", "keystoneauth", "catch_errors", "gatekeeper", "proxy_logging"],
    ),
];

/// Swift's `modify_wsgi_pipeline`.
pub fn adjust(paste: &mut Paste, ctx: &Context) {
    let names: Vec<String> = paste.filters.iter().map(|filter| filter.uses.clone()).collect();
    let places = places(&names);
    if places.is_empty() {
        return;
    }
    let defaults = Conf::load(&paste.file).map(|conf| conf.defaults().clone());
    let section = defaults.unwrap_or_else(|_| Section::from_pairs("DEFAULT", []));
    for (name, place) in places {
        ctx.logger.info(format_args!("Adding required filter {name} to pipeline at position {place}"));
        let uses = egg(name);
        let filter = Component { name: name.to_owned(), uses, section: section.clone() };
        paste.filters.insert(place, filter);
    }
    let names: Vec<&str> = paste.filters.iter().chain([&paste.app]).map(|part| part.name.as_str()).collect();
    ctx.logger.info(format_args!("Pipeline was modified. New pipeline is \"{}\".", names.join(" ")));
}

fn egg(name: &str) -> String {
    format!("egg:swift#{name}")
}

/// What to insert where, one after the other.
fn places(uses: &[String]) -> Vec<(&'static str, usize)> {
    let mut uses = uses.to_vec();
    let mut places = Vec::new();
    for (name, after) in REQUIRED.iter().rev() {
        if uses.contains(&egg(name)) {
            continue;
        }
        let behind = |uses: &[String], name: &str| uses.iter().position(|other| *other == egg(name));
        // Swift: gatekeeper follows catch_errors only where that is the first.
        let only_first = *name == "gatekeeper";
        let place = after
            .iter()
            .filter_map(|name| behind(&uses, name))
            .filter(|place| !only_first || *place == 0)
            .map(|place| place + 1)
            .max()
            .unwrap_or(0);
        uses.insert(place, egg(name));
        places.push((*name, place));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(pipeline: &str) -> String {
        let mut uses: Vec<String> = pipeline.split_whitespace().map(egg).collect();
        for (name, place) in places(&uses) {
            uses.insert(place, egg(name));
        }
        let names: Vec<&str> = uses.iter().filter_map(|uses| uses.strip_prefix("egg:swift#")).collect();
        names.join(" ")
    }

    /// As `swift.proxy.server.Application.modify_wsgi_pipeline` orders them.
    #[test]
    fn what_is_missing_is_put_where_it_belongs() {
        assert_eq!(completed(""), "catch_errors gatekeeper listing_formats copy dlo");
        assert_eq!(
            completed("healthcheck proxy_logging memcache tempauth proxy_logging"),
            "catch_errors gatekeeper healthcheck proxy_logging memcache listing_formats tempauth copy dlo proxy_logging"
        );
        let whole = "catch_errors gatekeeper memcache listing_formats tempauth copy dlo slo";
        assert_eq!(completed(whole), whole);
        assert_eq!(
            completed("catch_errors tempauth"),
            "catch_errors gatekeeper listing_formats tempauth copy dlo"
        );
    }
}
