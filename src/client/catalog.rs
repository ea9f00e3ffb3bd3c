//! Topics: create, list, describe, alter, delete; and the catalog's changes as they come.

use super::types::{Leader, NewTopic, Topic};
use super::wire::cluster_client::ClusterClient;
use super::wire::topics_client::TopicsClient;
use super::{wire, Backoff, Client, ClientError, Outcome, Reason, Repeat, STATUS_BYTES_MAX};
use crate::ids::{GroupId, NodeId, Revision};
use tonic::transport::Channel;
use tonic::Streaming;

pub(super) fn topics(channel: Channel) -> TopicsClient<Channel> {
    TopicsClient::new(channel).max_decoding_message_size(STATUS_BYTES_MAX)
}

impl Client {
    /// Creates a topic and its partitions.
    ///
    /// # Errors
    /// If there is one of that name, the name or a number is not allowed, or the outcome is unknown.
    pub async fn create_topic(&self, name: &str, new: &NewTopic) -> Result<Topic, ClientError> {
        let request = wire::CreateTopicRequest {
            name: name.to_string(),
            partitions: new.partitions.unwrap_or(0),
            replication: new.replication.unwrap_or(0),
            batch_bytes_max: new.batch_bytes_max.unwrap_or(0),
        };
        let call = |channel| {
            let request = request.clone();
            async move { topics(channel).create_topic(request).await }
        };
        self.remembered(self.call(None, Repeat::Harmful, call).await?)
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// If no server answers.
    pub async fn list_topics(&self) -> Result<Vec<Topic>, ClientError> {
        let call = |channel| async move { topics(channel).list_topics(wire::ListTopicsRequest {}).await };
        let answer = self.call(None, Repeat::Harmless, call).await.map_err(ClientError::of_nothing_sent)?;
        answer.topics.into_iter().map(|topic| self.remembered(topic)).collect()
    }

    /// One topic.
    ///
    /// # Errors
    /// If there is no such topic, or no server answers.
    pub async fn describe_topic(&self, name: &str) -> Result<Topic, ClientError> {
        let request = wire::DescribeTopicRequest { name: name.to_string() };
        let call = |channel| {
            let request = request.clone();
            async move { topics(channel).describe_topic(request).await }
        };
        let answer = self.call(None, Repeat::Harmless, call).await.map_err(ClientError::of_nothing_sent);
        if matches!(&answer, Err(error) if error.reason() == Some(Reason::UnknownTopic)) {
            self.shared.connections.forget_topic(name);
        }
        self.remembered(answer?)
    }

    /// Adds partitions to a topic, or changes its limits. Asking twice for the same is harmless.
    ///
    /// # Errors
    /// If there is no such topic, or it has more partitions already.
    pub async fn alter_topic(
        &self,
        name: &str,
        partitions: Option<u32>,
        batch_bytes_max: Option<u32>,
    ) -> Result<Topic, ClientError> {
        let request = wire::AlterTopicRequest { name: name.to_string(), partitions, batch_bytes_max };
        let call = |channel| {
            let request = request.clone();
            async move { topics(channel).alter_topic(request).await }
        };
        self.remembered(self.call(None, Repeat::Harmless, call).await?)
    }

    /// Deletes a topic and all its records, for good.
    ///
    /// # Errors
    /// If there is no such topic, or the outcome is unknown.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        let request = wire::DeleteTopicRequest { name: name.to_string() };
        let call = |channel| {
            let request = request.clone();
            async move { topics(channel).delete_topic(request).await }
        };
        self.call(None, Repeat::Harmful, call).await?;
        self.shared.connections.forget_topic(name);
        Ok(())
    }

    /// The catalog and every partition's leader as changes after a revision; after revision zero, the present state first.
    #[must_use]
    pub fn watch_catalog(&self, after: Revision) -> CatalogWatch {
        let synced = after > Revision::ZERO;
        CatalogWatch { client: self.clone(), after, synced, stream: None, backoff: Backoff::default() }
    }

    pub(super) fn remembered(&self, topic: wire::Topic) -> Result<Topic, ClientError> {
        let topic = Topic::from(topic);
        self.shared.connections.learn_topic(&topic);
        Ok(topic)
    }
}

/// One change of the catalog.
#[derive(Clone, Debug)]
pub enum CatalogChange {
    /// A topic was created or altered.
    TopicSet(Topic),
    /// A topic was deleted.
    TopicDeleted(String),
    /// A partition has another leader. An empty topic is the metadata group itself.
    LeaderChanged {
        /// The topic.
        topic: String,
        /// The partition's number.
        partition: u32,
        /// Its group.
        group: GroupId,
        /// Its leader now.
        leader: Option<Leader>,
    },
    /// A node joined or moved.
    NodeSet {
        /// The node.
        node: NodeId,
        /// Where it listens for clients.
        address: String,
    },
    /// The present state has been told; changes follow.
    Synced,
}

/// The catalog's changes, resumed after the last one seen when the connection breaks.
#[derive(Debug)]
pub struct CatalogWatch {
    client: Client,
    after: Revision,
    /// The present state has been told whole; before that, there is nothing to resume from but zero.
    synced: bool,
    stream: Option<(String, Streaming<wire::CatalogEvent>)>,
    backoff: Backoff,
}

impl CatalogWatch {
    /// The revision of the last change given out: where a later watch resumes.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.after
    }

    /// Waits for the next change. Reconnects for as long as it takes.
    ///
    /// # Errors
    /// If the revision to resume from is too old: start again from zero.
    pub async fn next(&mut self) -> Result<(Revision, CatalogChange), ClientError> {
        loop {
            match self.next_on_this_stream().await {
                Ok(Some(change)) => return Ok(change),
                Ok(None) => {}
                Err(error) if error.is_passing() => {
                    let wait = self.backoff.next(&self.client.shared.jitter);
                    tokio::time::sleep(wait).await;
                }
                Err(error) => return Err(error.of_nothing_sent()),
            }
        }
    }

    async fn next_on_this_stream(&mut self) -> Result<Option<(Revision, CatalogChange)>, ClientError> {
        let connections = &self.client.shared.connections;
        let (address, stream) = match &mut self.stream {
            Some(open) => open,
            closed => {
                let address = connections.any_server(None);
                let channel = connections.channel(&address).await.inspect_err(|_| connections.next_turn(&address))?;
                let request = wire::WatchCatalogRequest { after_revision: self.after.0 };
                let answer = ClusterClient::new(channel).watch_catalog(request).await;
                let stream = answer.map_err(|status| ClientError::from_status(&address, &status))?.into_inner();
                closed.insert((address, stream))
            }
        };
        let event = match stream.message().await {
            Ok(Some(event)) => event,
            ended => {
                let address = address.clone();
                self.stream = None;
                connections.next_turn(&address);
                let cause = match ended {
                    Err(status) => return Err(ClientError::from_status(&address, &status)),
                    Ok(_) => "the server ended it".to_string(),
                };
                return Err(ClientError::Broken { address, cause, outcome: Outcome::DidNotHappen });
            }
        };
        self.backoff.reset();
        let revision = Revision(event.revision);
        let Some(change) = event.event.and_then(change_of) else { return Ok(None) };
        self.client.learn_change(&change);
        self.synced |= matches!(change, CatalogChange::Synced);
        if self.synced {
            self.after = self.after.max(revision);
        }
        Ok(Some((revision, change)))
    }
}

impl Client {
    fn learn_change(&self, change: &CatalogChange) {
        let connections = &self.shared.connections;
        match change {
            CatalogChange::TopicSet(topic) => connections.learn_topic(topic),
            CatalogChange::TopicDeleted(name) => connections.forget_topic(name),
            CatalogChange::LeaderChanged { topic, partition, leader: Some(leader), .. } => {
                connections.learn_leader(topic, *partition, leader);
            }
            CatalogChange::NodeSet { address, .. } => connections.learn_server(address),
            CatalogChange::LeaderChanged { .. } | CatalogChange::Synced => {}
        }
    }
}

fn change_of(event: wire::catalog_event::Event) -> Option<CatalogChange> {
    use wire::catalog_event::Event;
    Some(match event {
        Event::TopicSet(topic) => CatalogChange::TopicSet(Topic::from(topic)),
        Event::TopicDeleted(name) => CatalogChange::TopicDeleted(name),
        Event::LeaderChanged(changed) => CatalogChange::LeaderChanged {
            topic: changed.topic,
            partition: changed.partition,
            group: GroupId(changed.group),
            leader: changed.leader.as_ref().and_then(Leader::from_wire),
        },
        Event::NodeSet(node) => CatalogChange::NodeSet { node: NodeId(node.id), address: node.address },
        Event::Synced(_) => CatalogChange::Synced,
    })
}
