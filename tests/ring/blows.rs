//! What happens to the cluster: one blow a cycle. Each ends with all nodes running again, and leaves it to the caller to see what the
//! log looks like. Where a blow can't be dealt on this machine it says why.

use crate::check::{Canon, Extent};
use crate::damage::{self, Allowed, Class, Damage};
use crate::load::{Load, PARTITIONS, TOPIC};
use crate::support::small_disk::SmallDisk;
use crate::support::trace;
use crate::support::{detail_of, wait_until, Cluster, Signal, PATIENCE};
use balsa::batch::{BatchBuilder, RecordRef};
use balsa::client::wire::{self, log_client::LogClient};
use balsa::ids::TimestampMs;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::Rng;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Longer than an election timeout, so that a frozen leader wakes up deposed.
const FROZEN: Duration = Duration::from_millis(2_200);
/// Appends stop when less than this is free.
pub const RESERVE_BYTES: u64 = 32 << 20;
/// How long a node may run with a failure in wait for it.
const INJECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks at a process.
const POLL: Duration = Duration::from_millis(20);
/// Records that must be acknowledged while, or after, something happens.
const PROGRESS: usize = 50;
/// Damages to one stopped node in one cycle.
const DAMAGES: usize = 5;
/// How often a damage is drawn until one changes something.
const DRAWS: usize = 5;
/// Exit code of a node whose disk failed.
const FAILED: i32 = 1;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Blow {
    KillOne,
    KillAll,
    Freeze,
    FullMajority,
    FullDisk,
    FailingSync,
    FailingWrite,
    Damage,
}

impl Blow {
    /// One of each kind; those with many variants more often.
    pub const DECK: [Blow; 11] = [
        Blow::KillOne,
        Blow::FailingSync,
        Blow::Damage,
        Blow::Freeze,
        Blow::FailingWrite,
        Blow::KillAll,
        Blow::Damage,
        Blow::FullMajority,
        Blow::FailingSync,
        Blow::FullDisk,
        Blow::FailingWrite,
    ];
}

/// A cluster under load, and what is known of it.
pub struct Ring {
    pub cluster: Cluster,
    pub load: Load,
    pub canon: Canon,
    pub random: StdRng,
    /// Nodes on a small file system of their own.
    pub disks: BTreeMap<usize, SmallDisk>,
    pub can_trace: bool,
    /// What came of the blows: how often each thing was seen.
    pub tally: BTreeMap<String, u64>,
    /// Damages dealt so far: the classes take turns.
    pub damages: usize,
    /// Failures injected so far, into syncs and into writes: the sites take turns.
    pub injections: BTreeMap<&'static str, usize>,
}

impl Ring {
    /// Deals a blow. Gives the nodes that were struck.
    pub async fn strike(&mut self, blow: Blow) -> Vec<usize> {
        match blow {
            Blow::KillOne => self.kill_one().await,
            Blow::KillAll => self.kill_all().await,
            Blow::Freeze => self.freeze().await,
            Blow::FullMajority => self.fill_a_majority().await,
            Blow::FullDisk => self.fill_a_disk_up().await,
            Blow::FailingSync | Blow::FailingWrite if !self.can_trace => {
                self.saw("skipped: no tracer to inject failures with");
                Vec::new()
            }
            Blow::FailingSync => self.inject(SYNCS).await,
            Blow::FailingWrite => self.inject(WRITES).await,
            Blow::Damage => self.damage().await,
        }
    }

    fn saw(&mut self, what: impl Into<String>) {
        *self.tally.entry(what.into()).or_default() += 1;
    }

    fn any_node(&mut self) -> usize {
        self.random.gen_range(0..self.cluster.nodes.len())
    }

    /// Waits until some more records are acknowledged.
    pub async fn progress(&self, when: &str) {
        let before = self.load.acknowledged_count();
        wait_until(&format!("appends to go on {when}"), || async {
            self.load.goes_on();
            (self.load.acknowledged_count() >= before + PROGRESS).then_some(())
        })
        .await;
    }

    async fn kill_one(&mut self) -> Vec<usize> {
        let victim = match self.random.gen_bool(0.5) {
            true => self.any_node(),
            false => {
                let partition = self.random.gen_range(0..PARTITIONS);
                self.cluster.leader_of(TOPIC, partition).await
            }
        };
        self.cluster.nodes[victim].kill();
        if self.random.gen_bool(0.5) {
            self.progress("without the killed node").await;
        }
        self.cluster.nodes[victim].start();
        self.saw("one node killed");
        vec![victim]
    }

    async fn kill_all(&mut self) -> Vec<usize> {
        self.cluster.nodes.iter().for_each(|node| node.signal(Signal::Kill));
        for node in &mut self.cluster.nodes {
            node.wait();
        }
        self.cluster.nodes.iter_mut().for_each(|node| node.start());
        self.saw("all nodes killed");
        vec![0, 1, 2]
    }

    async fn freeze(&mut self) -> Vec<usize> {
        let partition = self.random.gen_range(0..PARTITIONS);
        let victim = match self.random.gen_bool(0.7) {
            true => self.cluster.leader_of(TOPIC, partition).await,
            false => self.any_node(),
        };
        self.cluster.nodes[victim].signal(Signal::Stop);
        let thaw = tokio::time::Instant::now() + FROZEN;
        self.progress("without the frozen node").await;
        tokio::time::sleep_until(thaw).await;
        self.cluster.nodes[victim].signal(Signal::Continue);
        self.saw("one node frozen");
        vec![victim]
    }

    /// Two of three nodes lack their reserve: appends are refused, reads go on, and it clears by itself.
    async fn fill_a_majority(&mut self) -> Vec<usize> {
        if self.disks.len() < 2 {
            self.saw("skipped: no small file systems to fill");
            return Vec::new();
        }
        let small: Vec<usize> = self.disks.keys().copied().collect();
        wait_until("appends to be refused for want of room", || async {
            // Journal files that are no longer needed may go meanwhile.
            self.disks.values().for_each(|disk| disk.fill_up_to(RESERVE_BYTES / 2));
            let refused = self.probe().await.err()?;
            let detail = detail_of(&refused)?;
            let full = refused.code() == Code::ResourceExhausted;
            assert!(!full || detail.outcome() == wire::Outcome::DidNotHappen, "{refused:?}");
            (full && matches!(detail.reason(), wire::Reason::DiskFull | wire::Reason::Overloaded)).then_some(())
        })
        .await;
        for node in 0..self.cluster.nodes.len() {
            let unread = self.canon.read(&self.cluster.nodes[node], Extent::Recent).await;
            assert!(unread.is_empty(), "reads go on while the disks are full: {unread:?}");
        }
        self.disks.values().for_each(SmallDisk::make_room);
        wait_until("appends to be taken again", || async { self.probe().await.ok() }).await;
        for node in &mut self.cluster.nodes {
            assert!(node.runs(), "node {} goes on through a disk that is full", node.id);
        }
        self.saw(
            "a majority without reserve: appends refused as RESOURCE_EXHAUSTED, reads went on, it cleared by itself",
        );
        small
    }

    /// One disk has no room at all. The others go on; the node itself may end, with a reason.
    async fn fill_a_disk_up(&mut self) -> Vec<usize> {
        let small: Vec<usize> = self.disks.keys().copied().collect();
        let Some(victim) = small.choose(&mut self.random).copied() else {
            self.saw("skipped: no small file systems to fill");
            return Vec::new();
        };
        self.disks[&victim].fill_up_to(0);
        self.progress("beside a node whose disk is full").await;
        if self.random.gen_bool(0.5) && self.cluster.nodes[victim].runs() {
            // A start needs room for a journal file.
            self.cluster.nodes[victim].kill();
            self.cluster.nodes[victim].start();
            self.progress("beside a node that starts on a full disk").await;
        }
        self.disks[&victim].make_room();
        let node = &mut self.cluster.nodes[victim];
        if node.runs() {
            self.saw("a disk without any room: the node went on");
        } else {
            let status = node.wait();
            assert_eq!(status.code(), Some(FAILED), "{}", node.logged());
            assert!(node.logged().contains("No space left"), "{}", node.logged());
            node.start();
            self.saw("a disk without any room: the node ended with the reason and went on with room");
        }
        vec![victim]
    }

    /// An append of its own outside the load.
    async fn probe(&self) -> Result<(), Status> {
        let mut batch = BatchBuilder::new();
        let record = RecordRef { key: None, value: Some(b"probe"), headers: &[], timestamp: TimestampMs(1) };
        batch.push(record).expect("the record fits");
        let address = format!("http://{}", self.cluster.nodes[0].client);
        let mut client = LogClient::connect(address).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let request = wire::AppendRequest { topic: PROBES.into(), batch: batch.build(), ..Default::default() };
        client.append(request).await.map(drop)
    }

    /// Lets a call of one node's fail at one place.
    async fn inject(&mut self, places: &[(Site, &'static str)]) -> Vec<usize> {
        let victim = self.any_node();
        let turn = self.injections.entry(places[0].1).or_default();
        let (site, call) = places[*turn % places.len()];
        *turn += 1;
        let error = if ["pwrite64", "pwritev", "fallocate"].contains(&call) && self.random.gen_bool(0.5) {
            "ENOSPC"
        } else {
            "EIO"
        };
        let when = self.random.gen_range(1..=site.calls_max());
        let what = format!("{error} of {} at {site:?}", call.trim_matches(['/', '^']));

        self.cluster.nodes[victim].kill();
        let paths = site.paths(&self.cluster.nodes[victim].dir);
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let file = self.cluster.scratch.0.join("injected");
        let _ = fs::remove_file(&file);
        let others = ["fdatasync", "fsync", "pwrite64", "pwritev", "fallocate"];
        // What fails may come only with a base that moves, or a file that is full.
        self.load.burst(site != Site::Journal);
        self.cluster.nodes[victim].wrapped_in = trace::failing(call, error, when, &paths, &others, &file);
        self.cluster.nodes[victim].start();
        let started = Instant::now();
        while self.cluster.nodes[victim].runs() && started.elapsed() < INJECTION_TIMEOUT {
            tokio::time::sleep(POLL).await;
        }
        self.load.burst(false);
        let node = &mut self.cluster.nodes[victim];
        let ended = !node.runs();
        if !ended {
            node.signal(Signal::Kill);
        }
        let status = node.wait();
        node.wrapped_in.clear();
        node.start();
        let hit = trace::injected(&file);
        match (&hit, ended) {
            (None, true) => {
                panic!("{what}: node {} ended by itself with {status}:\n{}", victim + 1, self.said_by(victim))
            }
            (None, false) => self.saw(format!("{what}: never came to it")),
            (Some((call, after)), true) => {
                assert_eq!(status.code(), Some(FAILED), "{what}: {}", self.said_by(victim));
                if site == Site::Journal {
                    assert!(after.is_empty(), "{what}: {call} was followed by {after:?}");
                }
                self.saw(format!("{what}: the node ended"));
            }
            (Some((call, _)), false) => {
                assert!(site != Site::Journal, "{what}: the node went on after {call}");
                self.saw(format!("{what}: the node went on"));
            }
        }
        vec![victim]
    }

    fn said_by(&self, node: usize) -> String {
        let log = self.cluster.nodes[node].logged();
        let last: Vec<&str> = log.lines().rev().take(10).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Stops a node, damages files of it one after another, and sees that each is refused or harmless.
    async fn damage(&mut self) -> Vec<usize> {
        let victim = self.any_node();
        let (backups, earlier) = (self.cluster.scratch.0.join("backups"), self.cluster.scratch.0.join("earlier"));
        fs::create_dir_all(&backups).expect("a place for copies");
        // Stale copies are from before some more was written. Stopped cleanly, the node has on record how far it got.
        assert!(self.cluster.nodes[victim].stop().success(), "{}", self.said_by(victim));
        damage::keep_copies(&self.cluster.nodes[victim].dir, &earlier);
        self.cluster.nodes[victim].start();
        self.cluster.wait_until_up().await;
        self.progress("with the node").await;
        assert!(self.cluster.nodes[victim].stop().success(), "{}", self.said_by(victim));
        for _ in 0..DAMAGES {
            let class = Class::ALL[self.damages % Class::ALL.len()];
            self.damages += 1;
            let dir = self.cluster.nodes[victim].dir.clone();
            let drawn = (0..DRAWS).find_map(|_| damage::strike(&dir, class, &mut self.random, &backups, &earlier));
            let Some(damage) = drawn else {
                self.saw(format!("{class:?}: nothing to damage"));
                continue;
            };
            let served = self.start_damaged(victim, &damage).await;
            damage.mend(served);
        }
        self.cluster.nodes[victim].start();
        vec![victim]
    }

    /// Starts a node with a damaged file. It ends by itself, or serves right data; then it is stopped. Gives whether it served.
    async fn start_damaged(&mut self, victim: usize, damage: &Damage) -> bool {
        let what = format!("{:?} {:?}", damage.class, damage.way);
        let before = self.cluster.nodes[victim].logged().len();
        self.cluster.nodes[victim].start();
        let deadline = Instant::now() + PATIENCE;
        while self.cluster.nodes[victim].runs() && !self.serves(victim).await {
            assert!(Instant::now() < deadline, "{what}: neither refused nor served:\n{}", self.said_by(victim));
        }
        if !self.cluster.nodes[victim].runs() {
            let code = self.cluster.nodes[victim].wait().code().expect("it ends by itself");
            let text = self.cluster.nodes[victim].logged()[before..].to_string();
            assert!(damage.is_named_by(code, &text), "{what} of {:?}: code {code}, {text}", damage.files);
            assert!(damage.allowed != Allowed::Service, "{what} of {:?} need not stop a node: {text}", damage.files);
            self.saw(format!("{what}: refused with code {code}"));
            return false;
        }
        let unread = self.canon.read(&self.cluster.nodes[victim], Extent::Whole).await;
        for unread in &unread {
            let error = unread.why.1.message();
            let named = damage.files.iter().any(|file| error.contains(&file.display().to_string()));
            assert!(named, "{what} of {:?}: {:?}", damage.files, unread);
            assert_eq!(unread.why.1.code(), Code::DataLoss, "{what}: {unread:?}");
        }
        let may_show = matches!(damage.class, Class::SealedSegment | Class::ActiveSegment);
        assert!(unread.is_empty() || may_show, "{what} of {:?}: {unread:?}", damage.files);
        assert!(damage.allowed != Allowed::Refusal, "{what} of {:?} went unnoticed", damage.files);
        let end = if unread.is_empty() { "served, all of it right" } else { "served, reads of the damage failed" };
        self.saw(format!("{what}: {end}"));
        let stopped = self.cluster.nodes[victim].stop();
        assert!(stopped.success(), "{what}: {}", self.said_by(victim));
        true
    }

    /// Whether a node answers a linearizable question about each partition by itself.
    async fn serves(&self, node: usize) -> bool {
        let address = format!("http://{}", self.cluster.nodes[node].client);
        let Ok(mut client) = LogClient::connect(address).await else {
            tokio::time::sleep(POLL).await;
            return false;
        };
        for partition in 0..PARTITIONS {
            let request = wire::TailRequest { topic: TOPIC.into(), partition, ..Default::default() };
            if client.tail(request).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// A topic beside the load's, for single appends.
pub const PROBES: &str = "probes";

/// Where failures are injected.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Site {
    Journal,
    Marks,
    JournalIdentity,
    Segments,
    Folders,
}

const SYNCS: &[(Site, &str)] = &[
    (Site::Journal, "fdatasync"),
    (Site::Segments, "fdatasync"),
    (Site::Marks, "fdatasync"),
    (Site::JournalIdentity, "fdatasync"),
    (Site::Folders, "fsync"),
];
const WRITES: &[(Site, &str)] = &[
    (Site::Journal, "pwrite64"),
    (Site::Segments, "pwritev"),
    (Site::Segments, "fallocate"),
    (Site::Marks, "pwrite64"),
    (Site::JournalIdentity, "pwrite64"),
    (Site::Journal, "pwrite64"),
    (Site::JournalIdentity, "/^rename"),
];
/// Journal files that may come to be while the node runs.
const SLOTS_TO_COME: u32 = 6;

impl Site {
    /// How many calls go by at most before one fails.
    fn calls_max(self) -> u32 {
        match self {
            Site::Journal => 60,
            Site::Segments => 4,
            Site::Marks => 1,
            Site::JournalIdentity | Site::Folders => 3,
        }
    }

    fn paths(self, dir: &Path) -> Vec<PathBuf> {
        let journal = dir.join("journal");
        match self {
            Site::Journal => {
                let mut files = damage::starting_with(&journal, "journal-");
                let slots = files.iter().filter_map(|file| file.to_str()?.rsplit_once('-')?.1.parse::<u32>().ok());
                let last = slots.max().unwrap_or(0);
                files.extend((last + 1..=last + SLOTS_TO_COME).map(|slot| journal.join(format!("journal-{slot:06}"))));
                files
            }
            Site::Marks => vec![journal.join("marks")],
            Site::JournalIdentity => vec![journal.join("identity-1.new"), journal.join("identity-2.new")],
            Site::Segments => damage::files_of(dir, Class::ActiveSegment),
            Site::Folders => {
                let mut folders = vec![journal];
                folders.extend(damage::listed(&dir.join("groups")));
                folders
            }
        }
    }
}
