//! A segment's name and its first bytes: whose it is, and the base it starts from.
//!
//! Pure, but for [`read_header`], which fetches the bytes.

use super::SegmentsError;
use crate::disk::DiskFile;
use crate::ids::{GroupId, LogIndex};
use crate::journal::base::Base;
use crate::limits::SNAPSHOT_BYTES_MAX;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"balsaseg";
const VERSION: u32 = 1;
/// Bytes before the base.
const FIXED_LEN: usize = 32;
/// Where the checksum lies; it counts everything else.
const CRC_AT: usize = 28;
/// Largest encoded base: its state, and room for numbers and a configuration.
const BASE_BYTES_MAX: usize = SNAPSHOT_BYTES_MAX + (64 << 10);

/// What a segment starts with.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct SegmentHeader {
    pub group: GroupId,
    /// Whether the log starts here: the group was created, or a snapshot replaced what came before. Older files are refuse.
    pub starts_log: bool,
    pub base: Base,
}

impl SegmentHeader {
    /// The encoded form, which the first frame follows.
    pub fn encode(&self) -> Bytes {
        let base_len = self.base.encoded_len();
        let mut bytes = BytesMut::with_capacity(FIXED_LEN + base_len);
        bytes.put_slice(MAGIC);
        bytes.put_u32_le(VERSION);
        bytes.put_u32_le(u32::from(self.starts_log));
        bytes.put_u64_le(self.group.0);
        bytes.put_u32_le(base_len as u32);
        bytes.put_u32_le(0);
        self.base.encode(&mut bytes);
        let crc = checksum(&bytes);
        bytes[CRC_AT..FIXED_LEN].copy_from_slice(&crc.to_le_bytes());
        bytes.freeze()
    }

    /// The header that fills `bytes`; `None` if none does.
    pub fn decode(bytes: &Bytes) -> Option<SegmentHeader> {
        decode(bytes).ok()
    }
}

fn checksum(header: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..CRC_AT]), &header[FIXED_LEN..])
}

/// Reads a segment's header and the position of its first frame.
pub(super) async fn read_header(file: &dyn DiskFile, path: &Path) -> Result<(SegmentHeader, u64), SegmentsError> {
    // Most bases are small: one read is enough for them.
    let first = read(file, path, 4096).await?;
    let len = header_len(&first).map_err(|what| SegmentsError::corrupt(path, 0, what))?;
    let bytes = if first.len() < len { read(file, path, len).await? } else { first.slice(..len) };
    let header = decode(&bytes).map_err(|what| SegmentsError::corrupt(path, 0, what))?;
    Ok((header, len as u64))
}

/// Bytes of the header that starts with `first`; or what is wrong.
fn header_len(first: &[u8]) -> Result<usize, &'static str> {
    if first.len() < FIXED_LEN {
        return Err("the file is shorter than a segment's header");
    }
    if first[..8] != MAGIC[..] {
        return Err("no segment starts here");
    }
    match (&first[24..28]).get_u32_le() as usize {
        base_len if base_len > BASE_BYTES_MAX => Err("the base's length is beyond its bound"),
        base_len => Ok(FIXED_LEN + base_len),
    }
}

/// The header that fills `bytes`; or what is wrong.
fn decode(bytes: &Bytes) -> Result<SegmentHeader, &'static str> {
    let len = header_len(bytes)?;
    let mut fixed = &bytes[8..FIXED_LEN];
    let version = fixed.get_u32_le();
    let starts_log = fixed.get_u32_le() != 0;
    let group = GroupId(fixed.get_u64_le());
    fixed.advance(4);
    if bytes.len() != len || checksum(bytes) != fixed.get_u32_le() {
        return Err("the segment header's checksum differs");
    }
    if version != VERSION {
        return Err("the segment's format version is unknown");
    }
    let base = Base::decode(bytes.slice(FIXED_LEN..)).ok_or("the segment's base can't be decoded")?;
    Ok(SegmentHeader { group, starts_log, base })
}

async fn read(file: &dyn DiskFile, path: &Path, len: usize) -> Result<Bytes, SegmentsError> {
    file.read_at(0, len).await.map_err(|error| SegmentsError::read(path, error))
}

/// The segment whose first frame has this index.
pub(super) fn segment_path(dir: &Path, first_index: LogIndex) -> PathBuf {
    dir.join(format!("{:020}.seg", first_index.0))
}

/// The first index in a segment's name; `None` if the name is not a segment's.
pub(super) fn first_index_of(path: &Path) -> Option<LogIndex> {
    let name = path.file_name()?.to_str()?.strip_suffix(".seg")?;
    let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok().map(LogIndex))?
}
