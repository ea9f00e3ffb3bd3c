//! The accessor methods that `raft` expects in the manner of rust-protobuf. The setters of enum fields
//! are not here: prost generates them.

use std::mem;

use bytes::Bytes;
use protobuf::Message as _;

use crate::eraftpb::*;

/// Writes the accessors of one message. A line is a kind, a field, its type and the names to define;
/// spelled out, since a declarative macro cannot join identifiers.
macro_rules! accessors {
    ($message:ident { $($kind:ident $field:ident: $ty:ty => $($name:ident)+;)+ }) => {
        impl $message {
            $(accessors!(@$kind $field, $ty, $($name)+);)+
        }
    };
    // A number or a flag.
    (@plain $field:ident, $ty:ty, $get:ident $set:ident $clear:ident) => {
        pub fn $get(&self) -> $ty {
            self.$field
        }
        pub fn $set(&mut self, value: $ty) {
            self.$field = value;
        }
        pub fn $clear(&mut self) {
            self.$field = Default::default();
        }
    };
    // An enum, held as an i32; a number this version does not know reads as the zero variant.
    (@choice $field:ident, $ty:ty, $get:ident $clear:ident) => {
        pub fn $get(&self) -> $ty {
            self.$field()
        }
        pub fn $clear(&mut self) {
            self.$field = 0;
        }
    };
    // A payload (`Bytes`) or a list (`Vec`), lent out as a slice of `$ty`'s elements.
    (@bytes $field:ident, $ty:ty, $($name:ident)+) => {
        accessors!(@many $field, $ty, [u8], $($name)+);
    };
    (@list $field:ident, $ty:ty, $($name:ident)+) => {
        accessors!(@many $field, Vec<$ty>, [$ty], $($name)+);
    };
    (@many $field:ident, $owned:ty, $slice:ty,
     $get:ident $set:ident $mut:ident $take:ident $clear:ident) => {
        pub fn $get(&self) -> &$slice {
            &self.$field
        }
        pub fn $set(&mut self, value: $owned) {
            self.$field = value;
        }
        pub fn $mut(&mut self) -> &mut $owned {
            &mut self.$field
        }
        pub fn $take(&mut self) -> $owned {
            mem::take(&mut self.$field)
        }
        pub fn $clear(&mut self) {
            self.$field.clear();
        }
    };
    // A message inside this one; where it is absent, `get` lends the default.
    (@part $field:ident, $ty:ty,
     $has:ident $get:ident $set:ident $mut:ident $take:ident $clear:ident) => {
        pub fn $has(&self) -> bool {
            self.$field.is_some()
        }
        pub fn $get(&self) -> &$ty {
            self.$field.as_ref().unwrap_or_else(|| <$ty>::default_instance())
        }
        pub fn $set(&mut self, value: $ty) {
            self.$field = Some(value);
        }
        pub fn $mut(&mut self) -> &mut $ty {
            self.$field.get_or_insert_default()
        }
        pub fn $take(&mut self) -> $ty {
            self.$field.take().unwrap_or_default()
        }
        pub fn $clear(&mut self) {
            self.$field = None;
        }
    };
}

accessors!(Entry {
    choice entry_type: EntryType => get_entry_type clear_entry_type;
    plain term: u64 => get_term set_term clear_term;
    plain index: u64 => get_index set_index clear_index;
    bytes data: Bytes => get_data set_data mut_data take_data clear_data;
    plain sync_log: bool => get_sync_log set_sync_log clear_sync_log;
    bytes context: Bytes => get_context set_context mut_context take_context clear_context;
});

accessors!(SnapshotMetadata {
    part conf_state: ConfState =>
        has_conf_state get_conf_state set_conf_state mut_conf_state take_conf_state clear_conf_state;
    plain index: u64 => get_index set_index clear_index;
    plain term: u64 => get_term set_term clear_term;
});

accessors!(Snapshot {
    bytes data: Bytes => get_data set_data mut_data take_data clear_data;
    part metadata: SnapshotMetadata =>
        has_metadata get_metadata set_metadata mut_metadata take_metadata clear_metadata;
});

accessors!(Message {
    choice msg_type: MessageType => get_msg_type clear_msg_type;
    plain to: u64 => get_to set_to clear_to;
    plain from: u64 => get_from set_from clear_from;
    plain term: u64 => get_term set_term clear_term;
    plain log_term: u64 => get_log_term set_log_term clear_log_term;
    plain index: u64 => get_index set_index clear_index;
    list entries: Entry => get_entries set_entries mut_entries take_entries clear_entries;
    plain commit: u64 => get_commit set_commit clear_commit;
    part snapshot: Snapshot => has_snapshot get_snapshot set_snapshot mut_snapshot take_snapshot clear_snapshot;
    plain reject: bool => get_reject set_reject clear_reject;
    plain reject_hint: u64 => get_reject_hint set_reject_hint clear_reject_hint;
    bytes context: Bytes => get_context set_context mut_context take_context clear_context;
    plain request_snapshot: u64 => get_request_snapshot set_request_snapshot clear_request_snapshot;
    plain deprecated_priority: u64 => get_deprecated_priority set_deprecated_priority clear_deprecated_priority;
    plain commit_term: u64 => get_commit_term set_commit_term clear_commit_term;
    plain priority: i64 => get_priority set_priority clear_priority;
});

accessors!(HardState {
    plain term: u64 => get_term set_term clear_term;
    plain vote: u64 => get_vote set_vote clear_vote;
    plain commit: u64 => get_commit set_commit clear_commit;
});

accessors!(ConfState {
    list voters: u64 => get_voters set_voters mut_voters take_voters clear_voters;
    list learners: u64 => get_learners set_learners mut_learners take_learners clear_learners;
    list voters_outgoing: u64 =>
        get_voters_outgoing set_voters_outgoing mut_voters_outgoing take_voters_outgoing clear_voters_outgoing;
    list learners_next: u64 =>
        get_learners_next set_learners_next mut_learners_next take_learners_next clear_learners_next;
    plain auto_leave: bool => get_auto_leave set_auto_leave clear_auto_leave;
});

accessors!(ConfChange {
    plain id: u64 => get_id set_id clear_id;
    choice change_type: ConfChangeType => get_change_type clear_change_type;
    plain node_id: u64 => get_node_id set_node_id clear_node_id;
    bytes context: Bytes => get_context set_context mut_context take_context clear_context;
});

accessors!(ConfChangeSingle {
    choice change_type: ConfChangeType => get_change_type clear_change_type;
    plain node_id: u64 => get_node_id set_node_id clear_node_id;
});

accessors!(ConfChangeV2 {
    choice transition: ConfChangeTransition => get_transition clear_transition;
    list changes: ConfChangeSingle => get_changes set_changes mut_changes take_changes clear_changes;
    bytes context: Bytes => get_context set_context mut_context take_context clear_context;
});

impl Snapshot {
    /// Whether this is no snapshot at all: none stands at index zero.
    pub fn is_empty(&self) -> bool {
        self.get_metadata().index == 0
    }
}
