//! Appending many batches over one stream, pipelined.
//!
//! One task per stream takes requests while fewer than `STREAM_APPENDS_INFLIGHT_MAX` are under way or answered and not taken, and
//! answers each by its number as its outcome arrives. Requests to one leader are proposed in the order in which they came. Nothing
//! is tried again here: a failure names the leader, and the client, which knows its sessions, decides.
//!
//! Invariant: a client that does not take its answers holds up its own stream alone. An append gives its bytes back to the
//! node's allowance when its outcome arrives; only its small answer waits for the client.

use super::append::{accepted, command};
use super::errors::ApiError;
use super::target::Target;
use super::Doors;
use crate::client::wire;
use crate::group::driver::{Append, CommandError, Committed, Waiter};
use crate::limits::STREAM_APPENDS_INFLIGHT_MAX;
use crate::router::RouteError;
use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::StreamExt;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Status, Streaming};

/// Answers that wait for the transport before they queue up in the stream's task.
const ANSWERS_QUEUED_MAX: usize = 1_024;

type Answer = Result<wire::AppendStreamResponse, Status>;
type OverTheHop = Pin<Box<dyn Future<Output = (u64, Result<Committed, RouteError>)> + Send>>;

/// An append under way.
struct UnderWay {
    target: Target,
    held: OwnedSemaphorePermit,
}

/// What goes back to the client, in order. Giving it an answer never waits; sending what queued up does.
struct Answers {
    to: mpsc::Sender<Answer>,
    /// Found no room in `to`. Bounded by whoever gives: it takes no request while too many are here.
    queued: VecDeque<Answer>,
}

impl Answers {
    fn give(&mut self, answer: Answer) {
        self.queued.push_back(answer);
        while let Some(answer) = self.queued.pop_front() {
            if let Err(TrySendError::Full(answer) | TrySendError::Closed(answer)) = self.to.try_send(answer) {
                self.queued.push_front(answer); // if nobody listens any more, `send_one` says so
                return;
            }
        }
    }

    /// Sends the oldest once there is room. False if nobody listens any more. Loses nothing if it is dropped half way.
    async fn send_one(&mut self) -> bool {
        let Ok(place) = self.to.reserve().await else { return false };
        if let Some(answer) = self.queued.pop_front() {
            place.send(answer);
        }
        true
    }
}

/// One stream's task. See the module's text.
pub(super) struct AppendStream {
    doors: Doors,
    answers: Answers,
    under_way: BTreeMap<u64, UnderWay>,
    outcomes: mpsc::UnboundedSender<(u64, Result<Committed, CommandError>)>,
    passed_on: FuturesUnordered<OverTheHop>,
    /// The last partition that was looked up: streams mostly stay with one.
    last_target: Option<Target>,
}

impl AppendStream {
    /// Starts the task for `requests`; its answers come out of the returned channel.
    pub fn start(doors: Doors, requests: Streaming<wire::AppendStreamRequest>) -> mpsc::Receiver<Answer> {
        let (answers, answers_end) = mpsc::channel(ANSWERS_QUEUED_MAX);
        let (outcomes, outcomes_end) = mpsc::unbounded_channel();
        let stream = AppendStream {
            doors,
            answers: Answers { to: answers, queued: VecDeque::new() },
            under_way: BTreeMap::new(),
            outcomes,
            passed_on: FuturesUnordered::new(),
            last_target: None,
        };
        tokio::spawn(stream.run(requests, outcomes_end));
        answers_end
    }

    async fn run(
        mut self,
        mut requests: Streaming<wire::AppendStreamRequest>,
        mut outcomes: mpsc::UnboundedReceiver<(u64, Result<Committed, CommandError>)>,
    ) {
        let (mut open, mut last_word) = (true, None);
        while open || !self.under_way.is_empty() || !self.answers.queued.is_empty() {
            let room = open && self.under_way.len() + self.answers.queued.len() < STREAM_APPENDS_INFLIGHT_MAX;
            tokio::select! {
                biased;
                Some((number, outcome)) = outcomes.recv() => self.settle(number, outcome.map_err(RouteError::from)),
                Some((number, outcome)) = self.passed_on.next() => self.settle(number, outcome),
                listening = self.answers.send_one(), if !self.answers.queued.is_empty() => if !listening {
                    return;
                },
                request = requests.message(), if room => match request {
                    Ok(Some(request)) => self.take(request).await,
                    Ok(None) => open = false,
                    // A refusal of our own: it ends the stream once all that was taken is answered, so that whatever has no
                    // answer by then did not happen, as the refusal says.
                    Err(refusal) if !refusal.details().is_empty() => {
                        open = false;
                        last_word = Some(refusal);
                    }
                    // The client is gone; what was handed over goes on without an audience.
                    Err(_) => return,
                },
            }
        }
        if let Some(refusal) = last_word {
            let _ = self.answers.to.send(Err(refusal)).await; // nobody listens any more: nobody is to be told
        }
    }

    /// Hands one request over.
    async fn take(&mut self, request: wire::AppendStreamRequest) {
        let number = request.number;
        if let Err((target, error)) = self.hand_over(request).await {
            self.fail(number, target.as_ref(), &error);
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
        let (group, router) = (target.group(), &self.doors.router);
        if router.leads_here(group) {
            let waiter = Waiter::Numbered { number, to: self.outcomes.clone() };
            let append = Append { group, command, waiter };
            return router.driver().append(append).await.map_err(|_| ApiError::ShuttingDown);
        }
        let Some(leader) = router.leader(group) else {
            return Err(self.doors.no_leader(target.to_string(), group));
        };
        let outcome = router.propose_at(leader.node, group, command);
        self.passed_on.push(Box::pin(async move { (number, outcome.await) }));
        Ok(())
    }

    async fn target(&mut self, topic: &str, partition: u32) -> Result<Target, ApiError> {
        if let Some(last) = &self.last_target {
            let same = &*last.topic.name == topic && last.partition.number == partition;
            // A topic that was deleted meanwhile must not be appended to for as long as the stream lives.
            if same && self.doors.router.driver().view(last.group()).is_some() {
                return Ok(last.clone());
            }
        }
        let target = self.doors.target(topic, partition).await?;
        self.last_target = Some(target.clone());
        Ok(target)
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
                let here = self.doors.router.leads_here(target.group());
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
        self.answers.give(Ok(wire::AppendStreamResponse { number, outcome: Some(outcome) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(number: u64) -> Answer {
        Ok(wire::AppendStreamResponse { number, outcome: None })
    }

    #[tokio::test]
    async fn a_client_that_takes_no_answers_holds_up_no_outcome_and_gets_all_in_order_later() {
        let (to, mut taken) = mpsc::channel(2);
        let mut answers = Answers { to, queued: VecDeque::new() };
        (0..5).for_each(|number| answers.give(numbered(number))); // nothing here can wait
        assert_eq!(answers.queued.len(), 3);
        for expected in 0..2 {
            assert_eq!(taken.recv().await.unwrap().unwrap().number, expected);
        }
        answers.give(numbered(5));
        for expected in 2..6 {
            assert_eq!(taken.recv().await.unwrap().unwrap().number, expected);
            if !answers.queued.is_empty() {
                assert!(answers.send_one().await);
            }
        }
        drop(taken);
        answers.give(numbered(6));
        assert!(!answers.queued.is_empty() && !answers.send_one().await, "nobody listens");
    }
}
