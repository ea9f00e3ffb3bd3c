//! The catalog: nodes, topics, partitions and their leaders at one revision, and the changes that led there.
//!
//! A [`Catalog`] is an immutable snapshot for whoever holds it: routing, status, watchers. The state machine changes its own
//! copy, which shares everything but the changed parts with those that are out. Only committed facts are in here; what a node
//! believes about its neighbours right now is not.
//!
//! Every change has one revision and one event. Events tell *what* changed and leave the rest to be looked up in the catalog
//! that came with them, so that a topic of ten thousand partitions is not remembered once for each time it was altered. A
//! watcher that looks up something which is gone by now finds the event of its deletion further on.

use super::placement::Load;
use super::shared_map::SharedMap;
use crate::ids::{ClusterId, GroupId, Incarnation, LogIndex, NodeId, ReplicaId, Revision, Term, TimestampMs, TopicId};
use raft::eraftpb::ConfState;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The cluster's genesis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// Derived from all founders' incarnations.
    pub id: ClusterId,
    /// The founders and their incarnations, ascending by node.
    pub founders: Vec<(NodeId, Incarnation)>,
}

/// A node that the cluster knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Of its data directory; the same number with another one is refused.
    pub incarnation: Incarnation,
    /// Where clients reach it.
    pub client_address: Arc<str>,
    /// Where nodes reach it.
    pub peer_address: Arc<str>,
    /// The version of the software it last registered with.
    pub version: Arc<str>,
}

/// A topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topic {
    /// Its name; never changes.
    pub name: Arc<str>,
    /// Its identity: a topic deleted and created again has another one.
    pub id: TopicId,
    /// Replicas of each partition.
    pub replication: u32,
    /// Largest batch its doors take, in bytes.
    pub batch_bytes_max: u32,
    /// The log's time when it was created.
    pub created: TimestampMs,
    /// The group of each partition, by number.
    pub groups: Arc<Vec<GroupId>>,
}

/// A partition of a topic: a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    /// Its group.
    pub group: GroupId,
    /// The topic it belongs to.
    pub topic: TopicId,
    /// That topic's name.
    pub topic_name: Arc<str>,
    /// Its number in the topic, from zero.
    pub number: u32,
    /// The nodes that found the group, the preferred leader first.
    pub founding: Arc<[NodeId]>,
    /// The replicas by the last report, at first the founding ones.
    pub members: Arc<Members>,
    /// The leader of the highest term that was reported.
    pub leader: Option<Leader>,
}

/// Who leads a group as of a term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leader {
    /// The leader's node.
    pub node: NodeId,
    /// Its term.
    pub term: Term,
}

/// A group's configuration as applied at an index of its log. Each list ascends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// Where in the group's log it was applied; zero: the founding one.
    pub index: LogIndex,
    /// The voters; of a joint configuration, the incoming ones.
    pub voters: Vec<ReplicaId>,
    /// The outgoing voters of a joint configuration.
    pub outgoing: Vec<ReplicaId>,
    /// Those that learn the log without a vote, those included that become learners when the joint configuration is left.
    pub learners: Vec<ReplicaId>,
}

/// Group 0 itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Control {
    /// Its replicas by the last report, at first the founders' votes.
    pub members: Members,
    /// The leader of the highest term that was reported.
    pub leader: Option<Leader>,
}

/// What the catalog says about a group number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupStanding {
    /// It is in the catalog.
    Present,
    /// It was, and its topic or it was deleted. Numbers are never used again.
    Removed,
    /// No revision up to this one had it; a later one may.
    NotYet,
}

/// One change of the catalog.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogEvent {
    /// The revision that the change made.
    pub revision: Revision,
    /// What changed.
    pub change: Change,
}

/// What changed; the catalog that came with the event has the present state of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The cluster was founded, or the members of group 0 changed.
    ControlSet,
    /// A topic was created or altered, or the members of one of its partitions changed.
    TopicSet {
        /// Its identity.
        topic: TopicId,
        /// Its name.
        name: Arc<str>,
    },
    /// A topic was deleted.
    TopicDeleted {
        /// Its identity.
        topic: TopicId,
        /// Its name.
        name: Arc<str>,
    },
    /// A group has a new leader.
    LeaderChanged {
        /// The group.
        group: GroupId,
        /// The partition's topic; empty for group 0.
        topic: Arc<str>,
        /// The partition's number; zero for group 0.
        partition: u32,
        /// The leader.
        leader: Leader,
    },
    /// A node registered, or changed its addresses.
    NodeSet {
        /// The node.
        node: NodeId,
    },
}

/// The revision asked for is older than what is remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("changes after revision {wanted} are no longer remembered, those after {oldest} are; start again from revision 0, which sends the present state first")]
pub struct Compacted {
    /// The revision that was asked for.
    pub wanted: Revision,
    /// The lowest revision after which all changes are remembered.
    pub oldest: Revision,
}

/// Nodes, topics, partitions and leaders at one revision.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Invariant: the revision of the newest event, if there is one.
    pub(super) revision: Revision,
    pub(super) timestamp: TimestampMs,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) control: Arc<Control>,
    pub(super) nodes: SharedMap<NodeId, Arc<Node>>,
    pub(super) topics: SharedMap<Arc<str>, Arc<Topic>>,
    /// Invariant: the same topics as in `topics`.
    pub(super) topics_by_id: SharedMap<TopicId, Arc<Topic>>,
    /// Invariant: exactly the groups that `topics` list, all below `next_group`.
    pub(super) partitions: SharedMap<GroupId, Arc<Partition>>,
    /// Invariant: above every group that ever was. With `partitions` it tells removed groups from those to come, so that no
    /// list of the removed ones must be kept.
    pub(super) next_group: GroupId,
    /// Invariant: revisions without a gap, at most `CATALOG_EVENTS_MAX`.
    pub(super) events: SharedMap<Revision, Change>,
    /// Invariant: an entry for each node; follows from `partitions`.
    pub(super) loads: Arc<BTreeMap<NodeId, Load>>,
}

impl Catalog {
    /// The revision: one per change, only ever forward.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The log's time.
    #[must_use]
    pub fn timestamp(&self) -> TimestampMs {
        self.timestamp
    }

    /// The genesis; `None` before it is applied.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_deref()
    }

    /// Group 0 itself.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// All nodes, ascending by number.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = &Arc<Node>> + Clone {
        self.nodes.values()
    }

    /// A node.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&node)
    }

    /// All topics, ascending by name.
    pub fn topics(&self) -> impl DoubleEndedIterator<Item = &Arc<Topic>> + Clone {
        self.topics.values()
    }

    /// How many topics there are.
    #[must_use]
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// The topic of that name.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    /// The topic of that identity.
    #[must_use]
    pub fn topic_by_id(&self, topic: TopicId) -> Option<&Arc<Topic>> {
        self.topics_by_id.get(&topic)
    }

    /// All partitions, ascending by group.
    pub fn partitions(&self) -> impl DoubleEndedIterator<Item = &Arc<Partition>> + Clone {
        self.partitions.values()
    }

    /// How many partitions there are.
    #[must_use]
    pub fn partition_count(&self) -> usize {
        self.partitions.len()
    }

    /// The partition that is this group.
    #[must_use]
    pub fn partition(&self, group: GroupId) -> Option<&Arc<Partition>> {
        self.partitions.get(&group)
    }

    /// A partition by its topic's name and its number.
    #[must_use]
    pub fn partition_of(&self, topic: &str, number: u32) -> Option<&Arc<Partition>> {
        self.partition(*self.topic(topic)?.groups.get(number as usize)?)
    }

    /// The partitions of a topic, by number.
    pub fn partitions_of<'a>(&'a self, topic: &'a Topic) -> impl Iterator<Item = &'a Arc<Partition>> + 'a {
        topic.groups.iter().filter_map(|group| self.partition(*group))
    }

    /// The partitions that have a replica on a node, ascending by group.
    pub fn partitions_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<Partition>> + '_ {
        self.partitions().filter(move |partition| partition.members.on(node))
    }

    /// A group's leader, of the highest term that was reported; group 0 included.
    #[must_use]
    pub fn leader(&self, group: GroupId) -> Option<Leader> {
        match group {
            GroupId::METADATA => self.control.leader,
            group => self.partition(group)?.leader,
        }
    }

    /// Whether a group is there, was, or may still come.
    #[must_use]
    pub fn standing(&self, group: GroupId) -> GroupStanding {
        if group == GroupId::METADATA || self.partition(group).is_some() {
            GroupStanding::Present
        } else if group < self.next_group {
            GroupStanding::Removed
        } else {
            GroupStanding::NotYet
        }
    }

    /// The lowest revision after which all changes are remembered.
    #[must_use]
    pub fn oldest_resumable(&self) -> Revision {
        self.events.first().map_or(self.revision, |(first, _)| Revision(first.0 - 1))
    }

    /// The changes after a revision, oldest first. None for a revision that this node has not reached yet.
    ///
    /// # Errors
    /// [`Compacted`] if not all of them are remembered.
    pub fn events_after(&self, revision: Revision) -> Result<Vec<CatalogEvent>, Compacted> {
        let oldest = self.oldest_resumable();
        if revision < oldest {
            return Err(Compacted { wanted: revision, oldest });
        }
        let events = self.events.after(&revision);
        Ok(events.map(|(revision, change)| CatalogEvent { revision: *revision, change: change.clone() }).collect())
    }
}

impl Members {
    /// The founding replicas of a group on these nodes, all of which vote.
    pub(super) fn founding(nodes: &[NodeId]) -> Members {
        let mut voters: Vec<ReplicaId> = nodes.iter().map(|node| ReplicaId::founding(*node)).collect();
        voters.sort_unstable();
        Members { voters, ..Members::default() }
    }

    /// A configuration as Raft holds it, applied at `index`.
    #[must_use]
    pub fn from_conf_state(index: LogIndex, conf: &ConfState) -> Members {
        let replicas = |lists: &[&[u64]]| {
            let mut all: Vec<ReplicaId> = lists.concat().into_iter().map(ReplicaId).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        Members {
            index,
            voters: replicas(&[&conf.voters]),
            outgoing: replicas(&[&conf.voters_outgoing]),
            learners: replicas(&[&conf.learners, &conf.learners_next]),
        }
    }

    /// All replicas; one may come twice while a joint configuration lasts.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied()
    }

    /// Whether one of the replicas is on a node.
    #[must_use]
    pub fn on(&self, node: NodeId) -> bool {
        self.replicas().any(|replica| replica.node() == node)
    }

    /// The nodes that hold a replica, ascending, each once.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.replicas().map(ReplicaId::node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}
