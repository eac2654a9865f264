//! What a Swift process does to be a good daemon: session, folder, umask, standard streams, systemd.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use common::config::{ConfigError, Section};
use nix::sys::signal::{SigSet, Signal};
use rustix::fs::Mode;

use crate::logs::Logger;

/// A session of our own, no folder kept busy, files readable by all. A leader of a group stays in its session (a shell
/// started it, and Ctrl-C is to reach it).
pub fn clean_up_daemon_hygiene() {
    // As in Swift: none of this failing is a reason not to serve.
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    rustix::process::umask(Mode::from_raw_mode(0o022));
}

/// While it lives, signals that a server acts on wait. They wait through an exec too, which is what this is for: the new
/// program ends the waiting by [`Hold::end`] when it can hear them. Only this thread is held; in a process with others one
/// of those may take a signal.
pub struct Hold(());

impl Hold {
    pub fn begin() -> io::Result<Hold> {
        acted_on().thread_block()?;
        Ok(Hold(()))
    }

    /// Ends a hold of this program or of the one before the exec.
    pub fn end() -> io::Result<()> {
        Ok(acted_on().thread_unblock()?)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Fails for no set of real signals.
        let _ = Self::end();
    }
}

fn acted_on() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGCHLD].into_iter().collect()
}

/// Whether a person watches: stderr is a terminal.
pub fn is_interactive() -> bool {
    rustix::termios::isatty(rustix::stdio::stderr())
}

/// Closes the standard streams to /dev/null, by which `swift-init` knows that the service is up. With `keep_stderr`
/// (logs go there) stderr stays.
pub fn capture_stdio(keep_stderr: bool) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    if !keep_stderr {
        rustix::stdio::dup2_stderr(&null)?;
    }
    Ok(())
}

/// Tells systemd (`NOTIFY_SOCKET`) and `swift-reload` (an abstract socket named after our pid) of `READY=1`,
/// `RELOADING=1` or `STOPPING=1`.
pub fn systemd_notify(logger: &Logger, message: &str) {
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let own = format!("swift-notifications\0{}", std::process::id());
    if let Ok(address) = SocketAddr::from_abstract_name(own) {
        // Almost always nobody listens.
        let _ = socket.send_to_addr(message.as_bytes(), &address);
    }
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| socket.send_to_addr(message.as_bytes(), &address));
    if let Err(err) = sent {
        logger.debug(format_args!("Systemd notification failed: {err}"));
    }
}

/// A user of /etc/passwd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub home: String,
}

/// Looks `name` up in the text of /etc/passwd. Users of other directories are not found.
pub fn find_user(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields[..] {
            [user, _, uid, gid, _, home, ..] if user == name => {
                Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.to_owned() })
            }
            _ => None,
        }
    })
}

/// Whom a program that root starts becomes: `user`, which is `swift` by default as with Swift. Where that default does
/// not exist the program stays root (see [`warn_of_root`]), and so it does when it is to be root or was not started by root.
pub fn user_to_become(section: &Section) -> Result<Option<User>, ConfigError> {
    let configured = section.get("user");
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    match (find_user(&passwd, configured.unwrap_or("swift")), configured) {
        (Some(user), _) => Ok(Some(user).filter(|user| user.uid != 0)),
        (None, Some(_)) => Err(section.error("user", "expected a user of /etc/passwd")),
        (None, None) => Ok(None),
    }
}

/// Says that a program serves as root though nobody has asked for that.
pub fn warn_of_root(section: &Section, logger: &Logger) {
    if rustix::process::geteuid().is_root() && section.get("user").is_none() {
        logger.warning(
            "Started by root and there is no user \"swift\": going on as root; set user to say who to be",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nswift:x:160:161::/var/lib/swift:/bin/false\n";
        let swift = User { uid: 160, gid: 161, home: "/var/lib/swift".to_owned() };
        assert_eq!(find_user(passwd, "swift"), Some(swift));
        assert_eq!(find_user(passwd, "broken"), None);
    }

    #[test]
    fn whoever_listens_for_our_pid_is_told() {
        let name = format!("swift-notifications\0{}", std::process::id());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        systemd_notify(&Logger::memory().0, "READY=1");
        let mut buffer = [0; 32];
        let n = listener.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"READY=1");
    }
}
