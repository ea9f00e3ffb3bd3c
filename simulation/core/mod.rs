//! The core world: pure replicas over the real journal and the real segments, on simulated disks, in one event queue.
//!
//! No runtime, no sockets, no threads: the world is its own driver and performs what the replicas ask for in the documented order, each
//! disk operation of interest behind a gate of its own, so that a crash finds everything half done. So it runs tens of thousands
//! of seeds an hour, and can do to single messages what a link never does: lose, delay, double and reorder them.
//!
//! ```text
//!   world ── event queue, nodes with clocks ──┬─ process, hosted   one life of a node: journal, groups, jobs behind gates
//!     │                                       ├─ disk              gates over the simulated disk
//!     ├─ clients ─ ledger                     └─ shared            time, network, rules, trace
//!     ├─ operator    what the catalog would decide: replicas replaced, added, moved
//!     ├─ mischief    faults, at random and aimed
//!     └─ watch, ending    liveness, and what must hold once all is healed
//! ```

mod bounds;
mod chance;
mod clients;
mod disk;
mod ending;
mod hosted;
mod ledger;
mod mischief;
mod operator;
mod options;
mod process;
mod shared;
mod watch;
mod world;

use crate::faults::{FaultClass, Trigger};
use crate::panics;
use crate::run::{Report, Request, Violation, World as WorldName};
use crate::trace::Trace;
use chance::Chance;
use options::Options;
use std::panic::{catch_unwind, AssertUnwindSafe};
use world::World;

/// The classes of faults that this world knows: all.
pub const FAULTS: &[FaultClass] = FaultClass::ALL;

/// The events it aims crashes at: all.
pub const TRIGGERS: &[Trigger] = Trigger::ALL;

/// Seeds that showed something, and what: the first of every sweep.
pub const ONCE_FAILED: &[(u64, &str)] = &[
    (2127, "a flush made a segment anew that a snapshot had dropped"),
    (3956, "the same"),
    (6711, "the same"),
    (2827, "a file of marks went back in time before the last round rotted: nothing proved its end"),
    (7513, "a power failure healed what had rotted in a write that was not synced"),
    (14_421, "a change of membership for which there was no room passed for pending, in an idle group for ever"),
    (302_197, "a link that flapped in step with the rule's looks passed for cut"),
    (302_339, "a leader that stepped down sent an append that was merged behind a rejection, as a follower does"),
    (415_222, "what came in a pause came late when all was healed in its midst, the end of a sync with it"),
    (500_218, "a last round of one sector was zeroed before it was on record as synced: nothing was left to be cut"),
];

/// Runs one seed.
pub fn run(request: &Request) -> Report {
    let _ = balsa::probe::take_reached();
    let mut chance = Chance::new(request.seed);
    let options = Options::draw(request, &mut chance);
    let described = options.describe();
    let mut world = World::new(options, chance, Trace::new(request.detail));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        while world.shared.is_stormy() && world.step() {}
        if world.shared.violation().is_none() {
            world.finish();
        }
    }));
    let violation = match outcome {
        Ok(()) => world.shared.violation().map(|broken| Violation {
            rule: broken.rule,
            what: broken.what.clone(),
            events: world.shared.trace.last_events(&broken.nodes),
        }),
        Err(_) => Some(Violation {
            rule: "panic",
            what: panics::take().unwrap_or_default(),
            events: world.shared.trace.last_events(&[]),
        }),
    };
    for (mark, count) in balsa::probe::take_reached() {
        world.shared.coverage.add(&format!("branch.{mark}"), count);
    }
    Report {
        seed: request.seed,
        world: WorldName::Core,
        options: described,
        trace_hash: world.shared.trace.hash(),
        simulated_ms: world.shared.now / 1_000,
        faults: world.shared.faults,
        operations: world.shared.operations,
        bytes: 0,
        coverage: std::mem::take(&mut world.shared.coverage),
        violation,
    }
}
