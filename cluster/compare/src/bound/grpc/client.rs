//! The load over gRPC: calls by tasks that repeat them, or pipelined streams, one for each connection.

use super::{Appended, Numbered, Record, APPEND, APPEND_STREAM, CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::failure::Failure;
use crate::lanes::{self, gather, open_lanes, Lane};
use crate::load::{Acks, Load, Measured, Mode, Timing, Window};
use crate::servers::CpuProbe;
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::iter::repeat_n;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

/// Loads the first node at `address`, over at most `connections` connections, in the load's mode.
///
/// # Errors
/// `Failed` with what the client says.
pub async fn drive(
    address: SocketAddr,
    load: &Load,
    connections: usize,
    timing: Timing,
    probe: CpuProbe,
) -> Result<Measured, Failure> {
    let lanes = open_lanes(load, connections, || GrpcLane::open(address, load)).await?;
    match load.mode {
        Mode::Unary => lanes::drive(lanes, load, timing, probe).await,
        Mode::Stream => drive_streams(lanes, load, timing, probe).await,
    }
}

/// Appends one record by a call.
///
/// # Errors
/// `Failed` with what the client says.
pub async fn append_one(address: SocketAddr) -> Result<(), Failure> {
    GrpcLane::open(address, &Load::single()).await?.append().await
}

/// One connection.
struct GrpcLane {
    client: Grpc<Channel>,
    payload: Bytes,
}

impl GrpcLane {
    async fn open(address: SocketAddr, load: &Load) -> Result<GrpcLane, Failure> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(failed)?.tcp_nodelay(true);
        let endpoint = endpoint
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let client = Grpc::new(endpoint.connect().await.map_err(failed)?);
        Ok(GrpcLane { client, payload: load.record().repeat(load.batch).into() })
    }
}

#[async_trait]
impl Lane for GrpcLane {
    async fn append(&self) -> Result<(), Failure> {
        let mut client = self.client.clone();
        client.ready().await.map_err(failed)?;
        let request = Request::new(Record { payload: self.payload.clone() });
        let answer = client.unary(request, PathAndQuery::from_static(APPEND), ProstCodec::default()).await;
        let _: Appended = answer.map_err(failed)?.into_inner();
        Ok(())
    }
}

async fn drive_streams(
    lanes: Vec<(GrpcLane, usize)>,
    load: &Load,
    timing: Timing,
    probe: CpuProbe,
) -> Result<Measured, Failure> {
    let window = Window::begin(timing);
    let (mut acks, mut tasks) = (Vec::new(), JoinSet::new());
    for (lane, share) in lanes {
        let noted = Arc::new(Mutex::new(Acks::default()));
        tasks.spawn(keep_in_flight(lane, share, noted.clone(), load.batch, window));
        acks.push(noted);
    }
    gather(tasks, acks, window, probe).await
}

async fn keep_in_flight(
    mut lane: GrpcLane,
    share: usize,
    noted: Arc<Mutex<Acks>>,
    records: usize,
    window: Window,
) -> Result<(), Failure> {
    let (send, wanted) = mpsc::unbounded_channel();
    let requests = Request::new(Requests { wanted, more: 0, number: 0, payload: lane.payload });
    lane.client.ready().await.map_err(failed)?;
    let path = PathAndQuery::from_static(APPEND_STREAM);
    let mut answers = lane.client.streaming(requests, path, ProstCodec::default()).await.map_err(failed)?.into_inner();
    let mut sent: VecDeque<Instant> = VecDeque::with_capacity(share);
    let (mut free, mut number) = (share, 0);
    loop {
        let now = Instant::now();
        if window.is_over(now) {
            return Ok(());
        }
        sent.extend(repeat_n(now, free));
        send.send(free).map_err(failed)?;
        free = poll_fn(|context| poll_acknowledged(&mut answers, &mut number, context)).await?;
        let now = Instant::now();
        let mut acks = noted.lock().expect("no task panics while it notes");
        for since in sent.drain(..free) {
            if window.holds(now) {
                acks.note(now - since, records);
            }
        }
    }
}

/// Waits for an answer, and takes all there are; `number` is that of the next.
fn poll_acknowledged(
    answers: &mut Streaming<Numbered>,
    number: &mut u64,
    context: &mut Context<'_>,
) -> Poll<Result<usize, Failure>> {
    let mut count = 0;
    loop {
        match Pin::new(&mut *answers).poll_next(context) {
            Poll::Ready(Some(Ok(answer))) if answer.number == *number => (count, *number) = (count + 1, *number + 1),
            Poll::Ready(Some(Ok(answer))) => {
                return Poll::Ready(Err(failed(format!("request {} was answered before {number}", answer.number))))
            }
            Poll::Ready(Some(Err(status))) => return Poll::Ready(Err(failed(status))),
            Poll::Ready(None) => return Poll::Ready(Err(failed("the first node ended the stream"))),
            Poll::Pending if count == 0 => return Poll::Pending,
            Poll::Pending => return Poll::Ready(Ok(count)),
        }
    }
}

/// The requests of one stream: as many as are wanted, all the same.
struct Requests {
    /// How many more, each time. Bounded by the lane's share.
    wanted: mpsc::UnboundedReceiver<usize>,
    more: usize,
    number: u64,
    payload: Bytes,
}

impl Stream for Requests {
    type Item = Numbered;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Numbered>> {
        while self.more == 0 {
            match self.wanted.poll_recv(context) {
                Poll::Ready(Some(more)) => self.more = more,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        let number = self.number;
        (self.more, self.number) = (self.more - 1, number + 1);
        Poll::Ready(Some(Numbered { number, payload: self.payload.clone() }))
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::of("the bound over gRPC", error)
}
