//! XXH3 (64 bits) of a fragment archive on its way from a proxy to an object server, which tells what the way has changed.
//!
//! It is no ETag: that is the MD5, which the proxy has computed of the same bytes. With this a server need not compute it once more.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

/// The checksum of data that arrives in pieces.
#[derive(Default)]
pub struct Checksum(XxHash3_64);

impl Checksum {
    /// As proxies announce it.
    pub const ALGORITHM: &str = "xxh3";

    pub fn update(&mut self, piece: &[u8]) {
        self.0.write(piece);
    }

    /// 16 hexadecimal digits.
    pub fn hexdigest(&self) -> String {
        format!("{:016x}", self.0.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_pieces_is_that_of_the_whole() {
        let data: Vec<u8> = (0..3000u32).map(|i| (i * 7 / 3) as u8).collect();
        for len in [0, 1, 16, 63, 240, 241, 1024, 3000] {
            let mut pieces = Checksum::default();
            data[..len].chunks(77).for_each(|piece| pieces.update(piece));
            let mut whole = Checksum::default();
            whole.update(&data[..len]);
            assert_eq!(pieces.hexdigest(), whole.hexdigest(), "{len}");
        }
    }

    /// `python -c 'import xxhash; print(xxhash.xxh3_64_hexdigest(bytes(i * 7 // 3 & 255 for i in range(3000))))'`, with xxhash 3.5.0, which
    /// wraps the algorithm's own library.
    #[test]
    fn the_checksum_is_that_of_the_reference() {
        let mut checksum = Checksum::default();
        assert_eq!(checksum.hexdigest(), "2d06800538d394c2");
        checksum.update(&(0..3000u32).map(|i| (i * 7 / 3) as u8).collect::<Vec<u8>>());
        assert_eq!(checksum.hexdigest(), "7bdb88b923393f2c");
    }
}
