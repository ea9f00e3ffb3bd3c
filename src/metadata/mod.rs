//! The state machine of group 0: nodes, topics, partitions, and who leads each of them as of which term.
//!
//! Pure, like every state machine here. It gives groups their numbers and their founding replicas, and remembers what leaders
//! report; it starts no group, moves no replica and elects nobody: nodes read the catalog and act. What it knows of leaders and
//! members may lag behind the groups themselves, and never goes back.
//!
//! - [`command`]: what can be asked of it.
//! - [`catalog`]: the state, as an immutable snapshot for the node and its watchers.
//! - [`state`]: applies commands.
//! - [`placement`]: which nodes get the replicas of a new partition.
//! - [`names`]: what a topic may be called.
//! - [`snapshot`]: the state as bytes.
//! - [`shared_map`]: the ordered map whose clones share what they have in common.
//! - [`machine`]: this one and a partition's under one type, as a node's driver runs them.

pub mod catalog;
pub mod command;
pub mod machine;
pub mod names;
pub mod placement;
pub mod shared_map;
pub mod snapshot;
pub mod state;

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;

pub use catalog::{
    Catalog, CatalogEvent, Change, Cluster, Compacted, Control, GroupStanding, Leader, Members, Node, Partition, Topic,
};
pub use command::{Bootstrap, MetadataCommand, NodeRegistration};
pub use machine::{Machine, MachineView};
pub use names::{validate_topic_name, TopicNameError};
pub use state::{Bound, Metadata};
