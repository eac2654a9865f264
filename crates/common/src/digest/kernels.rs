//! MD5's compression function, for one stream and for many at once.
//!
//! One stream of MD5 is a chain of 64 dependent steps for each block, which leaves most of a core idle. For a lone
//! stream the chain can only be kept short: what does not need the newest word is added up first. The rest of the core
//! is filled by going down the chains of several streams in step, interleaved in scalar registers or with one stream in
//! each lane of a vector. It is the same [`rounds`] each time, over another kind of [`Word`].
//!
//! GB/s of one core (EPYC with AVX-512, 64 KiB of each stream, all in cache); the crate `md-5` does 0.62, streams one
//! after the other:
//!
//! | streams | 1 | 2 | 3 | 4 | 8 | 16 |
//! |---|---|---|---|---|---|---|
//! | scalar, interleaved by three at most | **0.81** | **1.15** | **1.7** | 1.3 | 1.5 | 1.5 |
//! | AVX2, eight lanes | | 1.2 | 1.8 | 2.3 | 4.6 | 4.6 |
//! | AVX-512, sixteen lanes | | 1.2 | 1.8 | **2.4** | **4.8** | **9.6** |
//!
//! The words of a block come from a transposition in registers; the gather instructions are slower. Two vectors of
//! AVX2 side by side would give sixteen streams 7.3, two of AVX-512 thirty-two about 11: not worth the code so far.
//!
//! All that a step calls is `inline(always)`, and there are plain loops and no `array::map`: a build may be one without LTO, and
//! a call within a step costs several times what the step does.
//!
//! Unsafe code is the vector instructions, which are called only where the CPU has them, their loads and stores,
//! which take arrays of the right size, and assembly without instructions.
#![allow(unsafe_code)]
// The loops go over lanes, words and blocks of several arrays at once.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
use std::arch::{asm, x86_64::*};

pub type Block = [u8; 64];
/// The four chaining variables.
pub type State = [u32; 4];

pub const INITIAL: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
/// The most streams that one call takes.
pub const MAX_LANES: usize = 16;

/// Takes `blocks` blocks of one stream.
pub fn compress(state: &mut State, blocks: &[Block]) {
    for block in blocks {
        rounds(state, &words(block));
    }
}

/// Takes the first `blocks` blocks of each stream, of which there are at most [`MAX_LANES`].
pub fn compress_many(states: &mut [State], data: &[&[Block]], blocks: usize) {
    let (mut states, mut data) = (states, data);
    while !data.is_empty() {
        let kernel = Kernel::best_for(data.len());
        let count = kernel.lanes().min(data.len());
        kernel.run(&mut states[..count], &data[..count], blocks);
        (states, data) = (&mut states[count..], &data[count..]);
    }
}

#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Kernel {
    One,
    Two,
    Three,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Kernel {
    const ALL: &[Kernel] = &[
        Kernel::One,
        Kernel::Two,
        Kernel::Three,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2,
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512,
    ];

    fn best_for(streams: usize) -> Kernel {
        match streams {
            0 | 1 => Kernel::One,
            2 => Kernel::Two,
            3 => Kernel::Three,
            _ => *Self::ALL.iter().rfind(|kernel| kernel.is_available()).unwrap_or(&Kernel::One),
        }
    }

    fn lanes(self) -> usize {
        match self {
            Kernel::One => 1,
            Kernel::Two => 2,
            Kernel::Three => 3,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => 8,
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => 16,
        }
    }

    fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => is_x86_feature_detected!("avx512f"),
            _ => true,
        }
    }

    fn run(self, states: &mut [State], data: &[&[Block]], blocks: usize) {
        assert!(self.is_available());
        match self {
            Kernel::One => compress(&mut states[0], &data[0][..blocks]),
            Kernel::Two => in_lanes(states, data, blocks, interleaved::<2>),
            Kernel::Three => in_lanes(states, data, blocks, interleaved::<3>),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has AVX2.
            Kernel::Avx2 => in_lanes(states, data, blocks, |lanes, data| unsafe { avx2(lanes, data) }),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the CPU has AVX512F.
            Kernel::Avx512 => in_lanes(states, data, blocks, |lanes, data| unsafe { avx512(lanes, data) }),
        }
    }
}

/// The states of `N` streams: word by word, each with its `N` lanes.
type Lanes<const N: usize> = [[u32; N]; 4];

/// Runs a kernel of `N` lanes over at most as many streams; lanes that are left over do the first one's work again.
fn in_lanes<const N: usize>(
    states: &mut [State],
    data: &[&[Block]],
    blocks: usize,
    kernel: impl Fn(&mut Lanes<N>, [&[Block]; N]),
) {
    let mut lanes: Lanes<N> = [[0; N]; 4];
    let mut used = [data[0]; N];
    for lane in 0..N {
        let stream = if lane < states.len() { lane } else { 0 };
        used[lane] = &data[stream][..blocks];
        for word in 0..4 {
            lanes[word][lane] = states[stream][word];
        }
    }
    kernel(&mut lanes, used);
    for (lane, state) in states.iter_mut().enumerate() {
        *state = [lanes[0][lane], lanes[1][lane], lanes[2][lane], lanes[3][lane]];
    }
}

/// A 32-bit word of one stream or of several.
trait Word: Copy {
    fn splat(constant: u32) -> Self;
    fn add(self, other: Self) -> Self;
    /// Itself, but the compiler adds it up first. It would otherwise move the constant to the end of the sum, and so
    /// into the chain: that is a quarter of the speed.
    fn settle(self) -> Self;
    /// `R` is 32 - `L`.
    fn rotate<const L: i32, const R: i32>(self) -> Self;
    /// `a` plus MD5's F, G, H or I of the other three; `b` is the newest word.
    fn plus_f(a: Self, b: Self, c: Self, d: Self) -> Self;
    fn plus_g(a: Self, b: Self, c: Self, d: Self) -> Self;
    fn plus_h(a: Self, b: Self, c: Self, d: Self) -> Self;
    fn plus_i(a: Self, b: Self, c: Self, d: Self) -> Self;
}

/// One block of each stream.
#[inline(always)]
fn rounds<W: Word>(state: &mut [W; 4], m: &[W; 16]) {
    let [mut a, mut b, mut c, mut d] = *state;
    macro_rules! step {
        ($plus:ident $a:ident $b:ident $c:ident $d:ident $m:literal <<< $s:literal, $k:literal) => {
            let sum = $a.add(m[$m].add(W::splat($k))).settle();
            $a = W::$plus(sum, $b, $c, $d).rotate::<$s, { 32 - $s }>().add($b);
        };
    }
    step!(plus_f a b c d 0 <<< 7, 0xd76aa478);
    step!(plus_f d a b c 1 <<< 12, 0xe8c7b756);
    step!(plus_f c d a b 2 <<< 17, 0x242070db);
    step!(plus_f b c d a 3 <<< 22, 0xc1bdceee);
    step!(plus_f a b c d 4 <<< 7, 0xf57c0faf);
    step!(plus_f d a b c 5 <<< 12, 0x4787c62a);
    step!(plus_f c d a b 6 <<< 17, 0xa8304613);
    step!(plus_f b c d a 7 <<< 22, 0xfd469501);
    step!(plus_f a b c d 8 <<< 7, 0x698098d8);
    step!(plus_f d a b c 9 <<< 12, 0x8b44f7af);
    step!(plus_f c d a b 10 <<< 17, 0xffff5bb1);
    step!(plus_f b c d a 11 <<< 22, 0x895cd7be);
    step!(plus_f a b c d 12 <<< 7, 0x6b901122);
    step!(plus_f d a b c 13 <<< 12, 0xfd987193);
    step!(plus_f c d a b 14 <<< 17, 0xa679438e);
    step!(plus_f b c d a 15 <<< 22, 0x49b40821);

    step!(plus_g a b c d 1 <<< 5, 0xf61e2562);
    step!(plus_g d a b c 6 <<< 9, 0xc040b340);
    step!(plus_g c d a b 11 <<< 14, 0x265e5a51);
    step!(plus_g b c d a 0 <<< 20, 0xe9b6c7aa);
    step!(plus_g a b c d 5 <<< 5, 0xd62f105d);
    step!(plus_g d a b c 10 <<< 9, 0x02441453);
    step!(plus_g c d a b 15 <<< 14, 0xd8a1e681);
    step!(plus_g b c d a 4 <<< 20, 0xe7d3fbc8);
    step!(plus_g a b c d 9 <<< 5, 0x21e1cde6);
    step!(plus_g d a b c 14 <<< 9, 0xc33707d6);
    step!(plus_g c d a b 3 <<< 14, 0xf4d50d87);
    step!(plus_g b c d a 8 <<< 20, 0x455a14ed);
    step!(plus_g a b c d 13 <<< 5, 0xa9e3e905);
    step!(plus_g d a b c 2 <<< 9, 0xfcefa3f8);
    step!(plus_g c d a b 7 <<< 14, 0x676f02d9);
    step!(plus_g b c d a 12 <<< 20, 0x8d2a4c8a);

    step!(plus_h a b c d 5 <<< 4, 0xfffa3942);
    step!(plus_h d a b c 8 <<< 11, 0x8771f681);
    step!(plus_h c d a b 11 <<< 16, 0x6d9d6122);
    step!(plus_h b c d a 14 <<< 23, 0xfde5380c);
    step!(plus_h a b c d 1 <<< 4, 0xa4beea44);
    step!(plus_h d a b c 4 <<< 11, 0x4bdecfa9);
    step!(plus_h c d a b 7 <<< 16, 0xf6bb4b60);
    step!(plus_h b c d a 10 <<< 23, 0xbebfbc70);
    step!(plus_h a b c d 13 <<< 4, 0x289b7ec6);
    step!(plus_h d a b c 0 <<< 11, 0xeaa127fa);
    step!(plus_h c d a b 3 <<< 16, 0xd4ef3085);
    step!(plus_h b c d a 6 <<< 23, 0x04881d05);
    step!(plus_h a b c d 9 <<< 4, 0xd9d4d039);
    step!(plus_h d a b c 12 <<< 11, 0xe6db99e5);
    step!(plus_h c d a b 15 <<< 16, 0x1fa27cf8);
    step!(plus_h b c d a 2 <<< 23, 0xc4ac5665);

    step!(plus_i a b c d 0 <<< 6, 0xf4292244);
    step!(plus_i d a b c 7 <<< 10, 0x432aff97);
    step!(plus_i c d a b 14 <<< 15, 0xab9423a7);
    step!(plus_i b c d a 5 <<< 21, 0xfc93a039);
    step!(plus_i a b c d 12 <<< 6, 0x655b59c3);
    step!(plus_i d a b c 3 <<< 10, 0x8f0ccc92);
    step!(plus_i c d a b 10 <<< 15, 0xffeff47d);
    step!(plus_i b c d a 1 <<< 21, 0x85845dd1);
    step!(plus_i a b c d 8 <<< 6, 0x6fa87e4f);
    step!(plus_i d a b c 15 <<< 10, 0xfe2ce6e0);
    step!(plus_i c d a b 6 <<< 15, 0xa3014314);
    step!(plus_i b c d a 13 <<< 21, 0x4e0811a1);
    step!(plus_i a b c d 4 <<< 6, 0xf7537e82);
    step!(plus_i d a b c 11 <<< 10, 0xbd3af235);
    step!(plus_i c d a b 2 <<< 15, 0x2ad7d2bb);
    step!(plus_i b c d a 9 <<< 21, 0xeb86d391);
    *state = [state[0].add(a), state[1].add(b), state[2].add(c), state[3].add(d)];
}

#[inline(always)]
fn words(block: &Block) -> [u32; 16] {
    let mut words = [0; 16];
    for i in 0..16 {
        words[i] = u32::from_le_bytes([block[4 * i], block[4 * i + 1], block[4 * i + 2], block[4 * i + 3]]);
    }
    words
}

impl Word for u32 {
    #[inline(always)]
    fn splat(constant: u32) -> Self {
        constant
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    fn settle(mut self) -> Self {
        // SAFETY: there is no instruction in it.
        unsafe { asm!("/* {0:e} */", inout(reg) self, options(pure, nomem, nostack, preserves_flags)) };
        self
    }
    #[inline(always)]
    #[cfg(not(target_arch = "x86_64"))]
    fn settle(self) -> Self {
        self
    }
    #[inline(always)]
    fn rotate<const L: i32, const R: i32>(self) -> Self {
        u32::rotate_left(self, L as u32)
    }
    #[inline(always)]
    fn plus_f(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.add(d ^ (b & (c ^ d)))
    }
    #[inline(always)]
    fn plus_g(a: Self, b: Self, c: Self, d: Self) -> Self {
        // The halves have no bit in common; the first does not need b.
        a.add(c & !d).add(b & d)
    }
    #[inline(always)]
    fn plus_h(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.add(b ^ (c ^ d))
    }
    #[inline(always)]
    fn plus_i(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.add(c ^ (b | !d))
    }
}

/// Words of streams side by side in scalar registers.
#[derive(Copy, Clone)]
struct Side<const N: usize>([u32; N]);

impl<const N: usize> Side<N> {
    #[inline(always)]
    fn each(mut self, f: impl Fn(usize, u32) -> u32) -> Self {
        for i in 0..N {
            self.0[i] = f(i, self.0[i]);
        }
        self
    }
}

impl<const N: usize> Word for Side<N> {
    #[inline(always)]
    fn splat(constant: u32) -> Self {
        Side([constant; N])
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.each(
            #[inline(always)]
            |i, a| a.add(other.0[i]),
        )
    }
    #[inline(always)]
    fn settle(self) -> Self {
        self.each(
            #[inline(always)]
            |_, a| a.settle(),
        )
    }
    #[inline(always)]
    fn rotate<const L: i32, const R: i32>(self) -> Self {
        self.each(
            #[inline(always)]
            |_, a| a.rotate::<L, R>(),
        )
    }
    #[inline(always)]
    fn plus_f(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.each(
            #[inline(always)]
            |i, a| u32::plus_f(a, b.0[i], c.0[i], d.0[i]),
        )
    }
    #[inline(always)]
    fn plus_g(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.each(
            #[inline(always)]
            |i, a| u32::plus_g(a, b.0[i], c.0[i], d.0[i]),
        )
    }
    #[inline(always)]
    fn plus_h(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.each(
            #[inline(always)]
            |i, a| u32::plus_h(a, b.0[i], c.0[i], d.0[i]),
        )
    }
    #[inline(always)]
    fn plus_i(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.each(
            #[inline(always)]
            |i, a| u32::plus_i(a, b.0[i], c.0[i], d.0[i]),
        )
    }
}

fn interleaved<const N: usize>(lanes: &mut Lanes<N>, data: [&[Block]; N]) {
    let mut state = [Side(lanes[0]), Side(lanes[1]), Side(lanes[2]), Side(lanes[3])];
    for i in 0..data[0].len() {
        let mut m = [Side([0; N]); 16];
        for lane in 0..N {
            let words = words(&data[lane][i]);
            for word in 0..16 {
                m[word].0[lane] = words[word];
            }
        }
        rounds(&mut state, &m);
    }
    *lanes = [state[0].0, state[1].0, state[2].0, state[3].0];
}

#[cfg(target_arch = "x86_64")]
// SAFETY of all in this block: only `avx2` uses it, where the CPU has AVX2.
#[cfg(target_arch = "x86_64")]
impl Word for __m256i {
    #[inline(always)]
    fn splat(constant: u32) -> Self {
        unsafe { _mm256_set1_epi32(constant as i32) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { _mm256_add_epi32(self, other) }
    }
    #[inline(always)]
    fn settle(self) -> Self {
        #[inline]
        #[target_feature(enable = "avx2")]
        fn settle(mut v: __m256i) -> __m256i {
            unsafe { asm!("/* {0} */", inout(ymm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
            v
        }
        unsafe { settle(self) }
    }
    #[inline(always)]
    fn rotate<const L: i32, const R: i32>(self) -> Self {
        unsafe { _mm256_or_si256(_mm256_slli_epi32::<L>(self), _mm256_srli_epi32::<R>(self)) }
    }
    #[inline(always)]
    fn plus_f(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.add(unsafe { _mm256_xor_si256(d, _mm256_and_si256(b, _mm256_xor_si256(c, d))) })
    }
    #[inline(always)]
    fn plus_g(a: Self, b: Self, c: Self, d: Self) -> Self {
        let (old, new) = unsafe { (_mm256_andnot_si256(d, c), _mm256_and_si256(b, d)) };
        a.add(old).add(new)
    }
    #[inline(always)]
    fn plus_h(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.add(unsafe { _mm256_xor_si256(b, _mm256_xor_si256(c, d)) })
    }
    #[inline(always)]
    fn plus_i(a: Self, b: Self, c: Self, d: Self) -> Self {
        let not_d = unsafe { _mm256_xor_si256(d, _mm256_set1_epi32(-1)) };
        a.add(unsafe { _mm256_xor_si256(c, _mm256_or_si256(b, not_d)) })
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(lanes: &mut Lanes<8>, data: [&[Block]; 8]) {
    // SAFETY of all in this function: eight words are a vector, and two vectors a block.
    let mut state = [_mm256_setzero_si256(); 4];
    for word in 0..4 {
        state[word] = unsafe { _mm256_loadu_si256(lanes[word].as_ptr().cast()) };
    }
    for i in 0..data[0].len() {
        let (mut low, mut high) = ([_mm256_setzero_si256(); 8], [_mm256_setzero_si256(); 8]);
        for lane in 0..8 {
            let block: *const __m256i = data[lane][i].as_ptr().cast();
            (low[lane], high[lane]) =
                unsafe { (_mm256_loadu_si256(block), _mm256_loadu_si256(block.add(1))) };
        }
        let (low, high) = (transpose_8(low), transpose_8(high));
        let mut m = [_mm256_setzero_si256(); 16];
        for word in 0..8 {
            (m[word], m[8 + word]) = (low[word], high[word]);
        }
        rounds(&mut state, &m);
    }
    for word in 0..4 {
        unsafe { _mm256_storeu_si256(lanes[word].as_mut_ptr().cast(), state[word]) };
    }
}

/// From eight words of each lane to eight lanes of each word.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_8(mut v: [__m256i; 8]) -> [__m256i; 8] {
    for pair in 0..4 {
        let (a, b) = (v[2 * pair], v[2 * pair + 1]);
        v[2 * pair] = _mm256_unpacklo_epi32(a, b);
        v[2 * pair + 1] = _mm256_unpackhi_epi32(a, b);
    }
    // Now v[4 * quad + c] has, in its 128-bit part k, word 4 * k + c of the lanes of a quad.
    for quad in 0..2 {
        let [a, b, c, d] = [v[4 * quad], v[4 * quad + 1], v[4 * quad + 2], v[4 * quad + 3]];
        v[4 * quad] = _mm256_unpacklo_epi64(a, c);
        v[4 * quad + 1] = _mm256_unpackhi_epi64(a, c);
        v[4 * quad + 2] = _mm256_unpacklo_epi64(b, d);
        v[4 * quad + 3] = _mm256_unpackhi_epi64(b, d);
    }
    for c in 0..4 {
        let (a, b) = (v[c], v[4 + c]);
        v[c] = _mm256_permute2x128_si256::<0x20>(a, b);
        v[4 + c] = _mm256_permute2x128_si256::<0x31>(a, b);
    }
    v
}

#[cfg(target_arch = "x86_64")]
// SAFETY of all in this block: only `avx512` uses it, where the CPU has AVX512F. The parameter of `ternarylogic` is the
// function's truth table.
#[cfg(target_arch = "x86_64")]
impl Word for __m512i {
    #[inline(always)]
    fn splat(constant: u32) -> Self {
        unsafe { _mm512_set1_epi32(constant as i32) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { _mm512_add_epi32(self, other) }
    }
    #[inline(always)]
    fn settle(self) -> Self {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn settle(mut v: __m512i) -> __m512i {
            unsafe { asm!("/* {0} */", inout(zmm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
            v
        }
        unsafe { settle(self) }
    }
    #[inline(always)]
    fn rotate<const L: i32, const R: i32>(self) -> Self {
        unsafe { _mm512_rol_epi32::<L>(self) }
    }
    #[inline(always)]
    fn plus_f(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.add(unsafe { _mm512_ternarylogic_epi32::<0xca>(b, c, d) })
    }
    #[inline(always)]
    fn plus_g(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.add(unsafe { _mm512_ternarylogic_epi32::<0xe4>(b, c, d) })
    }
    #[inline(always)]
    fn plus_h(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.add(unsafe { _mm512_ternarylogic_epi32::<0x96>(b, c, d) })
    }
    #[inline(always)]
    fn plus_i(a: Self, b: Self, c: Self, d: Self) -> Self {
        a.add(unsafe { _mm512_ternarylogic_epi32::<0x39>(b, c, d) })
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(lanes: &mut Lanes<16>, data: [&[Block]; 16]) {
    // SAFETY of all in this function: sixteen words are a vector, and a vector is a block.
    let mut state = [_mm512_setzero_si512(); 4];
    for word in 0..4 {
        state[word] = unsafe { _mm512_loadu_si512(lanes[word].as_ptr().cast()) };
    }
    for i in 0..data[0].len() {
        let mut m = [_mm512_setzero_si512(); 16];
        for lane in 0..16 {
            m[lane] = unsafe { _mm512_loadu_si512(data[lane][i].as_ptr().cast()) };
        }
        rounds(&mut state, &transpose_16(m));
    }
    for word in 0..4 {
        unsafe { _mm512_storeu_si512(lanes[word].as_mut_ptr().cast(), state[word]) };
    }
}

/// From sixteen words of each lane to sixteen lanes of each word.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_16(mut v: [__m512i; 16]) -> [__m512i; 16] {
    for pair in 0..8 {
        let (a, b) = (v[2 * pair], v[2 * pair + 1]);
        v[2 * pair] = _mm512_unpacklo_epi32(a, b);
        v[2 * pair + 1] = _mm512_unpackhi_epi32(a, b);
    }
    // Now v[4 * quad + c] has, in its 128-bit part k, word 4 * k + c of the lanes of a quad.
    for quad in 0..4 {
        let [a, b, c, d] = [v[4 * quad], v[4 * quad + 1], v[4 * quad + 2], v[4 * quad + 3]];
        v[4 * quad] = _mm512_unpacklo_epi64(a, c);
        v[4 * quad + 1] = _mm512_unpackhi_epi64(a, c);
        v[4 * quad + 2] = _mm512_unpacklo_epi64(b, d);
        v[4 * quad + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // 0x88 takes the parts 0 and 2 of both, 0xdd the parts 1 and 3.
    for c in 0..4 {
        let [p, q, r, s] = [v[c], v[4 + c], v[8 + c], v[12 + c]];
        let (even, also_even) = (_mm512_shuffle_i32x4::<0x88>(p, q), _mm512_shuffle_i32x4::<0x88>(r, s));
        let (odd, also_odd) = (_mm512_shuffle_i32x4::<0xdd>(p, q), _mm512_shuffle_i32x4::<0xdd>(r, s));
        v[c] = _mm512_shuffle_i32x4::<0x88>(even, also_even);
        v[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd, also_odd);
        v[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even, also_even);
        v[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd, also_odd);
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(stream: usize, i: usize) -> Block {
        std::array::from_fn(|at| (stream * 7 + i * 31 + at * 13 + (stream * i * at) % 251) as u8)
    }

    proptest! {
        #[test]
        fn every_kernel_takes_any_number_of_streams_as_one_by_one(
            count in 1..=MAX_LANES, blocks in 0..20usize, longer in 0..3usize,
        ) {
            let data: Vec<Vec<Block>> =
                (0..count).map(|s| (0..blocks + longer * s).map(|i| block(s, i)).collect()).collect();
            let data: Vec<&[Block]> = data.iter().map(|blocks| &blocks[..]).collect();
            let start: Vec<State> = (0..count).map(|s| INITIAL.map(|word| word ^ s as u32)).collect();
            let mut expected = start.clone();
            for (state, data) in expected.iter_mut().zip(&data) {
                compress(state, &data[..blocks]);
            }
            for kernel in Kernel::ALL.iter().filter(|kernel| kernel.is_available()) {
                let mut states = start.clone();
                for (states, data) in states.chunks_mut(kernel.lanes()).zip(data.chunks(kernel.lanes())) {
                    kernel.run(states, data, blocks);
                }
                prop_assert_eq!(&states, &expected, "{:?}", kernel);
            }
            let mut states = start;
            compress_many(&mut states, &data, blocks);
            prop_assert_eq!(states, expected);
        }
    }
}
