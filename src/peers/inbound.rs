//! The receiving end of a link: checks the greeting, hands batches on in order, and says how many it took.
//!
//! A batch counts as taken when the queues of all loops have their parts, so a driver that falls behind closes its peers' windows.
//! Acknowledged are [`ACK_BATCHES`] batches or [`ACK_BYTES`] at a time, and what is left when the stream falls quiet, so that
//! an idle link costs nothing.
//!
//! Refuses a message whose sender is not a replica on the node that shook hands: Raft believes what it is stepped with.

use super::directory::Peer;
use super::handshake::{check_caller, misattributed, HandshakeError};
use super::wire::{self, link_frame::Frame, link_reply::Reply};
use super::{closed, PeerEvent, Shared, GREETING_TIMEOUT};
use crate::ids::TimestampMs;
use crate::limits;
use crate::reached;
use prost::Message;
use slog::{debug, warn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Batches after which they are acknowledged at the latest.
const ACK_BATCHES: u64 = limits::LINK_WINDOW_BATCHES as u64 / 4;
/// Bytes after which they are acknowledged at the latest.
const ACK_BYTES: usize = limits::LINK_WINDOW_BYTES / 4;
/// How long the first unacknowledged batch waits at most, on a stream with little traffic.
const QUIET: Duration = Duration::from_millis(300);

/// The answers of a link.
pub(super) type LinkStream = ReceiverStream<Result<wire::LinkReply, Status>>;

/// A refusal as it goes over the wire. The dialing end logs it and tries again slowly.
pub(super) fn refusal(shared: &Shared, error: &HandshakeError) -> Status {
    let reason = error.to_string();
    shared.log_refusal(&reason);
    Status::failed_precondition(reason)
}

/// The first message of a stream, within bounds.
pub(super) async fn first<T: Send + 'static>(frames: &mut Streaming<T>) -> Result<Option<T>, Status> {
    let first = tokio::time::timeout(GREETING_TIMEOUT, frames.message()).await;
    first.map_err(|_| Status::deadline_exceeded("no greeting came"))?
}

/// Who calls, if it may.
pub(super) fn caller(shared: &Shared, hello: Option<wire::Hello>) -> Result<(Arc<Peer>, wire::Hello), Status> {
    let checked = check_caller(&shared.me, hello, |node| shared.directory.known(node));
    let speaker = checked.map_err(|error| refusal(shared, &error))?;
    let peer = shared.directory.find(speaker.node).ok_or_else(|| Status::internal("the peer is gone"))?;
    // Whoever calls can be called: a link that waits for its next attempt need not.
    if !peer.is_up() {
        peer.dial_now.notify_one();
    }
    Ok((peer.clone(), shared.me.hello(speaker.node)))
}

/// Serves one incoming link.
pub(super) async fn accept(
    shared: Arc<Shared>,
    greeting: OwnedSemaphorePermit,
    mut frames: Streaming<wire::LinkFrame>,
) -> Result<LinkStream, Status> {
    let hello = match first(&mut frames).await?.and_then(|frame| frame.frame) {
        Some(Frame::Hello(hello)) => Some(hello),
        _ => None,
    };
    let (peer, hello) = caller(&shared, hello)?;
    drop(greeting);
    let (replies, outgoing) = mpsc::channel(4);
    let hello = wire::LinkReply { reply: Some(Reply::Hello(hello)) };
    replies.try_send(Ok(hello)).expect("the channel is new");
    let inbound = Inbound { shared, peer, frames, replies, taken: 0, unacknowledged: 0, unacknowledged_bytes: 0 };
    tokio::spawn(inbound.run());
    Ok(ReceiverStream::new(outgoing))
}

struct Inbound {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    frames: Streaming<wire::LinkFrame>,
    replies: mpsc::Sender<Result<wire::LinkReply, Status>>,
    taken: u64,
    unacknowledged: u64,
    unacknowledged_bytes: usize,
}

impl Inbound {
    async fn run(mut self) {
        let mut newest = self.peer.incoming.subscribe();
        self.peer.incoming.send_modify(|count| *count += 1);
        newest.borrow_and_update();
        // The one before us ends at its next await; what it has in hand was delivered by then, or never is.
        let delivery = self.peer.delivery.clone().lock_owned().await;
        let mut known = self.peer.known.subscribe();
        let mut stage = self.shared.stage.clone();
        tokio::select! {
            biased;
            () = closed(&mut stage) => {}
            _ = newest.changed() => {
                reached!("newer link replaces an older one");
                debug!(self.shared.log, "a newer link replaces this one"; "node" => %self.peer.node);
            }
            // It greets anew, and is judged by what the catalog says now.
            _ = known.changed() => {}
            reason = self.receive() => debug!(self.shared.log, "incoming link ended";
                "node" => %self.peer.node, "reason" => reason),
        }
        drop(delivery);
    }

    /// Receives until the stream ends; says why it did.
    async fn receive(&mut self) -> String {
        let mut quiet = pin!(tokio::time::sleep(QUIET));
        loop {
            tokio::select! {
                biased;
                frame = self.frames.message() => {
                    let batch = match frame {
                        Ok(Some(wire::LinkFrame { frame: Some(Frame::Batch(batch)) })) => batch,
                        Ok(Some(_)) => return "an unexpected frame came".to_owned(),
                        Ok(None) => return "the other side ended it".to_owned(),
                        Err(status) => return status.message().to_owned(),
                    };
                    if let Err(reason) = self.deliver(batch).await {
                        return reason;
                    }
                    if self.unacknowledged <= 1 {
                        quiet.as_mut().reset(tokio::time::Instant::now() + QUIET);
                    }
                }
                () = &mut quiet, if self.unacknowledged > 0 => {
                    self.acknowledge();
                    quiet.as_mut().reset(tokio::time::Instant::now() + QUIET);
                }
            }
        }
    }

    async fn deliver(&mut self, batch: wire::Batch) -> Result<(), String> {
        if let Some(wrong) = misattributed(self.shared.me.node_id, self.peer.node, &batch.messages) {
            warn!(self.shared.log, "link refused"; "node" => %self.peer.node, "reason" => &wrong);
            let _ = self.replies.try_send(Err(Status::invalid_argument(&wrong)));
            return Err(wrong);
        }
        let bytes = batch.encoded_len();
        let event = PeerEvent::Messages {
            from: self.peer.node,
            messages: batch.messages,
            clock: TimestampMs(batch.clock_ms),
            free_bytes: batch.free_bytes,
            reserve_reached: batch.reserve_reached,
        };
        self.shared.events.send(event).await.map_err(|_| "nobody listens any more".to_owned())?;
        self.taken += 1;
        self.unacknowledged += 1;
        self.unacknowledged_bytes += bytes;
        if self.unacknowledged >= ACK_BATCHES || self.unacknowledged_bytes >= ACK_BYTES {
            self.acknowledge();
        }
        Ok(())
    }

    /// Says how many batches were taken. If the answers do not flow off, the next one says so too.
    fn acknowledge(&mut self) {
        let reply = wire::LinkReply { reply: Some(Reply::Received(self.taken)) };
        if let Err(TrySendError::Full(_)) = self.replies.try_send(Ok(reply)) {
            return;
        }
        self.unacknowledged = 0;
        self.unacknowledged_bytes = 0;
    }
}
