//! States of bases that are too large to lie inline: a file each, written and synced before the frame that refers to
//! it.
//!
//! A file lives as long as a replay could meet a frame that refers to it *and* end there: until another base took its
//! place and every journal file with such a frame has left the identity. It is not rewritten when the base is restated.

use super::error::JournalError;
use super::files::damage;
use super::groups::StateFile;
use crate::disk::{read_file, Disk, Lane, OpenMode};
use crate::ids::{Digest, GroupId};
use crate::limits;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const MAGIC: u64 = u64::from_le_bytes(*b"BALSASTA");
const HEADER_LEN: usize = 64;

/// The file of a state.
pub(super) fn state_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("state-{id:020}"))
}

/// The number that a file's name says, if it is a state's.
pub(super) fn state_id_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("state-")?.parse().ok()
}

/// Magic, id, group, length, digest; zeros between them and at the end are reserved.
fn encode_header(group: GroupId, file: &StateFile) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_LEN);
    out.put_u64_le(MAGIC);
    out.put_u64_le(file.id);
    out.put_u64_le(group.0);
    out.put_u64_le(file.len);
    out.put_slice(&file.digest.0);
    out.freeze()
}

/// Writes and syncs the file of a state; its name still has to be synced.
pub(super) async fn write_state(
    disk: &dyn Disk,
    dir: &Path,
    id: u64,
    group: GroupId,
    state: &Bytes,
) -> Result<StateFile, JournalError> {
    let file = StateFile { id, len: state.len() as u64, digest: Digest(*blake3::hash(state).as_bytes()) };
    let path = state_path(dir, id);
    let opened = disk.open(&path, OpenMode::CreateNew, Lane::Journal).await;
    let handle = opened.map_err(JournalError::io("create", path.clone()))?;
    let written = handle.write_and_sync(0, vec![encode_header(group, &file), state.clone()]).await;
    written.map_err(JournalError::io("write and sync", path))?;
    Ok(file)
}

/// Reads a state back and holds it against what the frame says of it.
pub(super) async fn read_state(
    disk: &dyn Disk,
    dir: &Path,
    group: GroupId,
    file: &StateFile,
) -> Result<Bytes, JournalError> {
    let path = state_path(dir, file.id);
    let bad = |reason: &str| {
        let mut damage = damage(path.clone(), 0, reason);
        damage.groups.insert(group);
        JournalError::Corrupt(damage)
    };
    let bytes_max = (HEADER_LEN + limits::SNAPSHOT_BYTES_MAX) as u64 * 2;
    let mut content = match read_file(disk, &path, bytes_max).await {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(bad("the state's file is missing")),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(bad("the state is too long")),
        Err(error) => return Err(JournalError::io("read", path)(error)),
    };
    if content.len() < HEADER_LEN || content.split_to(HEADER_LEN) != encode_header(group, file) {
        return Err(bad("the state's header is not what the journal refers to"));
    }
    if content.remaining() as u64 != file.len || blake3::hash(&content).as_bytes() != &file.digest.0 {
        return Err(bad("the state fails its digest"));
    }
    Ok(content)
}

/// Which state files there are, and until when they are needed.
#[derive(Default)]
pub(super) struct StateFiles {
    next_id: u64,
    /// Epoch of the last file with a frame that refers to it, for each file that some group's base needs or some replay
    /// may meet.
    referred: BTreeMap<u64, u64>,
    /// Those of them that no group's base needs any more.
    superseded: BTreeMap<u64, u64>,
}

impl StateFiles {
    /// As recovered: all that frames refer to, those that bases need, and the first free number.
    pub(super) fn recovered(
        referred: BTreeMap<u64, u64>,
        needed: impl Iterator<Item = u64>,
        next_id: u64,
    ) -> StateFiles {
        let mut superseded = referred;
        let referred = needed.filter_map(|id| Some((id, superseded.remove(&id)?))).collect();
        StateFiles { next_id, referred, superseded }
    }

    pub(super) fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// A frame in the file of this epoch refers to it.
    pub(super) fn refer(&mut self, id: u64, epoch: u64) {
        self.referred.insert(id, epoch);
    }

    /// No base needs it from here on.
    pub(super) fn supersede(&mut self, id: u64) {
        if let Some(epoch) = self.referred.remove(&id) {
            self.superseded.insert(id, epoch);
        }
    }

    /// Those that no replay can need, once the first file has this epoch.
    pub(super) fn take_unneeded(&mut self, first_epoch: u64) -> Vec<u64> {
        let unneeded: Vec<u64> =
            self.superseded.iter().filter(|(_, epoch)| **epoch < first_epoch).map(|(id, _)| *id).collect();
        unneeded.iter().for_each(|id| {
            self.superseded.remove(id);
        });
        unneeded
    }
}
