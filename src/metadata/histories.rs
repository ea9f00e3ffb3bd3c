//! Random histories of the catalog: replicas agree, nothing panics, nothing goes back, and no watcher misses a change.

use super::catalog::{Catalog, Change, GroupStanding, Leader, Members};
use super::command::{MetadataCommand, NodeRegistration};
use super::placement::Load;
use super::state::Metadata;
use super::tests::{commands, genesis, node, topic_id, Story};
use crate::group::machine::{Place, StateMachine};
use crate::ids::{GroupId, LogIndex, NodeId, ReplicaId, Revision, Term, TimestampMs};
use bytes::Bytes;
use rand::{rngs::StdRng, seq::SliceRandom, Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A command that may be right, nearly right, or nothing of the kind.
fn any_command(rng: &mut StdRng) -> Bytes {
    let name = |rng: &mut StdRng| -> Arc<str> { format!("t{}", rng.gen_range(0..5)).into() };
    let group = |rng: &mut StdRng| GroupId(rng.gen_range(0..30));
    let command = match rng.gen_range(0..20) {
        0 => genesis(rng.gen_range(2..4)),
        1..=2 => MetadataCommand::RegisterNode(NodeRegistration {
            client_address: format!("h{}", rng.gen_range(0..2)).into(),
            ..node(rng.gen_range(1..8))
        }),
        3..=5 => MetadataCommand::CreateTopic {
            topic: topic_id(rng.gen_range(0..50)),
            name: name(rng),
            partitions: rng.gen_range(0..6),
            replication: rng.gen_range(0..5),
            batch_bytes_max: 0,
        },
        6..=7 => MetadataCommand::AlterTopic {
            name: name(rng),
            partitions: rng.gen_bool(0.7).then(|| rng.gen_range(0..9)),
            batch_bytes_max: rng.gen_bool(0.5).then(|| rng.gen_range(0..4)),
        },
        8 => MetadataCommand::DeleteTopic { name: name(rng) },
        9..=13 => MetadataCommand::ReportLeader {
            group: group(rng),
            node: NodeId(rng.gen_range(0..6)),
            term: Term(rng.gen_range(0..40)),
        },
        14..=16 => {
            let mut list = |from: usize| {
                let chosen: BTreeSet<u32> = (0..rng.gen_range(from..4)).map(|_| rng.gen_range(1..6)).collect();
                chosen.into_iter().map(|node| ReplicaId::new(NodeId(node), 1)).collect()
            };
            let (voters, outgoing, learners) = (list(1), list(0), list(0));
            let members = Members { index: LogIndex(rng.gen_range(0..40)), voters, outgoing, learners };
            MetadataCommand::ReportMembers { group: group(rng), members }
        }
        17 => return (0..rng.gen_range(0..60)).map(|_| rng.gen()).collect::<Vec<u8>>().into(),
        _ => {
            let mut bytes = commands().choose(rng).expect("there are some").encode().to_vec();
            for _ in 0..rng.gen_range(1..4) {
                let at = rng.gen_range(0..bytes.len());
                bytes[at] = rng.gen();
            }
            bytes.truncate(rng.gen_range(0..=bytes.len()));
            return bytes.into();
        }
    };
    command.encode()
}

/// What must hold of every catalog.
fn check(catalog: &Catalog, at: &str) {
    let mut groups = BTreeSet::new();
    let mut loads: BTreeMap<NodeId, Load> = catalog.nodes().map(|node| (node.id, Load::default())).collect();
    for topic in catalog.topics() {
        assert_eq!(catalog.topic_by_id(topic.id), Some(topic), "{at}");
        for (number, group) in topic.groups.iter().enumerate() {
            let partition = catalog.partition(*group).expect("a topic's groups are there");
            assert_eq!((partition.topic, partition.number as usize), (topic.id, number), "{at}");
            assert_eq!(partition.founding.len(), topic.replication as usize, "{at}");
            assert!(groups.insert(*group), "{at}: {group} is used twice");
            for node in partition.members.nodes() {
                let load = loads.get_mut(&node).expect("members are on known nodes");
                load.replicas += 1;
                load.preferred += u32::from(partition.founding[0] == node);
            }
        }
    }
    assert_eq!(groups.len(), catalog.partition_count(), "{at}");
    assert_eq!(catalog.topics_by_id.len(), catalog.topic_count(), "{at}");
    assert!(groups.last().is_none_or(|last| *last < catalog.next_group), "{at}");
    assert_eq!(*catalog.loads, loads, "{at}");
}

/// What may never be undone from one catalog to the next.
fn check_forward(before: &Catalog, after: &Catalog, at: &str) {
    assert!(after.revision() >= before.revision() && after.timestamp() >= before.timestamp(), "{at}");
    for group in (0..before.next_group.0).map(GroupId) {
        match (before.leader(group), after.leader(group)) {
            (Some(old), Some(new)) => assert!(old == new || old.term < new.term, "{at}: {group} {old:?} {new:?}"),
            (Some(_), None) => assert_eq!(after.standing(group), GroupStanding::Removed, "{at}: {group}"),
            (None, _) => {}
        }
        if before.standing(group) == GroupStanding::Removed {
            assert_eq!(after.standing(group), GroupStanding::Removed, "{at}: {group} came back");
        }
        if let (Some(old), Some(new)) = (before.partition(group), after.partition(group)) {
            assert!(old.members == new.members || old.members.index < new.members.index, "{at}: {group}");
            assert_eq!((old.topic, old.number, &old.founding), (new.topic, new.number, &new.founding), "{at}");
        }
    }
}

#[test]
fn a_replica_restored_at_any_step_goes_on_like_one_that_never_stopped() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut steady = Metadata::new();
        let mut restored = steady.clone();
        for step in 0..200u64 {
            let place =
                Place { index: LogIndex(step + 2), term: Term(1), timestamp: TimestampMs(rng.gen_range(0..9_999)) };
            let command = any_command(&mut rng);
            let before = steady.view();
            let was = before.revision();
            let applied = steady.apply(place, &command);
            let at = format!("seed {seed} step {step}");
            assert_eq!(restored.apply(place, &command), applied, "{at}");
            assert_eq!(before.revision(), was, "{at}: a view changed");
            check(steady.catalog(), &at);
            check_forward(&before, steady.catalog(), &at);
            let snapshot = restored.snapshot();
            assert_eq!(snapshot, steady.snapshot(), "{at}");
            restored = Metadata::restore(&snapshot).unwrap_or_else(|error| panic!("{at}: {error}"));
            check(restored.catalog(), &at);
        }
    }
}

/// Somebody who follows the catalog by its events alone, looking up what they name.
#[derive(Default)]
struct Watcher {
    seen: Revision,
    topics: BTreeMap<Arc<str>, usize>,
    leaders: BTreeMap<GroupId, Leader>,
}

impl Watcher {
    fn follow(&mut self, catalog: &Catalog) {
        for event in catalog.events_after(self.seen).expect("all is remembered") {
            assert_eq!(event.revision, self.seen.next(), "a revision was skipped");
            self.seen = event.revision;
            match event.change {
                Change::TopicSet { topic, name } => {
                    if let Some(topic) = catalog.topic_by_id(topic) {
                        self.topics.insert(name, topic.groups.len());
                    }
                }
                Change::TopicDeleted { name, .. } => drop(self.topics.remove(&name)),
                Change::LeaderChanged { group, leader, .. } => drop(self.leaders.insert(group, leader)),
                Change::NodeSet { node } => assert!(catalog.node(node).is_some()),
                Change::ControlSet => {}
            }
        }
        assert_eq!(self.seen, catalog.revision());
    }

    fn check(&self, catalog: &Catalog) {
        let topics = catalog.topics().map(|topic| (topic.name.clone(), topic.groups.len()));
        assert_eq!(self.topics, topics.collect());
        for partition in catalog.partitions() {
            assert_eq!(self.leaders.get(&partition.group).copied(), partition.leader);
        }
    }
}

#[test]
fn watchers_see_every_change_and_end_where_the_catalog_is() {
    for seed in 0..100 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut story = Story::of(3);
        let mut watchers: Vec<Watcher> = (0..4).map(|_| Watcher::default()).collect();
        for _ in 0..300 {
            story.apply(&any_command(&mut rng));
            if rng.gen_bool(0.05) {
                story.metadata = Metadata::restore(&story.metadata.snapshot()).expect("a snapshot is restored");
            }
            let watcher = watchers.choose_mut(&mut rng).expect("there are four");
            if rng.gen_bool(0.3) {
                watcher.follow(&story.metadata.view());
                watcher.check(story.metadata.catalog());
            }
        }
    }
}

#[test]
fn a_damaged_snapshot_is_refused_or_is_another_states_snapshot() {
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut story = Story::of(3);
        for _ in 0..80 {
            story.apply(&any_command(&mut rng));
        }
        let snapshot = story.metadata.snapshot();
        for _ in 0..300 {
            let mut bytes = snapshot.to_vec();
            let at = rng.gen_range(0..bytes.len());
            bytes[at] = rng.gen();
            let bytes = Bytes::from(bytes);
            let Ok(mut metadata) = Metadata::restore(&bytes) else { continue };
            assert_eq!(metadata.snapshot(), bytes, "seed {seed}: a second form of the same state, at {at}");
            for _ in 0..5 {
                let place = Place { index: LogIndex(900), term: Term(1), timestamp: TimestampMs(rng.gen()) };
                metadata.apply(place, &any_command(&mut rng));
            }
        }
    }
}
