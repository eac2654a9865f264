//! Where databases are: `DEVICES/DEVICE/{accounts,containers}/PARTITION/SUFFIX/HASH/*.db`.

use std::path::{Path, PathBuf};

/// The names in a directory.
pub fn names_in(dir: &Path) -> std::io::Result<Vec<String>> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// The databases of a partition: `PARTITION/SUFFIX/HASH/*.db`.
pub fn database_files(partition: &Path) -> Vec<PathBuf> {
    let below = |dir: PathBuf| {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let hashes = below(partition.to_owned()).into_iter().flat_map(below);
    hashes
        .flat_map(below)
        .filter(|path| path.extension().is_some_and(|extension| extension == "db"))
        .collect()
}
