//! Commands that other nodes pass on to us: the answering end.
//!
//! Hands them to the driver in the order in which they must be proposed, and streams the answers back as they come, in any
//! order, as many at a time as there are. One task per stream, none per command. A command whose [`Responder`] is dropped
//! unanswered is answered as *may have happened*.
//!
//! A node that has more unanswered here than any honest one would send is cut off.

use super::inbound::{caller, first};
use super::outbox::Allowance;
use super::wire::{self, forward_answer::Outcome, forward_frame::Frame, forward_reply::Reply};
use super::{closed, PeerEvent, Shared, Stage};
use crate::ids::{GroupId, NodeId};
use crate::limits;
use crate::watch;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use slog::debug;
use std::sync::Arc;
use tokio::sync::{mpsc, OwnedSemaphorePermit};
use tonic::{Status, Streaming};

/// Twice what an honest asker holds, since its count runs ahead of ours.
const HELD_BYTES_MAX: usize = 2 * limits::FORWARD_HELD_BYTES_MAX;
/// Bytes that a command costs beside its own.
const COMMAND_OVERHEAD_BYTES: usize = 64;
/// Answers sent at a time.
const ANSWERS_AT_A_TIME: usize = 1024;

/// The answers of a lane.
pub(super) type ForwardStream = BoxStream<'static, Result<wire::ForwardReply, Status>>;

/// A command that another node passes on.
#[derive(Debug)]
pub struct Forwarded {
    /// Who passes it on.
    pub from: NodeId,
    /// The group it is for.
    pub group: GroupId,
    /// The command; not looked at yet.
    pub command: Bytes,
    /// Where the answer goes.
    pub respond: Responder,
}

/// Takes the one answer to a forwarded command. Dropped without one, it answers *may have happened*.
#[derive(Debug)]
pub struct Responder {
    number: u64,
    outcome: Option<Outcome>,
    answers: mpsc::UnboundedSender<wire::ForwardAnswer>,
    allowance: Arc<Allowance>,
    bytes: usize,
}

impl Responder {
    /// Answers. Never blocks; if the asker has gone, nothing happens.
    pub fn answer(mut self, result: Result<wire::Applied, wire::Failure>) {
        self.outcome = Some(result.map_or_else(Outcome::Failure, Outcome::Applied));
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.allowance.release(self.bytes);
        let answer = wire::ForwardAnswer { number: self.number, outcome: self.outcome.take() };
        let _ = self.answers.send(answer);
    }
}

/// Serves one lane.
pub(super) async fn accept(
    shared: Arc<Shared>,
    greeting: OwnedSemaphorePermit,
    mut frames: Streaming<wire::ForwardFrame>,
) -> Result<ForwardStream, Status> {
    let hello = match first(&mut frames).await?.and_then(|frame| frame.frame) {
        Some(Frame::Hello(hello)) => Some(hello),
        _ => None,
    };
    let (peer, hello) = caller(&shared, hello)?;
    drop(greeting);
    let hello = wire::ForwardReply { reply: Some(Reply::Hello(hello)) };
    let (answers, outgoing) = mpsc::unbounded_channel();
    let (ended, end) = watch::channel(false);
    let stage = shared.stage.clone();
    let node = peer.node;
    tokio::spawn(async move {
        let mut stage = shared.stage.clone();
        tokio::select! {
            biased;
            () = closed(&mut stage) => {}
            reason = receive(&shared, node, frames, answers) => {
                debug!(shared.log, "incoming lane ended"; "node" => %node, "reason" => reason);
            }
        }
        ended.send_replace(true);
    });
    Ok(stream::once(async { Ok(hello) }).chain(answer_stream(outgoing, end, stage)).boxed())
}

/// Receives commands until the stream ends; says why it did.
async fn receive(
    shared: &Shared,
    from: NodeId,
    mut frames: Streaming<wire::ForwardFrame>,
    answers: mpsc::UnboundedSender<wire::ForwardAnswer>,
) -> String {
    let allowance = Arc::new(Allowance::new(HELD_BYTES_MAX));
    loop {
        let requests = match frames.message().await {
            Ok(Some(wire::ForwardFrame { frame: Some(Frame::Requests(requests)) })) => requests.requests,
            Ok(Some(_)) => return "an unexpected frame came".to_owned(),
            Ok(None) => return "the other side ended it".to_owned(),
            Err(status) => return status.message().to_owned(),
        };
        let mut batch = Vec::with_capacity(requests.len());
        for wire::ForwardRequest { number, group, command } in requests {
            let bytes = command.len() + COMMAND_OVERHEAD_BYTES;
            if !allowance.try_hold(bytes) {
                return format!("more than {HELD_BYTES_MAX} bytes of its commands are unanswered");
            }
            let (answers, allowance) = (answers.clone(), allowance.clone());
            let respond = Responder { number, outcome: None, answers, allowance, bytes };
            batch.push(Forwarded { from, group: GroupId(group), command, respond });
        }
        if batch.is_empty() {
            continue;
        }
        if shared.events.send(PeerEvent::Forwarded(batch)).await.is_err() {
            return "nobody listens any more".to_owned();
        }
    }
}

/// The answers as they come, until the asker has gone or the node closes.
fn answer_stream(
    outgoing: mpsc::UnboundedReceiver<wire::ForwardAnswer>,
    end: watch::Receiver<bool>,
    stage: watch::Receiver<Stage>,
) -> impl futures::Stream<Item = Result<wire::ForwardReply, Status>> {
    stream::unfold((outgoing, end, stage), |(mut outgoing, mut end, mut stage)| async move {
        let mut answers = Vec::new();
        tokio::select! {
            biased;
            () = closed(&mut stage) => return None,
            count = outgoing.recv_many(&mut answers, ANSWERS_AT_A_TIME) => if count == 0 {
                // Nobody is left who could answer: the asker must see the stream end, and call what is open broken.
                return None;
            },
            _ = end.wait_for(|ended| *ended) => return None,
        }
        let reply = wire::ForwardReply { reply: Some(Reply::Answers(wire::ForwardAnswers { answers })) };
        Some((Ok(reply), (outgoing, end, stage)))
    })
}
