//! The state machine of a partition: offsets, exactly-once producer sessions, fences, and where the log starts.
//!
//! Everything here is pure: the next state follows from the present one, the command, and where in the log the command
//! lies. It holds no records (segments do) and no hash chain (the group links it), and it decides nothing about leaders or
//! members. All replicas that applied the same entries hold the same state, byte for byte.
//!
//! - [`command`]: what can be asked of it, and how that lies in an entry.
//! - [`session`]: the rules that make a retry safe.
//! - [`state`]: applies commands.
//! - [`snapshot`]: the state as bytes.

pub(crate) mod codec;
pub mod command;
pub mod session;
pub mod snapshot;
pub mod state;

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;

pub use codec::DecodeError;
pub use command::{AppendCommand, Fence, PartitionCommand};
pub use session::{SessionStanding, SEQUENCE_MODULUS};
pub use state::{Bound, Partition, PartitionSettings, PartitionView};
