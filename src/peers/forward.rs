//! Commands passed on to the node that leads their group: the asking end.
//!
//! One lane per peer, on a connection of its own so that large commands never delay Raft's messages; it opens with the
//! first command and breaks with the link. A command is sent once, over one hop: if the lane breaks while it is
//! unanswered it *may have happened*, and nobody here sends it again.
//!
//! Bounded by `limits::FORWARD_HELD_BYTES_MAX` of unanswered commands per peer; beyond that they are refused at once.

use super::directory::Peer;
use super::handshake::check_answerer;
use super::outbox::Allowance;
use super::wire::{self, forward_answer::Outcome, forward_frame::Frame, forward_reply::Reply};
use super::{closed, connect, whole, Shared, GREETING_TIMEOUT};
use crate::ids::{GroupId, NodeId};
use crate::limits;
use crate::reached;
use crate::watch;
use bytes::Bytes;
use slog::{debug, Logger};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Bytes that a command costs beside its own.
const COMMAND_OVERHEAD_BYTES: usize = 64;
/// Calls taken up at a time.
const CALLS_AT_A_TIME: usize = 1024;

/// Why a command that was passed on has no result.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ForwardError {
    /// The other node answers with an error of its own; its code says whether the command may have happened.
    #[error("node {node} answers with error {} (term {}, leader {})", failure.code, failure.term, failure.leader_replica)]
    Failure {
        /// Who answers.
        node: NodeId,
        /// What it says.
        failure: wire::Failure,
    },
    /// The command was not sent: it *did not happen*.
    #[error(transparent)]
    NotSent(#[from] NotSent),
    /// The connection broke, or the other node gave up, before an answer came: the command *may have happened*.
    #[error("node {node} took the command, and no answer came before the connection broke; it may have happened")]
    Broken {
        /// Who was asked.
        node: NodeId,
    },
}

/// Why a command was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotSent {
    /// The catalog does not know the node.
    #[error("node {node} is not known; the command was not sent")]
    Unknown {
        /// Whom to ask.
        node: NodeId,
    },
    /// There is no connection.
    #[error("node {node} is not connected; the command was not sent")]
    NotConnected {
        /// Whom to ask.
        node: NodeId,
    },
    /// Too much is unanswered.
    #[error("{held} bytes of commands to node {node} are unanswered, {limit} are allowed; the command was not sent")]
    Overloaded {
        /// Whom to ask.
        node: NodeId,
        /// Bytes unanswered.
        held: usize,
        /// The bound.
        limit: usize,
    },
}

/// A command on its way into the lane.
pub(super) struct Call {
    group: GroupId,
    command: Bytes,
    answer: oneshot::Sender<Result<wire::Applied, ForwardError>>,
    _held: Held,
}

/// Gives its bytes back when the call is over, however it ends.
struct Held {
    allowance: Arc<Allowance>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.allowance.release(self.bytes);
    }
}

impl Peer {
    /// Puts a command into the lane.
    pub(super) fn call(
        &self,
        group: GroupId,
        command: Bytes,
    ) -> Result<oneshot::Receiver<Result<wire::Applied, ForwardError>>, NotSent> {
        let node = self.node;
        if !self.is_up() {
            return Err(NotSent::NotConnected { node });
        }
        let (allowance, bytes) = (self.calls_allowance.clone(), command.len() + COMMAND_OVERHEAD_BYTES);
        if !allowance.try_hold(bytes) {
            let (held, limit) = (allowance.held_bytes(), allowance.bytes_max());
            return Err(NotSent::Overloaded { node, held, limit });
        }
        let (answer, answered) = oneshot::channel();
        let call = Call { group, command, answer, _held: Held { allowance, bytes } };
        self.calls.send(call).map_err(|_| NotSent::NotConnected { node })?;
        Ok(answered)
    }
}

/// Starts the lane to `peer`.
pub(super) fn spawn(shared: Arc<Shared>, peer: Arc<Peer>, calls: mpsc::UnboundedReceiver<Call>) {
    let mut stage = shared.stage.clone();
    let up = peer.up.subscribe();
    let log = shared.log.clone();
    let lane = Lane { shared, node: peer.node, peer, calls, up, waiting: VecDeque::new(), log };
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = closed(&mut stage) => {}
            () = lane.run() => {}
        }
    });
}

struct Lane {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    node: NodeId,
    calls: mpsc::UnboundedReceiver<Call>,
    up: watch::Receiver<bool>,
    /// Taken up, and not sent yet.
    waiting: VecDeque<Call>,
    log: Logger,
}

async fn down(up: &mut watch::Receiver<bool>) {
    let _ = up.wait_for(|up| !up).await;
}

/// What became of a call that was sent.
type Asked = BTreeMap<u64, (oneshot::Sender<Result<wire::Applied, ForwardError>>, Held)>;

impl Lane {
    async fn run(mut self) {
        while let Some(call) = self.calls.recv().await {
            self.waiting.push_back(call);
            let reason = match tokio::time::timeout(GREETING_TIMEOUT, self.open()).await {
                Ok(Ok((frames, replies))) => {
                    let mut asked = Asked::new();
                    let reason = self.carry(frames, replies, &mut asked).await;
                    for (answer, _held) in asked.into_values() {
                        reached!("forwarded command lost with its lane");
                        let _ = answer.send(Err(ForwardError::Broken { node: self.node }));
                    }
                    reason
                }
                Ok(Err(reason)) => reason,
                Err(_) => "it did not greet in time".to_owned(),
            };
            debug!(self.log, "lane of forwarded commands closed"; "node" => %self.node, "reason" => reason);
            self.refuse_waiting();
        }
    }

    /// Connects and greets.
    async fn open(&mut self) -> Result<(mpsc::Sender<wire::ForwardFrame>, Streaming<wire::ForwardReply>), String> {
        if !*self.up.borrow_and_update() {
            return Err("the link is down".to_owned());
        }
        let target = self.peer.known.borrow().clone().ok_or("it left the cluster")?;
        let mut client = connect(&target.address, GREETING_TIMEOUT).await.map_err(|error| whole(&error))?;
        let (frames, outgoing) = mpsc::channel(1);
        let hello = self.shared.me.hello(self.node);
        frames.try_send(wire::ForwardFrame { frame: Some(Frame::Hello(hello)) }).expect("the channel is new");
        let refused = |status: tonic::Status| status.message().to_owned();
        let mut replies = client.forward(ReceiverStream::new(outgoing)).await.map_err(refused)?.into_inner();
        let hello = match replies.message().await.map_err(refused)?.and_then(|reply| reply.reply) {
            Some(Reply::Hello(hello)) => Some(hello),
            _ => None,
        };
        check_answerer(&self.shared.me, hello, self.node, target.incarnation).map_err(|error| error.to_string())?;
        Ok((frames, replies))
    }

    /// Asks and takes answers until the lane breaks; says why it did.
    async fn carry(
        &mut self,
        frames: mpsc::Sender<wire::ForwardFrame>,
        mut replies: Streaming<wire::ForwardReply>,
        asked: &mut Asked,
    ) -> String {
        let (mut number, mut calls, mut up) = (0, Vec::new(), self.up.clone());
        loop {
            tokio::select! {
                biased;
                () = down(&mut up) => return "the link broke".to_owned(),
                reply = replies.message() => match reply {
                    Ok(Some(wire::ForwardReply { reply: Some(Reply::Answers(answers)) })) => {
                        answers.answers.into_iter().for_each(|answer| self.settle(answer, asked));
                    }
                    Ok(Some(_)) => return "an unexpected reply came".to_owned(),
                    Ok(None) => return "the other side ended it".to_owned(),
                    Err(status) => return status.message().to_owned(),
                },
                permit = frames.reserve(), if !self.waiting.is_empty() => {
                    let Ok(permit) = permit else { return "the stream was closed".to_owned() };
                    let requests = self.next_requests(&mut number, asked);
                    permit.send(wire::ForwardFrame { frame: Some(Frame::Requests(requests)) });
                }
                count = self.calls.recv_many(&mut calls, CALLS_AT_A_TIME) => {
                    if count == 0 {
                        return "the node is stopping".to_owned();
                    }
                    self.waiting.extend(calls.drain(..));
                }
            }
        }
    }

    /// Numbers what waits, up to the size of a frame. From here on it may happen.
    fn next_requests(&mut self, number: &mut u64, asked: &mut Asked) -> wire::ForwardRequests {
        let (mut requests, mut bytes) = (Vec::new(), 0);
        while let Some(call) = self.waiting.pop_front() {
            let Call { group, command, answer, _held: held } = call;
            if answer.is_closed() {
                continue; // whoever asked has gone: it does not happen
            }
            *number += 1;
            bytes += held.bytes;
            requests.push(wire::ForwardRequest { number: *number, group: group.0, command });
            asked.insert(*number, (answer, held));
            if bytes >= limits::PEER_BATCH_BYTES_MAX {
                break;
            }
        }
        wire::ForwardRequests { requests }
    }

    fn settle(&self, answer: wire::ForwardAnswer, asked: &mut Asked) {
        let Some((waiting, _held)) = asked.remove(&answer.number) else {
            debug!(self.log, "an answer nobody waits for"; "node" => %self.node, "number" => answer.number);
            return;
        };
        let node = self.node;
        let _ = waiting.send(match answer.outcome {
            Some(Outcome::Applied(applied)) => Ok(applied),
            Some(Outcome::Failure(failure)) => Err(ForwardError::Failure { node, failure }),
            None => Err(ForwardError::Broken { node }),
        });
    }

    /// Nothing of what waits was sent.
    fn refuse_waiting(&mut self) {
        while let Ok(call) = self.calls.try_recv() {
            self.waiting.push_back(call);
        }
        for call in self.waiting.drain(..) {
            reached!("command not forwarded, the node is away");
            let _ = call.answer.send(Err(NotSent::NotConnected { node: self.node }.into()));
        }
    }
}
