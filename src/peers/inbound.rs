//! The receiving end of a link: checks the greeting, hands batches on in order, and says how many it took.
//!
//! A batch counts as taken when the queues of all loops have their parts, so a driver that falls behind closes its peers' windows.
//! Acknowledged are [`ACK_BATCHES`] batches or [`ACK_BYTES`] at a time, and what is left when the stream falls quiet, so that
//! an idle link costs nothing.
//!
//! Refuses a message whose sender is not a replica on the node that shook hands: Raft believes what it is stepped with.
//!
//! What a batch decodes to shares the memory of the whole batch, and logs keep their newest entries for long. So what is small beside a full batch
//! gets memory of its own here: else an entry of a quiet partition keeps the megabyte of a busy one that it came with.

use super::directory::Peer;
use super::handshake::{check_caller, misattributed, HandshakeError};
use super::wire::{self, link_frame::Frame, link_reply::Reply};
use super::{closed, PeerEvent, Shared, GREETING_TIMEOUT};
use crate::ids::TimestampMs;
use crate::limits;
use crate::reached;
use bytes::Bytes;
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

/// What is at least so long shares the memory it came in. That is as large as the batches that a link has brought before, a few times as large as
/// what is kept of it at most: what logs keep is bounded by its own bytes.
const SHARED_BYTES_MIN: usize = limits::PEER_BATCH_BYTES_MAX / 4;

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

    async fn deliver(&mut self, mut batch: wire::Batch) -> Result<(), String> {
        if let Some(wrong) = misattributed(self.shared.me.node_id, self.peer.node, &batch.messages) {
            warn!(self.shared.log, "link refused"; "node" => %self.peer.node, "reason" => &wrong);
            let _ = self.replies.try_send(Err(Status::invalid_argument(&wrong)));
            return Err(wrong);
        }
        let bytes = batch.encoded_len();
        part_small(&mut batch.messages);
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

/// Gives what is small memory of its own.
fn part_small(messages: &mut [wire::GroupMessage]) {
    let part = |bytes: &mut Bytes| {
        if !bytes.is_empty() && bytes.len() < SHARED_BYTES_MIN {
            *bytes = Bytes::copy_from_slice(bytes);
        }
    };
    for message in messages.iter_mut().filter_map(|wrapped| wrapped.message.as_mut()) {
        for entry in &mut message.entries {
            part(&mut entry.data);
            part(&mut entry.context);
        }
        if let Some(snapshot) = &mut message.snapshot {
            part(&mut snapshot.data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::{self, Entry, Snapshot};

    #[test]
    fn what_is_small_beside_its_batch_does_not_keep_it_in_memory() {
        let entry = |bytes: usize| Entry { data: vec![7; bytes].into(), ..Entry::default() };
        let snapshot = Snapshot { data: vec![9; 100].into(), ..Snapshot::default() };
        let messages = [
            eraftpb::Message { entries: vec![entry(300 << 10), entry(300)], ..eraftpb::Message::default() },
            eraftpb::Message { snapshot: Some(snapshot), ..eraftpb::Message::default() },
        ];
        let wrap = |message: eraftpb::Message| wire::GroupMessage { group: 1, message: Some(Box::new(message)) };
        let sent = wire::Batch { messages: messages.into_iter().map(wrap).collect(), ..wire::Batch::default() };
        let memory = Bytes::from(sent.encode_to_vec());
        let mut came = wire::Batch::decode(memory.clone()).expect("what was encoded decodes");
        assert!(!memory.is_unique(), "what is decoded shares the memory");
        part_small(&mut came.messages);
        assert_eq!(came, sent);
        let mut entries = came.messages[0].message.take().expect("it is there").entries;
        let large = entries.remove(0);
        assert!(!memory.is_unique(), "the large one is not copied");
        drop(large);
        assert!(memory.is_unique(), "what is left has memory of its own: {} and {:?}", entries.len(), came.messages[1]);
    }

    #[test]
    fn an_entry_that_came_alone_in_a_large_buffer_does_not_keep_it_either() {
        let memory = Bytes::from(vec![1; limits::PEER_BATCH_BYTES_MAX]);
        let entry = eraftpb::Entry { data: memory.slice(..20_000), ..eraftpb::Entry::default() };
        let message = eraftpb::Message { entries: vec![entry], ..eraftpb::Message::default() };
        part_small(&mut [wire::GroupMessage { group: 1, message: Some(Box::new(message)) }]);
        assert!(memory.is_unique());
    }
}
