//! The loop of every vector kernel: some rows at a time stay in registers while the columns go by, so that a source is
//! read once for several outputs, and an output written once.
//!
//! A payload's end that is no full step is done with a step that begins earlier: what it writes again is the same. What is
//! shorter than a step is padded.
//!
//! Everything is `inline(always)`, down to the instructions: the function that enables the vector instructions is a
//! kernel's own, around the call of [`product`].
//!
//! Unsafe code is loads and stores, within slices by the arithmetic of this file, and the calls of a [`Multiply`], whose
//! instructions the CPU must have.
#![allow(unsafe_code)]
// The loops go over rows of several arrays at once.
#![allow(clippy::needless_range_loop)]

/// How one instruction set multiplies and adds, a step of some bytes at a time.
///
/// # Safety
///
/// The caller of any function has the CPU's features that the kernel is named for, inlines into a function that
/// enables them, and gives pointers to [`Self::STEP`] bytes.
pub trait Multiply {
    /// An element of the matrix, in the form that is multiplied with.
    type Coefficient;
    /// A step of a source, made ready.
    type Source: Copy;
    /// A step of an output that is being added up.
    type Sum: Copy;
    /// Bytes.
    const STEP: usize;
    /// The most sums that fit in registers; at most [`MAX_ROWS`].
    const ROWS: usize;

    unsafe fn load(from: *const u8) -> Self::Source;
    unsafe fn zero() -> Self::Sum;
    unsafe fn add(sum: Self::Sum, coefficient: &Self::Coefficient, source: Self::Source) -> Self::Sum;
    unsafe fn store(sum: Self::Sum, to: *mut u8);
}

pub const MAX_ROWS: usize = 6;

/// Outputs of all rows. `coefficients` are column by column; all slices have one length.
///
/// # Safety
///
/// As for [`Multiply`].
#[inline(always)]
pub unsafe fn product<M: Multiply>(
    coefficients: &[M::Coefficient],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
) {
    let len = outputs.first().map_or(0, |output| output.len());
    assert_eq!(coefficients.len(), sources.len() * outputs.len());
    assert!(sources.iter().all(|s| s.len() == len) && outputs.iter().all(|o| o.len() == len));
    if len >= M::STEP {
        // SAFETY: the caller's, and the slices hold a step or more.
        return unsafe { long::<M>(coefficients, sources, outputs, len) };
    }
    let padded: Vec<Vec<u8>> = sources
        .iter()
        .map(|source| {
            let mut padded = vec![0; M::STEP];
            padded[..len].copy_from_slice(source);
            padded
        })
        .collect();
    let sources: Vec<&[u8]> = padded.iter().map(|s| &s[..]).collect();
    let mut made = vec![vec![0; M::STEP]; outputs.len()];
    let mut long_outputs: Vec<&mut [u8]> = made.iter_mut().map(|o| &mut o[..]).collect();
    // SAFETY: as above.
    unsafe { long::<M>(coefficients, &sources, &mut long_outputs, M::STEP) };
    outputs.iter_mut().zip(&made).for_each(|(output, made)| output.copy_from_slice(&made[..len]));
}

#[inline(always)]
unsafe fn long<M: Multiply>(
    coefficients: &[M::Coefficient],
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    len: usize,
) {
    let rows = outputs.len();
    for first in (0..rows).step_by(M::ROWS) {
        let outputs = &mut outputs[first..rows.min(first + M::ROWS)];
        // SAFETY: the caller's.
        unsafe {
            match outputs.len() {
                1 => some_rows::<M, 1>(coefficients, rows, first, sources, outputs, len),
                2 => some_rows::<M, 2>(coefficients, rows, first, sources, outputs, len),
                3 => some_rows::<M, 3>(coefficients, rows, first, sources, outputs, len),
                4 => some_rows::<M, 4>(coefficients, rows, first, sources, outputs, len),
                5 => some_rows::<M, 5>(coefficients, rows, first, sources, outputs, len),
                _ => some_rows::<M, MAX_ROWS>(coefficients, rows, first, sources, outputs, len),
            }
        }
    }
}

#[inline(always)]
unsafe fn some_rows<M: Multiply, const N: usize>(
    coefficients: &[M::Coefficient],
    rows: usize,
    first: usize,
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    len: usize,
) {
    assert_eq!(outputs.len(), N);
    let full = len / M::STEP;
    let steps = full + usize::from(!len.is_multiple_of(M::STEP));
    for step in 0..steps {
        let at = if step < full { step * M::STEP } else { len - M::STEP };
        // SAFETY: from `at` on there is a step in every slice; there are `rows` coefficients for each source.
        unsafe {
            let mut sums = [M::zero(); N];
            let mut column = coefficients.as_ptr().add(first);
            for source in sources {
                let source = M::load(source.as_ptr().add(at));
                for row in 0..N {
                    sums[row] = M::add(sums[row], &*column.add(row), source);
                }
                column = column.wrapping_add(rows);
            }
            for row in 0..N {
                M::store(sums[row], outputs[row].as_mut_ptr().add(at));
            }
        }
    }
}
