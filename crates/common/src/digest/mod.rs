//! MD5 as Swift uses it: ETags, name hashes and checksums of metadata. It protects against decay, not against
//! an attacker.
//!
//! [`md5`] and [`Md5`] hash on the spot. [`Md5Stream`] is for the bodies of large objects: streams that are there at the
//! same time hash together, which costs a fraction. [`Md5Group`] does the same for small bodies.

mod checksum;
mod group;
mod kernels;
mod stream;

pub use checksum::Checksum;
pub use group::{GroupedMd5, Md5Group};
use kernels::{Block, INITIAL, State, compress};
pub use stream::Md5Stream;

/// An MD5 over data that arrives in pieces.
#[derive(Clone)]
pub struct Md5 {
    state: State,
    length: u64,
    /// What of the data does not fill a block yet: `length % 64` bytes.
    partial: Block,
}

impl Default for Md5 {
    fn default() -> Self {
        Md5 { state: INITIAL, length: 0, partial: [0; 64] }
    }
}

impl Md5 {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn update(&mut self, mut data: &[u8]) {
        let filled = self.filled();
        self.length = self.length.wrapping_add(data.len() as u64);
        if filled > 0 {
            let (head, rest) = data.split_at(data.len().min(self.partial.len() - filled));
            self.partial[filled..filled + head.len()].copy_from_slice(head);
            if filled + head.len() < self.partial.len() {
                return;
            }
            compress(&mut self.state, std::slice::from_ref(&self.partial));
            data = rest;
        }
        let (blocks, rest) = data.as_chunks();
        compress(&mut self.state, blocks);
        self.partial[..rest.len()].copy_from_slice(rest);
    }

    pub fn finalize(mut self) -> [u8; 16] {
        const PADDING: [u8; 64] = {
            let mut padding = [0; 64];
            padding[0] = 0x80;
            padding
        };
        let bits = self.length.wrapping_mul(8).to_le_bytes();
        // The length ends the last block.
        let padding = 1 + (119 - self.filled()) % 64;
        self.update(&PADDING[..padding]);
        self.update(&bits);
        digest_of(self.state)
    }

    /// The digest of everything so far as 32 hexadecimal digits; more data may follow.
    pub fn hexdigest(&self) -> String {
        hex(&self.clone().finalize())
    }

    /// How much of a block waits for the rest.
    fn filled(&self) -> usize {
        (self.length % 64) as usize
    }
}

fn digest_of(state: State) -> [u8; 16] {
    let mut digest = [0; 16];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    digest
}

pub fn md5(data: &[u8]) -> [u8; 16] {
    let mut md5 = Md5::new();
    md5.update(data);
    md5.finalize()
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        out.push(DIGITS[usize::from(b >> 4)] as char);
        out.push(DIGITS[usize::from(b & 15)] as char);
    }
    out
}

/// The bytes of an even number of hexadecimal digits, in either case.
pub fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let nibble = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    digits.chunks_exact(2).map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use md5::Digest;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn md5_in_any_pieces_is_that_of_another_implementation(
            data in proptest::collection::vec(any::<u8>(), 0..1000),
            cuts in proptest::collection::vec(0..200usize, 0..12),
        ) {
            let mut ours = Md5::new();
            let mut rest = &data[..];
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                ours.update(piece);
                rest = after;
            }
            ours.update(rest);
            prop_assert_eq!(ours.finalize(), <[u8; 16]>::from(md5::Md5::digest(&data)));
        }
    }

    #[test]
    fn md5_of_pieces_equals_md5_of_the_whole() {
        let mut m = Md5::new();
        m.update(b"mart");
        assert_eq!(m.hexdigest(), hex(&md5(b"mart")));
        m.update(b"let");
        assert_eq!(m.finalize(), md5(b"martlet"));
        assert_eq!(hex(&md5(b"")), "d41d8cd98f00b204e9800998ecf8427e");
    }

    #[test]
    fn hex_digits_round_trip() {
        assert_eq!(unhex(b"00fFa5").unwrap(), [0x00, 0xff, 0xa5]);
        assert_eq!(hex(&[0x00, 0xff, 0xa5]), "00ffa5");
        assert_eq!(unhex(b"abc"), None);
        assert_eq!(unhex(b"zz"), None);
    }
}
