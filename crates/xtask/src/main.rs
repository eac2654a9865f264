//! The project's own commands: `cargo xtask test` is the gate, the others are its parts and the benchmarks.
//!
//! Plain `std::process` around cargo, Python and Swift's own tools. Everything that is installed goes below the target
//! directory, except Debian packages, which need root.

mod cmd;
mod peers;
mod suites;
mod test;
mod tidy;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Martlet's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// fmt, clippy, tidy, every unit and property test, and the tests against real Swift
    Test {
        /// Passed on to the test runner (a filter, for example)
        args: Vec<String>,
    },
    /// The rules of the house that neither rustfmt nor clippy knows
    Tidy,
    /// Install real Swift (a venv and its source distribution) under the target directory
    Peers,
    /// Swift's own functional, S3 and probe tests against a cluster in which chosen programs are Martlet's
    Suites(suites::Options),
    /// Side by side with real Swift: requests a second and CPU per request
    Bench {
        /// Passed on to the benchmark (`--help` lists what it takes)
        args: Vec<String>,
    },
}

fn main() -> std::process::ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Test { args } => test::run(&args),
        Command::Tidy => tidy::run(),
        Command::Peers => peers::ensure().map(|p| println!("real Swift: {}", p.venv.display())),
        Command::Suites(options) => suites::run(&options),
        Command::Bench { args } => test::bench(&args),
    }
}
