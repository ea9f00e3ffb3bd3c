//! Variable-length integers as record batches use them: zigzag, seven bits a byte, lowest first.
//!
//! Refuses numbers that run past the bytes at hand, or past the width of their type. Overlong forms are taken as other
//! implementations take them; the encoder never writes one.

use bytes::{BufMut, BytesMut};

/// Most bytes of a 64-bit number.
pub(super) const VARLONG_LEN_MAX: usize = 10;

/// Reads a 64-bit number at `*at` and moves `*at` behind it; `None` if there is none.
#[inline]
pub(super) fn read_i64(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let first = *bytes.get(*at)?;
    if first < 0x80 {
        *at += 1;
        return Some(unzigzag(u64::from(first)));
    }
    let mut value = 0u64;
    for (i, byte) in bytes[*at..].iter().take(VARLONG_LEN_MAX).enumerate() {
        let low = u64::from(byte & 0x7f);
        if i == VARLONG_LEN_MAX - 1 && low > 1 {
            return None; // more than 64 bits
        }
        value |= low << (7 * i);
        if byte & 0x80 == 0 {
            *at += i + 1;
            return Some(unzigzag(value));
        }
    }
    None
}

/// Reads a 32-bit number at `*at` and moves `*at` behind it; `None` if there is none or it is wider.
#[inline]
pub(super) fn read_i32(bytes: &[u8], at: &mut usize) -> Option<i32> {
    let mut end = *at;
    let value = i32::try_from(read_i64(bytes, &mut end)?).ok()?;
    *at = end;
    Some(value)
}

/// Appends a number.
pub(super) fn write(value: i64, into: &mut BytesMut) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        into.put_u8(rest as u8 | 0x80);
        rest >>= 7;
    }
    into.put_u8(rest as u8);
}

/// Bytes that [`write`] takes for a number.
pub(super) fn len(value: i64) -> usize {
    let bits = 64 - zigzag(value).leading_zeros() as usize;
    bits.div_ceil(7).max(1)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_published_bytes() {
        // The zigzag table of the protocol buffers' encoding guide, which record batches follow.
        let known: [(i64, &[u8]); 7] = [
            (0, &[0x00]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ];
        for (value, bytes) in known {
            let mut written = BytesMut::new();
            write(value, &mut written);
            assert_eq!(&written[..], bytes, "{value}");
            assert_eq!(len(value), bytes.len(), "{value}");
            let mut at = 0;
            assert_eq!(read_i64(bytes, &mut at), Some(value));
            assert_eq!(at, bytes.len());
        }
    }

    #[test]
    fn a_number_that_runs_past_its_bytes_or_its_width_is_refused() {
        for bytes in [&[][..], &[0x80], &[0xff; 9], &[0xff; 12]] {
            assert_eq!(read_i64(bytes, &mut 0), None, "{bytes:?}");
        }
        let mut wide = BytesMut::new();
        write(i64::from(i32::MAX) + 1, &mut wide);
        let mut at = 0;
        assert_eq!(read_i32(&wide, &mut at), None);
        assert_eq!(at, 0, "a refused number moves nothing");
    }
}
