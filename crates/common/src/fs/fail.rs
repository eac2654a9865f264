//! Fail points: named places where a test can stop the process or make a step fail.
//!
//! A point is named after the step that it stands before: `fs.link`, `put.before_commit`. It costs one relaxed load
//! while nothing is armed. Armed from a test (`arm` for the whole process, `arm_thread` for the calling thread), or from
//! the environment: `MARTLET_FAIL_POINT=put.before_link=kill,fs.fsync=err:ENOSPC@3` kills at the first and fails the
//! third `fs.fsync`; `sleep:MS` delays. Which points a process passes, `MARTLET_FAIL_JOURNAL` tells (`journal.rs`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::journal;

/// What happens at an armed point.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL: no destructor runs, nothing is flushed.
    Kill,
    Error(Errno),
    Sleep(Duration),
}

#[derive(Copy, Clone, Debug)]
struct Armed {
    action: Action,
    /// Passes before the action is taken; then it is taken every time.
    after: usize,
    fired: bool,
}

impl Armed {
    fn new(action: Action, after: usize) -> Self {
        Self { action, after, fired: false }
    }
}

/// Points armed anywhere, in the process or in a thread; and one for a journal.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn process_points() -> &'static Mutex<HashMap<String, Armed>> {
    static POINTS: OnceLock<Mutex<HashMap<String, Armed>>> = OnceLock::new();
    POINTS.get_or_init(Mutex::default)
}

thread_local! {
    static THREAD_POINTS: RefCell<HashMap<String, Armed>> = RefCell::default();
}

/// Disarms its point when it is dropped.
#[must_use = "the point is disarmed when this is dropped"]
pub struct Guard {
    name: String,
    of_thread: bool,
}

impl Guard {
    /// Whether the action has been taken.
    pub fn has_fired(&self) -> bool {
        let fired = |armed: Option<&Armed>| armed.is_some_and(|armed| armed.fired);
        if self.of_thread {
            THREAD_POINTS.with_borrow(|points| fired(points.get(&self.name)))
        } else {
            fired(process_points().lock().get(&self.name))
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let removed = if self.of_thread {
            THREAD_POINTS.with_borrow_mut(|points| points.remove(&self.name))
        } else {
            process_points().lock().remove(&self.name)
        };
        if removed.is_some() {
            COUNT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Arms a point for every thread of the process.
pub fn arm(name: &str, action: Action) -> Guard {
    arm_after(name, action, 0)
}

/// Arms a point; the first `after` passes go through.
pub fn arm_after(name: &str, action: Action, after: usize) -> Guard {
    insert(name, Armed::new(action, after));
    Guard { name: name.to_owned(), of_thread: false }
}

/// Arms a point for the calling thread alone.
pub fn arm_thread(name: &str, action: Action) -> Guard {
    arm_thread_after(name, action, 0)
}

/// The same; the first `after` passes go through.
pub fn arm_thread_after(name: &str, action: Action, after: usize) -> Guard {
    let previous = THREAD_POINTS.with_borrow_mut(|p| p.insert(name.to_owned(), Armed::new(action, after)));
    if previous.is_none() {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
    Guard { name: name.to_owned(), of_thread: true }
}

fn insert(name: &str, armed: Armed) {
    if process_points().lock().insert(name.to_owned(), armed).is_none() {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

/// Arms the points that `MARTLET_FAIL_POINT` names, and keeps the journal that `MARTLET_FAIL_JOURNAL` asks for; called once
/// when a program starts.
pub fn arm_from_env() -> Result<(), String> {
    if let Ok(folder) = std::env::var("MARTLET_FAIL_JOURNAL") {
        journal::keep(folder.as_ref()).map_err(|err| format!("MARTLET_FAIL_JOURNAL: {folder}: {err}"))?;
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
    match std::env::var("MARTLET_FAIL_POINT") {
        Ok(spec) => arm_from_spec(&spec),
        Err(_) => Ok(()),
    }
}

fn arm_from_spec(spec: &str) -> Result<(), String> {
    for point in spec.split(',').filter(|p| !p.is_empty()) {
        let bad =
            || format!("MARTLET_FAIL_POINT: {point}: expected NAME=kill, NAME=err:ERRNO or NAME=sleep:MS");
        let (name, action) = point.split_once('=').ok_or_else(bad)?;
        let (action, nth) = match action.split_once('@') {
            Some((action, nth)) => (action, nth.parse::<usize>().map_err(|_| bad())?),
            None => (action, 1),
        };
        let action = match action.split_once(':') {
            None if action == "kill" => Action::Kill,
            Some(("err", errno)) => Action::Error(parse_errno(errno).ok_or_else(bad)?),
            Some(("sleep", ms)) => Action::Sleep(Duration::from_millis(ms.parse().map_err(|_| bad())?)),
            _ => return Err(bad()),
        };
        insert(name, Armed::new(action, nth.saturating_sub(1)));
    }
    Ok(())
}

fn parse_errno(name: &str) -> Option<Errno> {
    Some(match name {
        "ENOSPC" => Errno::NOSPC,
        "EDQUOT" => Errno::DQUOT,
        "EIO" => Errno::IO,
        "EROFS" => Errno::ROFS,
        "EACCES" => Errno::ACCESS,
        "ENOENT" => Errno::NOENT,
        "ENODATA" => Errno::NODATA,
        "EMFILE" => Errno::MFILE,
        "ENOTSUP" => Errno::NOTSUP,
        _ => return None,
    })
}

/// Passes the point `name`.
#[inline]
pub fn hit(name: &'static str) -> io::Result<()> {
    if COUNT.load(Ordering::Relaxed) == 0 { Ok(()) } else { hit_armed(name) }
}

#[cold]
fn hit_armed(name: &str) -> io::Result<()> {
    journal::passed(name)?;
    let pass = |armed: Option<&mut Armed>| -> Option<Action> {
        let armed = armed?;
        if armed.after > 0 {
            armed.after -= 1;
            return None;
        }
        armed.fired = true;
        Some(armed.action)
    };
    let action = THREAD_POINTS
        .with_borrow_mut(|points| pass(points.get_mut(name)))
        .or_else(|| pass(process_points().lock().get_mut(name)));
    match action {
        None => Ok(()),
        Some(Action::Error(errno)) => Err(errno.into()),
        Some(Action::Sleep(time)) => {
            std::thread::sleep(time);
            Ok(())
        }
        Some(Action::Kill) => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal is on its way; nothing may happen after this point.
            loop {
                std::thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_armed_point_fails_until_it_is_disarmed() {
        assert!(hit("test.a").is_ok());
        let guard = arm_after("test.a", Action::Error(Errno::NOSPC), 1);
        assert!(hit("test.a").is_ok());
        assert_eq!(hit("test.a").unwrap_err().raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
        assert!(hit("test.b").is_ok());
        assert!(guard.has_fired());
        drop(guard);
        assert!(hit("test.a").is_ok());
    }

    #[test]
    fn a_point_of_a_thread_is_not_hit_by_others() {
        let guard = arm_thread_after("test.c", Action::Error(Errno::IO), 1);
        assert!(hit("test.c").is_ok() && !guard.has_fired());
        assert!(hit("test.c").is_err() && guard.has_fired());
        std::thread::spawn(|| assert!(hit("test.c").is_ok())).join().unwrap();
    }

    #[test]
    fn the_environment_is_read_or_refused() {
        arm_from_spec("test.d=err:EIO@2,test.e=sleep:1").unwrap();
        assert!(hit("test.d").is_ok());
        assert!(hit("test.d").is_err());
        assert!(hit("test.e").is_ok());
        for bad in ["x", "x=die", "x=err:EWHAT", "x=kill@n", "x=sleep:long"] {
            assert!(arm_from_spec(bad).unwrap_err().starts_with("MARTLET_FAIL_POINT: x"), "{bad}");
        }
        drop(Guard { name: "test.d".into(), of_thread: false });
        drop(Guard { name: "test.e".into(), of_thread: false });
    }
}
