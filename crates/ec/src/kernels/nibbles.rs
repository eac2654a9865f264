//! Products looked up four bits at a time: an instruction that permutes bytes is a table of sixteen for every byte of a
//! vector at once. SSSE3 and AVX2 have `pshufb` for it, NEON has `tbl`.
//!
//! A byte takes two tables. A word takes four for each half of the product; of two vectors the low bytes of words are
//! gathered in one and the high bytes in the other, and at the end they are joined again.
//!
//! NEON's are compared with the portable kernel, and with PyECLib's bytes, on any machine that has qemu-user-static,
//! gcc-aarch64-linux-gnu and the target: `CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
//! CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu" cargo test -p martlet-ec
//! --target aarch64-unknown-linux-gnu`.
//!
//! Unsafe code is the vector instructions, which are called only where the CPU has them, their loads and stores.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::vector::{self, Multiply};
use crate::gf::Field;

type Table = [u8; 16];
/// The products of an element with the low and the high four bits of a byte.
pub type Byte = [Table; 2];
/// The low bytes of the products of an element with each four bits of a word, lowest first; then the high bytes.
pub type Word = [[Table; 4]; 2];

pub fn byte(element: u16) -> Byte {
    [0, 4].map(|shift| std::array::from_fn(|bits| Field::Gf8.mul(element, (bits as u16) << shift) as u8))
}

pub fn word(element: u16) -> Word {
    [0, 8].map(|half| {
        [0, 4, 8, 12].map(|shift| {
            std::array::from_fn(|bits| (Field::Gf16.mul(element, (bits as u16) << shift) >> half) as u8)
        })
    })
}

/// A vector that permutes bytes within each 16.
///
/// # Safety
///
/// As for [`Multiply`].
trait Vector: Copy {
    const LEN: usize;
    unsafe fn load(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut u8);
    unsafe fn zero() -> Self;
    unsafe fn xor(self, other: Self) -> Self;
    /// The low and the high four bits of each byte.
    unsafe fn nibbles(self) -> [Self; 2];
    /// The entries of a table, at each byte's place the one that it names.
    unsafe fn of(self, table: &Table) -> Self;
    /// Of the words of two vectors, the low bytes and the high bytes, in any order that [`Vector::join`] undoes.
    unsafe fn split(self, next: Self) -> [Self; 2];
    unsafe fn join(low: Self, high: Self) -> [Self; 2];
}

// SAFETY of all unsafe blocks below: what `Vector` and `Multiply` demand of their callers.

struct Bytes<V>(PhantomData<V>);

impl<V: Vector> Multiply for Bytes<V> {
    type Coefficient = Byte;
    type Source = [V; 2];
    type Sum = V;
    const STEP: usize = V::LEN;
    const ROWS: usize = 6;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> [V; 2] {
        unsafe { V::load(from).nibbles() }
    }
    #[inline(always)]
    unsafe fn zero() -> V {
        unsafe { V::zero() }
    }
    #[inline(always)]
    unsafe fn add(sum: V, [low, high]: &Byte, [x, y]: [V; 2]) -> V {
        unsafe { sum.xor(x.of(low).xor(y.of(high))) }
    }
    #[inline(always)]
    unsafe fn store(sum: V, to: *mut u8) {
        unsafe { sum.store(to) }
    }
}

struct Words<V>(PhantomData<V>);

impl<V: Vector> Multiply for Words<V> {
    type Coefficient = Word;
    type Source = [V; 4];
    /// Low bytes and high bytes.
    type Sum = [V; 2];
    const STEP: usize = 2 * V::LEN;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> [V; 4] {
        unsafe {
            let [low, high] = V::load(from).split(V::load(from.add(V::LEN)));
            let ([a, b], [c, d]) = (low.nibbles(), high.nibbles());
            [a, b, c, d]
        }
    }
    #[inline(always)]
    unsafe fn zero() -> [V; 2] {
        unsafe { [V::zero(); 2] }
    }
    #[inline(always)]
    unsafe fn add([low, high]: [V; 2], [to_low, to_high]: &Word, [a, b, c, d]: [V; 4]) -> [V; 2] {
        unsafe {
            let l = a.of(&to_low[0]).xor(b.of(&to_low[1])).xor(c.of(&to_low[2]).xor(d.of(&to_low[3])));
            let h = a.of(&to_high[0]).xor(b.of(&to_high[1])).xor(c.of(&to_high[2]).xor(d.of(&to_high[3])));
            [low.xor(l), high.xor(h)]
        }
    }
    #[inline(always)]
    unsafe fn store([low, high]: [V; 2], to: *mut u8) {
        unsafe {
            let [first, next] = V::join(low, high);
            first.store(to);
            next.store(to.add(V::LEN));
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m128i {
    const LEN: usize = 16;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        unsafe { _mm_loadu_si128(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        unsafe { _mm_storeu_si128(to.cast(), self) }
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm_setzero_si128() }
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        unsafe { _mm_xor_si128(self, other) }
    }
    #[inline(always)]
    unsafe fn nibbles(self) -> [Self; 2] {
        unsafe {
            let mask = _mm_set1_epi8(15);
            [_mm_and_si128(self, mask), _mm_and_si128(_mm_srli_epi16::<4>(self), mask)]
        }
    }
    #[inline(always)]
    unsafe fn of(self, table: &Table) -> Self {
        unsafe { _mm_shuffle_epi8(_mm_loadu_si128(table.as_ptr().cast()), self) }
    }
    #[inline(always)]
    unsafe fn split(self, next: Self) -> [Self; 2] {
        unsafe {
            let low = _mm_set1_epi16(255);
            [
                _mm_packus_epi16(_mm_and_si128(self, low), _mm_and_si128(next, low)),
                _mm_packus_epi16(_mm_srli_epi16::<8>(self), _mm_srli_epi16::<8>(next)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn join(low: Self, high: Self) -> [Self; 2] {
        unsafe { [_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high)] }
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m256i {
    const LEN: usize = 32;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        unsafe { _mm256_storeu_si256(to.cast(), self) }
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        unsafe { _mm256_xor_si256(self, other) }
    }
    #[inline(always)]
    unsafe fn nibbles(self) -> [Self; 2] {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            [_mm256_and_si256(self, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(self), mask)]
        }
    }
    #[inline(always)]
    unsafe fn of(self, table: &Table) -> Self {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, self)
        }
    }
    #[inline(always)]
    unsafe fn split(self, next: Self) -> [Self; 2] {
        unsafe {
            let low = _mm256_set1_epi16(255);
            [
                _mm256_packus_epi16(_mm256_and_si256(self, low), _mm256_and_si256(next, low)),
                _mm256_packus_epi16(_mm256_srli_epi16::<8>(self), _mm256_srli_epi16::<8>(next)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn join(low: Self, high: Self) -> [Self; 2] {
        unsafe { [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)] }
    }
}

#[cfg(target_arch = "aarch64")]
impl Vector for uint8x16_t {
    const LEN: usize = 16;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        unsafe { vld1q_u8(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        unsafe { vst1q_u8(to, self) }
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { vdupq_n_u8(0) }
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        unsafe { veorq_u8(self, other) }
    }
    #[inline(always)]
    unsafe fn nibbles(self) -> [Self; 2] {
        unsafe { [vandq_u8(self, vdupq_n_u8(15)), vshrq_n_u8::<4>(self)] }
    }
    #[inline(always)]
    unsafe fn of(self, table: &Table) -> Self {
        unsafe { vqtbl1q_u8(vld1q_u8(table.as_ptr()), self) }
    }
    #[inline(always)]
    unsafe fn split(self, next: Self) -> [Self; 2] {
        unsafe { [vuzp1q_u8(self, next), vuzp2q_u8(self, next)] }
    }
    #[inline(always)]
    unsafe fn join(low: Self, high: Self) -> [Self; 2] {
        unsafe { [vzip1q_u8(low, high), vzip2q_u8(low, high)] }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "ssse3")]
pub fn bytes_ssse3(elements: &[Byte], sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    unsafe { vector::product::<Bytes<__m128i>>(elements, false, sources, outputs) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "ssse3")]
pub fn words_ssse3(elements: &[Word], sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    unsafe { vector::product::<Words<__m128i>>(elements, false, sources, outputs) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub fn bytes_avx2(elements: &[Byte], sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    unsafe { vector::product::<Bytes<__m256i>>(elements, false, sources, outputs) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub fn words_avx2(elements: &[Word], sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    unsafe { vector::product::<Words<__m256i>>(elements, false, sources, outputs) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
pub fn bytes_neon(elements: &[Byte], sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    unsafe { vector::product::<Bytes<uint8x16_t>>(elements, false, sources, outputs) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
pub fn words_neon(elements: &[Word], sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
    unsafe { vector::product::<Words<uint8x16_t>>(elements, false, sources, outputs) }
}
