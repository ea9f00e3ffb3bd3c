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

mod coverage;
mod faults;
mod run;
mod trace;

fn main() {}
