//! What a state machine decided about one command: agreed, deterministic, and kept in the segment beside the command.
//!
//! A refusal is a verdict too. Verdicts cite committed facts only, so that every replica reaches the same one. Each takes
//! [`Verdict::ENCODED_LEN`] bytes on disk and on the wire: code, then three numbers whose meaning depends on the code.

use crate::ids::Offset;
use bytes::{Buf, BufMut};

/// The decision on one command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Records were appended at `[offset, offset + count)`.
    Appended {
        /// Offset of the first record.
        offset: Offset,
        /// How many records.
        count: u32,
    },
    /// The batch had been appended before, at `[offset, offset + count)`; nothing was appended now.
    Repeated {
        /// Offset its first record got then.
        offset: Offset,
        /// How many records.
        count: u32,
    },
    /// Done; `value` is what the command's kind says: a session's id, a revision, a new log start.
    Done {
        /// See the command.
        value: u64,
        /// See the command.
        extra: u64,
    },
    /// Refused; nothing happened.
    Refused(Refusal),
}

/// Why a state machine refused a command. Nothing happened, unless the variant says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The command can't be decoded, or breaks a rule that the door should have held it to.
    Malformed,
    /// `expected_offset` was not the tail.
    WrongExpectedOffset {
        /// What the append expected.
        expected: Offset,
        /// Where the log ends.
        tail: Offset,
    },
    /// A higher token of that fence was seen.
    Fenced {
        /// The token that came.
        token: u64,
        /// The highest seen.
        highest: u64,
    },
    /// The session is not open here: never opened, or expired. A batch of it *may have been* appended before it expired.
    SessionUnknown {
        /// The producer id that came.
        producer: u64,
    },
    /// The session was opened again since, under a higher epoch.
    SessionEpochOld {
        /// The epoch that came.
        epoch: u64,
        /// The present one.
        current: u64,
    },
    /// A batch before this one is missing.
    SequenceGap {
        /// The sequence that came.
        sequence: u64,
        /// The next one the session awaits.
        expected: u64,
    },
    /// Older than what the session remembers. It *may have been* appended.
    SequenceOld {
        /// The sequence that came.
        sequence: u64,
        /// The oldest one remembered.
        oldest: u64,
    },
    /// A retry whose batch boundaries differ from the first attempt's.
    RetryDiffers {
        /// The sequence that came.
        sequence: u64,
    },
    /// A bound of the state machine is reached.
    LimitReached {
        /// Which one, by the state machine's own numbering.
        which: u64,
        /// Its value.
        limit: u64,
    },
    /// There is one of that name.
    Exists,
    /// There is none of that name or number.
    NotFound,
    /// The catalog's rules forbid it: fewer partitions than there are, more replicas than nodes, a stale term.
    Conflict {
        /// The number that came.
        wanted: u64,
        /// The number it was held against.
        actual: u64,
    },
}

impl Verdict {
    /// Bytes of an encoded verdict.
    pub const ENCODED_LEN: usize = 24;

    /// Appends the encoded form.
    pub fn encode(&self, into: &mut impl BufMut) {
        use Refusal as R;
        let (code, count, a, b): (u8, u32, u64, u64) = match *self {
            Verdict::Appended { offset, count } => (1, count, offset.0, 0),
            Verdict::Repeated { offset, count } => (2, count, offset.0, 0),
            Verdict::Done { value, extra } => (3, 0, value, extra),
            Verdict::Refused(refusal) => match refusal {
                R::Malformed => (16, 0, 0, 0),
                R::WrongExpectedOffset { expected, tail } => (17, 0, expected.0, tail.0),
                R::Fenced { token, highest } => (18, 0, token, highest),
                R::SessionUnknown { producer } => (19, 0, producer, 0),
                R::SessionEpochOld { epoch, current } => (20, 0, epoch, current),
                R::SequenceGap { sequence, expected } => (21, 0, sequence, expected),
                R::SequenceOld { sequence, oldest } => (22, 0, sequence, oldest),
                R::RetryDiffers { sequence } => (23, 0, sequence, 0),
                R::LimitReached { which, limit } => (24, 0, which, limit),
                R::Exists => (25, 0, 0, 0),
                R::NotFound => (26, 0, 0, 0),
                R::Conflict { wanted, actual } => (27, 0, wanted, actual),
            },
        };
        into.put_u8(code);
        into.put_bytes(0, 3);
        into.put_u32_le(count);
        into.put_u64_le(a);
        into.put_u64_le(b);
    }

    /// Reads one verdict; `None` if there are too few bytes or the code is unknown.
    pub fn decode(from: &mut impl Buf) -> Option<Verdict> {
        if from.remaining() < Self::ENCODED_LEN {
            return None;
        }
        let code = from.get_u8();
        from.advance(3);
        let (count, a, b) = (from.get_u32_le(), from.get_u64_le(), from.get_u64_le());
        use Refusal as R;
        let refusal = match code {
            1 => return Some(Verdict::Appended { offset: Offset(a), count }),
            2 => return Some(Verdict::Repeated { offset: Offset(a), count }),
            3 => return Some(Verdict::Done { value: a, extra: b }),
            16 => R::Malformed,
            17 => R::WrongExpectedOffset { expected: Offset(a), tail: Offset(b) },
            18 => R::Fenced { token: a, highest: b },
            19 => R::SessionUnknown { producer: a },
            20 => R::SessionEpochOld { epoch: a, current: b },
            21 => R::SequenceGap { sequence: a, expected: b },
            22 => R::SequenceOld { sequence: a, oldest: b },
            23 => R::RetryDiffers { sequence: a },
            24 => R::LimitReached { which: a, limit: b },
            25 => R::Exists,
            26 => R::NotFound,
            27 => R::Conflict { wanted: a, actual: b },
            _ => return None,
        };
        Some(Verdict::Refused(refusal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_survives_encoding() {
        use Refusal as R;
        let refusals = [
            R::Malformed,
            R::WrongExpectedOffset { expected: Offset(3), tail: Offset(9) },
            R::Fenced { token: 1, highest: 2 },
            R::SessionUnknown { producer: 7 },
            R::SessionEpochOld { epoch: 1, current: 2 },
            R::SequenceGap { sequence: 5, expected: 4 },
            R::SequenceOld { sequence: 5, oldest: 40 },
            R::RetryDiffers { sequence: 5 },
            R::LimitReached { which: 1, limit: 2 },
            R::Exists,
            R::NotFound,
            R::Conflict { wanted: 1, actual: 2 },
        ];
        let accepted = [
            Verdict::Appended { offset: Offset(u64::MAX), count: u32::MAX },
            Verdict::Repeated { offset: Offset(1), count: 2 },
            Verdict::Done { value: 1, extra: 2 },
        ];
        for verdict in accepted.into_iter().chain(refusals.into_iter().map(Verdict::Refused)) {
            let mut bytes = Vec::new();
            verdict.encode(&mut bytes);
            assert_eq!(bytes.len(), Verdict::ENCODED_LEN);
            assert_eq!(Verdict::decode(&mut &bytes[..]), Some(verdict));
            assert_eq!(Verdict::decode(&mut &bytes[..Verdict::ENCODED_LEN - 1]), None);
        }
        assert_eq!(Verdict::decode(&mut &[99u8; 24][..]), None);
    }
}
