//! What the client's answers hold, in the project's own types: generated ones stop here.

use super::wire;
use crate::ids::{Digest, GroupId, NodeId, Offset, Revision, Term, TimestampMs};
use crate::usage::Usage;

/// Who leads a partition, and since which term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The node.
    pub node: NodeId,
    /// The term it leads in.
    pub term: Term,
    /// Where it listens for clients.
    pub address: String,
}

impl Leader {
    /// `None` where the message names nobody.
    pub(super) fn from_wire(leader: &wire::Leader) -> Option<Leader> {
        let named = leader.node != 0 || !leader.address.is_empty();
        named.then(|| Leader { node: NodeId(leader.node), term: Term(leader.term), address: leader.address.clone() })
    }
}

/// A topic and its partitions.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its UUID: a topic created again under the same name has another one.
    pub id: String,
    /// Its partitions, by number.
    pub partitions: Vec<Partition>,
    /// Largest batch it takes, in bytes.
    pub batch_bytes_max: u32,
    /// When it was created.
    pub created: TimestampMs,
    /// Replicas each partition has.
    pub replication: u32,
}

impl From<wire::Topic> for Topic {
    fn from(topic: wire::Topic) -> Topic {
        Topic {
            name: topic.name,
            id: topic.id,
            partitions: topic.partitions.into_iter().map(Partition::from).collect(),
            batch_bytes_max: topic.batch_bytes_max,
            created: TimestampMs(topic.created_ms),
            replication: topic.replication,
        }
    }
}

/// One partition of a topic.
#[derive(Clone, Debug)]
pub struct Partition {
    /// Its number in the topic, from zero.
    pub partition: u32,
    /// The Raft group that holds it.
    pub group: GroupId,
    /// The nodes that hold a replica.
    pub replicas: Vec<NodeId>,
    /// Its leader, once one has reported.
    pub leader: Option<Leader>,
}

impl From<wire::Partition> for Partition {
    fn from(partition: wire::Partition) -> Partition {
        Partition {
            partition: partition.partition,
            group: GroupId(partition.group),
            replicas: partition.replicas.into_iter().map(NodeId).collect(),
            leader: partition.leader.as_ref().and_then(Leader::from_wire),
        }
    }
}

/// What a new topic shall be like; absent numbers leave the choice to the cluster.
#[derive(Clone, Debug, Default)]
pub struct NewTopic {
    /// How many partitions; none given: one.
    pub partitions: Option<u32>,
    /// Replicas of each partition; none given: three, or all nodes if there are fewer.
    pub replication: Option<u32>,
    /// Largest batch in bytes; none given: the cluster's bound.
    pub batch_bytes_max: Option<u32>,
}

/// The proof that a batch is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The partition it is in.
    pub partition: u32,
    /// Offset of its first record.
    pub offset: Offset,
    /// Its records.
    pub count: u32,
    /// The term it was appended in.
    pub term: Term,
    /// The partition's chain after it.
    pub hash: Digest,
    /// The log's time.
    pub timestamp: TimestampMs,
    /// It had been appended before, by an earlier try; this is where.
    pub repeated: bool,
}

/// What an append may ask for besides its batch.
#[derive(Clone, Debug, Default)]
pub struct AppendConditions {
    /// Append only if the partition ends here.
    pub expected_offset: Option<Offset>,
    /// Append only if no higher token of this fence was seen: its name and our token.
    pub fence: Option<(String, u64)>,
}

/// Where a partition starts and ends.
#[derive(Clone, Debug)]
pub struct Tail {
    /// First offset that can be read.
    pub start: Offset,
    /// First offset that is absent.
    pub tail: Offset,
    /// The chain as of the tail.
    pub hash: Digest,
}

/// A producer's session in one partition.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its id.
    pub producer_id: u64,
    /// How often a session of this name was opened.
    pub epoch: u16,
    /// Sequence of the next record.
    pub next_sequence: u32,
    /// How many records it has appended in its whole life.
    pub records: u64,
    /// How many batches may be in flight.
    pub window_batches: u32,
    /// It is forgotten after so much of the log's time without an append.
    pub expires_after_ms: u64,
}

/// The cluster as one node sees it.
#[derive(Clone, Debug)]
pub struct ClusterStatus {
    /// The cluster's id.
    pub cluster_id: String,
    /// Its nodes, by id.
    pub nodes: Vec<NodeStatus>,
    /// All partitions, by topic and number.
    pub partitions: Vec<PartitionStatus>,
    /// Revision of the catalog.
    pub revision: Revision,
    /// What is wrong, in words; empty when all is well.
    pub problems: Vec<String>,
    /// The node that answered.
    pub answered_by: NodeId,
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Where it listens for clients.
    pub address: String,
    /// Whether it is there.
    pub state: NodeState,
    /// The version it runs, if known.
    pub version: String,
    /// Partitions it leads.
    pub leads: u32,
    /// What its process has used since it started; `None` if it did not answer, or its system does not tell.
    pub usage: Option<Usage>,
}

/// Whether a node is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Nobody has heard of it yet.
    Unknown,
    /// It answers.
    Up,
    /// It does not answer.
    Down,
}

/// One partition.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    /// The topic.
    pub topic: String,
    /// The partition's number.
    pub partition: u32,
    /// Its leader, if there is one.
    pub leader: Option<Leader>,
    /// Nodes that hold a replica.
    pub replicas: Vec<NodeId>,
    /// First offset that can be read.
    pub start: Offset,
    /// First offset that is absent; `None` where nobody could say.
    pub tail: Option<Offset>,
    /// How many log entries each follower lacks, as the leader knows it.
    pub lag: Vec<(NodeId, u64)>,
}

impl From<wire::StatusResponse> for ClusterStatus {
    fn from(status: wire::StatusResponse) -> ClusterStatus {
        ClusterStatus {
            cluster_id: status.cluster_id,
            nodes: status.nodes.into_iter().map(NodeStatus::from).collect(),
            partitions: status.partitions.into_iter().map(PartitionStatus::from).collect(),
            revision: Revision(status.revision),
            problems: status.problems,
            answered_by: NodeId(status.answered_by),
        }
    }
}

impl From<wire::NodeStatus> for NodeStatus {
    fn from(node: wire::NodeStatus) -> NodeStatus {
        let state = match node.state() {
            wire::NodeState::Unknown => NodeState::Unknown,
            wire::NodeState::Up => NodeState::Up,
            wire::NodeState::Down => NodeState::Down,
        };
        let usage = node.usage.map(|usage| Usage {
            cpu_us: usage.cpu_us,
            resident_bytes: usage.resident_bytes,
            written_bytes: usage.written_bytes,
        });
        NodeStatus {
            id: NodeId(node.id),
            address: node.address,
            state,
            version: node.version,
            leads: node.leads,
            usage,
        }
    }
}

impl From<wire::PartitionStatus> for PartitionStatus {
    fn from(partition: wire::PartitionStatus) -> PartitionStatus {
        PartitionStatus {
            topic: partition.topic,
            partition: partition.partition,
            leader: partition.leader.as_ref().and_then(Leader::from_wire),
            replicas: partition.replicas.into_iter().map(NodeId).collect(),
            start: Offset(partition.start),
            tail: partition.tail_known.then_some(Offset(partition.tail)),
            lag: partition.lag.into_iter().map(|lag| (NodeId(lag.node), lag.entries)).collect(),
        }
    }
}
