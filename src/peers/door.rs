//! The address that peers reach us under, served from before the cluster is founded until the node stops.
//!
//! It opens in two steps: bound, it answers introductions (as soon as there is something to say) and tells links to come
//! again; once [`super::Peers::start`] opens it, links and forwarded commands are served too. So there is no moment at which
//! a peer is turned away for good because of where we are in our own start.
//!
//! Nothing that comes in is believed, and nothing is taken beyond `limits::PEER_MESSAGE_BYTES_MAX` at a time.

use super::introduce::Introduction;
use super::wire::peers_server::{Peers, PeersServer};
use super::{forwarded, inbound, wire, Shared, FLUSH_TIMEOUT};
use crate::ids::NodeId;
use crate::limits;
use crate::watch;
use slog::{debug, error, Logger};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status, Streaming};

/// Streams whose greeting is awaited at a time; more are told to come again.
const GREETINGS_MAX: usize = 32;
/// Streams and calls that one connection may have open.
const STREAMS_MAX: u32 = 16;
/// Silence after which the system asks whether the other end of a connection is still there, so that those of dead machines
/// do not pile up.
#[cfg(not(madsim))]
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(30);
/// Bytes of headers that one request may have.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Why the door can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("can't listen for peers on {address}; free it, or choose another address for this node's peers")]
pub struct BindError {
    /// Where we meant to listen.
    pub address: SocketAddr,
    /// What the system says.
    pub source: std::io::Error,
}

/// The peers' door. When it is dropped it closes.
pub struct Door {
    address: SocketAddr,
    state: Arc<State>,
    stop: watch::Sender<bool>,
    server: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    log: Logger,
    /// Bounds what strangers can make us hold: a first frame is decoded before we know whose it is.
    greetings: Arc<Semaphore>,
    introduction: Mutex<Option<Introduction>>,
    opened: OnceLock<Arc<Shared>>,
}

impl Door {
    /// Binds the address and answers there from now on.
    ///
    /// # Errors
    /// [`BindError`] if the address is in use or is not ours. In the simulation it is logged instead.
    pub async fn bind(address: SocketAddr, log: Logger) -> Result<Door, BindError> {
        let listener = Listener::bind(address).await.map_err(|source| BindError { address, source })?;
        let address = listener.address;
        let (introduction, opened) = Default::default();
        let greetings = Arc::new(Semaphore::new(GREETINGS_MAX));
        let state = Arc::new(State { log, greetings, introduction, opened });
        let (stop, stopped) = watch::channel(false);
        let server = Mutex::new(Some(tokio::spawn(serve(listener, state.clone(), stopped))));
        Ok(Door { address, state, stop, server })
    }

    /// Where it listens; with the port that the system chose if zero was asked for.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// What to say to those who introduce themselves from now on.
    pub fn introduce_as(&self, introduction: Introduction) {
        *self.state.introduction.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(introduction);
    }

    /// Lets links in.
    pub(super) fn open(&self, shared: Arc<Shared>) {
        let opened = self.state.opened.set(shared);
        assert!(opened.is_ok(), "a door is opened once");
    }

    /// Stops listening and waits a moment for the connections to end.
    pub(super) async fn close(&self) {
        self.stop.send_replace(true);
        let server = self.server.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(server) = server {
            let aborting = server.abort_handle();
            if tokio::time::timeout(FLUSH_TIMEOUT, server).await.is_err() {
                aborting.abort();
            }
        }
    }
}

async fn serve(listener: Listener, state: Arc<State>, mut stopped: watch::Receiver<bool>) {
    let log = state.log.clone();
    let service = PeersServer::new(Service { state })
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX);
    let router = tonic::transport::Server::builder()
        .initial_stream_window_size(super::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(super::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .tcp_nodelay(true)
        .add_service(service);
    let stop = async move {
        // An error means that the door was dropped.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    if let Err(error) = listener.serve(router, stop).await {
        error!(log, "the peers' door failed"; "error" => super::whole(&error));
    }
}

/// A bound address. Binding comes first and apart from serving, so that an address in use is a clear error before
/// anything else happens; the simulation can only do both at once.
struct Listener {
    address: SocketAddr,
    #[cfg(not(madsim))]
    listener: tokio::net::TcpListener,
}

impl Listener {
    #[cfg(not(madsim))]
    async fn bind(address: SocketAddr) -> std::io::Result<Listener> {
        let listener = tokio::net::TcpListener::bind(address).await?;
        Ok(Listener { address: listener.local_addr()?, listener })
    }

    #[cfg(not(madsim))]
    async fn serve(
        self,
        router: tonic::transport::server::Router,
        stop: impl std::future::Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let incoming = tonic::transport::server::TcpIncoming::from(self.listener)
            .with_nodelay(Some(true))
            .with_keepalive(Some(KEEPALIVE));
        router.serve_with_incoming_shutdown(incoming, stop).await
    }

    #[cfg(madsim)]
    async fn bind(address: SocketAddr) -> std::io::Result<Listener> {
        Ok(Listener { address })
    }

    #[cfg(madsim)]
    async fn serve(
        self,
        router: tonic::transport::server::Router,
        stop: impl std::future::Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        router.serve_with_shutdown(self.address, stop).await
    }
}

struct Service {
    state: Arc<State>,
}

impl Service {
    /// What links need, once there is a cluster.
    fn opened(&self) -> Result<Arc<Shared>, Status> {
        let opened = self.state.opened.get().cloned();
        opened.ok_or_else(|| Status::unavailable("the node is still starting; its cluster may not be founded yet"))
    }

    /// A turn to greet; dropped when that is done.
    fn greeting(&self) -> Result<OwnedSemaphorePermit, Status> {
        let turn = self.state.greetings.clone().try_acquire_owned();
        turn.map_err(|_| Status::unavailable(format!("{GREETINGS_MAX} streams have yet to greet; come again")))
    }
}

#[tonic::async_trait]
impl Peers for Service {
    type LinkStream = inbound::LinkStream;
    type ForwardStream = forwarded::ForwardStream;

    async fn link(&self, frames: Request<Streaming<wire::LinkFrame>>) -> Result<Response<Self::LinkStream>, Status> {
        let (shared, turn) = (self.opened()?, self.greeting()?);
        let accepted = inbound::accept(shared, turn, frames.into_inner()).await;
        accepted.map(Response::new).inspect_err(|status| self.log_ended("link", status))
    }

    async fn forward(
        &self,
        frames: Request<Streaming<wire::ForwardFrame>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let (shared, turn) = (self.opened()?, self.greeting()?);
        let accepted = forwarded::accept(shared, turn, frames.into_inner()).await;
        accepted.map(Response::new).inspect_err(|status| self.log_ended("forward", status))
    }

    async fn introduce(&self, said: Request<wire::Introduction>) -> Result<Response<wire::Introduction>, Status> {
        let to = NodeId(said.into_inner().node_id);
        let introduction = self.state.introduction.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let ours = introduction.ok_or_else(|| Status::unavailable("the node is still starting"))?;
        Ok(Response::new(ours.to_wire(to)))
    }
}

impl Service {
    fn log_ended(&self, what: &str, status: &Status) {
        debug!(self.state.log, "stream not accepted"; "what" => what, "reason" => status.message());
    }
}
