//! What no sound cluster comes to, and so neither scenario nor simulation, and what takes two messages in one turn: by hand.

use super::machine::Records;
use balsa::group::log_time::ClockTrust;
use balsa::group::replica::{Replica, ReplicaOptions};
use balsa::ids::{GroupId, LogIndex, NodeId, ReplicaId, Term, TimestampMs};
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
    let options = ReplicaOptions { heartbeat_ticks: 1, ..ReplicaOptions::new(GroupId(1), id(1), 1) };
    Replica::new(options, recovered, terms, log).expect("a journal that holds together")
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

/// Takes effects until there are none, with everything durable at once; what was sent.
fn settle(replica: &mut Replica<Records>) -> Vec<Message> {
    let mut sent = Vec::new();
    while let Some(effects) = replica.take_effects() {
        sent.extend(effects.send_now);
        sent.extend(effects.send_after_sync);
        replica.persisted(effects.number);
    }
    sent
}

fn answer(kind: MessageType, term: u64, index: u64) -> Message {
    let mut message = Message { from: id(2).0, to: id(1).0, term, index, ..Message::default() };
    message.set_msg_type(kind);
    message
}

/// The leader of term 8, elected by replica 2, which has all it has; replica 3 was never heard.
fn leading() -> Replica<Records> {
    let mut leader = opened(7, HardState { term: 7, vote: 0, commit: 5 });
    leader.campaign_soon(0);
    while !settle(&mut leader).iter().any(|message| message.msg_type() == MessageType::MsgRequestPreVote) {
        leader.tick(TimestampMs(1), ClockTrust::Trusted);
    }
    leader.step(answer(MessageType::MsgRequestPreVoteResponse, 8, 0)).expect("a grant");
    settle(&mut leader);
    leader.step(answer(MessageType::MsgRequestVoteResponse, 8, 0)).expect("a vote");
    settle(&mut leader);
    assert!(leader.is_leader());
    leader.step(answer(MessageType::MsgAppendResponse, 8, 6)).expect("the follower has the first entry");
    settle(&mut leader);
    leader
}

/// Seen in the simulator (whole seed 401880): Raft 0.7 adds entries to an empty append that waits to be sent, whatever stands before them.
#[test]
fn entries_that_go_out_behind_a_rejection_name_the_entry_before_them() {
    let mut leader = leading();
    leader.propose("a record".into(), 1);
    let sent = settle(&mut leader);
    assert!(sent.iter().any(|message| message.to == id(2).0 && message.entries.len() == 1), "{sent:?}");
    // It is lost. In one turn come an answer that makes the leader send an empty append, and the rejection of another one.
    leader.step(answer(MessageType::MsgHeartbeatResponse, 8, 0)).expect("an answer");
    let rejection =
        Message { reject: true, reject_hint: 6, log_term: 8, ..answer(MessageType::MsgAppendResponse, 8, 7) };
    leader.step(rejection).expect("a rejection");
    let sent = settle(&mut leader);
    let again: Vec<&Message> = sent.iter().filter(|message| !message.entries.is_empty()).collect();
    assert!(!again.is_empty(), "{sent:?}");
    for append in again {
        assert_eq!((append.index + 1, append.log_term), (append.entries[0].index, 8), "{append:?}");
    }
}

/// Raft dissertation, 3.4: heartbeats are for idle periods. Of a member that an append did not reach the leader finds out one tick later.
#[test]
fn a_member_that_was_sent_an_append_since_the_last_tick_gets_no_heartbeat() {
    let mut leader = leading();
    let beaten = |leader: &mut Replica<Records>| {
        leader.tick(TimestampMs(2), ClockTrust::Trusted);
        let sent = settle(leader);
        let mut beaten: Vec<u64> = sent
            .iter()
            .filter(|message| message.msg_type() == MessageType::MsgHeartbeat)
            .map(|message| u64::from(ReplicaId(message.to).node().0))
            .collect();
        beaten.sort_unstable();
        beaten
    };
    beaten(&mut leader);
    assert_eq!(beaten(&mut leader), [2, 3], "nothing was appended for a while");
    for token in 1..=3 {
        leader.propose("a record".into(), token);
        let sent = settle(&mut leader);
        assert!(sent.iter().any(|message| message.to == id(2).0 && message.entries.len() == 1), "{sent:?}");
        leader.step(answer(MessageType::MsgAppendResponse, 8, 6 + token)).expect("the follower has it");
        settle(&mut leader);
        assert_eq!(beaten(&mut leader), [3], "replica 3 is not fed");
    }
    assert_eq!(beaten(&mut leader), [2, 3], "a tick after the last append");
    leader.propose("a record".into(), 4);
    settle(&mut leader);
    assert_eq!(beaten(&mut leader), [2, 3], "it did not answer: it may not have got the append");
    leader.step(answer(MessageType::MsgAppendResponse, 8, 10)).expect("the follower has it");
    leader.propose("a record".into(), 5);
    leader.read_index(6);
    let asked = settle(&mut leader).into_iter().filter(|message| !message.context.is_empty());
    assert_eq!(asked.map(|message| message.to).collect::<Vec<_>>().len(), 2, "a read is asked for at once");
}
