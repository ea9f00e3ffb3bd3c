//! The wire format against the published field numbers, and the few rules of this crate.

use bytes::Bytes;
use prost::Message as _;
use protobuf::Message as PbMessage;

use crate::eraftpb::*;
use crate::*;

/// Codes `full`, a message with every field set, to and fro in both interfaces, and compares the keys
/// (field number, wire type) it puts on the wire.
#[track_caller]
fn check<M: prost::Message + PbMessage + Default + PartialEq>(full: M, expected: &[(u32, u8)]) {
    let bytes = Bytes::from(full.encode_to_vec());
    assert_eq!(M::decode(bytes.clone()).unwrap(), full);
    assert_eq!(M::parse_from_bytes(&bytes).unwrap(), full);
    assert_eq!(full.write_to_bytes().unwrap(), bytes);
    let (mut delimited, mut prefixed) = (Vec::new(), full.encode_length_delimited_to_vec());
    full.write_length_delimited_to_vec(&mut delimited).unwrap();
    assert_eq!(delimited, prefixed);
    prefixed.truncate(prefixed.len() - 1);
    assert!(M::decode_length_delimited(&prefixed[..]).is_err());
    assert!(M::default().merge_from_bytes(&bytes[..bytes.len() - 1]).is_err());
    assert_eq!(full.compute_size() as usize, full.encoded_len());
    assert_eq!(full.encoded_len(), bytes.len());
    assert_eq!(M::default().compute_size(), 0);

    let (mut rest, mut keys) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (tag, wire) = prost::encoding::decode_key(&mut rest).unwrap();
        prost::encoding::skip_field(wire, tag, &mut rest, Default::default()).unwrap();
        keys.push((tag, wire as u8));
    }
    assert_eq!(keys, expected);
}

fn entry() -> Entry {
    let (data, context) = (Bytes::from_static(b"data"), Bytes::from_static(b"context"));
    Entry { entry_type: EntryType::EntryConfChangeV2.into(), term: 2, index: 300, data, sync_log: true, context }
}

fn conf_state() -> ConfState {
    ConfState {
        voters: vec![1, 2, 300],
        learners: vec![4],
        voters_outgoing: vec![1, 2],
        learners_next: vec![5],
        auto_leave: true,
    }
}

fn snapshot() -> Snapshot {
    let metadata = SnapshotMetadata { conf_state: Some(conf_state()), index: 7, term: 2 };
    Snapshot { data: Bytes::from_static(b"state"), metadata: Some(metadata) }
}

#[test]
fn messages_keep_their_published_numbers() {
    check(entry(), &[(1, 0), (2, 0), (3, 0), (4, 2), (5, 0), (6, 2)]);
    check(snapshot().take_metadata(), &[(1, 2), (2, 0), (3, 0)]);
    check(snapshot(), &[(1, 2), (2, 2)]);
    check(HardState { term: 1, vote: 2, commit: 3 }, &[(1, 0), (2, 0), (3, 0)]);
    check(conf_state(), &[(1, 2), (2, 2), (3, 2), (4, 2), (5, 0)]);
    let single = new_conf_change_single(9, ConfChangeType::AddLearnerNode);
    check(single, &[(1, 0), (2, 0)]);
    let change_type = ConfChangeType::RemoveNode.into();
    let v1 = ConfChange { id: 1, change_type, node_id: 3, context: Bytes::from_static(b"c") };
    check(v1, &[(1, 0), (2, 0), (3, 0), (4, 2)]);
    let transition = ConfChangeTransition::Explicit.into();
    let v2 = ConfChangeV2 { transition, changes: vec![single], context: Bytes::from_static(b"c") };
    check(v2, &[(1, 0), (2, 2), (3, 2)]);
    let message = Message {
        msg_type: MessageType::MsgAppend.into(),
        to: 1,
        from: 2,
        term: 3,
        log_term: 4,
        index: 5,
        entries: vec![entry()],
        commit: 6,
        snapshot: Some(snapshot()),
        reject: true,
        reject_hint: 7,
        context: Bytes::from_static(b"c"),
        request_snapshot: 8,
        deprecated_priority: 9,
        commit_term: 10,
        priority: -1,
    };
    let keys: Vec<_> = (1..=16).map(|tag| (tag, if [7, 9, 12].contains(&tag) { 2 } else { 0 })).collect();
    check(message, &keys);
}

#[test]
fn bytes_on_the_wire() {
    let entry = Entry { term: 2, index: 300, data: Bytes::from_static(b"hi"), ..Default::default() };
    assert_eq!(entry.encode_to_vec(), b"\x10\x02\x18\xac\x02\x22\x02hi");
    assert_eq!(ConfState::from(([1, 2], [])).encode_to_vec(), b"\x0a\x02\x01\x02");
}

#[test]
fn payloads_are_decoded_without_a_copy() {
    let message = Message { entries: vec![entry()], ..Default::default() };
    let wire = Bytes::from(message.encode_to_vec());
    let decoded = Message::decode(wire.clone()).unwrap();
    assert!(wire.as_ptr_range().contains(&decoded.entries[0].data.as_ptr()));
}

#[test]
fn absent_parts_read_as_the_default() {
    let mut snapshot = Snapshot::default();
    assert!(snapshot.is_empty() && !snapshot.has_metadata());
    assert_eq!(snapshot.get_metadata().get_conf_state(), &ConfState::default());
    snapshot.mut_metadata().mut_conf_state().mut_voters().push(1);
    assert!(snapshot.is_empty() && snapshot.has_metadata());
    snapshot.mut_metadata().set_index(1);
    assert!(!snapshot.is_empty());
    assert_eq!(snapshot.take_metadata().take_conf_state().take_voters(), [1]);
    assert!(!snapshot.has_metadata());
    assert_eq!(Message { msg_type: 99, ..Default::default() }.get_msg_type(), MessageType::MsgHup);
}

#[test]
fn conf_states_compare_as_sets() {
    let state = ConfState::from((vec![1, 2, 3], vec![4]));
    assert!(conf_state_eq(&state, &ConfState::from(([3, 1, 2], [4]))));
    assert!(!conf_state_eq(&state, &ConfState::from(([1, 2, 2], [4]))));
    assert!(!conf_state_eq(&state, &ConfState::from(([1, 2, 3], []))));
    assert!(!conf_state_eq(&state, &ConfState { auto_leave: true, ..state.clone() }));
    assert!(!conf_state_eq(&state, &ConfState { voters_outgoing: vec![1], ..state.clone() }));
    assert!(!conf_state_eq(&state, &ConfState { learners_next: vec![1], ..state.clone() }));
}

#[test]
fn changes_as_text() {
    let changes = parse_conf_change(" v1 l2\tr30 ").unwrap();
    assert_eq!(changes[1], new_conf_change_single(2, ConfChangeType::AddLearnerNode));
    assert_eq!(stringify_conf_change(&changes), "v1 l2 r30");
    assert_eq!(parse_conf_change(""), Ok(vec![]));
    assert_eq!(stringify_conf_change(&[]), "");
    for bad in ["x1", "v", "v-1", "1", "é1", "v1 l"] {
        assert!(parse_conf_change(bad).is_err(), "{bad}");
    }
}

#[test]
fn joint_configurations() {
    use ConfChangeTransition::{Auto, Explicit, Implicit};
    let change = |transition: ConfChangeTransition, text| {
        let changes = parse_conf_change(text).unwrap();
        ConfChangeV2 { transition: transition.into(), changes, context: Bytes::from_static(b"c") }
    };
    for (transition, text, enter, leave) in [
        (Auto, "", None, true),
        (Auto, "v1", None, false),
        (Auto, "v1 r2", Some(true), false),
        (Implicit, "", Some(true), false),
        (Implicit, "v1", Some(true), false),
        (Explicit, "", Some(false), false),
        (Explicit, "v1 r2", Some(false), false),
    ] {
        let cc = change(transition, text);
        assert_eq!((cc.enter_joint(), cc.leave_joint()), (enter, leave), "{transition:?} {text}");
    }
    let v2 = change(Auto, "r5");
    assert!(v2.as_v1().is_none());
    let change_type = ConfChangeType::RemoveNode.into();
    let v1 = ConfChange { id: 1, change_type, node_id: 5, context: v2.context.clone() };
    assert_eq!(v1.as_v1(), Some(&v1));
    assert_eq!(v1.as_v2(), v2.as_v2());
    assert_eq!(v1.into_v2(), v2);
}
