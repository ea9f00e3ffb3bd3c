//! What a replica is told at its start, and why it may refuse to start.

use crate::ids::{GroupId, LogIndex, ReplicaId};
use crate::limits::{
    NODES_MAX, RAFT_INFLIGHT_MESSAGES_MAX, RAFT_MESSAGE_BYTES_MAX, RAFT_PIPELINE_BYTES, RAFT_UNCOMMITTED_BYTES_MAX,
    TAIL_CACHE_BYTES,
};
use crate::planted;
use raft::{Config, ReadOnlyOption};

/// Bytes of committed entries applied in one turn, so that a replica that catches up does not hold up the others.
const APPLIED_BYTES_PER_TURN_MAX: u64 = 4 << 20;

/// What a replica is told at its start.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// Its group.
    pub group: GroupId,
    /// Its id.
    pub id: ReplicaId,
    /// Decides its election timeouts.
    pub seed: u64,
    /// Unlike that of any earlier start of this node: read contexts are never used twice.
    pub boot: u64,
    /// Length of a tick; for the log's time alone.
    pub tick_ms: u64,
    /// A follower campaigns after one to two times so many ticks without a leader. At least 4.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Bytes of entries in one message.
    pub message_bytes_max: u64,
    /// Messages with entries in flight to one follower.
    pub inflight_messages_max: usize,
    /// Bytes proposed and not committed beyond which commands wait.
    pub pipeline_bytes: u64,
    /// Bytes proposed and not committed beyond which commands are refused.
    pub uncommitted_bytes_max: u64,
    /// Bytes of applied entries kept in memory for followers.
    pub log_cache_bytes_max: usize,
    /// Members the group may have.
    pub members_max: usize,
}

impl ReplicaOptions {
    /// The usual timing and bounds.
    #[must_use]
    pub fn new(group: GroupId, id: ReplicaId, boot: u64) -> ReplicaOptions {
        ReplicaOptions {
            group,
            id,
            seed: group.0 ^ id.0.rotate_left(17) ^ boot,
            boot,
            tick_ms: 50,
            election_ticks: 10,
            heartbeat_ticks: 2,
            message_bytes_max: RAFT_MESSAGE_BYTES_MAX,
            inflight_messages_max: RAFT_INFLIGHT_MESSAGES_MAX,
            pipeline_bytes: RAFT_PIPELINE_BYTES,
            uncommitted_bytes_max: RAFT_UNCOMMITTED_BYTES_MAX,
            log_cache_bytes_max: TAIL_CACHE_BYTES,
            members_max: NODES_MAX,
        }
    }

    /// Raft's own configuration. Its defaults leave off everything that is on here.
    pub(super) fn raft_config(&self, applied: LogIndex) -> Config {
        Config {
            id: self.id.0,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            applied: applied.0,
            max_size_per_msg: self.message_bytes_max,
            max_inflight_msgs: self.inflight_messages_max,
            check_quorum: !planted!("no-check-quorum"),
            pre_vote: !planted!("no-pre-vote"),
            read_only_option: ReadOnlyOption::Safe,
            skip_bcast_commit: true, // told with the next append, or by `Replica::tell_commits`
            batch_append: true,
            max_uncommitted_size: self.uncommitted_bytes_max,
            max_committed_size_per_ready: APPLIED_BYTES_PER_TURN_MAX,
            ..Config::default()
        }
    }
}

/// Why a replica can't be brought up: what was recovered contradicts itself. Never "start empty" instead.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The state machine does not take its snapshot.
    #[error("state at index {index} is unusable: {reason}")]
    State {
        /// Index of the base.
        index: LogIndex,
        /// What is wrong with it.
        reason: String,
    },
    /// Base, configuration or terms are not what a group can have.
    #[error("recovered group is unusable: {0}")]
    Unusable(&'static str),
    /// The entries do not follow the base, or each other.
    #[error("entry {found} follows entry {after}")]
    Gap {
        /// The entry before.
        after: LogIndex,
        /// The entry found.
        found: LogIndex,
    },
    /// More was committed than is there.
    #[error("commit is {commit}, but the log ends at {last}")]
    CommitBeyondLog {
        /// The hard state's commit.
        commit: LogIndex,
        /// The last entry.
        last: LogIndex,
    },
    /// Raft refuses the configuration.
    #[error("raft refuses: {0}")]
    Raft(String),
}
