//! The dialing end of a link: one task per peer that connects, greets, sends what waits, and reconnects.
//!
//! The break of a good connection is followed by one attempt at once; if that fails the peer is reported lost, what waits for it is dropped, and
//! attempts go on with growing pauses, cut short when the peer calls us. A killed process resets its sockets and refuses
//! connections, so its loss is known within milliseconds. A connection that is dead but open is known by its silence:
//! batches unacknowledged for [`SILENCE_LOST`] report the peer lost, for [`SILENCE_BROKEN`] break the stream. An idle one
//! costs nothing and shows nothing; Raft's heartbeats give it something to acknowledge.
//!
//! Refuses to retry messages: what was on its way when a stream broke is gone, and Raft sends it again.

use super::backoff::Backoff;
use super::directory::Peer;
use super::handshake::{check_answerer, HandshakeError};
use super::outbox::{Outbox, Queued};
use super::wire::{self, link_frame::Frame, link_reply::Reply};
use super::{closed, connect, whole, PeerAddress, PeerEvent, Shared, Stage, GREETING_TIMEOUT};
use crate::limits;
use crate::reached;
use crate::watch;
use slog::{debug, info, warn};
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// How long the attempt right after a break may take before the peer is reported lost.
const RECONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// How long batches may be on their way before the peer is reported lost.
const SILENCE_LOST: Duration = Duration::from_secs(1);
/// How long batches may be on their way before the stream is given up.
const SILENCE_BROKEN: Duration = Duration::from_secs(2);
/// How long a connection that carried nothing must have stood to count as a good one.
const PROVEN_AFTER: Duration = Duration::from_millis(500);
/// Turns taken from the mailbox at a time.
const MAILBOX_TURNS: usize = 256;

/// Starts the task that keeps the link to `peer`.
pub(super) fn spawn(shared: Arc<Shared>, peer: Arc<Peer>, mailbox: mpsc::UnboundedReceiver<Queued>) -> JoinHandle<()> {
    let known = peer.known.subscribe();
    let mut stage = shared.stage.clone();
    let backoff = Backoff::new(shared.seed ^ u64::from(peer.node.0) << 32);
    let (outbox, reported, proven, problem) = (Outbox::default(), Reported::Nothing, false, None);
    let link = Link { stage: stage.clone(), shared, peer, mailbox, known, outbox, backoff, reported, proven, problem };
    tokio::spawn(async move {
        let peer = link.peer.clone();
        tokio::select! {
            biased;
            () = link.run() => {}
            () = closed(&mut stage) => {}
        }
        peer.set_up(false);
    })
}

struct Link {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    mailbox: mpsc::UnboundedReceiver<Queued>,
    known: watch::Receiver<Option<PeerAddress>>,
    stage: watch::Receiver<Stage>,
    outbox: Outbox,
    backoff: Backoff,
    reported: Reported,
    /// Whether the connection is or was good for something. One that was not is followed by a pause, or a peer that greets
    /// and hangs up would keep both sides busy.
    proven: bool,
    /// What kept us from connecting, as logged last.
    problem: Option<String>,
}

/// What the driver was told of the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reported {
    Nothing,
    Up { boot: u64 },
    Lost,
}

/// A stream that passed the handshake.
struct Connection {
    frames: mpsc::Sender<wire::LinkFrame>,
    replies: Streaming<wire::LinkReply>,
    boot: u64,
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("{address} is not reachable")]
    Unreachable { address: String, source: tonic::transport::Error },
    #[error("{address} did not greet within {} ms", limit.as_millis())]
    TimedOut { address: String, limit: Duration },
    #[error("{address} is not ready: {reason}")]
    NotReady { address: String, reason: String },
    #[error("{address} refuses us: {reason}")]
    Refused { address: String, reason: String },
    #[error("we refuse {address}")]
    Handshake { address: String, source: HandshakeError },
}

/// Why a connection was left.
enum End {
    Broken(String),
    /// The catalog says something else about the peer.
    Changed,
    Stopping,
}

impl Link {
    async fn run(mut self) {
        while let Some(target) = self.target().await {
            match self.attempt(&target).await {
                Ok(connection) => match self.carry(connection).await {
                    End::Stopping => return,
                    End::Changed => debug!(self.shared.log, "the catalog moved the peer"; "node" => %self.peer.node),
                    End::Broken(reason) => {
                        info!(self.shared.log, "link broke"; "node" => %self.peer.node, "reason" => reason);
                        self.peer.set_up(false);
                        reached!("link broke");
                        if self.proven {
                            self.backoff.reset();
                        } else {
                            let pause = self.backoff.pause();
                            if self.pause(pause).await.is_none() {
                                return;
                            }
                        }
                    }
                },
                Err(error) => {
                    self.failed(&error).await;
                    let pause = match error {
                        ConnectError::Refused { .. } | ConnectError::Handshake { .. } => self.backoff.long_pause(),
                        _ => self.backoff.pause(),
                    };
                    if self.pause(pause).await.is_none() {
                        return;
                    }
                }
            }
            self.peer.set_up(false);
        }
    }

    /// Where the peer is, as soon as the catalog knows it; `None` when there is nothing left to do.
    async fn target(&mut self) -> Option<PeerAddress> {
        loop {
            let target = self.known.borrow_and_update().clone();
            if *self.stage.borrow() != Stage::Running {
                return None;
            }
            if target.is_some() {
                return target;
            }
            self.reported = Reported::Nothing;
            self.pause(Duration::MAX).await?;
        }
    }

    /// One attempt to connect and greet.
    async fn attempt(&mut self, target: &PeerAddress) -> Result<Connection, ConnectError> {
        let was_up = matches!(self.reported, Reported::Up { .. });
        let limit = if was_up { RECONNECT_TIMEOUT } else { GREETING_TIMEOUT };
        let address = || target.address.clone();
        let greeted = tokio::time::timeout(limit, self.greet(target, limit)).await;
        greeted.unwrap_or(Err(ConnectError::TimedOut { address: address(), limit }))
    }

    async fn greet(&self, target: &PeerAddress, limit: Duration) -> Result<Connection, ConnectError> {
        let address = || target.address.clone();
        let refused = |status: tonic::Status| {
            let (address, reason) = (address(), status.message().to_owned());
            match status.code() {
                tonic::Code::FailedPrecondition => ConnectError::Refused { address, reason },
                _ => ConnectError::NotReady { address, reason },
            }
        };
        let connected = connect(&target.address, limit).await;
        let mut client = connected.map_err(|source| ConnectError::Unreachable { address: address(), source })?;
        let (frames, outgoing) = mpsc::channel(1);
        let hello = self.shared.me.hello(self.peer.node);
        frames.try_send(wire::LinkFrame { frame: Some(Frame::Hello(hello)) }).expect("the channel is new");
        let mut replies = client.link(ReceiverStream::new(outgoing)).await.map_err(refused)?.into_inner();
        let hello = match replies.message().await.map_err(refused)?.and_then(|reply| reply.reply) {
            Some(Reply::Hello(hello)) => Some(hello),
            _ => None,
        };
        let speaker = check_answerer(&self.shared.me, hello, self.peer.node, target.incarnation)
            .map_err(|source| ConnectError::Handshake { address: address(), source })?;
        Ok(Connection { frames, replies, boot: speaker.boot })
    }

    /// Sends what waits until the stream ends.
    async fn carry(&mut self, connection: Connection) -> End {
        let Connection { frames, mut replies, boot } = connection;
        let since = Instant::now();
        self.proven = false;
        self.connected(boot).await;
        let mut window = Window::default();
        let mut arrived = Vec::new();
        let mut patience = pin!(tokio::time::sleep(SILENCE_LOST));
        loop {
            let may_send = window.is_open() && !self.outbox.is_empty();
            tokio::select! {
                biased;
                reply = replies.message() => {
                    let taken = take_reply(reply, &mut window);
                    self.proven |= taken.is_ok() || since.elapsed() >= PROVEN_AFTER;
                    if let Err(reason) = taken {
                        return End::Broken(reason);
                    }
                    if self.reported == Reported::Lost {
                        reached!("lost peer takes messages again");
                        self.connected(boot).await;
                    }
                }
                changed = self.stage.changed() => {
                    if changed.is_err() {
                        return End::Stopping;
                    }
                    break;
                }
                _ = self.known.changed() => return End::Changed,
                permit = frames.reserve(), if may_send => {
                    let Ok(permit) = permit else { return End::Broken("the stream was closed".to_owned()) };
                    let batch = self.outbox.take(limits::PEER_BATCH_BYTES_MAX).expect("something waits");
                    self.peer.allowance.release(batch.bytes);
                    window.sent(batch.bytes, Instant::now());
                    permit.send(self.frame(batch));
                }
                count = self.mailbox.recv_many(&mut arrived, MAILBOX_TURNS) => {
                    if count == 0 {
                        return End::Stopping;
                    }
                    arrived.drain(..).for_each(|queued| self.outbox.push(queued));
                }
                () = &mut patience, if !window.is_empty() => {
                    let silence = window.silence(Instant::now());
                    if silence >= SILENCE_BROKEN {
                        reached!("link given up for its silence");
                        return End::Broken(format!("no batch was taken for {} ms", silence.as_millis()));
                    }
                    if silence >= SILENCE_LOST {
                        self.lost("it takes nothing").await;
                    }
                    let until = if silence >= SILENCE_LOST { SILENCE_BROKEN } else { SILENCE_LOST };
                    patience.as_mut().reset(Instant::now() + (until - silence));
                }
            }
        }
        self.flush(frames, replies).await;
        End::Stopping
    }

    /// Sends all that waits, then ends the stream and waits until the other side took it. The caller bounds the time.
    async fn flush(&mut self, frames: mpsc::Sender<wire::LinkFrame>, mut replies: Streaming<wire::LinkReply>) {
        while let Ok(queued) = self.mailbox.try_recv() {
            self.outbox.push(queued);
        }
        while let Some(batch) = self.outbox.take(limits::PEER_BATCH_BYTES_MAX) {
            self.peer.allowance.release(batch.bytes);
            if frames.send(self.frame(batch)).await.is_err() {
                return;
            }
        }
        drop(frames);
        while let Ok(Some(_)) = replies.message().await {}
    }

    fn frame(&self, batch: Queued) -> wire::LinkFrame {
        let report = &self.shared.report;
        let batch = wire::Batch {
            messages: batch.messages,
            clock_ms: report.clock_ms.load(Ordering::Relaxed),
            free_bytes: report.free_bytes.load(Ordering::Relaxed),
            reserve_reached: report.reserve_reached.load(Ordering::Relaxed),
        };
        wire::LinkFrame { frame: Some(Frame::Batch(batch)) }
    }

    /// The peer takes what we send.
    async fn connected(&mut self, boot: u64) {
        self.problem = None;
        self.peer.set_up(true);
        if self.reported != (Reported::Up { boot }) {
            self.reported = Reported::Up { boot };
            info!(self.shared.log, "linked"; "node" => %self.peer.node);
            self.tell(PeerEvent::Up(self.peer.node)).await;
        }
    }

    /// The peer does not take what we send. The driver is told once.
    async fn lost(&mut self, reason: &str) {
        self.peer.set_up(false);
        if matches!(self.reported, Reported::Up { .. }) {
            reached!("peer lost");
            self.reported = Reported::Lost;
            warn!(self.shared.log, "peer lost"; "node" => %self.peer.node, "reason" => reason);
            self.tell(PeerEvent::Lost(self.peer.node)).await;
        }
    }

    /// An attempt failed: what waits would be stale when the next one succeeds.
    async fn failed(&mut self, error: &ConnectError) {
        let text = whole(error);
        self.lost(&text).await;
        while let Ok(queued) = self.mailbox.try_recv() {
            self.outbox.push(queued);
        }
        if let Some(stale) = self.outbox.take_all() {
            self.drop_stale(&stale);
        }
        if self.problem.as_ref() != Some(&text) {
            info!(self.shared.log, "no link yet"; "node" => %self.peer.node, "reason" => &text);
            self.problem = Some(text);
        }
    }

    /// Waits before the next attempt; what is sent meanwhile is dropped. Cut short when the peer calls us or the catalog
    /// changes. `None` when there is nothing left to do.
    async fn pause(&mut self, pause: Duration) -> Option<()> {
        let peer = self.peer.clone();
        let mut over = pin!(tokio::time::sleep(pause.min(Duration::from_secs(3600))));
        loop {
            tokio::select! {
                biased;
                _ = self.stage.changed() => return None,
                () = &mut over => return Some(()),
                () = peer.dial_now.notified() => return Some(()),
                changed = self.known.changed() => return changed.ok(),
                queued = self.mailbox.recv() => self.drop_stale(&queued?),
            }
        }
    }

    fn drop_stale(&self, stale: &Queued) {
        self.peer.allowance.release(stale.bytes);
        self.peer.allowance.count_dropped(stale.messages.len(), stale.bytes);
    }

    async fn tell(&self, event: PeerEvent) {
        if self.shared.events.send(event).await.is_err() {
            debug!(self.shared.log, "nobody listens to the peers any more");
        }
    }
}

/// Takes one reply in; says why the stream can't go on.
fn take_reply(reply: Result<Option<wire::LinkReply>, tonic::Status>, window: &mut Window) -> Result<(), String> {
    let reply = reply.map_err(|status| status.message().to_owned())?;
    match reply.ok_or("the other side ended it")?.reply {
        Some(Reply::Received(through)) if window.taken(through, Instant::now()) => Ok(()),
        Some(Reply::Received(through)) => Err(format!("{through} batches acknowledged, fewer were sent")),
        Some(Reply::Hello(_)) | None => Err("an unexpected reply came".to_owned()),
    }
}

/// Batches on their way: sent, and not yet said to be taken.
#[derive(Default)]
struct Window {
    batches: VecDeque<usize>,
    bytes: usize,
    taken: u64,
    /// When the other side last took something, or was first given something to take.
    progress: Option<Instant>,
}

impl Window {
    fn is_open(&self) -> bool {
        self.batches.len() < limits::LINK_WINDOW_BATCHES && self.bytes < limits::LINK_WINDOW_BYTES
    }

    fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    fn sent(&mut self, bytes: usize, now: Instant) {
        if self.batches.is_empty() {
            self.progress = Some(now);
        }
        self.batches.push_back(bytes);
        self.bytes += bytes;
    }

    /// The other side took all batches up to the `through`th of this stream; false if there were fewer.
    fn taken(&mut self, through: u64, now: Instant) -> bool {
        while self.taken < through {
            let Some(bytes) = self.batches.pop_front() else { return false };
            self.bytes -= bytes;
            self.taken += 1;
            self.progress = Some(now);
        }
        true
    }

    /// For how long nothing was taken of what is on its way.
    fn silence(&self, now: Instant) -> Duration {
        self.progress.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}
