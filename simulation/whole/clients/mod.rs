//! The clients of a run: what they share, and one task for each, on machines of their own.
//!
//! Each draws what it does from a generator of its own, goes through any node or through the shipped client, waits for answers with
//! patience that it draws too, and records what it was told. None checks anything: the history's checker does, at the end.

mod appends;
mod catalog;
pub mod doors;
mod producing;
mod reads;

use super::machine::client_address;
use super::options::Options;
use super::stage::{now_us, Stage};
use crate::history::PartitionKey;
use madsim::runtime::{Handle, NodeHandle};
use madsim::task::JoinHandle;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// A partition that lives as long as the run.
#[derive(Clone, Debug)]
pub struct Log {
    pub topic: String,
    pub partition: u32,
    pub group: u64,
    pub key: PartitionKey,
}

/// What all clients share.
pub struct Shared {
    pub options: Arc<Options>,
    pub stage: Stage,
    pub logs: Vec<Log>,
    next_payload: AtomicU64,
    stopped: AtomicBool,
}

impl Shared {
    pub fn new(options: Arc<Options>, stage: Stage, logs: Vec<Log>) -> Shared {
        Shared { options, stage, logs, next_payload: AtomicU64::new(1), stopped: AtomicBool::new(false) }
    }

    /// Numbers for so many records, never used before.
    pub fn payloads(&self, count: u32) -> u64 {
        self.next_payload.fetch_add(u64::from(count), Ordering::Relaxed)
    }

    /// Nobody begins anything new.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// One client.
pub struct Client {
    pub id: u32,
    pub rng: StdRng,
    pub shared: Arc<Shared>,
}

impl Client {
    pub fn stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Relaxed)
    }

    /// Any partition.
    pub fn log(&mut self) -> Log {
        let at = self.rng.gen_range(0..self.shared.logs.len());
        self.shared.logs[at].clone()
    }

    /// Any node.
    pub fn node(&mut self) -> u32 {
        self.rng.gen_range(1..=self.shared.options.nodes)
    }

    /// How long it waits for an answer.
    pub fn patience(&mut self) -> Duration {
        Duration::from_millis(self.rng.gen_range(300..3_000))
    }

    pub async fn think(&mut self) {
        let mean = self.shared.options.think_ms;
        let pause = Duration::from_millis(self.rng.gen_range(mean / 4..mean * 7 / 4));
        madsim::time::sleep(pause).await;
    }

    /// An operation begins.
    pub fn began(&self, operation: &'static str, numbers: &[u64]) -> u64 {
        let mut kept = self.shared.stage.lock();
        kept.operations += 1;
        kept.coverage.hit(operation);
        let now = now_us();
        kept.trace.event(now, 0, "begins", numbers, || format!("client {} {operation} {numbers:?}", self.id));
        now
    }

    /// What it led to.
    pub fn told(&self, numbers: &[u64], text: impl FnOnce() -> String) {
        self.shared.stage.event(0, "told", numbers, || format!("client {} {}", self.id, text()));
    }
}

/// The machines that clients run on, and their tasks.
pub struct Clients {
    pub machines: Vec<NodeHandle>,
    tasks: Vec<JoinHandle<()>>,
}

/// What a client does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Unary,
    Sessions,
    Streams,
    Producing,
    Reads,
    Follows,
    Topics,
    Watches,
}

/// Kinds that may take part, and how many of each.
const KINDS: &[Kind] = &[
    Kind::Sessions,
    Kind::Sessions,
    Kind::Streams,
    Kind::Producing,
    Kind::Reads,
    Kind::Follows,
    Kind::Topics,
    Kind::Watches,
    Kind::Watches,
];

impl Clients {
    pub fn start(shared: &Arc<Shared>, seed: u64) -> Clients {
        let mut clients = Clients { machines: Vec::new(), tasks: Vec::new() };
        let mut rng = StdRng::seed_from_u64(seed);
        // Some always append, and some read; of the others some stay away.
        let others = KINDS.iter().copied().filter(|_| rng.gen_bool(0.75)).collect::<Vec<_>>();
        for (id, kind) in (1..).zip([Kind::Unary, Kind::Unary, Kind::Reads, Kind::Reads].into_iter().chain(others)) {
            let machine =
                Handle::current().create_node().name(format!("c{id}")).ip([10, 0, 1, id as u8].into()).build();
            let client = Client { id, rng: StdRng::seed_from_u64(rng.gen()), shared: shared.clone() };
            clients.tasks.push(match kind {
                Kind::Unary => machine.spawn(appends::unary(client)),
                Kind::Sessions => machine.spawn(appends::in_sessions(client)),
                Kind::Streams => machine.spawn(appends::on_streams(client)),
                Kind::Producing => machine.spawn(producing::run(client)),
                Kind::Reads => machine.spawn(reads::unary(client)),
                Kind::Follows => machine.spawn(reads::follow(client)),
                Kind::Topics => machine.spawn(catalog::topics(client)),
                Kind::Watches => machine.spawn(catalog::watch(client)),
            });
            clients.machines.push(machine);
        }
        clients
    }

    /// Waits until all have ended what they were at.
    pub fn ended(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let tasks = std::mem::take(&mut self.tasks);
        async move {
            for task in tasks {
                let _ = task.await;
            }
        }
    }
}

/// Addresses of all nodes, for the shipped client.
pub fn servers(options: &Options) -> Vec<String> {
    (1..=options.nodes).map(|node| client_address(node).to_string()).collect()
}
