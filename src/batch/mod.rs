//! The record batch: the unit that a client appends, the log orders and a reader gets, byte for byte the same.
//!
//! The layout is Kafka's record batch, version 2. Base offset and leader epoch lie outside its checksum, so the bytes that
//! the client encoded are the bytes on the network, in the journal, in the segment and in the answer; the server only
//! stamps those two fields. As sent, and inside Raft, both are zero.
//!
//! [`validate`] is the one full check, at the door. What passed it is trusted by everything behind it: [`peek`] and
//! [`records`] look again at nothing that the check settled, but never panic either, whatever the bytes.
//!
//! Refused here: compressed batches, transactions and control batches (typed, so that a client can tell), and anything whose
//! counts, lengths or deltas do not add up. No memory is taken on the word of a count from outside.
//!
//! Pure: bytes in, values out.

mod builder;
mod chain;
mod header;
mod records;
mod validate;
mod varint;

pub use builder::{BatchBuilder, RecordRef};
pub use chain::{chain_next, digest};
pub use header::{peek, stamp, unstamp, BatchHeader, BatchProducer, BatchSummary, HEADER_LEN};
pub use records::{records, Headers, Record, RecordHeader, Records};
pub use validate::{validate, validate_stamped, BatchError};
