//! Listing a directory with as few system calls and allocations as possible: the names lie in one buffer, which a
//! walk over many hash dirs uses again and again.

use std::ffi::CStr;
use std::mem::MaybeUninit;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::Errno;
use rustix::path::Arg;

/// A hash dir's names fit many times; a partition's 4096 suffixes take a dozen rounds.
const GETDENTS_BUFFER: usize = 8 * 1024;

/// Names without `.` and `..`.
#[derive(Default)]
pub struct Names {
    /// Each name with its closing NUL.
    bytes: Vec<u8>,
    spans: Vec<(u32, u32)>,
}

impl Names {
    /// Lists `dir`, which must have been opened just before: the read starts where its position stands.
    pub fn read(&mut self, dir: impl AsFd) -> Result<(), Errno> {
        self.clear();
        let mut buffer = [MaybeUninit::uninit(); GETDENTS_BUFFER];
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            self.push(entry?.file_name());
        }
        Ok(())
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }

    fn push(&mut self, name: &CStr) {
        let name = name.to_bytes_with_nul();
        if name == b".\0" || name == b"..\0" {
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.spans.push((start as u32, name.len() as u32));
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn get(&self, index: usize) -> &[u8] {
        let name = self.with_nul(index);
        &name[..name.len() - 1]
    }

    pub fn c_str(&self, index: usize) -> &CStr {
        CStr::from_bytes_with_nul(self.with_nul(index)).expect("each name was pushed as one CStr")
    }

    /// For log lines and paths.
    pub fn lossy(&self, index: usize) -> String {
        String::from_utf8_lossy(self.get(index)).into_owned()
    }

    fn with_nul(&self, index: usize) -> &[u8] {
        let (start, len) = self.spans[index];
        &self.bytes[start as usize..(start + len) as usize]
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.get(index))
    }

    pub fn sort(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.spans.sort_unstable_by_key(|&(start, len)| &bytes[start as usize..(start + len) as usize]);
        self.bytes = bytes;
    }

    /// Newest first, as far as names tell: the order in which Swift looks at a hash dir.
    pub fn sort_descending(&mut self) {
        if self.spans.len() > 1 {
            self.sort();
            self.spans.reverse();
        }
    }
}

/// Opens a directory for listing; `ENOTDIR` if there is something else.
pub fn open_dir(parent: impl AsFd, path: impl Arg) -> Result<OwnedFd, Errno> {
    open_unnoticed(parent, path, OFlags::DIRECTORY)
}

/// Opens for reading without a trace in the access time, which would cost a transaction of the file system for the first
/// read after each change.
pub fn open_unnoticed(parent: impl AsFd, path: impl Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    path.into_with_c_str(|path| match openat(&parent, path, flags | OFlags::NOATIME, Mode::empty()) {
        // It is somebody else's.
        Err(Errno::PERM) => openat(&parent, path, flags, Mode::empty()),
        opened => opened,
    })
}

/// The names in the directory at `path`.
pub fn list_dir(path: impl Arg) -> Result<Names, Errno> {
    let mut names = Names::default();
    names.read(open_dir(CWD, path)?)?;
    Ok(names)
}
