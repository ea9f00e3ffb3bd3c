//! The command line: parses, runs one command, and turns what came of it into an exit code.
//!
//! One file per command. Data goes to standard output, everything else to standard error; progress is shown on a terminal
//! only; a reader that goes away (a broken pipe) is no error. Errors say what to do next.

mod append;
mod bench;
mod completions;
mod exit;
mod input;
mod inspect;
mod local;
mod moment;
mod output;
mod read;
mod signals;
mod start;
mod status;
mod topic;
mod up;

use crate::client::{Client, ClientOptions};
use clap::{Args, Parser, Subcommand};
use exit::Failure;
use output::Format;
use std::process::ExitCode;
use std::time::Duration;

/// Where clients look when nobody says otherwise: the first node of `balsa up`, then its other two.
const SERVERS_DEFAULT: [&str; 3] = ["127.0.0.1:7400", "127.0.0.1:7410", "127.0.0.1:7420"];

/// A replicated log: what it says is appended, a majority of nodes has on disk.
#[derive(Debug, Parser)]
#[command(name = "balsa", version, about, after_help = exit::HELP, max_term_width = 110)]
#[command(propagate_version = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
struct Common {
    /// Servers to ask, as host:port, separated by commas [default: 127.0.0.1:7400, then the other nodes of `balsa up`]
    #[arg(
        long,
        global = true,
        env = "BALSA_SERVERS",
        value_delimiter = ',',
        value_name = "LIST",
        hide_env_values = true
    )]
    servers: Vec<String>,
    /// What to print: tables and plain lines for people, or JSON (one object a line for streams)
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "FORMAT")]
    output: Format,
    /// Give up an operation after this time: 500ms, 30s, 2m
    #[arg(long, global = true, default_value = "30s", value_name = "TIME", value_parser = moment::duration)]
    timeout: Duration,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::UpArgs),
    Start(start::StartArgs),
    Status(status::StatusArgs),
    Topic(topic::TopicArgs),
    Append(append::AppendArgs),
    Read(read::ReadArgs),
    Inspect(inspect::InspectArgs),
    Bench(bench::BenchArgs),
    Completions(completions::CompletionsArgs),
}

impl Common {
    fn client(&self) -> Result<Client, Failure> {
        let options = ClientOptions { timeout: self.timeout, ..ClientOptions::default() };
        Ok(Client::connect(self.servers(), options)?)
    }

    fn servers(&self) -> Vec<String> {
        if self.servers.is_empty() {
            return SERVERS_DEFAULT.map(String::from).to_vec();
        }
        self.servers.iter().map(|server| server.trim().to_string()).collect()
    }
}

/// Threads of the event loop at most.
const WORKERS_MAX: usize = 8;

/// Runs the command that the process's arguments ask for.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing can only fail where nobody reads. Help asked for is no failure; everything else is a usage error.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::DONE });
        }
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("cannot start the event loop: {error}")).report(),
    };
    let result = runtime.block_on(run(cli));
    // A read of standard input that is under way would otherwise hold us up until its next line.
    #[cfg(not(madsim))]
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => failure.report(),
    }
}

/// Threads of the event loop.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX)
}

/// Among how many loops a node's groups are divided: half of the threads are left to HTTP/2, gRPC and the clients' tasks.
fn loops() -> usize {
    (workers() / 2).max(1)
}

/// The event loop. With two cores or fewer one thread serves better than two that wake each other: the node's state has one
/// owner task then, and the disk has threads of its own.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    match workers() {
        0..=2 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        workers => tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build(),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let common = cli.common;
    match cli.command {
        Command::Up(args) => up::run(&common, args).await,
        Command::Start(args) => start::run(args).await,
        Command::Status(args) => status::run(&common, args).await,
        Command::Topic(args) => topic::run(&common, args).await,
        Command::Append(args) => append::run(&common, args).await,
        Command::Read(args) => read::run(&common, args).await,
        Command::Inspect(args) => inspect::run(&common, args).await,
        Command::Bench(args) => bench::run(&common, args).await,
        Command::Completions(args) => completions::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_of_all_commands_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn servers_come_from_the_flag_separated_by_commas() {
        let cli = Cli::try_parse_from(["balsa", "status", "--servers", "a:1, b:2"]).unwrap();
        assert_eq!(cli.common.servers(), ["a:1", "b:2"]);
    }

    #[test]
    fn every_command_says_what_it_does() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }
}
