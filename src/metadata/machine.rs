//! Both state machines under one type, so that one kind of replica and one driver run every group.
//!
//! Holds no rules of its own: it passes on. A snapshot's first byte says whose it is, so that a partition is never restored from
//! the catalog's bytes.

use super::catalog::Catalog;
use super::state::Metadata;
use crate::group::machine::{Applied, Place, StateMachine};
use crate::ids::{GroupId, Offset};
use crate::partition::{Partition, PartitionSettings, PartitionView};
use crate::planted;
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;

const TAG_PARTITION: u8 = 1;
const TAG_METADATA: u8 = 2;

/// The state machine of any group.
#[derive(Clone, Debug)]
pub enum Machine {
    /// A partition's.
    Partition(Partition),
    /// Group 0's.
    Metadata(Metadata),
}

/// What the node sees of any group's state.
#[derive(Clone, Debug)]
pub enum MachineView {
    /// A partition's.
    Partition(PartitionView),
    /// Group 0's.
    Metadata(Arc<Catalog>),
}

impl Machine {
    /// The snapshot in a new partition's first base.
    #[must_use]
    pub fn initial_partition(group: GroupId) -> Bytes {
        Machine::Partition(Partition::new(PartitionSettings::new(group))).snapshot()
    }

    /// The snapshot in group 0's first base.
    #[must_use]
    pub fn initial_metadata() -> Bytes {
        Machine::Metadata(Metadata::new()).snapshot()
    }
}

impl MachineView {
    /// The partition's view, if it is one.
    #[must_use]
    pub fn partition(&self) -> Option<PartitionView> {
        match self {
            MachineView::Partition(view) => Some(*view),
            MachineView::Metadata(_) => None,
        }
    }

    /// The catalog, if it is that.
    #[must_use]
    pub fn catalog(&self) -> Option<&Arc<Catalog>> {
        match self {
            MachineView::Partition(_) => None,
            MachineView::Metadata(catalog) => Some(catalog),
        }
    }
}

impl StateMachine for Machine {
    type View = MachineView;

    fn apply(&mut self, place: Place, command: &Bytes) -> Applied {
        match self {
            Machine::Partition(partition) => partition.apply(place, command),
            Machine::Metadata(metadata) => metadata.apply(place, command),
        }
    }

    fn adds_data(command: &Bytes) -> bool {
        Partition::adds_data(command) || Metadata::adds_data(command)
    }

    fn log_start(&self) -> Offset {
        match self {
            Machine::Partition(partition) => partition.log_start(),
            Machine::Metadata(metadata) => metadata.log_start(),
        }
    }

    fn tail(&self) -> Offset {
        match self {
            Machine::Partition(partition) => partition.tail(),
            Machine::Metadata(metadata) => metadata.tail(),
        }
    }

    fn snapshot(&self) -> Bytes {
        let mut into = BytesMut::new();
        match self {
            Machine::Partition(partition) => {
                into.put_u8(TAG_PARTITION);
                partition.encode(&mut into);
            }
            Machine::Metadata(metadata) => {
                into.put_u8(TAG_METADATA);
                metadata.catalog.encode(&mut into);
            }
        }
        into.freeze()
    }

    fn restore(snapshot: &Bytes) -> Result<Machine, String> {
        match snapshot.first() {
            Some(&TAG_PARTITION) => Partition::restore(&snapshot.slice(1..)).map(Machine::Partition),
            Some(&TAG_METADATA) => Metadata::restore(&snapshot.slice(1..)).map(Machine::Metadata),
            Some(tag) => Err(format!("snapshot starts with tag {tag}; {TAG_PARTITION} or {TAG_METADATA} is known")),
            None if planted!("unreadable-snapshot-taken-for-none") => {
                Partition::restore(snapshot).map(Machine::Partition)
            }
            None => Err("snapshot is empty".into()),
        }
    }

    fn view(&self) -> MachineView {
        match self {
            Machine::Partition(partition) => MachineView::Partition(partition.view()),
            Machine::Metadata(metadata) => MachineView::Metadata(metadata.view()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_restores_the_machine_it_was_taken_of_and_no_other() {
        let partition = Machine::initial_partition(GroupId(7));
        let restored = Machine::restore(&partition).unwrap();
        assert_eq!(restored.view().partition().unwrap().group, GroupId(7));
        assert_eq!(restored.snapshot(), partition);

        let metadata = Machine::initial_metadata();
        let restored = Machine::restore(&metadata).unwrap();
        assert!(restored.view().catalog().unwrap().cluster().is_none());
        assert_eq!(restored.snapshot(), metadata);

        assert_eq!(Machine::restore(&Bytes::new()).unwrap_err(), "snapshot is empty");
        let other = Bytes::from([&[9], &partition[1..]].concat());
        assert!(Machine::restore(&other).unwrap_err().contains("tag 9"));
        let swapped = Bytes::from([&[TAG_METADATA], &partition[1..]].concat());
        assert!(Machine::restore(&swapped).unwrap_err().contains("snapshot of the catalog"));
    }
}
