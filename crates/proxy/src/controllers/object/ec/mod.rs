//! Objects of an erasure coded policy.
//!
//! The object is cut into segments of `ec_object_segment_size`, the last one shorter. Each is encoded by itself into
//! `ec_num_data_fragments + ec_num_parity_fragments` fragments, and fragment `i` of every segment, one after the other, is
//! what one object server stores: a fragment archive. With `ec_duplication_factor` several servers store the same one. The
//! object's own length and ETag are in the metadata of each archive (`X-Object-Sysmeta-Ec-*`), which clients do not see.
//!
//! * [`put`]: encodes, and commits when enough servers have stored their archives;
//! * [`get`]: asks servers until there are enough archives of one timestamp; HEAD too;
//! * [`answers`]: what the servers have said, and which timestamp is best;
//! * [`ranges`]: ranges of the object as ranges of archives;
//! * [`archive`]: reads one archive, from another server when one fails;
//! * [`download`]: decodes what archives give.

pub mod answers;
pub mod archive;
pub mod download;
pub mod get;
pub mod put;
pub mod ranges;
#[cfg(test)]
mod tests;

use common::policy::{PolicyKind, StoragePolicy};
use ec::{Codec, CodecError};

/// An erasure coded policy with its code.
pub struct EcPolicy {
    pub codec: Codec,
    /// Bytes of a full segment.
    pub segment_size: u64,
    /// Bytes of each of its fragments.
    pub fragment_size: u64,
    pub duplication: usize,
    /// What the scheme is called in an object's metadata.
    pub description: String,
}

impl EcPolicy {
    /// `None` for a replicated policy.
    pub fn of(policy: &StoragePolicy) -> Result<Option<EcPolicy>, CodecError> {
        let PolicyKind::Erasure { ec_type, ndata, nparity, segment_size, duplication_factor } = &policy.kind
        else {
            return Ok(None);
        };
        let codec = Codec::of(&policy.kind)?;
        Ok(Some(EcPolicy {
            fragment_size: codec.fragment_len(*segment_size as usize) as u64,
            segment_size: *segment_size,
            duplication: *duplication_factor,
            description: format!("{ec_type} {ndata}+{nparity}"),
            codec,
        }))
    }

    pub fn ndata(&self) -> usize {
        self.codec.ndata()
    }

    /// Archives that differ.
    pub fn archives(&self) -> usize {
        self.codec.ndata() + self.codec.nparity()
    }

    /// Bytes of the fragments of a segment, of the object's length, that begins at an offset.
    pub fn fragment_len_at(&self, offset: u64, object_len: u64) -> u64 {
        let segment = object_len.saturating_sub(offset).min(self.segment_size);
        if segment == 0 { 0 } else { self.codec.fragment_len(segment as usize) as u64 }
    }

    /// Bytes of an archive of an object.
    pub fn archive_len(&self, object_len: u64) -> u64 {
        let full = object_len / self.segment_size;
        full * self.fragment_size + self.fragment_len_at(full * self.segment_size, object_len)
    }
}
