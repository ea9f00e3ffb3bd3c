//! The doors for clients: gRPC `balsa.v1`, one file per verb.
//!
//! A door checks what comes in against the limits, once; turns it into a command or a read; lets the [`Router`] find who must
//! act; and turns the outcome into an answer that names the leader. It holds no state but what is under way, and
//! decides nothing that the state machines must agree on.

mod append;
mod cluster;
pub mod errors;
mod log;
mod producers;
mod proxy;
mod read;
#[cfg(not(madsim))]
mod request_size;
mod room;
mod stream;
mod target;
mod topics;

use crate::client::wire;
use crate::group::driver::{forwarded, CommandError};
use crate::group::effects::ProposeError;
use crate::ids::{GroupId, NodeId};
use crate::limits::{APPENDS_HELD_BYTES_MAX, READS_HELD_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::reached;
use crate::router::{RouteError, Router};
use crate::watch;
use errors::ApiError;
use proxy::Proxies;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use room::ReadRoom;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// Bytes that one permit of an allowance stands for.
const PERMIT_BYTES: usize = 1 << 10;
/// How long a read waits for room before it is refused: other readers are given that long to take an answer.
const READ_ROOM_TIMEOUT: Duration = Duration::from_secs(10);

/// What all doors share. Cheap to clone.
#[derive(Clone)]
pub struct Doors {
    router: Router,
    held: Arc<Semaphore>,
    read_room: ReadRoom,
    proxies: Arc<Proxies>,
    /// Draws topics' ids.
    random: Arc<Mutex<StdRng>>,
    /// True once the node is about to stop: long streams end.
    stopping: watch::Receiver<bool>,
}

/// The service with its requests held against the bound on their size.
#[cfg(not(madsim))]
fn bounded<S>(service: S) -> request_size::Bounded<S> {
    request_size::Bounded(service)
}

/// In the simulation a message has no size on the wire.
#[cfg(madsim)]
fn bounded<S>(service: S) -> S {
    service
}

impl Doors {
    /// Doors in front of `router`. `stopping` turns true when the node is about to stop.
    #[must_use]
    pub fn new(router: Router, stopping: watch::Receiver<bool>, seed: u64) -> Doors {
        Doors {
            router,
            held: Arc::new(Semaphore::new(APPENDS_HELD_BYTES_MAX / PERMIT_BYTES)),
            read_room: ReadRoom::new(READS_HELD_BYTES_MAX, READ_ROOM_TIMEOUT),
            proxies: Arc::default(),
            random: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
            stopping,
        }
    }

    /// All services of `balsa.v1` as routes of one server.
    #[must_use]
    pub fn on(&self, mut server: tonic::transport::Server) -> tonic::transport::server::Router {
        use wire::{
            cluster_server::ClusterServer, log_server::LogServer, producers_server::ProducersServer,
            topics_server::TopicsServer,
        };
        server
            .add_service(bounded(TopicsServer::new(self.clone()).max_decoding_message_size(REQUEST_BYTES_MAX)))
            .add_service(bounded(LogServer::new(self.clone()).max_decoding_message_size(REQUEST_BYTES_MAX)))
            .add_service(bounded(ProducersServer::new(self.clone()).max_decoding_message_size(REQUEST_BYTES_MAX)))
            .add_service(bounded(ClusterServer::new(self.clone()).max_decoding_message_size(REQUEST_BYTES_MAX)))
    }

    /// Completes when the node is about to stop.
    async fn stopped(&self) {
        let mut stopping = self.stopping.clone();
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }

    /// Sixteen random bytes, laid out as a UUID of version 4.
    fn new_uuid(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.random.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).fill_bytes(&mut bytes);
        *uuid::Builder::from_random_bytes(bytes).as_uuid().as_bytes()
    }

    /// Tells health checks that all services are up.
    #[cfg(not(madsim))]
    pub async fn set_serving(&self, health: &tonic_health::server::HealthReporter) {
        use wire::{
            cluster_server::ClusterServer, log_server::LogServer, producers_server::ProducersServer,
            topics_server::TopicsServer,
        };
        health.set_serving::<TopicsServer<Doors>>().await;
        health.set_serving::<LogServer<Doors>>().await;
        health.set_serving::<ProducersServer<Doors>>().await;
        health.set_serving::<ClusterServer<Doors>>().await;
    }

    /// Takes room for `bytes` of appends, for as long as the permit lives.
    fn hold(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let permits = bytes.div_ceil(PERMIT_BYTES).max(1) as u32;
        self.held.clone().try_acquire_many_owned(permits).map_err(|_| {
            ApiError::Overloaded(format!("this node holds {APPENDS_HELD_BYTES_MAX} bytes of appends already"))
        })
    }

    /// The leader of a group in the words of the wire.
    fn leader(&self, group: GroupId) -> Option<wire::Leader> {
        let leader = self.router.leader(group)?;
        Some(wire::Leader { node: leader.node.0, term: leader.term.0, address: self.client_address(leader.node) })
    }

    fn client_address(&self, node: NodeId) -> String {
        self.router.catalog().node(node).map(|node| node.client_address.to_string()).unwrap_or_default()
    }

    /// A status that names the group's leader.
    fn status(&self, error: &ApiError, group: Option<GroupId>) -> Status {
        error.status(group.and_then(|group| self.leader(group)))
    }

    /// What a routing failure means to the client. Wherever a majority may be what is lacking, it names the nodes out of reach.
    fn route_failed(&self, what: String, group: GroupId, error: RouteError) -> ApiError {
        if error.may_have_happened() {
            return ApiError::Unknown { what, reason: error.to_string(), missing: self.router.missing(group) };
        }
        match error {
            RouteError::Here(CommandError::Propose(ProposeError::NoQuorum { silent, .. })) => {
                // A replica knows of silence in its own group alone, a follower of its leader's alone; the links know the rest.
                let silent: BTreeSet<NodeId> = silent.iter().map(|replica| replica.node()).collect();
                self.without(what, group, silent)
            }
            RouteError::Here(source) if !source.is_not_leader() => ApiError::Command { what, source },
            RouteError::There(error) if forwarded::is_disk_full(&error) => {
                let full = self.router.leader(group).map(|leader| vec![leader.node]).unwrap_or_default();
                ApiError::Command { what, source: CommandError::DiskFull { group, full } }
            }
            RouteError::There(error) if forwarded::is_overload(&error) => {
                ApiError::Overloaded(format!("{what}: {error}"))
            }
            _ => self.no_leader(what, group),
        }
    }

    /// Nobody leads `group`: for a moment, or because too many nodes are missing.
    fn no_leader(&self, what: String, group: GroupId) -> ApiError {
        self.without(what, group, BTreeSet::new())
    }

    /// Nobody leads, with these nodes silent, and those that cannot be reached.
    fn without(&self, what: String, group: GroupId, mut missing: BTreeSet<NodeId>) -> ApiError {
        missing.extend(self.router.missing(group));
        let missing: Vec<NodeId> = missing.into_iter().collect();
        if self.router.lacks_majority(group, &missing) {
            reached!("quorum told as lost");
            ApiError::NoQuorum { what, missing }
        } else {
            ApiError::NoLeader { what, missing }
        }
    }
}
