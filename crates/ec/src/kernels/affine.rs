//! GFNI: an instruction that multiplies eight bits with a matrix of 8 x 8 bits, for each byte of a vector. To multiply
//! with an element of any field of at most eight bits is such a matrix.
//!
//! For words of two bytes it takes four: each half of the product from each half of the word. With AVX-512 two vectors are
//! sorted into one of low bytes and one of high bytes, so that each instruction takes one half to one half. With AVX2, where
//! registers are few, a 16-byte part of a vector is sorted into its eight low and its eight high bytes; one instruction then
//! takes low to low and high to high, and another, on the halves exchanged, high to low and low to high.
//!
//! Unsafe code is the vector instructions, which are called only where the CPU has them, their loads and stores.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::vector::{self, Multiply};
use crate::gf::Field;

/// The matrices of an element for a byte.
pub type Byte = u64;
/// The matrices of an element for a word: low to low, high to high, high to low, low to high.
pub type Word = [u64; 4];

/// The matrix that takes each bit of a byte to a given byte, as the instruction wants it: the last byte of the matrix is
/// for the lowest bit of the result, and its bits say which bits go into it.
fn matrix(images: [u8; 8]) -> u64 {
    (0..8).fold(0, |matrix, to| {
        let row = (0..8).fold(0u64, |row, from| row | u64::from(images[from] >> to & 1) << from);
        matrix | row << (8 * (7 - to))
    })
}

pub fn byte(element: u16) -> Byte {
    matrix(std::array::from_fn(|bit| Field::Gf8.mul(element, 1 << bit) as u8))
}

pub fn word(element: u16) -> Word {
    let part = |from: usize, to: usize| {
        matrix(std::array::from_fn(|bit| (Field::Gf16.mul(element, 1 << (from + bit)) >> to) as u8))
    };
    [part(0, 0), part(8, 8), part(8, 0), part(0, 8)]
}

/// Sorts the bytes of each 16: low ones of words first.
const SORT: [u8; 16] = [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15];
/// And back.
const UNSORT: [u8; 16] = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15];

// SAFETY of all unsafe blocks below: what `Multiply` demands of its caller.

struct Bytes512;

impl Multiply for Bytes512 {
    type Coefficient = Byte;
    type Source = [__m512i; 2];
    type Sum = [__m512i; 2];
    const STEP: usize = 128;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> [__m512i; 2] {
        unsafe { [_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast())] }
    }
    #[inline(always)]
    unsafe fn zero() -> [__m512i; 2] {
        unsafe { [_mm512_setzero_si512(); 2] }
    }
    #[inline(always)]
    unsafe fn add([a, b]: [__m512i; 2], by: &Byte, [x, y]: [__m512i; 2]) -> [__m512i; 2] {
        unsafe {
            let by = _mm512_set1_epi64(*by as i64);
            let (x, y) =
                (_mm512_gf2p8affine_epi64_epi8::<0>(x, by), _mm512_gf2p8affine_epi64_epi8::<0>(y, by));
            [_mm512_xor_si512(a, x), _mm512_xor_si512(b, y)]
        }
    }
    #[inline(always)]
    unsafe fn add_once([a, b]: [__m512i; 2], _: &Byte, [x, y]: [__m512i; 2]) -> [__m512i; 2] {
        unsafe { [_mm512_xor_si512(a, x), _mm512_xor_si512(b, y)] }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        for line in 0..Self::STEP / 64 {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(64 * line).cast()) }
        }
    }
    #[inline(always)]
    unsafe fn store([a, b]: [__m512i; 2], to: *mut u8) {
        unsafe {
            _mm512_storeu_si512(to.cast(), a);
            _mm512_storeu_si512(to.add(64).cast(), b);
        }
    }
}

struct Words512;

impl Multiply for Words512 {
    type Coefficient = Word;
    /// Of each two vectors, all low bytes, and all high ones.
    type Source = [[__m512i; 2]; 2];
    type Sum = [[__m512i; 2]; 2];
    const STEP: usize = 256;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Source {
        unsafe {
            let from: *const __m512i = from.cast();
            let vector = |i| _mm512_loadu_si512(from.add(i));
            [sort([vector(0), vector(1)]), sort([vector(2), vector(3)])]
        }
    }
    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        unsafe { [[_mm512_setzero_si512(); 2]; 2] }
    }
    #[inline(always)]
    unsafe fn add(sum: Self::Sum, by: &Word, source: Self::Source) -> Self::Sum {
        unsafe {
            let [ll, hh, hl, lh] = [
                _mm512_set1_epi64(by[0] as i64),
                _mm512_set1_epi64(by[1] as i64),
                _mm512_set1_epi64(by[2] as i64),
                _mm512_set1_epi64(by[3] as i64),
            ];
            // The truth table of a sum of three.
            let plus = |a, b, c| _mm512_ternarylogic_epi64::<0x96>(a, b, c);
            let times = |x, by| _mm512_gf2p8affine_epi64_epi8::<0>(x, by);
            let mut made = sum;
            for i in 0..2 {
                let [l, h] = source[i];
                made[i] = [
                    plus(sum[i][0], times(l, ll), times(h, hl)),
                    plus(sum[i][1], times(h, hh), times(l, lh)),
                ];
            }
            made
        }
    }
    #[inline(always)]
    unsafe fn add_once(sum: Self::Sum, _: &Word, source: Self::Source) -> Self::Sum {
        unsafe {
            std::array::from_fn(|i| {
                std::array::from_fn(|half| _mm512_xor_si512(sum[i][half], source[i][half]))
            })
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        for line in 0..Self::STEP / 64 {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(64 * line).cast()) }
        }
    }
    #[inline(always)]
    unsafe fn store([first, second]: Self::Sum, to: *mut u8) {
        unsafe {
            let to: *mut __m512i = to.cast();
            let ([a, b], [c, d]) = (sort(first), sort(second));
            _mm512_storeu_si512(to, a);
            _mm512_storeu_si512(to.add(1), b);
            _mm512_storeu_si512(to.add(2), c);
            _mm512_storeu_si512(to.add(3), d);
        }
    }
}

/// Of two vectors of words, all low bytes and all high ones; and back, as it is its own inverse.
#[inline(always)]
unsafe fn sort([x, y]: [__m512i; 2]) -> [__m512i; 2] {
    unsafe {
        let lows = _mm512_set1_epi16(0xff);
        // The truth table of a choice.
        [
            _mm512_ternarylogic_epi64::<0xca>(lows, x, _mm512_slli_epi16::<8>(y)),
            _mm512_ternarylogic_epi64::<0xca>(lows, _mm512_srli_epi16::<8>(x), y),
        ]
    }
}

struct Bytes256;

impl Multiply for Bytes256 {
    type Coefficient = Byte;
    type Source = [__m256i; 2];
    type Sum = [__m256i; 2];
    const STEP: usize = 64;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> [__m256i; 2] {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn zero() -> [__m256i; 2] {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn add([a, b]: [__m256i; 2], by: &Byte, [x, y]: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let by = _mm256_set1_epi64x(*by as i64);
            let (x, y) =
                (_mm256_gf2p8affine_epi64_epi8::<0>(x, by), _mm256_gf2p8affine_epi64_epi8::<0>(y, by));
            [_mm256_xor_si256(a, x), _mm256_xor_si256(b, y)]
        }
    }
    #[inline(always)]
    unsafe fn add_once([a, b]: [__m256i; 2], _: &Byte, [x, y]: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_xor_si256(a, x), _mm256_xor_si256(b, y)] }
    }
    #[inline(always)]
    unsafe fn store([a, b]: [__m256i; 2], to: *mut u8) {
        unsafe {
            _mm256_storeu_si256(to.cast(), a);
            _mm256_storeu_si256(to.add(32).cast(), b);
        }
    }
}

struct Words256;

impl Multiply for Words256 {
    type Coefficient = Word;
    /// The bytes sorted, and with their halves exchanged.
    type Source = [__m256i; 2];
    type Sum = __m256i;
    const STEP: usize = 32;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> [__m256i; 2] {
        unsafe {
            let sort = _mm256_broadcastsi128_si256(_mm_loadu_si128(SORT.as_ptr().cast()));
            let sorted = _mm256_shuffle_epi8(_mm256_loadu_si256(from.cast()), sort);
            [sorted, _mm256_shuffle_epi32::<0x4e>(sorted)]
        }
    }
    #[inline(always)]
    unsafe fn zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn add(sum: __m256i, by: &Word, [x, exchanged]: [__m256i; 2]) -> __m256i {
        unsafe {
            let straight = _mm256_broadcastsi128_si256(_mm_loadu_si128(by.as_ptr().cast()));
            let across = _mm256_broadcastsi128_si256(_mm_loadu_si128(by[2..].as_ptr().cast()));
            let x = _mm256_gf2p8affine_epi64_epi8::<0>(x, straight);
            let y = _mm256_gf2p8affine_epi64_epi8::<0>(exchanged, across);
            _mm256_xor_si256(sum, _mm256_xor_si256(x, y))
        }
    }
    #[inline(always)]
    unsafe fn add_once(sum: __m256i, _: &Word, [x, _]: [__m256i; 2]) -> __m256i {
        unsafe { _mm256_xor_si256(sum, x) }
    }
    #[inline(always)]
    unsafe fn store(sum: __m256i, to: *mut u8) {
        unsafe {
            let unsort = _mm256_broadcastsi128_si256(_mm_loadu_si128(UNSORT.as_ptr().cast()));
            _mm256_storeu_si256(to.cast(), _mm256_shuffle_epi8(sum, unsort));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub fn bytes_512(elements: &[Byte], sums: bool, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    unsafe { vector::product::<Bytes512>(elements, sums, sources, outputs) }
}

#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub fn words_512(elements: &[Word], sums: bool, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    unsafe { vector::product::<Words512>(elements, sums, sources, outputs) }
}

#[target_feature(enable = "avx2,gfni")]
pub fn bytes_256(elements: &[Byte], sums: bool, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    unsafe { vector::product::<Bytes256>(elements, sums, sources, outputs) }
}

#[target_feature(enable = "avx2,gfni")]
pub fn words_256(elements: &[Word], sums: bool, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    unsafe { vector::product::<Words256>(elements, sums, sources, outputs) }
}
