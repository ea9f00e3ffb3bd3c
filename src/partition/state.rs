//! Applies commands to a partition's state.
//!
//! Order of the checks of an append, and why: *session, fence, expected offset*. A retry of an accepted append must return its
//! first offset whatever came since: the tail has moved past its expected offset by its own first attempt, and its fence may
//! have been raised after it. So what the session remembers is answered before anything else is looked at. Everything that can
//! refuse is asked before anything changes: a refused command changes nothing but the log's time, and does not advance its
//! session's sequence.
//!
//! Time is the log's own, so that replicas agree on which sessions have expired. An expired session is unknown from that
//! moment on; its memory is freed when the next session is opened.

use super::command::{AppendCommand, Fence, PartitionCommand};
use super::session::{Judgement, Session, SessionStanding, EPOCH_MAX};
use crate::batch::{self, BatchProducer};
use crate::group::machine::{Applied, Place, StateMachine};
use crate::ids::{GroupId, LogIndex, Offset, ProducerId, Term, TimestampMs};
use crate::limits::{BATCH_RECORDS_MAX, FENCES_MAX, NAMED_SESSION_EXPIRY_MS, SESSIONS_MAX, SESSION_EXPIRY_MS};
use crate::segments::verdict::{Refusal, Verdict};
use crate::{planted, reached};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Bits of a producer id below the log index that opened the session.
const PRODUCER_BITS: u32 = 12;

/// What a partition is created with. Part of the state, so that every replica judges alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionSettings {
    /// The partition's group.
    pub group: GroupId,
    /// How long, in the log's time, a session without a name may stay unused.
    pub session_expiry_ms: u64,
    /// How long, in the log's time, a session with a name may stay unused.
    pub named_session_expiry_ms: u64,
}

impl PartitionSettings {
    /// The settings of a new partition.
    #[must_use]
    pub const fn new(group: GroupId) -> PartitionSettings {
        PartitionSettings {
            group,
            session_expiry_ms: SESSION_EXPIRY_MS,
            named_session_expiry_ms: NAMED_SESSION_EXPIRY_MS,
        }
    }
}

/// A bound of a partition, as `Refusal::LimitReached` numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Bound {
    /// Producer sessions open at a time.
    Sessions = 1,
    /// Fences.
    Fences = 2,
    /// Records a partition can ever hold: offsets are 63 bits wide in the batch's header.
    Offsets = 3,
    /// Log indexes from which a producer id can be made.
    Producers = 4,
}

impl Bound {
    /// The bound of that number.
    #[must_use]
    pub const fn from_code(code: u64) -> Option<Bound> {
        match code {
            1 => Some(Bound::Sessions),
            2 => Some(Bound::Fences),
            3 => Some(Bound::Offsets),
            4 => Some(Bound::Producers),
            _ => None,
        }
    }

    const fn reached(self, limit: u64) -> Refusal {
        Refusal::LimitReached { which: self as u64, limit }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bound::Sessions => "producer sessions of the partition",
            Bound::Fences => "fences of the partition",
            Bound::Offsets => "offsets of the partition",
            Bound::Producers => "producer ids of the partition",
        })
    }
}

/// What the node sees of a partition's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionView {
    /// The partition's group.
    pub group: GroupId,
    /// The first absent offset.
    pub tail: Offset,
    /// The agreed start of the log: what lies below was trimmed.
    pub start: Offset,
    /// The log's time.
    pub timestamp: TimestampMs,
    /// Producer sessions held, expired ones that were not cleared yet included.
    pub sessions: u32,
    /// Fences held.
    pub fences: u32,
}

/// The state of a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    pub(crate) settings: PartitionSettings,
    /// Invariant: `start <= tail <= i64::MAX`.
    pub(crate) start: Offset,
    pub(crate) tail: Offset,
    /// Invariant: never goes back.
    pub(crate) timestamp: TimestampMs,
    /// Invariant: no session has or ever had a higher id.
    pub(crate) last_producer: ProducerId,
    pub(crate) sessions: BTreeMap<ProducerId, Session>,
    /// Invariant: exactly the named ones of `sessions`.
    pub(crate) names: BTreeMap<Arc<str>, ProducerId>,
    pub(crate) fences: BTreeMap<Arc<str>, u64>,
}

/// Below every producer id of the group: spread over the ids by the group's number, which is never given twice. A producer that
/// outlives its topic's deletion must be a stranger to a topic created again under that name, not the bearer of another's id.
fn first_producer(group: GroupId) -> ProducerId {
    let digest = blake3::hash(&group.0.to_le_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest.as_bytes()[..8]);
    // Two bits stay free: ids fit 63 bits, and there is room to count on.
    ProducerId(u64::from_le_bytes(bytes) >> 2)
}

impl Partition {
    /// A partition that holds nothing yet.
    #[must_use]
    pub fn new(settings: PartitionSettings) -> Partition {
        Partition {
            settings,
            start: Offset::ZERO,
            tail: Offset::ZERO,
            timestamp: TimestampMs::ZERO,
            last_producer: first_producer(settings.group),
            sessions: BTreeMap::new(),
            names: BTreeMap::new(),
            fences: BTreeMap::new(),
        }
    }

    /// The partition's group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.settings.group
    }

    /// Where an open, unexpired session stands.
    #[must_use]
    pub fn session(&self, producer: ProducerId) -> Option<SessionStanding> {
        self.open_session(producer).map(|session| session.standing(producer))
    }

    fn open_session(&self, producer: ProducerId) -> Option<&Session> {
        self.sessions.get(&producer).filter(|session| !self.expired(session))
    }

    fn expired(&self, session: &Session) -> bool {
        let expiry_ms = match session.name {
            None => self.settings.session_expiry_ms,
            Some(_) => self.settings.named_session_expiry_ms,
        };
        self.timestamp.0.saturating_sub(session.used.0) >= expiry_ms
    }

    fn append(&mut self, append: &AppendCommand) -> Result<Verdict, Refusal> {
        let (count, producer) = peek(&append.batch).ok_or(Refusal::Malformed)?;
        if let Some(batch) = producer {
            let unknown = match planted!("forgotten-session-taken-for-new") {
                true => Judgement::Next,
                false => Judgement::Refused(Refusal::SessionUnknown { producer: batch.id.0 }),
            };
            match self.open_session(batch.id).map_or(unknown, |session| session.judge(batch, count)) {
                Judgement::Next => {}
                Judgement::Repeated(offset) => {
                    reached!("retry answered from the session's window");
                    self.touch(batch.id);
                    return Ok(Verdict::Repeated { offset, count });
                }
                Judgement::Refused(refusal) => return Err(refusal),
            }
        }
        if let Some(fence) = &append.fence {
            self.check_fence(fence)?;
        }
        if let Some(expected) = append.expected_offset.filter(|expected| *expected != self.tail) {
            return Err(Refusal::WrongExpectedOffset { expected, tail: self.tail });
        }
        let offset = self.tail;
        let tail = offset.0.checked_add(count.into()).filter(|tail| *tail <= i64::MAX as u64);
        self.tail = Offset(tail.ok_or(Bound::Offsets.reached(i64::MAX as u64))?);

        // Nothing refuses from here on.
        if let Some(fence) = &append.fence {
            self.raise(fence);
        }
        if let Some(session) = producer.and_then(|batch| self.sessions.get_mut(&batch.id)) {
            session.remember(offset, count, self.timestamp);
        }
        Ok(Verdict::Appended { offset, count })
    }

    fn touch(&mut self, producer: ProducerId) {
        if let Some(session) = self.sessions.get_mut(&producer) {
            session.used = self.timestamp;
        }
    }

    /// A fence that is not held yet takes a place; one that is held refuses lower tokens.
    fn check_fence(&self, fence: &Fence) -> Result<(), Refusal> {
        match self.fences.get(&fence.name) {
            Some(&highest) if fence.token < highest => Err(Refusal::Fenced { token: fence.token, highest }),
            Some(_) => Ok(()),
            None if self.fences.len() >= FENCES_MAX => Err(Bound::Fences.reached(FENCES_MAX as u64)),
            None => Ok(()),
        }
    }

    fn raise(&mut self, fence: &Fence) {
        match self.fences.get_mut(&fence.name) {
            Some(token) => *token = fence.token,
            None => drop(self.fences.insert(fence.name.clone(), fence.token)),
        }
    }

    fn raise_fence(&mut self, fence: &Fence) -> Result<Verdict, Refusal> {
        self.check_fence(fence)?;
        self.raise(fence);
        Ok(Verdict::Done { value: fence.token, extra: self.tail.0 })
    }

    fn open(&mut self, index: LogIndex, name: Option<Arc<str>>) -> Result<Verdict, Refusal> {
        self.clear_expired();
        let known = name.as_ref().and_then(|name| self.names.get(name).copied());
        let producer = match known {
            Some(producer) => self.reopen(index, producer)?,
            None if self.sessions.len() >= SESSIONS_MAX => return Err(Bound::Sessions.reached(SESSIONS_MAX as u64)),
            None => {
                let producer = self.next_producer(index)?;
                self.insert(producer, Session::new(name, self.timestamp));
                producer
            }
        };
        let session = &self.sessions[&producer];
        let extra = u64::from(session.epoch) << 32 | u64::from(session.next_sequence());
        Ok(Verdict::Done { value: producer.0, extra })
    }

    /// Raises the epoch of a named session: whoever held it before is shut out. Epochs are 15 bits wide in the batch's header;
    /// after the last one the session goes on under a new id, with its sequences but without its memory, since the epochs in
    /// that would be taken for those of the new id.
    fn reopen(&mut self, index: LogIndex, producer: ProducerId) -> Result<ProducerId, Refusal> {
        let exhausted = self.sessions[&producer].epoch == EPOCH_MAX;
        let next = if exhausted { self.next_producer(index)? } else { producer };
        let mut session = self.remove(producer).expect("names lead to sessions");
        reached!("epoch of a session raised");
        session.used = self.timestamp;
        if exhausted {
            session.epoch = 0;
            session.window.clear();
        } else {
            session.epoch += 1;
        }
        self.insert(next, session);
        Ok(next)
    }

    /// The log index that opens the session, shifted left, plus how many were opened by the same entry before: several opens
    /// may share one entry. Ids only ever grow, so none is given twice.
    fn next_producer(&mut self, index: LogIndex) -> Result<ProducerId, Refusal> {
        let from_index = index.0.saturating_mul(1 << PRODUCER_BITS);
        let producer = from_index.max(self.last_producer.0 + 1);
        if producer > i64::MAX as u64 {
            return Err(Bound::Producers.reached(i64::MAX as u64 >> PRODUCER_BITS));
        }
        self.last_producer = ProducerId(producer);
        Ok(self.last_producer)
    }

    fn close(&mut self, producer: ProducerId, epoch: u16) -> Result<Verdict, Refusal> {
        let unknown = Refusal::SessionUnknown { producer: producer.0 };
        let session = self.open_session(producer).ok_or(unknown)?;
        if epoch < session.epoch {
            return Err(Refusal::SessionEpochOld { epoch: epoch.into(), current: session.epoch.into() });
        }
        if epoch > session.epoch {
            return Err(unknown);
        }
        let extra = session.tail.0;
        self.remove(producer);
        Ok(Verdict::Done { value: producer.0, extra })
    }

    fn query(&self, producer: ProducerId) -> Result<Verdict, Refusal> {
        let session = self.open_session(producer).ok_or(Refusal::SessionUnknown { producer: producer.0 })?;
        Ok(Verdict::Done { value: session.tail.0, extra: session.records })
    }

    fn clear_expired(&mut self) {
        let expired: Vec<ProducerId> =
            self.sessions.iter().filter(|(_, session)| self.expired(session)).map(|(id, _)| *id).collect();
        for producer in expired {
            reached!("session expired");
            self.remove(producer);
        }
    }

    fn insert(&mut self, producer: ProducerId, session: Session) {
        if let Some(name) = &session.name {
            self.names.insert(name.clone(), producer);
        }
        self.sessions.insert(producer, session);
    }

    fn remove(&mut self, producer: ProducerId) -> Option<Session> {
        let session = self.sessions.remove(&producer)?;
        if let Some(name) = &session.name {
            self.names.remove(name);
        }
        Some(session)
    }

    fn trim_to(&mut self, offset: Offset) -> Result<Verdict, Refusal> {
        if offset > self.tail {
            return Err(Refusal::Conflict { wanted: offset.0, actual: self.tail.0 });
        }
        self.start = self.start.max(offset);
        Ok(Verdict::Done { value: self.start.0, extra: 0 })
    }
}

/// Count and session of a batch that the door has validated; `None` if it can't have been. A header that names a session
/// and no epoch or sequence of it is refused, not taken for one without a session: that one could be appended twice.
fn peek(batch: &[u8]) -> Option<(u32, Option<BatchProducer>)> {
    let summary = batch::peek(batch)?;
    if summary.count == 0 || summary.count as usize > BATCH_RECORDS_MAX {
        return None;
    }
    let producer = match summary.producer_id {
        -1 => None,
        _ => Some(summary.producer()?),
    };
    Some((summary.count, producer))
}

impl StateMachine for Partition {
    type View = PartitionView;

    fn apply(&mut self, place: Place, command: &Bytes) -> Applied {
        // Leaders never stamp backwards; holding on to the maximum makes sure that no expired session comes back if one did.
        self.timestamp = self.timestamp.max(place.timestamp);
        let mut batch_at = None;
        let decided = match PartitionCommand::decode(command) {
            Err(_) => Err(Refusal::Malformed),
            Ok(PartitionCommand::Append(append)) => {
                batch_at = Some(append.batch_at() as u32);
                let decided = self.append(&append);
                if planted!("dedup-table-only-in-leaders-memory") && place.term == Term::ZERO {
                    self.sessions.values_mut().for_each(|session| session.window.clear());
                }
                decided
            }
            Ok(PartitionCommand::OpenSession { name }) => self.open(place.index, name),
            Ok(PartitionCommand::CloseSession { producer, epoch }) => self.close(producer, epoch),
            Ok(PartitionCommand::QuerySession { producer }) => self.query(producer),
            Ok(PartitionCommand::RaiseFence(fence)) => self.raise_fence(&fence),
            Ok(PartitionCommand::TrimTo { offset }) => self.trim_to(offset),
        };
        Applied { verdict: decided.unwrap_or_else(Verdict::Refused), batch_at }
    }

    fn adds_data(command: &Bytes) -> bool {
        PartitionCommand::adds_data(command)
    }

    fn log_start(&self) -> Offset {
        self.start
    }

    fn tail(&self) -> Offset {
        self.tail
    }

    fn snapshot(&self) -> Bytes {
        let mut into = bytes::BytesMut::new();
        self.encode(&mut into);
        into.freeze()
    }

    fn restore(snapshot: &Bytes) -> Result<Partition, String> {
        if planted!("unreadable-snapshot-taken-for-none") && snapshot.is_empty() {
            return Ok(Partition::new(PartitionSettings::new(GroupId(u64::MAX))));
        }
        Partition::decode(snapshot).map_err(|error| format!("snapshot of a partition: {error}"))
    }

    fn view(&self) -> PartitionView {
        PartitionView {
            group: self.settings.group,
            tail: self.tail,
            start: self.start,
            timestamp: self.timestamp,
            sessions: self.sessions.len() as u32,
            fences: self.fences.len() as u32,
        }
    }
}
