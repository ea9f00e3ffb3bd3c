//! Applies commands to the catalog.
//!
//! Everything that can refuse is asked before anything changes: a refused command changes nothing but the log's time. Each
//! change makes one revision and one event; what changes nothing makes none, so that nodes can say the same thing again after a
//! lost answer. Leaders only ever move to a higher term, members to a later index.

use super::catalog::{Catalog, Change, Cluster, Control, Leader, Members, Node, Partition, Topic};
use super::command::{control_members, Bootstrap, MetadataCommand, NodeRegistration};
use super::names::validate_topic_name;
use super::placement;
use crate::group::machine::{Applied, Place, StateMachine};
use crate::ids::{GroupId, Incarnation, NodeId, Offset, Term, TimestampMs, TopicId};
use crate::limits::{
    BATCH_BYTES_MAX, CATALOG_EVENTS_MAX, NODES_MAX, PARTITIONS_MAX, REPLICAS_MAX, TOPICS_MAX, TOPIC_PARTITIONS_MAX,
};
use crate::segments::verdict::{Refusal, Verdict};
use crate::{planted, reached};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Replicas of a partition whose topic does not say how many, if there are as many nodes.
const REPLICATION_DEFAULT: u32 = 3;

/// A bound of the catalog, as `Refusal::LimitReached` numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Bound {
    /// Topics in the cluster.
    Topics = 33,
    /// Partitions in the cluster.
    Partitions = 34,
    /// Partitions of one topic.
    TopicPartitions = 35,
    /// Replicas of one partition.
    Replicas = 36,
    /// Nodes in the cluster.
    Nodes = 37,
    /// Bytes of one batch.
    BatchBytes = 38,
}

impl Bound {
    /// The bound of that number.
    #[must_use]
    pub const fn from_code(code: u64) -> Option<Bound> {
        match code {
            33 => Some(Bound::Topics),
            34 => Some(Bound::Partitions),
            35 => Some(Bound::TopicPartitions),
            36 => Some(Bound::Replicas),
            37 => Some(Bound::Nodes),
            38 => Some(Bound::BatchBytes),
            _ => None,
        }
    }

    /// Refuses a number above this bound.
    fn hold(self, wanted: usize, limit: usize) -> Result<(), Refusal> {
        if wanted <= limit {
            return Ok(());
        }
        Err(Refusal::LimitReached { which: self as u64, limit: limit as u64 })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bound::Topics => "topics of the cluster",
            Bound::Partitions => "partitions of the cluster",
            Bound::TopicPartitions => "partitions of one topic",
            Bound::Replicas => "replicas of one partition",
            Bound::Nodes => "nodes of the cluster",
            Bound::BatchBytes => "bytes of one batch",
        })
    }
}

/// The state of group 0.
#[derive(Clone, Debug)]
pub struct Metadata {
    pub(super) catalog: Arc<Catalog>,
}

impl Metadata {
    /// A catalog that nothing was applied to.
    #[must_use]
    pub fn new() -> Metadata {
        Metadata { catalog: Arc::new(Catalog { next_group: GroupId::METADATA.next(), ..Catalog::default() }) }
    }

    /// The catalog as it stands.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }
}

impl Default for Metadata {
    fn default() -> Self {
        Metadata::new()
    }
}

impl StateMachine for Metadata {
    type View = Arc<Catalog>;

    fn apply(&mut self, place: Place, command: &Bytes) -> Applied {
        let catalog = Arc::make_mut(&mut self.catalog);
        catalog.timestamp = catalog.timestamp.max(place.timestamp);
        let decided = match MetadataCommand::decode(command) {
            Err(_) => Err(Refusal::Malformed),
            Ok(command) => catalog.decide(command),
        };
        let verdict = match decided {
            Ok(extra) => Verdict::Done { value: catalog.revision.0, extra },
            Err(refusal) => Verdict::Refused(refusal),
        };
        Applied { verdict, batch_at: None }
    }

    fn adds_data(command: &Bytes) -> bool {
        MetadataCommand::adds_data(command)
    }

    /// Whoever watches resumes from the remembered events, never from older entries.
    fn log_start(&self) -> Offset {
        Offset(self.catalog.revision.0.saturating_sub(CATALOG_EVENTS_MAX as u64))
    }

    fn tail(&self) -> Offset {
        Offset(self.catalog.revision.0)
    }

    fn snapshot(&self) -> Bytes {
        let mut into = bytes::BytesMut::new();
        self.catalog.encode(&mut into);
        into.freeze()
    }

    fn restore(snapshot: &Bytes) -> Result<Metadata, String> {
        let catalog = Catalog::decode(snapshot).map_err(|error| format!("snapshot of the catalog: {error}"))?;
        Ok(Metadata { catalog: Arc::new(catalog) })
    }

    fn view(&self) -> Arc<Catalog> {
        self.catalog.clone()
    }
}

/// Each returns the verdict's `extra`.
impl Catalog {
    fn decide(&mut self, command: MetadataCommand) -> Result<u64, Refusal> {
        if let MetadataCommand::Bootstrap(genesis) = command {
            return self.bootstrap(&genesis);
        }
        if self.cluster.is_none() {
            return Err(Refusal::NotFound);
        }
        match command {
            MetadataCommand::Bootstrap(genesis) => self.bootstrap(&genesis),
            MetadataCommand::RegisterNode(node) => self.register(node),
            MetadataCommand::CreateTopic { topic, name, partitions, replication, batch_bytes_max } => {
                self.create_topic(topic, name, [partitions, replication, batch_bytes_max])
            }
            MetadataCommand::AlterTopic { name, partitions, batch_bytes_max } => {
                self.alter_topic(&name, partitions, batch_bytes_max)
            }
            MetadataCommand::DeleteTopic { name } => self.delete_topic(&name),
            MetadataCommand::ReportLeader { group, node, term } => self.report_leader(group, Leader { node, term }),
            MetadataCommand::ReportMembers { group, members } => self.report_members(group, members),
        }
    }

    fn record(&mut self, change: Change) {
        self.revision = self.revision.next();
        self.events.insert(self.revision, change);
        if self.events.len() > CATALOG_EVENTS_MAX {
            let oldest = self.events.first().map(|(revision, _)| *revision);
            oldest.and_then(|revision| self.events.remove(&revision));
        }
    }

    fn bootstrap(&mut self, genesis: &Bootstrap) -> Result<u64, Refusal> {
        let mut nodes = genesis.founders.clone();
        nodes.sort_by_key(|node| node.id);
        let same = |pair: &[NodeRegistration]| pair[0].id == pair[1].id || pair[0].incarnation == pair[1].incarnation;
        if nodes.is_empty() || nodes.windows(2).any(same) {
            return Err(Refusal::Malformed);
        }
        let founders: Vec<(NodeId, Incarnation)> = nodes.iter().map(|node| (node.id, node.incarnation)).collect();
        if let Some(cluster) = &self.cluster {
            if cluster.id == genesis.cluster_id && cluster.founders == founders {
                return Ok(0);
            }
            return Err(conflict(&genesis.cluster_id.0, &cluster.id.0));
        }
        let members = control_members(founders.iter().map(|(node, _)| *node).collect());
        self.control = Arc::new(Control { members, leader: None });
        self.cluster = Some(Arc::new(Cluster { id: genesis.cluster_id, founders }));
        self.record(Change::ControlSet);
        nodes.into_iter().for_each(|node| self.set_node(node));
        Ok(0)
    }

    fn register(&mut self, node: NodeRegistration) -> Result<u64, Refusal> {
        match self.nodes.get(&node.id) {
            Some(known) if known.incarnation != node.incarnation => {
                return Err(conflict(&node.incarnation.0, &known.incarnation.0));
            }
            Some(known) if **known == Node::from(node.clone()) => return Ok(0),
            Some(_) => {}
            None => {
                if let Some(twin) = self.nodes().find(|known| known.incarnation == node.incarnation) {
                    return Err(Refusal::Conflict { wanted: node.id.0.into(), actual: twin.id.0.into() });
                }
                Bound::Nodes.hold(self.nodes.len() + 1, NODES_MAX)?;
            }
        }
        self.set_node(node);
        Ok(0)
    }

    fn set_node(&mut self, node: NodeRegistration) {
        let id = node.id;
        self.nodes.insert(id, Arc::new(node.into()));
        Arc::make_mut(&mut self.loads).entry(id).or_default();
        self.record(Change::NodeSet { node: id });
    }

    fn create_topic(
        &mut self,
        id: TopicId,
        name: Arc<str>,
        [partitions, replication, batch_bytes_max]: [u32; 3],
    ) -> Result<u64, Refusal> {
        validate_topic_name(&name).map_err(|_| Refusal::Malformed)?;
        if let Some(topic) = self.topic(&name) {
            // The same id: a retry of the command that created it.
            return if topic.id == id { Ok(first_group(topic)) } else { Err(Refusal::Exists) };
        }
        if self.topic_by_id(id).is_some() {
            return Err(Refusal::Exists);
        }
        let partitions = partitions.max(1);
        let replication = match replication {
            0 => REPLICATION_DEFAULT.min(self.nodes.len() as u32),
            replication => replication,
        };
        Bound::Topics.hold(self.topics.len() + 1, TOPICS_MAX)?;
        self.hold_partitions(0, partitions)?;
        Bound::Replicas.hold(replication as usize, REPLICAS_MAX)?;
        self.hold_replication(replication)?;
        let batch_bytes_max = batch_bytes(batch_bytes_max)?;
        let created: TimestampMs = self.timestamp;
        let mut topic = Topic { name, id, replication, batch_bytes_max, created, groups: Arc::default() };
        self.add_partitions(&mut topic, partitions);
        let first = first_group(&topic);
        self.set_topic(topic);
        Ok(first)
    }

    fn alter_topic(&mut self, name: &str, partitions: Option<u32>, limit: Option<u32>) -> Result<u64, Refusal> {
        let mut topic = Topic::clone(self.topic(name).ok_or(Refusal::NotFound)?);
        let present = topic.groups.len() as u32;
        let wanted = partitions.unwrap_or(present);
        let Some(added) = wanted.checked_sub(present) else {
            return Err(Refusal::Conflict { wanted: wanted.into(), actual: present.into() });
        };
        let limit = limit.map_or(Ok(topic.batch_bytes_max), batch_bytes)?;
        if added == 0 && limit == topic.batch_bytes_max {
            return Ok(0);
        }
        if added > 0 {
            self.hold_partitions(present, added)?;
            self.hold_replication(topic.replication)?;
        }
        topic.batch_bytes_max = limit;
        self.add_partitions(&mut topic, added);
        self.set_topic(topic);
        Ok(0)
    }

    fn hold_partitions(&self, present: u32, added: u32) -> Result<(), Refusal> {
        Bound::TopicPartitions.hold(present as usize + added as usize, TOPIC_PARTITIONS_MAX)?;
        Bound::Partitions.hold(self.partitions.len() + added as usize, PARTITIONS_MAX)
    }

    /// Every replica needs a node of its own.
    fn hold_replication(&self, replication: u32) -> Result<(), Refusal> {
        let nodes = self.nodes.len() as u64;
        if u64::from(replication) > nodes {
            return Err(Refusal::Conflict { wanted: replication.into(), actual: nodes });
        }
        Ok(())
    }

    fn add_partitions(&mut self, topic: &mut Topic, count: u32) {
        let groups = Arc::make_mut(&mut topic.groups);
        let loads = Arc::make_mut(&mut self.loads);
        for _ in 0..count {
            let group = self.next_group;
            self.next_group = group.next();
            let founding: Arc<[NodeId]> = placement::place(loads, topic.replication as usize).into();
            placement::add(loads, founding.first().copied(), &founding);
            let partition = Partition {
                group,
                topic: topic.id,
                topic_name: topic.name.clone(),
                number: groups.len() as u32,
                members: Arc::new(Members::founding(&founding)),
                founding,
                leader: None,
            };
            groups.push(group);
            self.partitions.insert(group, Arc::new(partition));
        }
    }

    fn set_topic(&mut self, topic: Topic) {
        let topic = Arc::new(topic);
        self.topics.insert(topic.name.clone(), topic.clone());
        self.topics_by_id.insert(topic.id, topic.clone());
        self.record(Change::TopicSet { topic: topic.id, name: topic.name.clone() });
    }

    fn delete_topic(&mut self, name: &str) -> Result<u64, Refusal> {
        let topic = self.topics.remove(name).ok_or(Refusal::NotFound)?;
        self.topics_by_id.remove(&topic.id);
        let loads = Arc::make_mut(&mut self.loads);
        for group in topic.groups.iter() {
            if let Some(partition) = self.partitions.remove(group) {
                placement::subtract(loads, partition.founding.first().copied(), &partition.members.nodes());
            }
        }
        self.record(Change::TopicDeleted { topic: topic.id, name: topic.name.clone() });
        Ok(0)
    }

    fn report_leader(&mut self, group: GroupId, leader: Leader) -> Result<u64, Refusal> {
        if leader.term == Term::ZERO {
            return Err(Refusal::Malformed);
        }
        if self.node(leader.node).is_none() || (group != GroupId::METADATA && self.partition(group).is_none()) {
            return Err(Refusal::NotFound);
        }
        match self.leader(group) {
            Some(known) if known == leader => return Ok(0),
            Some(known) if known.term >= leader.term && !planted!("leader-report-goes-back") => {
                reached!("late report of a leader");
                return Err(Refusal::Conflict { wanted: leader.term.0, actual: known.term.0 });
            }
            _ => {}
        }
        let (topic, partition) = match self.partition(group) {
            None => {
                Arc::make_mut(&mut self.control).leader = Some(leader);
                (Arc::from(""), 0)
            }
            Some(partition) => {
                let mut partition = Partition::clone(partition);
                partition.leader = Some(leader);
                let names = (partition.topic_name.clone(), partition.number);
                self.partitions.insert(group, Arc::new(partition));
                names
            }
        };
        self.record(Change::LeaderChanged { group, topic, partition, leader });
        Ok(0)
    }

    fn report_members(&mut self, group: GroupId, members: Members) -> Result<u64, Refusal> {
        let (known, limit) = match self.partition(group) {
            Some(partition) => (&*partition.members, REPLICAS_MAX),
            None if group == GroupId::METADATA => (&self.control.members, NODES_MAX),
            None => return Err(Refusal::NotFound),
        };
        if members == *known {
            return Ok(0);
        }
        if members.index <= known.index {
            return Err(Refusal::Conflict { wanted: members.index.0, actual: known.index.0 });
        }
        for list in [&members.voters, &members.outgoing, &members.learners] {
            Bound::Replicas.hold(list.len(), limit)?;
        }
        if members.replicas().any(|replica| self.node(replica.node()).is_none()) {
            return Err(Refusal::NotFound);
        }
        self.set_members(group, members);
        Ok(0)
    }

    fn set_members(&mut self, group: GroupId, members: Members) {
        let Some(partition) = self.partition(group) else {
            Arc::make_mut(&mut self.control).members = members;
            return self.record(Change::ControlSet);
        };
        let mut partition = Partition::clone(partition);
        let preferred = partition.founding.first().copied();
        let loads = Arc::make_mut(&mut self.loads);
        placement::subtract(loads, preferred, &partition.members.nodes());
        placement::add(loads, preferred, &members.nodes());
        partition.members = Arc::new(members);
        let change = Change::TopicSet { topic: partition.topic, name: partition.topic_name.clone() };
        self.partitions.insert(group, Arc::new(partition));
        self.record(change);
    }
}

impl From<NodeRegistration> for Node {
    fn from(node: NodeRegistration) -> Node {
        let NodeRegistration { id, incarnation, client_address, peer_address, version } = node;
        Node { id, incarnation, client_address, peer_address, version }
    }
}

fn first_group(topic: &Topic) -> u64 {
    topic.groups.first().map_or(0, |group| group.0)
}

fn batch_bytes(wanted: u32) -> Result<u32, Refusal> {
    Bound::BatchBytes.hold(wanted as usize, BATCH_BYTES_MAX)?;
    Ok(if wanted == 0 { BATCH_BYTES_MAX as u32 } else { wanted })
}

/// Two identities that differ, by their first bytes.
fn conflict(wanted: &[u8; 16], actual: &[u8; 16]) -> Refusal {
    let start = |bytes: &[u8; 16]| (u128::from_be_bytes(*bytes) >> 64) as u64;
    Refusal::Conflict { wanted: start(wanted), actual: start(actual) }
}
