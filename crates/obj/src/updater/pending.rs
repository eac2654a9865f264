//! A pending update as its file holds it: what the object server pickled, and what the updater has noted since.

use common::headers::{
    USER_AGENT, X_BACKEND_ACCEPT_QUOTED_LOCATION, X_BACKEND_ACCEPT_REDIRECT, X_BACKEND_STORAGE_POLICY_INDEX,
};
use common::pickle::{self, PickleError, Value};
use common::wsgi::from_stored;
use common::{ObjHash, PolicyIndex, Timestamp};
use service::http::message::split_path;
use service::http::{Headers, Method};

/// What to tell a container, and who has been told.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PendingUpdate {
    pub op: Method,
    pub obj: String,
    root: (String, String),
    container_path: Option<String>,
    /// Ids of the nodes that have it.
    pub successes: Vec<i64>,
    /// Shards that it has been sent to.
    redirect_history: Vec<String>,
    /// The rest of the dict, as it was.
    items: Vec<(Value, Value)>,
}

impl PendingUpdate {
    pub fn parse(bytes: &[u8]) -> Result<Self, PickleError> {
        let update = pickle::loads(bytes)?;
        let missing = PickleError::Malformed("not an update of a container");
        let text = |name: &str| update.get(name).and_then(Value::as_str).map(str::to_owned);
        let list = |name: &str| match update.get(name) {
            Some(Value::List(items) | Value::Tuple(items)) => items.clone(),
            _ => Vec::new(),
        };
        if update.get("headers").and_then(Value::items).is_none() {
            return Err(missing);
        }
        let (Some(op), Some(obj)) = (text("op"), text("obj")) else { return Err(missing) };
        let (Some(account), Some(container)) = (text("account"), text("container")) else {
            return Err(missing);
        };
        Ok(Self {
            op: Method::parse(&op),
            obj,
            root: (account, container),
            container_path: text("container_path").filter(|path| !path.is_empty()),
            successes: list("successes").iter().filter_map(Value::as_int).collect(),
            redirect_history: list("redirect_history")
                .iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect(),
            items: update.items().unwrap_or_default().to_vec(),
        })
    }

    /// The account and container that are to be told: a shard if it was redirected to one.
    pub fn destination(&self) -> (String, String) {
        let path = self.container_path.as_deref().map(|path| format!("/{path}"));
        match path.and_then(|path| split_path(&path, 2, 2, false).ok()).as_deref() {
            Some([Some(account), Some(container)]) => (account.clone(), container.clone()),
            _ => self.root.clone(),
        }
    }

    /// The headers to send.
    pub fn headers(&self, policy: PolicyIndex) -> Headers {
        let mut headers = Headers::new();
        let stored = self.items.iter().find(|(k, _)| k.as_str() == Some("headers"));
        for (name, value) in stored.and_then(|(_, v)| v.items()).unwrap_or_default() {
            let Some(name) = name.as_str() else { continue };
            match value {
                Value::Str(text) => headers.insert(name, &*from_stored(text.as_bytes())),
                Value::Bytes(bytes) => headers.insert(name, bytes),
                Value::None => {}
                other => headers.insert(name, other.to_string()),
            }
        }
        headers.insert(USER_AGENT, format!("object-updater {}", std::process::id()));
        headers.insert_default(X_BACKEND_STORAGE_POLICY_INDEX, policy.0);
        headers.insert_default(X_BACKEND_ACCEPT_REDIRECT, "true");
        headers.insert_default(X_BACKEND_ACCEPT_QUOTED_LOCATION, "true");
        headers
    }

    /// Sends it to a shard from now on; back to the root if that shard has had it before. Nobody there has it yet.
    pub fn redirect(&mut self, path: &str) {
        self.successes.clear();
        if self.redirect_history.iter().any(|seen| seen == path) {
            self.container_path = None;
            self.redirect_history.clear();
        } else {
            self.container_path = Some(path.to_owned());
            self.redirect_history.push(path.to_owned());
        }
    }

    pub fn to_pickle(&self) -> Vec<u8> {
        let mut items = self.items.clone();
        let mut set = |name: &str, value: Option<Value>| {
            items.retain(|(k, _)| k.as_str() != Some(name));
            if let Some(value) = value {
                items.push((name.into(), value));
            }
        };
        let successes = self.successes.iter().map(|id| Value::Int(*id)).collect();
        set("successes", (!self.successes.is_empty()).then_some(Value::List(successes)));
        let was_redirected = self.container_path.is_some() || !self.redirect_history.is_empty();
        let history = self.redirect_history.iter().map(|path| Value::from(path.as_str())).collect();
        set("container_path", self.container_path.as_deref().map(Value::from));
        set("redirect_history", was_redirected.then_some(Value::List(history)));
        pickle::dumps(&Value::Dict(items))
    }
}

/// A pending file's bytes as a pass writes them that has told nobody; `None` if it would go to quarantine.
pub fn rewrite_pending(bytes: &[u8]) -> Option<Vec<u8>> {
    PendingUpdate::parse(bytes).ok().map(|update| update.to_pickle())
}

/// The hash and timestamp in the name of a pending file, `HASH-TIMESTAMP`.
pub(super) fn parse_file_name(name: &str) -> Option<(ObjHash, Timestamp)> {
    let (hash, timestamp) = name.split_once('-').filter(|(_, t)| !t.contains('-'))?;
    Some((ObjHash::parse(hash)?, Timestamp::parse(timestamp).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn update(more: &[(&str, Value)]) -> PendingUpdate {
        let headers = vec![("X-Size".into(), "5".into()), ("X-Content-Type".into(), "caf\u{e9}".into())];
        let mut items: Vec<(Value, Value)> = vec![
            ("op".into(), "PUT".into()),
            ("account".into(), "a".into()),
            ("container".into(), "c".into()),
            ("obj".into(), "o".into()),
            ("headers".into(), Value::HeaderKeyDict(headers)),
            ("db_state".into(), Value::None),
        ];
        items.extend(more.iter().map(|(k, v)| ((*k).into(), v.clone())));
        PendingUpdate::parse(&pickle::dumps(&Value::Dict(items))).unwrap()
    }

    #[test]
    fn headers_are_sent_as_the_bytes_they_were() {
        let headers = update(&[]).headers(PolicyIndex(3));
        assert_eq!(headers.get("x-size"), Some(&b"5"[..]));
        assert_eq!(headers.get("x-content-type"), Some(&b"caf\xe9"[..]));
        assert_eq!(headers.get_str(X_BACKEND_STORAGE_POLICY_INDEX), Some("3"));
        assert!(headers.get_bool(X_BACKEND_ACCEPT_REDIRECT));
    }

    #[test]
    fn who_has_been_told_is_remembered() {
        let mut pending = update(&[("successes", Value::List(vec![Value::Int(4)]))]);
        pending.successes.push(7);
        let again = PendingUpdate::parse(&pending.to_pickle()).unwrap();
        assert_eq!(again.successes, [4, 7]);
        assert_eq!(again.destination(), ("a".into(), "c".into()));
    }

    #[test]
    fn a_circle_of_redirects_ends_at_the_root() {
        let mut pending = update(&[("successes", Value::List(vec![Value::Int(4)]))]);
        pending.redirect(".shards_a/c-1");
        assert!(pending.successes.is_empty());
        let mut again = PendingUpdate::parse(&pending.to_pickle()).unwrap();
        assert_eq!(again.destination(), (".shards_a".into(), "c-1".into()));
        again.redirect(".shards_a/c-2");
        again.redirect(".shards_a/c-1");
        assert_eq!(again.destination(), ("a".into(), "c".into()));
        assert_eq!(PendingUpdate::parse(&again.to_pickle()).unwrap().destination(), ("a".into(), "c".into()));
    }

    #[test]
    fn what_is_no_update_is_refused() {
        for bytes in [&b""[..], b"garbage", b"\x80\x02}q\x00.", b"\x80\x02N."] {
            assert!(PendingUpdate::parse(bytes).is_err());
        }
    }

    #[test]
    fn names_of_pending_files() {
        let hash = "d41d8cd98f00b204e9800998ecf8427e";
        assert!(parse_file_name(&format!("{hash}-1402464677.04188")).is_some());
        assert!(parse_file_name(&format!("{hash}-1402464677.04188_0000000000000001")).is_some());
        for bad in ["x", "a-b-c", "d41d-1402464677.04188", &format!("{hash}-x"), &format!("{hash}-1-2")] {
            assert!(parse_file_name(bad).is_none(), "{bad}");
        }
    }
    /// Sends it to a shard, back, and to the end.
    fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
        let Ok(mut pending) = PendingUpdate::parse(bytes) else { return Ok(()) };
        for path in [None, Some(".shards_a/c-1"), Some("no path")] {
            path.into_iter().for_each(|path| pending.redirect(path));
            let _ = (pending.headers(PolicyIndex(1)), pending.destination());
            let again = PendingUpdate::parse(&pending.to_pickle());
            let again = again.map_err(|err| TestCaseError::fail(format!("{err}: {pending:?}")))?;
            prop_assert_eq!(again.destination(), pending.destination());
            prop_assert_eq!(again.to_pickle(), pending.to_pickle());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_update_or_refused(bytes: Vec<u8>, name: String) {
            check(&bytes)?;
            let _ = parse_file_name(&name);
        }

        #[test]
        fn damaged_updates_are_updates_or_refused(at: prop::sample::Index, with: u8) {
            let mut bytes = update(&[("successes", Value::List(vec![Value::Int(4)]))]).to_pickle();
            let at = at.index(bytes.len());
            bytes[at] = with;
            check(&bytes)?;
        }
    }
}
