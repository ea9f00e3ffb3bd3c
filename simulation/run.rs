//! One run: what is asked for, and what came of it. Both worlds take the one and give the other.

use crate::coverage::Coverage;
use crate::faults::FaultSet;
use crate::trace::Detail;

/// Which world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum World {
    /// Pure replicas over real journals and segments, in one event queue.
    Core,
    /// The shipped node and client under madsim.
    Whole,
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
