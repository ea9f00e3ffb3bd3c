//! `balsa completions`: what a shell needs to complete commands and flags.

use super::exit::Failure;
use super::Cli;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::{self, Write};

/// Print a shell's completion script
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  balsa completions bash > ~/.local/share/bash-completion/completions/balsa")]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "balsa", &mut script);
    let mut stdout = io::stdout();
    stdout.write_all(&script)?;
    Ok(stdout.flush()?)
}
