//! The closed loop for clients of our own process: lanes of connections, and tasks that append over them.

use crate::failure::Failure;
use crate::load::{Acks, Load, Measured, Timing, Window};
use crate::servers::CpuProbe;
use async_trait::async_trait;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Time after the end in which what is in flight may still be answered, before it is given up.
const GRACE: Duration = Duration::from_secs(30);

/// One connection to a peer, used by many tasks at once.
#[async_trait]
pub trait Lane: Send + Sync + 'static {
    /// Appends once, a record or a whole batch as it was opened for, and returns when the peer has acknowledged all of it.
    ///
    /// # Errors
    /// The peer's or its client's.
    async fn append(&self) -> Result<(), Failure>;
}

/// Opens the lanes for a load: one for each share.
///
/// # Errors
/// Those of `open`.
pub async fn open_lanes<L, F>(load: &Load, connections: usize, open: impl Fn() -> F) -> Result<Vec<(L, usize)>, Failure>
where
    L: Lane,
    F: std::future::Future<Output = Result<L, Failure>>,
{
    let mut lanes = Vec::new();
    for share in load.shares(connections) {
        lanes.push((open().await?, share));
    }
    Ok(lanes)
}

/// Drives each lane with its share of appends in flight, and measures.
///
/// # Errors
/// The first append's that fails: a rate with failures in it compares nothing.
pub async fn drive<L: Lane>(
    lanes: Vec<(L, usize)>,
    load: &Load,
    timing: Timing,
    probe: CpuProbe,
) -> Result<Measured, Failure> {
    let window = Window::begin(timing);
    let (mut acks, mut tasks) = (Vec::new(), JoinSet::new());
    for (lane, share) in lanes {
        let (lane, noted) = (Arc::new(lane), Arc::new(Mutex::new(Acks::default())));
        for _ in 0..share {
            tasks.spawn(repeat(lane.clone(), noted.clone(), load.batch, window));
        }
        acks.push(noted);
    }
    gather(tasks, acks, window, probe).await
}

/// Waits for client tasks that end with the window, and measures what they noted.
///
/// # Errors
/// The first task's that fails.
pub async fn gather(
    mut tasks: JoinSet<Result<(), Failure>>,
    acks: Vec<Arc<Mutex<Acks>>>,
    window: Window,
    probe: CpuProbe,
) -> Result<Measured, Failure> {
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(|error| Failure::of("a client task", error))??;
        }
        Ok::<(), Failure>(())
    };
    let all = async {
        let all = tokio::time::timeout_at(window.end() + GRACE, all).await;
        all.unwrap_or_else(|_| Err(Failure::Failed(format!("appends were not answered within {GRACE:?}"))))
    };
    let ((), cpu) = tokio::try_join!(all, async { Ok(window.cpu(probe).await) })?;
    let mut total = Acks::default();
    for noted in acks {
        total.add(&noted.lock().expect("no task panics while it notes"));
    }
    total.measured(&window, cpu)
}

async fn repeat<L: Lane>(lane: Arc<L>, noted: Arc<Mutex<Acks>>, records: usize, window: Window) -> Result<(), Failure> {
    loop {
        let since = Instant::now();
        if window.is_over(since) {
            return Ok(());
        }
        lane.append().await?;
        let now = Instant::now();
        if window.holds(now) {
            noted.lock().expect("no task panics while it notes").note(now - since, records);
        }
    }
}
