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
    /// The same where the coefficient is that of the element one.
    #[inline(always)]
    unsafe fn add_once(sum: Self::Sum, one: &Self::Coefficient, source: Self::Source) -> Self::Sum {
        // SAFETY: the caller's.
        unsafe { Self::add(sum, one, source) }
    }
    /// Lets a step of a source be fetched, if it is not beyond the end.
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
    unsafe fn store(sum: Self::Sum, to: *mut u8);
}

pub const MAX_ROWS: usize = 6;
/// So many sources are more streams than a CPU sees coming, of those that are not in its cache.
const MANY_SOURCES: usize = 12;
/// Bytes from what is read to what is to be read soon.
const AHEAD: usize = 512;

/// Outputs of all rows. `coefficients` are column by column; all slices have one length. In the first row all elements are one
/// if it `sums`: so are the first parity of many codes, and one lost fragment that it replaces.
///
/// # Safety
///
/// As for [`Multiply`].
#[inline(always)]
pub unsafe fn product<M: Multiply>(
    coefficients: &[M::Coefficient],
    sums: bool,
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
) {
    let len = outputs.first().map_or(0, |output| output.len());
    assert_eq!(coefficients.len(), sources.len() * outputs.len());
    assert!(sources.iter().all(|s| s.len() == len) && outputs.iter().all(|o| o.len() == len));
    if len >= M::STEP {
        // SAFETY: the caller's, and the slices hold a step or more.
        return unsafe { long::<M>(coefficients, sums, sources, outputs, len) };
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
    unsafe { long::<M>(coefficients, sums, &sources, &mut long_outputs, M::STEP) };
    outputs.iter_mut().zip(&made).for_each(|(output, made)| output.copy_from_slice(&made[..len]));
}

#[inline(always)]
unsafe fn long<M: Multiply>(
    coefficients: &[M::Coefficient],
    sums: bool,
    sources: &[&[u8]],
    outputs: &mut [&mut [u8]],
    len: usize,
) {
    let rows = outputs.len();
    for first in (0..rows).step_by(M::ROWS) {
        let outputs = &mut outputs[first..rows.min(first + M::ROWS)];
        let columns = Columns { coefficients: &coefficients[first..], rows, sources, len };
        // SAFETY: the caller's.
        unsafe {
            match sums && first == 0 {
                false => rows_of::<M, false>(columns, outputs),
                true => rows_of::<M, true>(columns, outputs),
            }
        }
    }
}

#[inline(always)]
unsafe fn rows_of<M: Multiply, const SUMS: bool>(
    columns: Columns<'_, M::Coefficient>,
    outputs: &mut [&mut [u8]],
) {
    // SAFETY: the caller's.
    unsafe {
        match outputs.len() {
            1 => some_rows::<M, 1, SUMS>(columns, outputs),
            2 => some_rows::<M, 2, SUMS>(columns, outputs),
            3 => some_rows::<M, 3, SUMS>(columns, outputs),
            4 => some_rows::<M, 4, SUMS>(columns, outputs),
            5 => some_rows::<M, 5, SUMS>(columns, outputs),
            _ => some_rows::<M, MAX_ROWS, SUMS>(columns, outputs),
        }
    }
}

/// All sources, each with the coefficients of all rows from the first one that is wanted.
struct Columns<'a, T> {
    coefficients: &'a [T],
    rows: usize,
    sources: &'a [&'a [u8]],
    len: usize,
}

#[inline(always)]
unsafe fn some_rows<M: Multiply, const N: usize, const SUMS: bool>(
    Columns { coefficients, rows, sources, len }: Columns<'_, M::Coefficient>,
    outputs: &mut [&mut [u8]],
) {
    assert_eq!(outputs.len(), N);
    let full = len / M::STEP;
    let steps = full + usize::from(!len.is_multiple_of(M::STEP));
    let prefetch = sources.len() > MANY_SOURCES;
    for step in 0..steps {
        let at = if step < full { step * M::STEP } else { len - M::STEP };
        // SAFETY: from `at` on there is a step in every slice; there are `rows` coefficients for each source.
        unsafe {
            let mut sums = [M::zero(); N];
            let mut column = coefficients.as_ptr();
            for source in sources {
                if prefetch {
                    M::prefetch(source.as_ptr().wrapping_add(at + AHEAD));
                }
                let source = M::load(source.as_ptr().add(at));
                if SUMS {
                    sums[0] = M::add_once(sums[0], &*column, source);
                }
                for row in usize::from(SUMS)..N {
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
