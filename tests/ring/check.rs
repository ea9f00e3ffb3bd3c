//! What the nodes give back, held against what was acknowledged, and against each other.
//!
//! The log of each partition is kept as it was read first. Every later read, of any node, must give the same bytes and may only go on
//! behind them. So what was checked once (dense offsets, no record twice, each producer in its order) need not be checked again.

use crate::load::{Acknowledged, Id, PARTITIONS, TOPIC};
use crate::support::{wait_until, Node};
use balsa::batch;
use balsa::client::wire::{self, log_client::LogClient};
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet};
use tonic::transport::Channel;
use tonic::Status;

/// A read that does not start at the beginning overlaps with what was read before by so many batches.
const OVERLAP_BATCHES: usize = 1_000;

/// How much of a node's log to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// All of it.
    Whole,
    /// What was not checked before, and some of what was.
    Recent,
}

/// The logs of all partitions.
#[derive(Default)]
pub struct Canon {
    partitions: BTreeMap<u32, Partition>,
    seen: HashSet<Id>,
    /// Where the last read of a partition from a node ended.
    read_through: BTreeMap<(u32, u32), u64>,
}

#[derive(Default)]
struct Partition {
    /// Batches with the offset of their first record.
    batches: Vec<(u64, Bytes)>,
    /// The record at each offset.
    ids: Vec<Id>,
    /// What lies before this offset was checked and then trimmed away.
    start: u64,
    last_of_producer: BTreeMap<u32, u64>,
}

/// A read that did not get to its end.
#[derive(Debug)]
pub struct Unread {
    /// Which partition, and how the read ended.
    pub why: (u32, Status),
}

impl Canon {
    /// Reads a node's log, linearizably, and takes over what is new. What could not be read is told; what was read before it is right.
    pub async fn read(&mut self, node: &Node, extent: Extent) -> Vec<Unread> {
        let mut unread = Vec::new();
        for partition in 0..PARTITIONS {
            let known = self.partitions.entry(partition).or_default();
            let recent = known.batches.len().saturating_sub(OVERLAP_BATCHES);
            let from = match extent {
                Extent::Recent if recent > 0 => known.batches[recent].0.max(known.start),
                _ => known.start,
            };
            let (batches, end) = read_partition(node, partition, from).await;
            self.take(node.id, partition, from, batches);
            unread.extend(end.err().map(|why| Unread { why: (partition, why) }));
        }
        unread
    }

    fn take(&mut self, node: u32, partition: u32, from: u64, batches: Vec<Bytes>) {
        let known = self.partitions.entry(partition).or_default();
        let mut next = from;
        for bytes in batches {
            let offset = u64::from_be_bytes(bytes[..8].try_into().expect("a batch begins with its offset"));
            assert_eq!(offset, next, "node {node}, partition {partition}: offsets are dense");
            let count = u32::from_be_bytes(bytes[23..27].try_into().expect("a header")) + 1;
            next += u64::from(count);
            match known.batches.binary_search_by_key(&offset, |(offset, _)| *offset) {
                Ok(at) => assert!(
                    known.batches[at].1 == bytes,
                    "node {node}, partition {partition}: other bytes at offset {offset} than were read before"
                ),
                Err(at) => {
                    assert_eq!(
                        at,
                        known.batches.len(),
                        "node {node}, partition {partition}: other batches at {offset}"
                    );
                    known.add(partition, offset, &bytes, &mut self.seen);
                }
            }
        }
        self.read_through.insert((node, partition), next);
    }

    /// Where the last read of a partition from a node ended.
    pub fn read_through(&self, node: u32, partition: u32) -> u64 {
        self.read_through.get(&(node, partition)).copied().unwrap_or(0)
    }

    /// Every acknowledged record is at its place.
    pub fn holds(&self, acknowledged: &[Acknowledged]) {
        for Acknowledged { partition, offset, id } in acknowledged {
            let found = self.partitions.get(partition).and_then(|partition| partition.ids.get(*offset as usize));
            assert_eq!(found, Some(id), "partition {partition}, offset {offset}: acknowledged there and not found");
        }
    }

    /// Gives up the older part of each partition beyond so many bytes, and tells from which offset on it is to be kept.
    pub fn trim_to(&mut self, bytes_max: usize) -> Vec<(u32, u64)> {
        let mut starts = Vec::new();
        for (partition, known) in &mut self.partitions {
            let mut bytes = 0;
            let newest = known.batches.iter().rev().take_while(|(_, batch)| {
                bytes += batch.len();
                bytes <= bytes_max
            });
            if let Some((start, _)) = newest.last().filter(|(start, _)| *start > known.start) {
                known.start = *start;
                starts.push((*partition, known.start));
            }
            known.batches.retain(|(offset, _)| *offset >= known.start);
        }
        starts
    }

    /// Where a partition's log ends as far as it was read.
    pub fn tail(&self, partition: u32) -> u64 {
        self.partitions.get(&partition).map_or(0, |partition| partition.ids.len() as u64)
    }

    pub fn records(&self) -> u64 {
        self.seen.len() as u64
    }

    pub fn bytes(&self) -> usize {
        self.partitions.values().flat_map(|partition| &partition.batches).map(|(_, bytes)| bytes.len()).sum()
    }
}

impl Partition {
    fn add(&mut self, partition: u32, offset: u64, bytes: &Bytes, seen: &mut HashSet<Id>) {
        assert_eq!(offset, self.ids.len() as u64, "partition {partition}: offsets are dense");
        for record in batch::records(bytes) {
            assert_eq!(record.offset.0, self.ids.len() as u64, "partition {partition}: offsets are dense");
            let value = record.value.expect("a value");
            let id = Id::of_value(&value).unwrap_or_else(|| panic!("partition {partition}: a record that nobody sent"));
            assert!(seen.insert(id), "partition {partition}, offset {}: {id:?} is there twice", self.ids.len());
            let before = self.last_of_producer.insert(id.producer, id.number);
            assert!(before.is_none_or(|before| before < id.number), "{id:?} comes after number {before:?}");
            self.ids.push(id);
        }
        self.batches.push((offset, bytes.clone()));
    }
}

/// Everything from an offset on that one node gives, and how the read ended. Waits until the node serves.
async fn read_partition(node: &Node, partition: u32, from: u64) -> (Vec<Bytes>, Result<(), Status>) {
    let request = wire::ReadRequest {
        topic: TOPIC.into(),
        partition,
        from: Some(wire::read_request::From::Offset(from)),
        ..Default::default()
    };
    let answers = wait_until("the node to serve a read", || async { serve(node, request.clone()).await });
    let mut answers = answers.await.into_inner();
    let mut batches = Vec::new();
    loop {
        match answers.message().await {
            Ok(Some(answer)) => batches.extend(answer.batches.into_iter().map(|batch| batch.batch)),
            Ok(None) => return (batches, Ok(())),
            Err(why) => return (batches, Err(why)),
        }
    }
}

async fn serve(
    node: &Node,
    request: wire::ReadRequest,
) -> Option<tonic::Response<tonic::Streaming<wire::ReadResponse>>> {
    let mut client: LogClient<Channel> = LogClient::connect(format!("http://{}", node.client)).await.ok()?;
    client = client.max_decoding_message_size(8 << 20);
    client.read(request).await.ok()
}
