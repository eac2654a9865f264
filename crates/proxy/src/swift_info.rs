//! What `/info` tells of the cluster: sections of capabilities which the app and the filters register when they
//! are built, some of them for admins only.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use serde_json::{Map, Value};
use service::context::{Context, ContextData};

#[derive(Default)]
pub struct SwiftInfo {
    sections: Mutex<Sections>,
}

#[derive(Default)]
struct Sections {
    public: Map<String, Value>,
    admin: Map<String, Value>,
}

/// One for each proxy of the process, by the address of its context, while it is being built and served: filters
/// are built apart from the app and have nothing but the context in common with it.
static OF_CONTEXT: LazyLock<Mutex<HashMap<usize, Weak<SwiftInfo>>>> = LazyLock::new(Mutex::default);

impl SwiftInfo {
    /// That of the proxy which is being built.
    pub fn of(ctx: &Context) -> Arc<SwiftInfo> {
        let address = std::ptr::from_ref::<ContextData>(ctx).addr();
        let mut all = OF_CONTEXT.lock();
        all.retain(|_, info| info.strong_count() > 0);
        if let Some(info) = all.get(&address).and_then(Weak::upgrade) {
            return info;
        }
        let info = Arc::new(SwiftInfo::default());
        all.insert(address, Arc::downgrade(&info));
        info
    }

    /// Adds what `capabilities`, an object, holds to a section.
    pub fn register(&self, section: &str, capabilities: Value) {
        merge(&mut self.sections.lock().public, section, capabilities);
    }

    /// As `register`, for the `admin` section.
    pub fn register_admin(&self, section: &str, capabilities: Value) {
        merge(&mut self.sections.lock().admin, section, capabilities);
    }

    /// All but the `disallowed` sections; each is named `section` or `section.key`.
    pub fn get(&self, admin: bool, disallowed: &[String]) -> Value {
        let sections = self.sections.lock();
        let mut info = sections.public.clone();
        for name in disallowed {
            remove(&mut info, name);
        }
        if admin {
            let mut admin = sections.admin.clone();
            admin.insert("disallowed_sections".to_owned(), disallowed.into());
            info.insert("admin".to_owned(), Value::Object(admin));
        }
        Value::Object(info)
    }
}

fn merge(sections: &mut Map<String, Value>, section: &str, capabilities: Value) {
    let slot = sections.entry(section).or_insert_with(|| Value::Object(Map::new()));
    if let (Value::Object(slot), Value::Object(capabilities)) = (slot, capabilities) {
        slot.extend(capabilities);
    }
}

fn remove(info: &mut Map<String, Value>, name: &str) {
    let (inner, key) = match name.rsplit_once('.') {
        Some((inner, key)) => (inner.split('.').collect(), key),
        None => (Vec::new(), name),
    };
    let mut map = info;
    for step in inner {
        match map.get_mut(step) {
            Some(Value::Object(deeper)) => map = deeper,
            _ => return,
        }
    }
    map.shift_remove(key);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn disallowed_sections_are_withheld() {
        let info = SwiftInfo::default();
        info.register("swift", json!({"version": "1", "max_file_size": 5}));
        info.register("swift", json!({"policies": []}));
        info.register("slo", json!({"limits": {"a": 1, "b": 2}}));
        info.register_admin("swift", json!({"secret": true}));
        let disallowed = ["swift.version", "slo.limits.a", "slo.none.x", "none"].map(str::to_owned);
        let public = json!({"swift": {"max_file_size": 5, "policies": []}, "slo": {"limits": {"b": 2}}});
        assert_eq!(info.get(false, &disallowed), public);
        let admin = info.get(true, &disallowed);
        assert_eq!(admin["admin"], json!({"swift": {"secret": true}, "disallowed_sections": disallowed}));
        assert_eq!(
            info.get(false, &["slo".to_owned()]),
            json!({"swift": {
            "version": "1", "max_file_size": 5, "policies": []}})
        );
    }
}
