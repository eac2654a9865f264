//! One segment to fragments and back, with the code of a policy.
//!
//! Data fragment `j` is the `j`-th part of the segment, the last ones padded with zeros; so encoding computes parity only,
//! and copies of the segment no more than its end. Decoding hands out the data fragments that are there as they are,
//! and computes only data that is lost. What a set of lost fragments takes (the inverse of a matrix, in the form that the
//! kernel wants) is kept for the next segment.
//!
//! Any set of fragments that determines what is asked for is enough, and no more of them are used than needed: of
//! survivors that depend on one another, others are chosen. Fragments must agree on the lengths of the segment and of
//! the payload; one of another code is refused when something has to be computed from it. Whether fragments are of
//! the same object and timestamp is for the caller to know.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use common::buffers::{Buffer, Buffers};
use common::policy::PolicyKind;
use parking_lot::Mutex;

use crate::backend::{Backend, MAX_FRAGMENTS};
use crate::fragment::{Fragment, FragmentError, HEADER_LEN, Header};
use crate::kernels::{Kernel, Product};
use crate::matrix::Matrix;

/// Sets of lost fragments whose solution is kept.
const MAX_SOLUTIONS: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("no erasure code {ec_type} with {ndata} data and {nparity} parity fragments")]
    NoSuchCode { ec_type: String, ndata: usize, nparity: usize },
    #[error("the policy is not erasure coded")]
    NotErasure,
    #[error("invalid fragment: {0}")]
    Fragment(#[from] FragmentError),
    /// Its index, its backend or its length is not of this code, or it contradicts the others.
    #[error("fragment {0} does not fit")]
    Misfit(u32),
    #[error("not enough fragments")]
    NotEnough,
}

/// The code of a policy. A clone shares what is kept.
#[derive(Clone)]
pub struct Codec {
    shared: Arc<Shared>,
}

struct Shared {
    ndata: usize,
    nparity: usize,
    backend: Backend,
    kernel: Kernel,
    parity: Product,
    buffers: Buffers,
    solutions: Mutex<HashMap<Question, Arc<Solution>>>,
}

/// Fragments by their index, as bits.
type Indexes = u32;
const _: () = assert!(MAX_FRAGMENTS <= Indexes::BITS as usize);

#[derive(Copy, Clone, PartialEq, Eq, Hash)]
struct Question {
    there: Indexes,
    wanted: Indexes,
}

struct Solution {
    /// Rows of the generator that are used.
    sources: Vec<usize>,
    product: Product,
}

/// Fragments that have been checked: each payload at its index.
struct Survivors {
    payloads: Vec<Option<Bytes>>,
    there: Indexes,
    payload_len: usize,
    segment_len: u64,
    /// The first fragment that another code has written.
    foreign: Option<u32>,
}

impl Codec {
    pub fn new(ec_type: &str, ndata: usize, nparity: usize) -> Result<Codec, CodecError> {
        Self::with_kernel(ec_type, ndata, nparity, Kernel::best())
    }

    fn with_kernel(ec_type: &str, ndata: usize, nparity: usize, kernel: Kernel) -> Result<Codec, CodecError> {
        let backend = Backend::new(ec_type, ndata, nparity).ok_or_else(|| CodecError::NoSuchCode {
            ec_type: ec_type.to_owned(),
            ndata,
            nparity,
        })?;
        let packets = backend.packets;
        let rows: Vec<usize> = (ndata * packets..(ndata + nparity) * packets).collect();
        let parity = Product::new(kernel, backend.field, &backend.generator.pick(&rows));
        let (buffers, solutions) = (Buffers::default(), Mutex::default());
        Ok(Codec { shared: Arc::new(Shared { ndata, nparity, backend, kernel, parity, buffers, solutions }) })
    }

    /// The code of an erasure coded policy.
    pub fn of(kind: &PolicyKind) -> Result<Codec, CodecError> {
        match kind {
            PolicyKind::Erasure { ec_type, ndata, nparity, .. } => Self::new(ec_type, *ndata, *nparity),
            PolicyKind::Replication => Err(CodecError::NotErasure),
        }
    }

    pub fn ndata(&self) -> usize {
        self.shared.ndata
    }

    pub fn nparity(&self) -> usize {
        self.shared.nparity
    }

    fn payload_len(&self, segment_len: usize) -> usize {
        let word = self.shared.backend.word;
        segment_len.div_ceil(self.shared.ndata * word) * word
    }

    /// Bytes of each fragment of a segment, its header included. For a full segment this is Swift's `fragment_size`.
    pub fn fragment_len(&self, segment_len: usize) -> usize {
        HEADER_LEN + self.payload_len(segment_len)
    }

    /// Room for a segment or a fragment that is to come. Contents are whatever they were.
    pub fn buffer(&self, len: usize) -> Buffer {
        self.shared.buffers.take(len)
    }

    /// All fragments of a segment, in the order of their indexes, data first. Data fragments show parts of the segment.
    pub fn encode(&self, segment: &Bytes) -> Vec<Fragment> {
        let Shared { ndata, nparity, .. } = *self.shared;
        let len = self.payload_len(segment.len());
        let mut headers = self.shared.buffers.take((ndata + nparity) * HEADER_LEN);
        for (index, header) in headers.bytes_mut().as_chunks_mut().0.iter_mut().enumerate() {
            self.write_header(index, len, segment.len() as u64, header);
        }
        let headers = headers.freeze();

        // Of the data, what the segment ends in or does not reach is padded.
        let whole = segment.len().checked_div(len).unwrap_or(ndata).min(ndata);
        let mut padded = self.shared.buffers.take((ndata - whole) * len);
        let rest = &segment[whole * len..];
        padded.bytes_mut()[..rest.len()].copy_from_slice(rest);
        padded.bytes_mut()[rest.len()..].fill(0);
        let padded = padded.freeze();
        let data = (0..whole)
            .map(|j| segment.slice(j * len..(j + 1) * len))
            .chain((0..ndata - whole).map(|j| padded.slice(j * len..(j + 1) * len)));
        let mut payloads: Vec<Bytes> = data.collect();

        let mut parity = self.shared.buffers.take(nparity * len);
        if len > 0 {
            let sources: Vec<&[u8]> = payloads.iter().map(|p| &p[..]).collect();
            let mut outputs: Vec<&mut [u8]> = parity.bytes_mut().chunks_mut(len).collect();
            self.multiply(&self.shared.parity, &sources, &mut outputs);
        }
        let parity = parity.freeze();
        payloads.extend((0..nparity).map(|i| parity.slice(i * len..(i + 1) * len)));

        let header = |index| headers.slice(index * HEADER_LEN..(index + 1) * HEADER_LEN);
        let fragments = payloads.into_iter().enumerate();
        fragments.map(|(index, payload)| Fragment { header: header(index), payload }).collect()
    }

    /// The segment, in slices one after the other, of some of its fragments in any order.
    pub fn decode(&self, fragments: &[Bytes]) -> Result<Vec<Bytes>, CodecError> {
        let ndata = self.shared.ndata;
        let survivors = self.survivors(fragments)?;
        let len = survivors.payload_len;
        let mut lost = survivors.payloads[..ndata].iter();
        let lost: Vec<usize> = (0..ndata).filter(|_| lost.next().is_some_and(Option::is_none)).collect();
        let mut made = self.shared.buffers.take(lost.len() * len);
        if len > 0 {
            let mut outputs: Vec<&mut [u8]> = made.bytes_mut().chunks_mut(len).collect();
            self.compute(&survivors, &lost, &mut outputs)?;
        }
        let made = made.freeze();
        let mut made = (0..lost.len()).map(|i| made.slice(i * len..(i + 1) * len));

        // The check of the lengths has seen that this fits.
        let mut left = survivors.segment_len as usize;
        let mut slices = Vec::with_capacity(ndata);
        for payload in survivors.payloads.into_iter().take(ndata) {
            let slice = payload.or_else(|| made.next()).unwrap_or_default();
            let slice = slice.slice(..left.min(len));
            left -= slice.len();
            if !slice.is_empty() {
                slices.push(slice);
            }
        }
        Ok(slices)
    }

    /// One fragment, header and payload, of others.
    pub fn reconstruct(&self, fragments: &[Bytes], wanted: usize) -> Result<Bytes, CodecError> {
        if wanted >= self.shared.ndata + self.shared.nparity {
            return Err(CodecError::Misfit(wanted as u32));
        }
        let survivors = self.survivors(fragments)?;
        let len = survivors.payload_len;
        let mut made = self.shared.buffers.take(HEADER_LEN + len);
        let (header, payload) = made.bytes_mut().split_at_mut(HEADER_LEN);
        if let Some(header) = header.first_chunk_mut() {
            self.write_header(wanted, len, survivors.segment_len, header);
        }
        match &survivors.payloads[wanted] {
            Some(there) => payload.copy_from_slice(there),
            None if len > 0 => self.compute(&survivors, &[wanted], &mut [payload])?,
            None => {}
        }
        Ok(made.freeze())
    }

    /// Whether these fragments are enough to decode any segment.
    pub fn can_decode(&self, indexes: impl IntoIterator<Item = usize>) -> bool {
        let fragments = self.shared.ndata + self.shared.nparity;
        let there = indexes.into_iter().filter(|i| *i < fragments).fold(0, |there, i| there | 1 << i);
        let wanted = ((1u64 << self.shared.ndata) - 1) as Indexes & !there;
        wanted == 0 || self.solution(Question { there, wanted }).is_ok()
    }

    fn write_header(&self, index: usize, payload_len: usize, segment_len: u64, to: &mut [u8; HEADER_LEN]) {
        let Backend { id, version, .. } = self.shared.backend;
        Header::write(index as u32, payload_len as u32, segment_len, id, version, to);
    }

    /// Checks fragments and sorts them; of several with one index the first counts.
    fn survivors(&self, fragments: &[Bytes]) -> Result<Survivors, CodecError> {
        let Shared { ndata, nparity, ref backend, .. } = *self.shared;
        let first = Header::parse(fragments.first().ok_or(CodecError::NotEnough)?)?;
        let len = first.payload_len as usize;
        let mut survivors = Survivors {
            payloads: vec![None; ndata + nparity],
            there: 0,
            payload_len: len,
            segment_len: first.segment_len,
            foreign: None,
        };
        for fragment in fragments {
            let header = Header::parse(fragment)?;
            let index = header.index as usize;
            let fits = index < ndata + nparity
                && header.payload_len == first.payload_len
                && header.segment_len == first.segment_len
                && header.segment_len <= (ndata * len) as u64
                && len.is_multiple_of(backend.word)
                && fragment.len() == HEADER_LEN + len;
            if !fits {
                return Err(CodecError::Misfit(header.index));
            }
            // Of another version is fine, as for liberasurecode: no version of a backend ever changed its matrix.
            if header.backend != backend.id {
                survivors.foreign.get_or_insert(header.index);
            }
            survivors.there |= 1 << index;
            survivors.payloads[index].get_or_insert_with(|| fragment.slice(HEADER_LEN..));
        }
        Ok(survivors)
    }

    /// Computes payloads that are lost.
    fn compute(
        &self,
        survivors: &Survivors,
        lost: &[usize],
        outputs: &mut [&mut [u8]],
    ) -> Result<(), CodecError> {
        if lost.is_empty() {
            return Ok(());
        }
        if let Some(foreign) = survivors.foreign {
            return Err(CodecError::Misfit(foreign));
        }
        let wanted = lost.iter().fold(0, |wanted, i| wanted | 1 << i);
        let solution = self.solution(Question { there: survivors.there, wanted })?;
        let payload = |index: usize| survivors.payloads[index].as_deref().unwrap_or_default();
        let packets = self.shared.backend.packets;
        if packets == 1 {
            let sources: Vec<&[u8]> = solution.sources.iter().map(|row| payload(*row)).collect();
            solution.product.apply(&sources, outputs);
        } else {
            let word = self.shared.backend.word;
            in_packets(&solution.product, packets, word, outputs, |row, at, len| {
                &payload(solution.sources[row] / packets)[at + solution.sources[row] % packets * len..][..len]
            });
        }
        Ok(())
    }

    /// As [`Product::apply`], with whole fragments for rows and columns.
    fn multiply(&self, product: &Product, sources: &[&[u8]], outputs: &mut [&mut [u8]]) {
        let packets = self.shared.backend.packets;
        if packets == 1 {
            return product.apply(sources, outputs);
        }
        in_packets(product, packets, self.shared.backend.word, outputs, |row, at, len| {
            &sources[row / packets][at + row % packets * len..][..len]
        });
    }

    fn solution(&self, question: Question) -> Result<Arc<Solution>, CodecError> {
        if let Some(known) = self.shared.solutions.lock().get(&question) {
            return Ok(known.clone());
        }
        let solution = Arc::new(self.solve(question).ok_or(CodecError::NotEnough)?);
        let mut solutions = self.shared.solutions.lock();
        if solutions.len() >= MAX_SOLUTIONS {
            solutions.clear();
        }
        solutions.insert(question, solution.clone());
        Ok(solution)
    }

    fn solve(&self, question: Question) -> Option<Solution> {
        let Backend { field, packets, ref generator, .. } = self.shared.backend;
        let rows = |indexes: Indexes| -> Vec<usize> {
            (0..generator.rows).filter(|row| indexes >> (row / packets) & 1 == 1).collect()
        };
        let there = rows(question.there);
        let combination = generator.pick(&there).express(field, &generator.pick(&rows(question.wanted)))?;
        let used: Vec<usize> = (0..there.len())
            .filter(|column| (0..combination.rows).any(|row| combination.get(row, *column) != 0))
            .collect();
        let matrix =
            Matrix::from_fn(combination.rows, used.len(), |row, column| combination.get(row, used[column]));
        let sources = used.iter().map(|column| there[*column]).collect();
        Some(Solution { sources, product: Product::new(self.shared.kernel, field, &matrix) })
    }
}

/// Multiplies word by word, where a row of the matrix is a packet of each word. `source` is asked for the packet of a
/// column in the word at an offset, and how long it is.
fn in_packets<'a>(
    product: &Product,
    packets: usize,
    word: usize,
    outputs: &mut [&mut [u8]],
    source: impl Fn(usize, usize, usize) -> &'a [u8],
) {
    let len = word / packets;
    let words = outputs.first().map_or(0, |output| output.len() / word);
    for at in (0..words).map(|i| i * word) {
        let sources: Vec<&[u8]> = (0..product.columns()).map(|column| source(column, at, len)).collect();
        let mut parts: Vec<&mut [u8]> =
            outputs.iter_mut().flat_map(|output| output[at..at + word].chunks_mut(len)).collect();
        product.apply(&sources, &mut parts);
    }
}
