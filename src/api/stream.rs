//! Appending many batches over one stream, pipelined.
//!
//! One task per stream takes requests while fewer than `STREAM_APPENDS_INFLIGHT_MAX` are under way or answered and not taken, and
//! answers each by its number as its outcome arrives. Requests to one leader are proposed in the order in which they came. Nothing
//! is tried again here: a failure names the leader, and the client, which knows its sessions, decides.
//!
//! What has arrived goes to the driver together, and so do answers to the transport: a border costs the same for one and for many.
//!
//! Invariant: a client that does not take its answers holds up its own stream alone. An append gives its bytes back to the
//! node's allowance when its outcome arrives; only its small answer waits for the client.

use super::append::{accepted, command};
use super::errors::ApiError;
use super::target::Target;
use super::Doors;
use crate::client::wire;
use crate::group::driver::{Append, CommandError, Committed, Waiter};
use crate::group::replica::Role;
use crate::ids::GroupId;
use crate::limits::STREAM_APPENDS_INFLIGHT_MAX;
use crate::router::RouteError;
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Status, Streaming};

/// Lots of answers that wait for the transport before more of them queue up in the stream's task.
const LOTS_QUEUED_MAX: usize = 4;
/// Requests handed over together, and outcomes answered together, at most.
const TOGETHER_MAX: usize = 1_024;

/// Answers that go to the transport together.
type Lot = Vec<Result<wire::AppendStreamResponse, Status>>;
type OverTheHop = Pin<Box<dyn Future<Output = (u64, Result<Committed, RouteError>)> + Send>>;

/// An append under way.
struct UnderWay {
    target: Target,
    held: OwnedSemaphorePermit,
}

/// What goes back to the client, in order. Giving it an answer never waits; sending what queued up does.
struct Answers {
    to: mpsc::Sender<Lot>,
    /// Not sent yet. Bounded by whoever gives: it takes no request while too many are here.
    queued: Lot,
}

impl Answers {
    /// Sends what queued up if there is room.
    fn send(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        if let Err(TrySendError::Full(lot) | TrySendError::Closed(lot)) =
            self.to.try_send(std::mem::take(&mut self.queued))
        {
            self.queued = lot; // if nobody listens any more, `send_soon` says so
        }
    }

    /// Sends what queued up once there is room. False if nobody listens any more. Loses nothing if it is dropped half way.
    async fn send_soon(&mut self) -> bool {
        let Ok(place) = self.to.reserve().await else { return false };
        place.send(std::mem::take(&mut self.queued));
        true
    }
}

/// How the replica here of the group that was looked at last stands. Kept for one turn of the stream's task.
type Standing = Option<(GroupId, Option<Role>)>;

/// One stream's task. See the module's text.
pub(super) struct AppendStream {
    doors: Doors,
    answers: Answers,
    under_way: BTreeMap<u64, UnderWay>,
    /// Checked and on their way to the leader here, in order.
    ready: Vec<Append>,
    outcomes: mpsc::UnboundedSender<(u64, Result<Committed, CommandError>)>,
    passed_on: FuturesUnordered<OverTheHop>,
    /// The last partition that was looked up: streams mostly stay with one.
    last_target: Option<Target>,
    standing: Standing,
}

impl AppendStream {
    /// Starts the task for `requests`; its answers come out of the returned channel.
    pub fn start(doors: Doors, requests: Streaming<wire::AppendStreamRequest>) -> mpsc::Receiver<Lot> {
        let (answers, answers_end) = mpsc::channel(LOTS_QUEUED_MAX);
        let (outcomes, outcomes_end) = mpsc::unbounded_channel();
        let stream = AppendStream {
            doors,
            answers: Answers { to: answers, queued: Vec::new() },
            under_way: BTreeMap::new(),
            ready: Vec::new(),
            outcomes,
            passed_on: FuturesUnordered::new(),
            last_target: None,
            standing: None,
        };
        tokio::spawn(stream.run(requests, outcomes_end));
        answers_end
    }

    async fn run(
        mut self,
        mut requests: Streaming<wire::AppendStreamRequest>,
        mut outcomes: mpsc::UnboundedReceiver<(u64, Result<Committed, CommandError>)>,
    ) {
        let (mut open, mut last_word, mut settled) = (true, None, Vec::new());
        while open || !self.under_way.is_empty() || !self.answers.queued.is_empty() {
            self.standing = None;
            let room = open && self.has_room();
            tokio::select! {
                biased;
                _ = outcomes.recv_many(&mut settled, TOGETHER_MAX) => {
                    for (number, outcome) in settled.drain(..) {
                        self.settle(number, outcome.map_err(RouteError::from));
                    }
                }
                Some((number, outcome)) = self.passed_on.next() => self.settle(number, outcome),
                listening = self.answers.send_soon(), if !self.answers.queued.is_empty() => if !listening {
                    return;
                },
                request = requests.message(), if room => {
                    let mut arrived = Some(request);
                    while let Some(request) = arrived {
                        match request {
                            Ok(Some(request)) => self.take(request).await,
                            Ok(None) => open = false,
                            // A refusal of our own: it ends the stream once all that was taken is answered, so that whatever has
                            // no answer by then did not happen, as the refusal says.
                            Err(refusal) if !refusal.details().is_empty() => {
                                open = false;
                                last_word = Some(refusal);
                            }
                            // The client is gone; what was handed over goes on without an audience.
                            Err(_) => return self.hand_over_ready().await,
                        }
                        let more = open && self.has_room() && self.ready.len() < TOGETHER_MAX;
                        arrived = if more { requests.message().now_or_never() } else { None };
                    }
                    self.hand_over_ready().await;
                }
            }
            self.answers.send();
        }
        if let Some(refusal) = last_word {
            let _ = self.answers.to.send(vec![Err(refusal)]).await; // nobody listens any more: nobody is to be told
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() + self.answers.queued.len() < STREAM_APPENDS_INFLIGHT_MAX
    }

    /// Takes one request; one for a leader here waits in `ready`.
    async fn take(&mut self, request: wire::AppendStreamRequest) {
        let number = request.number;
        if let Err((target, error)) = self.hand_over(request).await {
            self.fail(number, target.as_ref(), &error);
        }
    }

    /// Hands over what is ready.
    async fn hand_over_ready(&mut self) {
        if self.doors.router.driver().append_all(&mut self.ready).await.is_ok() {
            return;
        }
        for append in std::mem::take(&mut self.ready) {
            let Waiter::Numbered { number, .. } = append.waiter else { continue };
            let target = self.under_way.remove(&number).map(|under_way| under_way.target);
            self.fail(number, target.as_ref(), &ApiError::ShuttingDown);
        }
    }

    async fn hand_over(&mut self, request: wire::AppendStreamRequest) -> Result<(), (Option<Target>, ApiError)> {
        let number = request.number;
        let append = request.append.ok_or_else(|| (None, ApiError::Invalid("the append is missing".into())))?;
        if self.under_way.contains_key(&number) {
            return Err((None, ApiError::Invalid(format!("number {number} is under way already on this stream"))));
        }
        let held = self.doors.hold(append.batch.len()).map_err(|error| (None, error))?;
        let target = self.target(&append.topic, append.partition).await.map_err(|error| (None, error))?;
        let command = command(&target, append).map_err(|error| (Some(target.clone()), error))?;
        self.under_way.insert(number, UnderWay { target: target.clone(), held });
        self.propose(number, &target, command).await.map_err(|error| {
            self.under_way.remove(&number);
            (Some(target), error)
        })
    }

    async fn propose(&mut self, number: u64, target: &Target, command: Bytes) -> Result<(), ApiError> {
        let group = target.group();
        if self.role_here(group) == Some(Role::Leader) {
            let waiter = Waiter::Numbered { number, to: self.outcomes.clone() };
            self.ready.push(Append { group, command, waiter });
            return Ok(());
        }
        self.hand_over_ready().await; // nothing overtakes what came before it
        let router = &self.doors.router;
        let Some(leader) = router.leader(group) else {
            return Err(self.doors.no_leader(target.to_string(), group));
        };
        let outcome = router.propose_at(leader.node, group, command);
        self.passed_on.push(Box::pin(async move { (number, outcome.await) }));
        Ok(())
    }

    async fn target(&mut self, topic: &str, partition: u32) -> Result<Target, ApiError> {
        if let Some(last) = self.last_target.clone() {
            let same = &*last.topic.name == topic && last.partition.number == partition;
            // A topic that was deleted meanwhile must not be appended to for as long as the stream lives.
            if same && self.role_here(last.group()).is_some() {
                return Ok(last);
            }
        }
        let target = self.doors.target(topic, partition).await?;
        self.last_target = Some(target.clone());
        Ok(target)
    }

    /// The role of the replica here, if there is one: as it was when this turn first asked.
    fn role_here(&mut self, group: GroupId) -> Option<Role> {
        if let Some((_, role)) = self.standing.filter(|(known, _)| *known == group) {
            return role;
        }
        let role = self.doors.router.role_here(group);
        self.standing = Some((group, role));
        role
    }

    /// Answers one request.
    fn settle(&mut self, number: u64, outcome: Result<Committed, RouteError>) {
        let Some(UnderWay { target, held }) = self.under_way.remove(&number) else { return };
        drop(held); // the bytes are in the log or gone; what is left is an answer
        let told = outcome
            .map_err(|error| self.doors.route_failed(target.to_string(), target.group(), error))
            .and_then(|committed| Ok((accepted(&target.to_string(), committed.verdict)?, committed)));
        match told {
            Ok((accepted, committed)) => {
                let here = self.role_here(target.group()) == Some(Role::Leader);
                let receipt = wire::StreamReceipt {
                    offset: accepted.offset.0,
                    count: accepted.count,
                    term: committed.term.0,
                    hash: Bytes::copy_from_slice(&committed.chain.0),
                    timestamp_ms: committed.timestamp.0,
                    repeated_append: accepted.repeated,
                    leader: if here { None } else { self.doors.leader(target.group()) },
                };
                self.answer(number, wire::append_stream_response::Outcome::Receipt(receipt));
            }
            Err(error) => self.fail(number, Some(&target), &error),
        }
    }

    fn fail(&mut self, number: u64, target: Option<&Target>, error: &ApiError) {
        let leader = target.and_then(|target| self.doors.leader(target.group()));
        let failure = error.stream_failure(leader);
        self.answer(number, wire::append_stream_response::Outcome::Failure(failure));
    }

    fn answer(&mut self, number: u64, outcome: wire::append_stream_response::Outcome) {
        self.answers.queued.push(Ok(wire::AppendStreamResponse { number, outcome: Some(outcome) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(number: u64) -> Result<wire::AppendStreamResponse, Status> {
        Ok(wire::AppendStreamResponse { number, outcome: None })
    }

    #[tokio::test]
    async fn a_client_that_takes_no_answers_holds_up_no_outcome_and_gets_all_in_order_later() {
        let (to, mut taken) = mpsc::channel(2);
        let mut answers = Answers { to, queued: Vec::new() };
        for number in 0..5 {
            answers.queued.push(numbered(number)); // nothing here can wait
            answers.send();
        }
        assert_eq!(answers.queued.len(), 3);
        let mut numbers = Vec::new();
        let mut take = |lot: Lot| numbers.extend(lot.into_iter().map(|answer| answer.unwrap().number));
        take(taken.recv().await.unwrap());
        assert!(answers.send_soon().await && answers.queued.is_empty());
        take(taken.recv().await.unwrap());
        take(taken.recv().await.unwrap());
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
        drop(taken);
        answers.queued.push(numbered(5));
        answers.send();
        assert!(!answers.queued.is_empty() && !answers.send_soon().await, "nobody listens");
    }
}
