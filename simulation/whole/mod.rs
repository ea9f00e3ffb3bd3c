//! The whole world: three or five shipped nodes under madsim, from the gRPC doors down to the disk, real clients, every fault.
//!
//! ```text
//!   run ─> options (drawn) ─> world: machines, clients, the agenda of faults ─> ending: heal, liveness, final reads
//!                               │
//!                               └─ stage: trace, counters, rules at every step, history
//! ```
//!
//! Everything follows from the seed: each part draws from a generator of its own, and the runtime's order of tasks and delays of
//! messages from one more. It refuses to know why a rule holds: it breaks things, and tells the rules what it sees.

mod aims;
mod clients;
mod ending;
mod log;
mod machine;
mod network;
mod options;
mod stage;
mod strikes;
mod trials;
mod world;

use crate::faults::{FaultClass, Trigger};
use crate::history::History;
use crate::panics;
use crate::run::{Report, Request, World as Which};
use madsim::runtime::Runtime;
use options::Options;
use stage::Stage;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

/// Classes of faults that this world knows.
pub const FAULTS: &[FaultClass] = strikes::FAULTS;
/// Events that it aims faults at.
pub const TRIGGERS: &[Trigger] = aims::TRIGGERS;

/// Seeds that showed something, and what: the first of every sweep.
pub const ONCE_FAILED: &[(u64, &str)] = &[
    (10, "a request on an ending node spun until its patience was over"),
    (11, "the same"),
    (15, "a failed producer delivered what waited before what was under way"),
    (21, "the same"),
    (1336, "a new leader stamped by a clock that those who elected it contradicted, since the last tick"),
    (2087, "a node that was behind when its disk filled up could not tell what became of a deletion"),
    (2434, "a clock that was set right was trusted for what it had said at the last tick"),
    (2589, "a node whose journal could not grow on a full disk ended while it was asked"),
    (3543, "a node whose journal could not grow on a full disk had ended, and was held to refuse"),
    (320_237, "a cut held up a connection, and the simulated network's server let nobody else in"),
    (401_880, "entries were merged into an append that a rejection had overtaken"),
];

/// Runs it once, on this thread, which nothing ran on before.
pub fn run(request: &Request) -> Report {
    run_and_keep(request).0
}

/// The same, with what clients saw of it.
pub fn run_and_keep(request: &Request) -> (Report, History) {
    let options = Arc::new(Options::draw(request, FAULTS));
    let stage = Stage::new(request.detail, &options);
    let mut config = madsim::Config::default();
    config.net.send_latency = *options.latency.start()..*options.latency.end();
    let runtime = Runtime::with_seed_and_config(request.seed, config);
    let (world_options, world_stage, seed) = (options.clone(), stage.clone(), request.seed);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async move { world::run(world_options, world_stage, seed).await })
    }));
    if ran.is_err() {
        let what = panics::take().unwrap_or_else(|| "a panic without words".to_owned());
        stage.broke("panic", what, &[]);
    }
    let mut kept = stage.lock();
    for (mark, count) in balsa::probe::take_reached() {
        kept.coverage.add(&format!("branch.{mark}"), count);
    }
    let report = Report {
        seed: request.seed,
        world: Which::Whole,
        options: options.to_string(),
        trace_hash: kept.trace.hash(),
        simulated_ms: ran.unwrap_or_default(),
        faults: kept.faults,
        operations: kept.operations,
        bytes: 0,
        coverage: kept.coverage.clone(),
        violation: kept.violation(),
    };
    (report, std::mem::take(&mut kept.history))
}
