//! Which partitions of a device the relinker has dealt with.
//!
//! ```text
//! DEVICE/relink.objects[-N].json      {"part_power": 8, "next_part_power": 9, "state": {"17": true, "4": false}}
//!        .relink.objects[-N].json.tmp of a process that was killed while it wrote
//!        .relink.objects[-N].lock     held while a relinker works on the device
//! ```
//!
//! The next run of the same step, be it Swift's or ours, leaves out what is done. A file of other powers, or one that
//! cannot be read, is of no use and is removed. If cleaning up finds the part power with which the linking was done, then
//! it knows that all partitions above are new and have nothing to clean up; that is kept as `prev_part_power`.

use indexmap::IndexMap;
use serde_json::Value;

/// The part powers of a policy, and what has been done with them on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub part_power: u32,
    pub next_part_power: u32,
    /// Partition to whether it is done, in the order in which they were met.
    pub parts: IndexMap<String, bool>,
    pub prev_part_power: Option<u64>,
}

impl State {
    pub fn new(part_power: u32, next_part_power: u32) -> Self {
        State { part_power, next_part_power, parts: IndexMap::new(), prev_part_power: None }
    }

    /// Starts on a device with what its file says; false if the file is of no use. `prev_part_power` stays from
    /// device to device, as with Swift.
    pub fn load(&mut self, text: &[u8]) -> bool {
        self.parts.clear();
        let Ok(file) = serde_json::from_slice::<Value>(text) else { return false };
        if file["next_part_power"].as_u64() != Some(self.next_part_power.into()) {
            return false;
        }
        let Some(part_power) = file["part_power"].as_u64() else { return false };
        if part_power != u64::from(self.part_power) {
            self.prev_part_power = Some(part_power);
            return false;
        }
        let Some(parts) = file["state"].as_object() else { return false };
        let part =
            |(name, done): (&String, &Value)| Some((number(name).map(|_| name.clone())?, done.as_bool()?));
        let Some(parts) = parts.iter().map(part).collect() else { return false };
        self.parts = parts;
        true
    }

    /// Byte for byte as Swift writes it.
    pub fn to_json(&self) -> String {
        let parts: Vec<String> =
            self.parts.iter().map(|(part, done)| format!("\"{part}\": {done}")).collect();
        let mut text = format!(
            "{{\"part_power\": {}, \"next_part_power\": {}, \"state\": {{{}}}",
            self.part_power,
            self.next_part_power,
            parts.join(", ")
        );
        if let Some(power) = self.prev_part_power {
            text += &format!(", \"prev_part_power\": {power}");
        }
        text + "}"
    }

    /// Of the names in a datadir, the partitions to deal with now; the others are noted. The highest come first: what
    /// is linked goes upwards, and so is not met again.
    pub fn partitions_to_do(&mut self, names: Vec<String>, only: &[u32]) -> Vec<String> {
        let relinking = self.part_power != self.next_part_power;
        let limit = match (relinking, self.prev_part_power) {
            (true, _) => Some(u64::from(self.part_power)),
            (false, prev) => prev,
        };
        // Above there is nothing old.
        let below = |part: u64| limit.is_none_or(|power| power >= 64 || part < 1 << power);
        let names = names.into_iter().filter(|name| number(name).is_some_and(below));
        if self.parts.is_empty() {
            self.parts.extend(names.map(|name| (name, false)));
        } else {
            // Made after the first run. While linking that is by writers who know both places; to clean up, look.
            for name in names {
                self.parts.entry(name).or_insert(relinking);
            }
        }
        let left = self.parts.iter().filter(|(_, done)| !**done);
        let mut left: Vec<(u64, &String)> =
            left.filter_map(|(name, _)| Some((number(name)?, name))).collect();
        left.sort_by_key(|(part, _)| std::cmp::Reverse(*part));
        let wanted = |part: u64| only.is_empty() || only.iter().any(|only| u64::from(*only) == part);
        left.into_iter().filter(|(part, _)| wanted(*part)).map(|(_, name)| name.clone()).collect()
    }

    pub fn done(&self) -> usize {
        self.parts.values().filter(|done| **done).count()
    }
}

/// What a partition's directory is called: digits.
fn number(name: &str) -> Option<u64> {
    name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    // By `json.dumps({'part_power': 8, 'next_part_power': 9, 'state': {'17': True, '4': False}})`.
    const TEXT: &str = r#"{"part_power": 8, "next_part_power": 9, "state": {"17": true, "4": false}}"#;

    #[test]
    fn a_file_is_written_as_swift_does_and_read_back() {
        let mut state = State::new(8, 9);
        assert!(state.load(TEXT.as_bytes()));
        assert_eq!(state.to_json(), TEXT);
        assert_eq!((state.done(), state.parts.len()), (1, 2));
        let mut cleanup = State::new(9, 9);
        assert!(!cleanup.load(TEXT.as_bytes()));
        assert_eq!(cleanup.prev_part_power, Some(8));
        assert_eq!(
            cleanup.to_json(),
            r#"{"part_power": 9, "next_part_power": 9, "state": {}, "prev_part_power": 8}"#
        );
    }

    #[test]
    fn the_file_of_other_powers_or_of_nonsense_is_of_no_use() {
        for text in ["", "[]", "5", "{}", r#"{"part_power": 8, "next_part_power": 9}"#] {
            assert!(!State::new(8, 9).load(text.as_bytes()), "{text}");
        }
        assert!(!State::new(9, 10).load(TEXT.as_bytes()));
        assert!(!State::new(8, 9).load(TEXT.replace("17", "x").as_bytes()));
        assert!(!State::new(8, 9).load(TEXT.replace("true", "1").as_bytes()));
    }

    #[test]
    fn partitions_come_from_above_and_new_ones_need_no_links() {
        let mut state = State::new(3, 4);
        let there = names(&["2", "auditor_status_ALL.json", "7", "10", "8", "0"]);
        assert_eq!(state.partitions_to_do(there.clone(), &[]), ["7", "2", "0"]);
        state.parts.insert("7".into(), true);
        assert_eq!(state.partitions_to_do(names(&["5", "0", "2", "7"]), &[]), ["2", "0"]);
        assert!(state.parts["5"]);
        assert_eq!(state.partitions_to_do(there.clone(), &[0, 7]), ["0"]);
        let mut state = State::new(4, 4);
        assert_eq!(state.partitions_to_do(there.clone(), &[]), ["10", "8", "7", "2", "0"]);
        let mut state = State { prev_part_power: Some(3), ..State::new(4, 4) };
        assert_eq!(state.partitions_to_do(there, &[]), ["7", "2", "0"]);
        assert_eq!(state.partitions_to_do(names(&["5"]), &[]), ["7", "5", "2", "0"]);
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut state = State::new(8, 9);
            state.load(&text);
            state.partitions_to_do(vec!["17".into()], &[]);
        }
    }
}
