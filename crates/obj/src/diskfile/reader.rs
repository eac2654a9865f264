//! Reading an object's data, piece by piece.
//!
//! A reader that is read without gaps from offset 0 to the end computes the MD5 on the way; when it is closed, an
//! object whose length or MD5 is not that of its metadata goes to quarantine. Ranges are not checked. The bytes have
//! been handed out by then, as Swift does: the length of the response was promised with its head. The headers of an
//! archive's fragments are looked at before the bytes are handed out.
//!
//! What has been read is dropped from the page cache, unless it is small or options keep it there. What is read at once does not come
//! there.

use bytes::Bytes;
use common::digest::Md5Stream;
use common::fs::{drop_cache, read_direct};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::fragment::HeaderCheck;
use super::{DiskFileError, OpenDiskFile, SMALL_OBJECT};

/// Data that has been read is dropped from the page cache in steps of this size.
const DROP_CACHE_WINDOW: u64 = 1024 * 1024;

#[derive(Copy, Clone, Debug)]
pub struct ReaderOptions {
    /// Leave the data in the page cache if the object is not larger than keep_cache_size.
    pub keep_cache: bool,
    /// Check the MD5 of a full read. Swift: `etag_validate_frac`; the caller throws the dice.
    pub verify_etag: bool,
    /// Compute the MD5 when reading ends, together with those of others that are being read.
    pub patient: bool,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        ReaderOptions { keep_cache: false, verify_etag: true, patient: false }
    }
}

/// Closed by [`Reader::close`]; dropping it checks as well, but tells nobody.
pub struct Reader {
    opened: OpenDiskFile,
    keep_cache: bool,
    /// Running MD5 while reading has gone without gaps from the start.
    md5: Option<Md5Stream>,
    /// Of an EC policy, while reading has gone without gaps from the start.
    headers: Option<HeaderCheck>,
    /// End of what has been read from the start without gaps; `None` once there was a gap.
    contiguous: Option<u64>,
    dropped_cache: u64,
    reached_end: bool,
    closed: bool,
}

impl Reader {
    pub(super) fn new(opened: OpenDiskFile, options: ReaderOptions) -> Self {
        let conf = opened.diskfile.manager().conf();
        // Swift drops small objects as well; reading a page again from the disk costs more than it takes up.
        let keep_cache = match options.keep_cache {
            true => opened.content_length() < conf.keep_cache_size,
            false => opened.content_length() <= SMALL_OBJECT,
        };
        let reached_end = opened.content_length() == 0;
        let patience = if options.patient { opened.content_length() as usize } else { 0 };
        let md5 = options.verify_etag.then(|| Md5Stream::patient(patience));
        let headers = opened.diskfile.manager().fragment_len().map(HeaderCheck::new);
        Reader {
            opened,
            keep_cache,
            md5,
            headers,
            contiguous: Some(0),
            dropped_cache: 0,
            reached_end,
            closed: false,
        }
    }

    pub fn opened(&self) -> &OpenDiskFile {
        &self.opened
    }

    pub fn content_length(&self) -> u64 {
        self.opened.content_length()
    }

    /// Reads up to disk_chunk_size bytes from `offset`, but not beyond `end`; nothing if there is nothing more.
    pub fn read_chunk(&mut self, offset: u64, end: u64) -> Result<Bytes, DiskFileError> {
        let chunk_size = self.opened.diskfile.manager().conf().disk_chunk_size.max(1) as u64;
        let wanted = end.min(self.content_length()).saturating_sub(offset).min(chunk_size);
        self.read(offset, wanted as usize)
    }

    /// Reads so many bytes from `offset`; fewer at the end of the file.
    pub fn read(&mut self, offset: u64, wanted: usize) -> Result<Bytes, DiskFileError> {
        let is_all = offset == 0 && wanted as u64 == self.content_length();
        if is_all
            && !self.keep_cache
            && let Some(data) = read_direct(&self.opened.file, wanted)
        {
            self.account_for(offset, &data, false)?;
            return Ok(data);
        }
        let mut data = Vec::with_capacity(wanted);
        while data.len() < wanted {
            let at = offset + data.len() as u64;
            match rustix::io::pread(&self.opened.file, spare_capacity(&mut data), at) {
                Ok(0) => break,
                Ok(_) => {}
                Err(Errno::INTR) => {}
                Err(Errno::IO) => {
                    self.closed = true;
                    return Err(self
                        .opened
                        .diskfile
                        .quarantine(&self.opened.data_file, Errno::IO.to_string()));
                }
                Err(errno) => return Err(DiskFileError::io("cannot read", &self.opened.data_file, errno)),
            }
        }
        // There may be room for more than was asked for.
        data.truncate(wanted);
        let data = Bytes::from(data);
        self.account_for(offset, &data, data.len() < wanted)?;
        self.drop_cache(offset, offset + data.len() as u64);
        Ok(data)
    }

    fn account_for(&mut self, offset: u64, data: &Bytes, file_ended: bool) -> Result<(), DiskFileError> {
        let end = offset + data.len() as u64;
        match self.contiguous {
            Some(contiguous) if contiguous == offset => {
                if let Some(md5) = self.md5.as_mut().filter(|_| !data.is_empty()) {
                    md5.update(data.clone());
                }
                self.contiguous = Some(end);
                if let Some(Err(bad)) = self.headers.as_mut().map(|headers| headers.update(data)) {
                    self.closed = true;
                    return Err(self.opened.diskfile.quarantine(&self.opened.data_file, bad.reason()));
                }
            }
            _ => self.contiguous = None,
        }
        self.reached_end |= end >= self.content_length() || file_ended;
        Ok(())
    }

    /// Of what has been read up to `end`, the last time from `offset`.
    fn drop_cache(&mut self, offset: u64, end: u64) {
        if !self.keep_cache
            && (end.saturating_sub(self.dropped_cache) > DROP_CACHE_WINDOW || self.reached_end)
        {
            let from = self.dropped_cache.min(offset);
            drop_cache(&self.opened.file, from, end - from);
            self.dropped_cache = end;
        }
    }

    /// Ends reading. The reason if the object has been found corrupt and quarantined.
    pub fn close(mut self) -> Option<String> {
        self.check()
    }

    /// Checks what has been read, if that was everything from the start to the end; reading can go on. As
    /// [`Reader::close`] otherwise.
    pub fn check(&mut self) -> Option<String> {
        if std::mem::replace(&mut self.closed, true) {
            return None;
        }
        let bytes_read = self.contiguous.filter(|_| self.reached_end)?;
        let md5 = self.md5.take().map(|md5| md5.hexdigest());
        let cut = || self.headers.as_ref()?.finish().err().map(|bad| bad.reason());
        let reason = self.opened.verdict(bytes_read, md5).or_else(cut)?;
        match self.opened.diskfile.quarantine(&self.opened.data_file, reason) {
            DiskFileError::Quarantined(reason) => Some(reason),
            err => {
                let data_file = self.opened.data_file.display();
                self.opened
                    .diskfile
                    .logger
                    .error(format_args!("ERROR DiskFile {data_file} close failure: {err}"));
                None
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.check();
    }
}
