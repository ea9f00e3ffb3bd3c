//! A group's base: everything that the log up to some index amounted to.
//!
//! The journal holds each group's base, hard state and all entries after the base; a segment opens with one; a snapshot
//! is one. To recover a group: cut its segments to the base, load its state, apply what follows.

use crate::ids::{Digest, LogIndex, Offset, Term, TimestampMs};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use raft::eraftpb::ConfState;

/// What a group's log through `index` amounts to.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Base {
    /// The last index this base covers.
    pub index: LogIndex,
    /// Term of the entry at `index`.
    pub term: Term,
    /// The partition's tail after `index`; for the catalog its revision.
    pub tail: Offset,
    /// The log's time at `index`.
    pub timestamp: TimestampMs,
    /// The chain after `index`.
    pub chain: Digest,
    /// The configuration as of `index`.
    pub conf_state: ConfState,
    /// The state machine's snapshot as of `index`.
    pub state: Bytes,
}

const FIXED_LEN: usize = 8 + 8 + 8 + 8 + 32 + 4 + 4;

impl Base {
    /// Bytes of the encoded form.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        FIXED_LEN + self.conf_state.encoded_len() + self.state.len()
    }

    /// Appends the encoded form: little-endian numbers, then configuration and state, each after its length.
    pub fn encode(&self, into: &mut BytesMut) {
        into.reserve(self.encoded_len());
        into.put_u64_le(self.index.0);
        into.put_u64_le(self.term.0);
        into.put_u64_le(self.tail.0);
        into.put_u64_le(self.timestamp.0);
        into.put_slice(&self.chain.0);
        let conf_state = self.conf_state.encode_to_vec();
        into.put_u32_le(conf_state.len() as u32);
        into.put_slice(&conf_state);
        into.put_u32_le(self.state.len() as u32);
        into.put_slice(&self.state);
    }

    /// Reads an encoded base that fills `bytes`; `None` if it does not.
    #[must_use]
    pub fn decode(mut bytes: Bytes) -> Option<Base> {
        if bytes.len() < FIXED_LEN {
            return None;
        }
        let index = LogIndex(bytes.get_u64_le());
        let term = Term(bytes.get_u64_le());
        let tail = Offset(bytes.get_u64_le());
        let timestamp = TimestampMs(bytes.get_u64_le());
        let chain = Digest::from_slice(&bytes.split_to(32))?;
        let conf_state = ConfState::decode(take_sized(&mut bytes)?).ok()?;
        let state = take_sized(&mut bytes)?;
        bytes.is_empty().then_some(Base { index, term, tail, timestamp, chain, conf_state, state })
    }
}

fn take_sized(bytes: &mut Bytes) -> Option<Bytes> {
    if bytes.len() < 4 {
        return None;
    }
    let len = bytes.get_u32_le() as usize;
    (len <= bytes.len()).then(|| bytes.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_survives_encoding_and_nothing_shorter_or_longer_decodes() {
        let base = Base {
            index: LogIndex(7),
            term: Term(2),
            tail: Offset(100),
            timestamp: TimestampMs(5),
            chain: Digest([9; 32]),
            conf_state: ConfState::from((vec![1, 2], vec![3])),
            state: Bytes::from_static(b"state"),
        };
        let mut encoded = BytesMut::new();
        base.encode(&mut encoded);
        assert_eq!(encoded.len(), base.encoded_len());
        let encoded = encoded.freeze();
        assert_eq!(Base::decode(encoded.clone()), Some(base));
        for len in 0..encoded.len() {
            assert_eq!(Base::decode(encoded.slice(..len)), None, "{len} bytes");
        }
        let longer = Bytes::from([&encoded[..], &[0]].concat());
        assert_eq!(Base::decode(longer), None);
    }
}
