//! The payload of a Raft entry: the log's time and the commands that one turn coalesced.
//!
//! Commands are opaque here. Nothing in this file trusts the bytes: what does not decode is `None`, and the replica
//! applies such an entry as one without commands, on every node alike.
//!
//! ```text
//! | version = 1, u8 | zero, 3 bytes | timestamp in ms, u64 le | count, u32 le | count x { length, u32 le | command } |
//! ```

use crate::ids::TimestampMs;
use crate::limits::{COMMAND_BYTES_MAX, ENTRY_BYTES_MAX, ENTRY_COMMANDS_MAX};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const VERSION: u8 = 1;

/// Bytes before the first command.
pub const HEADER_LEN: usize = 1 + 3 + 8 + 4;
/// Bytes before each command.
pub const COMMAND_HEADER_LEN: usize = 4;

const _: () = assert!(HEADER_LEN + COMMAND_HEADER_LEN + COMMAND_BYTES_MAX <= ENTRY_BYTES_MAX);

/// A decoded payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload {
    /// The leader's stamp.
    pub timestamp: TimestampMs,
    /// The commands, in order.
    pub commands: Vec<Command>,
}

/// One command inside an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// Where in the entry's data the command's bytes begin.
    pub at: u32,
    /// The command: a slice of the entry, not a copy.
    pub bytes: Bytes,
}

/// Encodes commands under one stamp.
#[must_use]
pub fn encode<'a>(timestamp: TimestampMs, commands: impl ExactSizeIterator<Item = &'a Bytes> + Clone) -> Bytes {
    let len = HEADER_LEN + commands.clone().map(|command| COMMAND_HEADER_LEN + command.len()).sum::<usize>();
    let mut data = BytesMut::with_capacity(len);
    data.put_u8(VERSION);
    data.put_bytes(0, 3);
    data.put_u64_le(timestamp.0);
    data.put_u32_le(commands.len() as u32);
    for command in commands {
        data.put_u32_le(command.len() as u32);
        data.put_slice(command);
    }
    data.freeze()
}

/// Decodes a payload that fills `data`; `None` if it does not, or breaks a bound.
#[must_use]
pub fn decode(data: &Bytes) -> Option<Payload> {
    let mut rest = &data[..];
    if rest.len() < HEADER_LEN || rest.get_u8() != VERSION {
        return None;
    }
    if rest.copy_to_bytes(3)[..] != [0; 3] {
        return None;
    }
    let timestamp = TimestampMs(rest.get_u64_le());
    let count = rest.get_u32_le() as usize;
    if count > ENTRY_COMMANDS_MAX || count * COMMAND_HEADER_LEN > rest.len() {
        return None;
    }
    let mut commands = Vec::with_capacity(count);
    for _ in 0..count {
        if rest.len() < COMMAND_HEADER_LEN {
            return None;
        }
        let len = rest.get_u32_le() as usize;
        if len > rest.len() {
            return None;
        }
        let at = data.len() - rest.len();
        commands.push(Command { at: at as u32, bytes: data.slice(at..at + len) });
        rest.advance(len);
    }
    rest.is_empty().then_some(Payload { timestamp, commands })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_the_bytes_its_drawing_shows() {
        let data = encode(TimestampMs(0x0102), [Bytes::from_static(b"ab"), Bytes::new()].iter());
        assert_eq!(&data[..], b"\x01\0\0\0\x02\x01\0\0\0\0\0\0\x02\0\0\0\x02\0\0\0ab\0\0\0\0");
    }

    #[test]
    fn a_payload_survives_and_nothing_shorter_or_longer_decodes() {
        let commands = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        let data = encode(TimestampMs(7), commands.iter());
        let payload = decode(&data).expect("what was encoded decodes");
        assert_eq!(payload.timestamp, TimestampMs(7));
        for (command, expected) in payload.commands.iter().zip(&commands) {
            assert_eq!(command.bytes, *expected);
            assert_eq!(&data[command.at as usize..][..expected.len()], &expected[..]);
        }
        for len in 0..data.len() {
            assert_eq!(decode(&data.slice(..len)), None, "{len} bytes");
        }
        assert_eq!(decode(&Bytes::from([&data[..], &[0]].concat())), None);
    }

    #[test]
    fn a_count_beyond_the_bytes_takes_no_memory() {
        let mut data = BytesMut::from(&encode(TimestampMs(7), [].iter())[..]);
        data[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&data.freeze()), None);
    }
}
