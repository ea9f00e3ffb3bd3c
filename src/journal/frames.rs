//! Between what a group holds and the frames that say so. Pure.

use super::base::Base;
use super::format::{FrameDraft, FrameHeader, FrameKind, BASE_STATE_IN_FILE};
use super::groups::{StateFile, StoredBase, STATE_REFERENCE_LEN};
use crate::ids::{Digest, GroupId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft::eraftpb::{Entry, EntryType, HardState};

const ENTRY_SYNC_LOG: u8 = 0x80;

/// A frame of an entry, live or restated.
pub(super) fn entry_draft(kind: FrameKind, group: GroupId, entry: &Entry) -> FrameDraft {
    let payload = if entry.context.is_empty() {
        entry.data.clone()
    } else {
        Bytes::from([&entry.data[..], &entry.context[..]].concat())
    };
    let detail = entry.entry_type as u8 | if entry.sync_log { ENTRY_SYNC_LOG } else { 0 };
    let extra = entry.context.len() as u64;
    FrameDraft { kind, detail, group, index: entry.index, term: entry.term, extra, payload }
}

/// The entry of a frame; its data is copied, so that it does not hold on to a whole file's bytes.
pub(super) fn entry_of(header: &FrameHeader, payload: &[u8]) -> Option<Entry> {
    let entry_type = EntryType::try_from(i32::from(header.detail & !ENTRY_SYNC_LOG)).ok()?;
    let data_len = payload.len().checked_sub(usize::try_from(header.extra).ok()?)?;
    let (data, context) = payload.split_at(data_len);
    Some(Entry {
        entry_type: entry_type as i32,
        term: header.term,
        index: header.index,
        data: Bytes::copy_from_slice(data),
        sync_log: header.detail & ENTRY_SYNC_LOG != 0,
        context: Bytes::copy_from_slice(context),
    })
}

/// A frame of a hard state, live, restated or a copy.
pub(super) fn hard_state_draft(kind: FrameKind, group: GroupId, hard_state: &HardState) -> FrameDraft {
    FrameDraft {
        index: hard_state.commit,
        term: hard_state.term,
        extra: hard_state.vote,
        ..FrameDraft::bare(kind, group)
    }
}

/// The hard state of a frame.
pub(super) fn hard_state_of(header: &FrameHeader) -> HardState {
    HardState { term: header.term, vote: header.extra, commit: header.index }
}

/// A frame of a base, live or restated.
pub(super) fn base_draft(kind: FrameKind, group: GroupId, stored: &StoredBase, flags: u8) -> FrameDraft {
    let mut payload = BytesMut::with_capacity(stored.base.encoded_len() + STATE_REFERENCE_LEN);
    stored.base.encode(&mut payload);
    let mut detail = flags;
    if let Some(file) = &stored.file {
        detail |= BASE_STATE_IN_FILE;
        payload.put_u64_le(file.id);
        payload.put_u64_le(file.len);
        payload.put_slice(&file.digest.0);
    }
    let (index, term) = (stored.base.index.0, stored.base.term.0);
    FrameDraft { kind, detail, group, index, term, extra: 0, payload: payload.freeze() }
}

/// The base of a frame; an inline state is copied.
pub(super) fn base_of(header: &FrameHeader, payload: &Bytes) -> Option<StoredBase> {
    let mut encoded = Bytes::copy_from_slice(payload);
    let mut file = None;
    if header.detail & BASE_STATE_IN_FILE != 0 {
        let mut reference = encoded.split_off(encoded.len().checked_sub(STATE_REFERENCE_LEN)?);
        let (id, len) = (reference.get_u64_le(), reference.get_u64_le());
        file = Some(StateFile { id, len, digest: Digest::from_slice(&reference)? });
    }
    let base = Base::decode(encoded)?;
    Some(StoredBase { base, file })
}
