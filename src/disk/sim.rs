//! The simulated disk of one node: an in-memory file system that knows what a crash may take.
//!
//! Every file has *live* bytes (what reads see, the page cache) and *durable* bytes (what is left after the power
//! failed), and every directory live and durable names. A crash gives back the disk as the next life finds it: each
//! unsynced write is lost, kept or torn, at sector edges or anywhere, as drawn from a seed or as a test orders; each
//! unsynced name is lost or kept. The disk of the old life is *frozen* from then on: it answers errors and writes
//! nothing, so that tasks that outlive their node can't reach into the next life.
//!
//! A failed sync leaves what it should have made durable in doubt for good: a later sync that succeeds does not cover
//! it, as on Linux.
//!
//! Faults are ordered by tests: the n-th write or sync that fails or hangs, a capacity, delays, rot. It refuses to draw
//! any by itself. Futures are ready at once unless a delay or a hang was asked for, so that pure tests need no runtime.
//! An [`Onlooker`] is told of each operation the moment it is done, and may freeze the disk right there.

mod paged;
mod state;

use super::{BoxFuture, Disk, DiskFile, Lane, LockGuard, OpenMode};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use state::{not_found, Change, Node, State};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: u64 = 512;

/// What was asked of the disk, for faults, delays and the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum OperationKind {
    /// A file was created.
    Create,
    /// Bytes were read.
    Read,
    /// Bytes were written, zeros included.
    Write,
    /// A file was synced.
    Sync,
    /// A file's length was set.
    SetLen,
    /// A file was renamed.
    Rename,
    /// A file or a directory was removed.
    Remove,
    /// A directory's names were synced.
    SyncDir,
}

/// One thing that the disk did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// What.
    pub kind: OperationKind,
    /// On which path.
    pub path: PathBuf,
    /// Where in the file.
    pub position: u64,
    /// How many bytes.
    pub len: u64,
}

/// A fault to come.
#[derive(Clone, Debug)]
pub struct Fault {
    /// On what kind of operation.
    pub kind: OperationKind,
    /// Only on paths whose text contains this; empty for all.
    pub path_contains: String,
    /// How many such operations pass before it strikes.
    pub skip: u64,
    /// What happens then; a fault strikes once.
    pub effect: FaultEffect,
}

/// What a fault does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultEffect {
    /// The operation fails with this error. A failed write leaves its first half in the live bytes (none of it when the
    /// kind is `StorageFull`); a failed sync leaves in doubt what it should have covered.
    Fail(io::ErrorKind),
    /// The operation never ends.
    Hang,
}

/// Something that a crash may take.
#[derive(Clone, Copy, Debug)]
pub enum Unsynced<'a> {
    /// A write to the file of this name, at this position and of this length.
    Write(&'a Path, u64, u64),
    /// A new length of the file of this name.
    Len(&'a Path, u64),
    /// A name that came, went, or moved.
    Name(&'a Path),
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survival {
    /// Nothing of it is left.
    Lost,
    /// It made it to the disk.
    Kept,
    /// Of a write, its first so many bytes made it; anything else is lost.
    Prefix(u64),
    /// Of a write, the n-th sector it touches made it if bit n (modulo 64) is set; anything else goes by bit 0.
    Sectors(u64),
}

/// Told of each operation that changed the disk, on the task that asked for it, before that task goes on.
pub type Onlooker = Arc<dyn Fn(&Operation) + Send + Sync>;

/// The simulated disk; clones are handles on the same one.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    /// An empty disk without faults.
    #[must_use]
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    fn of(state: State) -> SimDisk {
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another disk that holds just what this one does, unsynced changes included. Files open here stay of this one.
    #[must_use]
    pub fn fork(&self) -> SimDisk {
        SimDisk::of(self.state().snapshot())
    }

    /// The process ended, the power did not: the next life finds all live bytes, synced or not. Freezes this life.
    #[must_use]
    pub fn restart(&self) -> SimDisk {
        let next = self.fork();
        self.freeze();
        next
    }

    /// The power failed and each unsynced change was lost, kept or torn as drawn from `seed`. Freezes this life.
    #[must_use]
    pub fn crash(&self, seed: u64) -> SimDisk {
        let mut rng = StdRng::seed_from_u64(seed);
        self.crash_with(&mut |_| match rng.gen_range(0..6) {
            0 | 1 => Survival::Lost,
            2 | 3 => Survival::Kept,
            4 => Survival::Sectors(rng.gen()),
            _ => Survival::Prefix(rng.gen_range(0..64 << 10)),
        })
    }

    /// The power failed and `decide` says what became of each unsynced change, in order. Freezes this life.
    #[must_use]
    pub fn crash_with(&self, decide: &mut dyn FnMut(Unsynced<'_>) -> Survival) -> SimDisk {
        let next = SimDisk::of(self.state().after_power_failure(decide));
        self.freeze();
        next
    }

    /// From now on everything fails and nothing is written.
    pub fn freeze(&self) {
        self.state().frozen = true;
    }

    /// Freezes the disk once `count` more operations that change it are done.
    pub fn freeze_after(&self, count: u64) {
        let mut state = self.state();
        state.freeze_at = Some(state.operations + count);
    }

    /// How many operations changed the disk so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Starts to log the operations that change the disk.
    pub fn record_log(&self) {
        self.state().log.get_or_insert_default();
    }

    /// The log so far; it goes on empty.
    #[must_use]
    pub fn take_log(&self) -> Vec<Operation> {
        self.state().log.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Starts to keep a fork of the disk after each operation that changes it.
    pub fn record_forks(&self) {
        self.state().forks.get_or_insert_default();
    }

    /// The forks so far, oldest first; more are kept from here on.
    #[must_use]
    pub fn take_forks(&self) -> Vec<SimDisk> {
        let forks = self.state().forks.as_mut().map(std::mem::take).unwrap_or_default();
        forks.into_iter().map(SimDisk::of).collect()
    }

    /// Orders a fault.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Drops all faults that have not struck yet.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Bounds the bytes of all files together.
    pub fn set_capacity(&self, capacity: Option<u64>) {
        self.state().capacity = capacity;
    }

    /// Makes each operation of a kind take this long.
    pub fn set_delay(&self, kind: OperationKind, delay: Duration) {
        self.set_delays(kind, delay..=delay);
    }

    /// Makes each operation of a kind take a time drawn from this range.
    pub fn set_delays(&self, kind: OperationKind, delays: RangeInclusive<Duration>) {
        self.state().delays.insert(kind, delays);
    }

    /// Decides what is drawn for delays.
    pub fn seed_delays(&self, seed: u64) {
        self.state().delay_seed = seed;
    }

    /// Has somebody look on from here on; not over a crash or a restart.
    pub fn set_onlooker(&self, onlooker: Option<Onlooker>) {
        self.state().onlooker = onlooker;
    }

    /// Paths of all files, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let state = self.state();
        let files = state.names.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.clone()).collect()
    }

    /// A file's live bytes; `None` if it is not there.
    #[must_use]
    pub fn content(&self, path: &Path) -> Option<Bytes> {
        let state = self.state();
        let inode = state.inodes.get(&state.file(path).ok()?)?;
        Some(inode.live.read(0, inode.live.len() as usize))
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn bytes_used(&self) -> u64 {
        self.state().bytes_used()
    }

    /// Rot: flips bits of the byte at `position`, wherever it stands by now: live, durable, or under way. False if the file has no such byte.
    pub fn flip(&self, path: &Path, position: u64, mask: u8) -> bool {
        self.rot(path, position, 1, &|bytes| bytes[0] ^= mask)
    }

    /// Rot: zeros where there was something, in the same way. False if the file is not there or shorter.
    pub fn zero_block(&self, path: &Path, position: u64, len: u64) -> bool {
        self.rot(path, position, len, &|bytes| bytes.fill(0))
    }

    fn rot(&self, path: &Path, position: u64, len: u64, rot: &dyn Fn(&mut [u8])) -> bool {
        let mut state = self.state();
        state.file_mut(path).is_some_and(|inode| inode.rot(position, len, rot))
    }

    /// Damage: the file is gone, as if somebody had removed it. False if it was not there.
    pub fn lose_file(&self, path: &Path) -> bool {
        let mut state = self.state();
        Arc::make_mut(&mut state.durable_names).remove(path);
        Arc::make_mut(&mut state.names).remove(path).is_some()
    }

    /// Damage: the file is again what it is on another disk, an older fork say. False if it is not there.
    pub fn restore_file_from(&self, other: &SimDisk, path: &Path) -> bool {
        let content = {
            let other = other.state();
            match other.names.get(path) {
                Some(Node::File(inode)) => other.inodes[inode].live.clone(),
                _ => return false,
            }
        };
        let mut state = self.state();
        state.file_mut(path).map(|inode| (inode.live, inode.durable) = (content.clone(), content)).is_some()
    }

    /// Waits out the delay or the hang ordered for this operation, then does it; a fault may strike it.
    fn perform<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl FnOnce(&mut State) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<io::Result<T>> {
        let disk = self.clone();
        Box::pin(async move {
            disk.wait_for_turn(operation.kind).await;
            let struck = disk.state().strike(&operation);
            match struck {
                Some(FaultEffect::Hang) => std::future::pending().await,
                Some(FaultEffect::Fail(kind)) => {
                    let mut state = disk.state();
                    state.alive()?;
                    Err(injected(kind, &operation))
                }
                None => {
                    let mut state = disk.state();
                    state.alive()?;
                    let done = work(&mut state)?;
                    finish(state, operation);
                    Ok(done)
                }
            }
        })
    }

    async fn wait_for_turn(&self, kind: OperationKind) {
        let delay = self.state().draw_delay(kind);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    fn name_operation(&self, kind: OperationKind, path: &Path) -> Operation {
        Operation { kind, path: path.to_owned(), position: 0, len: 0 }
    }
}

/// Counts an operation that was done and tells the onlooker of it, who finds the disk unlocked.
fn finish(mut state: MutexGuard<'_, State>, operation: Operation) {
    if operation.kind == OperationKind::Read {
        return;
    }
    state.record(&operation);
    let onlooker = state.onlooker.clone();
    drop(state);
    if let Some(onlooker) = onlooker {
        onlooker(&operation);
    }
}

fn injected(kind: io::ErrorKind, operation: &Operation) -> io::Error {
    io::Error::new(kind, format!("injected into {:?} of {}", operation.kind, operation.path.display()))
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode, _lane: Lane) -> BoxFuture<io::Result<Arc<dyn DiskFile>>> {
        let (disk, path) = (self.clone(), path.to_owned());
        if mode == OpenMode::CreateNew {
            let operation = self.name_operation(OperationKind::Create, &path);
            return self.perform(operation, move |state| {
                let inode = state.create(&path)?;
                Ok(Arc::new(SimFile { disk, path, inode, writable: true }) as Arc<dyn DiskFile>)
            });
        }
        let operation = self.name_operation(OperationKind::Read, &path);
        self.perform(operation, move |state| {
            let inode = state.file(&path)?;
            Ok(Arc::new(SimFile { disk, path, inode, writable: mode == OpenMode::Existing }) as Arc<dyn DiskFile>)
        })
    }

    fn create_dir_all(&self, path: &Path) -> BoxFuture<io::Result<()>> {
        let path = path.to_owned();
        self.perform(self.name_operation(OperationKind::SyncDir, &path), move |state| state.create_dirs(&path))
    }

    fn list(&self, dir: &Path) -> BoxFuture<io::Result<Vec<PathBuf>>> {
        let dir = dir.to_owned();
        self.perform(self.name_operation(OperationKind::Read, &dir), move |state| {
            if !state.has_dir(&dir) {
                return Err(not_found(&dir));
            }
            Ok(state.names.keys().filter(|path| path.parent() == Some(&dir)).cloned().collect())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<io::Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.perform(self.name_operation(OperationKind::Rename, &from), move |state| {
            let inode = state.file(&from)?;
            state.change_names(vec![(from, None), (to, Some(Node::File(inode)))]);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> BoxFuture<io::Result<()>> {
        let path = path.to_owned();
        self.perform(self.name_operation(OperationKind::Remove, &path), move |state| {
            state.file(&path)?;
            state.change_names(vec![(path, None)]);
            Ok(())
        })
    }

    fn remove_dir_all(&self, path: &Path) -> BoxFuture<io::Result<()>> {
        let dir = path.to_owned();
        self.perform(self.name_operation(OperationKind::Remove, path), move |state| {
            let gone: Vec<PathBuf> = state.names.keys().filter(|path| path.starts_with(&dir)).cloned().collect();
            for path in gone.into_iter().rev() {
                state.change_names(vec![(path, None)]);
            }
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> BoxFuture<io::Result<()>> {
        let dir = dir.to_owned();
        self.perform(self.name_operation(OperationKind::SyncDir, &dir), move |state| {
            if !state.has_dir(&dir) {
                return Err(not_found(&dir));
            }
            state.sync_names(&dir);
            Ok(())
        })
    }

    fn free_bytes(&self, path: &Path) -> BoxFuture<io::Result<u64>> {
        self.perform(self.name_operation(OperationKind::Read, path), |state| {
            Ok(state.capacity.map_or(1 << 40, |capacity| capacity.saturating_sub(state.bytes_used())))
        })
    }

    fn lock(&self, path: &Path) -> BoxFuture<io::Result<Box<dyn LockGuard>>> {
        let (disk, path) = (self.clone(), path.to_owned());
        self.perform(self.name_operation(OperationKind::Read, &path), move |state| {
            if state.file(&path).is_err() {
                state.create(&path)?;
            }
            if !state.locks.insert(path.clone()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(Box::new(SimLock { disk, path }) as Box<dyn LockGuard>)
        })
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl LockGuard for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.path);
    }
}

/// An open file of the simulated disk. It stays what was opened, whatever becomes of the name.
#[derive(Clone)]
struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    inode: u64,
    writable: bool,
}

impl SimFile {
    fn operation(&self, kind: OperationKind, position: u64, len: u64) -> Operation {
        Operation { kind, path: self.path.clone(), position, len }
    }

    /// A change of content. A fault that makes it fail leaves its first half.
    fn change(&self, operation: Operation, changes: Vec<Change>) -> BoxFuture<io::Result<()>> {
        let (file, end) = (self.clone(), operation.position + operation.len);
        Box::pin(async move {
            if !file.writable {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            file.disk.wait_for_turn(operation.kind).await;
            let struck = {
                let mut state = file.disk.state();
                state.alive()?;
                state.strike(&operation)
            };
            match struck {
                Some(FaultEffect::Hang) => std::future::pending().await,
                Some(FaultEffect::Fail(kind)) => {
                    if kind != io::ErrorKind::StorageFull {
                        let half = changes.into_iter().take(1).map(Change::first_half).collect();
                        file.disk.state().change(file.inode, 0, half)?;
                    }
                    Err(injected(kind, &operation))
                }
                None => {
                    let mut state = file.disk.state();
                    state.change(file.inode, end, changes)?;
                    finish(state, operation);
                    Ok(())
                }
            }
        })
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> BoxFuture<io::Result<u64>> {
        let inode = self.inode;
        self.disk.perform(self.operation(OperationKind::Read, 0, 0), move |state| {
            Ok(state.inodes.get(&inode).map_or(0, |inode| inode.live.len()))
        })
    }

    fn read_at(&self, position: u64, len: usize) -> BoxFuture<io::Result<Bytes>> {
        let inode = self.inode;
        self.disk.perform(self.operation(OperationKind::Read, position, len as u64), move |state| {
            Ok(state.inodes.get(&inode).map_or_else(Bytes::new, |inode| inode.live.read(position, len)))
        })
    }

    fn write_at(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<io::Result<()>> {
        let bytes = match <[Bytes; 1]>::try_from(parts) {
            Ok([single]) => single,
            Err(parts) => Bytes::from(parts.concat()),
        };
        let operation = self.operation(OperationKind::Write, position, bytes.len() as u64);
        self.change(operation, vec![Change::Write { position, bytes }])
    }

    fn sync(&self) -> BoxFuture<io::Result<()>> {
        let file = self.clone();
        let operation = self.operation(OperationKind::Sync, 0, 0);
        Box::pin(async move {
            file.disk.wait_for_turn(operation.kind).await;
            let struck = {
                let mut state = file.disk.state();
                state.alive()?;
                state.strike(&operation)
            };
            match struck {
                Some(FaultEffect::Hang) => std::future::pending().await,
                Some(FaultEffect::Fail(kind)) => {
                    file.disk.state().doubt(file.inode);
                    Err(injected(kind, &operation))
                }
                None => {
                    let mut state = file.disk.state();
                    state.sync(file.inode)?;
                    finish(state, operation);
                    Ok(())
                }
            }
        })
    }

    fn write_and_sync(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<io::Result<()>> {
        let file = self.clone();
        Box::pin(async move {
            file.write_at(position, parts).await?;
            file.sync().await
        })
    }

    fn set_len(&self, len: u64) -> BoxFuture<io::Result<()>> {
        self.change(self.operation(OperationKind::SetLen, 0, len), vec![Change::SetLen(len)])
    }

    fn fill_zero(&self, position: u64, len: u64) -> BoxFuture<io::Result<()>> {
        self.change(self.operation(OperationKind::Write, position, len), vec![Change::Zero { position, len }])
    }

    fn allocate(&self, position: u64, len: u64) -> BoxFuture<io::Result<()>> {
        self.fill_zero(position, len)
    }
}
