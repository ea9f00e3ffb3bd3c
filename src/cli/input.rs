//! Lines of standard input as records, in blocks: one hand-over per block, no copy per line but the one into the batch.
//!
//! Refuses lines longer than any batch, so that a file without line ends does not fill the memory.

use crate::limits::BATCH_BYTES_MAX;
use bytes::{Bytes, BytesMut};
use std::io::{self, Read};
use tokio::sync::mpsc;

/// Bytes read at a time.
const BLOCK_BYTES: usize = 256 << 10;
/// Blocks read ahead.
const BLOCKS_AHEAD: usize = 4;

/// Whole lines, each without its line end.
#[derive(Debug)]
pub(super) struct Block {
    bytes: Bytes,
}

impl Block {
    /// The lines, in order. The last line of the input needs no line end.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let whole = self.bytes.strip_suffix(b"\n").unwrap_or(&self.bytes);
        whole.split(|byte| *byte == b'\n')
    }
}

/// Why reading ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    #[error("cannot read standard input: {0}")]
    Unreadable(io::Error),
    #[error("line {line} is longer than {max} bytes, the most that a record may have: split it")]
    LineTooLong { line: u64, max: usize },
}

/// Reads standard input on a thread of its own, since such reads cannot be called off.
pub(super) fn stdin_blocks() -> mpsc::Receiver<Result<Block, InputError>> {
    blocks_of(io::stdin())
}

fn blocks_of(mut input: impl Read + Send + 'static) -> mpsc::Receiver<Result<Block, InputError>> {
    let (out, blocks) = mpsc::channel(BLOCKS_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut splitter = Splitter::default();
        loop {
            let next = splitter.next(&mut input);
            let last = !matches!(next, Ok(Some(_)));
            // The receiver is gone when the command ends; then so do we.
            if let Some(block) = next.transpose() {
                if out.blocking_send(block).is_err() {
                    return;
                }
            }
            if last {
                return;
            }
        }
    });
    blocks
}

/// Cuts a stream of bytes behind its last line end so far.
#[derive(Debug, Default)]
struct Splitter {
    rest: BytesMut,
    lines: u64,
}

impl Splitter {
    /// The next whole lines; `None` at the end.
    fn next(&mut self, input: &mut impl Read) -> Result<Option<Block>, InputError> {
        loop {
            let held = self.rest.len();
            self.rest.resize(held + BLOCK_BYTES, 0);
            let read = loop {
                match input.read(&mut self.rest[held..]) {
                    Ok(read) => break read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(InputError::Unreadable(error)),
                }
            };
            self.rest.truncate(held + read);
            if read == 0 {
                let bytes = self.rest.split().freeze();
                return Ok((!bytes.is_empty()).then_some(Block { bytes }));
            }
            if let Some(end) = self.rest[held..].iter().rposition(|byte| *byte == b'\n') {
                let bytes = self.rest.split_to(held + end + 1).freeze();
                self.lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
                return Ok(Some(Block { bytes }));
            }
            if self.rest.len() > BATCH_BYTES_MAX {
                return Err(InputError::LineTooLong { line: self.lines + 1, max: BATCH_BYTES_MAX });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of a given size.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let size = self.1.min(into.len()).min(self.0.len());
            into[..size].copy_from_slice(&self.0[..size]);
            self.0 = &self.0[size..];
            Ok(size)
        }
    }

    fn lines(input: &[u8], piece: usize) -> Vec<String> {
        let (mut splitter, mut pieces, mut all) = (Splitter::default(), Pieces(input, piece), Vec::new());
        while let Some(block) = splitter.next(&mut pieces).unwrap() {
            all.extend(block.lines().map(|line| String::from_utf8_lossy(line).to_string()));
        }
        all
    }

    #[test]
    fn lines_are_the_same_however_the_input_arrives() {
        for piece in [1, 2, 3, 7, 1000] {
            assert_eq!(lines(b"a\nbc\n\ndef", piece), ["a", "bc", "", "def"], "pieces of {piece}");
            assert_eq!(lines(b"a\nbc\n", piece), ["a", "bc"]);
            assert_eq!(lines(b"\n", piece), [""]);
            assert!(lines(b"", piece).is_empty());
        }
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let endless = [b"first\n".as_slice(), &vec![b'x'; 4 << 20]].concat();
        let (mut splitter, mut pieces) = (Splitter::default(), Pieces(&endless, 64 << 10));
        let error = loop {
            if let Err(error) = splitter.next(&mut pieces) {
                break error;
            }
        };
        assert!(error.to_string().contains("line 2 is longer than 1048576 bytes"), "{error}");
    }
}
