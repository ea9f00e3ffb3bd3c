//! rust-protobuf's `Message` for the prost messages: `raft` asks it for sizes and to code configuration
//! changes. Coding is prost's. What prost has no counterpart for, reflection and unknown fields to write
//! into, panics; `raft` never calls it.

use std::any::Any;
use std::io::Read;
use std::sync::LazyLock;

use protobuf::reflect::MessageDescriptor;
use protobuf::{CodedInputStream, CodedOutputStream, ProtobufError, ProtobufResult, UnknownFields};

use crate::eraftpb::*;

/// prost drops the fields it does not know, so every message has these: none.
static NO_UNKNOWN_FIELDS: LazyLock<UnknownFields> = LazyLock::new(UnknownFields::new);

macro_rules! message {
    ($($message:ident)+) => {$(
        impl protobuf::Clear for $message {
            fn clear(&mut self) {
                prost::Message::clear(self);
            }
        }

        impl protobuf::Message for $message {
            fn is_initialized(&self) -> bool {
                true // proto3 has no required fields
            }

            fn compute_size(&self) -> u32 {
                u32::try_from(prost::Message::encoded_len(self)).unwrap_or(u32::MAX)
            }

            fn get_cached_size(&self) -> u32 {
                self.compute_size() // nothing is cached
            }

            fn merge_from(&mut self, is: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
                let mut rest = Vec::new();
                is.read_to_end(&mut rest).map_err(ProtobufError::IoError)?;
                self.merge_from_bytes(&rest)
            }

            fn merge_from_bytes(&mut self, bytes: &[u8]) -> ProtobufResult<()> {
                prost::Message::merge(self, bytes).map_err(|error| ProtobufError::IoError(error.into()))
            }

            fn write_to_with_cached_sizes(&self, os: &mut CodedOutputStream<'_>) -> ProtobufResult<()> {
                os.write_raw_bytes(&prost::Message::encode_to_vec(self))
            }

            fn write_to_bytes(&self) -> ProtobufResult<Vec<u8>> {
                Ok(prost::Message::encode_to_vec(self))
            }

            fn get_unknown_fields(&self) -> &UnknownFields {
                &NO_UNKNOWN_FIELDS
            }

            fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
                panic!("prost keeps no unknown fields")
            }

            fn descriptor(&self) -> &'static MessageDescriptor {
                panic!("prost has no reflection")
            }

            fn as_any(&self) -> &dyn Any {
                self
            }

            fn as_any_mut(&mut self) -> &mut dyn Any {
                self
            }

            fn into_any(self: Box<Self>) -> Box<dyn Any> {
                self
            }

            fn new() -> Self {
                Self::default()
            }

            fn default_instance() -> &'static Self {
                static DEFAULT: LazyLock<$message> = LazyLock::new($message::default);
                &DEFAULT
            }
        }
    )+};
}

message!(Entry SnapshotMetadata Snapshot Message HardState ConfState ConfChange ConfChangeSingle ConfChangeV2);
