//! CRC-64/NVME of a fragment archive on its way from a proxy to an object server, which tells what the way has changed.
//!
//! It is no ETag: that is the MD5, which the proxy has computed of the same bytes. With this a server need not compute it once more.

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC of data that arrives in pieces.
pub struct Crc64(Digest);

impl Default for Crc64 {
    fn default() -> Self {
        Crc64(Digest::new(CrcAlgorithm::Crc64Nvme))
    }
}

impl Crc64 {
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// 16 hexadecimal digits.
    pub fn hexdigest(&self) -> String {
        format!("{:016x}", self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, as the catalogue of CRCs defines it: reflected, begun and ended with all ones.
    fn slowly(data: &[u8]) -> u64 {
        const POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;
        !data.iter().fold(u64::MAX, |crc, byte| {
            (0..8)
                .fold(crc ^ u64::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 })
        })
    }

    #[test]
    fn the_crc_of_pieces_is_that_of_the_whole() {
        let data: Vec<u8> = (0..3000u32).map(|i| (i * 7 / 3) as u8).collect();
        for len in [0, 1, 63, 64, 80, 300, 3000] {
            let mut crc = Crc64::default();
            data[..len].chunks(77).for_each(|piece| crc.update(piece));
            assert_eq!(crc.hexdigest(), format!("{:016x}", slowly(&data[..len])), "{len}");
        }
        let mut crc = Crc64::default();
        crc.update(b"123456789");
        assert_eq!(crc.hexdigest(), "ae8b14860a799888", "the catalogue's check");
    }
}
