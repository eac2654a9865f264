//! What one pass of a daemon took, and how it is printed beside another one's.

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

#[derive(Clone, Copy)]
pub struct Pass {
    pub wall: f64,
    pub cpu: f64,
}

impl Pass {
    pub fn and(self, next: Pass) -> Pass {
        Pass { wall: self.wall + next.wall, cpu: self.cpu + next.cpu }
    }

    pub fn without(self, start: Pass) -> Pass {
        // Below the resolution of either clock there is nothing to compare.
        Pass { wall: (self.wall - start.wall).max(0.001), cpu: (self.cpu - start.cpu).max(0.001) }
    }
}

/// What stands above rows.
pub fn print_head(title: &str) {
    println!("\n{title}\n{:<58} CPU s, wall s: martlet | python | ratios", "");
}

/// Martlet's, and if there is one, Python's.
pub fn print_row(title: &str, passes: &[Pass]) {
    let ours = passes[0];
    let mut line = format!("{title:<58} {:9.4} {:9.4}", ours.cpu, ours.wall);
    if let Some(python) = passes.get(1) {
        let (cpu, wall) = (python.cpu / ours.cpu, python.wall / ours.wall);
        line += &format!(" | {:8.4} {:8.4} | {cpu:5.1} {wall:5.1}", python.cpu, python.wall);
    }
    println!("{line}");
}

/// CPU seconds of children that have ended.
pub fn children_cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}
