//! What has arrived on a socket and was not used yet.

use std::io::{self, Read};
use std::net::TcpStream;

const READ_BYTES: usize = 1 << 20;

/// Grows to the largest message that was not complete; bounded by what the other side keeps in flight.
#[derive(Debug)]
pub struct Inbox {
    room: Vec<u8>,
    filled: usize,
}

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox { room: vec![0; READ_BYTES], filled: 0 }
    }
}

impl Inbox {
    /// Waits for something and takes what is there; false at the end.
    ///
    /// # Errors
    /// The socket's.
    pub fn fill(&mut self, mut from: &TcpStream) -> io::Result<bool> {
        if self.filled == self.room.len() {
            self.room.resize(self.filled * 2, 0);
        }
        let read = from.read(&mut self.room[self.filled..])?;
        self.filled += read;
        Ok(read > 0)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.room[..self.filled]
    }

    /// Forgets the first `bytes`.
    pub fn used(&mut self, bytes: usize) {
        self.room.copy_within(bytes..self.filled, 0);
        self.filled -= bytes;
    }
}
