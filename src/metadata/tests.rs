//! The catalog's rules, each told as a story.

use super::catalog::{CatalogEvent, Change, Compacted, GroupStanding, Leader, Members};
use super::command::{Bootstrap, MetadataCommand, NodeRegistration};
use super::state::{Bound, Metadata};
use crate::group::machine::{Place, StateMachine};
use crate::ids::{ClusterId, GroupId, Incarnation, LogIndex, NodeId, ReplicaId, Revision, Term, TimestampMs, TopicId};
use crate::limits::{BATCH_BYTES_MAX, CATALOG_EVENTS_MAX, NODES_MAX, PARTITIONS_MAX, TOPIC_PARTITIONS_MAX};
use crate::segments::verdict::{Refusal, Verdict};
use bytes::Bytes;
use raft::eraftpb::ConfState;
use std::sync::Arc;

pub(super) fn node(id: u32) -> NodeRegistration {
    NodeRegistration {
        id: NodeId(id),
        incarnation: Incarnation([id as u8; 16]),
        client_address: format!("10.0.0.{id}:7400").into(),
        peer_address: format!("10.0.0.{id}:7401").into(),
        version: "0.1.0".into(),
    }
}

pub(super) fn genesis(nodes: u32) -> MetadataCommand {
    let founders = (1..=nodes).map(node).collect();
    MetadataCommand::Bootstrap(Bootstrap { cluster_id: ClusterId([7; 16]), founders })
}

pub(super) fn topic_id(number: u32) -> TopicId {
    TopicId(u128::from(number).to_be_bytes())
}

fn create(name: &str, partitions: u32, replication: u32) -> MetadataCommand {
    let topic = TopicId(blake3::hash(name.as_bytes()).as_bytes()[..16].try_into().unwrap());
    MetadataCommand::CreateTopic { topic, name: name.into(), partitions, replication, batch_bytes_max: 0 }
}

fn alter(name: &str, partitions: Option<u32>, batch_bytes_max: Option<u32>) -> MetadataCommand {
    MetadataCommand::AlterTopic { name: name.into(), partitions, batch_bytes_max }
}

fn delete(name: &str) -> MetadataCommand {
    MetadataCommand::DeleteTopic { name: name.into() }
}

fn lead(group: u64, node: u32, term: u64) -> MetadataCommand {
    MetadataCommand::ReportLeader { group: GroupId(group), node: NodeId(node), term: Term(term) }
}

fn members(group: u64, index: u64, voters: &[u32]) -> MetadataCommand {
    let voters = voters.iter().map(|node| ReplicaId::founding(NodeId(*node))).collect();
    let members = Members { index: LogIndex(index), voters, ..Members::default() };
    MetadataCommand::ReportMembers { group: GroupId(group), members }
}

/// Group 0's state and the log it applies.
pub(super) struct Story {
    pub(super) metadata: Metadata,
    pub(super) index: u64,
}

impl Story {
    /// A cluster of that many founders.
    pub(super) fn of(nodes: u32) -> Story {
        let mut story = Story { metadata: Metadata::new(), index: 1 };
        story.done(genesis(nodes));
        story
    }

    pub(super) fn apply(&mut self, command: &Bytes) -> Verdict {
        self.index += 1;
        let timestamp = TimestampMs(1_000 + self.index);
        self.metadata.apply(Place { index: LogIndex(self.index), term: Term(1), timestamp }, command).verdict
    }

    /// Applies a command that must be done, and returns the verdict's extra.
    fn done(&mut self, command: MetadataCommand) -> u64 {
        match self.apply(&command.encode()) {
            Verdict::Done { value, extra } => {
                assert_eq!(value, self.metadata.tail().0);
                extra
            }
            other => panic!("{command:?}: {other:?}"),
        }
    }

    /// Applies a command that must be done without changing anything.
    fn known(&mut self, command: MetadataCommand) -> u64 {
        let before = self.metadata.catalog().revision();
        let extra = self.done(command);
        assert_eq!(self.metadata.catalog().revision(), before);
        extra
    }

    fn refused(&mut self, command: MetadataCommand) -> Refusal {
        let before = Metadata::clone(&self.metadata);
        let verdict = self.apply(&command.encode());
        let mut after = Metadata::clone(&self.metadata);
        Arc::make_mut(&mut after.catalog).timestamp = before.catalog.timestamp;
        assert_eq!(before.snapshot(), after.snapshot(), "a refused command changed something");
        match verdict {
            Verdict::Refused(refusal) => refusal,
            other => panic!("{command:?} was not refused: {other:?}"),
        }
    }
}

#[test]
fn a_cluster_is_founded_once() {
    let mut story = Story { metadata: Metadata::new(), index: 1 };
    assert_eq!(story.refused(create("a", 1, 1)), Refusal::NotFound, "there is no cluster yet");
    story.done(genesis(3));
    story.known(genesis(3));
    let catalog = story.metadata.view();
    assert_eq!(catalog.cluster().unwrap().id, ClusterId([7; 16]));
    assert_eq!(catalog.nodes().map(|node| node.id.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(catalog.control().members, Members::founding(&[NodeId(3), NodeId(1), NodeId(2)]));

    assert!(matches!(story.refused(genesis(2)), Refusal::Conflict { .. }));
    let founders: Vec<NodeRegistration> = (1..=3).rev().map(node).collect();
    let again = |cluster_id, founders| MetadataCommand::Bootstrap(Bootstrap { cluster_id, founders });
    story.known(again(ClusterId([7; 16]), founders.clone()));
    assert!(matches!(story.refused(again(ClusterId([8; 16]), founders)), Refusal::Conflict { .. }));
    assert_eq!(story.refused(again(ClusterId([7; 16]), vec![])), Refusal::Malformed);
    assert_eq!(story.refused(again(ClusterId([7; 16]), vec![node(1), node(1)])), Refusal::Malformed);
}

#[test]
fn at_most_five_founders_vote_in_group_zero() {
    let story = Story::of(7);
    let members = &story.metadata.catalog().control().members;
    let nodes = |list: &[ReplicaId]| list.iter().map(|replica| replica.node().0).collect::<Vec<_>>();
    assert_eq!(nodes(&members.voters), [1, 2, 3, 4, 5]);
    assert_eq!(nodes(&members.learners), [6, 7]);
}

#[test]
fn a_wiped_node_is_a_new_node() {
    let mut story = Story::of(3);
    story.known(MetadataCommand::RegisterNode(node(2)));
    let moved = NodeRegistration { client_address: "elsewhere:1".into(), ..node(2) };
    story.done(MetadataCommand::RegisterNode(moved.clone()));
    assert_eq!(&*story.metadata.catalog().node(NodeId(2)).unwrap().client_address, "elsewhere:1");

    let wiped = NodeRegistration { incarnation: Incarnation([99; 16]), ..moved.clone() };
    assert!(matches!(story.refused(MetadataCommand::RegisterNode(wiped)), Refusal::Conflict { .. }));
    let copied = NodeRegistration { id: NodeId(9), ..moved };
    let twice = story.refused(MetadataCommand::RegisterNode(copied));
    assert_eq!(twice, Refusal::Conflict { wanted: 9, actual: 2 }, "a copied directory is not another node");
    let nobody = NodeRegistration { id: NodeId(0), ..node(50) };
    assert_eq!(story.refused(MetadataCommand::RegisterNode(nobody)), Refusal::Malformed);

    for id in 4..=NODES_MAX as u32 {
        story.done(MetadataCommand::RegisterNode(node(id)));
    }
    let full = Refusal::LimitReached { which: Bound::Nodes as u64, limit: NODES_MAX as u64 };
    assert_eq!(story.refused(MetadataCommand::RegisterNode(node(NODES_MAX as u32 + 1))), full);
    story.known(MetadataCommand::RegisterNode(node(NODES_MAX as u32)));
}

#[test]
fn a_topic_gets_groups_of_its_own_spread_over_the_nodes() {
    let mut story = Story::of(3);
    assert_eq!(story.done(create("access", 4, 0)), 1);
    assert_eq!(story.known(create("access", 4, 0)), 1, "a retry finds it");
    assert_eq!(story.done(create("solo", 0, 1)), 5);
    let catalog = story.metadata.view();
    let topic = catalog.topic("access").unwrap();
    assert_eq!(catalog.topic_by_id(topic.id), Some(topic));
    assert_eq!((topic.replication, topic.batch_bytes_max), (3, BATCH_BYTES_MAX as u32));
    assert_eq!(topic.created, TimestampMs(1_003));
    assert_eq!(**topic.groups, [1, 2, 3, 4].map(GroupId));
    let preferred: Vec<u32> = catalog.partitions_of(topic).map(|partition| partition.founding[0].0).collect();
    assert_eq!(preferred, [1, 2, 3, 1]);
    assert!(catalog.partitions_of(topic).all(|partition| partition.members.voters.len() == 3));
    let solo = catalog.partition_of("solo", 0).unwrap();
    assert_eq!((solo.group, solo.number, &*solo.topic_name), (GroupId(5), 0, "solo"));
    assert_eq!(*solo.founding, [NodeId(2)], "the least loaded");
    assert_eq!(catalog.partition_of("solo", 1), None);
    assert_eq!(catalog.partitions_on(NodeId(2)).count(), 5);
    assert_eq!(catalog.partitions_on(NodeId(3)).count(), 4);
}

#[test]
fn a_topic_that_the_rules_forbid_is_refused() {
    let mut story = Story::of(3);
    story.done(create("access", 1, 3));
    let limit = |bound: Bound, limit: usize| Refusal::LimitReached { which: bound as u64, limit: limit as u64 };
    let with = |topic, name: &str, batch_bytes_max| MetadataCommand::CreateTopic {
        topic,
        name: name.into(),
        partitions: 1,
        replication: 1,
        batch_bytes_max,
    };
    assert_eq!(story.refused(with(topic_id(5), "access", 0)), Refusal::Exists);
    let taken = story.metadata.catalog().topic("access").unwrap().id;
    assert_eq!(story.refused(with(taken, "other", 0)), Refusal::Exists, "an id is another topic's");
    for name in ["", ".", "..", "a b", "a/b"] {
        assert_eq!(story.refused(create(name, 1, 1)), Refusal::Malformed, "{name:?}");
    }
    assert_eq!(story.refused(create("b", 1, 4)), Refusal::Conflict { wanted: 4, actual: 3 });
    assert_eq!(story.refused(create("b", 1, 10)), limit(Bound::Replicas, 9));
    let many = TOPIC_PARTITIONS_MAX as u32 + 1;
    assert_eq!(story.refused(create("b", many, 3)), limit(Bound::TopicPartitions, TOPIC_PARTITIONS_MAX));
    let large = BATCH_BYTES_MAX as u32 + 1;
    assert_eq!(story.refused(with(topic_id(5), "b", large)), limit(Bound::BatchBytes, BATCH_BYTES_MAX));
}

#[test]
fn partitions_of_the_cluster_are_bounded() {
    let mut story = Story::of(3);
    let half = PARTITIONS_MAX as u32 / 2;
    story.done(create("a", half, 3));
    story.done(create("b", half - 1, 3));
    let full = Refusal::LimitReached { which: Bound::Partitions as u64, limit: PARTITIONS_MAX as u64 };
    assert_eq!(story.refused(create("c", 2, 1)), full);
    story.done(create("c", 1, 1));
    assert_eq!(story.refused(alter("c", Some(2), None)), full);
    story.done(delete("b"));
    assert_eq!(story.metadata.catalog().partition_count(), PARTITIONS_MAX / 2 + 1);
    story.done(alter("c", Some(2), None));
}

#[test]
fn partitions_are_added_and_never_taken_away() {
    let mut story = Story::of(3);
    story.done(create("a", 2, 3));
    story.done(create("b", 1, 3));
    story.done(alter("a", Some(4), Some(1_000)));
    story.known(alter("a", Some(4), Some(1_000)));
    story.known(alter("a", None, None));
    assert_eq!(story.refused(alter("a", Some(3), None)), Refusal::Conflict { wanted: 3, actual: 4 });
    assert_eq!(story.refused(alter("c", Some(3), None)), Refusal::NotFound);
    let catalog = story.metadata.view();
    let topic = catalog.topic("a").unwrap();
    assert_eq!((topic.batch_bytes_max, &**topic.groups), (1_000, &[1, 2, 4, 5].map(GroupId)[..]));
    assert_eq!(catalog.partition(GroupId(5)).unwrap().number, 3);
    story.done(alter("a", None, Some(0)));
    assert_eq!(story.metadata.catalog().topic("a").unwrap().batch_bytes_max, BATCH_BYTES_MAX as u32);
}

#[test]
fn the_groups_of_a_deleted_topic_are_never_used_again() {
    let mut story = Story::of(3);
    story.done(create("a", 2, 3));
    let before = story.metadata.view();
    story.done(delete("a"));
    assert_eq!(story.refused(delete("a")), Refusal::NotFound);
    assert_eq!(story.refused(lead(1, 1, 9)), Refusal::NotFound);
    assert_eq!(story.done(create("a", 1, 3)), 3);
    let standings = [0, 1, 2, 3, 4].map(|group| story.metadata.catalog().standing(GroupId(group)));
    use GroupStanding::{NotYet, Present, Removed};
    assert_eq!(standings, [Present, Removed, Removed, Present, NotYet]);
    assert_eq!(before.standing(GroupId(1)), Present, "a view that is out never changes");
    assert_eq!(before.topics().count(), 1);
}

#[test]
fn leaders_only_move_to_a_higher_term() {
    let mut story = Story::of(3);
    story.done(create("a", 1, 3));
    for group in [0, 1] {
        assert_eq!(story.metadata.catalog().leader(GroupId(group)), None);
        story.done(lead(group, 1, 2));
        story.known(lead(group, 1, 2));
        story.done(lead(group, 2, 5));
        assert_eq!(story.refused(lead(group, 1, 4)), Refusal::Conflict { wanted: 4, actual: 5 });
        assert_eq!(story.refused(lead(group, 3, 5)), Refusal::Conflict { wanted: 5, actual: 5 });
        assert_eq!(story.refused(lead(group, 9, 6)), Refusal::NotFound, "a node that nobody knows");
        assert_eq!(story.refused(lead(group, 1, 0)), Refusal::Malformed);
        let leader = Leader { node: NodeId(2), term: Term(5) };
        assert_eq!(story.metadata.catalog().leader(GroupId(group)), Some(leader));
    }
    assert_eq!(story.refused(lead(7, 1, 1)), Refusal::NotFound);
}

#[test]
fn members_only_move_to_a_later_index() {
    let mut story = Story::of(4);
    story.done(create("a", 1, 3));
    story.done(members(1, 10, &[1, 2, 4]));
    story.known(members(1, 10, &[1, 2, 4]));
    assert_eq!(story.refused(members(1, 10, &[1, 2, 3])), Refusal::Conflict { wanted: 10, actual: 10 });
    assert_eq!(story.refused(members(1, 9, &[1, 2, 3])), Refusal::Conflict { wanted: 9, actual: 10 });
    assert_eq!(story.refused(members(2, 9, &[1])), Refusal::NotFound);
    assert_eq!(story.refused(members(1, 11, &[1, 8])), Refusal::NotFound, "a node that nobody knows");
    assert_eq!(story.refused(members(1, 11, &[])), Refusal::Malformed);
    let catalog = story.metadata.view();
    assert_eq!(catalog.partition(GroupId(1)).unwrap().members.nodes(), [1, 2, 4].map(NodeId));
    assert_eq!(catalog.partitions_on(NodeId(3)).count(), 0);
    story.done(create("b", 1, 1));
    let solo = story.metadata.view().partition_of("b", 0).unwrap().founding.clone();
    assert_eq!(*solo, [NodeId(3)], "the load has moved with the replica");
    story.done(members(0, 3, &[1, 2]));
    assert_eq!(story.metadata.catalog().control().members.voters.len(), 2);
}

#[test]
fn a_joint_configuration_is_told_as_raft_holds_it() {
    let conf = ConfState {
        voters: vec![3, 1],
        voters_outgoing: vec![2, 1],
        learners: vec![5],
        learners_next: vec![2],
        ..ConfState::default()
    };
    let replicas = |ids: &[u64]| ids.iter().map(|id| ReplicaId(*id)).collect::<Vec<_>>();
    let members = Members::from_conf_state(LogIndex(8), &conf);
    assert_eq!(members.voters, replicas(&[1, 3]));
    assert_eq!(members.outgoing, replicas(&[1, 2]));
    assert_eq!(members.learners, replicas(&[2, 5]));
    assert_eq!(members.nodes(), [1, 2, 3, 5].map(NodeId));
}

#[test]
fn a_watcher_resumes_from_a_revision() {
    let mut story = Story::of(1);
    story.done(create("a", 1, 1));
    let seen = story.metadata.catalog().revision();
    story.done(lead(1, 1, 3));
    story.done(lead(0, 1, 4));
    story.done(alter("a", Some(2), None));
    story.done(delete("a"));
    let name: Arc<str> = "a".into();
    let topic = TopicId(blake3::hash(b"a").as_bytes()[..16].try_into().unwrap());
    let leader = |term| Leader { node: NodeId(1), term: Term(term) };
    let changes = [
        Change::LeaderChanged { group: GroupId(1), topic: name.clone(), partition: 0, leader: leader(3) },
        Change::LeaderChanged { group: GroupId(0), topic: "".into(), partition: 0, leader: leader(4) },
        Change::TopicSet { topic, name: name.clone() },
        Change::TopicDeleted { topic, name },
    ];
    let expected: Vec<CatalogEvent> = (seen.0 + 1..)
        .zip(changes)
        .map(|(revision, change)| CatalogEvent { revision: Revision(revision), change })
        .collect();
    let catalog = story.metadata.view();
    assert_eq!(catalog.events_after(seen), Ok(expected));
    assert_eq!(catalog.events_after(catalog.revision()), Ok(vec![]));
    assert_eq!(catalog.events_after(Revision(999)), Ok(vec![]), "this node is behind the watcher");
    assert_eq!(catalog.events_after(Revision(0)).unwrap().len() as u64, catalog.revision().0);
}

#[test]
fn a_watcher_that_is_too_far_behind_is_told_so() {
    let mut story = Story::of(1);
    story.done(create("a", 1, 1));
    let early = story.metadata.catalog().revision();
    for term in 1..=CATALOG_EVENTS_MAX as u64 {
        story.done(lead(1, 1, term));
    }
    let catalog = story.metadata.view();
    assert_eq!(catalog.events_after(early).map(|events| events.len()), Ok(CATALOG_EVENTS_MAX));
    story.done(lead(1, 1, u64::MAX));
    let compacted = Compacted { wanted: early, oldest: early.next() };
    assert_eq!(story.metadata.catalog().events_after(early), Err(compacted));
    assert!(compacted.to_string().contains("start again from revision 0"));
    assert_eq!(catalog.events_after(early).map(|events| events.len()), Ok(CATALOG_EVENTS_MAX), "a view never changes");
    let restored = Metadata::restore(&story.metadata.snapshot()).unwrap();
    assert_eq!(restored.catalog().events_after(early), Err(compacted), "a restored replica remembers as much");
}

/// One of each kind, and of each shape.
pub(super) fn commands() -> Vec<MetadataCommand> {
    let joint = Members {
        index: LogIndex(9),
        voters: vec![ReplicaId::new(NodeId(1), 1), ReplicaId::new(NodeId(2), 3)],
        outgoing: vec![ReplicaId::new(NodeId(1), 1)],
        learners: vec![ReplicaId::new(NodeId(3), 1)],
    };
    vec![
        genesis(3),
        MetadataCommand::RegisterNode(node(4)),
        create("access", 4, 3),
        alter("access", None, None),
        alter("access", Some(5), None),
        alter("access", None, Some(9)),
        alter("access", Some(5), Some(9)),
        delete("access"),
        lead(3, 1, 8),
        MetadataCommand::ReportMembers { group: GroupId(3), members: joint },
    ]
}

#[test]
fn every_command_survives_encoding() {
    for command in commands() {
        let encoded = command.encode();
        assert_eq!(MetadataCommand::decode(&encoded), Ok(command));
        assert!((0..encoded.len()).all(|len| MetadataCommand::decode(&encoded.slice(..len)).is_err()));
        let longer = Bytes::from([&encoded[..], &[0]].concat());
        assert!(MetadataCommand::decode(&longer).unwrap_err().to_string().contains("1 bytes follow"));
    }
}

#[test]
fn commands_have_these_bytes() {
    assert_eq!(delete("ab").encode(), b"\x45\x02\0ab"[..]);
    assert_eq!(lead(3, 1, 8).encode(), b"\x46\x03\0\0\0\0\0\0\0\x01\0\0\0\x08\0\0\0\0\0\0\0"[..]);
    assert_eq!(alter("ab", Some(5), Some(9)).encode(), b"\x44\x02\0ab\x03\x05\0\0\0\x09\0\0\0"[..]);
}

#[test]
fn a_snapshot_restores_the_whole_catalog_and_nothing_shorter_or_longer_does() {
    let mut story = Story::of(3);
    story.done(create("a", 2, 3));
    story.done(lead(2, 3, 4));
    story.done(members(1, 7, &[2, 3]));
    story.done(create("b", 1, 1));
    story.done(delete("b"));
    let snapshot = story.metadata.snapshot();
    let restored = Metadata::restore(&snapshot).unwrap();
    assert_eq!(restored.snapshot(), snapshot);
    assert_eq!(restored.catalog().topic("a"), story.metadata.catalog().topic("a"));
    assert!(restored.catalog().partitions().eq(story.metadata.catalog().partitions()));
    assert_eq!(restored.catalog().loads, story.metadata.catalog().loads);
    for len in 0..snapshot.len() {
        assert!(Metadata::restore(&snapshot.slice(..len)).is_err(), "{len} bytes");
    }
    let longer = Bytes::from([&snapshot[..], &[0]].concat());
    assert!(Metadata::restore(&longer).unwrap_err().contains("1 bytes follow"));
    let mut newer = snapshot.to_vec();
    newer[0] = 2;
    let error = Metadata::restore(&newer.into()).unwrap_err();
    assert_eq!(error, "snapshot of the catalog: version 2 is not known here; version 1 is");
}
