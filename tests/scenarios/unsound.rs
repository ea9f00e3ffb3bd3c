//! What no sound cluster comes to, and so neither scenario nor simulation: each branch is taken by hand.

use super::machine::Records;
use balsa::group::replica::{Replica, ReplicaOptions};
use balsa::ids::{GroupId, LogIndex, NodeId, ReplicaId, Term};
use balsa::journal::base::Base;
use balsa::journal::RecoveredGroup;
use balsa::segments::verdict::Verdict;
use prost::Message as _;
use raft::eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType};

fn id(node: u32) -> ReplicaId {
    ReplicaId::founding(NodeId(node))
}

/// Replica 1 of three, with a base of this term and this hard state.
fn opened(base_term: u64, hard_state: HardState) -> Replica<Records> {
    let conf_state = ConfState::from(((1..=3).map(|node| id(node).0).collect::<Vec<_>>(), Vec::new()));
    let base = Base { index: LogIndex(5), term: Term(base_term), conf_state, ..Base::default() };
    let recovered = RecoveredGroup { base, hard_state, entries: Vec::new() };
    let terms = vec![(LogIndex(5), Term(base_term))];
    let log = slog::Logger::root(slog::Discard, slog::o!());
    Replica::new(ReplicaOptions::new(GroupId(1), id(1), 1), recovered, terms, log)
        .expect("a journal that holds together")
}

#[test]
fn a_hard_state_older_than_its_base_is_brought_up_to_it_without_a_vote() {
    let mut replica = opened(7, HardState { term: 6, vote: id(2).0, commit: 5 });
    assert_eq!(replica.term(), Term(7));
    // In the base's term it has not voted, so that it may.
    let mut asks = Message { from: id(3).0, to: id(1).0, term: 7, index: 5, log_term: 7, ..Message::default() };
    asks.set_msg_type(MessageType::MsgRequestVote);
    replica.step(asks).expect("a sound message");
    let effects = replica.take_effects().expect("a vote to write");
    let voted = effects.write.hard_state.expect("a hard state");
    assert_eq!((voted.term, voted.vote), (7, id(3).0));
}

#[test]
fn an_agreed_change_that_is_impossible_is_refused_and_passed_over() {
    let mut replica = opened(7, HardState { term: 7, vote: 0, commit: 5 });
    let before = replica.conf_state().clone();
    // It leaves a joint configuration that nobody entered.
    let mut leave =
        Entry { index: 6, term: 7, data: ConfChangeV2::default().encode_to_vec().into(), ..Entry::default() };
    leave.set_entry_type(EntryType::EntryConfChangeV2);
    let (from, to) = (id(2).0, id(1).0);
    let mut append = Message { from, to, term: 7, index: 5, log_term: 7, commit: 6, ..Message::default() };
    append.set_msg_type(MessageType::MsgAppend);
    append.entries.push(leave);
    replica.step(append).expect("a message that a leader could send");
    let mut verdicts = Vec::new();
    while let Some(effects) = replica.take_effects() {
        verdicts.extend(effects.frames.iter().flat_map(|frame| frame.items.iter().map(|item| item.verdict)));
        replica.persisted(effects.number);
    }
    assert_eq!(replica.applied_index(), LogIndex(6), "the log goes on behind it");
    assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Refused(_))), "{verdicts:?}");
    assert_eq!(replica.conf_state(), &before);
}
