//! Storage policies: how the objects of a container are kept. swift.conf defines them; a policy with index 0,
//! `Policy-0`, exists even if it doesn't.
//!
//! The rules of Swift: indexes and names (without regard to case) are unique; names are letters, digits and
//! dashes; the name `Policy-0` belongs to index 0; one policy is the default and that one isn't deprecated.
//! Erasure coding schemes are only described here; encoding is elsewhere.

use std::fmt;

use indexmap::IndexMap;

use crate::config::{parse_int, split_list};
use crate::headers::is_true_value;

pub const LEGACY_POLICY_NAME: &str = "Policy-0";
const DEFAULT_EC_SEGMENT_SIZE: u64 = 1_048_576;
const EC_TYPES: &[&str] = &[
    "jerasure_rs_vand",
    "jerasure_rs_cauchy",
    "flat_xor_hd_3",
    "flat_xor_hd_4",
    "isa_l_rs_vand",
    "isa_l_rs_cauchy",
    "isa_l_rs_vand_inv",
    "liberasurecode_rs_vand",
];

/// The number of a policy: in headers, ring names and directory names.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyIndex(pub u32);

impl PolicyIndex {
    pub const LEGACY: Self = Self(0);
}

impl fmt::Display for PolicyIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a policy stores its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    Replication,
    Erasure { ec_type: String, ndata: usize, nparity: usize, segment_size: u64, duplication_factor: usize },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoragePolicy {
    pub index: PolicyIndex,
    pub name: String,
    /// Every name of the policy, its first one included.
    pub aliases: Vec<String>,
    pub is_default: bool,
    pub is_deprecated: bool,
    pub kind: PolicyKind,
    /// `object` or `object-1`: the name of the ring file before `.ring.gz`.
    pub object_ring_name: String,
    pub diskfile_module: String,
}

impl StoragePolicy {
    pub fn is_erasure(&self) -> bool {
        matches!(self.kind, PolicyKind::Erasure { .. })
    }

    /// How many of `replicas` answers make a request successful.
    pub fn quorum(&self, replicas: usize) -> usize {
        match self.kind {
            PolicyKind::Replication => quorum_size(replicas),
            // Reed-Solomon codes need one parity fragment beyond the data.
            PolicyKind::Erasure { ndata, duplication_factor, .. } => (ndata + 1) * duplication_factor,
        }
    }
}

/// Half of `n`, rounded up: Swift's quorum of replicas.
pub fn quorum_size(n: usize) -> usize {
    n.div_ceil(2)
}

/// More than half of `n`.
pub fn majority_size(n: usize) -> usize {
    n / 2 + 1
}

/// `objects`, `async_pending` or `tmp` of a policy: the bare name for policy 0, with `-INDEX` for the others.
pub fn data_dir(base: &str, policy: PolicyIndex) -> String {
    match policy {
        PolicyIndex(0) => base.to_owned(),
        PolicyIndex(index) => format!("{base}-{index}"),
    }
}

/// The policy of a directory that `data_dir` has named with this base; `None` for any other name.
pub fn split_data_dir(base: &str, name: &str) -> Option<PolicyIndex> {
    let index = match name.strip_prefix(base)? {
        "" => PolicyIndex(0),
        rest => PolicyIndex(rest.strip_prefix('-')?.parse().ok()?),
    };
    (data_dir(base, index) == name).then_some(index)
}

/// What is wrong with the policies of swift.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// The index as written, if the mistake is in one policy.
    pub index: Option<String>,
    pub option: Option<(String, String)>,
    pub problem: String,
}

/// The header `X-Backend-Storage-Policy-Index` names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("No policy with index {0}")]
pub struct UnknownPolicy(pub String);

/// All policies of a cluster, in the order of swift.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policies {
    by_index: IndexMap<PolicyIndex, StoragePolicy>,
    default: PolicyIndex,
}

impl Default for Policies {
    fn default() -> Self {
        let legacy = StoragePolicy {
            index: PolicyIndex::LEGACY,
            name: LEGACY_POLICY_NAME.to_owned(),
            aliases: vec![LEGACY_POLICY_NAME.to_owned()],
            is_default: true,
            is_deprecated: false,
            kind: PolicyKind::Replication,
            object_ring_name: "object".to_owned(),
            diskfile_module: "egg:swift#replication.fs".to_owned(),
        };
        Self { by_index: IndexMap::from([(legacy.index, legacy)]), default: PolicyIndex::LEGACY }
    }
}

impl Policies {
    pub fn get(&self, index: PolicyIndex) -> Option<&StoragePolicy> {
        self.by_index.get(&index)
    }

    /// The policy with this name or alias, without regard to case.
    pub fn by_name(&self, name: &str) -> Option<&StoragePolicy> {
        self.iter().find(|p| p.aliases.iter().any(|a| a.eq_ignore_ascii_case(name)))
    }

    pub fn default(&self) -> &StoragePolicy {
        &self.by_index[&self.default]
    }

    /// Index 0: the policy of what was stored before there were policies.
    pub fn legacy(&self) -> &StoragePolicy {
        &self.by_index[&PolicyIndex::LEGACY]
    }

    pub fn iter(&self) -> impl Iterator<Item = &StoragePolicy> {
        self.by_index.values()
    }

    pub fn len(&self) -> usize {
        self.by_index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_index.is_empty()
    }

    /// The policy that a header names by index; a missing or empty one means index 0.
    pub fn parse_header(&self, value: Option<&str>) -> Result<&StoragePolicy, UnknownPolicy> {
        let value = value.unwrap_or("");
        if value.is_empty() {
            return Ok(self.legacy());
        }
        parse_int(value)
            .and_then(|index| self.get(PolicyIndex(index)))
            .ok_or_else(|| UnknownPolicy(value.to_owned()))
    }

    /// Checks and collects the `[storage-policy:INDEX]` sections of swift.conf.
    pub fn from_sections<'a, O>(sections: impl Iterator<Item = (&'a str, O)>) -> Result<Self, PolicyError>
    where
        O: Iterator<Item = (&'a str, &'a str)>,
    {
        let mut by_index: IndexMap<PolicyIndex, StoragePolicy> = IndexMap::new();
        for (index, options) in sections {
            let policy = read_policy(index, options)?;
            check_against_others(&policy, by_index.values()).map_err(|problem| PolicyError {
                index: Some(index.to_owned()),
                option: None,
                problem,
            })?;
            by_index.insert(policy.index, policy);
        }
        if by_index.is_empty() {
            return Ok(<Self as Default>::default());
        }
        let general = |problem: &str| PolicyError { index: None, option: None, problem: problem.to_owned() };
        if !by_index.contains_key(&PolicyIndex::LEGACY) {
            return Err(general("expected a section [storage-policy:0] beside the other policies"));
        }
        if by_index.values().all(|p| p.is_deprecated) {
            return Err(general("expected a policy that isn't deprecated"));
        }
        let default = match by_index.values().find(|p| p.is_default).map(|p| p.index) {
            Some(default) => default,
            None if by_index.len() == 1 => {
                by_index[&PolicyIndex::LEGACY].is_default = true;
                PolicyIndex::LEGACY
            }
            None => return Err(general("expected default = yes in one of the policies")),
        };
        Ok(Self { by_index, default })
    }
}

fn check_against_others<'a>(
    policy: &StoragePolicy,
    mut others: impl Iterator<Item = &'a StoragePolicy>,
) -> Result<(), String> {
    others.try_for_each(|other| {
        if other.index == policy.index {
            return Err(format!("expected an index of its own; policy {} has it too", other.name));
        }
        let taken = |a: &&String| other.aliases.iter().any(|b| a.eq_ignore_ascii_case(b));
        if let Some(name) = policy.aliases.iter().find(taken) {
            return Err(format!("the name {name} belongs to policy {} too", other.index));
        }
        if other.is_default && policy.is_default {
            return Err(format!("policy {} is the default already", other.index));
        }
        Ok(())
    })
}

/// One section while it is read: keeps the raw values for messages.
struct PolicyOptions<'a> {
    index: &'a str,
    values: IndexMap<&'a str, &'a str>,
}

impl<'a> PolicyOptions<'a> {
    fn take(&mut self, option: &str) -> Option<&'a str> {
        self.values.shift_remove(option)
    }

    fn error(&self, option: Option<(&str, &str)>, problem: impl Into<String>) -> PolicyError {
        PolicyError {
            index: Some(self.index.to_owned()),
            option: option.map(|(o, v)| (o.to_owned(), v.to_owned())),
            problem: problem.into(),
        }
    }

    fn positive(&mut self, option: &str, default: Option<u64>) -> Result<u64, PolicyError> {
        match (self.take(option), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.error(None, format!("expected {option} = NUMBER"))),
            (Some(value), _) => parse_int(value)
                .filter(|v| *v > 0)
                .ok_or_else(|| self.error(Some((option, value)), "expected an integer greater than 0")),
        }
    }
}

fn read_policy<'a>(
    index: &'a str,
    options: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<StoragePolicy, PolicyError> {
    let mut options = PolicyOptions { index, values: options.collect() };
    let number = parse_int(index).map(PolicyIndex);
    let index = number.ok_or_else(|| options.error(None, "expected an index of digits"))?;
    let name = options.take("name").unwrap_or_default();
    let mut aliases: Vec<String> = Vec::new();
    check_name(&options, index, "name", name, &aliases)?;
    aliases.push(name.to_owned());
    for alias in split_list(options.take("aliases").unwrap_or_default()) {
        if alias != name {
            check_name(&options, index, "aliases", &alias, &aliases)?;
            aliases.push(alias);
        }
    }
    let is_default = is_true_value(options.take("default").unwrap_or_default());
    let deprecated = options.take("deprecated").unwrap_or_default();
    let is_deprecated = is_true_value(deprecated);
    if is_default && is_deprecated {
        let option = Some(("deprecated", deprecated));
        return Err(options.error(option, "the default policy can't be deprecated"));
    }
    let (kind, default_module) = match options.take("policy_type").unwrap_or("replication") {
        "replication" => (PolicyKind::Replication, "egg:swift#replication.fs"),
        "erasure_coding" => (read_erasure(&mut options, is_deprecated)?, "egg:swift#erasure_coding.fs"),
        other => {
            let problem = "expected replication or erasure_coding";
            return Err(options.error(Some(("policy_type", other)), problem));
        }
    };
    let diskfile_module = options.take("diskfile_module").unwrap_or(default_module).to_owned();
    if let Some((option, value)) = options.values.first() {
        return Err(options.error(Some((option, value)), "unknown option"));
    }
    Ok(StoragePolicy {
        index,
        name: name.to_owned(),
        aliases,
        is_default,
        is_deprecated,
        kind,
        object_ring_name: data_dir("object", index),
        diskfile_module,
    })
}

fn check_name(
    options: &PolicyOptions<'_>,
    index: PolicyIndex,
    option: &str,
    name: &str,
    taken: &[String],
) -> Result<(), PolicyError> {
    let problem = if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        "expected letters, digits and dashes"
    } else if name.eq_ignore_ascii_case(LEGACY_POLICY_NAME) && index != PolicyIndex::LEGACY {
        "the name Policy-0 belongs to index 0"
    } else if taken.iter().any(|t| t.eq_ignore_ascii_case(name)) {
        "the policy has this name already"
    } else {
        return Ok(());
    };
    Err(options.error(Some((option, name)), problem))
}

fn read_erasure(options: &mut PolicyOptions<'_>, is_deprecated: bool) -> Result<PolicyKind, PolicyError> {
    let Some(ec_type) = options.take("ec_type") else {
        return Err(options.error(None, format!("expected ec_type = one of {}", EC_TYPES.join(", "))));
    };
    if !EC_TYPES.contains(&ec_type) {
        let problem = format!("expected one of {}", EC_TYPES.join(", "));
        return Err(options.error(Some(("ec_type", ec_type)), problem));
    }
    let ndata = options.positive("ec_num_data_fragments", None)? as usize;
    let nparity = options.positive("ec_num_parity_fragments", None)? as usize;
    let segment_size = options.positive("ec_object_segment_size", Some(DEFAULT_EC_SEGMENT_SIZE))?;
    let duplication_factor = options.positive("ec_duplication_factor", Some(1))? as usize;
    if ec_type == "isa_l_rs_vand" && nparity >= 5 && !is_deprecated {
        // Swift: bug 1639691; some losses of as many fragments as there is parity cannot be repaired.
        let problem = "isa_l_rs_vand loses data with 5 or more parity fragments; expected deprecated = yes";
        return Err(options.error(Some(("ec_type", ec_type)), problem));
    }
    Ok(PolicyKind::Erasure { ec_type: ec_type.to_owned(), ndata, nparity, segment_size, duplication_factor })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sections<'a> = &'a [(&'a str, &'a [(&'a str, &'a str)])];

    fn read(sections: Sections<'static>) -> Result<Policies, PolicyError> {
        Policies::from_sections(sections.iter().map(|(i, options)| (*i, options.iter().copied())))
    }

    #[test]
    fn names_of_directories_and_rings() {
        assert_eq!(data_dir("objects", PolicyIndex(0)), "objects");
        assert_eq!(data_dir("async_pending", PolicyIndex(3)), "async_pending-3");
        assert_eq!(split_data_dir("objects", "objects-12"), Some(PolicyIndex(12)));
        for other in ["objects-0", "objects-01", "objects-", "objects1", "object", "quarantined", "objects-x"]
        {
            assert_eq!(split_data_dir("objects", other), None, "{other}");
        }
    }

    #[test]
    fn quorums() {
        let quorums: Vec<_> = (1..=6).map(quorum_size).collect();
        assert_eq!(quorums, [1, 1, 2, 2, 3, 3]);
        assert_eq!((majority_size(2), majority_size(3)), (2, 2));
        let policies = read(&[(
            "0",
            &[
                ("name", "ec"),
                ("policy_type", "erasure_coding"),
                ("ec_type", "isa_l_rs_cauchy"),
                ("ec_num_data_fragments", "4"),
                ("ec_num_parity_fragments", "2"),
                ("ec_duplication_factor", "2"),
            ],
        )])
        .unwrap();
        assert_eq!(policies.default().quorum(12), 10);
        assert_eq!(policies.default().diskfile_module, "egg:swift#erasure_coding.fs");
    }

    #[test]
    fn headers_name_policies_by_index() {
        let policies = read(&[("0", &[("name", "a"), ("default", "yes")]), ("1", &[("name", "b")])]).unwrap();
        assert_eq!(policies.parse_header(None).unwrap().name, "a");
        assert_eq!(policies.parse_header(Some("")).unwrap().name, "a");
        assert_eq!(policies.parse_header(Some("1")).unwrap().name, "b");
        assert_eq!(policies.parse_header(Some("2")).unwrap_err().to_string(), "No policy with index 2");
        assert!(policies.parse_header(Some("one")).is_err());
        assert_eq!(policies.get(PolicyIndex(1)).unwrap().object_ring_name, "object-1");
    }

    #[test]
    fn policies_that_contradict_one_another_are_refused() {
        let problem = |sections| read(sections).unwrap_err().problem;
        assert_eq!(
            problem(&[("0", &[("name", "a")]), ("1", &[("name", "b")])]),
            "expected default = yes in one of the policies"
        );
        assert_eq!(
            problem(&[("0", &[("name", "a"), ("default", "1")]), ("1", &[("name", "A")])]),
            "the name A belongs to policy 0 too"
        );
        assert_eq!(
            problem(&[("0", &[("name", "a"), ("default", "1")]), ("00", &[("name", "b")])]),
            "expected an index of its own; policy a has it too"
        );
        assert_eq!(
            problem(&[("0", &[("name", "a"), ("deprecated", "1")])]),
            "expected a policy that isn't deprecated"
        );
        assert_eq!(problem(&[("0", &[("name", "")])]), "expected letters, digits and dashes");
        assert_eq!(problem(&[("x", &[("name", "a")])]), "expected an index of digits");
        assert_eq!(
            problem(&[("0", &[("name", "a"), ("policy_type", "erasure_coding"), ("ec_type", "magic")])])
                [..15],
            *"expected one of"
        );
    }
}
