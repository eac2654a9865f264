//! Quarantine: moves what is corrupt out of the way, so that replication brings a good copy back.
//!
//! ```text
//! DEVICE/quarantined/objects[-N]/NAME[-UUID]      NAME is a hash dir, or a suffix that could not be listed
//! ```
//!
//! The suffix is invalidated first and durably: a crash before the move leaves the corrupt object in place, to be
//! found again; a crash after it, before it is on disk, the same. Nothing is ever deleted here.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use common::{Suffix, fs};
use rustix::io::Errno;

use super::DiskFileError;
use super::hashes::invalidate_suffixes;

/// Moves `from` (a hash dir, a suffix dir, or a file where one should be) into the quarantine of its device.
/// Returns where it is now.
pub fn quarantine_dir_renamer(device_path: &Path, from: &Path) -> Result<PathBuf, DiskFileError> {
    let broken = |what| DiskFileError::io(what, from, Errno::INVAL);
    let inside = from.strip_prefix(device_path).map_err(|_| broken("not on its device"))?;
    let datadir = inside.components().next().ok_or_else(|| broken("not below a datadir"))?;
    let name = from.file_name().ok_or_else(|| broken("no name to quarantine"))?;
    let parent = from.parent().ok_or_else(|| broken("no parent to quarantine from"))?;

    // The suffix dir is `from` itself or the directory above it.
    let suffix_dir = if name.len() == 3 { from } else { parent };
    let suffix = suffix_dir.file_name().and_then(|name| Suffix::parse(name.to_str()?));
    if let (Some(suffix), Some(partition_dir)) = (suffix, suffix_dir.parent()) {
        invalidate_suffixes(partition_dir, device_path, &[suffix])?;
    }

    let to_parent = device_path.join("quarantined").join(datadir);
    fs::mkdirs_below(device_path, &to_parent)
        .map_err(|err| DiskFileError::write("cannot make directory", &to_parent, err))?;
    let mut to = to_parent.join(name);
    // What was quarantined earlier under this name stays, even if it is a file or an empty directory.
    match fs::rename_noreplace(from, &to) {
        Ok(()) => return Ok(to),
        Err(err) if err.kind() == ErrorKind::AlreadyExists => {}
        Err(err) => return Err(DiskFileError::write("cannot quarantine", from, err)),
    }
    let mut unique = name.to_os_string();
    unique.push(format!("-{}", random_hex()));
    to.set_file_name(unique);
    fs::rename_noreplace(from, &to).map_err(|err| DiskFileError::write("cannot quarantine", from, err))?;
    Ok(to)
}

/// Quarantines `dir`; if even that fails, as with bad sectors under it, the suffix above.
pub(super) fn quarantine_dir_or_suffix(
    device_path: &Path,
    dir: &Path,
) -> Result<(PathBuf, PathBuf), DiskFileError> {
    match quarantine_dir_renamer(device_path, dir) {
        Ok(to) => Ok((dir.to_owned(), to)),
        Err(err) => {
            let Some(suffix_dir) = dir.parent() else { return Err(err) };
            quarantine_dir_renamer(device_path, suffix_dir).map(|to| (suffix_dir.to_owned(), to))
        }
    }
}

/// The log line of a quarantine that no request asked for.
pub(super) fn message(from: &Path, to: &Path, why: &str) -> String {
    format!("Quarantined {} to {} because {why}", from.display(), to.display())
}

/// 32 hexadecimal digits, unique without any coordination: for names only.
fn random_hex() -> String {
    // Each RandomState has keys of its own, seeded by the kernel.
    let word = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", word(), word())
}
