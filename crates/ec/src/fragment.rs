//! The header of a fragment: 80 bytes of liberasurecode, before the payload.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | index of the fragment, from 0; parity after data |
//! | 4 | 4 | bytes of the payload |
//! | 8 | 4 | bytes of metadata of the backend; no backend here has any |
//! | 12 | 8 | bytes of the segment, without padding |
//! | 20 | 1 | kind of the payload's checksum: 1 none (all that Swift writes), 2 CRC-32, 3 MD5 |
//! | 21 | 32 | the payload's checksum |
//! | 53 | 1 | a field for readers, 0 on disk |
//! | 54 | 1 | number of the backend |
//! | 55 | 4 | version of the backend |
//! | 59 | 4 | magic |
//! | 63 | 4 | version of liberasurecode: major, minor and revision in a byte each |
//! | 67 | 4 | CRC-32 of the bytes before the magic |
//! | 71 | 9 | zero |
//!
//! Numbers have the byte order of the machine that wrote them, which the magic shows; here little endian is written, and
//! either is read. liberasurecode before 1.6 had a mistake in its CRC (it shifted arithmetically) and can still be told
//! to make it; before 1.2 there was none. Both are read, neither is written.

use bytes::{Bytes, BytesMut};

/// Bytes before the payload.
pub const HEADER_LEN: usize = 80;

const MAGIC: u32 = 0x0b0c_5ecc;
/// 1.8.0: the version whose fragments these are, byte for byte.
const LIBRARY_VERSION: u32 = 0x01_08_00;
/// The first version that wrote a checksum of the header.
const FIRST_WITH_CHECKSUM: u32 = 0x01_02_00;
/// What the checksum covers.
const COVERED: usize = 59;

/// What one index has of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub header: Bytes,
    pub payload: Bytes,
}

impl Fragment {
    /// Bytes of both parts.
    pub fn len(&self) -> usize {
        self.header.len() + self.payload.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Both parts in one piece, copied.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.len());
        bytes.extend_from_slice(&self.header);
        bytes.extend_from_slice(&self.payload);
        bytes.freeze()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub index: u32,
    /// Bytes of the payload that follows.
    pub payload_len: u32,
    pub backend_metadata_len: u32,
    /// Bytes of the segment that this is a fragment of.
    pub segment_len: u64,
    pub checksum: Checksum,
    pub backend: u8,
    pub backend_version: u32,
    pub library_version: u32,
}

/// The payload's checksum. Swift never asks for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    None,
    Crc32(u32),
    /// A kind that is not checked, by its number.
    Other(u8),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    #[error("fragment of {0} bytes has no whole header")]
    Short(usize),
    #[error("illegal magic {0:#010x} in fragment header")]
    Magic(u32),
    #[error("fragment header without a version of liberasurecode")]
    Version,
    #[error("checksum of fragment header is wrong")]
    Checksum,
}

impl Header {
    /// Reads the header at the start of a fragment; what follows the header does not matter. Refused is what
    /// liberasurecode refuses when it is asked for a fragment's metadata.
    pub fn parse(bytes: &[u8]) -> Result<Header, FragmentError> {
        let header = bytes.first_chunk::<HEADER_LEN>().ok_or(FragmentError::Short(bytes.len()))?;
        let magic = u32::from_le_bytes(field(header, 59));
        let swapped = magic == MAGIC.swap_bytes();
        if magic != MAGIC && !swapped {
            return Err(FragmentError::Magic(magic));
        }
        let u32_at = |at| {
            let bytes = field(header, at);
            if swapped { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        let library_version = u32_at(63);
        if library_version == 0 {
            return Err(FragmentError::Version);
        }
        if library_version >= FIRST_WITH_CHECKSUM {
            let (found, covered) = (u32_at(67), &header[..COVERED]);
            if found != crc32(covered) && found != legacy_crc32(covered) {
                return Err(FragmentError::Checksum);
            }
        }
        let segment_len = field(header, 12);
        Ok(Header {
            index: u32_at(0),
            payload_len: u32_at(4),
            backend_metadata_len: u32_at(8),
            segment_len: if swapped {
                u64::from_be_bytes(segment_len)
            } else {
                u64::from_le_bytes(segment_len)
            },
            checksum: match header[20] {
                1 => Checksum::None,
                2 => Checksum::Crc32(u32_at(21)),
                other => Checksum::Other(other),
            },
            backend: header[54],
            backend_version: u32_at(55),
            library_version,
        })
    }

    /// Whether the payload has the header's checksum, in either form; a kind that is not known is not checked.
    pub fn payload_is_sound(&self, payload: &[u8]) -> bool {
        match self.checksum {
            Checksum::Crc32(sum) => sum == crc32(payload) || sum == legacy_crc32(payload),
            Checksum::None | Checksum::Other(_) => true,
        }
    }

    /// The header of a fragment without a checksum of its payload, of this version.
    pub(crate) fn write(
        index: u32,
        payload_len: u32,
        segment_len: u64,
        backend: u8,
        backend_version: u32,
        to: &mut [u8; HEADER_LEN],
    ) {
        to.fill(0);
        to[0..4].copy_from_slice(&index.to_le_bytes());
        to[4..8].copy_from_slice(&payload_len.to_le_bytes());
        to[12..20].copy_from_slice(&segment_len.to_le_bytes());
        to[20] = 1;
        to[54] = backend;
        to[55..59].copy_from_slice(&backend_version.to_le_bytes());
        to[59..63].copy_from_slice(&MAGIC.to_le_bytes());
        to[63..67].copy_from_slice(&LIBRARY_VERSION.to_le_bytes());
        let checksum = crc32(&to[..COVERED]);
        to[67..71].copy_from_slice(&checksum.to_le_bytes());
    }
}

fn field<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|i| header[at + i])
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut c, mut bit) = (i as u32, 0);
        while bit < 8 {
            c = if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 };
            bit += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
};

/// The CRC-32 of zlib.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |c, byte| CRC_TABLE[(c as u8 ^ byte) as usize] ^ c >> 8)
}

/// The CRC-32 with signs: the register shifts in copies of its top bit.
fn legacy_crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |c: u32, byte| CRC_TABLE[(c as u8 ^ byte) as usize] ^ (c as i32 >> 8) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written() -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        Header::write(3, 4096, 10_000, 4, 0x02_0d_00, &mut bytes);
        bytes
    }

    /// As a machine of the other byte order would have written it.
    fn swapped(mut bytes: [u8; HEADER_LEN]) -> [u8; HEADER_LEN] {
        for at in [0, 4, 8, 21, 55, 59, 63] {
            bytes[at..at + 4].reverse();
        }
        bytes[12..20].reverse();
        let checksum = crc32(&bytes[..COVERED]);
        bytes[67..71].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let header = Header::parse(&written()).expect("a header");
        assert_eq!((header.index, header.payload_len, header.segment_len), (3, 4096, 10_000));
        assert_eq!((header.backend, header.backend_version), (4, 0x02_0d_00));
        assert_eq!((header.checksum, header.library_version), (Checksum::None, 0x01_08_00));
    }

    #[test]
    fn the_other_byte_order_is_read() {
        assert_eq!(Header::parse(&swapped(written())), Header::parse(&written()));
    }

    #[test]
    fn old_checksums_are_read() {
        let mut bytes = written();
        let legacy = legacy_crc32(&bytes[..COVERED]);
        assert_ne!(legacy, crc32(&bytes[..COVERED]), "else this shows nothing");
        bytes[67..71].copy_from_slice(&legacy.to_le_bytes());
        assert!(Header::parse(&bytes).is_ok());
        // Before 1.2.0 there was no checksum.
        bytes[67..71].fill(0);
        assert_eq!(Header::parse(&bytes), Err(FragmentError::Checksum));
        bytes[63..67].copy_from_slice(&0x01_01_09u32.to_le_bytes());
        assert!(Header::parse(&bytes).is_ok());
        bytes[63..67].fill(0);
        assert_eq!(Header::parse(&bytes), Err(FragmentError::Version));
    }

    #[test]
    fn the_check_value_of_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_seen(bit in 0..71 * 8usize) {
            let mut bytes = written();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = Header::parse(&bytes);
            // The version is not covered; of an old one no checksum is expected.
            if (63..67).contains(&(bit / 8)) {
                prop_assert!(found.is_ok());
            } else {
                prop_assert!(found.is_err(), "{found:?}");
            }
        }
    }
}
