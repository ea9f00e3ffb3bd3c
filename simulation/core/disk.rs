//! A node's disk, with gates: an operation that takes time waits until the world lets it pass, so that anything can happen
//! meanwhile. A crash then finds the simulated disk just as far as the operations had come.
//!
//! Wraps the simulated disk and adds nothing to what it does. Futures are woken by nobody: whoever opened a gate polls the task that stood
//! before it.

use super::chance::Chance;
use balsa::disk::sim::{OperationKind, SimDisk};
use balsa::disk::{BoxFuture, Disk, DiskFile, Lane, LockGuard, OpenMode};
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

/// Where a node keeps its journal.
pub const JOURNAL_DIR: &str = "/journal";
/// How the names of its files begin.
const JOURNAL_FILES: &str = "/journal/journal-";
/// Where it keeps its groups.
pub const GROUPS_DIR: &str = "/groups";

/// How many of the last rounds are remembered.
const ROUNDS_KEPT: usize = 3;

/// What stands before a gate.
pub struct Waiting {
    pub ticket: u64,
    /// The task that is to be polled when it may pass.
    pub task: u64,
    pub delay_us: u64,
}

/// An operation that a fault may be aimed at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// A journal file is about to be synced: a round was written.
    RoundWritten,
    /// A journal file gets its next life, or the identity names other files.
    JournalFiles,
    /// A segment gets its final length.
    Seal,
    /// A file is about to take its final name.
    Rename,
}

#[derive(Default)]
struct State {
    /// Operations pass at once: the node is starting.
    is_open: bool,
    is_hung: bool,
    /// The task being polled.
    task: u64,
    ticket_next: u64,
    waiting: Vec<Waiting>,
    passed: Vec<u64>,
    seen: Vec<Seen>,
    /// A sync of the journal takes so long.
    sync_us: (u64, u64),
    /// All takes so many times as long.
    slowness: u64,
    reads_slow: bool,
    /// The last rounds that were written: file, position and length, newest last.
    rounds: VecDeque<(PathBuf, u64, u64)>,
}

/// The gates of one life of a node.
#[derive(Clone)]
pub struct Gate {
    state: Arc<Mutex<State>>,
    chance: Arc<Mutex<Chance>>,
}

impl Gate {
    pub fn new(chance: Chance, sync_us: (u64, u64)) -> Gate {
        let state = State { is_open: true, sync_us, slowness: 1, ..State::default() };
        Gate { state: Arc::new(Mutex::new(state)), chance: Arc::new(Mutex::new(chance)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_open(&self, is_open: bool) {
        self.state().is_open = is_open;
    }

    pub fn set_hung(&self, is_hung: bool) {
        self.state().is_hung = is_hung;
    }

    pub fn set_slowness(&self, slowness: u64) {
        self.state().slowness = slowness;
    }

    pub fn set_reads_slow(&self, reads_slow: bool) {
        self.state().reads_slow = reads_slow;
    }

    /// The task that is polled from here on.
    pub fn set_task(&self, task: u64) {
        self.state().task = task;
    }

    pub fn take_waiting(&self) -> Vec<Waiting> {
        std::mem::take(&mut self.state().waiting)
    }

    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// The last rounds that were written in this life: file, position and length, newest last.
    pub fn last_rounds(&self) -> VecDeque<(PathBuf, u64, u64)> {
        self.state().rounds.clone()
    }

    fn note_round(&self, path: &Path, position: u64, len: u64) {
        let is_log = path.as_os_str().as_encoded_bytes().starts_with(JOURNAL_FILES.as_bytes());
        if is_log && position > 0 {
            let mut state = self.state();
            if state.rounds.len() == ROUNDS_KEPT {
                state.rounds.pop_front();
            }
            state.rounds.push_back((path.to_owned(), position, len));
        }
    }

    /// Lets an operation pass, unless the disk hangs.
    pub fn open(&self, ticket: u64) -> bool {
        let mut state = self.state();
        if state.is_hung {
            return false;
        }
        state.passed.push(ticket);
        true
    }

    fn pass(&self, kind: OperationKind, is_journal: bool) -> Pass {
        let mut state = self.state();
        if state.is_open {
            return Pass { gate: self.clone(), ticket: None };
        }
        if let Some(seen) = noteworthy(kind, is_journal) {
            state.seen.push(seen);
        }
        let delay_us = self.delay_us(&state, kind, is_journal);
        if delay_us == 0 && !state.is_hung {
            return Pass { gate: self.clone(), ticket: None };
        }
        let ticket = state.ticket_next;
        state.ticket_next += 1;
        let task = state.task;
        state.waiting.push(Waiting { ticket, task, delay_us });
        Pass { gate: self.clone(), ticket: Some(ticket) }
    }

    fn delay_us(&self, state: &State, kind: OperationKind, journal: bool) -> u64 {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = state.sync_us;
        let delay_us = match kind {
            OperationKind::Sync if journal => chance.within(from..to),
            OperationKind::Sync | OperationKind::SyncDir => chance.within(from..2 * to),
            OperationKind::Read if state.reads_slow => chance.within(0..1_500_000),
            OperationKind::Read if chance.ratio(1, 20) => chance.within(1_000..500_000),
            OperationKind::Read if chance.ratio(1, 4) => chance.within(20..500),
            OperationKind::Write if !journal && chance.ratio(1, 4) => chance.within(20..500),
            OperationKind::Create | OperationKind::SetLen | OperationKind::Rename | OperationKind::Remove
                if chance.ratio(1, 2) =>
            {
                chance.within(20..500)
            }
            _ => 0,
        };
        delay_us * state.slowness
    }
}

fn noteworthy(kind: OperationKind, journal: bool) -> Option<Seen> {
    match kind {
        OperationKind::Sync if journal => Some(Seen::RoundWritten),
        OperationKind::Rename if journal => Some(Seen::JournalFiles),
        OperationKind::Rename => Some(Seen::Rename),
        OperationKind::SetLen if !journal => Some(Seen::Seal),
        _ => None,
    }
}

/// Whether a file is one of the journal's. Looks at bytes: parts of paths are slow to compare, and this is asked for every operation.
fn is_journal(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().starts_with(JOURNAL_DIR.as_bytes())
}

/// Waits before a gate.
struct Pass {
    gate: Gate,
    ticket: Option<u64>,
}

impl Future for Pass {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let Some(ticket) = self.ticket else { return Poll::Ready(()) };
        let mut state = self.gate.state();
        let Some(at) = state.passed.iter().position(|passed| *passed == ticket) else { return Poll::Pending };
        state.passed.swap_remove(at);
        drop(state);
        self.ticket = None;
        Poll::Ready(())
    }
}

/// See the module's text.
pub struct GatedDisk {
    pub disk: SimDisk,
    pub gate: Gate,
}

impl GatedDisk {
    fn gated<T: Send + 'static>(
        &self,
        kind: OperationKind,
        path: &Path,
        work: impl FnOnce(SimDisk, PathBuf) -> BoxFuture<io::Result<T>> + Send + 'static,
    ) -> BoxFuture<io::Result<T>> {
        let (disk, gate, path) = (self.disk.clone(), self.gate.clone(), path.to_owned());
        Box::pin(async move {
            gate.pass(kind, is_journal(&path)).await;
            work(disk, path).await
        })
    }
}

impl Disk for GatedDisk {
    fn open(&self, path: &Path, mode: OpenMode, lane: Lane) -> BoxFuture<io::Result<Arc<dyn DiskFile>>> {
        let kind = if mode == OpenMode::CreateNew { OperationKind::Create } else { OperationKind::Read };
        let (disk, gate, path) = (self.disk.clone(), self.gate.clone(), path.to_owned());
        Box::pin(async move {
            gate.pass(kind, is_journal(&path)).await;
            let file = disk.open(&path, mode, lane).await?;
            Ok(Arc::new(GatedFile { file, gate, path: path.into() }) as Arc<dyn DiskFile>)
        })
    }

    fn create_dir_all(&self, path: &Path) -> BoxFuture<io::Result<()>> {
        self.gated(OperationKind::SyncDir, path, |disk, path| disk.create_dir_all(&path))
    }

    fn list(&self, dir: &Path) -> BoxFuture<io::Result<Vec<PathBuf>>> {
        self.disk.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<io::Result<()>> {
        let to = to.to_owned();
        self.gated(OperationKind::Rename, from, move |disk, from| disk.rename(&from, &to))
    }

    fn remove(&self, path: &Path) -> BoxFuture<io::Result<()>> {
        self.gated(OperationKind::Remove, path, |disk, path| disk.remove(&path))
    }

    fn remove_dir_all(&self, path: &Path) -> BoxFuture<io::Result<()>> {
        self.gated(OperationKind::Remove, path, |disk, path| disk.remove_dir_all(&path))
    }

    fn sync_dir(&self, dir: &Path) -> BoxFuture<io::Result<()>> {
        self.gated(OperationKind::SyncDir, dir, |disk, dir| disk.sync_dir(&dir))
    }

    fn free_bytes(&self, path: &Path) -> BoxFuture<io::Result<u64>> {
        self.disk.free_bytes(path)
    }

    fn lock(&self, path: &Path) -> BoxFuture<io::Result<Box<dyn LockGuard>>> {
        self.disk.lock(path)
    }
}

#[derive(Clone)]
struct GatedFile {
    file: Arc<dyn DiskFile>,
    gate: Gate,
    path: Arc<Path>,
}

impl GatedFile {
    fn gated<T: Send + 'static>(
        &self,
        kind: OperationKind,
        work: impl FnOnce(Arc<dyn DiskFile>) -> BoxFuture<io::Result<T>> + Send + 'static,
    ) -> BoxFuture<io::Result<T>> {
        let this = self.clone();
        Box::pin(async move {
            this.gate.pass(kind, is_journal(&this.path)).await;
            work(this.file).await
        })
    }
}

impl DiskFile for GatedFile {
    fn len(&self) -> BoxFuture<io::Result<u64>> {
        self.file.len()
    }

    fn read_at(&self, position: u64, len: usize) -> BoxFuture<io::Result<Bytes>> {
        self.gated(OperationKind::Read, move |file| file.read_at(position, len))
    }

    fn write_at(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<io::Result<()>> {
        self.gated(OperationKind::Write, move |file| file.write_at(position, parts))
    }

    fn sync(&self) -> BoxFuture<io::Result<()>> {
        self.gated(OperationKind::Sync, |file| file.sync())
    }

    fn write_and_sync(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<io::Result<()>> {
        let this = self.clone();
        Box::pin(async move {
            let len = parts.iter().map(|part| part.len() as u64).sum();
            this.gate.note_round(&this.path, position, len);
            this.write_at(position, parts).await?;
            this.sync().await
        })
    }

    fn set_len(&self, len: u64) -> BoxFuture<io::Result<()>> {
        self.gated(OperationKind::SetLen, move |file| file.set_len(len))
    }

    fn fill_zero(&self, position: u64, len: u64) -> BoxFuture<io::Result<()>> {
        self.gated(OperationKind::Write, move |file| file.fill_zero(position, len))
    }

    fn allocate(&self, position: u64, len: u64) -> BoxFuture<io::Result<()>> {
        self.fill_zero(position, len)
    }
}
