//! The partition's rules, each told as a story.

use super::command::{opened, AppendCommand, Fence, PartitionCommand};
use super::state::{Bound, Partition, PartitionSettings};
use super::SEQUENCE_MODULUS;
use crate::group::machine::{Place, StateMachine};
use crate::ids::{GroupId, LogIndex, Offset, ProducerId, Term, TimestampMs};
use crate::limits::{BATCH_RECORDS_MAX, FENCES_MAX, SESSIONS_MAX, SESSION_WINDOW_BATCHES};
use crate::segments::verdict::{Refusal, Verdict};
use bytes::Bytes;

/// How long sessions last here, in the log's time.
pub(super) const EXPIRY_MS: u64 = 1_000;
pub(super) const NAMED_EXPIRY_MS: u64 = 10_000;

/// Id, epoch and sequence.
pub(super) type Producer = (u64, u16, u32);

/// A batch of which only the header matters here.
pub(super) fn batch(producer: Option<Producer>, count: u32) -> Bytes {
    let (id, epoch, sequence) = match producer {
        None => (-1, -1, -1),
        Some((id, epoch, sequence)) => (id as i64, epoch as i16, sequence as i32),
    };
    raw_batch(id, epoch, sequence, count as i32)
}

fn raw_batch(id: i64, epoch: i16, sequence: i32, count: i32) -> Bytes {
    let mut header = vec![0; 61];
    header[16] = 2;
    header[43..51].copy_from_slice(&id.to_be_bytes());
    header[51..53].copy_from_slice(&epoch.to_be_bytes());
    header[53..57].copy_from_slice(&sequence.to_be_bytes());
    header[57..61].copy_from_slice(&count.to_be_bytes());
    header.into()
}

pub(super) fn append(producer: Option<Producer>, count: u32) -> AppendCommand {
    AppendCommand { expected_offset: None, fence: None, batch: batch(producer, count) }
}

fn fence(name: &str, token: u64) -> Fence {
    Fence { name: name.into(), token }
}

/// A partition and the log it applies.
pub(super) struct Story {
    pub(super) partition: Partition,
    index: LogIndex,
    now: TimestampMs,
}

impl Story {
    pub(super) fn new() -> Story {
        let settings = PartitionSettings {
            group: GroupId(4),
            session_expiry_ms: EXPIRY_MS,
            named_session_expiry_ms: NAMED_EXPIRY_MS,
        };
        Story { partition: Partition::new(settings), index: LogIndex(1), now: TimestampMs(50) }
    }

    pub(super) fn wait(&mut self, ms: u64) {
        self.now = self.now.plus(ms);
    }

    /// Applies a command that shares its entry with the one before.
    fn apply_again(&mut self, command: &Bytes) -> Verdict {
        let place = Place { index: self.index, term: Term(1), timestamp: self.now };
        self.partition.apply(place, command).verdict
    }

    pub(super) fn apply(&mut self, command: &Bytes) -> Verdict {
        self.index = self.index.next();
        self.apply_again(command)
    }

    pub(super) fn run(&mut self, command: PartitionCommand) -> Verdict {
        self.apply(&command.encode())
    }

    pub(super) fn append(&mut self, producer: Option<Producer>, count: u32) -> Verdict {
        self.run(PartitionCommand::Append(append(producer, count)))
    }

    /// Id, epoch and next sequence.
    pub(super) fn open(&mut self, name: Option<&str>) -> Producer {
        match self.run(PartitionCommand::OpenSession { name: name.map(Into::into) }) {
            Verdict::Done { value, extra } => (value, opened(extra).0, opened(extra).1),
            other => panic!("session was not opened: {other:?}"),
        }
    }

    fn refused(&mut self, command: PartitionCommand) -> Refusal {
        let before = (self.partition.tail, self.partition.sessions.clone(), self.partition.fences.clone());
        let verdict = self.run(command);
        let after = (self.partition.tail, self.partition.sessions.clone(), self.partition.fences.clone());
        assert_eq!(before, after, "a refused command changed something");
        match verdict {
            Verdict::Refused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn append_refused(&mut self, producer: Option<Producer>, count: u32) -> Refusal {
        self.refused(PartitionCommand::Append(append(producer, count)))
    }
}

fn appended(offset: u64, count: u32) -> Verdict {
    Verdict::Appended { offset: Offset(offset), count }
}

fn repeated(offset: u64, count: u32) -> Verdict {
    Verdict::Repeated { offset: Offset(offset), count }
}

#[test]
fn offsets_are_dense_from_zero() {
    let mut story = Story::new();
    assert_eq!(story.append(None, 3), appended(0, 3));
    assert_eq!(story.append(None, 1), appended(3, 1));
    assert_eq!(story.append_refused(None, 0), Refusal::Malformed);
    assert_eq!(story.append(None, 2), appended(4, 2));
    assert_eq!(story.partition.tail(), Offset(6));
}

#[test]
fn a_retry_returns_its_first_offset_whatever_came_since() {
    let mut story = Story::new();
    let (id, epoch, _) = story.open(None);
    let first = PartitionCommand::Append(AppendCommand {
        expected_offset: Some(Offset(0)),
        fence: Some(fence("lock", 7)),
        batch: batch(Some((id, epoch, 0)), 5),
    });
    assert_eq!(story.run(first.clone()), appended(0, 5));
    assert_eq!(story.append(None, 9), appended(5, 9));
    assert_eq!(story.run(PartitionCommand::RaiseFence(fence("lock", 8))), Verdict::Done { value: 8, extra: 14 });
    assert_eq!(story.append(Some((id, epoch, 5)), 1), appended(14, 1));
    assert_eq!(story.run(first), repeated(0, 5));
    assert_eq!(story.append(Some((id, epoch, 5)), 1), repeated(14, 1));
    assert_eq!(story.partition.tail(), Offset(15));
}

#[test]
fn nothing_is_admitted_past_a_gap() {
    let mut story = Story::new();
    let (id, epoch, _) = story.open(None);
    assert_eq!(story.append_refused(Some((id, epoch, 2)), 2), Refusal::SequenceGap { sequence: 2, expected: 0 });
    assert_eq!(story.append(Some((id, epoch, 0)), 2), appended(0, 2));
    assert_eq!(story.append_refused(Some((id, epoch, 3)), 2), Refusal::SequenceGap { sequence: 3, expected: 2 });
    assert_eq!(story.append(Some((id, epoch, 2)), 2), appended(2, 2));
    let last = (SEQUENCE_MODULUS - 1) as u32;
    let gap = Refusal::SequenceGap { sequence: last.into(), expected: 4 };
    assert_eq!(story.append_refused(Some((id, epoch, last)), 1), gap, "what was never numbered is not behind");
}

#[test]
fn a_retry_keeps_its_boundaries() {
    let mut story = Story::new();
    let (id, epoch, _) = story.open(None);
    assert_eq!(story.append(Some((id, epoch, 0)), 4), appended(0, 4));
    assert_eq!(story.append(Some((id, epoch, 4)), 4), appended(4, 4));
    for (sequence, count) in [(0, 3), (0, 8), (2, 2), (4, 5), (6, 2), (7, 9)] {
        let refusal = Refusal::RetryDiffers { sequence: sequence.into() };
        assert_eq!(story.append_refused(Some((id, epoch, sequence)), count), refusal, "{sequence} + {count}");
    }
}

#[test]
fn what_is_older_than_the_window_may_have_happened() {
    let mut story = Story::new();
    let (id, epoch, _) = story.open(None);
    let window = SESSION_WINDOW_BATCHES as u32;
    for sequence in 0..window + 2 {
        assert_eq!(story.append(Some((id, epoch, sequence)), 1), appended(sequence.into(), 1));
    }
    assert_eq!(story.append_refused(Some((id, epoch, 1)), 1), Refusal::SequenceOld { sequence: 1, oldest: 2 });
    assert_eq!(story.append(Some((id, epoch, 2)), 1), repeated(2, 1));
}

#[test]
fn a_refused_batch_does_not_advance_its_sequence() {
    let mut story = Story::new();
    let (id, epoch, _) = story.open(None);
    let early = AppendCommand { expected_offset: Some(Offset(3)), ..append(Some((id, epoch, 0)), 3) };
    let refusal = Refusal::WrongExpectedOffset { expected: Offset(3), tail: Offset(0) };
    assert_eq!(story.refused(PartitionCommand::Append(early)), refusal);
    assert_eq!(story.append_refused(Some((id, epoch, 3)), 1), Refusal::SequenceGap { sequence: 3, expected: 0 });
    assert_eq!(story.append(Some((id, epoch, 0)), 3), appended(0, 3));
}

#[test]
fn an_unknown_session_is_refused_at_any_sequence() {
    let mut story = Story::new();
    let unknown = Refusal::SessionUnknown { producer: 77 };
    assert_eq!(story.append_refused(Some((77, 0, 0)), 1), unknown);
    assert_eq!(story.append_refused(Some((77, 0, 9)), 1), unknown);
    assert_eq!(story.refused(PartitionCommand::QuerySession { producer: ProducerId(77) }), unknown);
    assert_eq!(story.refused(PartitionCommand::CloseSession { producer: ProducerId(77), epoch: 0 }), unknown);
    let (id, epoch, _) = story.open(None);
    let newer = story.append_refused(Some((id, epoch + 1, 0)), 1);
    assert_eq!(newer, Refusal::SessionUnknown { producer: id }, "only opening a session raises its epoch");
}

#[test]
fn sequences_start_over_after_two_to_the_thirty_first() {
    let mut story = Story::new();
    let (id, epoch, _) = story.open(None);
    let count = BATCH_RECORDS_MAX as u32;
    let mut sent = 0;
    while sent + u64::from(count) < SEQUENCE_MODULUS {
        assert_eq!(story.append(Some((id, epoch, sent as u32)), count), appended(sent, count));
        sent += u64::from(count);
    }
    let last = (id, epoch, sent as u32);
    assert_eq!(story.append(Some(last), count), appended(sent, count), "the batch that crosses the border");
    let next = (sent + u64::from(count) - SEQUENCE_MODULUS) as u32;
    assert_eq!(
        story.append_refused(Some((id, epoch, next + 1)), 1),
        Refusal::SequenceGap { sequence: u64::from(next) + 1, expected: next.into() }
    );
    assert_eq!(story.append(Some(last), count), repeated(sent, count));
    assert_eq!(story.append(Some((id, epoch, next)), 1), appended(sent + u64::from(count), 1));
    assert_eq!(story.append(Some(last), count), repeated(sent, count), "remembered across the border");
    let long_ago = story.append_refused(Some((id, epoch, next + 5 * count)), count);
    assert!(matches!(long_ago, Refusal::SequenceGap { .. }), "further back than half the circle: {long_ago:?}");
    let standing = story.partition.session(ProducerId(id)).unwrap();
    assert_eq!((standing.next_sequence, standing.records), (next + 1, sent + u64::from(count) + 1));
}

#[test]
fn opening_a_name_again_raises_its_epoch_and_goes_on() {
    let mut story = Story::new();
    let (id, epoch, next) = story.open(Some("import"));
    assert_eq!((epoch, next), (0, 0));
    assert_eq!(story.append(Some((id, 0, 0)), 6), appended(0, 6));
    assert_eq!(story.append(None, 1), appended(6, 1));
    assert_eq!(story.open(Some("import")), (id, 1, 6));
    let query = PartitionCommand::QuerySession { producer: ProducerId(id) };
    assert_eq!(story.run(query), Verdict::Done { value: 6, extra: 6 }, "the tail after its last append, and records");

    let outdated = Refusal::SessionEpochOld { epoch: 0, current: 1 };
    assert_eq!(story.append_refused(Some((id, 0, 6)), 1), outdated, "the former holder is shut out");
    assert_eq!(story.append(Some((id, 0, 0)), 6), repeated(0, 6), "and what it had appended stays appended");
    assert_eq!(story.append(Some((id, 1, 6)), 2), appended(7, 2));
    assert_eq!(story.append_refused(Some((id, 0, 6)), 2), outdated, "not mistaken for what its successor appended");
    assert_ne!(story.open(Some("other")).0, id);
}

#[test]
fn after_the_last_epoch_a_name_goes_on_under_a_new_id() {
    let mut story = Story::new();
    let (id, _, _) = story.open(Some("import"));
    for epoch in 1..=i16::MAX as u16 {
        assert_eq!(story.open(Some("import")), (id, epoch, 0));
    }
    assert_eq!(story.append(Some((id, i16::MAX as u16, 0)), 3), appended(0, 3));
    let (new, epoch, next) = story.open(Some("import"));
    assert!(new > id);
    assert_eq!((epoch, next), (0, 3));
    assert_eq!(story.append_refused(Some((id, i16::MAX as u16, 0)), 3), Refusal::SessionUnknown { producer: id });
    assert_eq!(story.append_refused(Some((new, 0, 0)), 3), Refusal::SequenceOld { sequence: 0, oldest: 3 });
    assert_eq!(story.append(Some((new, 0, 3)), 1), appended(3, 1));
}

#[test]
fn sessions_opened_by_one_entry_have_ids_of_their_own() {
    let mut story = Story::new();
    let open = PartitionCommand::OpenSession { name: None }.encode();
    let mut ids = Vec::new();
    for entry in 0..3 {
        story.index = story.index.next();
        for _ in 0..5 {
            match story.apply_again(&open) {
                Verdict::Done { value, .. } => ids.push(value),
                other => panic!("{entry}: {other:?}"),
            }
        }
    }
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
    assert!(ids.iter().all(|id| *id <= i64::MAX as u64));
}

#[test]
fn an_id_that_no_batch_could_carry_is_not_given() {
    let mut story = Story::new();
    story.index = LogIndex(u64::MAX - 1);
    let refusal = story.refused(PartitionCommand::OpenSession { name: None });
    assert_eq!(Bound::from_code(4), Some(Bound::Producers));
    assert!(matches!(refusal, Refusal::LimitReached { which: 4, .. }), "{refusal:?}");
}

#[test]
fn sessions_expire_by_the_logs_own_time() {
    let mut story = Story::new();
    let (plain, _, _) = story.open(None);
    let (named, _, _) = story.open(Some("import"));
    story.wait(EXPIRY_MS - 1);
    assert_eq!(story.append(Some((plain, 0, 0)), 1), appended(0, 1), "an append keeps it open");
    story.wait(EXPIRY_MS - 1);
    assert_eq!(story.append(Some((plain, 0, 0)), 1), repeated(0, 1), "so does a retry");
    story.wait(EXPIRY_MS - 1);
    assert_eq!(story.append_refused(Some((plain, 0, 7)), 1), Refusal::SequenceGap { sequence: 7, expected: 1 });
    story.wait(1);
    let unknown = Refusal::SessionUnknown { producer: plain };
    assert_eq!(story.append_refused(Some((plain, 0, 0)), 1), unknown, "a refusal does not");
    assert_eq!(story.append(Some((named, 0, 0)), 1), appended(1, 1), "a named one lasts longer");
    assert_eq!(story.partition.view().sessions, 2);
    story.open(None);
    assert_eq!(story.partition.view().sessions, 2, "opening one clears those that expired");

    story.now = TimestampMs(0);
    assert_eq!(story.append_refused(Some((plain, 0, 0)), 1), unknown, "none comes back, whatever a leader stamps");
    story.now = story.partition.timestamp.plus(NAMED_EXPIRY_MS);
    let (again, epoch, next) = story.open(Some("import"));
    assert_ne!(again, named);
    assert_eq!((epoch, next), (0, 0));
}

#[test]
fn sessions_are_bounded_and_no_open_one_is_evicted() {
    let mut story = Story::new();
    let (first, _, _) = story.open(Some("first"));
    for _ in 1..SESSIONS_MAX {
        story.open(None);
    }
    let full = Refusal::LimitReached { which: Bound::Sessions as u64, limit: SESSIONS_MAX as u64 };
    assert_eq!(story.refused(PartitionCommand::OpenSession { name: None }), full);
    assert_eq!(story.refused(PartitionCommand::OpenSession { name: Some("second".into()) }), full);
    assert_eq!(story.open(Some("first")), (first, 1, 0), "a name that is open takes no place");

    let close = |epoch| PartitionCommand::CloseSession { producer: ProducerId(first), epoch };
    assert_eq!(story.refused(close(0)), Refusal::SessionEpochOld { epoch: 0, current: 1 });
    assert_eq!(story.refused(close(2)), Refusal::SessionUnknown { producer: first });
    assert_eq!(story.run(close(1)), Verdict::Done { value: first, extra: 0 });
    assert_ne!(story.open(Some("second")).0, first, "one that was closed leaves its place");
    assert_eq!(story.append_refused(Some((first, 1, 0)), 1), Refusal::SessionUnknown { producer: first });

    story.wait(EXPIRY_MS);
    story.open(None);
    assert_eq!(story.partition.view().sessions, 2, "so do those that expired");
}

#[test]
fn a_fence_refuses_lower_tokens() {
    let mut story = Story::new();
    let fenced = |name: &str, token| AppendCommand { fence: Some(fence(name, token)), ..append(None, 1) };
    let run = |story: &mut Story, name, token| story.run(PartitionCommand::Append(fenced(name, token)));
    assert_eq!(run(&mut story, "lock", 5), appended(0, 1));
    assert_eq!(run(&mut story, "lock", 5), appended(1, 1));
    assert_eq!(run(&mut story, "other", 1), appended(2, 1), "another fence is another matter");
    assert_eq!(run(&mut story, "lock", 6), appended(3, 1), "an append raises the fence");
    let lower = Refusal::Fenced { token: 5, highest: 6 };
    assert_eq!(story.refused(PartitionCommand::Append(fenced("lock", 5))), lower);
    assert_eq!(story.refused(PartitionCommand::RaiseFence(fence("lock", 5))), lower);
    assert_eq!(story.run(PartitionCommand::RaiseFence(fence("lock", 6))), Verdict::Done { value: 6, extra: 4 });
    let early = AppendCommand { expected_offset: Some(Offset(9)), ..fenced("lock", 9) };
    story.refused(PartitionCommand::Append(early));
    assert_eq!(run(&mut story, "lock", 6), appended(4, 1), "a refused append raises nothing");
}

#[test]
fn fences_are_bounded_and_never_evicted() {
    let mut story = Story::new();
    for number in 0..FENCES_MAX {
        let raise = PartitionCommand::RaiseFence(fence(&number.to_string(), 2));
        assert_eq!(story.run(raise), Verdict::Done { value: 2, extra: 0 });
    }
    let full = Refusal::LimitReached { which: Bound::Fences as u64, limit: FENCES_MAX as u64 };
    assert_eq!(story.refused(PartitionCommand::RaiseFence(fence("new", 1))), full);
    let append = AppendCommand { fence: Some(fence("new", 1)), ..append(None, 1) };
    assert_eq!(story.refused(PartitionCommand::Append(append)), full);
    let lower = PartitionCommand::RaiseFence(fence("0", 1));
    assert_eq!(story.refused(lower), Refusal::Fenced { token: 1, highest: 2 });
}

#[test]
fn an_expected_offset_must_be_the_tail() {
    let mut story = Story::new();
    let expecting =
        |offset| PartitionCommand::Append(AppendCommand { expected_offset: Some(Offset(offset)), ..append(None, 2) });
    assert_eq!(story.run(expecting(0)), appended(0, 2));
    let wrong = |expected| Refusal::WrongExpectedOffset { expected: Offset(expected), tail: Offset(2) };
    assert_eq!(story.refused(expecting(0)), wrong(0));
    assert_eq!(story.refused(expecting(3)), wrong(3));
    assert_eq!(story.run(expecting(2)), appended(2, 2));
}

#[test]
fn the_agreed_start_moves_forward_up_to_the_tail() {
    let mut story = Story::new();
    story.append(None, 10);
    let trim = |offset| PartitionCommand::TrimTo { offset: Offset(offset) };
    assert_eq!(story.run(trim(4)), Verdict::Done { value: 4, extra: 0 });
    assert_eq!(story.run(trim(2)), Verdict::Done { value: 4, extra: 0 });
    assert_eq!(story.refused(trim(11)), Refusal::Conflict { wanted: 11, actual: 10 });
    assert_eq!(story.run(trim(10)), Verdict::Done { value: 10, extra: 0 });
    assert_eq!(story.partition.view().start, Offset(10));
    assert_eq!(story.append(None, 1), appended(10, 1));
}

#[test]
fn offsets_end_where_the_batchs_header_does() {
    let mut story = Story::new();
    story.partition.tail = Offset(i64::MAX as u64 - 1);
    assert_eq!(story.append(None, 1), appended(i64::MAX as u64 - 1, 1));
    let full = Refusal::LimitReached { which: Bound::Offsets as u64, limit: i64::MAX as u64 };
    assert_eq!(story.append_refused(None, 1), full);
}

#[test]
fn a_batch_that_the_door_should_have_refused_is_malformed() {
    let mut story = Story::new();
    let (id, _, _) = story.open(None);
    let id = id as i64;
    let too_many = BATCH_RECORDS_MAX as i32 + 1;
    for (id, epoch, sequence, count) in
        [(-2, 0, 0, 1), (id, -1, 0, 1), (id, 0, -1, 1), (id, 0, 0, 0), (id, 0, 0, -1), (-1, 0, 0, too_many)]
    {
        let batch = raw_batch(id, epoch, sequence, count);
        let append = AppendCommand { expected_offset: None, fence: None, batch };
        let refusal = story.refused(PartitionCommand::Append(append));
        assert_eq!(refusal, Refusal::Malformed, "{id} {epoch} {sequence} {count}");
    }
    let mut layout = batch(None, 1).to_vec();
    layout[16] = 1;
    let older = AppendCommand { expected_offset: None, fence: None, batch: layout.into() };
    assert_eq!(story.refused(PartitionCommand::Append(older)), Refusal::Malformed);
    let short = AppendCommand { expected_offset: None, fence: None, batch: Bytes::from_static(&[0; 60]) };
    assert_eq!(story.refused(PartitionCommand::Append(short)), Refusal::Malformed);
}

/// One of each kind, and of each shape.
pub(super) fn commands() -> Vec<PartitionCommand> {
    let fences = [None, Some(fence("lock", 3))];
    let expected = [None, Some(Offset(9))];
    let mut commands: Vec<PartitionCommand> = fences
        .iter()
        .flat_map(|fence| expected.map(|expected_offset| (fence.clone(), expected_offset)))
        .map(|(fence, expected_offset)| {
            PartitionCommand::Append(AppendCommand { expected_offset, fence, batch: batch(Some((9, 1, 4)), 2) })
        })
        .collect();
    commands.extend([
        PartitionCommand::OpenSession { name: None },
        PartitionCommand::OpenSession { name: Some("import".into()) },
        PartitionCommand::CloseSession { producer: ProducerId(9), epoch: 1 },
        PartitionCommand::QuerySession { producer: ProducerId(9) },
        PartitionCommand::RaiseFence(fence("lock", 3)),
        PartitionCommand::TrimTo { offset: Offset(5) },
    ]);
    commands
}

#[test]
fn every_command_survives_encoding_and_says_where_its_batch_lies() {
    for command in commands() {
        let encoded = command.encode();
        assert_eq!(PartitionCommand::decode(&encoded), Ok(command.clone()));
        let applied = Story::new()
            .partition
            .apply(Place { index: LogIndex(1), term: Term(1), timestamp: TimestampMs(1) }, &encoded);
        match &command {
            PartitionCommand::Append(append) => {
                let at = applied.batch_at.expect("an append says so") as usize;
                assert_eq!(encoded.slice(at..), append.batch);
            }
            _ => {
                assert_eq!(applied.batch_at, None);
                assert!((0..encoded.len()).all(|len| PartitionCommand::decode(&encoded.slice(..len)).is_err()));
                let longer = Bytes::from([&encoded[..], &[0]].concat());
                assert!(PartitionCommand::decode(&longer).unwrap_err().to_string().contains("1 bytes follow"));
            }
        }
    }
}

#[test]
fn commands_have_these_bytes() {
    let append = AppendCommand {
        expected_offset: Some(Offset(258)),
        fence: Some(fence("lk", 7)),
        batch: Bytes::from_static(b"BATCH"),
    };
    let golden = b"\x01\x03\x02\x01\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x02\0lkBATCH";
    assert_eq!(PartitionCommand::Append(append).encode(), golden[..]);
    assert_eq!(PartitionCommand::OpenSession { name: Some("ab".into()) }.encode(), b"\x02\x01\x02\0ab"[..]);
    assert_eq!(PartitionCommand::OpenSession { name: None }.encode(), b"\x02\0"[..]);
}

#[test]
fn a_command_out_of_form_says_what_is_wrong() {
    let text = |bytes: &[u8]| PartitionCommand::decode(&Bytes::copy_from_slice(bytes)).unwrap_err().to_string();
    assert_eq!(text(b""), "kind at position 0 takes 1 bytes; 0 are left");
    assert_eq!(text(&[200]), "kind of a partition's command can't be 200");
    assert_eq!(text(&[1, 4]), "flags can't be 4");
    assert_eq!(text(&[2, 1, 0, 0]), "length of a name can't be 0");
    assert_eq!(text(&[2, 1, 129, 0]), "session name is 129; at most 128 is allowed");
    assert_eq!(text(&[2, 1, 1, 0, 0xff]), "session name at position 4 is not UTF-8");
    assert_eq!(text(&[6, 1, 2]), "offset at position 1 takes 8 bytes; 2 are left");
}

#[test]
fn a_snapshot_has_these_bytes_and_nothing_else_is_one() {
    let mut story = Story::new();
    story.partition.last_producer = ProducerId::ZERO;
    let (id, _, _) = story.open(Some("ab"));
    story.append(Some((id, 0, 0)), 3);
    story.run(PartitionCommand::RaiseFence(fence("f", 9)));
    story.run(PartitionCommand::TrimTo { offset: Offset(1) });
    let snapshot = story.partition.snapshot();
    let mut golden: Vec<u8> = vec![1];
    for number in [4, EXPIRY_MS, NAMED_EXPIRY_MS, 1, 3, 50, 2 << 12] {
        golden.extend(number.to_le_bytes());
    }
    golden.extend(b"\x01\0\0\0\x01\0f\x09\0\0\0\0\0\0\0");
    golden.extend(b"\x01\0\0\0\x00\x20\0\0\0\0\0\0\x02\0ab\0\0");
    for number in [3u64, 50, 3] {
        golden.extend(number.to_le_bytes());
    }
    golden.extend(b"\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(snapshot, golden);

    assert_eq!(Partition::restore(&snapshot).unwrap(), story.partition);
    for len in 0..snapshot.len() {
        assert!(Partition::restore(&snapshot.slice(..len)).is_err(), "{len} bytes");
    }
    let longer = Bytes::from([&snapshot[..], &[0]].concat());
    assert!(Partition::restore(&longer).unwrap_err().contains("1 bytes follow"));
    let mut newer = snapshot.to_vec();
    newer[0] = 2;
    let error = Partition::restore(&newer.into()).unwrap_err();
    assert_eq!(error, "snapshot of a partition: version 2 is not known here; version 1 is");
}

#[test]
fn a_session_of_a_deleted_topic_is_a_stranger_to_the_one_created_again_under_its_name() {
    let place = Place { index: LogIndex(2), term: Term(2), timestamp: TimestampMs(1) };
    let open = PartitionCommand::OpenSession { name: None }.encode();
    let session_in = |group| {
        let mut partition = Partition::new(PartitionSettings::new(GroupId(group)));
        match partition.apply(place, &open).verdict {
            Verdict::Done { value, .. } => value,
            other => panic!("a session is opened: {other:?}"),
        }
    };
    let ids: Vec<u64> = (1..100).map(session_in).collect();
    let mut distinct = ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), ids.len(), "no two groups give the same id");
    assert!(ids.iter().all(|id| *id < i64::MAX as u64 / 2), "and all have room to count on");
}
