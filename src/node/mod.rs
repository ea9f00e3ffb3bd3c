//! One node: the only constructor of everything, in order, and the only place that takes it down again, in order.
//!
//! Up: data directory, doors' addresses, genesis, journal, links, driver, steward, doors. Down: streams end, leadership is
//! handed over, doors close, links flush. A failure of the journal skips all of that: the node ends where it stands, because
//! nothing it would still say could be kept.

pub mod config;
pub mod founding;
pub mod identity;
mod serve;
mod steward;

use crate::api::Doors;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::group::driver::{self, Connections, DriverError, DriverHandle, DriverOptions, LoopConnections};
use crate::group::observe::Observer;
use crate::ids::{GroupId, Incarnation, NodeId, ReplicaId};
use crate::journal::{self, Journal, JournalError, JournalIdentity, JournalOptions, Recovered};
use crate::limits::{JOURNAL_FILE_BYTES, SEGMENT_INDEX_STRIDE_BYTES, TAIL_CACHE_BYTES};
use crate::metadata::{Bootstrap, Machine, NodeRegistration};
use crate::peers::{BindError, Door, Events, Identity, PeerAddress, Peers, PeersOptions};
use crate::router::Router;
use crate::segments::SegmentsOptions;
use crate::watch;
use config::NodeConfig;
use founding::{found, FoundingError, FoundingOptions};
use identity::{DataDir, Genesis, IdentityError};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serve::{ClientDoor, ServeError};
use slog::{info, warn, Logger};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use steward::{first_base, Steward};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Events of peers that wait for the driver before the links wait.
const PEER_EVENTS_QUEUED_MAX: usize = 256;
/// A sync that takes longer than this costs the node its leadership.
const SYNC_SLOW_MS: u64 = 2_000;
/// A sync that takes longer than this ends the node.
const SYNC_HUNG_MS: u64 = 30_000;
/// How long a planned stop waits for the journal's last round and its mark.
const JOURNAL_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node finds around it: the parts that the simulator has its own of.
pub struct World {
    /// Its disk.
    pub disk: Arc<dyn Disk>,
    /// Its clock.
    pub clock: Clock,
    /// Where all its randomness comes from.
    pub seed: [u8; 32],
    /// Whoever looks on.
    pub observer: Option<Observer>,
    /// How large its files and caches get.
    pub sizes: Sizes,
    /// Among how many loops its groups are divided; at least one. More than one is of use where there are cores for them.
    pub loops: usize,
}

/// How large a node lets its files and caches get, where nobody needs a choice. The simulator takes small ones, so that a short
/// run rolls journals, seals segments and reads behind the caches.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// The journal's.
    pub journal: JournalOptions,
    /// Bytes of a segment between two entries of its sparse index.
    pub index_stride_bytes: u64,
    /// Bytes of a group's newest frames kept in memory for readers, and of its newest entries for followers.
    pub tail_cache_bytes: usize,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes {
            journal: JournalOptions::default(),
            index_stride_bytes: SEGMENT_INDEX_STRIDE_BYTES,
            tail_cache_bytes: TAIL_CACHE_BYTES,
        }
    }
}

/// Why a node could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory is refused.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The peers' address can't be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The clients' address can't be had, or its server failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The cluster can't be founded.
    #[error(transparent)]
    Founding(#[from] FoundingError),
    /// The journal is damaged or can't be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A group is damaged, or the running node failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

impl NodeError {
    /// Whether stored data was found to be damaged.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        match self {
            NodeError::Identity(error) => error.is_damage(),
            NodeError::Journal(error) => error.is_corruption(),
            NodeError::Driver(DriverError::Journal(error)) => error.is_corruption(),
            NodeError::Driver(DriverError::Segments { source, .. }) => source.is_corruption(),
            NodeError::Driver(DriverError::Recovery { .. }) => true,
            NodeError::Driver(_) | NodeError::Bind(_) | NodeError::Serve(_) | NodeError::Founding(_) => false,
        }
    }
}

/// Runs a node until `shutdown` completes or something fails that it must not survive.
///
/// # Errors
/// [`NodeError`]: what to do about it stands in its text.
pub async fn run(
    config: NodeConfig,
    world: World,
    log: Logger,
    shutdown: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    let mut random = StdRng::from_seed(world.seed);
    tokio::pin!(shutdown);
    let fresh = Incarnation(random_bytes(&mut random));
    let mut dir = DataDir::open(world.disk.clone(), &config.data_dir, config.node_id, fresh).await?;
    // Addresses first: one that is in use shall be told before anything is founded.
    let client_door = ClientDoor::bind(config.listen.client).await?;
    let peer_door = Door::bind(config.listen.peer, log.clone()).await?;
    info!(log, "node starts"; "node" => %config.node_id, "clients" => %client_door.address(),
        "peers" => %peer_door.local_address(), "dir" => %config.data_dir.display());

    if config.reserve_bytes < 4 * JOURNAL_FILE_BYTES {
        warn!(log, "the reserve of disk space is small: a journal that has to grow on a full disk ends the node";
            "reserve_bytes" => config.reserve_bytes, "advised" => 4 * JOURNAL_FILE_BYTES);
    }
    let founding = founding_options(&config);
    let genesis = tokio::select! {
        biased;
        founded = found(&peer_door, &mut dir, &founding, &log) => founded?,
        () = &mut shutdown => return Ok(()),
    };
    let (journal, recovered) = open_journal(&mut dir, &world, &log).await?;

    let me = Identity {
        cluster_id: genesis.cluster_id,
        node_id: config.node_id,
        incarnation: dir.incarnation(),
        boot: random.next_u64(),
    };
    let (events, peer_events): (Vec<_>, Vec<_>) =
        (0..world.loops.max(1)).map(|_| mpsc::channel(PEER_EVENTS_QUEUED_MAX)).unzip();
    let events = Events::new(events, driver::loop_of);
    let options = PeersOptions { me, peers: founders(&genesis), seed: random.next_u64(), log: log.clone() };
    let peers = Peers::start(peer_door, options, events);
    let loops: Vec<LoopConnections> = journal::spawn(journal, peer_events.len(), log.clone())
        .into_iter()
        .zip(peer_events)
        .map(|((journal, reports), peer_events)| LoopConnections { peer_events, journal, reports })
        .collect();
    let closing = loops[0].journal.clone();
    let (led, leads) = mpsc::unbounded_channel();
    let hosts_metadata = recovered.groups.contains_key(&GroupId::METADATA);
    let connections =
        Connections { disk: world.disk.clone(), clock: world.clock.clone(), peers: peers.clone(), loops, led };
    let options = driver_options(&config, dir.path(), me.boot, random.next_u64(), &world);
    let (begun, count) = (Instant::now(), recovered.groups.len());
    let (driver, mut failed) = driver::start::<Machine>(options, connections, recovered, log.clone()).await?;
    info!(log, "groups are up"; "ms" => begun.elapsed().as_millis() as u64, "groups" => count);

    let metadata = tokio::select! {
        biased;
        failure = &mut failed => return Err(failure.into()),
        view = host_metadata(&driver, config.node_id, &genesis, hosts_metadata) => view,
        () = &mut shutdown => return Ok(()),
    };
    let patience = Duration::from_millis(2 * config.election_timeout_ms());
    let router = Router::new(config.node_id, driver.clone(), peers.clone(), metadata, patience);
    let steward = Steward {
        router: router.clone(),
        me: registration(&config, dir.incarnation()),
        bootstrap: bootstrap(&genesis),
        log: log.clone(),
    };
    let steward = tokio::spawn(steward.run(leads));
    let (stopping, stopping_seen) = watch::channel(false);
    let doors = Doors::new(router, stopping_seen, random.next_u64());
    let mut served = client_door.serve(doors);

    let ended = tokio::select! {
        biased;
        failure = &mut failed => Err(failure.into()),
        failure = served.failed() => Err(failure.into()),
        () = &mut shutdown => Ok(()),
    };
    steward.abort();
    if ended.is_ok() {
        info!(log, "stopping: handing over leadership");
        tokio::select! {
            biased;
            failure = &mut failed => return Err(failure.into()),
            _ = driver.hand_over() => {}
        }
        stopping.send_replace(true);
        served.stop().await;
        peers.shutdown().await;
        // A disk that hangs must not hold up the stop: nothing that is not synced was promised.
        let _ = tokio::time::timeout(JOURNAL_CLOSE_TIMEOUT, closing.close()).await;
        info!(log, "stopped");
    }
    ended
}

/// Opens the journal, or creates the first one of this directory.
async fn open_journal(dir: &mut DataDir, world: &World, log: &Logger) -> Result<(Journal, Recovered), NodeError> {
    let (disk, path, options) = (world.disk.clone(), dir.journal_path(), world.sizes.journal);
    if !dir.journal_created() {
        let owner = JournalIdentity { node_id: dir.node(), incarnation: dir.incarnation() };
        let journal = Journal::create(disk, path, options, owner).await?;
        dir.record_journal_created().await?;
        return Ok((journal, Recovered::default()));
    }
    let begun = Instant::now();
    let (journal, recovered) = Journal::open(disk, path, options).await?;
    info!(log, "journal is read"; "ms" => begun.elapsed().as_millis() as u64, "bytes" => recovered.bytes_read,
        "rounds" => recovered.rounds, "groups" => recovered.groups.len());
    if let Some(cut) = &recovered.cut {
        warn!(log, "a half-written round at the journal's end was cut; nothing in it was acknowledged"; "cut" => ?cut);
    }
    Ok((journal, recovered))
}

/// Has the driver host group 0, unless the journal holds it, and waits until it does.
async fn host_metadata(
    driver: &DriverHandle<Machine>,
    node: NodeId,
    genesis: &Genesis,
    hosted: bool,
) -> crate::router::View {
    if !hosted {
        let members = bootstrap(genesis).control_members();
        let numbers = |replicas: &[ReplicaId]| replicas.iter().map(|replica| replica.0).collect();
        let base = first_base(numbers(&members.voters), numbers(&members.learners), Machine::initial_metadata());
        let _ = driver.host(GroupId::METADATA, ReplicaId::founding(node), base).await;
    }
    // The driver publishes a group once it is open; if it fails instead, the node ends through its own signal.
    match driver.view_once_hosted(GroupId::METADATA).await {
        Some(view) => view,
        None => std::future::pending().await,
    }
}

fn random_bytes(random: &mut StdRng) -> [u8; 16] {
    let mut bytes = [0; 16];
    random.fill_bytes(&mut bytes);
    bytes
}

fn founding_options(config: &NodeConfig) -> FoundingOptions {
    let me = config.me();
    FoundingOptions {
        founders: config.nodes.iter().map(|node| (node.id, node.peer.clone())).collect(),
        client_address: me.client.clone(),
        peer_address: me.peer.clone(),
    }
}

fn founders(genesis: &Genesis) -> std::collections::BTreeMap<NodeId, PeerAddress> {
    let address = |node: &identity::FoundingNode| PeerAddress {
        incarnation: Some(node.incarnation),
        address: node.peer_address.clone(),
    };
    genesis.founders.iter().map(|(id, node)| (*id, address(node))).collect()
}

fn registration(config: &NodeConfig, incarnation: Incarnation) -> NodeRegistration {
    let me = config.me();
    NodeRegistration {
        id: config.node_id,
        incarnation,
        client_address: me.client.as_str().into(),
        peer_address: me.peer.as_str().into(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

fn bootstrap(genesis: &Genesis) -> Bootstrap {
    let founders = genesis.founders.iter().map(|(id, node)| NodeRegistration {
        id: *id,
        incarnation: node.incarnation,
        client_address: node.client_address.as_str().into(),
        peer_address: node.peer_address.as_str().into(),
        version: env!("CARGO_PKG_VERSION").into(),
    });
    Bootstrap { cluster_id: genesis.cluster_id, founders: founders.collect() }
}

fn driver_options(config: &NodeConfig, dir: &Path, boot: u64, seed: u64, world: &World) -> DriverOptions {
    let segments = SegmentsOptions {
        segment_bytes: config.segment_bytes,
        index_stride_bytes: world.sizes.index_stride_bytes,
        tail_cache_bytes: world.sizes.tail_cache_bytes,
        ..SegmentsOptions::of(GroupId::METADATA)
    };
    DriverOptions {
        node: config.node_id,
        boot,
        seed,
        tick_ms: config.tick_ms,
        election_ticks: config.election_ticks,
        groups_dir: dir.join("groups"),
        segments,
        sync_slow_ticks: SYNC_SLOW_MS / config.tick_ms,
        sync_hung_ticks: SYNC_HUNG_MS / config.tick_ms,
        reserve_bytes: config.reserve_bytes,
        observer: world.observer.clone(),
    }
}
