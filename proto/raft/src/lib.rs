//! Our stand-in for `raft-proto` 0.7.0, the message crate of `raft` 0.7.0: the same names and the same
//! wire format, on the prost of the rest of this project and with payloads as `Bytes`.

mod accessors;
mod codec;
mod confchange;
mod confstate;
#[cfg(test)]
mod tests;

pub use crate::confchange::{new_conf_change_single, parse_conf_change, stringify_conf_change, ConfChangeI};
pub use crate::confstate::conf_state_eq;

/// The messages, as prost generates them from eraftpb.proto.
///
/// They are plain prost messages, so another package's messages may hold them: map the proto package
/// with `extern_path(".eraftpb", "::raft::eraftpb")`.
pub mod eraftpb {
    include!(concat!(env!("OUT_DIR"), "/eraftpb.rs"));
}

/// The message types under one `use`; `raft::prelude` passes them on.
pub mod prelude {
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
        HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}
