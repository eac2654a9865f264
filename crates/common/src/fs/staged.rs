//! Work that stops where its changes have to be on disk before it may go on.
//!
//! ```text
//! PUT    write the file | link it | unlink what it supersedes, answer
//!                       ^ the file is durable
//!                                 ^ its name is durable
//! ```
//!
//! Who has many such works at hand takes each up to where it stops, makes all of that durable at once and goes on with each
//! ([`sync_together`]): no thread waits for another's sync. Who has one does it from end to end ([`Step::finish`]). The order of
//! what a work does is the same either way.

use std::io;

use super::filesystem_sync::{self, Since};

/// How far a work has come.
pub enum Step<T> {
    Done(T),
    /// It has stopped.
    Waits(Box<dyn Staged<T>>),
}

/// A work that has stopped. Dropped, it is given up: what it has made visible stays, the rest goes.
pub trait Staged<T>: Send {
    /// For a sync of the whole file system.
    fn since(&self) -> Since<'_>;

    /// How many writes must wait for their syncs for one `syncfs` to stand for all; 0: never.
    fn together(&self) -> usize;

    /// The syncs that it waits for, and nothing else.
    fn sync(&self) -> io::Result<()>;

    /// Goes on, now that it is known how the syncs ended.
    fn go_on(self: Box<Self>, synced: io::Result<()>) -> Step<T>;
}

impl<T: 'static> Step<T> {
    pub fn waits(work: impl Staged<T> + 'static) -> Self {
        Step::Waits(Box::new(work))
    }

    /// What comes of it when nobody else's works are waited for.
    pub fn finish(mut self) -> T {
        loop {
            match self {
                Step::Done(value) => return value,
                Step::Waits(work) => {
                    let synced = sync_together(std::slice::from_ref(&work)).pop();
                    self = work.go_on(synced.unwrap_or(Ok(())));
                }
            }
        }
    }

    /// The work with something after it.
    pub fn then<U: 'static>(self, next: impl FnOnce(T) -> Step<U> + Send + 'static) -> Step<U> {
        match self {
            Step::Done(value) => next(value),
            Step::Waits(work) => Step::waits(Then { work, next }),
        }
    }

    pub fn map<U: 'static>(self, next: impl FnOnce(T) -> U + Send + 'static) -> Step<U> {
        self.then(|value| Step::Done(next(value)))
    }
}

impl<T: 'static, E: 'static> Step<Result<T, E>> {
    /// What comes after it if it succeeds.
    pub fn and_then<U: 'static, F: From<E> + 'static>(
        self,
        next: impl FnOnce(T) -> Step<Result<U, F>> + Send + 'static,
    ) -> Step<Result<U, F>> {
        self.then(|result| match result {
            Ok(value) => next(value),
            Err(err) => Step::Done(Err(err.into())),
        })
    }
}

struct Then<T, F> {
    work: Box<dyn Staged<T>>,
    next: F,
}

impl<T: 'static, U: 'static, F: FnOnce(T) -> Step<U> + Send + 'static> Staged<U> for Then<T, F> {
    fn since(&self) -> Since<'_> {
        self.work.since()
    }

    fn together(&self) -> usize {
        self.work.together()
    }

    fn sync(&self) -> io::Result<()> {
        self.work.sync()
    }

    fn go_on(self: Box<Self>, synced: io::Result<()>) -> Step<U> {
        let Then { work, next } = *self;
        work.go_on(synced).then(next)
    }
}

/// Makes durable what each of these works waits for, all on one file system, and tells how that ended for each.
pub fn sync_together<T>(works: &[Box<dyn Staged<T>>]) -> Vec<io::Result<()>> {
    let Some(oldest) = works.iter().map(|work| work.since()).min_by_key(|since| since.opened) else {
        return Vec::new();
    };
    let together = works.iter().map(|work| work.together()).min().unwrap_or(0);
    let mut results = Vec::new();
    let own = || {
        results = works.iter().map(|work| work.sync()).collect();
        Ok(())
    };
    let synced = filesystem_sync::sync(oldest, works.len(), together, own);
    let code = |err: io::Error| err.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error());
    match synced.map_err(code) {
        Ok(()) => results.resize_with(works.len(), || Ok(())),
        Err(code) => results = works.iter().map(|_| Err(io::Error::from_raw_os_error(code))).collect(),
    }
    results
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Instant;

    use super::*;

    /// Counts up at each stage, `left` of them; tells how its syncs ended.
    struct Counter {
        file: File,
        opened: Instant,
        together: usize,
        left: usize,
        seen: Vec<&'static str>,
        fails: bool,
    }

    impl Counter {
        fn new(left: usize, together: usize) -> Self {
            let (file, opened) = (tempfile::tempfile().unwrap(), Instant::now());
            Counter { file, opened, together, left, seen: Vec::new(), fails: false }
        }
    }

    impl Staged<Vec<&'static str>> for Counter {
        fn since(&self) -> Since<'_> {
            Since { file: std::os::fd::AsFd::as_fd(&self.file), opened: self.opened }
        }

        fn together(&self) -> usize {
            self.together
        }

        fn sync(&self) -> io::Result<()> {
            if self.fails { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
        }

        fn go_on(mut self: Box<Self>, synced: io::Result<()>) -> Step<Vec<&'static str>> {
            self.seen.push(if synced.is_ok() { "durable" } else { "lost" });
            self.left -= 1;
            if self.left == 0 || synced.is_err() { Step::Done(self.seen) } else { Step::Waits(self) }
        }
    }

    #[test]
    fn a_work_goes_from_stage_to_stage_and_on_to_what_comes_after_it() {
        let step = Step::waits(Counter::new(2, 0)).map(|seen| seen.len());
        let step = step.then(|stages| Step::waits(Counter::new(stages + 1, 3)));
        assert_eq!(step.finish(), ["durable"; 3]);
    }

    #[test]
    fn each_learns_how_its_own_syncs_ended() {
        let failing = Counter { fails: true, ..Counter::new(2, 0) };
        let works: Vec<Box<dyn Staged<_>>> = vec![Box::new(failing), Box::new(Counter::new(2, 0))];
        let results = sync_together(&works);
        let seen: Vec<_> =
            works.into_iter().zip(results).map(|(work, synced)| work.go_on(synced).finish()).collect();
        assert_eq!(seen, [vec!["lost"], vec!["durable", "durable"]]);
    }

    #[test]
    fn nothing_to_sync_is_no_error() {
        assert!(sync_together::<()>(&[]).is_empty());
    }
}
