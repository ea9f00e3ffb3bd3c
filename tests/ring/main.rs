//! The second ring: three real processes on real files and sockets under a steady load, struck again and again. Whatever happens, every
//! acknowledged record is read back at its offset from every node, all nodes give the same bytes, no record is there twice, and each
//! producer's records are in its order.
//!
//! `cargo test` deals each kind of blow once. A long run is a command of its own:
//!
//! ```text
//! BALSA_RING_CYCLES=200 cargo test --test ring -- --nocapture
//! ```
//!
//! `BALSA_RING_SEED=N` draws other blows. What real processes do does not follow from the seed alone: a run can't be repeated step by
//! step, as in the simulator, but what was drawn can.
#![cfg(not(madsim))]

mod blows;
mod check;
mod damage;
mod load;
#[path = "../support/mod.rs"]
mod support;

use balsa::client::wire::{self, log_client::LogClient};
use balsa::client::NewTopic;
use blows::{Blow, Ring, PROBES, RESERVE_BYTES};
use check::{Canon, Extent};
use load::{Load, PARTITIONS, TOPIC};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::SeedableRng;
use std::collections::BTreeMap;
use std::time::Instant;
use support::small_disk::SmallDisk;
use support::{trace, wait_until, Cluster};

/// Room for a journal that has grown, and for the segments of a long run.
const SMALL_DISK_BYTES: u64 = 768 << 20;
/// Nodes that get a small disk of their own: a majority, so that it can be filled. The third lies on a real one.
const SMALL_DISKS: [usize; 2] = [0, 1];
/// What a partition keeps then; the rest is trimmed.
const KEPT_BYTES: usize = 24 << 20;
/// In a long run each log is read from its beginning now and then, not after each cycle.
const WHOLE_EVERY: usize = 10;

fn number_from(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_record_is_lost_whatever_happens_to_the_processes_and_their_files() {
    let cycles = number_from("BALSA_RING_CYCLES", Blow::DECK.len() as u64) as usize;
    let seed = number_from("BALSA_RING_SEED", 1);
    println!("{cycles} cycles from seed {seed}: BALSA_RING_SEED={seed} BALSA_RING_CYCLES={cycles}");
    let mut ring = Ring::start(seed).await;
    let (mut deck, mut checked) = (Vec::new(), 0);
    for cycle in 1..=cycles {
        if deck.is_empty() {
            deck = Blow::DECK.to_vec();
            deck.shuffle(&mut ring.random);
        }
        let blow = deck.pop().expect("a blow");
        let started = Instant::now();
        let struck = ring.strike(blow).await;
        let took = started.elapsed();
        let fresh = ring.check(checked, &struck, cycle % WHOLE_EVERY == 0).await;
        checked += fresh;
        if cycle % WHOLE_EVERY == 0 {
            ring.trim().await;
        }
        println!(
            "cycle {cycle:3} {blow:?} of {:?}: {:.1} s, and {:.1} s to see that all is there: {fresh} records more, {} in all, {} MiB",
            struck.iter().map(|node| node + 1).collect::<Vec<_>>(),
            took.as_secs_f64(),
            (started.elapsed() - took).as_secs_f64(),
            ring.canon.records(),
            ring.canon.bytes() >> 20
        );
    }
    ring.finish(checked).await;
}

impl Ring {
    /// Starts three nodes and the load, and waits until there is something to lose.
    async fn start(seed: u64) -> Ring {
        let settings = format!("segment_bytes = 4194304\nreserve_bytes = {RESERVE_BYTES}");
        let mut cluster = Cluster::laid_out_with("ring", 3, &settings);
        let mut disks = BTreeMap::new();
        for node in SMALL_DISKS {
            match SmallDisk::mount(&cluster.nodes[node].dir, SMALL_DISK_BYTES) {
                Ok(disk) => drop(disks.insert(node, disk)),
                Err(reason) => println!("SKIPPED full disks: a small file system can't be mounted here ({reason})"),
            }
        }
        cluster.nodes.iter_mut().for_each(|node| node.start());
        cluster.wait_until_up().await;
        let client = cluster.client();
        for (topic, partitions) in [(TOPIC, PARTITIONS), (PROBES, 1)] {
            let new = NewTopic { partitions: Some(partitions), ..NewTopic::default() };
            client.create_topic(topic, &new).await.expect("the topic is created");
        }
        let load = Load::start(&cluster).await;
        let can_trace = trace::can_trace("failures injected into writes and syncs");
        let random = StdRng::seed_from_u64(seed);
        let (tally, canon) = (BTreeMap::new(), Canon::default());
        let ring =
            Ring { cluster, load, canon, random, disks, can_trace, tally, damages: 0, injections: BTreeMap::new() };
        for _ in 0..20 {
            ring.progress("at first").await;
        }
        ring
    }

    /// All nodes are up and give back all that was acknowledged. Gives how many records that are beyond the first `checked`.
    async fn check(&mut self, checked: usize, struck: &[usize], whole: bool) -> usize {
        self.cluster.wait_until_up().await;
        self.progress("with all nodes up").await;
        let acknowledged = self.load.acknowledged(if whole { 0 } else { checked });
        for (at, node) in self.cluster.nodes.iter().enumerate() {
            let extent = if whole || struck.contains(&at) { Extent::Whole } else { Extent::Recent };
            let unread = self.canon.read(node, extent).await;
            assert!(unread.is_empty(), "node {}: {unread:?}", node.id);
            for partition in 0..PARTITIONS {
                let own =
                    acknowledged.iter().filter(|record| record.partition == partition).map(|record| record.offset);
                let read = self.canon.read_through(node.id, partition);
                assert!(own.max().is_none_or(|last| last < read), "node {} lacks acknowledged records", node.id);
            }
        }
        self.canon.holds(&acknowledged);
        self.cluster.nobody_panicked();
        acknowledged.len() - if whole { checked } else { 0 }
    }

    /// Lets go of the oldest records, which were checked on all nodes.
    async fn trim(&mut self) {
        let address = format!("http://{}", self.cluster.nodes[0].client);
        for (partition, offset) in self.canon.trim_to(KEPT_BYTES) {
            let request = wire::TrimRequest { topic: TOPIC.into(), partition, offset };
            wait_until("the trim", || async {
                let mut client = LogClient::connect(address.clone()).await.ok()?;
                client.trim(request.clone()).await.ok()
            })
            .await;
        }
    }

    /// Ends the load; then all that was ever sent is there, once, on all nodes.
    async fn finish(mut self, checked: usize) {
        let sent = self.load.finish().await;
        self.cluster.wait_until_up().await;
        for node in &self.cluster.nodes {
            let unread = self.canon.read(node, Extent::Whole).await;
            assert!(unread.is_empty(), "node {}: {unread:?}", node.id);
            for partition in 0..PARTITIONS {
                let (read, all) = (self.canon.read_through(node.id, partition), self.canon.tail(partition));
                assert_eq!(read, all, "node {} has another length of partition {partition}", node.id);
            }
        }
        let acknowledged = self.load.acknowledged(0);
        assert!(acknowledged.len() > checked);
        self.canon.holds(&acknowledged);
        assert_eq!(self.canon.records(), sent, "what was sent is there, once");
        assert_eq!(acknowledged.len() as u64, sent, "and all of it was acknowledged");
        self.cluster.nobody_panicked();
        for (what, count) in &self.tally {
            println!("{count:4} x {what}");
        }
        println!("{sent} records on three nodes, each once, where it was acknowledged");
        for node in &mut self.cluster.nodes {
            assert!(node.stop().success(), "node {} stops cleanly", node.id);
        }
        self.disks.clear(); // before the folder that they lie in goes
    }
}
