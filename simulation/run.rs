//! One run: what is asked for, and what came of it. Both worlds take the one and give the other.

use crate::coverage::Coverage;
use crate::faults::{FaultClass, FaultSet, Trigger};
use crate::trace::Detail;
use std::fmt;

/// Which world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum World {
    /// Pure replicas over real journals and segments, in one event queue.
    Core,
    /// The shipped node and client under madsim.
    Whole,
}

impl World {
    pub const ALL: [World; 2] = [World::Core, World::Whole];

    pub fn name(self) -> &'static str {
        match self {
            World::Core => "core",
            World::Whole => "whole",
        }
    }

    pub fn from_name(name: &str) -> Option<World> {
        World::ALL.into_iter().find(|one| one.name() == name)
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A world as the rest of the simulator sees it.
#[derive(Clone, Copy)]
pub struct Registered {
    pub world: World,
    /// Runs it once; called on a thread of its own, which ends afterwards.
    pub run: fn(&Request) -> Report,
    /// Classes of faults that it knows: over a sweep each must strike.
    pub faults: &'static [FaultClass],
    /// Events that it aims faults at: over a sweep each must happen.
    pub triggers: &'static [Trigger],
    /// Seeds that found something once, and what: a sweep begins with them.
    pub once_failed: &'static [(u64, &'static str)],
}

/// What a run is asked to be. Everything else follows from the seed.
#[derive(Clone, Debug)]
pub struct Request {
    pub seed: u64,
    /// Classes of faults that may be drawn; the seed switches some of them off (swarm testing).
    pub allowed: FaultSet,
    /// More damage than a minority of copies: then refusing to serve is legal, a wrong answer is not.
    pub over_budget: bool,
    /// How much of what happened is kept as text.
    pub detail: Detail,
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub world: World,
    /// The options drawn from the seed, in one line.
    pub options: String,
    /// Over every message, disk operation and decision; equal for equal requests.
    pub trace_hash: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Operations of clients (in the core world: proposals and reads).
    pub operations: u64,
    /// The most memory it held at once, its disks included; filled in by the sweep.
    pub bytes: u64,
    pub coverage: Coverage,
    /// The first rule that was broken.
    pub violation: Option<Violation>,
}

/// A broken rule.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The rule's name, as in `docs/simulation.md`.
    pub rule: &'static str,
    /// What was seen.
    pub what: String,
    /// The last events of the nodes concerned, oldest first; empty when no text was kept.
    pub events: Vec<String>,
}
