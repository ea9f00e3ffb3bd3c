//! The first node of the bound over gRPC: the same rounds, with a tonic server in front of them.
//!
//! The service is written out by hand where others generate it: two methods are not worth a build script.

use super::super::node::run_rounds;
use super::super::shared::Shared;
use super::calls::Calls;
use super::stream::AppendStream;
use super::{Appended, Numbered, Record, APPEND, APPEND_STREAM, CONNECTION_WINDOW_BYTES, SERVICE, STREAM_WINDOW_BYTES};
use std::convert::Infallible;
use std::future::{ready, Future, Ready};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::{http, Service};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Calls and streams that a connection may have open, as with Balsa: nothing waits for its turn here.
const STREAMS_MAX: u32 = 4_096;
/// Threads of the runtime at most, as with Balsa.
const WORKERS_MAX: usize = 8;

/// Runs the first node. Returns when it fails.
///
/// # Errors
/// Those of `run_rounds`, or the server's.
pub fn lead(listener: TcpListener, followers: [SocketAddr; 2], file: PathBuf) -> io::Result<()> {
    let shared = Arc::new(Shared::default());
    let (ended, rounds) = oneshot::channel();
    let doors = shared.clone();
    thread::spawn(move || {
        let _ = ended.send(run_rounds(&shared, followers, &file)); // nobody listens if the server failed first
    });
    runtime()?.block_on(async {
        tokio::select! {
            ended = rounds => ended.map_err(io::Error::other)?,
            ended = serve(doors, listener) => ended,
        }
    })
}

/// As many threads as Balsa's: one for each core, but with two cores or fewer only one, for the rounds have theirs.
fn runtime() -> io::Result<Runtime> {
    match thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX) {
        0..=2 => Builder::new_current_thread().enable_all().build(),
        workers => Builder::new_multi_thread().worker_threads(workers).enable_all().build(),
    }
}

async fn serve(shared: Arc<Shared>, listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?).with_nodelay(Some(true));
    let calls = Arc::new(Calls::new(shared.clone()));
    let mut server = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    server.add_service(Bound { shared, calls }).serve_with_incoming(incoming).await.map_err(io::Error::other)
}

#[derive(Clone)]
struct Bound {
    shared: Arc<Shared>,
    calls: Arc<Calls>,
}

impl NamedService for Bound {
    const NAME: &'static str = SERVICE;
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for Bound {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let bound = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                APPEND => Grpc::new(ProstCodec::default()).unary(bound, request).await,
                APPEND_STREAM => Grpc::new(ProstCodec::default()).streaming(bound, request).await,
                other => Status::unimplemented(format!("the bound knows no {other}")).into_http(),
            })
        })
    }
}

impl UnaryService<Record> for Bound {
    type Response = Appended;
    type Future = Boxed<Result<Response<Appended>, Status>>;

    fn call(&mut self, request: Request<Record>) -> Self::Future {
        let acknowledged = self.calls.append(&request.get_ref().payload);
        Box::pin(async move {
            let count = acknowledged.await.map_err(|_| Status::unavailable("the rounds have ended"))?;
            Ok(Response::new(Appended { count }))
        })
    }
}

impl StreamingService<Numbered> for Bound {
    type Response = Numbered;
    type ResponseStream = AppendStream;
    type Future = Ready<Result<Response<AppendStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Numbered>>) -> Self::Future {
        ready(Ok(Response::new(AppendStream::new(self.shared.clone(), request.into_inner()))))
    }
}
