//! Arithmetic in the finite fields GF(2^4), GF(2^8) and GF(2^16), with the polynomials of ISA-L, liberasurecode and
//! Jerasure. Two is a generator in each of them.
//!
//! For matrices; payloads are multiplied by `kernels`.

use std::sync::OnceLock;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Field {
    Gf4,
    Gf8,
    Gf16,
}

struct Tables {
    /// Powers of two, twice over, so that a sum of two logarithms needs no reduction.
    exp: Vec<u16>,
    log: Vec<u16>,
}

impl Field {
    fn polynomial(self) -> u32 {
        match self {
            Field::Gf4 => 0x13,
            Field::Gf8 => 0x11d,
            Field::Gf16 => 0x1100b,
        }
    }

    fn size(self) -> usize {
        1 << self.bits()
    }

    pub fn bits(self) -> usize {
        match self {
            Field::Gf4 => 4,
            Field::Gf8 => 8,
            Field::Gf16 => 16,
        }
    }

    fn tables(self) -> &'static Tables {
        static TABLES: [OnceLock<Tables>; 3] = [const { OnceLock::new() }; 3];
        TABLES[self as usize].get_or_init(|| {
            let order = self.size() - 1;
            let (mut exp, mut log) = (vec![0; 2 * order], vec![0; self.size()]);
            let mut x = 1u32;
            for i in 0..order {
                (exp[i], exp[order + i], log[x as usize]) = (x as u16, x as u16, i as u16);
                x <<= 1;
                if x >> self.bits() != 0 {
                    x ^= self.polynomial();
                }
            }
            Tables { exp, log }
        })
    }

    pub fn mul(self, a: u16, b: u16) -> u16 {
        if a == 0 || b == 0 {
            return 0;
        }
        let tables = self.tables();
        tables.exp[usize::from(tables.log[usize::from(a)]) + usize::from(tables.log[usize::from(b)])]
    }

    /// `a` is not zero.
    pub fn inv(self, a: u16) -> u16 {
        debug_assert_ne!(a, 0);
        let tables = self.tables();
        tables.exp[self.size() - 1 - usize::from(tables.log[usize::from(a)])]
    }

    pub fn pow(self, a: u16, n: usize) -> u16 {
        (0..n).fold(1, |product, _| self.mul(product, a))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication by the definition: shift, add, reduce.
    fn by_hand(field: Field, a: u16, b: u16) -> u16 {
        let (mut product, mut a) = (0, u32::from(a));
        for bit in 0..field.bits() {
            if b >> bit & 1 == 1 {
                product ^= a;
            }
            a <<= 1;
            if a >> field.bits() != 0 {
                a ^= field.polynomial();
            }
        }
        product as u16
    }

    #[test]
    fn products_and_inverses_are_the_polynomials() {
        for field in [Field::Gf4, Field::Gf8, Field::Gf16] {
            let step = field.size() / 256 + 1;
            for a in (0..field.size()).step_by(step) {
                for b in (0..field.size()).step_by(step) {
                    let (a, b) = (a as u16, b as u16);
                    assert_eq!(field.mul(a, b), by_hand(field, a, b), "{field:?} {a} {b}");
                }
            }
            for a in 1..field.size() {
                assert_eq!(field.mul(a as u16, field.inv(a as u16)), 1, "{field:?} {a}");
            }
        }
    }
}
