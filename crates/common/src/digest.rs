//! MD5 as Swift uses it: ETags, name hashes and checksums of metadata. It protects against decay, not against
//! an attacker.

use md5::Digest;

/// An MD5 over data that arrives in pieces.
#[derive(Clone, Default)]
pub struct Md5(md5::Md5);

impl Md5 {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    pub fn finalize(self) -> [u8; 16] {
        self.0.finalize().into()
    }

    /// The digest of everything so far as 32 hexadecimal digits; more data may follow.
    pub fn hexdigest(&self) -> String {
        hex(&self.clone().finalize())
    }
}

pub fn md5(data: &[u8]) -> [u8; 16] {
    md5::Md5::digest(data).into()
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
