//! The catalog's door: topics are created, listed, described, altered and deleted through group 0's log.

use super::errors::ApiError;
use super::Doors;
use crate::client::wire;
use crate::group::driver::{CommandError, Committed};
use crate::ids::{GroupId, TopicId};
use crate::limits::{BATCH_BYTES_MAX, REPLICAS_MAX, TOPIC_PARTITIONS_MAX};
use crate::metadata::{validate_topic_name, Catalog, MetadataCommand, Topic};
use crate::router::RouteError;
use crate::segments::verdict::{Refusal, Verdict};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How long a creation waits for the new partitions' leaders before it answers all the same.
const LEADERS_TIMEOUT: Duration = Duration::from_secs(3);

impl Doors {
    async fn create(&self, asked: wire::CreateTopicRequest) -> Result<wire::Topic, ApiError> {
        validate_topic_name(&asked.name).map_err(|error| ApiError::Invalid(error.to_string()))?;
        at_most("the number of partitions", asked.partitions as usize, TOPIC_PARTITIONS_MAX)?;
        at_most("the number of replicas", asked.replication as usize, REPLICAS_MAX)?;
        at_most("the largest batch in bytes", asked.batch_bytes_max as usize, BATCH_BYTES_MAX)?;
        let command = MetadataCommand::CreateTopic {
            topic: TopicId(self.new_uuid()),
            name: asked.name.as_str().into(),
            partitions: asked.partitions,
            replication: asked.replication,
            batch_bytes_max: asked.batch_bytes_max,
        };
        self.change_catalog(&asked.name, command).await.map_err(|error| match conflict(&error) {
            Some((wanted, nodes)) => ApiError::TooFewNodes { topic: asked.name.clone(), wanted, nodes },
            None => error,
        })?;
        self.wait_for_leaders(&asked.name).await;
        self.topic(&asked.name)
    }

    async fn alter(&self, asked: wire::AlterTopicRequest) -> Result<wire::Topic, ApiError> {
        at_most("the number of partitions", asked.partitions.unwrap_or(0) as usize, TOPIC_PARTITIONS_MAX)?;
        at_most("the largest batch in bytes", asked.batch_bytes_max.unwrap_or(0) as usize, BATCH_BYTES_MAX)?;
        if asked.partitions.is_none() && asked.batch_bytes_max.is_none() {
            return Err(ApiError::Invalid(
                "nothing is to be altered: name a number of partitions or a largest batch".into(),
            ));
        }
        let command = MetadataCommand::AlterTopic {
            name: asked.name.as_str().into(),
            partitions: asked.partitions,
            batch_bytes_max: asked.batch_bytes_max,
        };
        self.change_catalog(&asked.name, command).await.map_err(|error| match conflict(&error) {
            Some((wanted, present)) => ApiError::FewerPartitions { topic: asked.name.clone(), wanted, present },
            None => error,
        })?;
        self.wait_for_leaders(&asked.name).await;
        self.topic(&asked.name)
    }

    async fn delete(&self, name: &str) -> Result<(), ApiError> {
        self.change_catalog(name, MetadataCommand::DeleteTopic { name: name.into() }).await
    }

    /// Changes the catalog and waits until the change is applied here, so that this node's next answer knows it.
    async fn change_catalog(&self, name: &str, command: MetadataCommand) -> Result<(), ApiError> {
        let what = || format!("topic {name:?}");
        let committed = self.router.propose(GroupId::METADATA, command.encode()).await;
        let committed = committed.map_err(|error| self.route_failed(what(), GroupId::METADATA, error))?;
        let revision = changed(name, &committed)?;
        let reached = self.router.catalog_at(revision).await;
        reached.map(drop).map_err(|_| ApiError::Unknown {
            what: what(),
            reason: "it is agreed on, but this node has not caught up with it".into(),
            missing: self.router.missing(GroupId::METADATA),
        })
    }

    /// Waits until every partition of a topic has a leader, so that the first append needs no patience.
    async fn wait_for_leaders(&self, name: &str) {
        let mut metadata = self.router.metadata();
        let led = metadata.wait_for(|view| {
            let catalog = crate::router::catalog_of(view);
            let Some(topic) = catalog.topic(name) else { return true };
            let led = catalog.partitions_of(topic).all(|partition| partition.leader.is_some());
            led
        });
        let _ = tokio::time::timeout(LEADERS_TIMEOUT, led).await;
    }

    fn topic(&self, name: &str) -> Result<wire::Topic, ApiError> {
        let catalog = self.router.catalog();
        let topic = catalog.topic(name).ok_or_else(|| ApiError::UnknownTopic(name.to_owned()))?;
        Ok(self.topic_on_the_wire(&catalog, topic))
    }

    /// A topic in the words of the wire.
    pub(super) fn topic_on_the_wire(&self, catalog: &Catalog, topic: &Arc<Topic>) -> wire::Topic {
        let partitions = catalog.partitions_of(topic).map(|partition| wire::Partition {
            partition: partition.number,
            group: partition.group.0,
            replicas: partition.members.nodes().into_iter().map(|node| node.0).collect(),
            leader: self.leader(partition.group),
        });
        wire::Topic {
            name: topic.name.to_string(),
            id: uuid::Uuid::from_bytes(topic.id.0).to_string(),
            partitions: partitions.collect(),
            batch_bytes_max: topic.batch_bytes_max,
            created_ms: topic.created.0,
            replication: topic.replication,
        }
    }

    /// The catalog at least as new as every acknowledged change.
    ///
    /// # Errors
    /// If no majority of group 0 answers: then `UNAVAILABLE`, naming its nodes that are out of reach. It is a read, so no error of
    /// it may have happened.
    pub(super) async fn newest_catalog(&self) -> Result<Arc<Catalog>, ApiError> {
        self.router.fresh_catalog().await.map_err(|error| match error {
            RouteError::Here(CommandError::ShuttingDown { .. }) => ApiError::ShuttingDown,
            error => self.route_failed("the catalog".into(), GroupId::METADATA, error),
        })
    }
}

fn at_most(what: &'static str, actual: usize, limit: usize) -> Result<(), ApiError> {
    if actual > limit {
        return Err(ApiError::TooLarge { what, actual: actual as u64, limit: limit as u64 });
    }
    Ok(())
}

/// The two numbers that the catalog refused to bring together.
fn conflict(error: &ApiError) -> Option<(u64, u64)> {
    match error {
        ApiError::Refused { refusal: Refusal::Conflict { wanted, actual }, .. } => Some((*wanted, *actual)),
        _ => None,
    }
}

/// The revision that a change made.
fn changed(name: &str, committed: &Committed) -> Result<u64, ApiError> {
    match committed.verdict {
        Verdict::Done { value, .. } => Ok(value),
        Verdict::Refused(Refusal::Exists) => Err(ApiError::TopicExists(name.to_owned())),
        Verdict::Refused(Refusal::NotFound) => Err(ApiError::UnknownTopic(name.to_owned())),
        Verdict::Refused(refusal) => Err(ApiError::Refused { what: format!("topic {name:?}"), refusal }),
        other => Err(ApiError::Invalid(format!("the catalog answered with {other:?}"))),
    }
}

#[tonic::async_trait]
impl wire::topics_server::Topics for Doors {
    async fn create_topic(&self, request: Request<wire::CreateTopicRequest>) -> Result<Response<wire::Topic>, Status> {
        let created = self.create(request.into_inner()).await;
        created.map(Response::new).map_err(|error| self.status(&error, None))
    }

    async fn list_topics(
        &self,
        _: Request<wire::ListTopicsRequest>,
    ) -> Result<Response<wire::ListTopicsResponse>, Status> {
        let catalog = self.newest_catalog().await.map_err(|error| self.status(&error, None))?;
        let topics = catalog.topics().map(|topic| self.topic_on_the_wire(&catalog, topic)).collect();
        Ok(Response::new(wire::ListTopicsResponse { topics }))
    }

    async fn describe_topic(
        &self,
        request: Request<wire::DescribeTopicRequest>,
    ) -> Result<Response<wire::Topic>, Status> {
        let name = request.into_inner().name;
        let known = match self.topic(&name) {
            Err(ApiError::UnknownTopic(_)) => {
                let fresh = self.newest_catalog().await;
                self.topic(&name).map_err(|unknown| fresh.err().unwrap_or(unknown))
            }
            known => known,
        };
        known.map(Response::new).map_err(|error| self.status(&error, None))
    }

    async fn alter_topic(&self, request: Request<wire::AlterTopicRequest>) -> Result<Response<wire::Topic>, Status> {
        let altered = self.alter(request.into_inner()).await;
        altered.map(Response::new).map_err(|error| self.status(&error, None))
    }

    async fn delete_topic(
        &self,
        request: Request<wire::DeleteTopicRequest>,
    ) -> Result<Response<wire::DeleteTopicResponse>, Status> {
        let deleted = self.delete(&request.into_inner().name).await;
        deleted.map_err(|error| self.status(&error, None))?;
        Ok(Response::new(wire::DeleteTopicResponse {}))
    }
}
