//! The bytes of a journal file: file header, round header, frame header. Pure.
//!
//! Every header carries a checksum that also covers the file's epoch, the node's incarnation and the header's own
//! position. So neither the bytes of a recycled file's earlier life nor a copy of journal bytes inside somebody's
//! record is ever taken for a header. Rounds fill whole sectors: a crash that tears one can't touch its neighbour, and
//! a search for rounds behind a bad spot looks at sector edges only. The layouts are drawn in `docs/formats.md`.

use crate::ids::{GroupId, Incarnation, NodeId};
use crate::planted;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc32c::{crc32c, crc32c_append};

/// Rounds begin and end at multiples of this.
pub const SECTOR: u64 = 512;
/// Where a file's first round begins; the block before holds the file header and zeros.
pub const ROUNDS_START: u64 = 4_096;
/// Bytes of a file header.
pub const FILE_HEADER_LEN: usize = 64;
/// Bytes of a round header.
pub const ROUND_HEADER_LEN: usize = 64;
/// Bytes of a frame header.
pub const FRAME_HEADER_LEN: usize = 56;
/// Payloads longer than this are handed to the disk as they are, shorter ones are copied beside their headers.
pub const SHARED_PAYLOAD_MIN: usize = 4 << 10;

/// Where in a frame header the round's number lies.
pub(super) const FRAME_SEQUENCE_AT: usize = 16;
const REST_OF_BLOCK: usize = ROUNDS_START as usize - FILE_HEADER_LEN;
const FILE_MAGIC: u64 = u64::from_le_bytes(*b"BALSAJRN");
const FILE_VERSION: u32 = 1;
const ROUND_MAGIC: u32 = u32::from_le_bytes(*b"ROND");

/// The next sector edge.
#[must_use]
pub const fn sector_up(len: u64) -> u64 {
    len.div_ceil(SECTOR) * SECTOR
}

/// A place in the journal through which all was synced.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Boundary {
    /// The file's epoch; zero when there is no file before.
    pub epoch: u64,
    /// Where in it the last synced round ends.
    pub position: u64,
}

/// What the checksums of one file's headers start from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Salt(u32);

impl Salt {
    /// That of the file with this epoch, of the node with this incarnation.
    #[must_use]
    pub fn new(incarnation: Incarnation, epoch: u64) -> Salt {
        let epoch = if planted!("recycled-frames-taken-for-new") { 0 } else { epoch };
        Salt(crc32c_append(crc32c(&incarnation.0), &epoch.to_le_bytes()))
    }

    /// The checksum of a header at `position`: of its bytes after the first eight (magic, checksum), or after the first
    /// four (checksum only).
    fn sum(self, position: u64, covered: &[u8]) -> u32 {
        crc32c_append(crc32c_append(self.0, &position.to_le_bytes()), covered)
    }
}

/// The first bytes of a journal file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileHeader {
    /// Of the node that wrote it.
    pub incarnation: Incarnation,
    /// Of the node that wrote it.
    pub node_id: NodeId,
    /// Which life of the file this is: unique in the journal, ascending in the order of use, from one.
    pub epoch: u64,
    /// The number in the file's name.
    pub slot: u64,
    /// Its size.
    pub bytes: u64,
}

impl FileHeader {
    /// The whole first block.
    #[must_use]
    pub fn encode_block(&self) -> Bytes {
        let mut block = BytesMut::with_capacity(ROUNDS_START as usize);
        block.put_u64_le(FILE_MAGIC);
        block.put_u32_le(FILE_VERSION);
        block.put_u32_le(0);
        block.put_slice(&self.incarnation.0);
        block.put_u64_le(self.epoch);
        block.put_u64_le(self.slot);
        block.put_u64_le(self.bytes);
        block.put_u32_le(self.node_id.0);
        block.put_u32_le(0);
        let sum = crc32c(&block);
        block[12..16].copy_from_slice(&sum.to_le_bytes());
        block.resize(ROUNDS_START as usize, 0);
        block.freeze()
    }

    /// Reads the first block.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn decode_block(block: &[u8]) -> Result<FileHeader, &'static str> {
        if block.len() < ROUNDS_START as usize {
            return Err("the file is shorter than its header");
        }
        let (header, rest) = block.split_at(FILE_HEADER_LEN);
        let mut summed = [0; FILE_HEADER_LEN];
        summed.copy_from_slice(header);
        summed[12..16].fill(0);
        let mut fields = header;
        let (magic, version, sum) = (fields.get_u64_le(), fields.get_u32_le(), fields.get_u32_le());
        if magic != FILE_MAGIC {
            return Err("the file does not begin as a journal file does");
        }
        if crc32c(&summed) != sum {
            return Err("the file header fails its checksum");
        }
        if version != FILE_VERSION {
            return Err("the file header's version is not one this program knows");
        }
        if rest[..REST_OF_BLOCK] != [0; REST_OF_BLOCK] {
            return Err("the block behind the file header is not empty");
        }
        let mut incarnation = [0; 16];
        fields.copy_to_slice(&mut incarnation);
        let (epoch, slot, bytes) = (fields.get_u64_le(), fields.get_u64_le(), fields.get_u64_le());
        let node_id = NodeId(fields.get_u32_le());
        Ok(FileHeader { incarnation: Incarnation(incarnation), node_id, epoch, slot, bytes })
    }
}

/// What a round begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoundHeader {
    /// Epoch of the file it was written to.
    pub epoch: u64,
    /// Its number: one more than the round before, in whichever file.
    pub sequence: u64,
    /// Where all before it ends, synced. In a file's first round this is where the file before ends, and what lies
    /// behind that place there is void.
    pub boundary: Boundary,
    /// Bytes of frames behind the header.
    pub body_len: u32,
    /// Bytes of frames in the copies, from the next sector edge behind the body.
    pub copies_len: u32,
    /// Frames in the body.
    pub frames: u32,
    /// Frames in the copies.
    pub copies: u32,
}

impl RoundHeader {
    /// Writes the header into the first bytes of `into`.
    fn encode(&self, salt: Salt, position: u64, into: &mut [u8]) {
        let mut fields = &mut into[..ROUND_HEADER_LEN];
        fields.put_u32_le(ROUND_MAGIC);
        fields.put_u32_le(0);
        fields.put_u64_le(self.epoch);
        fields.put_u64_le(self.sequence);
        fields.put_u64_le(self.boundary.epoch);
        fields.put_u64_le(self.boundary.position);
        fields.put_u32_le(self.body_len);
        fields.put_u32_le(self.copies_len);
        fields.put_u32_le(self.frames);
        fields.put_u32_le(self.copies);
        fields.put_u64_le(0);
        let sum = salt.sum(position, &into[8..ROUND_HEADER_LEN]);
        into[4..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// The header at `position` of a file; `None` unless a whole and valid one lies there.
    #[must_use]
    pub fn decode(salt: Salt, position: u64, bytes: &[u8]) -> Option<RoundHeader> {
        let mut fields = bytes.get(..ROUND_HEADER_LEN)?;
        let (magic, sum) = (fields.get_u32_le(), fields.get_u32_le());
        if magic != ROUND_MAGIC || salt.sum(position, fields) != sum {
            return None;
        }
        Some(RoundHeader {
            epoch: fields.get_u64_le(),
            sequence: fields.get_u64_le(),
            boundary: Boundary { epoch: fields.get_u64_le(), position: fields.get_u64_le() },
            body_len: fields.get_u32_le(),
            copies_len: fields.get_u32_le(),
            frames: fields.get_u32_le(),
            copies: fields.get_u32_le(),
        })
    }

    /// Bytes from the round's beginning to its copies.
    #[must_use]
    pub fn body_span(&self) -> u64 {
        sector_up(ROUND_HEADER_LEN as u64 + u64::from(self.body_len))
    }

    /// Bytes of the whole round.
    #[must_use]
    pub fn span(&self) -> u64 {
        self.body_span() + sector_up(u64::from(self.copies_len))
    }
}

/// What a frame says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FrameKind {
    /// The group's base moves (or is its first one).
    Base = 1,
    /// An entry is appended, in place of all that stood at its index and above.
    Entry = 2,
    /// The group's hard state.
    HardState = 3,
    /// The group is gone for good.
    Removed = 4,
    /// A hard state of the same round once more, in other sectors. Replay passes over it.
    HardStateCopy = 5,
    /// Checkpoint: a group's base as of now; its entries as of now follow.
    RestatedBase = 8,
    /// Checkpoint: one of the group's entries as of now.
    RestatedEntry = 9,
    /// Checkpoint: the group's hard state as of now.
    RestatedHardState = 10,
    /// Checkpoint: tombstones, eight bytes each.
    RestatedTombstones = 11,
    /// Checkpoint: all groups were restated in this file.
    CheckpointComplete = 12,
}

impl FrameKind {
    const ALL: [FrameKind; 10] = [
        FrameKind::Base,
        FrameKind::Entry,
        FrameKind::HardState,
        FrameKind::Removed,
        FrameKind::HardStateCopy,
        FrameKind::RestatedBase,
        FrameKind::RestatedEntry,
        FrameKind::RestatedHardState,
        FrameKind::RestatedTombstones,
        FrameKind::CheckpointComplete,
    ];

    fn from_code(code: u8) -> Option<FrameKind> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == code)
    }
}

/// In [`FrameHeader::detail`] of a base: its state lies in a file of its own, to which the payload refers.
pub const BASE_STATE_IN_FILE: u8 = 1;
/// In [`FrameHeader::detail`] of a base: all entries that the group had are void.
pub const BASE_VOIDS_ENTRIES: u8 = 2;

/// What a frame begins with. The numbers mean what the kind says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What the frame says.
    pub kind: FrameKind,
    /// Entries: the raft type. Bases: flags.
    pub detail: u8,
    /// Bytes behind the header.
    pub payload_len: u32,
    /// Their crc32c.
    pub payload_sum: u32,
    /// Number of the round it is part of.
    pub sequence: u64,
    /// The group it concerns.
    pub group: GroupId,
    /// Entries and bases: the index. Hard states: the commit.
    pub index: u64,
    /// The term.
    pub term: u64,
    /// Hard states: the vote. Entries: bytes of context at the end of the payload.
    pub extra: u64,
}

impl FrameHeader {
    fn encode(&self, salt: Salt, position: u64, into: &mut BytesMut) {
        let start = into.len();
        into.put_u32_le(0);
        into.put_u8(self.kind as u8);
        into.put_u8(self.detail);
        into.put_u16_le(0);
        into.put_u32_le(self.payload_len);
        into.put_u32_le(self.payload_sum);
        into.put_u64_le(self.sequence);
        into.put_u64_le(self.group.0);
        into.put_u64_le(self.index);
        into.put_u64_le(self.term);
        into.put_u64_le(self.extra);
        let sum = salt.sum(position, &into[start + 4..]);
        into[start..start + 4].copy_from_slice(&sum.to_le_bytes());
    }

    /// The header at `position` of a file; `None` unless a whole and valid one lies there.
    #[must_use]
    pub fn decode(salt: Salt, position: u64, bytes: &[u8]) -> Option<FrameHeader> {
        let mut fields = bytes.get(..FRAME_HEADER_LEN)?;
        let sum = fields.get_u32_le();
        if salt.sum(position, fields) != sum {
            return None;
        }
        let (kind, detail) = (FrameKind::from_code(fields.get_u8())?, fields.get_u8());
        fields.advance(2);
        Some(FrameHeader {
            kind,
            detail,
            payload_len: fields.get_u32_le(),
            payload_sum: fields.get_u32_le(),
            sequence: fields.get_u64_le(),
            group: GroupId(fields.get_u64_le()),
            index: fields.get_u64_le(),
            term: fields.get_u64_le(),
            extra: fields.get_u64_le(),
        })
    }
}

/// A frame to be written; its checksums and its round's number are filled in by the builder.
#[derive(Clone, PartialEq, Debug)]
pub struct FrameDraft {
    /// See [`FrameHeader`].
    pub kind: FrameKind,
    /// See [`FrameHeader`].
    pub detail: u8,
    /// See [`FrameHeader`].
    pub group: GroupId,
    /// See [`FrameHeader`].
    pub index: u64,
    /// See [`FrameHeader`].
    pub term: u64,
    /// See [`FrameHeader`].
    pub extra: u64,
    /// What follows the header.
    pub payload: Bytes,
}

impl FrameDraft {
    /// A frame of `kind` about `group`, with nothing else in it.
    #[must_use]
    pub fn bare(kind: FrameKind, group: GroupId) -> FrameDraft {
        FrameDraft { kind, detail: 0, group, index: 0, term: 0, extra: 0, payload: Bytes::new() }
    }

    /// Bytes it takes in a round.
    #[must_use]
    pub fn encoded_len(&self) -> u64 {
        (FRAME_HEADER_LEN + self.payload.len()) as u64
    }
}

/// Where a round will lie, and its number.
#[derive(Clone, Copy, Debug)]
pub struct RoundPlace {
    /// Of the file.
    pub salt: Salt,
    /// Of the file.
    pub epoch: u64,
    /// Of its first byte.
    pub position: u64,
    /// Its number.
    pub sequence: u64,
    /// What it names as synced.
    pub boundary: Boundary,
}

/// Encodes one round into few buffers: headers and short payloads in one, long payloads shared.
pub struct RoundBuilder {
    place: RoundPlace,
    own: BytesMut,
    /// A long payload follows the own bytes up to this length.
    shared: Vec<(usize, Bytes)>,
    shared_len: u64,
    frames: u32,
    copies: Vec<FrameDraft>,
}

impl RoundBuilder {
    /// Begins a round in `buffer`, which is emptied.
    #[must_use]
    pub fn new(place: RoundPlace, mut buffer: BytesMut) -> RoundBuilder {
        buffer.clear();
        buffer.resize(ROUND_HEADER_LEN, 0);
        RoundBuilder { place, own: buffer, shared: Vec::new(), shared_len: 0, frames: 0, copies: Vec::new() }
    }

    /// Appends a frame to the body.
    pub fn push(&mut self, draft: &FrameDraft) {
        self.put(draft);
        self.frames += 1;
    }

    /// Has a frame repeated in sectors of its own behind the body.
    pub fn push_copy(&mut self, draft: FrameDraft) {
        self.copies.push(draft);
    }

    /// How many frames the body has so far.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Bytes the round would take if it ended here.
    #[must_use]
    pub fn span(&self) -> u64 {
        let copies: u64 = self.copies.iter().map(FrameDraft::encoded_len).sum();
        sector_up(self.len()) + sector_up(copies)
    }

    fn len(&self) -> u64 {
        self.own.len() as u64 + self.shared_len
    }

    fn put(&mut self, draft: &FrameDraft) {
        let header = FrameHeader {
            kind: draft.kind,
            detail: draft.detail,
            payload_len: draft.payload.len() as u32,
            payload_sum: crc32c(&draft.payload),
            sequence: self.place.sequence,
            group: draft.group,
            index: draft.index,
            term: draft.term,
            extra: draft.extra,
        };
        let position = self.place.position + self.len();
        header.encode(self.place.salt, position, &mut self.own);
        if draft.payload.len() > SHARED_PAYLOAD_MIN {
            self.shared.push((self.own.len(), draft.payload.clone()));
            self.shared_len += draft.payload.len() as u64;
        } else {
            self.own.put_slice(&draft.payload);
        }
    }

    fn pad(&mut self) {
        let gap = sector_up(self.len()) - self.len();
        self.own.put_bytes(0, gap as usize);
    }

    /// The round's parts, one after another, and their length. The buffer comes back for the next round.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Bytes>, u64, BytesMut) {
        let body_len = (self.len() - ROUND_HEADER_LEN as u64) as u32;
        self.pad();
        let copies_start = self.len();
        let copies = std::mem::take(&mut self.copies);
        copies.iter().for_each(|draft| self.put(draft));
        let copies_len = (self.len() - copies_start) as u32;
        self.pad();
        let header = RoundHeader {
            epoch: self.place.epoch,
            sequence: self.place.sequence,
            boundary: self.place.boundary,
            body_len,
            copies_len,
            frames: self.frames,
            copies: copies.len() as u32,
        };
        header.encode(self.place.salt, self.place.position, &mut self.own);
        let span = self.len();
        let own = self.own.split().freeze();
        let mut parts = Vec::with_capacity(self.shared.len() * 2 + 1);
        let mut start = 0;
        for (end, payload) in self.shared {
            parts.push(own.slice(start..end));
            parts.push(payload);
            start = end;
        }
        if start < own.len() {
            parts.push(own.slice(start..));
        }
        (parts, span, self.own)
    }
}
