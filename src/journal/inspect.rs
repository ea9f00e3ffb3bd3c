//! What a journal's directory holds, for those who look at it offline. Read-only; works on damaged journals, and says
//! what is wrong where.

use super::error::JournalError;
use super::files::{read_mark, salt_of, slot_of, Identity, JournalIdentity};
use super::format::{Boundary, FileHeader, FrameKind};
use super::scan::{scan_file, Frame};
use crate::disk::{Disk, Lane, OpenMode};
use crate::ids::GroupId;
use std::path::{Path, PathBuf};

/// A journal's directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspection {
    /// What the newer whole copy of the identity says; `None` if there is none.
    pub identity: Option<Identity>,
    /// The newest mark; `None` if neither is whole.
    pub marked: Option<Boundary>,
    /// The journal files, in the order of their epochs; those without a valid header come first.
    pub files: Vec<PathBuf>,
}

/// One journal file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// Its header, or what is wrong with it.
    pub header: Result<FileHeader, &'static str>,
    /// Whether the identity names it, in this life.
    pub named: bool,
    /// Its whole rounds.
    pub rounds: Vec<RoundReport>,
    /// Where they end.
    pub end: u64,
    /// What there is at the end.
    pub status: FileStatus,
}

/// How a file's rounds end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileStatus {
    /// Without traces of another round.
    Whole,
    /// With a round that is not whole; nothing proves that it was ever synced.
    Torn {
        /// Its number.
        sequence: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Damaged: more was synced.
    Damaged {
        /// What is wrong.
        reason: String,
        /// Through where it was synced at least.
        synced: Boundary,
    },
    /// It can't be read as a journal file.
    Unreadable,
}

/// One round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoundReport {
    /// Where it lies.
    pub position: u64,
    /// Its number.
    pub sequence: u64,
    /// Bytes it takes.
    pub bytes: u64,
    /// What it names as synced.
    pub boundary: Boundary,
    /// Its frames, copies included.
    pub frames: Vec<FrameReport>,
}

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameReport {
    /// Where it lies.
    pub position: u64,
    /// What it says.
    pub kind: FrameKind,
    /// About which group.
    pub group: GroupId,
    /// Entries and bases: the index. Hard states: the commit.
    pub index: u64,
    /// The term.
    pub term: u64,
    /// Hard states: the vote.
    pub vote: Option<u64>,
    /// Bytes of payload.
    pub payload_bytes: u64,
}

/// Looks at a journal's directory.
///
/// # Errors
/// What the disk said; damage is not an error here.
pub async fn inspect(disk: &dyn Disk, dir: &Path) -> Result<Inspection, JournalError> {
    let identity = match Identity::read(disk, dir).await {
        Ok((identity, _)) => Some(identity),
        Err(JournalError::Missing { .. } | JournalError::Corrupt(_)) => None,
        Err(error) => return Err(error),
    };
    let marked = match &identity {
        Some(identity) => read_mark(disk, dir, identity.owner).await,
        None => None,
    };
    let paths = disk.list(dir).await.map_err(JournalError::io("list", dir))?;
    let mut files = Vec::new();
    for path in paths.into_iter().filter(|path| slot_of(path).is_some()) {
        let header = read_header(disk, &path).await?;
        files.push((header.map_or(0, |header| header.epoch), path));
    }
    files.sort();
    let files = files.into_iter().map(|(_, path)| path).collect();
    Ok(Inspection { identity, marked, files })
}

async fn read_header(disk: &dyn Disk, path: &Path) -> Result<Result<FileHeader, &'static str>, JournalError> {
    let io = |action| JournalError::io(action, path);
    let file = disk.open(path, OpenMode::ReadOnly, Lane::Bulk).await.map_err(io("open"))?;
    let block = file.read_at(0, super::format::ROUNDS_START as usize).await.map_err(io("read"))?;
    Ok(FileHeader::decode_block(&block))
}

impl Inspection {
    /// Reads one of the files, whole.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn read_file(&self, disk: &dyn Disk, path: &Path) -> Result<FileReport, JournalError> {
        let header = match read_header(disk, path).await? {
            Ok(header) => header,
            Err(reason) => {
                let (path, status) = (path.to_owned(), FileStatus::Unreadable);
                let report = FileReport { path, header: Err(reason), named: false, rounds: Vec::new(), end: 0, status };
                return Ok(report);
            }
        };
        let io = |action| JournalError::io(action, path);
        let file = disk.open(path, OpenMode::ReadOnly, Lane::Bulk).await.map_err(io("open"))?;
        let len = file.len().await.map_err(io("examine"))?;
        let bytes = file.read_at(0, len as usize).await.map_err(io("read"))?;
        let owner = JournalIdentity { node_id: header.node_id, incarnation: header.incarnation };
        let scan = scan_file(salt_of(owner, header.epoch), header.epoch, &bytes);
        let reason = scan.defect.as_ref().map(|defect| format!("{} at position {}", defect.reason, defect.position));
        let status = match (self.synced_beyond(&header, scan.end, scan.proof), scan.torn, reason) {
            (Some(synced), _, reason) => FileStatus::Damaged { reason: reason.unwrap_or_default(), synced },
            (None, Some(sequence), Some(reason)) => FileStatus::Torn { sequence, reason },
            _ => FileStatus::Whole,
        };
        let rounds = scan.rounds.iter().map(|round| RoundReport {
            position: round.position,
            sequence: round.header.sequence,
            bytes: round.header.span(),
            boundary: round.header.boundary,
            frames: round.frames.iter().chain(&round.copies).map(frame_report).collect(),
        });
        let named = self.identity.as_ref().is_some_and(|identity| {
            identity.files.iter().any(|file| file.slot == header.slot && file.epoch == header.epoch)
        });
        let rounds = rounds.collect();
        Ok(FileReport { path: path.to_owned(), header: Ok(header), named, rounds, end: scan.end, status })
    }

    /// A boundary beyond `end` in this file that is on record.
    fn synced_beyond(&self, header: &FileHeader, end: u64, proof: Option<Boundary>) -> Option<Boundary> {
        let identity = self.identity.as_ref().map(|identity| identity.boundary);
        let recorded = proof.into_iter().chain(self.marked).chain(identity);
        recorded.filter(|boundary| boundary.epoch == header.epoch && boundary.position > end).max()
    }
}

fn frame_report(frame: &Frame) -> FrameReport {
    let header = &frame.header;
    let is_hard_state =
        matches!(header.kind, FrameKind::HardState | FrameKind::HardStateCopy | FrameKind::RestatedHardState);
    FrameReport {
        position: frame.position,
        kind: header.kind,
        group: header.group,
        index: header.index,
        term: header.term,
        vote: is_hard_state.then_some(header.extra),
        payload_bytes: frame.payload.len() as u64,
    }
}
