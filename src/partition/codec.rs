//! Checked reading and writing of the little-endian fields of commands and snapshots.
//!
//! Refuses to guess: every field is held against the bytes that are left before anything is taken, and a text against its
//! bound before it is copied. An error names the field, where it lies, and what it was held against.

use bytes::{BufMut, Bytes};
use std::sync::Arc;

/// Why bytes are not what they should be. Nothing was done with them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("{field} at position {position} takes {wanted} bytes; {left} are left")]
    Short {
        /// The field's name.
        field: &'static str,
        /// Where it starts.
        position: usize,
        /// Bytes it takes.
        wanted: usize,
        /// Bytes there are.
        left: usize,
    },
    /// A number is larger than its bound.
    #[error("{field} is {value}; at most {limit} is allowed")]
    TooLarge {
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// The bound.
        limit: u64,
    },
    /// A text is not UTF-8.
    #[error("{field} at position {position} is not UTF-8")]
    NotText {
        /// The field's name.
        field: &'static str,
        /// Where it starts.
        position: usize,
    },
    /// A value that its field never holds.
    #[error("{field} can't be {value}")]
    Forbidden {
        /// The field's name.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// More bytes than the fields take.
    #[error("{left} bytes follow the last field, which ends at position {position}")]
    Trailing {
        /// Where the last field ends.
        position: usize,
        /// Bytes behind it.
        left: usize,
    },
    /// The fields can be read, and contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

/// Reads fields one after another.
pub(crate) struct Reader<'a> {
    bytes: &'a Bytes,
    position: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a Bytes) -> Reader<'a> {
        Reader { bytes, position: 0 }
    }

    fn take(&mut self, field: &'static str, wanted: usize) -> Result<&'a [u8], DecodeError> {
        let left = self.bytes.len() - self.position;
        if wanted > left {
            return Err(DecodeError::Short { field, position: self.position, wanted, left });
        }
        let taken = &self.bytes[self.position..self.position + wanted];
        self.position += wanted;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A `u32` that says how many elements follow, each of at least `bytes_each` bytes: held against `limit` and against
    /// the bytes that are left, so that a lying count takes no memory.
    pub(crate) fn count(&mut self, field: &'static str, limit: usize, bytes_each: usize) -> Result<usize, DecodeError> {
        let count = self.u32(field)?;
        if count as usize > limit {
            return Err(DecodeError::TooLarge { field, value: count.into(), limit: limit as u64 });
        }
        let (wanted, left) = (count as usize * bytes_each, self.bytes.len() - self.position);
        if wanted > left {
            return Err(DecodeError::Short { field, position: self.position, wanted, left });
        }
        Ok(count as usize)
    }

    /// A text of at most `limit` bytes after its length as a `u16`.
    pub(crate) fn text(&mut self, field: &'static str, limit: usize) -> Result<Arc<str>, DecodeError> {
        let len = self.u16(field)? as usize;
        if len > limit {
            return Err(DecodeError::TooLarge { field, value: len as u64, limit: limit as u64 });
        }
        let position = self.position;
        let text = std::str::from_utf8(self.take(field, len)?);
        text.map(Arc::from).map_err(|_| DecodeError::NotText { field, position })
    }

    /// All that is left, sharing the memory.
    pub(crate) fn rest(&mut self) -> Bytes {
        let rest = self.bytes.slice(self.position..);
        self.position = self.bytes.len();
        rest
    }

    /// Errs unless everything was read.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.bytes.len() - self.position {
            0 => Ok(()),
            left => Err(DecodeError::Trailing { position: self.position, left }),
        }
    }
}

/// Appends a text after its length as a `u16`. Every text is held against a bound far below that where it comes in.
pub(crate) fn put_text(into: &mut impl BufMut, text: &str) {
    let len = u16::try_from(text.len()).expect("texts are bounded where they come in");
    into.put_u16_le(len);
    into.put_slice(text.as_bytes());
}

/// Bytes that [`put_text`] appends for a text of `len` bytes.
pub(crate) const fn text_len(len: usize) -> usize {
    2 + len
}
