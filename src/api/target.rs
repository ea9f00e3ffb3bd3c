//! From a topic's name and a partition's number to the catalog's entry.

use super::errors::ApiError;
use super::Doors;
use crate::ids::GroupId;
use crate::metadata::{validate_topic_name, Partition, Topic};
use std::fmt;
use std::sync::Arc;

/// A partition that exists.
#[derive(Clone)]
pub(super) struct Target {
    pub topic: Arc<Topic>,
    pub partition: Arc<Partition>,
}

impl Target {
    pub fn group(&self) -> GroupId {
        self.partition.group
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic.name, self.partition.number)
    }
}

impl Doors {
    /// The partition as this node's catalog has it; asked for again, linearizably, before it is called unknown, because
    /// it may have been created through another node a moment ago.
    ///
    /// Without a majority of group 0 nobody can tell that it does not exist: a definite *not found* would make a client give up
    /// on a topic that is there.
    pub(super) async fn target(&self, topic: &str, partition: u32) -> Result<Target, ApiError> {
        match self.known_target(topic, partition) {
            Err(ApiError::UnknownTopic(_) | ApiError::UnknownPartition { .. }) => {
                let fresh = self.newest_catalog().await;
                // This node may have learnt of it meanwhile, even without a majority.
                self.known_target(topic, partition).map_err(|unknown| fresh.err().unwrap_or(unknown))
            }
            known => known,
        }
    }

    pub(super) fn known_target(&self, topic: &str, partition: u32) -> Result<Target, ApiError> {
        let catalog = self.router.catalog();
        let Some(found) = catalog.topic(topic) else {
            validate_topic_name(topic).map_err(|error| ApiError::Invalid(error.to_string()))?;
            return Err(ApiError::UnknownTopic(topic.to_owned()));
        };
        let unknown =
            || ApiError::UnknownPartition { topic: topic.to_owned(), partition, partitions: found.groups.len() as u32 };
        let group = found.groups.get(partition as usize).ok_or_else(unknown)?;
        let entry = catalog.partition(*group).ok_or_else(unknown)?;
        Ok(Target { topic: found.clone(), partition: entry.clone() })
    }
}
