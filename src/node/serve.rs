//! The clients' address: bound first, served once the node is up, stopped before it goes down.

use crate::api::Doors;
use crate::watch;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::transport::Server;

/// How long open requests may take to finish at a planned stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Calls and streams one connection may have open.
const STREAMS_MAX: u32 = 4_096;
/// A client that is silent is asked whether it still lives, so that those who follow a log and died leave nothing behind.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// HTTP/2 windows: a few batches of a stream, more for a connection.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Why clients can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address can't be had.
    #[error("can't listen for clients on {address}; free it, or choose another address for this node's clients")]
    Bind {
        /// Where we meant to listen.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The server ended.
    #[error("the server for clients on {address} failed")]
    Ended {
        /// Where it listened.
        address: SocketAddr,
        /// What it says.
        source: Option<tonic::transport::Error>,
    },
}

/// An address that is ours.
pub(super) struct ClientDoor {
    address: SocketAddr,
    #[cfg(not(madsim))]
    listener: tokio::net::TcpListener,
}

/// A server under way.
pub(super) struct Served {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<Option<tonic::transport::Error>>,
}

impl ClientDoor {
    /// Takes the address.
    ///
    /// # Errors
    /// If it is in use or not ours.
    pub async fn bind(address: SocketAddr) -> Result<ClientDoor, ServeError> {
        #[cfg(not(madsim))]
        {
            let bound = tokio::net::TcpListener::bind(address).await.and_then(|listener| {
                let address = listener.local_addr()?;
                Ok(ClientDoor { address, listener })
            });
            bound.map_err(|source| ServeError::Bind { address, source })
        }
        #[cfg(madsim)]
        Ok(ClientDoor { address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets clients in.
    pub fn serve(self, doors: Doors) -> Served {
        let address = self.address;
        let (stop, mut stopped) = watch::channel(false);
        let (told, ended) = oneshot::channel();
        let stopping = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        tokio::spawn(async move {
            let _ = told.send(self.run(doors, stopping).await.err());
        });
        Served { address, stop, ended }
    }

    #[cfg(not(madsim))]
    async fn run(
        self,
        doors: Doors,
        stopping: impl std::future::Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        use crate::client::wire::DESCRIPTORS;
        let (health, health_service) = tonic_health::server::health_reporter();
        doors.set_serving(&health).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .build_v1()
            .expect("the descriptors come out of our own build");
        let incoming = tonic::transport::server::TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let server = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let routes = doors.on(server).add_service(health_service).add_service(reflection);
        routes.serve_with_incoming_shutdown(incoming, stopping).await
    }

    #[cfg(madsim)]
    async fn run(
        self,
        doors: Doors,
        stopping: impl std::future::Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let _ = (STREAMS_MAX, STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT);
        let (server, address) = (Server::builder(), self.address);
        tokio::select! {
            biased;
            ended = doors.on(server).serve(address) => ended,
            () = stopping => Ok(()),
        }
    }
}

impl Served {
    /// Completes when the server ends by itself.
    pub async fn failed(&mut self) -> ServeError {
        let source = (&mut self.ended).await.ok().flatten();
        ServeError::Ended { address: self.address, source }
    }

    /// Takes no new requests, and waits a moment for the open ones.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(STOP_TIMEOUT, self.ended).await;
    }
}
