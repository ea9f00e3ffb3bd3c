//! The end of a run: all is healed, appends must resume, every replica must converge, and what clients saw must hold together.

use super::clients::{doors, Log, Shared};
use super::stage::now_us;
use crate::history::{Append, FinalLog, Outcome, Receipt};
use balsa::client::{self, AppendConditions, Client};
use madsim::time::sleep;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Within so long of healing to a connected majority appends must resume, and replicas converge.
pub const LIVENESS_BOUND: Duration = Duration::from_secs(20);

/// How long one read of a whole log may take.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a replica that is behind.
const POLL: Duration = Duration::from_millis(200);

/// The world's own client, at its desk.
pub const DESK: u32 = 0;

/// Appends to each log, which must succeed within the bound. Says what did not.
pub async fn resumes(shared: Arc<Shared>, client: Client) -> Result<(), String> {
    let probes = shared.logs.iter().map(|log| probe(&shared, &client, log));
    futures::future::join_all(probes).await.into_iter().collect()
}

async fn probe(shared: &Shared, client: &Client, log: &Log) -> Result<(), String> {
    let begun = now_us();
    loop {
        let payload = shared.payloads(1);
        let invoked_us = now_us();
        let batch = doors::batch(payload, 1, 8, None);
        let answer = client.append(&log.topic, log.partition, batch, &AppendConditions::default()).await;
        let outcome = match &answer {
            Ok(receipt) => Outcome::Ok(Receipt { offset: receipt.offset.0, term: receipt.term.0 }),
            Err(error) if error.outcome() == client::Outcome::DidNotHappen => Outcome::Failed,
            Err(_) => Outcome::Unknown,
        };
        record_probe(shared, log, payload, invoked_us, outcome);
        let Err(error) = answer else { return Ok(()) };
        if now_us() - begun > LIVENESS_BOUND.as_micros() as u64 {
            return Err(format!("{} takes no append within {LIVENESS_BOUND:?}: {error}", log.key));
        }
        sleep(POLL).await;
    }
}

/// What came of an append of one record that the world itself asked for.
pub fn record_probe(shared: &Shared, log: &Log, payload: u64, invoked_us: u64, outcome: Outcome<Receipt>) {
    shared.stage.event(DESK, "probe", &[payload], || format!("{} {payload}: {outcome:?}", log.key));
    shared.stage.lock().history.append(Append {
        client: DESK,
        partition: log.key,
        payload,
        count: 1,
        invoked_us,
        returned_us: now_us(),
        outcome,
        expected_offset: None,
        session: None,
    });
}

/// Reads every replica's whole log, once it has caught up, and they all end alike: what clients had under way when they stopped may
/// still come. Replicas that were damaged may refuse.
pub async fn converge(
    shared: Arc<Shared>,
    client: Client,
    nodes: Vec<u32>,
    may_refuse: BTreeSet<u32>,
) -> Result<(), String> {
    for log in &shared.logs {
        let begun = now_us();
        let finals = loop {
            let tail = client.tail(&log.topic, log.partition, false).await;
            let tail = tail.map_err(|error| format!("{} tells no tail: {error}", log.key))?;
            let reads = nodes.iter().map(|node| replica(&shared, log, *node, tail.tail.0, may_refuse.contains(node)));
            let read = futures::future::join_all(reads).await.into_iter().collect::<Result<Vec<_>, String>>()?;
            let read: Vec<(u64, FinalLog)> = read.into_iter().flatten().collect();
            let alike = read.iter().all(|(end, _)| *end == read[0].0);
            if alike || now_us() - begun > LIVENESS_BOUND.as_micros() as u64 {
                break read;
            }
            sleep(POLL).await;
        };
        for (end, read) in finals {
            shared.stage.event(read.node, "final", &[log.group, end], || format!("{} ends at {end}", log.key));
            shared.stage.lock().history.final_log(read);
        }
    }
    Ok(())
}

/// One replica's whole log and where it ends; `None` if it refuses and may.
async fn replica(
    shared: &Shared,
    log: &Log,
    node: u32,
    tail: u64,
    may_refuse: bool,
) -> Result<Option<(u64, FinalLog)>, String> {
    let begun = now_us();
    loop {
        let from = balsa::client::wire::read_request::From::Earliest(true);
        let got = doors::read(log, node, from, true, READ_PATIENCE).await;
        let end = got.records.last().map_or(0, |(offset, _)| offset + 1);
        if got.ended.is_ok() && (end >= tail || got.records.is_empty()) {
            let start = got.records.first().map_or(tail, |(offset, _)| *offset);
            return Ok(Some((end, FinalLog { node, partition: log.key, start, records: got.records })));
        }
        if now_us() - begun > LIVENESS_BOUND.as_micros() as u64 {
            if may_refuse {
                shared.stage.hit("refused.read");
                return Ok(None);
            }
            let ended = got.ended.err().map(|status| status.message().to_owned());
            return Err(format!("{}: node {node} has {end} of {tail} after {LIVENESS_BOUND:?}; {ended:?}", log.key));
        }
        sleep(POLL).await;
    }
}
