//! Erasure codes: how a segment of an object becomes fragments, of which some may be lost.
//!
//! The bytes are those of liberasurecode, as Swift writes them through PyECLib: a [`fragment`] is a header of 80 bytes
//! and a payload, and a fragment archive, which is what an object server stores, is the fragments of one index, one after
//! the other. Segments are coded independently of each other; the last one of an object is shorter, and so are its
//! fragments. What an archive is on disk, and who asks whom for it, is not known here.
//!
//! * [`codec`]: encode, decode and reconstruct one segment, with the code of a policy;
//! * [`fragment`]: the header;
//! * `backend`: the codes by their `ec_type`, as matrices;
//! * `matrix`, `gf`: linear algebra over finite fields;
//! * `kernels`: a matrix times megabytes, with the vector instructions that the CPU has.

mod backend;
pub mod codec;
pub mod fragment;
mod gf;
mod kernels;
mod matrix;

pub use codec::{Codec, CodecError};
pub use common::buffers::Buffer;
pub use fragment::{Fragment, HEADER_LEN};
