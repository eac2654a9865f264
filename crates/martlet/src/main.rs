//! One binary for every program of Swift, and `martlet up`.
//!
//! Called by the name of a Swift program (a link `swift-object-server`) it takes that program's command line and signals; as
//! `martlet object-server` the same program. What has no counterpart in Swift is a subcommand of clap's.

mod cli;
mod convergence;
mod demo;
mod programs;
mod tools;
mod up;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

#[derive(Debug, Parser)]
#[command(name = "martlet", about = "An object store that is a drop-in for OpenStack Swift")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Requests allocate on one thread what another frees: the C library's allocator makes them wait for each other. Without huge pages:
/// each thread begins with a few places for each size, and of each place the kernel would clear two MiB. What is written in C has it, too
/// (`override`): SQLite allocates the schema of a database piece by piece whenever it opens one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run a whole cluster in one process
    Up(Box<up::Options>),
    /// Watch SSYNC heal a cluster that lost a node (needs the `swift` client)
    Demo(Box<demo::Options>),
}

fn main() -> ExitCode {
    if let Err(err) = common::fs::fail::arm_from_env() {
        eprintln!("martlet: {err}");
        return ExitCode::FAILURE;
    }
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let called = words.first().map(String::as_str).unwrap_or("martlet");
    let called = Path::new(called).file_name().and_then(|name| name.to_str()).unwrap_or("martlet");
    if called.starts_with("swift-") {
        return match (programs::find(called), tools::find(called)) {
            (Some(program), _) => program.run(called, &words[1..]),
            (None, Some(tool)) => tool.run(called, &words[1..]),
            (None, None) => {
                eprintln!("{called}: Martlet has no such program yet; it has {}", names());
                ExitCode::FAILURE
            }
        };
    }
    if let Some(program) = words.get(1).and_then(|word| programs::find(word)) {
        return program.run(&format!("{called} {}", program.name), &words[2..]);
    }
    if let Some(tool) = words.get(1).and_then(|word| tools::find(word)) {
        return tool.run(&format!("{called} {}", tool.name), &words[2..]);
    }
    let command = Cli::command().version(programs::VERSION).after_help(program_help());
    let parsed = command.get_matches();
    match Cli::from_arg_matches(&parsed) {
        Ok(cli) => run(cli),
        Err(err) => err.exit(),
    }
}

fn run(cli: Cli) -> ExitCode {
    let done = match &cli.command {
        Command::Up(options) => up::run(options),
        Command::Demo(options) => demo::run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("martlet: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn names() -> String {
    let programs = programs::PROGRAMS.iter().map(|program| program.name);
    let names = programs.chain(tools::TOOLS.iter().map(|tool| tool.name));
    names.map(|name| format!("swift-{name}")).collect::<Vec<_>>().join(", ")
}

fn program_help() -> String {
    let mut text =
        String::from("Swift's programs (each also under its own name, by a link to this binary):\n");
    for program in &programs::PROGRAMS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {:<20} {}", program.name, program.about);
    }
    text += "\nand its tools:\n";
    for tool in &tools::TOOLS {
        let _ = writeln!(text, "  {:<20} {}", tool.name, tool.about);
    }
    text + "\nEach program takes CONFIG and Swift's options: see martlet object-server --help."
}
