//! The bound: what this machine gives to anybody who makes three copies durable.
//!
//! Three processes write what they get to zero-filled files, `fdatasync` after each write, and acknowledge over plain TCP at two
//! of three syncs, batches as they come. There is no election, no log that could be read again, no checksum and no gRPC: a
//! replicated log can come near it and not pass it.
//!
//! ```text
//! client -> first    bytes u32 | payload            a request: one record, or a batch
//! first -> client    count u32                      so many more requests are acknowledged, in order
//! first -> others    round u64 | bytes u32 | bytes  what came since the last round
//! others -> first    round u64                      synced up to this round
//! ```
//! All numbers are little-endian. `grpc` is the same with another way from clients to the first node.

pub mod client;
pub mod grpc;
mod inbox;
pub mod node;
mod rounds;
mod shared;
