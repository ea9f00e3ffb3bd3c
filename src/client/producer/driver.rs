//! The task behind a producer: owns the lanes and the links, decides what is sent where and when, and what is sent again.
//!
//! Nothing is awaited here but the next event, command or timer. Requests carry numbers whose low bits name the lane, so
//! that an answer finds its way without a table; a number that no batch bears any more belongs to an earlier try, and its
//! refusal is ignored (its receipt would be repeated to the later try).

use super::super::types::Leader;
use super::super::{wire, Client, ClientError, Outcome, Reason, Receipt, Session, Topic};
use super::lane::{Lane, Pending, SessionState};
use super::link::{Event, Link};
use super::{Delivery, SessionChoice, Shared};
use crate::ids::{Digest, Offset, Term, TimestampMs};
use crate::limits::{BATCH_RECORDS_MAX, TOPIC_PARTITIONS_MAX};
use crate::reached;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Low bits of a request's number: the lane.
const LANE_BITS: u32 = 16;
const _: () = assert!(TOPIC_PARTITIONS_MAX < 1 << LANE_BITS);
/// Events waiting for the driver; links wait beyond that.
const EVENTS_MAX: usize = 1_024;
/// Events and commands looked at between two rounds of sending.
const LOOKS_MAX: usize = 256;
/// A leader that leaves a batch unanswered for so long is asked about elsewhere.
const STALL: Duration = Duration::from_millis(1_000);
/// How long a producer that ends takes care of its sessions.
const CLOSE: Duration = Duration::from_secs(1);
/// After so many of these in a row, another server is tried even if nobody says that the leader changed.
const STALLS_MAX: u32 = 4;
/// A session whose next sequence is beyond this is replaced, or exhausted if it has a name: the batch's field has 31 bits.
const SEQUENCE_MAX: u64 = i32::MAX as u64 - BATCH_RECORDS_MAX as u64;

/// What a producer's handles ask of its driver.
#[derive(Debug)]
pub(super) enum Command {
    /// A partition has a new or another full batch.
    Look { partition: u32 },
    /// Tell when nothing is unresolved.
    Flush { done: oneshot::Sender<()> },
    /// Open a partition's session, or tell of the open one.
    OpenSession { partition: u32, answer: oneshot::Sender<Result<Session, ClientError>> },
}

pub(super) struct Driver {
    client: Client,
    shared: Arc<Shared>,
    inbox: mpsc::UnboundedReceiver<Command>,
    outbox: mpsc::UnboundedSender<(Delivery, usize)>,
    events: mpsc::Receiver<Event>,
    events_in: mpsc::Sender<Event>,
    lanes: Vec<Lane>,
    links: BTreeMap<u64, Link>,
    /// Lanes to look at; each once, by its `dirty` mark.
    dirty: Vec<u32>,
    timers: BTreeSet<(Instant, u32)>,
    numbers: u64,
    link_numbers: u64,
    flushes: Vec<oneshot::Sender<()>>,
    describing: bool,
    /// All handles are gone.
    closing: bool,
}

impl Driver {
    pub(super) fn new(
        client: Client,
        shared: Arc<Shared>,
        inbox: mpsc::UnboundedReceiver<Command>,
        outbox: mpsc::UnboundedSender<(Delivery, usize)>,
    ) -> Driver {
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let lanes = shared.lanes.iter().map(|_| Lane::default()).collect();
        Driver {
            client,
            shared,
            inbox,
            outbox,
            events,
            events_in,
            lanes,
            links: BTreeMap::new(),
            dirty: Vec::new(),
            timers: BTreeSet::new(),
            numbers: 0,
            link_numbers: 0,
            flushes: Vec::new(),
            describing: false,
            closing: false,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            while let Some(partition) = self.dirty.pop() {
                self.lanes[partition as usize].dirty = false;
                self.pump(partition);
            }
            if self.shared.unresolved.load(Ordering::Acquire) == 0 {
                for done in self.flushes.drain(..) {
                    let _ = done.send(());
                }
                if self.closing {
                    return self.close_sessions().await;
                }
            }
            let timer = self.timers.first().map(|(at, _)| *at);
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => self.on_events(event),
                command = self.inbox.recv(), if !self.closing => self.on_commands(command),
                () = sleep_until(timer) => self.on_timers(),
            }
        }
    }

    /// Frees the places of sessions that nobody can use any more. Best effort: what stays open expires by itself.
    async fn close_sessions(mut self) {
        if self.shared.options.session != SessionChoice::Anonymous {
            return;
        }
        let (client, topic) = (&self.client, self.shared.topic.as_str());
        let open =
            self.lanes.iter_mut().enumerate().filter_map(|(partition, lane)| match std::mem::take(&mut lane.session) {
                SessionState::Open(session) => Some((partition as u32, session)),
                SessionState::Closed | SessionState::Opening => None,
            });
        let closed = open.map(|(partition, session)| async move {
            let _ = client.close_session(topic, partition, &session).await;
        });
        let closed: Vec<_> = closed.collect();
        let _ = tokio::time::timeout(CLOSE, futures::future::join_all(closed)).await;
    }

    fn on_events(&mut self, first: Event) {
        self.on_event(first);
        for _ in 0..LOOKS_MAX {
            let Ok(event) = self.events.try_recv() else { break };
            self.on_event(event);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Answers { answers } => answers.into_iter().for_each(|answer| self.on_answer(answer)),
            Event::LinkEnded { link, address, error } => self.on_link_ended(link, &address, &error),
            Event::SessionOpened { partition, result } => self.on_session(partition, result),
            Event::Described { result } => self.on_described(&result),
        }
    }

    fn on_commands(&mut self, first: Option<Command>) {
        let Some(first) = first else {
            self.closing = true;
            return self.mark_all();
        };
        self.on_command(first);
        for _ in 0..LOOKS_MAX {
            let Ok(command) = self.inbox.try_recv() else { break };
            self.on_command(command);
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Look { partition } => self.mark(partition),
            Command::Flush { done } => {
                self.flushes.push(done);
                self.mark_all();
            }
            Command::OpenSession { partition, answer } => {
                self.lanes[partition as usize].openers.push(answer);
                self.mark(partition);
            }
        }
    }

    fn on_timers(&mut self) {
        let now = Instant::now();
        while let Some((at, partition)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, partition));
            self.lanes[partition as usize].timer = None;
            self.mark(partition);
        }
    }

    fn mark(&mut self, partition: u32) {
        let lane = &mut self.lanes[partition as usize];
        if !std::mem::replace(&mut lane.dirty, true) {
            self.dirty.push(partition);
        }
    }

    fn mark_all(&mut self) {
        (0..self.lanes.len() as u32).for_each(|partition| self.mark(partition));
    }

    /// Does whatever one partition is ready for.
    fn pump(&mut self, partition: u32) {
        let now = Instant::now();
        let has_failed = self.shared.failed.get().is_some();
        if has_failed && self.lanes[partition as usize].queue.is_empty() {
            self.fail_waiting(partition); // not before those that are under way: deliveries come in the order of the records
        }
        let lane = &mut self.lanes[partition as usize];
        if lane.queue.front().is_some_and(|first| first.deadline <= now) {
            let outcome = if lane.first_is_open() { Outcome::MayHaveHappened } else { Outcome::DidNotHappen };
            let after_ms = self.shared.options.timeout.as_millis() as u64;
            let error = ClientError::TimedOut { after_ms, outcome, last: lane.last_failure.clone() };
            self.fail(partition, error);
        }
        if !self.lanes[partition as usize].failed && self.session_is_open(partition, now) {
            if !has_failed {
                self.fill(partition, now);
            }
            self.send(partition, now);
            self.look_for_silence(partition, now);
        }
        self.set_timer(partition, now);
    }

    /// Whether batches can be given their place; opens the session if somebody waits for it.
    fn session_is_open(&mut self, partition: u32, now: Instant) -> bool {
        let wanted = self.shared.waiting_since(partition).is_some();
        let lane = &mut self.lanes[partition as usize];
        if self.shared.options.session == SessionChoice::Off {
            for opener in lane.openers.drain(..) {
                let _ = opener.send(Err(ClientError::Closed));
            }
            return true;
        }
        if lane.queue.is_empty() && wanted && lane.session_is_stale(now) {
            lane.session = SessionState::Closed;
        }
        match &lane.session {
            SessionState::Open(session) => {
                for opener in lane.openers.drain(..) {
                    let _ = opener.send(Ok(session.clone()));
                }
                return true;
            }
            SessionState::Opening => return false,
            SessionState::Closed if !wanted && lane.openers.is_empty() => return false,
            SessionState::Closed => lane.session = SessionState::Opening,
        }
        let (client, topic, events) = (self.client.clone(), self.shared.topic.clone(), self.events_in.clone());
        let name = match &self.shared.options.session {
            SessionChoice::Named(name) => name.clone(),
            SessionChoice::Anonymous | SessionChoice::Off => String::new(),
        };
        tokio::spawn(async move {
            let result = client.open_session(&topic, partition, &name).await;
            let _ = events.send(Event::SessionOpened { partition, result }).await;
        });
        false
    }

    fn on_session(&mut self, partition: u32, result: Result<Session, ClientError>) {
        let lane = &mut self.lanes[partition as usize];
        match result {
            Ok(session) => {
                lane.next_sequence = u64::from(session.next_sequence);
                lane.used_at = Some(Instant::now());
                lane.session = SessionState::Open(session);
            }
            Err(error) => {
                lane.session = SessionState::Closed;
                for opener in lane.openers.drain(..) {
                    let _ = opener.send(Err(error.clone()));
                }
                // Whatever became of the session, no record was sent in it.
                self.fail(partition, error.of_nothing_sent());
            }
        }
        self.mark(partition);
    }

    /// Takes batches over from the senders, as far as the window allows.
    fn fill(&mut self, partition: u32, now: Instant) {
        let options = &self.shared.options;
        let hurry = self.closing || !self.flushes.is_empty() || options.linger.is_zero();
        let ripe = if hurry { None } else { now.checked_sub(options.linger) };
        let lane = &mut self.lanes[partition as usize];
        let max = lane.in_flight_max(options.in_flight_batches, &options.session);
        while lane.queue.len() < max {
            if lane.next_sequence > SEQUENCE_MAX && options.session != SessionChoice::Off {
                return self.replace_session(partition);
            }
            let Some(sealed) = self.shared.take(partition, ripe) else { return };
            lane.push(sealed, options.timeout);
        }
    }

    /// The session's sequences are used up: an unnamed one is replaced once nothing is under way.
    fn replace_session(&mut self, partition: u32) {
        let lane = &mut self.lanes[partition as usize];
        if !lane.queue.is_empty() || self.shared.waiting_since(partition).is_none() {
            return;
        }
        if let SessionChoice::Named(name) = &self.shared.options.session {
            let message = format!("session {name:?} has appended {} records; use another name", lane.next_sequence);
            let (reason, outcome) = (Reason::LimitReached, Outcome::DidNotHappen);
            let (wanted, limit) = (lane.next_sequence, SEQUENCE_MAX);
            let error = ClientError::Refused { reason, outcome, message, leader: None, wanted, limit };
            return self.fail(partition, error);
        }
        lane.session = SessionState::Closed;
        self.mark(partition);
    }

    /// Sends what is queued and not out. A hint to another server is followed once nothing is out, so that no batch overtakes
    /// an earlier one.
    fn send(&mut self, partition: u32, now: Instant) {
        let lane = &mut self.lanes[partition as usize];
        let due = lane.retry_at.is_none_or(|at| at <= now);
        if lane.sent == lane.queue.len() || !due || (lane.sent > 0 && lane.hint.is_some()) {
            return;
        }
        if lane.sent == 0 {
            let hint = lane.hint.take();
            let address = self.choose(partition, hint);
            let link = self.link_to(address);
            let lane = &mut self.lanes[partition as usize];
            lane.link = Some(link);
            lane.retry_at = None;
            lane.silent_since = Some(now);
        }
        let lane = &mut self.lanes[partition as usize];
        let Some(link) = lane.link.and_then(|link| self.links.get(&link)) else { return };
        let requests = lane.queue.iter_mut().skip(lane.sent).map(|pending| {
            self.numbers += 1;
            pending.number = self.numbers << LANE_BITS | u64::from(partition);
            let append = wire::AppendRequest {
                topic: self.shared.topic.clone(),
                partition,
                batch: pending.batch.clone(),
                expected_offset: None,
                fence: None,
            };
            wire::AppendStreamRequest { number: pending.number, append: Some(append) }
        });
        link.send(requests.collect());
        lane.sent = lane.queue.len();
    }

    fn choose(&self, partition: u32, hint: Option<String>) -> String {
        let connections = &self.client.shared.connections;
        let hint = hint.filter(|address| !connections.is_shunned(address));
        hint.or_else(|| connections.leader_of(&self.shared.topic, partition))
            .unwrap_or_else(|| connections.any_server(None))
    }

    fn link_to(&mut self, address: String) -> u64 {
        if let Some((link, _)) = self.links.iter().find(|(_, link)| link.address == address) {
            return *link;
        }
        self.link_numbers += 1;
        let link = Link::open(&self.client, address, self.link_numbers, self.events_in.clone());
        self.links.insert(self.link_numbers, link);
        self.link_numbers
    }

    /// A leader that was killed breaks its connections; one that hangs does not. After a while its peers are asked who leads.
    fn look_for_silence(&mut self, partition: u32, now: Instant) {
        let lane = &mut self.lanes[partition as usize];
        let silent = lane.silent_since.is_some_and(|since| now.saturating_duration_since(since) >= STALL);
        let link = lane.link.and_then(|link| self.links.get(&link));
        let (true, true, Some(link)) = (silent, lane.sent > 0, link) else { return };
        reached!("producer meets a silent server");
        lane.silent_since = Some(now);
        lane.stalls += 1;
        lane.last_failure = format!("{} was silent", link.address);
        let connections = &self.client.shared.connections;
        connections.shun(&link.address);
        connections.next_turn(&link.address);
        if lane.stalls >= STALLS_MAX && self.shared.options.session != SessionChoice::Off {
            lane.rewind(Duration::ZERO, true, now);
            self.mark(partition);
        }
        if !std::mem::replace(&mut self.describing, true) {
            let (client, topic, events) = (self.client.clone(), self.shared.topic.clone(), self.events_in.clone());
            tokio::spawn(async move {
                let result = client.describe_topic(&topic).await;
                let _ = events.send(Event::Described { result }).await;
            });
        }
    }

    /// Lanes that wait for a silent server leave it if another one leads now.
    fn on_described(&mut self, result: &Result<Topic, ClientError>) {
        self.describing = false;
        if result.is_err() || self.shared.options.session == SessionChoice::Off {
            return;
        }
        let now = Instant::now();
        for partition in 0..self.lanes.len() as u32 {
            let leader = self.client.shared.connections.leader_of(&self.shared.topic, partition);
            let lane = &mut self.lanes[partition as usize];
            let link = lane.link.and_then(|link| self.links.get(&link));
            let (Some(leader), Some(link)) = (leader, link) else { continue };
            if lane.stalls > 0 && lane.sent > 0 && leader != link.address {
                lane.rewind(Duration::ZERO, true, now);
                self.mark(partition);
            }
        }
    }

    fn on_answer(&mut self, answer: wire::AppendStreamResponse) {
        let partition = (answer.number & ((1 << LANE_BITS) - 1)) as u32;
        let Some(lane) = self.lanes.get_mut(partition as usize) else { return };
        let Some(position) = lane.position(answer.number) else { return };
        match answer.outcome {
            Some(wire::append_stream_response::Outcome::Receipt(receipt)) if position == 0 => {
                self.on_receipt(partition, receipt);
            }
            Some(wire::append_stream_response::Outcome::Failure(failure)) => {
                let detail = failure.detail.unwrap_or_default();
                self.on_refusal(partition, position, ClientError::refused(&failure.message, &detail));
            }
            // An answer out of order, or none at all: go back to where we are sure.
            _ => {
                let wait = lane.backoff.next(&self.client.shared.jitter);
                lane.rewind(wait, true, Instant::now());
            }
        }
        self.mark(partition);
    }

    fn on_receipt(&mut self, partition: u32, receipt: wire::StreamReceipt) {
        let now = Instant::now();
        let lane = &mut self.lanes[partition as usize];
        let count = lane.queue.front().map_or(0, |first| first.count);
        let hash = Digest::from_slice(&receipt.hash);
        let (Some(hash), true) = (hash, receipt.count == count) else {
            let (said, len) = (receipt.count, receipt.hash.len());
            let what = format!(
                "a receipt for {said} records with a hash of {len} bytes; {count} records and 32 bytes were due"
            );
            let (address, outcome) = (self.place(partition), Outcome::MayHaveHappened);
            return self.fail(partition, ClientError::BadAnswer { address, what, outcome });
        };
        if let Some(leader) = receipt.leader.as_ref().and_then(Leader::from_wire) {
            self.client.shared.connections.learn_leader(&self.shared.topic, partition, &leader);
            let here = lane.link.and_then(|link| self.links.get(&link)).map(|link| &link.address);
            lane.hint = (here != Some(&leader.address)).then_some(leader.address);
        }
        let Some(done) = lane.acknowledge(now) else { return };
        let receipt = Receipt {
            partition,
            offset: Offset(receipt.offset),
            count,
            term: Term(receipt.term),
            hash,
            timestamp: TimestampMs(receipt.timestamp_ms),
            repeated: receipt.repeated_append,
        };
        self.deliver(partition, done, Ok(receipt));
    }

    fn on_refusal(&mut self, partition: u32, position: usize, error: ClientError) {
        let in_session = self.shared.options.session != SessionChoice::Off;
        let lane = &mut self.lanes[partition as usize];
        lane.last_failure = error.to_string();
        let may_have = error.outcome() == Outcome::MayHaveHappened;
        lane.queue[position].open |= may_have;
        if position >= lane.sent {
            return; // An earlier try; the later one has its own answer.
        }
        // A gap is what later batches meet when an earlier one was refused; sending from the first closes it.
        let gap = error.reason() == Some(Reason::SequenceGap) && lane.backoff.tries() < 16;
        let again = gap || error.is_passing();
        if !again || (may_have && !in_session) {
            // Only the first can fail for good; a later one's turn comes when it is first.
            if position == 0 {
                return self.fail(partition, error);
            }
        }
        let first_try = lane.backoff.tries() == 0;
        let mut wait = lane.backoff.next(&self.client.shared.jitter);
        if let Some(leader) = error.leader() {
            let connections = &self.client.shared.connections;
            connections.learn_leader(&self.shared.topic, partition, leader);
            let here = lane.link.and_then(|link| self.links.get(&link)).map(|link| link.address.as_str());
            if here != Some(leader.address.as_str()) && !connections.is_shunned(&leader.address) {
                lane.hint = Some(leader.address.clone());
                wait = if first_try { Duration::ZERO } else { wait };
            }
        }
        reached!("producer goes back to its first batch");
        // All others that are out have no answer yet: theirs may still come true.
        for (at, pending) in lane.queue.iter_mut().enumerate() {
            pending.open |= at != position && pending.number != 0;
        }
        lane.rewind(wait, may_have, Instant::now());
    }

    fn on_link_ended(&mut self, link: u64, address: &str, error: &ClientError) {
        self.links.remove(&link);
        let connections = &self.client.shared.connections;
        if !matches!(error, ClientError::Refused { .. }) {
            connections.shun(address);
        }
        connections.next_turn(address);
        let now = Instant::now();
        let may_have = error.outcome() == Outcome::MayHaveHappened;
        for partition in 0..self.lanes.len() as u32 {
            let lane = &mut self.lanes[partition as usize];
            if lane.link != Some(link) {
                continue;
            }
            lane.last_failure = error.to_string();
            let off = self.shared.options.session == SessionChoice::Off;
            let was_out = lane.sent > 0;
            let wait = lane.backoff.next(&self.client.shared.jitter);
            lane.rewind(wait, may_have, now);
            if was_out && (!error.is_passing() || (off && may_have)) {
                self.fail(partition, error.clone());
            }
            self.mark(partition);
        }
    }

    /// Ends a partition, and with it the producer: its first batch failed with `error`, and nothing can follow it.
    fn fail(&mut self, partition: u32, error: ClientError) {
        let lane = &mut self.lanes[partition as usize];
        lane.failed = true;
        let open = lane.queue.front().is_some_and(|first| first.open);
        let error = if open { as_open(error) } else { error };
        let unknown = error.outcome() == Outcome::MayHaveHappened;
        let first = error.to_string();
        let _ = self.shared.failed.set(error.clone());
        self.shared.room.close();
        let mut error = Some(error);
        lane.sent = 0;
        for failed in std::mem::take(&mut lane.queue) {
            let outcome = if unknown && failed.number != 0 { Outcome::MayHaveHappened } else { Outcome::DidNotHappen };
            let why = error.take().unwrap_or_else(|| ClientError::AfterFailure { first: first.clone(), outcome });
            self.deliver(partition, failed, Err(why));
        }
        self.mark_all();
    }

    /// Records that wait in a producer that has failed are not sent any more.
    fn fail_waiting(&mut self, partition: u32) {
        let first = self.shared.failed.get().map(ToString::to_string).unwrap_or_default();
        let lane = &mut self.lanes[partition as usize];
        for opener in lane.openers.drain(..) {
            let outcome = Outcome::DidNotHappen;
            let _ = opener.send(Err(ClientError::AfterFailure { first: first.clone(), outcome }));
        }
        while let Some(sealed) = self.shared.take(partition, None) {
            let count = sealed.builder.len() as u32;
            let error = ClientError::AfterFailure { first: first.clone(), outcome: Outcome::DidNotHappen };
            let delivery = Delivery { partition, count, since: sealed.since, result: Err(error) };
            self.hand_out(delivery, sealed.charge);
        }
    }

    fn deliver(&self, partition: u32, pending: Pending, result: Result<Receipt, ClientError>) {
        let delivery = Delivery { partition, count: pending.count, since: pending.since, result };
        self.hand_out(delivery, pending.charge);
    }

    fn hand_out(&self, delivery: Delivery, charge: usize) {
        let count = u64::from(delivery.count);
        if self.outbox.send((delivery, charge)).is_err() {
            self.shared.room.add_permits(charge);
        }
        self.shared.unresolved.fetch_sub(count, Ordering::AcqRel);
    }

    fn set_timer(&mut self, partition: u32, now: Instant) {
        let options = &self.shared.options;
        let lane = &mut self.lanes[partition as usize];
        let mut next = lane.queue.front().map(|first| first.deadline);
        let mut at_latest = |at: Option<Instant>| next = next.into_iter().chain(at).min();
        if lane.sent > 0 {
            at_latest(lane.silent_since.map(|since| since + STALL));
        } else if !lane.queue.is_empty() {
            at_latest(lane.retry_at);
        }
        let room = lane.queue.len() < lane.in_flight_max(options.in_flight_batches, &options.session);
        if room && self.shared.failed.get().is_none() {
            at_latest(self.shared.waiting_since(partition).map(|since| (since + options.linger).max(now)));
        }
        if lane.timer != next {
            if let Some(old) = lane.timer {
                self.timers.remove(&(old, partition));
            }
            if let Some(next) = next {
                self.timers.insert((next, partition));
            }
            lane.timer = next;
        }
    }

    fn place(&self, partition: u32) -> String {
        format!("{}/{partition}", self.shared.topic)
    }
}

/// The same failure of something that an earlier try may have done.
fn as_open(error: ClientError) -> ClientError {
    let open = Outcome::MayHaveHappened;
    match error {
        ClientError::Refused { reason, message, leader, wanted, limit, .. } => {
            ClientError::Refused { reason, outcome: open, message, leader, wanted, limit }
        }
        ClientError::Broken { address, cause, .. } => ClientError::Broken { address, cause, outcome: open },
        ClientError::TimedOut { after_ms, last, .. } => ClientError::TimedOut { after_ms, outcome: open, last },
        ClientError::BadAnswer { address, what, .. } => ClientError::BadAnswer { address, what, outcome: open },
        other => ClientError::AfterFailure { first: other.to_string(), outcome: open },
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
