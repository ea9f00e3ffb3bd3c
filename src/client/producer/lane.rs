//! What a producer knows of one partition: its session, and the batches that are not acknowledged yet, in order.
//!
//! Invariant: `queue[..sent]` are out on the present link, in order, and nothing behind them is. Going back means `sent = 0`:
//! the batches stay as they were built, so that their repetition is recognised.

use super::super::retry::Backoff;
use super::super::{ClientError, Session};
use super::{Sealed, SessionChoice};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// One partition's state in a producer.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) session: SessionState,
    /// Who waits for the session to be open.
    pub(super) openers: Vec<oneshot::Sender<Result<Session, ClientError>>>,
    /// Sequence of the next batch's first record.
    pub(super) next_sequence: u64,
    /// Batches not acknowledged yet, by sequence.
    pub(super) queue: VecDeque<Pending>,
    /// How many of them are out.
    pub(super) sent: usize,
    /// The link they are out on.
    pub(super) link: Option<u64>,
    /// Where to go once nothing is out: a leader told of by an answer.
    pub(super) hint: Option<String>,
    pub(super) retry_at: Option<Instant>,
    pub(super) backoff: Backoff,
    /// Since when the first batch that is out has waited, or was last asked about.
    pub(super) silent_since: Option<Instant>,
    /// How often that was too long, since the last answer.
    pub(super) stalls: u32,
    pub(super) last_failure: String,
    pub(super) failed: bool,
    pub(super) dirty: bool,
    pub(super) timer: Option<Instant>,
    /// When the session last showed a sign of life.
    pub(super) used_at: Option<Instant>,
}

/// A partition's session.
#[derive(Debug, Default)]
pub(super) enum SessionState {
    #[default]
    Closed,
    Opening,
    Open(Session),
}

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Pending {
    /// Number of the request that carried it last; zero before the first.
    pub(super) number: u64,
    pub(super) batch: Bytes,
    pub(super) count: u32,
    pub(super) charge: usize,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
    /// Some try of it was not answered with *did not happen*.
    pub(super) open: bool,
}

impl Lane {
    /// Gives a sealed batch its place in the session and queues it.
    pub(super) fn push(&mut self, sealed: Sealed, timeout: Duration) {
        let Sealed { mut builder, charge, since } = sealed;
        let count = builder.len() as u32;
        if let SessionState::Open(session) = &self.session {
            builder.producer(session.producer_id.into(), session.epoch, self.next_sequence as u32);
        }
        self.next_sequence += u64::from(count);
        let batch = builder.build();
        self.queue.push_back(Pending {
            number: 0,
            batch,
            count,
            charge,
            since,
            deadline: since + timeout,
            open: false,
        });
    }

    /// How many batches may be unacknowledged.
    pub(super) fn in_flight_max(&self, asked: usize, choice: &SessionChoice) -> usize {
        match (&self.session, choice) {
            // Without a session nothing but patience keeps the order.
            (_, SessionChoice::Off) => 1,
            (SessionState::Open(session), _) => asked.clamp(1, session.window_batches as usize),
            _ => 0,
        }
    }

    /// Whether the session may have been forgotten for want of use. Only asked while nothing is under way, so that
    /// opening another can't repeat anything.
    pub(super) fn session_is_stale(&self, now: Instant) -> bool {
        let SessionState::Open(session) = &self.session else { return false };
        let half = Duration::from_millis(session.expires_after_ms / 2);
        session.expires_after_ms > 0 && self.used_at.is_some_and(|used| now.saturating_duration_since(used) > half)
    }

    /// The place of the batch that a request carried.
    pub(super) fn position(&self, number: u64) -> Option<usize> {
        self.queue.iter().position(|pending| pending.number == number)
    }

    /// Takes the first batch off, as acknowledged.
    pub(super) fn acknowledge(&mut self, now: Instant) -> Option<Pending> {
        self.sent = self.sent.saturating_sub(1);
        self.backoff.reset();
        self.stalls = 0;
        self.silent_since = Some(now);
        self.used_at = Some(now);
        self.queue.pop_front()
    }

    /// Goes back to the first unacknowledged batch, to send all again after `wait`. `open`: those that were out may have
    /// been appended.
    pub(super) fn rewind(&mut self, wait: Duration, open: bool, now: Instant) {
        for pending in self.queue.iter_mut().take(self.sent) {
            pending.open |= open;
        }
        self.sent = 0;
        self.link = None;
        self.stalls = 0;
        self.silent_since = None;
        self.retry_at = Some(now + wait);
    }

    /// Whether some try of the first batch is without a definite answer.
    pub(super) fn first_is_open(&self) -> bool {
        self.sent > 0 || self.queue.front().is_some_and(|pending| pending.open)
    }
}
