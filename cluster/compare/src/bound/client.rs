//! The bound's load: one thread for each connection, which keeps its share of requests in flight.

use super::inbox::Inbox;
use crate::failure::Failure;
use crate::load::{Acks, Load, Measured, Timing, Window};
use crate::servers::CpuProbe;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A first node that says nothing for so long is taken for dead.
const PATIENCE: Duration = Duration::from_secs(30);

/// Loads the first node at `address`, over at most `connections` connections.
///
/// # Errors
/// `Failed` with what the socket says.
pub async fn drive(
    address: SocketAddr,
    load: &Load,
    connections: usize,
    timing: Timing,
    probe: CpuProbe,
) -> Result<Measured, Failure> {
    let window = Window::begin(timing);
    let mut answers = Vec::new();
    for share in load.shares(connections) {
        let (load, (done, answer)) = (*load, oneshot::channel());
        thread::spawn(move || {
            // Nobody listens any more if the comparison was interrupted.
            let _ = done.send(keep_in_flight(address, &load, share, window));
        });
        answers.push(answer);
    }
    let all = async {
        let mut total = Acks::default();
        for answer in answers {
            let acks = answer.await.map_err(|error| Failure::of("the bound's client", error))?;
            total.add(&acks.map_err(|error| Failure::of("the bound's client", error))?);
        }
        Ok::<Acks, Failure>(total)
    };
    let (total, cpu) = tokio::try_join!(all, async { Ok(window.cpu(probe).await) })?;
    total.measured(&window, cpu)
}

fn keep_in_flight(address: SocketAddr, load: &Load, share: usize, window: Window) -> io::Result<Acks> {
    let mut node = TcpStream::connect(address)?;
    node.set_nodelay(true)?;
    node.set_read_timeout(Some(PATIENCE))?;
    let requests = request(load).repeat(share);
    let each = requests.len() / share;
    let mut acks = Acks::default();
    let mut sent: VecDeque<Instant> = VecDeque::with_capacity(share);
    let mut inbox = Inbox::default();
    let mut free = share;
    loop {
        let now = Instant::now();
        if window.is_over(now) {
            return Ok(acks);
        }
        node.write_all(&requests[..free * each])?;
        sent.extend(std::iter::repeat_n(now, free));
        if !inbox.fill(&node)? {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the first node is gone"));
        }
        free = acknowledged(&mut inbox);
        let now = Instant::now();
        for since in sent.drain(..free) {
            if window.holds(now) {
                acks.note(now - since, load.batch);
            }
        }
    }
}

/// One request: a record, or a batch of them in one piece.
fn request(load: &Load) -> Vec<u8> {
    let payload = load.record().repeat(load.batch);
    [&(payload.len() as u32).to_le_bytes()[..], &payload].concat()
}

fn acknowledged(inbox: &mut Inbox) -> usize {
    let counts = inbox.bytes().chunks_exact(4);
    let whole = counts.len() * 4;
    let count = counts.map(|count| u32::from_le_bytes(count.try_into().expect("four bytes")) as usize).sum();
    inbox.used(whole);
    count
}
