//! The simulator: whole clusters, and bare consensus, under every fault, each run following from one seed.
//!
//! ```text
//!   main ─> sweep, campaign ─> run ─┬─> core    pure replicas, real journals and segments, one event queue
//!                                   └─> whole   the shipped node and client under madsim
//!                                        both:  faults (the vocabulary), trace, coverage, rules (at every step),
//!                                               history (what clients saw)
//! ```
//!
//! `docs/simulation.md` tells how to run it, read its log and replay a seed.

#[cfg(not(all(madsim, planted)))]
compile_error!(
    "the simulator is built by `cargo sim`, which sets --cfg madsim and --cfg planted; RUSTFLAGS hides them"
);

mod campaign;
mod checker;
mod command_line;
mod core;
mod coverage;
mod faults;
mod history;
mod memory;
mod panics;
mod plants;
mod print;
mod rules;
mod run;
mod seen;
mod sweep;
mod trace;
mod whole;
mod worlds;

use std::process::ExitCode;

#[global_allocator]
static COUNTING: memory::Counting = memory::Counting;

fn main() -> ExitCode {
    command_line::run()
}
