//! What a seed draws before anything happens.

use super::chance::Chance;
use crate::faults::{FaultClass, FaultSet};
use crate::run::Request;
use balsa::ids::GroupId;
use balsa::journal::JournalOptions;
use balsa::segments::SegmentsOptions;

/// Simulated time during which faults strike.
pub const STORM_US: u64 = 60_000_000;
/// It goes on for so long at most until there were enough faults and operations.
pub const STORM_MAX_US: u64 = 300_000_000;
/// Faults of a run.
pub const FAULTS_MIN: u64 = 20;
/// Operations of a run.
pub const OPERATIONS_MIN: u64 = 300;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Options {
    pub nodes: u32,
    pub groups: u64,
    /// Replicas of each partition; all nodes vote in group 0.
    pub replication: u32,
    /// The last partition has one replica, whose leader nobody can follow.
    pub has_lone: bool,
    pub tick_us: u64,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub clients_per_group: u64,
    /// Clients that do nothing but ask for tails.
    pub readers_per_group: u64,
    /// Now and then nobody asks anything of a group for a while.
    pub has_quiet: bool,
    /// Between a client's operations, at most.
    pub think_us: u64,
    pub latency_us: (u64, u64),
    pub sync_us: (u64, u64),
    /// Between faults, on average.
    pub fault_every_us: u64,
    pub record_bytes_max: u64,
    pub base_move_bytes: u64,
    pub log_cache_bytes_max: usize,
    pub message_bytes_max: u64,
    pub inflight_messages_max: usize,
    pub pipeline_bytes: u64,
    pub uncommitted_bytes_max: u64,
    pub journal: JournalOptions,
    pub segments: SegmentsOptions,
    pub faults: FaultSet,
    pub over_budget: bool,
}

impl Options {
    pub fn draw(request: &Request, chance: &mut Chance) -> Options {
        let nodes = if chance.ratio(1, 3) { 5 } else { 3 };
        let journal_bytes = [32 << 10, 64 << 10, 128 << 10][chance.below(3) as usize];
        let first = if chance.ratio(1, 2) { 16 << 10 } else { journal_bytes };
        let tick_us = [50_000, 100_000, 100_000, 150_000][chance.below(4) as usize];
        let fast = chance.ratio(1, 4);
        let message_bytes_max = [200, 2 << 10, 1 << 20][chance.below(3) as usize];
        // More than fits into a message, or Raft refuses.
        let uncommitted_bytes_max = if chance.ratio(1, 3) { message_bytes_max + (2 << 10) } else { 32 << 20 };
        Options {
            nodes,
            groups: chance.within(1..4),
            replication: if nodes == 5 && chance.ratio(2, 3) { 3 } else { nodes },
            has_lone: chance.ratio(1, 6),
            tick_us,
            election_ticks: chance.within(6..12) as usize,
            heartbeat_ticks: chance.within(1..3) as usize,
            clients_per_group: chance.within(3..6),
            readers_per_group: [0, 0, 0, 2][chance.below(4) as usize],
            has_quiet: chance.ratio(1, 2),
            think_us: chance.within(500_000..1_400_000),
            latency_us: (100, chance.within(500..5_000)),
            sync_us: (100, if fast { 300 } else { chance.within(1_000..20_000) }),
            fault_every_us: chance.within(600_000..1_800_000),
            record_bytes_max: [32, 200, 1_000][chance.below(3) as usize],
            base_move_bytes: chance.within(2..24) << 10,
            log_cache_bytes_max: [0, 500, 8 << 10, 1 << 20][chance.below(4) as usize],
            message_bytes_max,
            inflight_messages_max: [4, 256][chance.below(2) as usize],
            pipeline_bytes: [300, 4 << 20][chance.below(2) as usize],
            uncommitted_bytes_max,
            journal: JournalOptions {
                file_bytes: journal_bytes,
                first_file_bytes: first,
                restated_bytes_max: [32 << 10, 256 << 10][chance.below(2) as usize],
                base_move_bytes: chance.within(4..16) << 10,
                base_inline_bytes_max: [256, 16 << 10][chance.below(2) as usize],
                round_bytes_max: 64 << 10,
                portion_bytes_min: [256, 4 << 10][chance.below(2) as usize],
                step_bytes: 64 << 10,
                files_max: chance.within(3..8) as usize,
            },
            segments: SegmentsOptions {
                group: GroupId(0),
                segment_bytes: [4 << 10, 16 << 10, 64 << 10][chance.below(3) as usize],
                index_stride_bytes: [256, 4 << 10][chance.below(2) as usize],
                tail_cache_bytes: [0, 4 << 10, 1 << 20][chance.below(3) as usize],
            },
            faults: swarm(&request.allowed, chance),
            over_budget: request.over_budget,
        }
    }

    pub fn describe(&self) -> String {
        format!(
            "{} nodes, {} groups of {}{}, tick {} ms, election {} ticks, heartbeat {}, latency to {} us, sync to {} us, segments {} B, \
             journal {} B, log cache {} B, messages {} B, faults every {} ms: {}",
            self.nodes,
            self.groups,
            self.replication,
            if self.has_lone { " and of 1" } else { "" },
            self.tick_us / 1_000,
            self.election_ticks,
            self.heartbeat_ticks,
            self.latency_us.1,
            self.sync_us.1,
            self.segments.segment_bytes,
            self.journal.file_bytes,
            self.log_cache_bytes_max,
            self.message_bytes_max,
            self.fault_every_us / 1_000,
            self.faults,
        )
    }
}

/// Each allowed class is switched off half of the time, and at least one stays.
fn swarm(allowed: &FaultSet, chance: &mut Chance) -> FaultSet {
    let known: Vec<FaultClass> = allowed.0.iter().copied().filter(|class| super::FAULTS.contains(class)).collect();
    let mut kept: Vec<FaultClass> = known.iter().copied().filter(|_| chance.ratio(1, 2)).collect();
    if kept.is_empty() {
        kept.extend(chance.pick(&known));
    }
    FaultSet(kept.into_iter().collect())
}
