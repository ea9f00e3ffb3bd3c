//! One machine of the cluster: its disk, its clock, and the process that runs on it or doesn't.
//!
//! A process is the shipped node, `balsa::node::run`, told its small files and who looks on. It ends by itself (its world is told with
//! what error) or is ended: then its disk is frozen first, because destructors run in the simulation, and the next life
//! finds what a kill or a power failure leaves.

use super::options::Options;
use super::stage::{now_us, Stage};
use crate::rules::Down;
use balsa::clock::Clock;
use balsa::disk::sim::{Operation, OperationKind, SimDisk};
use balsa::group::observe::Observed;
use balsa::ids::{GroupId, NodeId};
use balsa::node::config::{Listen, NodeAddresses, NodeConfig};
use balsa::node::{NodeError, World};
use madsim::runtime::Handle;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Where a node's data lies on its disk.
pub const DATA_DIR: &str = "/balsa";

/// A node's process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Process {
    Running,
    /// Standing still.
    Paused,
    /// Not there; may be started.
    Down,
    /// It refuses to start for good, and why.
    Refusing(String),
}

/// How a process is ended from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// What was written survives, synced or not.
    Kill,
    /// Unsynced bytes are lost, kept or torn.
    PowerLoss,
}

/// What the world is told by its machines, and by what looks on at them.
#[derive(Debug)]
pub enum Happened {
    /// A process ended: by itself with this result, or from outside.
    Ended { node: u32, result: Option<Result<(), NodeError>> },
    /// A node shall be ended after a moment.
    EndLater { node: u32, end: End, after: Duration },
    /// All nodes shall be ended.
    EndAll { end: End },
}

struct State {
    disk: SimDisk,
    process: Process,
    life: u32,
    /// Its directory was emptied since the cluster was founded.
    wiped: bool,
    /// All that its journal holds is on record as synced: rot there can't be taken for a torn write.
    marked: bool,
    /// Tells the process to stop.
    stop: Option<oneshot::Sender<()>>,
    rng: StdRng,
}

/// What looks on at a node's steps and its disk's operations, beside the trace.
pub trait Watch: Send + Sync {
    fn step(&self, machine: &Machine, group: GroupId, observed: &Observed<'_>);
    fn operation(&self, machine: &Machine, operation: &Operation);
}

/// What the next start of a machine runs. A node is no future that can move between threads, so it has to be made on the machine.
type Next = Arc<Mutex<Option<Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>>>>;

/// See the module's text.
pub struct Machine {
    pub id: u32,
    pub sim: madsim::task::NodeId,
    pub clock: Clock,
    config: NodeConfig,
    options: Arc<Options>,
    stage: Stage,
    told: mpsc::UnboundedSender<Happened>,
    next: Next,
    state: Mutex<State>,
}

pub fn client_address(node: u32) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 7400))
}

fn peer_address(node: u32) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 7401))
}

/// Whether what a life leaves behind is to be compared with the next one.
fn left_behind(damaged: bool) -> Down {
    if damaged {
        Down::Damaged
    } else {
        Down::Intact
    }
}

impl Machine {
    pub fn new(
        id: u32,
        options: &Arc<Options>,
        stage: &Stage,
        told: mpsc::UnboundedSender<Happened>,
        seed: u64,
    ) -> Machine {
        let handle = Handle::current();
        let next = Next::default();
        let begin = next.clone();
        let sim = handle.create_node().name(format!("n{id}")).ip(client_address(id).ip()).init(move || {
            let process = begin.lock().unwrap_or_else(PoisonError::into_inner).take();
            async move {
                if let Some(process) = process {
                    process().await;
                }
            }
        });
        let sim = sim.build();
        Machine {
            id,
            sim: sim.id(),
            clock: Clock::default(),
            config: config(id, options),
            options: options.clone(),
            stage: stage.clone(),
            told,
            next,
            state: Mutex::new(State {
                disk: SimDisk::new(),
                process: Process::Down,
                life: 0,
                wiped: false,
                marked: false,
                stop: None,
                rng: StdRng::seed_from_u64(seed),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn process(&self) -> Process {
        self.state().process.clone()
    }

    pub fn is_running(&self) -> bool {
        self.state().process == Process::Running
    }

    /// The disk of the present life, or what the next one will find.
    pub fn disk(&self) -> SimDisk {
        self.state().disk.clone()
    }

    /// Starts the process, if it is down.
    pub fn start(self: &Arc<Self>, watch: &Arc<dyn Watch>) {
        let (stop, stopped) = oneshot::channel();
        let (disk, life, seed) = {
            let mut state = self.state();
            if state.process != Process::Down {
                return;
            }
            state.process = Process::Running;
            state.life += 1;
            state.stop = Some(stop);
            (state.disk.clone(), state.life, state.rng.gen::<[u8; 32]>())
        };
        self.stage.event(self.id, "start", &[life.into()], || format!("life {life}"));
        self.prepare(&disk, seed, watch.clone());
        let world = World {
            disk: Arc::new(disk.clone()),
            clock: self.clock.clone(),
            seed,
            observer: Some(self.observer(life, watch.clone())),
            sizes: self.options.sizes,
            loops: self.options.loops,
        };
        let (machine, config) = (self.clone(), self.config.clone());
        let log = super::log::logger(&self.stage, self.id);
        let process = move || -> Pin<Box<dyn Future<Output = ()>>> {
            Box::pin(async move {
                let shutdown = async {
                    if stopped.await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                let result = balsa::node::run(config, world, log, shutdown).await;
                machine.ended_by_itself(life, &disk, result);
            })
        };
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(process));
        Handle::current().restart(self.sim);
    }

    /// What this life's disk is like, and who is told of what it does.
    fn prepare(self: &Arc<Self>, disk: &SimDisk, seed: [u8; 32], watch: Arc<dyn Watch>) {
        disk.seed_delays(u64::from_le_bytes(std::array::from_fn(|at| seed[at])));
        self.usual_delays(disk);
        let machine = self.clone();
        disk.set_onlooker(Some(Arc::new(move |operation: &Operation| {
            let Operation { kind, path, position, len } = operation;
            let numbers = [*kind as u64, *position, *len, hash_of(path)];
            machine
                .stage
                .event(machine.id, "disk", &numbers, || format!("{kind:?} {} {position}+{len}", path.display()));
            machine.note_mark(operation);
            watch.operation(&machine, operation);
        })));
    }

    fn note_mark(&self, operation: &Operation) {
        let name = operation.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match operation.kind {
            OperationKind::Write if name.starts_with("journal-") => self.state().marked = false,
            OperationKind::Sync if name == "marks" => self.state().marked = true,
            _ => {}
        }
    }

    /// A file of this machine, which is down, was damaged. Where the end of a journal is not on record as synced, rot can be taken for a
    /// torn write: what a start finds then is not compared.
    pub fn rotted(&self, path: &Path) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == "marks" {
            self.state().marked = false;
        }
        if name.starts_with("journal-") && !self.state().marked {
            self.stage.hit("rot.unmarked");
            self.stage.node_down(self.id, Down::Damaged);
        }
    }

    /// Neither slow nor hung.
    pub fn usual_delays(&self, disk: &SimDisk) {
        for kind in [
            OperationKind::Create,
            OperationKind::Read,
            OperationKind::SetLen,
            OperationKind::Rename,
            OperationKind::Remove,
        ] {
            disk.set_delay(kind, Duration::ZERO);
        }
        disk.set_delays(OperationKind::Write, self.options.write_delay.clone());
        disk.set_delays(OperationKind::Sync, self.options.sync_delay.clone());
        disk.set_delays(OperationKind::SyncDir, self.options.sync_delay.clone());
    }

    fn observer(self: &Arc<Self>, life: u32, watch: Arc<dyn Watch>) -> balsa::group::observe::Observer {
        let machine = self.clone();
        Arc::new(move |group: GroupId, observed: Observed<'_>| {
            let wiped = {
                let state = machine.state();
                if state.life != life || state.process == Process::Down {
                    return; // the driver's turn goes on after its process was ended within it; nothing of it gets out
                }
                state.wiped
            };
            if wiped {
                let what = format!("node {} was wiped, and hosts group {group} all the same", machine.id);
                machine.stage.broke("wiped-node-refused", what, &[machine.id]);
            }
            machine.stage.observe(now_us(), machine.id, group, &observed);
            watch.step(&machine, group, &observed);
        })
    }

    fn ended_by_itself(&self, life: u32, disk: &SimDisk, result: Result<(), NodeError>) {
        {
            let mut state = self.state();
            if state.life != life || state.process == Process::Down {
                return;
            }
            state.process = Process::Down;
            state.disk = disk.restart();
        }
        self.stage.event(self.id, "ended", &[life.into()], || match &result {
            Ok(()) => "ended".to_owned(),
            Err(error) => balsa::telemetry::chain(error),
        });
        self.stage.node_down(self.id, left_behind(self.options.over_budget));
        let _ = self.told.send(Happened::Ended { node: self.id, result: Some(result) });
        Handle::current().kill(self.sim);
    }

    /// Ends the process where it stands. False if there is none.
    pub fn end(&self, how: End) -> bool {
        let life = {
            let mut state = self.state();
            if !matches!(state.process, Process::Running | Process::Paused) {
                return false;
            }
            state.process = Process::Down;
            let seed = state.rng.gen();
            state.disk = match how {
                End::Kill => state.disk.restart(),
                End::PowerLoss => state.disk.crash(seed),
            };
            state.life
        };
        self.stage.event(self.id, "end", &[life.into(), how as u64], || format!("{how:?}"));
        self.stage.node_down(self.id, left_behind(self.options.over_budget));
        Handle::current().kill(self.sim);
        let _ = self.told.send(Happened::Ended { node: self.id, result: None });
        true
    }

    /// The power of a machine whose process is down fails, too: what was written and not synced is in danger still.
    pub fn lose_power_while_down(&self) {
        let mut state = self.state();
        if state.process == Process::Down {
            let seed = state.rng.gen();
            state.disk = state.disk.crash(seed);
        }
    }

    /// Asks the process to stop in order, which takes it a while. False if it can't be asked.
    pub fn stop(&self) -> bool {
        let mut state = self.state();
        let stop = if state.process == Process::Running { state.stop.take() } else { None };
        stop.is_some_and(|stop| stop.send(()).is_ok())
    }

    pub fn pause(&self) -> bool {
        let mut state = self.state();
        if state.process != Process::Running {
            return false;
        }
        state.process = Process::Paused;
        Handle::current().pause(self.sim);
        true
    }

    pub fn resume(&self) {
        let mut state = self.state();
        if state.process == Process::Paused {
            state.process = Process::Running;
            Handle::current().resume(self.sim);
        }
    }

    /// It won't start again.
    pub fn gives_up(&self, why: String) {
        self.state().process = Process::Refusing(why);
    }

    /// The next life finds an empty disk.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.disk.freeze();
        state.disk = SimDisk::new();
        state.wiped = true;
    }

    pub fn is_wiped(&self) -> bool {
        self.state().wiped
    }

    pub fn life(&self) -> u32 {
        self.state().life
    }
}

fn config(id: u32, options: &Options) -> NodeConfig {
    NodeConfig {
        node_id: NodeId(id),
        data_dir: PathBuf::from(DATA_DIR),
        listen: Listen { client: client_address(id), peer: peer_address(id) },
        nodes: (1..=options.nodes)
            .map(|id| NodeAddresses {
                id: NodeId(id),
                client: client_address(id).to_string(),
                peer: peer_address(id).to_string(),
            })
            .collect(),
        log_level: slog::Level::Info,
        tick_ms: options.tick_ms,
        election_ticks: options.election_ticks,
        reserve_bytes: options.reserve_bytes(),
        segment_bytes: options.segment_bytes,
    }
}

fn hash_of(path: &Path) -> u64 {
    let bytes = path.as_os_str().as_encoded_bytes();
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
