//! Reading and writing a file past the page cache.
//!
//! For what is to leave the page cache as soon as it has been read or written: the disk takes it from our own memory, or fills that
//! (`O_DIRECT`), so that no pages are found for it, filled, copied and dropped. What is in the page cache and not on the disk yet is
//! written before it is read. Memory, offset and length must be aligned, which is of no interest to anybody else.

use std::io;
use std::os::fd::AsFd;
use std::sync::LazyLock;

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, pread, pwrite};

use crate::buffers::{Buffer, Buffers};

/// What any disk is content with.
const ALIGNMENT: usize = 4096;
/// What is written at a time.
const WRITTEN: usize = 1 << 20;

static BUFFERS: LazyLock<Buffers> = LazyLock::new(Buffers::default);

/// The first `len` bytes of a file. `None` if its file system can't do it, or if it fails: reading as usual tells why.
pub fn read_direct(file: impl AsFd, len: usize) -> Option<Bytes> {
    let flags = fcntl_getfl(&file).ok()?;
    fcntl_setfl(&file, flags | OFlags::DIRECT).ok()?;
    let aligned = len.next_multiple_of(ALIGNMENT);
    let mut buffer = BUFFERS.take(aligned + ALIGNMENT);
    let data = buffer.bytes_mut();
    let start = data.as_ptr().align_offset(ALIGNMENT);
    // It ends at the end of the file, wherever that is.
    let read = pread(&file, &mut data[start..start + aligned], 0);
    // Other reads are not aligned.
    fcntl_setfl(&file, flags).ok()?;
    read.is_ok_and(|read| read >= len).then(|| buffer.freeze().slice(start..start + len))
}

/// Appends to a file from its start.
pub struct DirectWrites {
    buffer: Buffer,
    /// Where in it the aligned part starts, and how much of that is filled.
    start: usize,
    filled: usize,
    /// Where in the file that belongs.
    offset: u64,
    /// Of the file, when it is written as usual.
    flags: OFlags,
}

impl DirectWrites {
    /// `None` if its file system can't do it.
    pub fn begin(file: impl AsFd) -> Option<Self> {
        let flags = fcntl_getfl(&file).ok()?;
        fcntl_setfl(&file, flags | OFlags::DIRECT).ok()?;
        let mut buffer = BUFFERS.take(WRITTEN + ALIGNMENT);
        let start = buffer.bytes_mut().as_ptr().align_offset(ALIGNMENT);
        Some(Self { buffer, start, filled: 0, offset: 0, flags })
    }

    /// Appends; what does not fill the memory is kept there.
    pub fn write(&mut self, file: impl AsFd, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let (taken, rest) = data.split_at(data.len().min(WRITTEN - self.filled));
            let at = self.start + self.filled;
            self.buffer.bytes_mut()[at..at + taken.len()].copy_from_slice(taken);
            self.filled += taken.len();
            data = rest;
            if self.filled == WRITTEN {
                self.flush(&file, WRITTEN)?;
            }
        }
        Ok(())
    }

    /// Writes what is kept; the file is as any other then. What has turned out to be short does not wait for the disk here.
    pub fn finish(mut self, file: impl AsFd) -> io::Result<()> {
        if self.offset > 0 {
            let aligned = self.filled - self.filled % ALIGNMENT;
            self.flush(&file, aligned)?;
        }
        fcntl_setfl(&file, self.flags)?;
        self.flush(&file, self.filled)
    }

    /// Writes the first `len` bytes of what is kept.
    fn flush(&mut self, file: impl AsFd, len: usize) -> io::Result<()> {
        let kept = self.start..self.start + self.filled;
        let kept = &mut self.buffer.bytes_mut()[kept];
        let mut written = 0;
        while written < len {
            match pwrite(&file, &kept[written..len], self.offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(wrote) => {
                    written += wrote;
                    self.offset += wrote as u64;
                }
                Err(Errno::INTR) => {}
                // A disk that wants more than that is written as usual; and so is the rest of what was cut.
                Err(Errno::INVAL) if fcntl_getfl(&file)?.contains(OFlags::DIRECT) => {
                    fcntl_setfl(&file, self.flags)?;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        kept.copy_within(len.., 0);
        self.filled -= len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_file_is_read_to_its_end_directly_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        for len in [1, 4095, 4096, 4097, 300_000] {
            let path = dir.path().join("file");
            let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            std::fs::write(&path, &data).unwrap();
            let mut file = std::fs::File::open(&path).unwrap();
            let flags = fcntl_getfl(&file).unwrap();
            // There is no such byte.
            assert_eq!(read_direct(&file, len + 1), None);
            let direct = read_direct(&file, len);
            assert!(direct.is_none_or(|direct| direct == data), "{len}");
            assert_eq!(fcntl_getfl(&file).unwrap(), flags);
            let mut as_usual = Vec::new();
            file.read_to_end(&mut as_usual).unwrap();
            assert_eq!(as_usual, data);
        }
    }

    #[test]
    fn a_file_is_written_whole_directly_or_not() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1, 4095, 4096, 4097, WRITTEN - 1, WRITTEN, WRITTEN + 1, 3 * WRITTEN + 5000] {
            for piece in [len.max(1), 100_000, 65536] {
                let path = dir.path().join("file");
                let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
                let file = std::fs::File::create(&path).unwrap();
                let flags = fcntl_getfl(&file).unwrap();
                let Some(mut writes) = DirectWrites::begin(&file) else { continue };
                data.chunks(piece).for_each(|piece| writes.write(&file, piece).unwrap());
                writes.finish(&file).unwrap();
                assert_eq!(fcntl_getfl(&file).unwrap(), flags);
                assert!(std::fs::read(&path).unwrap() == data, "{len} in pieces of {piece}");
            }
        }
    }
}
