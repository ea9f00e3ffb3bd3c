//! The catalog as bytes: equal states give equal bytes.
//!
//! ```text
//! version u8 = 1 | revision u64 | log time u64 | next group u64
//! founded u8 | [cluster id [16] | founders u32 x { node id u32 | incarnation [16] }]     ascending by node
//! group 0:    leader | members
//! nodes   u32 x node (as in the commands)                                                ascending by id
//! topics  u32 x { name | id [16] | replication u32 | batch bytes max u32 | created u64   ascending by name
//!                 partitions u32 x { group u64 | founding u32 x node id u32 | leader | members } }
//! events  u32 x { kind u8 | ... }                                                        the last one made `revision`
//!
//! leader      known u8 | [node id u32 | term u64]
//! members     index u64 | [three lists as in the commands, unless the index is zero: then the founding ones]
//! events      1 control set | 2 topic set: id [16], name | 3 topic deleted: id [16], name
//!             4 leader changed: group u64, topic, partition u32, node id u32, term u64 | 5 node set: node id u32
//! ```
//!
//! Numbers are little-endian, a text is a `u16` length and UTF-8. The events belong to the state, so that a watcher resumes at a
//! restarted node too. Reading checks bounds, order and every reference, and says what does not hold.

use super::catalog::{Catalog, Change, Cluster, Control, Leader, Members, Node, Partition, Topic};
use super::command::{control_members, NodeRegistration};
use super::names::validate_topic_name;
use super::placement;
use crate::ids::{ClusterId, GroupId, Incarnation, LogIndex, NodeId, Revision, Term, TimestampMs, TopicId};
use crate::limits::{
    ADDRESS_BYTES_MAX, BATCH_BYTES_MAX, CATALOG_EVENTS_MAX, NODES_MAX, PARTITIONS_MAX, REPLICAS_MAX,
    SNAPSHOT_BYTES_MAX, TOPICS_MAX, TOPIC_NAME_BYTES_MAX, TOPIC_PARTITIONS_MAX, VERSION_BYTES_MAX,
};
use crate::partition::codec::{put_text, text_len, DecodeError, Reader};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::BTreeSet;
use std::sync::Arc;

const VERSION: u8 = 1;

const EVENT_CONTROL_SET: u8 = 1;
const EVENT_TOPIC_SET: u8 = 2;
const EVENT_TOPIC_DELETED: u8 = 3;
const EVENT_LEADER_CHANGED: u8 = 4;
const EVENT_NODE_SET: u8 = 5;

const FOUNDER_LEN: usize = 4 + 16;
const LEADER_LEN_MAX: usize = 1 + 4 + 8;
const TOPIC_LEN_MIN: usize = text_len(0) + 16 + 4 + 4 + 8 + 4;
const PARTITION_LEN_MIN: usize = 8 + 4 + 1 + 8;

const fn members_len_max(replicas: usize) -> usize {
    8 + 3 * (4 + replicas * 8)
}
const CONTROL_LEN_MAX: usize = 1 + 16 + 4 + NODES_MAX * FOUNDER_LEN + LEADER_LEN_MAX + members_len_max(NODES_MAX);
const NODE_LEN_MAX: usize = NodeRegistration::LEN_MIN + 2 * ADDRESS_BYTES_MAX + VERSION_BYTES_MAX;
const TOPIC_LEN_MAX: usize = TOPIC_LEN_MIN + TOPIC_NAME_BYTES_MAX;
const PARTITION_LEN_MAX: usize = 8 + 4 + REPLICAS_MAX * 4 + LEADER_LEN_MAX + members_len_max(REPLICAS_MAX);
// The longest is that of a new leader.
const EVENT_LEN_MAX: usize = 1 + 8 + text_len(TOPIC_NAME_BYTES_MAX) + 4 + 4 + 8;
const LEN_MAX: usize = 1
    + 3 * 8
    + CONTROL_LEN_MAX
    + (4 + NODES_MAX * NODE_LEN_MAX)
    + (4 + TOPICS_MAX * TOPIC_LEN_MAX)
    + PARTITIONS_MAX * PARTITION_LEN_MAX
    + (4 + CATALOG_EVENTS_MAX * EVENT_LEN_MAX);
// One byte stays for the tag that tells the catalog's snapshot from a partition's.
const _: () = assert!(LEN_MAX < SNAPSHOT_BYTES_MAX);

/// Numbers that are only ever counted up stay below this; a snapshot that holds a higher one is none of ours.
const COUNTER_MAX: u64 = 1 << 62;

impl Catalog {
    /// Appends the snapshot.
    pub(crate) fn encode(&self, into: &mut BytesMut) {
        into.put_u8(VERSION);
        into.put_u64_le(self.revision.0);
        into.put_u64_le(self.timestamp.0);
        into.put_u64_le(self.next_group.0);
        into.put_u8(self.cluster.is_some().into());
        if let Some(cluster) = &self.cluster {
            into.put_slice(&cluster.id.0);
            into.put_u32_le(cluster.founders.len() as u32);
            for (node, incarnation) in &cluster.founders {
                into.put_u32_le(node.0);
                into.put_slice(&incarnation.0);
            }
        }
        encode_leader(self.control.leader, into);
        encode_members(&self.control.members, into);
        into.put_u32_le(self.nodes.len() as u32);
        self.nodes.values().for_each(|node| NodeRegistration::from(&**node).encode(into));
        into.put_u32_le(self.topics.len() as u32);
        self.topics.values().for_each(|topic| self.encode_topic(topic, into));
        into.put_u32_le(self.events.len() as u32);
        self.events.values().for_each(|change| encode_change(change, into));
    }

    fn encode_topic(&self, topic: &Topic, into: &mut BytesMut) {
        put_text(into, &topic.name);
        into.put_slice(&topic.id.0);
        into.put_u32_le(topic.replication);
        into.put_u32_le(topic.batch_bytes_max);
        into.put_u64_le(topic.created.0);
        into.put_u32_le(topic.groups.len() as u32);
        for partition in self.partitions_of(topic) {
            into.put_u64_le(partition.group.0);
            into.put_u32_le(partition.founding.len() as u32);
            partition.founding.iter().for_each(|node| into.put_u32_le(node.0));
            encode_leader(partition.leader, into);
            encode_members(&partition.members, into);
        }
    }

    /// Reads a snapshot.
    pub(crate) fn decode(snapshot: &Bytes) -> Result<Catalog, DecodeError> {
        let mut reader = Reader::new(snapshot);
        let version = reader.u8("version")?;
        ensure(version == VERSION, || format!("version {version} is not known here; version {VERSION} is"))?;
        let mut catalog = Catalog {
            revision: Revision(reader.u64("revision")?),
            timestamp: TimestampMs(reader.u64("log time")?),
            next_group: GroupId(reader.u64("next group")?),
            ..Catalog::default()
        };
        ensure(catalog.revision.0 <= COUNTER_MAX, || format!("revision {} was never reached", catalog.revision))?;
        let counted = catalog.next_group > GroupId::METADATA && catalog.next_group.0 <= COUNTER_MAX;
        ensure(counted, || format!("next group {} was never reached", catalog.next_group))?;
        catalog.cluster = decode_cluster(&mut reader)?.map(Arc::new);
        let leader = decode_leader(&mut reader)?;
        let founders = catalog.cluster.iter().flat_map(|cluster| &cluster.founders);
        let founding = control_members(founders.map(|(node, _)| *node).collect());
        let members = decode_members(founding, &mut reader)?;
        catalog.control = Arc::new(Control { members, leader });
        catalog.decode_nodes(&mut reader)?;
        catalog.check_members(GroupId::METADATA, &catalog.control.members, leader)?;
        let mut names = Names::default();
        catalog.decode_topics(&mut reader, &mut names)?;
        catalog.decode_events(&mut reader, &mut names)?;
        reader.finish()?;
        Ok(catalog)
    }

    fn decode_nodes(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        for _ in 0..reader.count("nodes", NODES_MAX, NodeRegistration::LEN_MIN)? {
            let node = NodeRegistration::decode(reader)?;
            let last = self.nodes.last().map(|(last, _)| *last);
            ensure(last < Some(node.id), || format!("node {} is out of order", node.id))?;
            let twin = self.nodes().find(|known| known.incarnation == node.incarnation);
            ensure(twin.is_none(), || format!("node {} has the incarnation of another", node.id))?;
            ensure(self.cluster.is_some(), || format!("node {} is in no cluster", node.id))?;
            Arc::make_mut(&mut self.loads).insert(node.id, placement::Load::default());
            self.nodes.insert(node.id, Arc::new(node.into()));
        }
        Ok(())
    }

    fn decode_topics(&mut self, reader: &mut Reader<'_>, names: &mut Names) -> Result<(), DecodeError> {
        for _ in 0..reader.count("topics", TOPICS_MAX, TOPIC_LEN_MIN)? {
            let name = names.shared(reader.text("topic name", TOPIC_NAME_BYTES_MAX)?);
            validate_topic_name(&name).map_err(|error| DecodeError::Contradiction(error.to_string()))?;
            ensure(self.topics.last().is_none_or(|(last, _)| *last < name), || {
                format!("topic `{name}` is out of order")
            })?;
            let mut topic = Topic {
                name,
                id: TopicId(reader.array("topic id")?),
                replication: reader.u32("replication")?,
                batch_bytes_max: reader.u32("batch bytes max")?,
                created: TimestampMs(reader.u64("creation time")?),
                groups: Arc::default(),
            };
            let limits = (1..=REPLICAS_MAX as u32).contains(&topic.replication)
                && (1..=BATCH_BYTES_MAX as u32).contains(&topic.batch_bytes_max);
            ensure(limits, || format!("topic `{}` breaks a limit: {topic:?}", topic.name))?;
            let count = reader.count("partitions of a topic", TOPIC_PARTITIONS_MAX, PARTITION_LEN_MIN)?;
            ensure(count > 0, || format!("topic `{}` has no partitions", topic.name))?;
            self.decode_partitions(&mut topic, count, reader)?;
            let topic = Arc::new(topic);
            let twice = self.topics_by_id.insert(topic.id, topic.clone()).is_some();
            ensure(!twice, || format!("topic id {} is there twice", topic.id))?;
            self.topics.insert(topic.name.clone(), topic);
        }
        let partitions = self.partitions.len();
        ensure(partitions <= PARTITIONS_MAX, || format!("{partitions} partitions; at most {PARTITIONS_MAX}"))
    }

    fn decode_partitions(
        &mut self,
        topic: &mut Topic,
        count: usize,
        reader: &mut Reader<'_>,
    ) -> Result<(), DecodeError> {
        let mut groups = Vec::with_capacity(count);
        for number in 0..count as u32 {
            let group = GroupId(reader.u64("group")?);
            ensure(group > GroupId::METADATA && group < self.next_group, || {
                format!("group {group} was never given; the next one is {}", self.next_group)
            })?;
            let mut founding = Vec::with_capacity(REPLICAS_MAX);
            for _ in 0..reader.count("founding replicas", REPLICAS_MAX, 4)? {
                founding.push(NodeId(reader.u32("founding replica")?));
            }
            let distinct: BTreeSet<NodeId> = founding.iter().copied().collect();
            ensure(founding.len() == topic.replication as usize && distinct.len() == founding.len(), || {
                format!("group {group} was founded on {founding:?}; its topic has {} replicas", topic.replication)
            })?;
            let leader = decode_leader(reader)?;
            let members = decode_members(Members::founding(&founding), reader)?;
            self.check_members(group, &members, leader)?;
            placement::add(Arc::make_mut(&mut self.loads), founding.first().copied(), &members.nodes());
            groups.push(group);
            let partition = Partition {
                group,
                topic: topic.id,
                topic_name: topic.name.clone(),
                number,
                founding: founding.into(),
                members: Arc::new(members),
                leader,
            };
            let twice = self.partitions.insert(group, Arc::new(partition)).is_some();
            ensure(!twice, || format!("group {group} is there twice"))?;
        }
        topic.groups = Arc::new(groups);
        Ok(())
    }

    fn check_members(&self, group: GroupId, members: &Members, leader: Option<Leader>) -> Result<(), DecodeError> {
        let limit = if group == GroupId::METADATA { NODES_MAX } else { REPLICAS_MAX };
        let lists = [&members.voters, &members.outgoing, &members.learners];
        ensure(lists.iter().all(|list| list.len() <= limit), || format!("group {group} has too many members"))?;
        let nodes = members.replicas().map(|replica| replica.node()).chain(leader.map(|leader| leader.node));
        let stranger = nodes.into_iter().find(|node| self.node(*node).is_none());
        ensure(stranger.is_none(), || {
            format!("group {group} has node {}, which is not known", stranger.unwrap_or_default())
        })
    }

    fn decode_events(&mut self, reader: &mut Reader<'_>, names: &mut Names) -> Result<(), DecodeError> {
        let count = reader.count("events", CATALOG_EVENTS_MAX, 1)? as u64;
        let before = self.revision.0.checked_sub(count).ok_or(DecodeError::TooLarge {
            field: "number of events",
            value: count,
            limit: self.revision.0,
        })?;
        for revision in before + 1..=self.revision.0 {
            self.events.insert(Revision(revision), decode_change(reader, names)?);
        }
        Ok(())
    }
}

/// Names that were read, so that equal ones share their memory as they did before.
#[derive(Default)]
struct Names(BTreeSet<Arc<str>>);

impl Names {
    fn shared(&mut self, name: Arc<str>) -> Arc<str> {
        if let Some(known) = self.0.get(&name) {
            return known.clone();
        }
        self.0.insert(name.clone());
        name
    }

    fn read(&mut self, reader: &mut Reader<'_>) -> Result<Arc<str>, DecodeError> {
        Ok(self.shared(reader.text("topic name", TOPIC_NAME_BYTES_MAX)?))
    }
}

fn decode_cluster(reader: &mut Reader<'_>) -> Result<Option<Cluster>, DecodeError> {
    if !decode_flag("founded", reader)? {
        return Ok(None);
    }
    let id = ClusterId(reader.array("cluster id")?);
    let mut founders: Vec<(NodeId, Incarnation)> = Vec::new();
    for _ in 0..reader.count("founders", NODES_MAX, FOUNDER_LEN)? {
        let node = NodeId(reader.u32("founder")?);
        let last = founders.last().map(|(last, _)| *last);
        ensure(last < Some(node), || format!("founder {node} is out of order"))?;
        founders.push((node, Incarnation(reader.array("founder's incarnation")?)));
    }
    ensure(!founders.is_empty(), || "a cluster was founded by nobody".into())?;
    Ok(Some(Cluster { id, founders }))
}

fn encode_leader(leader: Option<Leader>, into: &mut BytesMut) {
    into.put_u8(leader.is_some().into());
    if let Some(leader) = leader {
        into.put_u32_le(leader.node.0);
        into.put_u64_le(leader.term.0);
    }
}

fn decode_leader(reader: &mut Reader<'_>) -> Result<Option<Leader>, DecodeError> {
    let known = decode_flag("leader known", reader)?;
    known.then(|| read_leader(reader)).transpose()
}

fn read_leader(reader: &mut Reader<'_>) -> Result<Leader, DecodeError> {
    let leader = Leader { node: NodeId(reader.u32("leader's node")?), term: Term(reader.u64("leader's term")?) };
    ensure(leader.term > Term::ZERO, || format!("node {} leads in no term", leader.node))?;
    Ok(leader)
}

fn encode_members(members: &Members, into: &mut BytesMut) {
    into.put_u64_le(members.index.0);
    if members.index > LogIndex::ZERO {
        members.encode_lists(into);
    }
}

fn decode_members(founding: Members, reader: &mut Reader<'_>) -> Result<Members, DecodeError> {
    match LogIndex(reader.u64("index of members")?) {
        LogIndex::ZERO => Ok(founding),
        index => Members::decode_lists(index, reader),
    }
}

fn encode_change(change: &Change, into: &mut BytesMut) {
    match change {
        Change::ControlSet => into.put_u8(EVENT_CONTROL_SET),
        Change::TopicSet { topic, name } => {
            into.put_u8(EVENT_TOPIC_SET);
            into.put_slice(&topic.0);
            put_text(into, name);
        }
        Change::TopicDeleted { topic, name } => {
            into.put_u8(EVENT_TOPIC_DELETED);
            into.put_slice(&topic.0);
            put_text(into, name);
        }
        Change::LeaderChanged { group, topic, partition, leader } => {
            into.put_u8(EVENT_LEADER_CHANGED);
            into.put_u64_le(group.0);
            put_text(into, topic);
            into.put_u32_le(*partition);
            into.put_u32_le(leader.node.0);
            into.put_u64_le(leader.term.0);
        }
        Change::NodeSet { node } => {
            into.put_u8(EVENT_NODE_SET);
            into.put_u32_le(node.0);
        }
    }
}

fn decode_change(reader: &mut Reader<'_>, names: &mut Names) -> Result<Change, DecodeError> {
    Ok(match reader.u8("kind of event")? {
        EVENT_CONTROL_SET => Change::ControlSet,
        EVENT_TOPIC_SET => Change::TopicSet { topic: TopicId(reader.array("topic id")?), name: names.read(reader)? },
        EVENT_TOPIC_DELETED => {
            Change::TopicDeleted { topic: TopicId(reader.array("topic id")?), name: names.read(reader)? }
        }
        EVENT_LEADER_CHANGED => Change::LeaderChanged {
            group: GroupId(reader.u64("group")?),
            topic: names.read(reader)?,
            partition: reader.u32("partition")?,
            leader: read_leader(reader)?,
        },
        EVENT_NODE_SET => Change::NodeSet { node: NodeId(reader.u32("node id")?) },
        kind => return Err(DecodeError::Forbidden { field: "kind of event", value: kind.into() }),
    })
}

fn decode_flag(field: &'static str, reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(DecodeError::Forbidden { field, value: value.into() }),
    }
}

fn ensure(holds: bool, or: impl FnOnce() -> String) -> Result<(), DecodeError> {
    if holds {
        Ok(())
    } else {
        Err(DecodeError::Contradiction(or()))
    }
}

impl From<&Node> for NodeRegistration {
    fn from(node: &Node) -> NodeRegistration {
        let Node { id, incarnation, client_address, peer_address, version } = node.clone();
        NodeRegistration { id, incarnation, client_address, peer_address, version }
    }
}
