//! The bound over gRPC: the same processes, files and rounds; clients alone reach the first node another way.
//!
//! What it has less than the bound is gRPC's price, and what Balsa has less than it is Balsa's own. So the server is as
//! good as tonic lets it be, and set as Balsa's is: windows, streams for each connection, threads.
//!
//! ```text
//! service balsa.compare.Bound {
//!   rpc Append(Record) returns (Appended);                         one call for each request
//!   rpc AppendStream(stream Numbered) returns (stream Numbered);   one answer for each request, in order
//! }
//! ```
//! A payload is a record, or a batch of them in one piece; the rounds hold what they would hold over plain TCP.

mod calls;
pub mod client;
pub mod server;
mod stream;

use bytes::Bytes;

const SERVICE: &str = "balsa.compare.Bound";
const APPEND: &str = "/balsa.compare.Bound/Append";
const APPEND_STREAM: &str = "/balsa.compare.Bound/AppendStream";

/// HTTP/2 windows, on both sides, as Balsa and its client have them.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(bytes = "bytes", tag = "1")]
    payload: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Appended {
    /// Calls acknowledged so far, this one included.
    #[prost(uint64, tag = "1")]
    count: u64,
}

/// A request on a stream, and its answer, which has the same number and nothing else.
#[derive(Clone, PartialEq, prost::Message)]
struct Numbered {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bytes = "bytes", tag = "2")]
    payload: Bytes,
}

/// Appends a request as the rounds hold it, over whatever transport it came: its length and its bytes.
fn put(pending: &mut Vec<u8>, payload: &[u8]) {
    pending.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    pending.extend_from_slice(payload);
}
