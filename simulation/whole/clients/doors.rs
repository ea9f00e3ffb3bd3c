//! The doors as a foreign client sees them: generated stubs, status codes and their details, batches and their records.

use super::super::machine::client_address;
use super::reads::Got;
use super::Log;
use crate::history::Outcome;
use balsa::batch::{self, BatchBuilder, RecordRef};
use balsa::client::wire;
use balsa::ids::{ProducerId, TimestampMs};
use bytes::Bytes;
use madsim::time::timeout;
use prost::Message;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use wire::log_client::LogClient;
use wire::producers_client::ProducersClient;
use wire::read_request::From;

pub fn channel(node: u32) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", client_address(node)));
    endpoint.expect("an address is an address").connect_lazy()
}

pub fn log(node: u32) -> LogClient<Channel> {
    LogClient::new(channel(node))
}

pub fn producers(node: u32) -> ProducersClient<Channel> {
    ProducersClient::new(channel(node))
}

/// Reads through a node to the tail; also what came before it broke.
pub async fn read(log: &Log, node: u32, from: From, stale: bool, patience: Duration) -> Got {
    let asked = match from {
        From::Offset(offset) => offset,
        _ => 0,
    };
    let request = wire::ReadRequest {
        topic: log.topic.clone(),
        partition: log.partition,
        from: Some(from),
        stale,
        ..wire::ReadRequest::default()
    };
    let (mut records, mut stamps) = (Vec::new(), Vec::new());
    let reading = async {
        let mut stream = self::log(node).read(request).await?.into_inner();
        while let Some(answer) = stream.message().await? {
            for batch in answer.batches {
                let known = records.len();
                records.extend(payloads(&batch.batch).into_iter().filter(|(offset, _)| *offset >= asked));
                stamps.extend(records.get(known).map(|(offset, _): &(u64, u64)| (*offset, batch.timestamp_ms)));
            }
        }
        Ok(())
    };
    let ended = timeout(patience, reading).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("no patience left")));
    Got { records, stamps, ended }
}

/// Whether what was asked for definitely did not happen.
pub fn outcome<T>(status: &Status) -> Outcome<T> {
    match detail(status).map(|detail| detail.outcome()) {
        Some(wire::Outcome::DidNotHappen) => Outcome::Failed,
        Some(_) => Outcome::Unknown,
        None => match status.code() {
            Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition => Outcome::Failed,
            _ => Outcome::Unknown,
        },
    }
}

pub fn detail(status: &Status) -> Option<wire::ErrorDetail> {
    let rpc = wire::RpcStatus::decode(status.details()).ok()?;
    let detail = rpc.details.iter().find(|detail| detail.type_url.ends_with("ErrorDetail"))?;
    wire::ErrorDetail::decode(detail.value.clone()).ok()
}

/// A batch whose records carry `payload` and the numbers after it.
pub fn batch(payload: u64, count: u32, record_bytes: usize, session: Option<(u64, u16, u32)>) -> Bytes {
    let mut builder = BatchBuilder::new();
    if let Some((producer, epoch, sequence)) = session {
        builder.producer(ProducerId(producer), epoch, sequence);
    }
    for number in payload..payload + u64::from(count) {
        let value = value(number, record_bytes);
        let record = RecordRef { value: Some(&value), timestamp: TimestampMs(number), ..RecordRef::default() };
        builder.push(record).expect("the record is within the limits");
    }
    builder.build()
}

/// A record's value: its number, and bytes that follow from it.
pub fn value(payload: u64, record_bytes: usize) -> Vec<u8> {
    let mut value = payload.to_le_bytes().to_vec();
    value.resize(record_bytes.max(8), payload as u8);
    value
}

/// Offsets and payload numbers of a batch as it was read; a value that is none of ours has number zero, which no record carries.
pub fn payloads(batch: &Bytes) -> Vec<(u64, u64)> {
    let number = |value: &[u8]| {
        let (number, rest) = value.split_first_chunk::<8>()?;
        let number = u64::from_le_bytes(*number);
        rest.iter().all(|byte| *byte == number as u8).then_some(number)
    };
    batch::records(batch)
        .map(|record| (record.offset.0, record.value.as_deref().and_then(number).unwrap_or_default()))
        .collect()
}
