//! What the simulated disk holds, and what a crash leaves of it. No IO, no waiting.

use super::paged::Paged;
use super::{Fault, FaultEffect, Onlooker, Operation, OperationKind, Survival, Unsynced, SECTOR_BYTES};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone)]
pub(super) enum Change {
    Write { position: u64, bytes: Bytes },
    Zero { position: u64, len: u64 },
    SetLen(u64),
}

#[derive(Clone, Default)]
pub(super) struct Inode {
    pub(super) live: Paged,
    pub(super) durable: Paged,
    /// Changes since the last sync, in order.
    pub(super) pending: Vec<Change>,
    /// Changes that a failed sync should have made durable, and those that were synced since, which are certain: what they
    /// cover is in doubt no more.
    pub(super) in_doubt: Vec<(Change, Doubt)>,
}

/// Whether a change is durable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    InDoubt,
    Certain,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Dir,
    File(u64),
}

/// A change of names that happens as one: a rename has two edits.
#[derive(Clone)]
pub(super) struct NameChange {
    edits: Vec<(PathBuf, Option<Node>)>,
}

#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) frozen: bool,
    /// Shared with copies of the disk until one of them changes it, as are the names.
    pub(super) inodes: BTreeMap<u64, Arc<Inode>>,
    pub(super) inode_next: u64,
    pub(super) names: Arc<BTreeMap<PathBuf, Node>>,
    pub(super) durable_names: Arc<BTreeMap<PathBuf, Node>>,
    pub(super) name_changes: Vec<NameChange>,
    pub(super) locks: BTreeSet<PathBuf>,
    pub(super) capacity: Option<u64>,
    pub(super) faults: Vec<Fault>,
    pub(super) delays: BTreeMap<OperationKind, RangeInclusive<Duration>>,
    pub(super) delay_seed: u64,
    pub(super) onlooker: Option<Onlooker>,
    pub(super) operations: u64,
    pub(super) freeze_at: Option<u64>,
    pub(super) log: Option<Vec<Operation>>,
    pub(super) forks: Option<Vec<State>>,
}

pub(super) fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))
}

impl State {
    pub(super) fn alive(&mut self) -> io::Result<()> {
        if self.freeze_at.is_some_and(|at| self.operations >= at) {
            self.frozen = true;
        }
        if self.frozen {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the disk is frozen: its node has crashed"));
        }
        Ok(())
    }

    /// How long this operation takes.
    pub(super) fn draw_delay(&mut self, kind: OperationKind) -> Duration {
        let Some(delays) = self.delays.get(&kind) else { return Duration::ZERO };
        let (shortest, longest) = (*delays.start(), *delays.end());
        if shortest >= longest {
            return shortest;
        }
        let mut rng = StdRng::seed_from_u64(self.delay_seed);
        self.delay_seed = rng.gen();
        rng.gen_range(shortest..=longest)
    }

    /// The fault that strikes this operation, if one does.
    pub(super) fn strike(&mut self, operation: &Operation) -> Option<FaultEffect> {
        if self.faults.is_empty() {
            return None;
        }
        let path = operation.path.to_string_lossy();
        let mut struck = None;
        for (at, fault) in self.faults.iter_mut().enumerate() {
            if fault.kind != operation.kind || !path.contains(&fault.path_contains) {
                continue;
            }
            if fault.skip == 0 && struck.is_none() {
                struck = Some(at);
            }
            fault.skip = fault.skip.saturating_sub(1);
        }
        struck.map(|at| self.faults.remove(at).effect)
    }

    /// Counts an operation that changed the disk; logs it and keeps a fork if asked to.
    pub(super) fn record(&mut self, operation: &Operation) {
        self.operations += 1;
        if let Some(log) = &mut self.log {
            log.push(operation.clone());
        }
        if self.forks.is_some() {
            let fork = self.snapshot();
            self.forks.get_or_insert_default().push(fork);
        }
    }

    /// What a next life would find, without the orders given to this one.
    pub(super) fn snapshot(&self) -> State {
        State {
            frozen: false,
            inodes: self.inodes.clone(),
            inode_next: self.inode_next,
            names: self.names.clone(),
            durable_names: self.durable_names.clone(),
            name_changes: self.name_changes.clone(),
            capacity: self.capacity,
            ..State::default()
        }
    }

    pub(super) fn after_power_failure(&self, decide: &mut dyn FnMut(Unsynced<'_>) -> Survival) -> State {
        let mut next = State { inode_next: self.inode_next, capacity: self.capacity, ..State::default() };
        next.durable_names = self.durable_names.clone();
        for change in &self.name_changes {
            let path = change.edits.last().map_or(Path::new(""), |(path, _)| path.as_path());
            let survival = decide(Unsynced::Name(path));
            if matches!(survival, Survival::Kept) || matches!(survival, Survival::Sectors(mask) if mask & 1 == 1) {
                edit_names(Arc::make_mut(&mut next.durable_names), change);
            }
        }
        next.names = next.durable_names.clone();
        for (path, node) in next.durable_names.iter() {
            let Node::File(number) = node else { continue };
            let Some(inode) = self.inodes.get(number) else { continue };
            let mut durable = inode.durable.clone();
            for (change, doubt) in &inode.in_doubt {
                match doubt {
                    Doubt::InDoubt => change.survive(&mut durable, path, decide),
                    Doubt::Certain => change.apply(&mut durable),
                }
            }
            for change in &inode.pending {
                change.survive(&mut durable, path, decide);
            }
            next.inodes.insert(*number, Arc::new(Inode { live: durable.clone(), durable, ..Inode::default() }));
        }
        next
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<u64> {
        match self.names.get(path) {
            Some(Node::File(inode)) => Ok(*inode),
            Some(Node::Dir) => Err(io::Error::new(io::ErrorKind::IsADirectory, path.display().to_string())),
            None => Err(not_found(path)),
        }
    }

    pub(super) fn file_mut(&mut self, path: &Path) -> Option<&mut Inode> {
        let number = self.file(path).ok()?;
        self.inodes.get_mut(&number).map(Arc::make_mut)
    }

    pub(super) fn has_dir(&self, dir: &Path) -> bool {
        dir.as_os_str().is_empty() || dir == Path::new("/") || self.names.get(dir) == Some(&Node::Dir)
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<u64> {
        if self.names.contains_key(path) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, path.display().to_string()));
        }
        let dir = path.parent().unwrap_or(Path::new(""));
        if !self.has_dir(dir) {
            return Err(not_found(dir));
        }
        let number = self.inode_next;
        self.inode_next += 1;
        self.inodes.insert(number, Arc::default());
        self.change_names(vec![(path.to_owned(), Some(Node::File(number)))]);
        Ok(number)
    }

    pub(super) fn change_names(&mut self, edits: Vec<(PathBuf, Option<Node>)>) {
        let change = NameChange { edits };
        edit_names(Arc::make_mut(&mut self.names), &change);
        self.name_changes.push(change);
    }

    pub(super) fn create_dirs(&mut self, path: &Path) -> io::Result<()> {
        for dir in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if matches!(self.names.get(dir), Some(Node::File(_))) {
                return Err(io::Error::new(io::ErrorKind::NotADirectory, dir.display().to_string()));
            }
            if !self.has_dir(dir) {
                Arc::make_mut(&mut self.names).insert(dir.to_owned(), Node::Dir);
                // First what happened before: a directory of this name may have been removed.
                self.sync_names(dir.parent().unwrap_or(Path::new("")));
                Arc::make_mut(&mut self.durable_names).insert(dir.to_owned(), Node::Dir);
            }
        }
        Ok(())
    }

    pub(super) fn sync_names(&mut self, dir: &Path) {
        let (synced, rest) = std::mem::take(&mut self.name_changes)
            .into_iter()
            .partition(|change| change.edits.iter().any(|(path, _)| path.parent() == Some(dir)));
        self.name_changes = rest;
        let synced: Vec<NameChange> = synced;
        for change in &synced {
            edit_names(Arc::make_mut(&mut self.durable_names), change);
        }
    }

    pub(super) fn bytes_used(&self) -> u64 {
        let files = self.names.values().filter_map(|node| match node {
            Node::File(inode) => self.inodes.get(inode),
            Node::Dir => None,
        });
        files.map(|inode| inode.live.len()).sum()
    }

    /// Refuses what would grow a file beyond the disk's capacity.
    fn admit(&self, number: u64, end: u64) -> io::Result<()> {
        let len = self.inodes.get(&number).map_or(0, |inode| inode.live.len());
        match self.capacity {
            Some(capacity) if end > len && self.bytes_used() + (end - len) > capacity => {
                Err(io::Error::new(io::ErrorKind::StorageFull, format!("the disk holds {capacity} bytes")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn change(&mut self, number: u64, end: u64, changes: Vec<Change>) -> io::Result<()> {
        self.admit(number, end)?;
        let inode = Arc::make_mut(self.inodes.get_mut(&number).ok_or(io::ErrorKind::NotFound)?);
        for change in changes {
            change.apply(&mut inode.live);
            inode.pending.push(change);
        }
        Ok(())
    }

    pub(super) fn sync(&mut self, number: u64) -> io::Result<()> {
        let inode = Arc::make_mut(self.inodes.get_mut(&number).ok_or(io::ErrorKind::NotFound)?);
        for change in std::mem::take(&mut inode.pending) {
            change.apply(&mut inode.durable);
            if !inode.in_doubt.is_empty() {
                inode.in_doubt.push((change, Doubt::Certain));
            }
        }
        if inode.in_doubt.is_empty() {
            inode.durable = inode.live.clone(); // equal already; from here on they share pages
        }
        Ok(())
    }

    pub(super) fn doubt(&mut self, number: u64) {
        if let Some(inode) = self.inodes.get_mut(&number).map(Arc::make_mut) {
            let pending = std::mem::take(&mut inode.pending);
            inode.in_doubt.extend(pending.into_iter().map(|change| (change, Doubt::InDoubt)));
        }
    }
}

impl Inode {
    /// Has `rot` spoil these bytes: the live ones, the durable ones, and those of writes that a crash may yet lose or keep, so that no
    /// crash heals them. False, and nothing happens, if the file is shorter.
    pub(super) fn rot(&mut self, position: u64, len: u64, rot: &dyn Fn(&mut [u8])) -> bool {
        if position + len > self.live.len() {
            return false;
        }
        let in_doubt = self.in_doubt.iter_mut().map(|(change, _)| change);
        in_doubt.chain(&mut self.pending).for_each(|change| change.rot(position, len, rot));
        for bytes in [&mut self.durable, &mut self.live] {
            let mut spoiled = bytes.read(position, len as usize).to_vec();
            if !spoiled.is_empty() {
                rot(&mut spoiled);
                bytes.write(position, &spoiled);
            }
        }
        true
    }
}

fn edit_names(names: &mut BTreeMap<PathBuf, Node>, change: &NameChange) {
    for (path, node) in &change.edits {
        match node {
            Some(node) => names.insert(path.clone(), *node),
            None => names.remove(path),
        };
    }
}

impl Change {
    pub(super) fn first_half(self) -> Change {
        match self {
            Change::Write { position, bytes } => Change::Write { position, bytes: bytes.slice(..bytes.len() / 2) },
            Change::Zero { position, len } => Change::Zero { position, len: len / 2 },
            Change::SetLen(len) => Change::SetLen(len),
        }
    }

    fn rot(&mut self, position: u64, len: u64, rot: &dyn Fn(&mut [u8])) {
        let Change::Write { position: from, bytes } = self else { return };
        let (begin, end) = (position.max(*from), (position + len).min(*from + bytes.len() as u64));
        if begin < end {
            let mut spoiled = bytes.to_vec();
            rot(&mut spoiled[(begin - *from) as usize..(end - *from) as usize]);
            *bytes = spoiled.into();
        }
    }

    fn apply(&self, to: &mut Paged) {
        match self {
            Change::Write { position, bytes } => to.write(*position, bytes),
            Change::Zero { position, len } => to.zero(*position, *len),
            Change::SetLen(len) => to.set_len(*len),
        }
    }

    /// Applies what a crash leaves of this change.
    fn survive(&self, to: &mut Paged, path: &Path, decide: &mut dyn FnMut(Unsynced<'_>) -> Survival) {
        let what = match self {
            Change::Write { position, bytes } => Unsynced::Write(path, *position, bytes.len() as u64),
            Change::Zero { position, len } => Unsynced::Write(path, *position, *len),
            Change::SetLen(len) => Unsynced::Len(path, *len),
        };
        match (decide(what), self) {
            (Survival::Kept, _) => self.apply(to),
            (Survival::Lost, _) => {}
            (Survival::Prefix(kept), Change::Write { position, bytes }) => {
                to.write(*position, &bytes[..bytes.len().min(kept as usize)]);
            }
            (Survival::Prefix(kept), Change::Zero { position, len }) => to.zero(*position, kept.min(*len)),
            (Survival::Sectors(mask), Change::Write { position, bytes }) => {
                keep_sectors(mask, *position, bytes.len() as u64, &mut |from, len| {
                    let start = (from - position) as usize;
                    to.write(from, &bytes[start..start + len as usize]);
                });
            }
            (Survival::Sectors(mask), Change::Zero { position, len }) => {
                keep_sectors(mask, *position, *len, &mut |from, len| to.zero(from, len));
            }
            (Survival::Sectors(mask), Change::SetLen(_)) if mask & 1 == 1 => self.apply(to),
            (Survival::Prefix(_) | Survival::Sectors(_), Change::SetLen(_)) => {}
        }
    }
}

/// Calls `keep` for the part of each sector of `[position, position + len)` whose bit is set.
fn keep_sectors(mask: u64, position: u64, len: u64, keep: &mut dyn FnMut(u64, u64)) {
    let (mut at, end, mut nth) = (position, position + len, 0);
    while at < end {
        let edge = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
        let piece = edge.min(end) - at;
        if mask >> (nth % 64) & 1 == 1 {
            keep(at, piece);
        }
        at += piece;
        nth += 1;
    }
}
