//! The `balsa` binary: all it does is in `balsa::cli`.

use std::process::ExitCode;

/// A node makes and drops a handful of small things per request; the C library's allocator took a tenth of its time for them
/// (docs/performance.md).
#[cfg(not(madsim))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(not(madsim))]
fn main() -> ExitCode {
    balsa::cli::main()
}

/// The simulation runs nodes inside one process, through `balsa::node`.
#[cfg(madsim)]
fn main() -> ExitCode {
    ExitCode::FAILURE
}
