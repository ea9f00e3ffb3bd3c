//! Reads the rounds of one file's bytes and says how far they are whole, and what proves more. Pure.
//!
//! A scan ends at the first spot that is not a whole round of the expected number. That may be the end, a round that a
//! crash tore, or rot. One thing tells rot here: a valid round header behind the spot, in this file, that names a
//! boundary beyond it; it was written only after all before it had been synced. Marks, the identity and later files are
//! held against the scan by the caller.

use super::format::{
    sector_up, Boundary, FrameHeader, FrameKind, RoundHeader, Salt, FRAME_HEADER_LEN, FRAME_SEQUENCE_AT, ROUNDS_START,
    ROUND_HEADER_LEN, SECTOR,
};
use crate::ids::GroupId;
use crate::{planted, reached};
use bytes::Bytes;
use crc32c::crc32c;

/// A frame as it lies in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Where its header lies.
    pub position: u64,
    /// Its header.
    pub header: FrameHeader,
    /// Its payload, shared with the file's bytes.
    pub payload: Bytes,
}

/// A whole round as it lies in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Round {
    /// Where its header lies.
    pub position: u64,
    /// Its header.
    pub header: RoundHeader,
    /// The frames of its body.
    pub frames: Vec<Frame>,
    /// The frames of its copies.
    pub copies: Vec<Frame>,
}

impl Round {
    /// Where the next round begins.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.position + self.header.span()
    }
}

/// Why there is no whole round at some position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Defect {
    /// Where the trouble lies.
    pub position: u64,
    /// What it is.
    pub reason: &'static str,
    /// The group whose frame it is, if its header is readable.
    pub group: Option<GroupId>,
}

impl Defect {
    fn at(position: u64, reason: &'static str) -> Defect {
        Defect { position, reason, group: None }
    }
}

/// What the bytes of one file hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileScan {
    /// The whole rounds, in order.
    pub rounds: Vec<Round>,
    /// Where the last of them ends.
    pub end: u64,
    /// Why there is none at `end`; `None` if the file is full.
    pub defect: Option<Defect>,
    /// Number of the round that was being written at `end`, if traces of it are there.
    pub torn: Option<u64>,
    /// A boundary beyond `end` that a round header behind it names: `end` is rot.
    pub proof: Option<Boundary>,
}

impl FileScan {
    /// The boundary that the file's first round names: where the file before it ends.
    #[must_use]
    pub fn first_boundary(&self) -> Option<Boundary> {
        self.rounds.first().map(|round| round.header.boundary)
    }

    /// What the last round's header proves to be synced.
    #[must_use]
    pub fn last_named_boundary(&self) -> Option<Boundary> {
        self.rounds.last().map(|round| round.header.boundary)
    }
}

/// Scans a file.
#[must_use]
pub fn scan_file(salt: Salt, epoch: u64, bytes: &Bytes) -> FileScan {
    let mut scan = FileScan { rounds: Vec::new(), end: ROUNDS_START, defect: None, torn: None, proof: None };
    let mut boundary = None;
    let mut sequence = None;
    while scan.end + ROUND_HEADER_LEN as u64 <= bytes.len() as u64 {
        match read_round(salt, epoch, bytes, scan.end, sequence, boundary) {
            Ok(round) => {
                scan.end = round.end();
                sequence = Some(round.header.sequence + 1);
                boundary = Some(Boundary { epoch, position: scan.end });
                scan.rounds.push(round);
            }
            Err(defect) => {
                scan.defect = Some(defect);
                scan.torn = find_torn(salt, epoch, bytes, scan.end, sequence);
                scan.proof = find_proof(salt, epoch, bytes, scan.end, sequence);
                if planted!("rot-taken-for-the-end") {
                    scan.proof = None;
                }
                break;
            }
        }
    }
    scan
}

/// Reads the round at `position`. `sequence` and `boundary`, where known, are what its header must say.
///
/// # Errors
/// Why there is no such round.
pub fn read_round(
    salt: Salt,
    epoch: u64,
    bytes: &Bytes,
    position: u64,
    sequence: Option<u64>,
    boundary: Option<Boundary>,
) -> Result<Round, Defect> {
    let at = |reason| Defect::at(position, reason);
    let rest = bytes.get(position as usize..).ok_or_else(|| at("the file ends here"))?;
    let header = RoundHeader::decode(salt, position, rest).ok_or_else(|| at("there is no valid round header"))?;
    if header.epoch != epoch && !planted!("recycled-frames-taken-for-new") {
        return Err(at("the round is of another life of the file"));
    }
    if sequence.is_some_and(|sequence| sequence != header.sequence) {
        return Err(at("the round's number is not the next"));
    }
    if boundary.is_some_and(|boundary| boundary != header.boundary) {
        return Err(at("the round names another boundary than its predecessor's end"));
    }
    if header.span() > rest.len() as u64 {
        return Err(at("the round is longer than the file"));
    }
    let body = position + ROUND_HEADER_LEN as u64;
    let copies = position + header.body_span();
    let frames = read_frames(salt, bytes, body, header.body_len, header.frames, header.sequence)?;
    let copies = read_frames(salt, bytes, copies, header.copies_len, header.copies, header.sequence)?;
    Ok(Round { position, header, frames, copies })
}

/// Reads a run of frames that takes `len` bytes, and checks that zeros fill its last sector.
fn read_frames(
    salt: Salt,
    bytes: &Bytes,
    start: u64,
    len: u32,
    count: u32,
    sequence: u64,
) -> Result<Vec<Frame>, Defect> {
    let end = start + u64::from(len);
    let mut frames = Vec::new();
    let mut position = start;
    while position < end {
        let frame = read_frame(salt, bytes, position, end)?;
        if frame.header.sequence != sequence {
            return Err(Defect::at(position, "the frame is part of another round"));
        }
        position += (FRAME_HEADER_LEN + frame.payload.len()) as u64;
        frames.push(frame);
    }
    if frames.len() != count as usize {
        return Err(Defect::at(start, "the round holds another number of frames than its header says"));
    }
    let padding = &bytes[end as usize..sector_up(end) as usize];
    if *padding != [0; SECTOR as usize][..padding.len()] {
        return Err(Defect::at(end, "the round is not filled up with zeros"));
    }
    Ok(frames)
}

fn read_frame(salt: Salt, bytes: &Bytes, position: u64, end: u64) -> Result<Frame, Defect> {
    let run = &bytes[position as usize..end as usize];
    let header = FrameHeader::decode(salt, position, run)
        .ok_or_else(|| Defect::at(position, "there is no valid frame header"))?;
    let start = position as usize + FRAME_HEADER_LEN;
    let payload_end = start + header.payload_len as usize;
    let bad = |reason| Defect { position, reason, group: Some(header.group) };
    if payload_end > end as usize {
        return Err(bad("the frame is longer than its round"));
    }
    let payload = bytes.slice(start..payload_end);
    if crc32c(&payload) != header.payload_sum && !planted!("torn-batch-replayed") {
        return Err(bad("the frame's payload fails its checksum"));
    }
    Ok(Frame { position, header, payload })
}

/// The highest boundary beyond `end` that a valid round header behind `end` names.
fn find_proof(salt: Salt, epoch: u64, bytes: &Bytes, end: u64, sequence: Option<u64>) -> Option<Boundary> {
    let mut proof = None;
    let mut position = sector_up(end + 1);
    while position + ROUND_HEADER_LEN as u64 <= bytes.len() as u64 {
        if let Some(header) = RoundHeader::decode(salt, position, &bytes[position as usize..]) {
            let later = sequence.is_none_or(|sequence| header.sequence > sequence);
            if header.epoch == epoch && later && header.boundary.epoch == epoch && header.boundary.position > end {
                proof = proof.max(Some(header.boundary));
            }
        }
        position += SECTOR;
    }
    proof
}

/// Number of the round that was being written at `end`, judged by its header or, where that is lost, by one of its
/// frames.
fn find_torn(salt: Salt, epoch: u64, bytes: &Bytes, end: u64, sequence: Option<u64>) -> Option<u64> {
    let header = RoundHeader::decode(salt, end, &bytes[end as usize..]);
    if let Some(header) = header.filter(|header| header.epoch == epoch) {
        return Some(header.sequence);
    }
    let sequence = sequence?;
    let region = &bytes[end as usize..];
    memchr::memmem::find_iter(region, &sequence.to_le_bytes()).find_map(|found| {
        let at = found.checked_sub(FRAME_SEQUENCE_AT)?;
        FrameHeader::decode(salt, end + at as u64, &region[at..])?;
        reached!("torn round known by a frame alone");
        Some(sequence)
    })
}

/// The frames of a round that say something new; those that restate are left out.
pub(super) fn live_frames(round: &Round) -> impl Iterator<Item = &Frame> {
    round.frames.iter().filter(|frame| {
        matches!(frame.header.kind, FrameKind::Base | FrameKind::Entry | FrameKind::HardState | FrameKind::Removed)
    })
}
