//! The `balsa` binary: all it does is in `balsa::cli`.

use std::process::ExitCode;

#[cfg(not(madsim))]
fn main() -> ExitCode {
    balsa::cli::main()
}

/// The simulation runs nodes inside one process, through `balsa::node`.
#[cfg(madsim)]
fn main() -> ExitCode {
    ExitCode::FAILURE
}
