//! Reading: batches from an offset on, tails, and offsets by time.
//!
//! Only committed batches are ever seen here. Where a read must end, or whether an offset is past the tail, is decided by a
//! linearizable tail unless the caller asked for a stale one by name. What answers may take of the node's memory stands in
//! `room`.

use super::errors::ApiError;
use super::room::Room;
use super::target::Target;
use super::Doors;
use crate::client::wire;
use crate::group::driver::{CommandError, ReadOutcome, TailPoint};
use crate::ids::{Offset, TimestampMs};
use crate::limits::{BATCH_BYTES_MAX, READ_RESPONSE_BYTES_MAX};
use crate::router::RouteError;
use crate::{planted, reached};
use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Status;
use wire::read_request::From;

/// Answers that wait for the transport before the reader waits.
const ANSWERS_QUEUED_MAX: usize = 2;

/// How often in a row a file may go while the same offset is about to be read. A trim moves the start, a snapshot replaces
/// all files: either is over by the next try.
const MOVES_MAX: u32 = 3;

type Answer = Result<wire::ReadResponse, Status>;

/// An answer, and its room until the transport takes it.
pub(super) struct Held {
    answer: Answer,
    _room: Option<Room>,
}

impl Held {
    /// The answer; its room is given back.
    pub fn taken(self) -> Answer {
        self.answer
    }
}

/// Tells a file that moved from one that is gone.
#[derive(Default)]
struct Moves {
    at: Offset,
    count: u32,
}

impl Moves {
    /// The file that holds `at` went. True if that happened too often in a row to be anything but a loss.
    fn is_lost(&mut self, at: Offset) -> bool {
        self.count = if self.at == at { self.count + 1 } else { 1 };
        self.at = at;
        self.count >= MOVES_MAX
    }
}

/// One read under way on this node.
struct Reader {
    doors: Doors,
    target: Target,
    answers: mpsc::Sender<Held>,
    next: Offset,
    /// Where to end; `None` follows.
    end: Option<Offset>,
    records_left: Option<u64>,
    bytes_max: usize,
    tail: Offset,
    first: bool,
    moves: Moves,
}

impl Doors {
    /// Starts reading `target` here; batches come out of the returned channel.
    pub(super) async fn read_here(
        &self,
        target: Target,
        request: wire::ReadRequest,
    ) -> Result<mpsc::Receiver<Held>, ApiError> {
        let from = request.from.ok_or_else(|| {
            ApiError::Invalid("where to read from is missing: an offset, earliest, latest or a time".into())
        })?;
        let point = self.tail_of(&target, request.stale).await?;
        let next = self.first_offset(&target, from, point).await?;
        let (answers, answers_end) = mpsc::channel(ANSWERS_QUEUED_MAX);
        let reader = Reader {
            doors: self.clone(),
            target,
            answers,
            next,
            end: (!request.follow).then_some(point.tail),
            records_left: request.count_max,
            bytes_max: match request.bytes_max as usize {
                0 => READ_RESPONSE_BYTES_MAX,
                wanted => wanted.min(READ_RESPONSE_BYTES_MAX),
            },
            tail: point.tail,
            first: true,
            moves: Moves::default(),
        };
        tokio::spawn(reader.run());
        Ok(answers_end)
    }

    async fn first_offset(&self, target: &Target, from: From, point: TailPoint) -> Result<Offset, ApiError> {
        match from {
            From::Earliest(_) => Ok(point.start),
            From::Latest(_) => Ok(point.tail),
            From::TimeMs(time) => self.offset_for_time_of(target, time).await,
            From::Offset(wanted) if wanted < point.start.0 => {
                Err(ApiError::Trimmed { what: target.to_string(), wanted: Offset(wanted), start: point.start })
            }
            From::Offset(wanted) if wanted > point.tail.0 => {
                Err(ApiError::PastTail { what: target.to_string(), wanted: Offset(wanted), tail: point.tail })
            }
            From::Offset(wanted) => Ok(Offset(wanted)),
        }
    }

    /// Where the log ends: as a majority has it, or, if the caller takes a stale answer, as this node has it.
    pub(super) async fn tail_of(&self, target: &Target, stale: bool) -> Result<TailPoint, ApiError> {
        let group = target.group();
        if !stale && !planted!("tail-answered-from-own-view") {
            let failed = |error| self.route_failed(target.to_string(), group, RouteError::Here(error));
            return self.router.driver().tail(group).await.map_err(failed);
        }
        let view = self.router.driver().view(group).ok_or_else(|| self.not_hosted(target))?;
        let view = view.borrow();
        Ok(TailPoint { start: view.start, tail: view.tail, chain: view.chain })
    }

    pub(super) async fn offset_for_time_of(&self, target: &Target, time_ms: u64) -> Result<Offset, ApiError> {
        let found = self.router.driver().offset_for_time(target.group(), TimestampMs(time_ms)).await;
        found
            .map_err(|source| ApiError::Command { what: target.to_string(), source })?
            .map_err(|source| ApiError::Storage { what: target.to_string(), source })
    }

    /// Start, tail and chain in the words of the wire.
    pub(super) fn tail_response(&self, target: &Target, point: TailPoint) -> wire::TailResponse {
        wire::TailResponse {
            start: point.start.0,
            tail: point.tail.0,
            hash: Bytes::copy_from_slice(&point.chain.0),
            leader: self.leader(target.group()),
        }
    }

    fn not_hosted(&self, target: &Target) -> ApiError {
        let source = CommandError::NotHosted(target.group());
        ApiError::Command { what: target.to_string(), source }
    }
}

impl Reader {
    async fn run(mut self) {
        let doors = self.doors.clone();
        loop {
            let proceeded = tokio::select! {
                biased;
                () = doors.stopped() => Err(ApiError::ShuttingDown),
                proceeded = self.step() => proceeded,
            };
            match proceeded {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let status = self.doors.status(&error, Some(self.target.group()));
                    let _ = self.answers.send(Held { answer: Err(status), _room: None }).await;
                    return;
                }
            }
        }
    }

    /// One answer, or one wait for more. False when the read is at its end or nobody listens.
    async fn step(&mut self) -> Result<bool, ApiError> {
        if self.records_left == Some(0) || self.end.is_some_and(|end| self.next >= end) {
            // One answer at least, so that the client learns the tail and the leader.
            if self.first {
                self.send(Vec::new(), None).await;
            }
            return Ok(false);
        }
        // A batch is returned whole even where it exceeds what was asked for.
        let mut room = self.doors.read_room.take(self.bytes_max + BATCH_BYTES_MAX).await?;
        let outcome = self.doors.router.driver().read(self.target.group(), self.next, self.bytes_max).await;
        let what = || self.target.to_string();
        match outcome.map_err(|source| ApiError::Command { what: what(), source })? {
            ReadOutcome::Batches(batches) => {
                let mut sent = Vec::with_capacity(batches.len());
                for batch in batches {
                    if self.records_left == Some(0) || self.end.is_some_and(|end| batch.base_offset >= end) {
                        break;
                    }
                    let after = batch.base_offset.plus(u64::from(batch.count));
                    if let Some(left) = &mut self.records_left {
                        *left = left.saturating_sub(after.0 - self.next.0.max(batch.base_offset.0));
                    }
                    self.next = after;
                    sent.push(wire::ReadBatch { batch: batch.batch, timestamp_ms: batch.timestamp.0 });
                }
                self.tail = self.tail.max(self.next);
                room.shrink_to(sent.iter().map(|batch| batch.batch.len()).sum());
                Ok(self.send(sent, Some(room)).await)
            }
            ReadOutcome::AtTail(_) | ReadOutcome::PastTail { .. } => {
                drop(room); // it may be long until there is more
                            // A reader that follows shall know that it is connected before the first record comes.
                if self.first && !self.send(Vec::new(), None).await {
                    return Ok(false);
                }
                self.more().await
            }
            ReadOutcome::Moved if self.moves.is_lost(self.next) => {
                Err(ApiError::Gone { what: what(), offset: self.next })
            }
            ReadOutcome::Moved => {
                reached!("file went under a reader, located again");
                Ok(true)
            }
            ReadOutcome::Trimmed { start } => Err(ApiError::Trimmed { what: what(), wanted: self.next, start }),
            ReadOutcome::Failed(source) => Err(ApiError::Storage { what: what(), source }),
        }
    }

    /// Waits until something is there to be read, or nobody listens.
    async fn more(&mut self) -> Result<bool, ApiError> {
        let gone = || ApiError::UnknownTopic(self.target.topic.name.to_string());
        let mut view = self.doors.router.driver().view(self.target.group()).ok_or_else(gone)?;
        let next = self.next;
        tokio::select! {
            biased;
            _ = self.answers.closed() => Ok(false),
            moved = view.wait_for(|view| view.tail > next) => {
                self.tail = moved.map_err(|_| gone())?.tail;
                Ok(true)
            }
        }
    }

    async fn send(&mut self, batches: Vec<wire::ReadBatch>, room: Option<Room>) -> bool {
        let leader = if self.first { self.doors.leader(self.target.group()) } else { None };
        self.first = false;
        let answer = wire::ReadResponse { batches, tail: self.tail.0, leader };
        self.answers.send(Held { answer: Ok(answer), _room: room }).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_goes_again_and_again_under_the_same_offset_is_lost() {
        let mut moves = Moves::default();
        assert!(!moves.is_lost(Offset(0)) && !moves.is_lost(Offset(0)));
        assert!(!moves.is_lost(Offset(7)), "another offset starts anew");
        assert!(!moves.is_lost(Offset(7)) && moves.is_lost(Offset(7)));
    }
}
