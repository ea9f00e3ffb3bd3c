//! One link to each peer: Raft messages of all groups in order, commands passed on to leaders, and the introductions of
//! founders.
//!
//! Knows nothing of groups: what arrives leaves through a channel of [`PeerEvent`]s that the node wires to its driver, and
//! what is to be sent comes in by [`Peers::send`] and [`Peers::forward`]. Decides nothing but whom to believe
//! ([`handshake`]) and what to drop when a peer does not keep up ([`outbox`]).
//!
//! ```text
//!  driver ── send ──> allowance ──> mailbox ──> link (outbox, window) ══ Link stream ══> inbound ──> PeerEvent ──> driver
//!         ── forward ─> allowance ─> calls ──> lane ════════════════ Forward stream ═══> forwarded ─> PeerEvent ──> driver
//! ```
//!
//! Invariants: messages of one node reach the driver of another in the order of the calls to [`Peers::send`] (some may be
//! missing, none doubled); two streams of the same node never deliver at the same time; everything queued is bounded by
//! bytes, and so is what is on its way, since the simulated network does not push back.
//!
//! One task per peer dials and sends; one per incoming stream receives. No lock is taken to send.

use crate::ids::{GroupId, Incarnation, NodeId, TimestampMs};
use crate::limits;
use crate::watch;
use bytes::Bytes;
use directory::{Directory, Peer};
use slog::{debug, warn, Logger};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

mod backoff;
mod directory;
mod door;
mod events;
mod forward;
mod forwarded;
pub mod handshake;
mod inbound;
mod introduce;
mod link;
mod outbox;

pub use door::{BindError, Door};
pub use events::{Events, PeerEvent};
pub use forward::{ForwardError, NotSent};
pub use forwarded::{Forwarded, Responder};
pub use handshake::{HandshakeError, Identity};
pub use introduce::{introduce, Founder, IntroduceError, Introduction};

/// Messages between nodes, generated from `proto/balsa/peers/peers.proto`.
#[allow(missing_docs, clippy::all)]
pub mod wire {
    tonic::include_proto!("balsa.peers");
}

/// How long a stream may take to greet, on either side.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a shutdown waits for what is queued to go out.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);
/// HTTP/2 windows: one whole batch of a stream, and a little more for all streams of a connection.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 12 << 20;

/// Where a peer is, as the catalog says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerAddress {
    /// The life of its data directory, if recorded. A node that comes with another one is refused.
    pub incarnation: Option<Incarnation>,
    /// `host:port` of its peer door.
    pub address: String,
}

/// What a node needs to speak with its peers.
#[derive(Debug)]
pub struct PeersOptions {
    /// Who we are.
    pub me: Identity,
    /// The nodes of the cluster; our own entry is passed over.
    pub peers: BTreeMap<NodeId, PeerAddress>,
    /// Seed of the jitter between attempts to reconnect.
    pub seed: u64,
    /// Where to log.
    pub log: Logger,
}

/// How far messages to one peer got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerStatus {
    /// The peer.
    pub node: NodeId,
    /// Whether messages go out to it now.
    pub connected: bool,
    /// Bytes that wait for it.
    pub queued_bytes: usize,
    /// Messages dropped so far: it was away, or did not keep up.
    pub dropped_messages: u64,
    /// Bytes of these messages.
    pub dropped_bytes: u64,
}

/// What a node says about itself with each batch; set by its driver.
#[derive(Debug, Default)]
struct LocalReport {
    clock_ms: AtomicU64,
    free_bytes: AtomicU64,
    reserve_reached: AtomicBool,
}

/// How far a shutdown got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Running,
    /// Links send what they hold, and end.
    Flushing,
    Closed,
}

/// What all tasks of the peers share.
struct Shared {
    me: Identity,
    seed: u64,
    log: Logger,
    directory: Directory,
    events: Events,
    report: LocalReport,
    stage: watch::Receiver<Stage>,
    /// The last refusal that was logged, so that a stubborn stranger fills no log.
    last_refusal: Mutex<String>,
}

/// Ends everything when the last handle goes.
struct Life {
    stage: watch::Sender<Stage>,
    links: Mutex<Vec<JoinHandle<()>>>,
    door: Door,
}

/// A handle on the links to all peers. Cheap to clone; when the last one is dropped, all links break.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
    life: Arc<Life>,
}

impl Peers {
    /// Opens the door to peers and starts to dial them. `events` should be read without pause: what is not taken is
    /// not acknowledged, and a peer that sees no progress for a second takes this node for lost.
    ///
    /// Must be called inside the runtime.
    #[must_use]
    pub fn start(door: Door, options: PeersOptions, events: impl Into<Events>) -> Peers {
        let PeersOptions { me, peers, seed, log } = options;
        let (stage_sender, stage) = watch::channel(Stage::Running);
        let (events, (directory, report, last_refusal)) = (events.into(), Default::default());
        let shared = Arc::new(Shared { me, seed, log, directory, events, report, stage, last_refusal });
        let started = Peers {
            shared: shared.clone(),
            life: Arc::new(Life { stage: stage_sender, links: Mutex::default(), door }),
        };
        started.set_peers(peers);
        started.life.door.open(shared);
        started
    }

    /// Queues messages for `to`, to go out in this order. Never blocks: when too much waits already, or the node is
    /// unknown or away, they are dropped and counted; Raft sends again.
    pub fn send(&self, to: NodeId, messages: Vec<wire::GroupMessage>) {
        let Some(peer) = self.shared.directory.find(to) else {
            debug!(self.shared.log, "no such peer, messages dropped"; "node" => %to, "messages" => messages.len());
            return;
        };
        peer.queue(messages);
    }

    /// Lets every peer hear from this node: with what waits for it or, if nothing does, with an empty batch. So each end of a
    /// link notices in time that the other is gone, even while no group has anything to say.
    pub fn beat(&self) {
        for peer in self.shared.directory.iter() {
            peer.queue(Vec::new());
        }
    }

    /// What to tell the peers with each batch from now on.
    pub fn set_local_report(&self, clock: TimestampMs, free_bytes: u64, reserve_reached: bool) {
        let report = &self.shared.report;
        report.clock_ms.store(clock.0, Ordering::Relaxed);
        report.free_bytes.store(free_bytes, Ordering::Relaxed);
        report.reserve_reached.store(reserve_reached, Ordering::Relaxed);
    }

    /// The catalog changed: links to new nodes start, those to nodes that are gone end, and a changed address or
    /// incarnation ends the present streams and connects anew. Must be called inside the runtime.
    pub fn set_peers(&self, mut peers: BTreeMap<NodeId, PeerAddress>) {
        let mut links = self.life.links.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        peers.remove(&self.shared.me.node_id);
        for peer in self.shared.directory.iter() {
            peer.learn(peers.remove(&peer.node));
        }
        for (node, address) in peers {
            let (peer, ends) = Peer::new(node);
            peer.learn(Some(address));
            let peer = Arc::new(peer);
            links.push(link::spawn(self.shared.clone(), peer.clone(), ends.mailbox));
            forward::spawn(self.shared.clone(), peer.clone(), ends.calls);
            self.shared.directory.add(peer);
        }
    }

    /// Passes a command on to `to`, once. Commands to the same node are proposed there in the order of these calls.
    ///
    /// # Errors
    /// [`ForwardError`]; it tells *did not happen* from *may have happened*.
    pub fn forward(
        &self,
        to: NodeId,
        group: GroupId,
        command: Bytes,
    ) -> impl Future<Output = Result<wire::Applied, ForwardError>> + Send + 'static {
        let asked = match self.shared.directory.find(to) {
            Some(peer) => peer.call(group, command),
            None => Err(NotSent::Unknown { node: to }),
        };
        async move {
            match asked?.await {
                Ok(answer) => answer,
                // The lane is gone with all it held: the node is stopping.
                Err(_) => Err(ForwardError::Broken { node: to }),
            }
        }
    }

    /// How the links are, in order of node.
    #[must_use]
    pub fn status(&self) -> Vec<PeerStatus> {
        let mut all: Vec<PeerStatus> = self.shared.directory.iter().filter_map(|peer| peer.status()).collect();
        all.sort_by_key(|status| status.node);
        all
    }

    /// Sends what is queued, for at most [`FLUSH_TIMEOUT`], then closes all streams and the door. Later messages are
    /// dropped.
    pub async fn shutdown(&self) {
        self.life.stage.send_replace(Stage::Flushing);
        let links = std::mem::take(&mut *self.life.links.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let deadline = tokio::time::Instant::now() + FLUSH_TIMEOUT;
        for link in links {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            // A link that is not done by then ends with the stage below.
            let _ = tokio::time::timeout(left, link).await;
        }
        self.life.stage.send_replace(Stage::Closed);
        self.life.door.close().await;
    }
}

impl Shared {
    /// Logs why somebody was refused; the same reason twice in a row only for those who debug.
    fn log_refusal(&self, reason: &str) {
        let mut last = self.last_refusal.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if *last == reason {
            debug!(self.log, "peer refused again"; "reason" => reason);
        } else {
            warn!(self.log, "peer refused"; "reason" => reason);
            reason.clone_into(&mut last);
        }
    }
}

/// Waits until the peers are closed or their last handle is gone.
async fn closed(stage: &mut watch::Receiver<Stage>) {
    let _ = stage.wait_for(|stage| *stage == Stage::Closed).await;
}

/// An error with all its causes in one line.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.ends_with(&line) {
            text = format!("{text}: {line}");
        }
        cause = error.source();
    }
    text
}

/// A client for one stream to `address`, connected.
async fn connect(
    address: &str,
    limit: Duration,
) -> Result<wire::peers_client::PeersClient<tonic::transport::Channel>, tonic::transport::Error> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(limit)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    let channel = endpoint.connect().await?;
    Ok(wire::peers_client::PeersClient::new(channel)
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX))
}
