//! The journal's directory: which files must exist, and through where they are synced.
//!
//! ```text
//!  identity-1, identity-2   which files must exist, with their epochs; replaced whole, one after the other
//!  marks                    two places, written in turn when the node falls idle: through where all is synced
//!  journal-NNNNNN           the rounds; NNNNNN is the file's slot, kept when it is recycled under a new epoch
//!  state-NNNN...            a base's state that is too large to lie inline (`states`)
//! ```
//!
//! Both copies of the identity are written before anything relies on either. So they differ only after a crash between
//! the two, and then either of them is true: a damaged one can be passed over. The marks lie apart from the rounds, so
//! that damage at the end of the newest file can't take the record that the end was synced along with it.

use super::error::{Corruption, JournalError};
use super::format::{Boundary, FileHeader, Salt};
use crate::disk::{read_file, replace_file, Disk, DiskFile, Lane, OpenMode};
use crate::ids::{Incarnation, NodeId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc32c::{crc32c, crc32c_append};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whose journal it is. Compared by the node with what it knows of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JournalIdentity {
    /// The node.
    pub node_id: NodeId,
    /// The life of its data directory.
    pub incarnation: Incarnation,
}

/// A file that must exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileEntry {
    /// The number in its name.
    pub slot: u64,
    /// Which life of the file.
    pub epoch: u64,
    /// Its size.
    pub bytes: u64,
}

impl FileEntry {
    /// Where it lies below the journal's folder.
    #[must_use]
    pub fn path(&self, dir: &Path) -> PathBuf {
        file_path(dir, self.slot)
    }
}

/// What the identity file says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// Whose journal it is.
    pub owner: JournalIdentity,
    /// How often it was written.
    pub generation: u64,
    /// Through where all was synced when it was written.
    pub boundary: Boundary,
    /// The files, by ascending epoch; the first holds a complete checkpoint.
    pub files: Vec<FileEntry>,
}

const IDENTITY_MAGIC: u64 = u64::from_le_bytes(*b"BALSAIDT");
const IDENTITY_VERSION: u32 = 1;
const IDENTITY_FIXED_LEN: usize = 8 + 4 + 4 + 16 + 4 + 4 + 8 + 16;
const FILE_ENTRY_LEN: usize = 24;
const FILES_MAX: usize = 4_096;
const IDENTITY_NAMES: [&str; 2] = ["identity-1", "identity-2"];

impl Identity {
    /// The file's content.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(IDENTITY_FIXED_LEN + self.files.len() * FILE_ENTRY_LEN);
        out.put_u64_le(IDENTITY_MAGIC);
        out.put_u32_le(IDENTITY_VERSION);
        out.put_u32_le(0);
        out.put_slice(&self.owner.incarnation.0);
        out.put_u32_le(self.owner.node_id.0);
        out.put_u32_le(self.files.len() as u32);
        out.put_u64_le(self.generation);
        out.put_u64_le(self.boundary.epoch);
        out.put_u64_le(self.boundary.position);
        for file in &self.files {
            out.put_u64_le(file.slot);
            out.put_u64_le(file.epoch);
            out.put_u64_le(file.bytes);
        }
        let sum = crc32c(&out);
        out[12..16].copy_from_slice(&sum.to_le_bytes());
        out.freeze()
    }

    /// Reads a file's content; `None` unless it is whole and valid.
    #[must_use]
    pub fn decode(content: &[u8]) -> Option<Identity> {
        if content.len() < IDENTITY_FIXED_LEN {
            return None;
        }
        let mut summed = content.to_vec();
        summed[12..16].fill(0);
        let mut fields = content;
        let (magic, version, sum) = (fields.get_u64_le(), fields.get_u32_le(), fields.get_u32_le());
        if magic != IDENTITY_MAGIC || version != IDENTITY_VERSION || crc32c(&summed) != sum {
            return None;
        }
        let mut incarnation = [0; 16];
        fields.copy_to_slice(&mut incarnation);
        let (node_id, count) = (NodeId(fields.get_u32_le()), fields.get_u32_le() as usize);
        let generation = fields.get_u64_le();
        let boundary = Boundary { epoch: fields.get_u64_le(), position: fields.get_u64_le() };
        if count > FILES_MAX || fields.len() != count * FILE_ENTRY_LEN {
            return None;
        }
        let files = (0..count)
            .map(|_| FileEntry { slot: fields.get_u64_le(), epoch: fields.get_u64_le(), bytes: fields.get_u64_le() })
            .collect();
        let owner = JournalIdentity { node_id, incarnation: Incarnation(incarnation) };
        Some(Identity { owner, generation, boundary, files })
    }

    /// Writes both copies, one after the other.
    pub(super) async fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<(), JournalError> {
        let content = self.encode();
        for name in IDENTITY_NAMES {
            let path = dir.join(name);
            let written = replace_file(disk, &path, content.clone()).await;
            written.map_err(JournalError::io("replace", path))?;
        }
        Ok(())
    }

    /// Reads the newer of the copies that are whole, and whether both are and say the same: then no file but those it names was ever named.
    pub(super) async fn read(disk: &dyn Disk, dir: &Path) -> Result<(Identity, bool), JournalError> {
        let (mut newest, mut present): (Option<Identity>, bool) = (None, false);
        let mut copies = Vec::with_capacity(IDENTITY_NAMES.len());
        for name in IDENTITY_NAMES {
            let path = dir.join(name);
            let bytes_max = (IDENTITY_FIXED_LEN + FILES_MAX * FILE_ENTRY_LEN) as u64;
            let copy = match read_file(disk, &path, bytes_max).await {
                Ok(content) => Identity::decode(&content),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
                Err(error) => return Err(JournalError::io("read", path)(error)),
            };
            present = true;
            copies.push(copy.as_ref().map(|identity| identity.generation));
            newest = newest.into_iter().chain(copy).max_by_key(|identity| identity.generation);
        }
        match newest {
            Some(identity) => {
                let agree = copies == [Some(identity.generation); IDENTITY_NAMES.len()];
                Ok((identity, agree))
            }
            None if present => Err(damage(dir.join(IDENTITY_NAMES[0]), 0, "no copy of the identity is whole").into()),
            None => Err(JournalError::Missing { dir: dir.to_owned() }),
        }
    }

    /// Whether there is a copy, whole or not.
    pub(super) async fn exists(disk: &dyn Disk, dir: &Path) -> Result<bool, JournalError> {
        for name in IDENTITY_NAMES {
            let path = dir.join(name);
            match disk.open(&path, OpenMode::ReadOnly, Lane::Bulk).await {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(JournalError::io("open", path)(error)),
            }
        }
        Ok(false)
    }
}

/// A corruption of which no group is known.
pub(super) fn damage(file: PathBuf, position: u64, reason: impl Into<String>) -> Corruption {
    Corruption { file, position, reason: reason.into(), groups: BTreeSet::new() }
}

/// The file in a slot.
pub(super) fn file_path(dir: &Path, slot: u64) -> PathBuf {
    dir.join(format!("journal-{slot:06}"))
}

/// The slot that a file's name says, if it is a journal file.
pub(super) fn slot_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("journal-")?.parse().ok()
}

/// A file that is filled with bytes that no life of it takes for its own, so that writing to it changes no metadata.
pub(super) struct Filled {
    pub(super) slot: u64,
    pub(super) bytes: u64,
    pub(super) handle: Arc<dyn DiskFile>,
}

/// Makes a file of zeros, a step at a time, and syncs it and its name.
pub(super) async fn fill_file(
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    slot: u64,
    bytes: u64,
    step_bytes: u64,
) -> Result<Filled, JournalError> {
    let path = file_path(&dir, slot);
    let io = |action| JournalError::io(action, path.clone());
    let handle = disk.open(&path, OpenMode::CreateNew, Lane::Fill).await.map_err(io("create"))?;
    let mut position = 0;
    while position < bytes {
        let step = step_bytes.clamp(1, bytes - position);
        handle.fill_zero(position, step).await.map_err(io("fill"))?;
        handle.sync().await.map_err(io("sync"))?;
        position += step;
    }
    disk.sync_dir(&dir).await.map_err(JournalError::io("sync", dir.clone()))?;
    // From here on the file is the journal's: its writes must not wait behind anybody's cold read.
    let handle = disk.open(&path, OpenMode::Existing, Lane::Journal).await.map_err(io("open"))?;
    Ok(Filled { slot, bytes, handle })
}

/// Gives a file its next life: a header with the epoch, and what should follow it, synced.
pub(super) async fn begin_life(
    dir: &Path,
    filled: &Filled,
    owner: JournalIdentity,
    epoch: u64,
    first_round: Vec<Bytes>,
) -> Result<FileEntry, JournalError> {
    let JournalIdentity { node_id, incarnation } = owner;
    let header = FileHeader { incarnation, node_id, epoch, slot: filled.slot, bytes: filled.bytes };
    let mut parts = vec![header.encode_block()];
    parts.extend(first_round);
    let written = filled.handle.write_and_sync(0, parts).await;
    written.map_err(JournalError::io("write and sync", file_path(dir, filled.slot)))?;
    Ok(FileEntry { slot: filled.slot, epoch, bytes: filled.bytes })
}

const MARKS_NAME: &str = "marks";
const MARK_MAGIC: u32 = u32::from_le_bytes(*b"MARK");
const MARK_LEN: usize = 40;
/// The two places lie in blocks of their own: a torn or rotten one leaves the other.
const MARK_PLACES: [u64; 2] = [0, 4_096];
const MARKS_BYTES: u64 = 8_192;

/// Where it is recorded through where all is synced, when no later round says so.
pub(super) struct Marks {
    handle: Arc<dyn DiskFile>,
    path: PathBuf,
    salt: u32,
    /// How often a mark was written; the next goes to the place of the older one.
    count: u64,
    /// What the newest mark says.
    pub(super) recorded: Boundary,
}

impl Marks {
    fn path(dir: &Path) -> PathBuf {
        dir.join(MARKS_NAME)
    }

    /// Creates the file with the same mark in both places; its name still has to be synced.
    pub(super) async fn create(
        disk: &dyn Disk,
        dir: &Path,
        owner: JournalIdentity,
        boundary: Boundary,
    ) -> Result<Marks, JournalError> {
        let path = Self::path(dir);
        let opened = disk.open(&path, OpenMode::CreateNew, Lane::Journal).await;
        let handle = opened.map_err(JournalError::io("create", path.clone()))?;
        handle.fill_zero(0, MARKS_BYTES).await.map_err(JournalError::io("fill", path.clone()))?;
        let mut marks = Marks { handle, path, salt: crc32c(&owner.incarnation.0), count: 0, recorded: boundary };
        marks.write(boundary).await?;
        marks.write(boundary).await?;
        Ok(marks)
    }

    /// Opens the file and reads the newest mark that is whole.
    pub(super) async fn open(disk: &dyn Disk, dir: &Path, owner: JournalIdentity) -> Result<Marks, JournalError> {
        let path = Self::path(dir);
        let handle = match disk.open(&path, OpenMode::Existing, Lane::Journal).await {
            Ok(handle) => handle,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damage(path, 0, "the file is missing").into());
            }
            Err(error) => return Err(JournalError::io("open", path)(error)),
        };
        let content = handle.read_at(0, MARKS_BYTES as usize).await.map_err(JournalError::io("read", path.clone()))?;
        let salt = crc32c(&owner.incarnation.0);
        match newest_mark(salt, &content) {
            Some((count, recorded)) => Ok(Marks { handle, path, salt, count, recorded }),
            None => Err(damage(path, 0, "neither mark is whole").into()),
        }
    }

    /// Records that all is synced through `boundary`.
    pub(super) async fn write(&mut self, boundary: Boundary) -> Result<(), JournalError> {
        let count = self.count + 1;
        let place = MARK_PLACES[(count % 2) as usize];
        let mark = encode_mark(self.salt, count, boundary);
        let written = self.handle.write_and_sync(place, vec![mark]).await;
        written.map_err(JournalError::io("write and sync", self.path.clone()))?;
        (self.count, self.recorded) = (count, boundary);
        Ok(())
    }
}

/// The newest mark in a marks file, for those who only look.
pub(super) async fn read_mark(disk: &dyn Disk, dir: &Path, owner: JournalIdentity) -> Option<Boundary> {
    let content = read_file(disk, &Marks::path(dir), MARKS_BYTES).await.ok()?;
    newest_mark(crc32c(&owner.incarnation.0), &content).map(|(_, boundary)| boundary)
}

pub(super) fn encode_mark(salt: u32, count: u64, boundary: Boundary) -> Bytes {
    let mut out = BytesMut::with_capacity(MARK_LEN);
    out.put_u32_le(MARK_MAGIC);
    out.put_u32_le(0);
    out.put_u64_le(count);
    out.put_u64_le(boundary.epoch);
    out.put_u64_le(boundary.position);
    out.put_u64_le(0);
    let sum = crc32c_append(salt, &out[8..]);
    out[4..8].copy_from_slice(&sum.to_le_bytes());
    out.freeze()
}

fn decode_mark(salt: u32, bytes: &[u8]) -> Option<(u64, Boundary)> {
    let mut fields = bytes.get(..MARK_LEN)?;
    let (magic, sum) = (fields.get_u32_le(), fields.get_u32_le());
    if magic != MARK_MAGIC || crc32c_append(salt, fields) != sum {
        return None;
    }
    let count = fields.get_u64_le();
    Some((count, Boundary { epoch: fields.get_u64_le(), position: fields.get_u64_le() }))
}

fn newest_mark(salt: u32, content: &[u8]) -> Option<(u64, Boundary)> {
    let marks = MARK_PLACES.iter().filter_map(|place| decode_mark(salt, content.get(*place as usize..)?));
    marks.max_by_key(|(count, _)| *count)
}

/// The salt of a file's headers.
pub(super) fn salt_of(owner: JournalIdentity, epoch: u64) -> Salt {
    Salt::new(owner.incarnation, epoch)
}
