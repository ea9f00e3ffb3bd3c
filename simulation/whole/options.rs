//! What a run is like, drawn from its seed before anything happens: how many nodes, how large files get, how slow the
//! network and the disks are, and which classes of faults are on.

use crate::faults::{FaultClass, FaultSet};
use crate::run::Request;
use balsa::journal::JournalOptions;
use balsa::node::Sizes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Sets apart what is drawn here from what else is drawn from the same seed.
const SALT: u64 = 0x0b7_10f5;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Options {
    pub nodes: u32,
    /// Partitions of each topic that lives as long as the run.
    pub topics: Vec<u32>,
    pub tick_ms: u64,
    pub election_ticks: usize,
    /// One way through the network.
    pub latency: RangeInclusive<Duration>,
    /// Of a write and of a sync.
    pub write_delay: RangeInclusive<Duration>,
    pub sync_delay: RangeInclusive<Duration>,
    pub segment_bytes: u64,
    pub sizes: Sizes,
    /// Among how many loops a node's groups are divided.
    pub loops: usize,
    /// Largest record, in bytes.
    pub record_bytes_max: usize,
    /// Classes that are on.
    pub faults: FaultSet,
    /// Mean time between two faults, in milliseconds.
    pub fault_gap_ms: u64,
    /// Mean time between two operations of one client, in milliseconds.
    pub think_ms: u64,
    pub over_budget: bool,
}

impl Options {
    pub fn draw(request: &Request, known: &[FaultClass]) -> Options {
        let mut rng = StdRng::seed_from_u64(request.seed ^ SALT);
        let on = |class: &FaultClass| request.allowed.has(*class) && known.contains(class);
        let faults = swarm(&mut rng, FaultClass::ALL.iter().copied().filter(on).collect());
        let latency = pick(&mut rng, &[(1_000, 2_000), (1_000, 5_000), (1_000, 10_000), (5_000, 15_000)]);
        let sync = pick(&mut rng, &[(1_000, 1_500), (1_000, 4_000), (2_000, 12_000)]);
        let write = pick(&mut rng, &[(0, 0), (0, 0), (0, 2_000)]);
        let nodes = pick(&mut rng, &[3, 3, 5]);
        // Timeouts so long, at times, that a node which stops can't wait for its followers to take over.
        let (tick_ms, election_ticks) = match rng.gen_bool(0.2) {
            true => (30, rng.gen_range(31..=36)),
            false => (pick(&mut rng, &[40, 60, 100]), rng.gen_range(6..=12)),
        };
        Options {
            nodes,
            topics: (0..rng.gen_range(1..=2)).map(|_| rng.gen_range(1..=3)).collect(),
            tick_ms,
            election_ticks,
            latency: micros(latency),
            write_delay: micros(write),
            sync_delay: micros(sync),
            segment_bytes: pick(&mut rng, &[8 << 10, 16 << 10, 64 << 10, 4 << 20]),
            sizes: sizes(&mut rng),
            record_bytes_max: pick(&mut rng, &[40, 200, 1_000, 4_000]),
            faults: FaultSet(faults),
            fault_gap_ms: rng.gen_range(900..=1_700),
            think_ms: rng.gen_range(500..=1_200),
            loops: pick(&mut rng, &[1, 1, 2, 3]),
            over_budget: request.over_budget,
        }
    }

    pub fn has(&self, class: FaultClass) -> bool {
        self.faults.has(class)
    }

    /// How many nodes a majority can do without.
    pub fn minority(&self) -> usize {
        (self.nodes as usize - 1) / 2
    }

    /// Free bytes below which a node counts as full.
    pub fn reserve_bytes(&self) -> u64 {
        4 * self.sizes.journal.file_bytes
    }
}

/// Switches each class off as likely as not, but never all of them.
fn swarm(rng: &mut StdRng, allowed: Vec<FaultClass>) -> BTreeSet<FaultClass> {
    let mut on: BTreeSet<FaultClass> = allowed.iter().copied().filter(|_| rng.gen_bool(0.5)).collect();
    if !allowed.is_empty() && on.is_empty() {
        on.insert(allowed[rng.gen_range(0..allowed.len())]);
    }
    on
}

fn sizes(rng: &mut StdRng) -> Sizes {
    let journal = JournalOptions {
        file_bytes: pick(rng, &[128 << 10, 256 << 10, 1 << 20]),
        first_file_bytes: pick(rng, &[64 << 10, 128 << 10]),
        restated_bytes_max: pick(rng, &[64 << 10, 256 << 10]),
        base_move_bytes: pick(rng, &[4 << 10, 16 << 10, 64 << 10]),
        base_inline_bytes_max: pick(rng, &[256, 2_000, 16 << 10]),
        round_bytes_max: pick(rng, &[16 << 10, 64 << 10]),
        portion_bytes_min: 4 << 10,
        step_bytes: 32 << 10,
        files_max: 4,
    };
    Sizes {
        journal,
        index_stride_bytes: pick(rng, &[512, 4 << 10, 16 << 10]),
        tail_cache_bytes: pick(rng, &[4 << 10, 32 << 10, 2 << 20]),
    }
}

fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.gen_range(0..from.len())]
}

fn micros((shortest, longest): (u64, u64)) -> RangeInclusive<Duration> {
    Duration::from_micros(shortest)..=Duration::from_micros(longest)
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { nodes, topics, tick_ms, election_ticks, latency, write_delay, sync_delay, .. } = self;
        let journal = &self.sizes.journal;
        write!(
            f,
            "nodes={nodes} topics={topics:?} tick_ms={tick_ms} election_ticks={election_ticks} latency={latency:?} \
             write={write_delay:?} sync={sync_delay:?} segment={} journal={}/{} base_move={} inline={} cache={} \
             record={} gap_ms={} think_ms={} loops={} faults={}",
            self.segment_bytes,
            journal.first_file_bytes,
            journal.file_bytes,
            journal.base_move_bytes,
            journal.base_inline_bytes_max,
            self.sizes.tail_cache_bytes,
            self.record_bytes_max,
            self.fault_gap_ms,
            self.think_ms,
            self.loops,
            self.faults
        )
    }
}
