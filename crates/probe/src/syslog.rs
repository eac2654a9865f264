//! A syslog daemon of one's own: a datagram socket for `log_address`, and what was said to it.
//!
//! Servers log there as in production, so logging costs what it costs; tests look for errors in what was said.

use anyhow::{Context, Result};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub struct Syslog {
    pub path: PathBuf,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Syslog {
    /// Listens at `path` until the process ends.
    pub fn listen(path: &Path) -> Result<Syslog> {
        let socket = UnixDatagram::bind(path).with_context(|| format!("cannot bind {}", path.display()))?;
        let errors = Arc::new(Mutex::new(Vec::new()));
        let kept = errors.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(n) = socket.recv(&mut buffer) {
                let line = String::from_utf8_lossy(&buffer[..n]).into_owned();
                if is_error(&line)
                    && let Ok(mut errors) = kept.lock()
                {
                    errors.push(line);
                }
            }
        });
        Ok(Syslog { path: path.to_path_buf(), errors })
    }

    /// Lines of severity error or worse, and any that speak of quarantine.
    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().map(|e| e.clone()).unwrap_or_default()
    }
}

/// `<PRI>message`: the low three bits are the severity, 3 is an error. Daemons count "0 quarantines" in good times.
fn is_error(line: &str) -> bool {
    let priority =
        line.strip_prefix('<').and_then(|l| l.split('>').next()).and_then(|p| p.parse::<u32>().ok());
    priority.is_some_and(|p| p & 7 <= 3) || line.to_ascii_lowercase().contains("quarantined ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_quarantines_are_kept() {
        assert!(is_error("<131>object-server: ERROR with it"));
        assert!(!is_error("<134>object-server: 127.0.0.1 - - GET"));
        assert!(is_error("<132>object-server: Quarantined object"));
        assert!(!is_error("<134>object-updater: 0 failures, 0 quarantines, 0 unlinks"));
    }
}
