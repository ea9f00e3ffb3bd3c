//! The journal's bytes, as they were written down in `docs/formats/journal.md`: a change here is a change of format.

use super::files::{encode_mark, FileEntry, Identity, JournalIdentity};
use super::format::{
    Boundary, FileHeader, FrameDraft, FrameHeader, FrameKind, RoundBuilder, RoundHeader, RoundPlace, Salt,
    FILE_HEADER_LEN, ROUNDS_START,
};
use super::scan::read_round;
use crate::ids::{GroupId, Incarnation, NodeId};
use bytes::{Bytes, BytesMut};
use crc32c::crc32c;

const INCARNATION: Incarnation = Incarnation(*b"incarnation-0001");

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(16).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n").collect()
}

fn place() -> RoundPlace {
    let boundary = Boundary { epoch: 3, position: ROUNDS_START };
    RoundPlace { salt: Salt::new(INCARNATION, 3), epoch: 3, position: ROUNDS_START, sequence: 9, boundary }
}

fn round() -> Bytes {
    let mut round = RoundBuilder::new(place(), BytesMut::new());
    let hard_state = FrameDraft { index: 4, term: 2, extra: 1, ..FrameDraft::bare(FrameKind::HardState, GroupId(7)) };
    let payload = Bytes::from_static(b"data");
    round.push(&FrameDraft { index: 5, term: 2, payload, ..FrameDraft::bare(FrameKind::Entry, GroupId(7)) });
    round.push(&hard_state);
    round.push_copy(FrameDraft { kind: FrameKind::HardStateCopy, ..hard_state });
    let (parts, span, _) = round.finish();
    let bytes = Bytes::from(parts.concat());
    assert_eq!(bytes.len() as u64, span);
    bytes
}

#[test]
fn a_file_header_is_these_bytes() {
    let header = FileHeader { incarnation: INCARNATION, node_id: NodeId(2), epoch: 3, slot: 4, bytes: 8 << 20 };
    let block = header.encode_block();
    assert_eq!(block.len() as u64, ROUNDS_START);
    assert_eq!(hex(&block[..FILE_HEADER_LEN]), FILE_HEADER);
    assert_eq!(FileHeader::decode_block(&block), Ok(header));
}

#[test]
fn a_round_is_these_bytes() {
    let bytes = round();
    assert_eq!(bytes.len(), 1_024, "a body and its copies take a sector each");
    assert_eq!(hex(&bytes[..192]), ROUND);
    assert_eq!(hex(&bytes[512..576]), COPIES);
}

#[test]
fn an_identity_is_these_bytes() {
    let owner = JournalIdentity { node_id: NodeId(2), incarnation: INCARNATION };
    let boundary = Boundary { epoch: 3, position: 5_120 };
    let files = vec![FileEntry { slot: 4, epoch: 3, bytes: 8 << 20 }];
    let identity = Identity { owner, generation: 6, boundary, files };
    assert_eq!(hex(&identity.encode()), IDENTITY);
    assert_eq!(Identity::decode(&identity.encode()), Some(identity));
}

#[test]
fn a_mark_is_these_bytes() {
    let mark = encode_mark(crc32c(&INCARNATION.0), 11, Boundary { epoch: 3, position: 5_120 });
    assert_eq!(hex(&mark), MARK);
}

#[test]
fn no_other_place_epoch_or_node_takes_a_round_for_its_own() {
    let file = Bytes::from([vec![0; ROUNDS_START as usize], round().to_vec(), vec![0; 512]].concat());
    let read =
        |salt, epoch, position| read_round(salt, epoch, &file, position, None, None).map(|round| round.frames.len());
    let at = ROUNDS_START;
    assert_eq!(read(Salt::new(INCARNATION, 3), 3, at), Ok(2));
    assert!(read(Salt::new(INCARNATION, 4), 4, at).is_err());
    assert!(read(Salt::new(Incarnation([1; 16]), 3), 3, at).is_err());
    let copied = Bytes::from([&file[..at as usize + 512], &round()].concat());
    assert_eq!(RoundHeader::decode(Salt::new(INCARNATION, 3), at + 512, &copied[at as usize + 512..]), None);
    assert_eq!(FrameHeader::decode(Salt::new(INCARNATION, 3), at + 576, &copied[at as usize + 576..]), None);
}

#[test]
fn every_flipped_bit_of_a_round_is_noticed() {
    let salt = Salt::new(INCARNATION, 3);
    let sound = [vec![0; ROUNDS_START as usize], round().to_vec()].concat();
    for position in ROUNDS_START as usize..sound.len() {
        for bit in 0..8 {
            let mut file = sound.clone();
            file[position] ^= 1 << bit;
            let read = read_round(salt, 3, &Bytes::from(file), ROUNDS_START, Some(9), None);
            assert!(read.is_err(), "bit {bit} at {position}");
        }
    }
}

const FILE_HEADER: &str = "\
    42414c53414a524e01000000d951e06c\n\
    696e6361726e6174696f6e2d30303031\n\
    03000000000000000400000000000000\n\
    00008000000000000200000000000000\n";
const ROUND: &str = "\
    524f4e440a6833be0300000000000000\n\
    09000000000000000300000000000000\n\
    00100000000000007400000038000000\n\
    02000000010000000000000000000000\n\
    bc3819ca0200000004000000d17dd8ae\n\
    09000000000000000700000000000000\n\
    05000000000000000200000000000000\n\
    000000000000000064617461157c30db\n\
    03000000000000000000000009000000\n\
    00000000070000000000000004000000\n\
    00000000020000000000000001000000\n\
    00000000000000000000000000000000\n";
const COPIES: &str = "\
    00f55bdf050000000000000000000000\n\
    09000000000000000700000000000000\n\
    04000000000000000200000000000000\n\
    01000000000000000000000000000000\n";
const IDENTITY: &str = "\
    42414c53414944540100000003191ed0\n\
    696e6361726e6174696f6e2d30303031\n\
    02000000010000000600000000000000\n\
    03000000000000000014000000000000\n\
    04000000000000000300000000000000\n\
    0000800000000000\n";
const MARK: &str = "\
    4d41524b8e63de9e0b00000000000000\n\
    03000000000000000014000000000000\n\
    0000000000000000\n";
