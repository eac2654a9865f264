//! Transaction ids: `tx` + 21 random hex digits + `-` + the time as 10 hex digits + the proxy's suffix.

use common::quote;

use crate::rng::Rng;

/// A new id for a request which arrived at `now` (seconds).
pub fn gen_trans_id(rng: &Rng, now: f64, suffix: &str) -> String {
    let high = rng.next_u64();
    let low = rng.next_u64();
    let digits = format!("{high:016x}{low:016x}");
    format!("tx{}-{:010x}{}", &digits[..21], now as u64, quote::quote(suffix, "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_swifts_shape() {
        let id = gen_trans_id(&Rng::seeded(1), 1_402_440_452.9, "-eu 1");
        assert_eq!(id.len(), 2 + 21 + 1 + 10 + 7);
        assert!(id.starts_with("tx") && id[2..23].bytes().all(|b| b.is_ascii_hexdigit()));
        assert_eq!(&id[23..], "-0053978b04-eu%201");
    }
}
