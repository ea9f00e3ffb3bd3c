//! What is tried in a calm, and judged: how requests are refused while disks are full or a node sees no majority.
//!
//! Such promises can't be held against random faults, for there is always another reason why an answer may be late or different. So all
//! is healed first, and then one thing is wrong alone.

use super::clients::{doors, Log, Shared};
use super::stage::now_us;
use crate::history::Outcome;
use balsa::client::{wire, Client, ClientError, NewTopic, Reason};
use madsim::time::{sleep, timeout};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Status};

/// A rule: with all disks full, appends are refused for that reason, and reads go on.
pub const REFUSED_FULL: &str = "refused-full";
/// A rule: a node that sees no majority says so, soon, and that nothing happened.
pub const REFUSED_ALONE: &str = "refused-alone";

/// Within so long all nodes know that their disks are full, or that they are alone.
const NOTICED: Duration = Duration::from_secs(10);
/// What an answer may take beyond what was promised: the way there and back, and a tick.
const SLACK: Duration = Duration::from_millis(500);
/// How long silence takes to break a link.
const LINK_SILENCE: Duration = Duration::from_secs(2);
/// A topic that nobody needs.
const SPARE_TOPIC: &str = "spare";
/// Between two questions.
const POLL: Duration = Duration::from_millis(150);

/// What is wrong in a calm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trial {
    /// Some links are cut, and a majority is mutually connected.
    Cut,
    /// All disks have less room than their reserve.
    Full,
    /// A node reaches no other one.
    Alone,
}

/// Asks every log for an append until it is refused because disks are full; a majority goes on answering reads meanwhile.
///
/// # Errors
/// What came instead.
pub async fn full(shared: Arc<Shared>, client: Client, node: u32) -> Result<(), String> {
    for log in &shared.logs {
        let begun = now_us();
        loop {
            let came = append(&shared, log, node, NOTICED).await;
            if came.as_ref().is_err_and(|status| is(status, Code::ResourceExhausted, wire::Reason::DiskFull)) {
                shared.stage.hit("trial.refused-full");
                break;
            }
            if now_us() - begun > NOTICED.as_micros() as u64 {
                return Err(format!("{}: all disks are full for {NOTICED:?}, and an append gave {came:?}", log.key));
            }
            sleep(POLL).await;
        }
        let (mut answered, mut refused) = (0, Vec::new());
        for node in 1..=shared.options.nodes {
            // One that was behind when its disk filled up can't get to where the log ends.
            match read_through(log, node).await {
                Ok(()) => answered += 1,
                Err(status) => refused.push(status),
            }
        }
        if answered <= shared.options.nodes / 2 {
            return Err(format!("{}: disks are full, and reads gave {refused:?}", log.key));
        }
    }
    // What makes room is not refused. A node that was behind may have passed it on, and not hear what became of it.
    let begun = now_us();
    loop {
        match client.delete_topic(SPARE_TOPIC).await {
            Err(error) if error.reason() == Some(Reason::UnknownTopic) => return Ok(()),
            Err(error) if is_definite(&error) || now_us() - begun > NOTICED.as_micros() as u64 => {
                return Err(format!("disks are full, and a topic can't be deleted: {error}"));
            }
            Err(_) => sleep(POLL).await,
            Ok(()) => return Ok(()),
        }
    }
}

fn is_definite(error: &ClientError) -> bool {
    error.outcome() == balsa::client::Outcome::DidNotHappen
}

/// Asks a node where the log ends, and for all of it.
async fn read_through(log: &Log, node: u32) -> Result<(), Status> {
    let tail = wire::TailRequest { topic: log.topic.clone(), partition: log.partition, stale: false };
    within(NOTICED, doors::log(node).tail(tail)).await?;
    doors::read(log, node, wire::read_request::From::Earliest(true), false, NOTICED).await.ended
}

/// Makes the topic that is deleted when all disks are full. It may be there from an earlier try of the same request.
pub async fn prepare(client: Client) {
    let _ = client.create_topic(SPARE_TOPIC, &NewTopic::default()).await;
}

/// Asks a node that is cut off for appends and tails: each must be answered as unavailable, with nothing done, within two election timeouts.
///
/// # Errors
/// What came instead.
pub async fn alone(shared: Arc<Shared>, node: u32) -> Result<(), String> {
    // The longest that a follower waits.
    let election = Duration::from_millis(2 * shared.options.tick_ms * shared.options.election_ticks as u64);
    sleep(LINK_SILENCE + 2 * election).await;
    let patience = 2 * election + SLACK;
    for log in &shared.logs {
        let begun = now_us();
        let appended = append(&shared, log, node, 4 * patience).await.map(|_| ());
        unavailable(log, "an append", begun, patience, appended)?;
        let begun = now_us();
        let tail = wire::TailRequest { topic: log.topic.clone(), partition: log.partition, stale: false };
        let told = within(4 * patience, doors::log(node).tail(tail)).await.map(|_| ());
        unavailable(log, "a tail", begun, patience, told)?;
        shared.stage.hit("trial.refused-alone");
    }
    Ok(())
}

fn unavailable(
    log: &Log,
    what: &str,
    begun_us: u64,
    patience: Duration,
    came: Result<(), Status>,
) -> Result<(), String> {
    let took = Duration::from_micros(now_us() - begun_us);
    let refused = |status: &Status| {
        let reason = doors::detail(status).map(|detail| detail.reason());
        let right = matches!(reason, Some(wire::Reason::NoQuorum | wire::Reason::NoLeader));
        status.code() == Code::Unavailable && right && doors::outcome::<()>(status) == Outcome::Failed
    };
    if took <= patience && came.as_ref().is_err_and(refused) {
        return Ok(());
    }
    Err(format!(
        "{}: {what} through a node that is cut off gave {came:?} after {took:?}; {patience:?} were allowed",
        log.key
    ))
}

fn is(status: &Status, code: Code, reason: wire::Reason) -> bool {
    let told = doors::detail(status).map(|detail| detail.reason());
    status.code() == code && told == Some(reason) && doors::outcome::<()>(status) == Outcome::Failed
}

/// One record, through this node; recorded like any other.
async fn append(shared: &Shared, log: &Log, node: u32, patience: Duration) -> Result<u64, Status> {
    let payload = shared.payloads(1);
    let invoked_us = now_us();
    let request = wire::AppendRequest {
        topic: log.topic.clone(),
        partition: log.partition,
        batch: doors::batch(payload, 1, 8, None),
        ..wire::AppendRequest::default()
    };
    let answer = within(patience, doors::log(node).append(request)).await.map(tonic::Response::into_inner);
    super::ending::record_probe(
        shared,
        log,
        payload,
        invoked_us,
        match &answer {
            Ok(receipt) => Outcome::Ok(crate::history::Receipt { offset: receipt.offset, term: receipt.term }),
            Err(status) => doors::outcome(status),
        },
    );
    answer.map(|receipt| receipt.offset)
}

async fn within<T>(
    patience: Duration,
    asked: impl std::future::Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    timeout(patience, asked).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer came")))
}
