//! The codes by their `ec_type`: number and version in the header, size of a word, and the matrix.
//!
//! A code is systematic: the first fragments are the data, and its matrix says what each parity fragment is of the data
//! fragments. Where a fragment is split further, into packets, a row and a column of the matrix belong to a packet.
//!
//! | `ec_type` | number, version | word | parity row i, data column j |
//! |---|---|---|---|
//! | `isa_l_rs_vand` | 4, 2.13.0 | 1 byte | (2^i)^j |
//! | `isa_l_rs_cauchy` | 7, 2.14.1 | 1 byte | 1 / ((k + i) xor j) |
//! | `isa_l_rs_vand_inv` | 9, 1.0.0 | 1 byte | V / V's upper square; V's row r, column c: (2^(r + 1))^c |
//! | `liberasurecode_rs_vand` | 6, 1.0.0 | 2 bytes | as above with r^c; then columns scaled so that row 0 is all ones |
//! | `jerasure_rs_vand` | 1, 2.0.0 | 2 bytes | as above with V's last row (0 … 0, 1); then rows scaled so that column 0 is all ones |
//! | `jerasure_rs_cauchy` | 2, 2.0.0 | 4 packets of 1 KiB | 1 / (i xor (m + j)) in GF(2^4), each element as a matrix of bits |
//! | `flat_xor_hd_3`, `flat_xor_hd_4` | 3, 1.0.0 | 4 bytes | 1 or 0, by a table |
//!
//! `isa_l_rs_vand` with five or more parities, and the `flat_xor` codes, cannot decode some sets of `k` fragments.
//! Swift does not start with the first of these, and that check is where policies are read.

use crate::gf::Field;
use crate::matrix::Matrix;

/// liberasurecode's limit for data and parity fragments together.
pub const MAX_FRAGMENTS: usize = 32;

/// A code, for one number of data and parity fragments.
#[derive(Clone, Debug)]
pub struct Backend {
    pub id: u8,
    pub version: u32,
    /// Where the elements of the matrix live; its kernels take bytes for [`Field::Gf8`], words of two for
    /// [`Field::Gf16`]. Zeros and ones are at home in both.
    pub field: Field,
    /// A payload is a multiple of this.
    pub word: usize,
    /// Packets of a word that the matrix tells apart; 1 if a payload is in one piece.
    pub packets: usize,
    /// A row for each packet of all fragments, the data's being the identity.
    pub generator: Matrix,
}

impl Backend {
    /// `None` if there is no such code for these numbers.
    pub fn new(ec_type: &str, k: usize, m: usize) -> Option<Backend> {
        if k == 0 || m == 0 || k + m > MAX_FRAGMENTS {
            return None;
        }
        let reed_solomon = |id, version, field: Field, parity: Matrix| Backend {
            id,
            version,
            field,
            word: field.bits() / 8,
            packets: 1,
            generator: Matrix::identity(k).above(&parity),
        };
        Some(match ec_type {
            "isa_l_rs_vand" => {
                let f = Field::Gf8;
                let parity = Matrix::from_fn(m, k, |i, j| f.pow(f.pow(2, i), j));
                reed_solomon(4, 0x02_0d_00, f, parity)
            }
            "isa_l_rs_cauchy" => {
                let f = Field::Gf8;
                let parity = Matrix::from_fn(m, k, |i, j| f.inv(((k + i) ^ j) as u16));
                reed_solomon(7, 0x02_0e_01, f, parity)
            }
            "isa_l_rs_vand_inv" => {
                let f = Field::Gf8;
                let parity = systematic(f, k, m, |r, c| f.pow(f.pow(2, r + 1), c))?;
                reed_solomon(9, 0x01_00_00, f, parity)
            }
            "liberasurecode_rs_vand" => {
                let f = Field::Gf16;
                let parity = systematic(f, k, m, |r, c| f.pow(r as u16, c))?;
                reed_solomon(6, 0x01_00_00, f, ones_above(f, &parity))
            }
            "jerasure_rs_vand" => {
                let f = Field::Gf16;
                let last = k + m - 1;
                let parity =
                    systematic(
                        f,
                        k,
                        m,
                        |r, c| {
                            if r == last { u16::from(c == k - 1) } else { f.pow(r as u16, c) }
                        },
                    )?;
                let parity = ones_above(f, &parity);
                let parity = Matrix::from_fn(m, k, |i, j| f.mul(parity.get(i, j), f.inv(parity.get(i, 0))));
                reed_solomon(1, 0x02_00_00, f, parity)
            }
            "jerasure_rs_cauchy" => {
                let f = Field::Gf4;
                let w = f.bits();
                if k + m > 1 << w {
                    return None;
                }
                let element = |i: usize, j: usize| f.inv((i ^ (m + j)) as u16);
                let parity = Matrix::from_fn(m * w, k * w, |row, column| {
                    f.mul(element(row / w, column / w), 1 << (column % w)) >> (row % w) & 1
                });
                Backend {
                    id: 2,
                    version: 0x02_00_00,
                    field: Field::Gf8,
                    word: w * 1024,
                    packets: w,
                    generator: Matrix::identity(k * w).above(&parity),
                }
            }
            "flat_xor_hd_3" => flat_xor(k, m, hamming_distance_3(k, m)?),
            "flat_xor_hd_4" => flat_xor(k, m, hamming_distance_4(k, m)?),
            _ => return None,
        })
    }
}

/// The parity rows of a Vandermonde matrix that is made systematic.
fn systematic(field: Field, k: usize, m: usize, element: impl Fn(usize, usize) -> u16) -> Option<Matrix> {
    let top = Matrix::from_fn(k, k, &element);
    let below = Matrix::from_fn(m, k, |row, column| element(k + row, column));
    Some(below.times(field, &top.inverse(field)?))
}

/// Columns scaled so that the first row is all ones.
fn ones_above(field: Field, parity: &Matrix) -> Matrix {
    Matrix::from_fn(parity.rows, parity.columns, |row, column| {
        field.mul(parity.get(row, column), field.inv(parity.get(0, column)))
    })
}

/// A parity row is a set of data fragments, as bits.
fn flat_xor(k: usize, m: usize, rows: &[u32]) -> Backend {
    let parity = Matrix::from_fn(m, k, |i, j| (rows[i] >> j & 1) as u16);
    Backend {
        id: 3,
        version: 0x01_00_00,
        field: Field::Gf8,
        word: 4,
        packets: 1,
        generator: Matrix::identity(k).above(&parity),
    }
}

/// Any two fragments may be lost. A smaller `k` uses the first columns of the largest.
fn hamming_distance_3(k: usize, m: usize) -> Option<&'static [u32]> {
    Some(match (k, m) {
        (3, 3) => &[0x5, 0x6, 0x3],
        (5..=10, 5) => &[0xa3, 0x12c, 0x151, 0x246, 0x298],
        (6..=15, 6) => &[0x1243, 0x2470, 0x42a4, 0x1898, 0x4509, 0x2906],
        _ => return None,
    })
}

/// Any three fragments may be lost. 12+6 is not like the others.
fn hamming_distance_4(k: usize, m: usize) -> Option<&'static [u32]> {
    Some(match (k, m) {
        (5..=10, 5) => &[0x167, 0x1b9, 0x2ae, 0x2d3, 0x35c],
        (12, 6) => &[0x671, 0xca3, 0x947, 0x2ce, 0x59c, 0xb38],
        (6..=20, 6) => &[0x55547, 0xa9578, 0x56a78, 0xa698b, 0x9a695, 0x69aa6],
        _ => return None,
    })
}
