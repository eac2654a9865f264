//! A matrix times payloads: each output is a sum of multiples of the sources, over a finite field.
//!
//! All of an encode's or decode's time is here. A product is prepared once, in the form that its kernel wants: which of
//! the kernels that is, is chosen by what the CPU has. All make the same bytes.
//!
//! | kernel | instructions | file |
//! |---|---|---|
//! | portable | none | `portable` |
//! | SSSE3, AVX2, NEON | tables of sixteen, by a permutation of bytes | `nibbles` |
//! | GFNI with AVX2, GFNI with AVX-512 | matrices of bits | `affine` |
//!
//! Unsafe code is the calls of functions for CPUs that have certain instructions, which are asked for first.
#![allow(unsafe_code)]

use crate::gf::Field;
use crate::matrix::Matrix;

#[cfg(target_arch = "x86_64")]
mod affine;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod nibbles;
mod portable;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;

/// A way of multiplying.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Kernel {
    Portable,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "x86_64")]
    Ssse3,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx2Gfni,
    #[cfg(target_arch = "x86_64")]
    Avx512Gfni,
}

impl Kernel {
    /// The slowest first.
    const ALL: &[Kernel] = &[
        Kernel::Portable,
        #[cfg(target_arch = "aarch64")]
        Kernel::Neon,
        #[cfg(target_arch = "x86_64")]
        Kernel::Ssse3,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2Gfni,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Gfni,
    ];

    pub fn best() -> Kernel {
        *Self::ALL.iter().rfind(|kernel| kernel.is_available()).unwrap_or(&Kernel::Portable)
    }

    fn is_available(self) -> bool {
        match self {
            Kernel::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "x86_64")]
            Kernel::Ssse3 => is_x86_feature_detected!("ssse3"),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2Gfni => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("gfni"),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Gfni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("gfni")
            }
        }
    }
}

/// A matrix, ready to be multiplied with.
pub struct Product {
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    kernel: Kernel,
    rows: usize,
    columns: usize,
    /// The first row is all ones: its output is the sources' sum.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    sums: bool,
    elements: Elements,
}

/// The elements of a matrix, column by column, in the form that a kernel wants.
enum Elements {
    Tables(portable::Tables),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    ByteNibbles(Vec<nibbles::Byte>),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    WordNibbles(Vec<nibbles::Word>),
    #[cfg(target_arch = "x86_64")]
    ByteMatrices(Vec<affine::Byte>),
    #[cfg(target_arch = "x86_64")]
    WordMatrices(Vec<affine::Word>),
}

impl Elements {
    fn new(kernel: Kernel, field: Field, elements: impl Iterator<Item = u16>) -> Elements {
        let words = field == Field::Gf16;
        match kernel {
            Kernel::Portable => Elements::Tables(portable::Tables::new(field, elements)),
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon if words => Elements::WordNibbles(elements.map(nibbles::word).collect()),
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon => Elements::ByteNibbles(elements.map(nibbles::byte).collect()),
            #[cfg(target_arch = "x86_64")]
            Kernel::Ssse3 | Kernel::Avx2 if words => {
                Elements::WordNibbles(elements.map(nibbles::word).collect())
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Ssse3 | Kernel::Avx2 => Elements::ByteNibbles(elements.map(nibbles::byte).collect()),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2Gfni | Kernel::Avx512Gfni if words => {
                Elements::WordMatrices(elements.map(affine::word).collect())
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2Gfni | Kernel::Avx512Gfni => {
                Elements::ByteMatrices(elements.map(affine::byte).collect())
            }
        }
    }
}

impl Product {
    /// The field is that of bytes or that of words of two, and the kernel one that is available.
    pub fn new(kernel: Kernel, field: Field, matrix: &Matrix) -> Product {
        assert!(kernel.is_available() && field != Field::Gf4);
        let (rows, columns) = (matrix.rows, matrix.columns);
        let by_column = (0..columns).flat_map(|column| (0..rows).map(move |row| matrix.get(row, column)));
        let sums = rows > 0 && matrix.row(0).iter().all(|element| *element == 1);
        Product { kernel, rows, columns, sums, elements: Elements::new(kernel, field, by_column) }
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// A source for each column, an output for each row, all of one length (even, in the field of words); whatever
    /// outputs held is overwritten.
    pub fn apply(&self, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        assert_eq!((outputs.len(), sources.len()), (self.rows, self.columns));
        // SAFETY of all calls: that the CPU has the kernel's instructions was seen when the product was made.
        match &self.elements {
            Elements::Tables(tables) => tables.apply(sources, outputs),
            #[cfg(target_arch = "aarch64")]
            Elements::ByteNibbles(elements) => unsafe { nibbles::bytes_neon(elements, sources, outputs) },
            #[cfg(target_arch = "aarch64")]
            Elements::WordNibbles(elements) => unsafe { nibbles::words_neon(elements, sources, outputs) },
            #[cfg(target_arch = "x86_64")]
            Elements::ByteNibbles(elements) if self.kernel == Kernel::Avx2 => unsafe {
                nibbles::bytes_avx2(elements, sources, outputs)
            },
            #[cfg(target_arch = "x86_64")]
            Elements::ByteNibbles(elements) => unsafe { nibbles::bytes_ssse3(elements, sources, outputs) },
            #[cfg(target_arch = "x86_64")]
            Elements::WordNibbles(elements) if self.kernel == Kernel::Avx2 => unsafe {
                nibbles::words_avx2(elements, sources, outputs)
            },
            #[cfg(target_arch = "x86_64")]
            Elements::WordNibbles(elements) => unsafe { nibbles::words_ssse3(elements, sources, outputs) },
            #[cfg(target_arch = "x86_64")]
            Elements::ByteMatrices(elements) if self.kernel == Kernel::Avx512Gfni => unsafe {
                affine::bytes_512(elements, self.sums, sources, outputs)
            },
            #[cfg(target_arch = "x86_64")]
            Elements::ByteMatrices(elements) => unsafe {
                affine::bytes_256(elements, self.sums, sources, outputs)
            },
            #[cfg(target_arch = "x86_64")]
            Elements::WordMatrices(elements) if self.kernel == Kernel::Avx512Gfni => unsafe {
                affine::words_512(elements, self.sums, sources, outputs)
            },
            #[cfg(target_arch = "x86_64")]
            Elements::WordMatrices(elements) => unsafe {
                affine::words_256(elements, self.sums, sources, outputs)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of no pattern that a kernel could share.
    fn noise(seed: usize, len: usize) -> Vec<u8> {
        let mut state = seed as u64 + 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn apply(kernel: Kernel, field: Field, matrix: &Matrix, sources: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let sources: Vec<&[u8]> = sources.iter().map(|s| &s[..]).collect();
        let mut outputs = vec![vec![0xaa; sources[0].len()]; matrix.rows];
        let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(|o| &mut o[..]).collect();
        Product::new(kernel, field, matrix).apply(&sources, &mut slices);
        outputs
    }

    #[test]
    fn the_portable_kernel_multiplies() {
        let matrix = Matrix::from_fn(1, 2, |_, column| [3, 0x8e][column]);
        let sources = [noise(1, 10), noise(2, 10)];
        let found = apply(Kernel::Portable, Field::Gf8, &matrix, &sources);
        let mul = |a, b: u8| Field::Gf8.mul(a, b.into()) as u8;
        let expected: Vec<u8> = (0..10).map(|i| mul(3, sources[0][i]) ^ mul(0x8e, sources[1][i])).collect();
        assert_eq!(found, [expected]);

        let found = apply(Kernel::Portable, Field::Gf16, &matrix, &sources);
        let word = |source: &[u8], i: usize| u16::from_le_bytes([source[2 * i], source[2 * i + 1]]);
        let sum = |i| Field::Gf16.mul(3, word(&sources[0], i)) ^ Field::Gf16.mul(0x8e, word(&sources[1], i));
        let expected: Vec<u8> = (0..5).flat_map(|i| sum(i).to_le_bytes()).collect();
        assert_eq!(found, [expected]);
    }

    /// Every number of rows that a loop is made for and more, with a sum first or not, all elements of bytes, all lengths around a step, and
    /// sources that begin anywhere.
    #[test]
    fn all_kernels_agree_with_the_portable_one() {
        for kernel in Kernel::ALL.iter().filter(|kernel| kernel.is_available()) {
            for field in [Field::Gf8, Field::Gf16] {
                let sizes = [(1, 1), (2, 4), (3, 15), (4, 10), (5, 3), (6, 2), (7, 5), (13, 20)];
                for (sums, (rows, columns)) in
                    [false, true].into_iter().flat_map(|s| sizes.map(|size| (s, size)))
                {
                    let elements = noise(rows, 2 * rows * columns);
                    let element = |row, column| {
                        let i = 2 * (row * columns + column);
                        let word = u16::from_le_bytes([elements[i], elements[i + 1]]);
                        match field {
                            _ if sums && row == 0 => 1,
                            Field::Gf16 => word,
                            _ => word & 255,
                        }
                    };
                    let matrix = Matrix::from_fn(rows, columns, element);
                    for len in
                        [0, 2, 14, 16, 18, 32, 62, 64, 66, 126, 128, 130, 200, 254, 256, 258, 1024, 4094]
                    {
                        let sources: Vec<Vec<u8>> = (0..columns).map(|i| noise(i, len)).collect();
                        assert_eq!(
                            apply(*kernel, field, &matrix, &sources),
                            apply(Kernel::Portable, field, &matrix, &sources),
                            "{kernel:?} {field:?} {rows} x {columns}, sums: {sums}, {len} bytes"
                        );
                    }
                }
            }
            let all = Matrix::from_fn(256, 1, |row, _| row as u16);
            let bytes = [(0..=255).collect::<Vec<u8>>()];
            assert_eq!(
                apply(*kernel, Field::Gf8, &all, &bytes),
                apply(Kernel::Portable, Field::Gf8, &all, &bytes),
                "{kernel:?}"
            );
        }
    }
}
