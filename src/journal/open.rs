//! Founding a journal, and opening one again: what is whole, what is proven, what it amounts to.
//!
//! Opening changes nothing of what the identity names: it removes what earlier openings left unnamed, writes a new file and then
//! the identity that names it, so that a crash half way leaves the next start where this one began. The last whole round may have been read from the page cache
//! only, after a sync that failed or never came; unless something proves that it was synced, its live frames are
//! written once more, into the new file, under their old number, and what lies behind its predecessor in the old file
//! is void.

use super::core::{Journal, OpenFile};
use super::error::{Corruption, JournalError};
use super::files::{
    begin_life, damage, file_path, fill_file, salt_of, slot_of, FileEntry, Identity, JournalIdentity, Marks,
};
use super::format::{
    sector_up, Boundary, FileHeader, FrameDraft, FrameKind, RoundBuilder, RoundPlace, ROUNDS_START, SECTOR,
};
use super::replay::{Nonsense, Replay, Replayed};
use super::restating::{Checkpoint, Progress};
use super::scan::{live_frames, scan_file, FileScan, Round};
use super::states::{read_state, state_id_of, StateFiles};
use super::{Cut, IdleProgress, JournalOptions, Recovered, RecoveredGroup};
use crate::disk::{Disk, Lane, OpenMode};
use crate::ids::GroupId;
use crate::{planted, reached};
use bytes::{Bytes, BytesMut};
use futures::future::try_join_all;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FIRST_EPOCH: u64 = 1;
const FIRST_SLOT: u64 = 1;
const FIRST_SEQUENCE: u64 = 1;

/// A file that the identity names, as it was read.
struct Read {
    file: OpenFile,
    scan: FileScan,
}

impl Read {
    fn corruption(&self, dir: &Path, reason: String) -> Corruption {
        reached!("damaged journal refused");
        let defect = self.scan.defect.as_ref();
        let groups = defect.and_then(|defect| defect.group).into_iter().collect();
        let position = defect.map_or(self.scan.end, |defect| defect.position);
        let reason = defect.map_or(reason.clone(), |defect| format!("{}; {reason}", defect.reason));
        Corruption { file: self.file.entry.path(dir), position, reason, groups }
    }
}

/// What the new file continues.
struct Continuation {
    boundary: Boundary,
    sequence: u64,
    /// Live frames of the last round, if nothing proves that it was synced.
    repeated: Vec<FrameDraft>,
}

impl Journal {
    /// Whether a journal was founded in `dir`.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn exists(disk: &dyn Disk, dir: &Path) -> Result<bool, JournalError> {
        Identity::exists(disk, dir).await
    }

    /// Founds an empty journal. What a founding that crashed half way left behind is cleared away.
    ///
    /// # Errors
    /// `Exists` if there is a journal, or rounds of one; what the disk said.
    pub async fn create(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: JournalOptions,
        owner: JournalIdentity,
    ) -> Result<Journal, JournalError> {
        disk.create_dir_all(&dir).await.map_err(JournalError::io("create", dir.clone()))?;
        if Identity::exists(&*disk, &dir).await? {
            return Err(JournalError::Exists { dir });
        }
        clear_unborn(&*disk, &dir).await?;
        let bytes = sector_up(options.first_file_bytes.max(ROUNDS_START + 4 * SECTOR));
        let filled = fill_file(disk.clone(), dir.clone(), FIRST_SLOT, bytes, bytes).await?;
        let continuation = Continuation {
            boundary: Boundary::default(),
            sequence: FIRST_SEQUENCE,
            repeated: vec![FrameDraft::bare(FrameKind::CheckpointComplete, GroupId::default())],
        };
        let (round, span) = first_round(owner, FIRST_EPOCH, &continuation);
        let entry = begin_life(&dir, &filled, owner, FIRST_EPOCH, round).await?;
        let boundary = Boundary { epoch: FIRST_EPOCH, position: ROUNDS_START + span };
        let marks = Marks::create(&*disk, &dir, owner, boundary).await?;
        disk.sync_dir(&dir).await.map_err(JournalError::io("sync", dir.clone()))?;
        let identity = Identity { owner, generation: 1, boundary, files: vec![entry] };
        identity.write(&*disk, &dir).await?;
        Ok(Journal {
            disk,
            dir,
            options,
            identity,
            epoch_next: FIRST_EPOCH + 1,
            slot_next: FIRST_SLOT + 1,
            file: OpenFile { entry, handle: filled.handle },
            position: boundary.position,
            checkpoint: Checkpoint::new(Progress::Complete),
            older: Vec::new(),
            next: None,
            spare: None,
            job: None,
            fill_refused: false,
            unneeded: Vec::new(),
            sequence_next: FIRST_SEQUENCE + 1,
            boundary,
            marks,
            mark_due: false,
            groups: Default::default(),
            states: StateFiles::default(),
            buffer: BytesMut::new(),
            stopped: None,
        })
    }

    /// Opens a journal and says what it holds.
    ///
    /// # Errors
    /// `Missing` if there is none; `Corrupt` if anything that was synced is damaged, gone, or older than it must be;
    /// what the disk said. Nothing was changed in any of these cases but the last.
    pub async fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: JournalOptions,
    ) -> Result<(Journal, Recovered), JournalError> {
        let (identity, copies_agree) = Identity::read(&*disk, &dir).await?;
        let marks = Marks::open(&*disk, &dir, identity.owner).await?;
        // One is scanned while the next is read.
        let listed = identity.files.iter().map(|entry| read_listed(&*disk, &dir, identity.owner, *entry));
        let mut files = try_join_all(listed).await?;
        let bytes_read = identity.files.iter().map(|entry| entry.bytes).sum();
        let cut = settle_ends(&dir, &mut files)?;
        hold_against(&dir, &identity, &files, &[marks.recorded, identity.boundary])?;
        let continuation = continue_after(&dir, &files, &[marks.recorded, identity.boundary])?;
        let replayed = replay(&dir, &files)?;
        let mut recovered = collect(&*disk, &dir, &replayed).await?;
        (recovered.cut, recovered.bytes_read) = (cut, bytes_read);
        if copies_agree {
            remove_unnamed(&*disk, &dir, &identity).await?;
        }
        let reopened = Reopened { identity, marks, files, continuation, replayed };
        let mut journal = reopened.go_on(disk, dir, options).await?;
        while journal.older.len() > options.files_max && journal.idle().await? != IdleProgress::Done {
            reached!("checkpoint completed before opening is done");
        }
        Ok((journal, recovered))
    }
}

/// Removes what a founding that crashed left behind; refuses if any file holds a round.
async fn clear_unborn(disk: &dyn Disk, dir: &Path) -> Result<(), JournalError> {
    let paths = disk.list(dir).await.map_err(JournalError::io("list", dir))?;
    for path in paths.iter().filter(|path| slot_of(path).is_some()) {
        let io = |action| JournalError::io(action, path.clone());
        let file = disk.open(path, OpenMode::ReadOnly, Lane::Bulk).await.map_err(io("open"))?;
        let block = file.read_at(0, ROUNDS_START as usize).await.map_err(io("read"))?;
        let Ok(header) = FileHeader::decode_block(&block) else { continue };
        let bytes = file.read_at(0, header.bytes as usize).await.map_err(io("read"))?;
        let owner = JournalIdentity { node_id: header.node_id, incarnation: header.incarnation };
        let rounds = scan_file(salt_of(owner, header.epoch), header.epoch, &bytes).rounds;
        // The founding itself writes one round: a complete checkpoint of nothing.
        if header.epoch != FIRST_EPOCH || rounds.len() > 1 {
            return Err(JournalError::Exists { dir: dir.to_owned() });
        }
    }
    let known = |path: &&PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        slot_of(path).is_some() || name == "marks" || name == "identity-1.new"
    };
    for path in paths.iter().filter(known) {
        disk.remove(path).await.map_err(JournalError::io("remove", path.clone()))?;
    }
    disk.sync_dir(dir).await.map_err(JournalError::io("sync", dir))
}

/// Removes the files of starts that ended before theirs was named: they may hold the very room that this start needs.
async fn remove_unnamed(disk: &dyn Disk, dir: &Path, identity: &Identity) -> Result<(), JournalError> {
    let paths = disk.list(dir).await.map_err(JournalError::io("list", dir))?;
    let is_named = |slot: u64| identity.files.iter().any(|file| file.slot == slot);
    for path in paths.into_iter().filter(|path| slot_of(path).is_some_and(|slot| !is_named(slot))) {
        reached!("journal files of a crashed opening put away");
        disk.remove(&path).await.map_err(JournalError::io("remove", path))?;
    }
    Ok(())
}

/// Reads and scans a file that must be there, in the life that the identity names.
async fn read_listed(
    disk: &dyn Disk,
    dir: &Path,
    owner: JournalIdentity,
    entry: FileEntry,
) -> Result<Read, JournalError> {
    let path = entry.path(dir);
    let bad = |reason: String| JournalError::Corrupt(damage(path.clone(), 0, reason));
    let handle = match disk.open(&path, OpenMode::Existing, Lane::Journal).await {
        Ok(handle) => handle,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(bad("the file is missing".to_owned())),
        Err(error) => return Err(JournalError::io("open", path.clone())(error)),
    };
    let io = |action| JournalError::io(action, path.clone());
    let len = handle.len().await.map_err(io("examine"))?;
    if len < entry.bytes {
        return Err(bad(format!("the file is {len} bytes; the identity names {}", entry.bytes)));
    }
    let bytes = handle.read_at(0, entry.bytes as usize).await.map_err(io("read"))?;
    let header = FileHeader::decode_block(&bytes).map_err(|reason| bad(reason.to_owned()))?;
    if header.incarnation != owner.incarnation {
        return Err(bad(format!("the file belongs to incarnation {}, not {}", header.incarnation, owner.incarnation)));
    }
    if header.epoch != entry.epoch || header.slot != entry.slot || header.bytes != entry.bytes {
        return Err(bad(format!(
            "the file is stale: its epoch is {}; the identity names {}",
            header.epoch, entry.epoch
        )));
    }
    let scan = scan_file(salt_of(owner, entry.epoch), entry.epoch, &bytes);
    Ok(Read { file: OpenFile { entry, handle }, scan })
}

/// Cuts each file where the next one's first round says that it ends, and finds what a crash left at the very end.
fn settle_ends(dir: &Path, files: &mut [Read]) -> Result<Option<Cut>, Corruption> {
    let mut successor: Option<(Boundary, u64)> = None;
    let mut cut = None;
    for at in (0..files.len()).rev() {
        let read = &mut files[at];
        let epoch = read.file.entry.epoch;
        if let Some(proof) = read.scan.proof.filter(|_| successor.is_none_or(|(end, _)| end.epoch == epoch)) {
            let limit = successor.map_or(u64::MAX, |(end, _)| end.position);
            if read.scan.end < proof.position.min(limit) {
                let reason = format!("a later round says that all was synced through position {}", proof.position);
                return Err(read.corruption(dir, reason));
            }
        }
        match successor {
            None => {
                let torn = read.scan.torn.zip(read.scan.defect.as_ref());
                if torn.is_some() {
                    reached!("torn round cut");
                }
                cut = cut.or(torn.map(|(sequence, defect)| Cut {
                    file: read.file.entry.path(dir),
                    position: read.scan.end,
                    sequence,
                    reason: format!("{} at position {}", defect.reason, defect.position),
                }));
            }
            Some((end, sequence)) if end.epoch == epoch => {
                if read.scan.end < end.position {
                    let reason = format!("a later file says that it was synced through position {}", end.position);
                    return Err(read.corruption(dir, reason));
                }
                read.scan.rounds.retain(|round| round.position < end.position);
                let last = read.scan.rounds.last();
                let fits = last.is_some_and(|last| last.end() == end.position && last.header.sequence + 1 == sequence);
                if !fits {
                    let reason =
                        format!("round {sequence} of a later file does not follow at position {}", end.position);
                    return Err(read.corruption(dir, reason));
                }
                read.scan.end = end.position;
            }
            // A file without rounds was named and prepared, but never used before the journal went on in a later one.
            Some(_) if read.scan.rounds.is_empty() => reached!("journal went on past a file that was never used"),
            Some((end, _)) => {
                let reason = format!("it holds rounds, and a later file continues epoch {} instead", end.epoch);
                return Err(read.corruption(dir, reason));
            }
        }
        if let Some(first) = read.scan.rounds.first() {
            successor = Some((first.header.boundary, first.header.sequence));
        }
    }
    match (files.first(), successor) {
        (Some(first), Some(_)) if !first.scan.rounds.is_empty() => {}
        (Some(first), _) => return Err(first.corruption(dir, "its checkpoint is gone".to_owned())),
        (None, _) => return Err(damage(dir.to_owned(), 0, "the identity names no file")),
    }
    hold_links(dir, files)?;
    Ok(cut)
}

/// Every file with rounds must be the one that the next such file continues.
fn hold_links(dir: &Path, files: &[Read]) -> Result<(), Corruption> {
    let used: Vec<&Read> = files.iter().filter(|read| !read.scan.rounds.is_empty()).collect();
    for pair in used.windows(2) {
        let named = pair[1].scan.first_boundary().map(|boundary| boundary.epoch);
        if named != Some(pair[0].file.entry.epoch) {
            let gone = files.iter().find(|read| Some(read.file.entry.epoch) == named).unwrap_or(pair[1]);
            return Err(gone.corruption(dir, "a later file says that it was synced, and no round is there".to_owned()));
        }
    }
    Ok(())
}

/// Everything that was recorded as synced must be there.
fn hold_against(dir: &Path, identity: &Identity, files: &[Read], recorded: &[Boundary]) -> Result<(), Corruption> {
    let first = files.first().map_or(0, |read| read.file.entry.epoch);
    for boundary in recorded.iter().filter(|boundary| boundary.epoch >= first) {
        let Some(read) = files.iter().find(|read| read.file.entry.epoch == boundary.epoch) else {
            let reason = format!(
                "the identity, generation {}, does not name epoch {}, which was used",
                identity.generation, boundary.epoch
            );
            return Err(damage(dir.join("identity-1"), 0, reason));
        };
        let end = read.scan.rounds.last().map_or(ROUNDS_START, Round::end);
        let overlooked = [planted!("rot-taken-for-the-end"), planted!("rot-in-last-round-cut-as-torn")].contains(&true);
        if end < boundary.position && !overlooked {
            let reason = format!("it was recorded as synced through position {}", boundary.position);
            return Err(read.corruption(dir, reason));
        }
    }
    Ok(())
}

/// Where the journal goes on.
fn continue_after(dir: &Path, files: &[Read], recorded: &[Boundary]) -> Result<Continuation, Corruption> {
    let last = files.iter().rev().find(|read| !read.scan.rounds.is_empty());
    let Some((read, round)) = last.and_then(|read| Some((read, read.scan.rounds.last()?))) else {
        return Err(damage(dir.to_owned(), 0, "no file holds a round"));
    };
    let end = Boundary { epoch: read.file.entry.epoch, position: round.end() };
    let proven = recorded.iter().any(|boundary| boundary.epoch == end.epoch && boundary.position >= end.position);
    if proven || planted!("appending-behind-a-cut") {
        return Ok(Continuation { boundary: end, sequence: round.header.sequence + 1, repeated: Vec::new() });
    }
    reached!("last round repeated into the next file");
    let repeated = live_frames(round).map(|frame| FrameDraft {
        kind: frame.header.kind,
        detail: frame.header.detail,
        group: frame.header.group,
        index: frame.header.index,
        term: frame.header.term,
        extra: frame.header.extra,
        payload: frame.payload.clone(),
    });
    let (boundary, sequence) = (round.header.boundary, round.header.sequence);
    Ok(Continuation { boundary, sequence, repeated: repeated.collect() })
}

fn replay(dir: &Path, files: &[Read]) -> Result<Replayed, Corruption> {
    let mut replay = Replay::default();
    for (at, read) in files.iter().enumerate() {
        let path = read.file.entry.path(dir);
        for round in &read.scan.rounds {
            replay.apply(round, at == 0).map_err(|nonsense| senseless(path.clone(), nonsense))?;
        }
        if at == 0 && !replay.is_complete() {
            return Err(damage(path, read.scan.end, "the checkpoint that the identity relies on is not complete"));
        }
    }
    replay.finish().map_err(|nonsense| senseless(dir.to_owned(), nonsense))
}

fn senseless(file: PathBuf, nonsense: Nonsense) -> Corruption {
    let Nonsense { position, group, reason } = nonsense;
    Corruption { file, position, reason, groups: [group].into() }
}

/// Reads the states that lie in files of their own, and hands out all that is there.
async fn collect(disk: &dyn Disk, dir: &Path, replayed: &Replayed) -> Result<Recovered, JournalError> {
    let mut groups = BTreeMap::new();
    for id in &replayed.ids {
        let Some(group) = replayed.groups.get(*id) else { continue };
        let mut base = group.base.base.clone();
        if let Some(file) = &group.base.file {
            base.state = match read_state(disk, dir, *id, file).await {
                Err(error) if planted!("unreadable-snapshot-taken-for-none") && error.is_corruption() => Bytes::new(),
                read => read?,
            };
        }
        let entries = group.entries.iter().cloned().collect();
        groups.insert(*id, RecoveredGroup { base, hard_state: group.hard_state, entries });
    }
    Ok(Recovered { groups, removed: replayed.removed.clone(), rounds: replayed.rounds, ..Recovered::default() })
}

/// The round that a new file begins with, if it repeats anything.
fn first_round(owner: JournalIdentity, epoch: u64, continuation: &Continuation) -> (Vec<Bytes>, u64) {
    if continuation.repeated.is_empty() {
        return (Vec::new(), 0);
    }
    let place = RoundPlace {
        salt: salt_of(owner, epoch),
        epoch,
        position: ROUNDS_START,
        sequence: continuation.sequence,
        boundary: continuation.boundary,
    };
    let mut round = RoundBuilder::new(place, BytesMut::new());
    for draft in &continuation.repeated {
        round.push(draft);
        if draft.kind == FrameKind::HardState {
            round.push_copy(FrameDraft { kind: FrameKind::HardStateCopy, ..draft.clone() });
        }
    }
    let (parts, span, _) = round.finish();
    (parts, span)
}

/// A journal that was read and is to be gone on with.
struct Reopened {
    identity: Identity,
    marks: Marks,
    files: Vec<Read>,
    continuation: Continuation,
    replayed: Replayed,
}

impl Reopened {
    /// Writes the new file and names it.
    async fn go_on(self, disk: Arc<dyn Disk>, dir: PathBuf, options: JournalOptions) -> Result<Journal, JournalError> {
        let Reopened { mut identity, marks, files, continuation, replayed } = self;
        let paths = disk.list(&dir).await.map_err(JournalError::io("list", dir.clone()))?;
        let slot = paths.iter().filter_map(|path| slot_of(path)).max().unwrap_or(0) + 1;
        let state_next = paths.iter().filter_map(|path| state_id_of(path)).chain(replayed.state_files.keys().copied());
        let state_next = state_next.max().map_or(0, |id| id + 1);
        let epoch = files.iter().map(|read| read.file.entry.epoch).max().unwrap_or(0) + 1;

        let (round, span) = first_round(identity.owner, epoch, &continuation);
        let bytes = sector_up(options.first_file_bytes.max(ROUNDS_START + span + 4 * SECTOR));
        let filled = match fill_file(disk.clone(), dir.clone(), slot, bytes, bytes).await {
            Ok(filled) => filled,
            Err(error) => {
                // The next start would remove it as well; but the room may be wanted by others meanwhile.
                let _ = disk.remove(&file_path(&dir, slot)).await;
                return Err(error);
            }
        };
        let entry = begin_life(&dir, &filled, identity.owner, epoch, round).await?;
        let proven = |read: &Read| !read.scan.rounds.is_empty() && read.file.entry.epoch <= continuation.boundary.epoch;
        let older: Vec<OpenFile> = files.iter().filter(|read| proven(read)).map(|read| read.file.clone()).collect();
        identity.generation += 1;
        identity.boundary = continuation.boundary;
        identity.files = older.iter().map(|file| file.entry).chain([entry]).collect();
        identity.write(&*disk, &dir).await?;

        let repeats = u64::from(span > 0);
        let position = ROUNDS_START + span;
        let boundary = if span > 0 { Boundary { epoch, position } } else { continuation.boundary };
        let unneeded = paths.into_iter().filter(|path| {
            slot_of(path).is_some_and(|slot| identity.files.iter().all(|file| file.slot != slot))
                || state_id_of(path).is_some_and(|id| !replayed.state_files.contains_key(&id))
        });
        let unneeded: Vec<PathBuf> = unneeded.collect();
        let needed = replayed.ids.iter().filter_map(|id| Some(replayed.groups.get(*id)?.base.file?.id));
        let states = StateFiles::recovered(replayed.state_files.clone(), needed, state_next);
        Ok(Journal {
            unneeded,
            states,
            disk,
            dir,
            options,
            identity,
            epoch_next: epoch + 1,
            slot_next: slot + 1,
            file: OpenFile { entry, handle: filled.handle },
            position,
            checkpoint: Checkpoint::new(Progress::Running),
            older,
            next: None,
            spare: None,
            job: None,
            fill_refused: false,
            sequence_next: continuation.sequence + repeats,
            boundary,
            marks,
            mark_due: span > 0,
            groups: replayed.groups,
            buffer: BytesMut::new(),
            stopped: None,
        })
    }
}
