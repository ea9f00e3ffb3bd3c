//! What can be asked of the catalog, and how that lies in an entry.
//!
//! ```text
//! bootstrap       65 | cluster id [16] | founders u32 x node
//! register node   66 | node
//! create topic    67 | topic id [16] | name | partitions u32 | replication u32 | batch bytes max u32
//! alter topic     68 | name | flags u8 | [partitions u32] | [batch bytes max u32]
//! delete topic    69 | name
//! report leader   70 | group u64 | node id u32 | term u64
//! report members  71 | group u64 | index u64 | voters u32 x u64 | outgoing u32 x u64 | learners u32 x u64
//!
//! node            node id u32 | incarnation [16] | client address | peer address | version
//! ```
//!
//! Numbers are little-endian, a text is a `u16` length and UTF-8. Kinds start above those of a partition, so that a
//! command which went to the wrong group is refused instead of being taken for another. Flags: 1 = partitions follow, 2 =
//! batch bytes max follows. Refuses what is out of form or bounds; the catalog's rules are the state's matter.

use super::catalog::Members;
use crate::ids::{ClusterId, GroupId, Incarnation, LogIndex, NodeId, ReplicaId, Term, TopicId};
use crate::limits::{ADDRESS_BYTES_MAX, METADATA_VOTERS_MAX, NODES_MAX, TOPIC_NAME_BYTES_MAX, VERSION_BYTES_MAX};
use crate::partition::codec::{put_text, text_len, DecodeError, Reader};
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;

const KIND_BOOTSTRAP: u8 = 65;
const KIND_REGISTER_NODE: u8 = 66;
const KIND_CREATE_TOPIC: u8 = 67;
const KIND_ALTER_TOPIC: u8 = 68;
const KIND_DELETE_TOPIC: u8 = 69;
const KIND_REPORT_LEADER: u8 = 70;
const KIND_REPORT_MEMBERS: u8 = 71;

const FLAG_PARTITIONS: u8 = 1;
const FLAG_BATCH_BYTES_MAX: u8 = 2;

/// A node as it registers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRegistration {
    /// Its number, from one.
    pub id: NodeId,
    /// Of its data directory.
    pub incarnation: Incarnation,
    /// Where clients reach it; at most `ADDRESS_BYTES_MAX` bytes.
    pub client_address: Arc<str>,
    /// Where nodes reach it; at most `ADDRESS_BYTES_MAX` bytes.
    pub peer_address: Arc<str>,
    /// Its software's version; at most `VERSION_BYTES_MAX` bytes.
    pub version: Arc<str>,
}

/// The genesis of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bootstrap {
    /// Derived from all founders' incarnations.
    pub cluster_id: ClusterId,
    /// All founders, in any order.
    pub founders: Vec<NodeRegistration>,
}

/// A command to the catalog. The verdict of one that succeeds is `Done { value: revision, extra }`; `extra` is zero unless said
/// otherwise. A command that finds its effect already there is done as well, under the revision that is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetadataCommand {
    /// Founds the cluster. `Conflict` if it was founded otherwise.
    Bootstrap(Bootstrap),
    /// Makes a node known, or changes its addresses. `Conflict` if its number is known with another incarnation, or its
    /// incarnation under another number.
    RegisterNode(NodeRegistration),
    /// Creates a topic; `extra` is the group of its first partition, those of the others follow it. `Exists` if there is one
    /// of that name with another id.
    CreateTopic {
        /// Drawn by the door; a retry carries the same.
        topic: TopicId,
        /// See `validate_topic_name`.
        name: Arc<str>,
        /// Zero: one.
        partitions: u32,
        /// Replicas of each; zero: three, or as many as there are nodes if those are fewer.
        replication: u32,
        /// Zero: `BATCH_BYTES_MAX`.
        batch_bytes_max: u32,
    },
    /// Adds partitions, or changes the largest batch. `Conflict` if there are more partitions already.
    AlterTopic {
        /// The topic.
        name: Arc<str>,
        /// How many there shall be.
        partitions: Option<u32>,
        /// Zero: `BATCH_BYTES_MAX`.
        batch_bytes_max: Option<u32>,
    },
    /// Deletes a topic and all its partitions.
    DeleteTopic {
        /// The topic.
        name: Arc<str>,
    },
    /// A new leader says so. `Conflict` if one of a later term did before.
    ReportLeader {
        /// Its group; may be group 0.
        group: GroupId,
        /// The leader's node.
        node: NodeId,
        /// Its term.
        term: Term,
    },
    /// A leader says which replicas its group has. `Conflict` if a later configuration was reported before.
    ReportMembers {
        /// Its group; may be group 0.
        group: GroupId,
        /// The configuration with the index at which it was applied.
        members: Members,
    },
}

impl Bootstrap {
    /// Group 0's founding replicas: the `METADATA_VOTERS_MAX` founders of the lowest numbers vote, the others learn its log.
    #[must_use]
    pub fn control_members(&self) -> Members {
        control_members(self.founders.iter().map(|founder| founder.id).collect())
    }
}

/// See [`Bootstrap::control_members`].
pub(super) fn control_members(mut founders: Vec<NodeId>) -> Members {
    founders.sort_unstable();
    let learners = founders.split_off(founders.len().min(METADATA_VOTERS_MAX));
    let replicas = |nodes: Vec<NodeId>| nodes.into_iter().map(ReplicaId::founding).collect();
    Members { voters: replicas(founders), learners: replicas(learners), ..Members::default() }
}

impl MetadataCommand {
    /// Whether an encoded command makes room necessary beyond the catalog's own.
    pub(super) fn adds_data(command: &[u8]) -> bool {
        matches!(command.first(), Some(&(KIND_CREATE_TOPIC | KIND_ALTER_TOPIC)))
    }

    /// The command as it lies in an entry.
    ///
    /// # Panics
    /// If a text is longer than 65,535 bytes; doors hold texts against their limits.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut into = BytesMut::new();
        match self {
            MetadataCommand::Bootstrap(Bootstrap { cluster_id, founders }) => {
                into.put_u8(KIND_BOOTSTRAP);
                into.put_slice(&cluster_id.0);
                into.put_u32_le(founders.len() as u32);
                founders.iter().for_each(|founder| founder.encode(&mut into));
            }
            MetadataCommand::RegisterNode(node) => {
                into.put_u8(KIND_REGISTER_NODE);
                node.encode(&mut into);
            }
            MetadataCommand::CreateTopic { topic, name, partitions, replication, batch_bytes_max } => {
                into.put_u8(KIND_CREATE_TOPIC);
                into.put_slice(&topic.0);
                put_text(&mut into, name);
                into.put_u32_le(*partitions);
                into.put_u32_le(*replication);
                into.put_u32_le(*batch_bytes_max);
            }
            MetadataCommand::AlterTopic { name, partitions, batch_bytes_max } => {
                into.put_u8(KIND_ALTER_TOPIC);
                put_text(&mut into, name);
                let partitions_follow = if partitions.is_some() { FLAG_PARTITIONS } else { 0 };
                let limit_follows = if batch_bytes_max.is_some() { FLAG_BATCH_BYTES_MAX } else { 0 };
                into.put_u8(partitions_follow | limit_follows);
                [partitions, batch_bytes_max].into_iter().flatten().for_each(|number| into.put_u32_le(*number));
            }
            MetadataCommand::DeleteTopic { name } => {
                into.put_u8(KIND_DELETE_TOPIC);
                put_text(&mut into, name);
            }
            MetadataCommand::ReportLeader { group, node, term } => {
                into.put_u8(KIND_REPORT_LEADER);
                into.put_u64_le(group.0);
                into.put_u32_le(node.0);
                into.put_u64_le(term.0);
            }
            MetadataCommand::ReportMembers { group, members } => {
                into.put_u8(KIND_REPORT_MEMBERS);
                into.put_u64_le(group.0);
                into.put_u64_le(members.index.0);
                members.encode_lists(&mut into);
            }
        }
        into.freeze()
    }

    /// Reads a command.
    ///
    /// # Errors
    /// If the bytes are no command: see [`DecodeError`].
    pub fn decode(command: &Bytes) -> Result<MetadataCommand, DecodeError> {
        let mut reader = Reader::new(command);
        let decoded = match reader.u8("kind")? {
            KIND_BOOTSTRAP => {
                let cluster_id = ClusterId(reader.array("cluster id")?);
                let count = reader.count("founders", NODES_MAX, NodeRegistration::LEN_MIN)?;
                let founders = (0..count).map(|_| NodeRegistration::decode(&mut reader)).collect::<Result<_, _>>()?;
                MetadataCommand::Bootstrap(Bootstrap { cluster_id, founders })
            }
            KIND_REGISTER_NODE => MetadataCommand::RegisterNode(NodeRegistration::decode(&mut reader)?),
            KIND_CREATE_TOPIC => MetadataCommand::CreateTopic {
                topic: TopicId(reader.array("topic id")?),
                name: reader.text("topic name", TOPIC_NAME_BYTES_MAX)?,
                partitions: reader.u32("partitions")?,
                replication: reader.u32("replication")?,
                batch_bytes_max: reader.u32("batch bytes max")?,
            },
            KIND_ALTER_TOPIC => Self::decode_alter(&mut reader)?,
            KIND_DELETE_TOPIC => {
                MetadataCommand::DeleteTopic { name: reader.text("topic name", TOPIC_NAME_BYTES_MAX)? }
            }
            KIND_REPORT_LEADER => MetadataCommand::ReportLeader {
                group: GroupId(reader.u64("group")?),
                node: NodeId(reader.u32("node id")?),
                term: Term(reader.u64("term")?),
            },
            KIND_REPORT_MEMBERS => {
                let group = GroupId(reader.u64("group")?);
                let index = LogIndex(reader.u64("index")?);
                MetadataCommand::ReportMembers { group, members: Members::decode_lists(index, &mut reader)? }
            }
            kind => return Err(DecodeError::Forbidden { field: "kind of a catalog's command", value: kind.into() }),
        };
        reader.finish()?;
        Ok(decoded)
    }

    fn decode_alter(reader: &mut Reader<'_>) -> Result<MetadataCommand, DecodeError> {
        let name = reader.text("topic name", TOPIC_NAME_BYTES_MAX)?;
        let flags = reader.u8("flags")?;
        if flags & !(FLAG_PARTITIONS | FLAG_BATCH_BYTES_MAX) != 0 {
            return Err(DecodeError::Forbidden { field: "flags", value: flags.into() });
        }
        let partitions = (flags & FLAG_PARTITIONS != 0).then(|| reader.u32("partitions")).transpose()?;
        let limited = flags & FLAG_BATCH_BYTES_MAX != 0;
        let batch_bytes_max = limited.then(|| reader.u32("batch bytes max")).transpose()?;
        Ok(MetadataCommand::AlterTopic { name, partitions, batch_bytes_max })
    }
}

impl NodeRegistration {
    pub(super) const LEN_MIN: usize = 4 + 16 + 3 * text_len(0);

    pub(super) fn encode(&self, into: &mut BytesMut) {
        into.put_u32_le(self.id.0);
        into.put_slice(&self.incarnation.0);
        put_text(into, &self.client_address);
        put_text(into, &self.peer_address);
        put_text(into, &self.version);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<NodeRegistration, DecodeError> {
        let id = NodeId(reader.u32("node id")?);
        if id == NodeId::default() {
            return Err(DecodeError::Forbidden { field: "node id", value: 0 });
        }
        Ok(NodeRegistration {
            id,
            incarnation: Incarnation(reader.array("incarnation")?),
            client_address: reader.text("client address", ADDRESS_BYTES_MAX)?,
            peer_address: reader.text("peer address", ADDRESS_BYTES_MAX)?,
            version: reader.text("version", VERSION_BYTES_MAX)?,
        })
    }
}

impl Members {
    pub(super) fn encode_lists(&self, into: &mut BytesMut) {
        for list in [&self.voters, &self.outgoing, &self.learners] {
            into.put_u32_le(list.len() as u32);
            list.iter().for_each(|replica| into.put_u64_le(replica.0));
        }
    }

    /// Lists that don't ascend, and a group without voters, are refused.
    pub(super) fn decode_lists(index: LogIndex, reader: &mut Reader<'_>) -> Result<Members, DecodeError> {
        let mut list = |field| {
            let count = reader.count(field, NODES_MAX, 8)?;
            let mut replicas: Vec<ReplicaId> = Vec::with_capacity(count);
            for _ in 0..count {
                let replica = ReplicaId(reader.u64(field)?);
                if replicas.last().is_some_and(|last| *last >= replica) || replica.node() == NodeId::default() {
                    return Err(DecodeError::Contradiction(format!("replica {replica} is out of order in {field}")));
                }
                replicas.push(replica);
            }
            Ok(replicas)
        };
        let (voters, outgoing, learners) = (list("voters")?, list("outgoing voters")?, list("learners")?);
        if voters.is_empty() {
            return Err(DecodeError::Forbidden { field: "number of voters", value: 0 });
        }
        Ok(Members { index, voters, outgoing, learners })
    }
}
