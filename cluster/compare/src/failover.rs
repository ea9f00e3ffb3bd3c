//! How long nobody can write when a leader is killed.

use crate::failure::Failure;
use crate::ground::Ground;
use crate::peers::{Peer, NODES};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// How long one append after the other is made before the leader is killed.
const LIGHT_LOAD: Duration = Duration::from_secs(2);
/// An append that takes longer is given up and made again elsewhere.
const ATTEMPT_MAX: Duration = Duration::from_millis(500);
/// After a refusal; a client that never paused would take the processor from those who elect.
const PAUSE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a cluster, appends one record at a time, kills the leader with `kill -9`, and returns the time until the next append is
/// acknowledged. The cluster is stopped afterwards.
///
/// # Errors
/// What the peer says, or that nothing was acknowledged for a minute.
pub async fn measure(peer: &mut dyn Peer, ground: &Ground) -> Result<Duration, Failure> {
    peer.start(ground).await?;
    let leader = peer.leader().await?;
    let began = Instant::now();
    while began.elapsed() < LIGHT_LOAD {
        attempt(peer, leader).await?;
    }
    let leader = peer.leader().await?;
    let killed = Instant::now();
    peer.servers().kill(leader);
    let mut node = leader;
    loop {
        node = (node + 1) % NODES;
        if node == leader {
            continue;
        }
        match attempt(peer, node).await {
            Ok(()) => return Ok(killed.elapsed()),
            Err(failure) if killed.elapsed() > PATIENCE => {
                return Err(Failure::Failed(format!(
                    "nothing was acknowledged within {PATIENCE:?}: {}",
                    failure.told()
                )));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn attempt(peer: &mut dyn Peer, node: usize) -> Result<(), Failure> {
    let made = timeout(ATTEMPT_MAX, peer.attempt(node)).await;
    made.unwrap_or_else(|_| Err(Failure::Failed(format!("no acknowledgement within {ATTEMPT_MAX:?}"))))
}
