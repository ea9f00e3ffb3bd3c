//! What an onlooker sees of the groups of a node: what its replicas want, what they are told, what leaves and what arrives.
//!
//! The simulator checks its rules on this, in both of its worlds, at every step; nothing else listens. An onlooker gets no
//! say: it is handed references and answers nothing.

use super::effects::Effects;
use crate::ids::{Digest, GroupId, NodeId, ReplicaId, Term};
use crate::journal::RecoveredGroup;
use raft::eraftpb::Message;
use std::sync::Arc;

/// Called at each step, on the task that owns the replicas. Must not wait.
pub type Observer = Arc<dyn Fn(GroupId, Observed<'_>) + Send + Sync>;

/// One step of one replica.
pub enum Observed<'a> {
    /// The replica came up: from its journal after a start, or from its first base.
    Opened {
        /// Its id.
        replica: ReplicaId,
        /// What it starts from.
        recovered: &'a RecoveredGroup,
        /// It is hosted for the first time: what it starts from is not on disk yet.
        created: bool,
    },
    /// Its effects were taken, and will be performed.
    Taken {
        /// They.
        effects: &'a Effects,
        /// The replica's term.
        term: Term,
        /// Whether it leads.
        leads: bool,
        /// The digest of the state machine as applied; costly.
        digest: &'a dyn Fn() -> Digest,
    },
    /// The replica was told that the effects of this number, and all before, are durable.
    Persisted {
        /// Their number.
        number: u64,
    },
    /// A message was handed to the link.
    Sent {
        /// It.
        message: &'a Message,
    },
    /// A message arrived, and will be stepped.
    Received {
        /// The node it came from.
        from: NodeId,
        /// It.
        message: &'a Message,
    },
    /// The replica is hosted no more.
    Removed,
}
