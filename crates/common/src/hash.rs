//! Where a name lives: its hash, the partition and suffix cut from that, and the directory.
//!
//! ```text
//! hash        = md5(prefix + "/" + "/".join(account, container, object) + suffix)   from [swift-hash]
//! partition   = the first part_power bits
//! suffix      = the last three hexadecimal digits
//! directory   = DATADIR/PARTITION/SUFFIX/HASH
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

use crate::digest::{Md5, hex, unhex};

/// The cluster's secret around each hashed name, from swift.conf. Bytes, not text: any byte is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashConf {
    pub prefix: Vec<u8>,
    pub suffix: Vec<u8>,
}

impl HashConf {
    pub fn hash_path(&self, account: &str, container: Option<&str>, object: Option<&str>) -> ObjHash {
        let mut md5 = Md5::new();
        md5.update(&self.prefix);
        for part in [Some(account), container, object].into_iter().flatten() {
            md5.update(b"/");
            md5.update(part.as_bytes());
        }
        md5.update(&self.suffix);
        ObjHash(md5.finalize())
    }
}

/// The hash of an account, container or object name.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct ObjHash(pub [u8; 16]);

impl ObjHash {
    /// Reads 32 lower-case hexadecimal digits: the name of a hash directory.
    pub fn parse(s: &str) -> Option<Self> {
        if s.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        unhex(s.as_bytes())?.try_into().ok().map(Self)
    }

    pub fn suffix(&self) -> Suffix {
        Suffix(u16::from(self.0[14] & 0x0f) << 8 | u16::from(self.0[15]))
    }

    pub fn partition(&self, part_power: u32) -> u32 {
        let [a, b, c, d, ..] = self.0;
        // A part power of zero has one partition; the shift of 32 would overflow.
        u32::from_be_bytes([a, b, c, d]).checked_shr(32 - part_power.min(32)).unwrap_or(0)
    }

    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for ObjHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for ObjHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// The last three hexadecimal digits of a hash: the unit in which partitions are compared.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Suffix(u16);

impl Suffix {
    pub const COUNT: u16 = 0x1000;

    pub fn new(value: u16) -> Option<Self> {
        (value < Self::COUNT).then_some(Self(value))
    }

    pub fn value(&self) -> u16 {
        self.0
    }

    /// The three of them.
    pub fn digits(&self) -> [u8; 3] {
        [8, 4, 0].map(|shift| b"0123456789abcdef"[usize::from(self.0 >> shift & 15)])
    }

    /// Reads exactly three lower-case hexadecimal digits.
    pub fn parse(s: &str) -> Option<Self> {
        let digit = |b: u8| match b {
            b'0'..=b'9' => Some(u16::from(b - b'0')),
            b'a'..=b'f' => Some(u16::from(b - b'a' + 10)),
            _ => None,
        };
        match s.as_bytes() {
            &[a, b, c] => Some(Self(digit(a)? << 8 | digit(b)? << 4 | digit(c)?)),
            _ => None,
        }
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03x}", self.0)
    }
}

impl fmt::Debug for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `DATADIR/PARTITION/SUFFIX/HASH`, relative if `datadir` is.
pub fn storage_directory(datadir: impl AsRef<Path>, partition: u32, hash: &ObjHash) -> PathBuf {
    let mut path = datadir.as_ref().to_path_buf();
    path.push(format!("{partition}/{}/{hash}", hash.suffix()));
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by `tests/golden/make.py`: prefix and suffix (hexadecimal), account, container, object, hash,
    /// partition at part power 10, directory.
    #[test]
    fn hashes_equal_those_of_python_swift() {
        for line in include_str!("../tests/golden/hash_paths.txt").lines() {
            let f: Vec<&str> = line.split('|').collect();
            let conf =
                HashConf { prefix: unhex(f[0].as_bytes()).unwrap(), suffix: unhex(f[1].as_bytes()).unwrap() };
            let opt = |s: &'static str| (!s.is_empty()).then_some(s);
            let hash = conf.hash_path(f[2], opt(f[3]), opt(f[4]));
            assert_eq!(hash.to_string(), f[5], "{line}");
            assert_eq!(hash.partition(10).to_string(), f[6], "{line}");
            assert_eq!(storage_directory("objects", hash.partition(10), &hash).to_str(), Some(f[7]));
            assert_eq!(ObjHash::parse(f[5]), Some(hash));
        }
    }

    #[test]
    fn partitions_at_the_edges_of_part_power() {
        let hash = ObjHash([0xff; 16]);
        assert_eq!(hash.partition(0), 0);
        assert_eq!(hash.partition(1), 1);
        assert_eq!(hash.partition(32), u32::MAX);
    }

    #[test]
    fn only_names_of_suffix_directories_are_suffixes() {
        for bad in ["", "ab", "abcd", "ABC", "xyz", "+1f", " ab"] {
            assert_eq!(Suffix::parse(bad), None, "{bad}");
        }
        assert_eq!(ObjHash::parse("D41D8CD98F00B204E9800998ECF8427E"), None);
        assert_eq!(ObjHash::parse("d41d8cd9"), None);
    }

    proptest! {
        #[test]
        fn suffixes_round_trip(value in 0u16..0x1000) {
            let suffix = Suffix::new(value).unwrap();
            prop_assert_eq!(Suffix::parse(&suffix.to_string()), Some(suffix));
        }
    }
}
