//! The cluster's door: status, the watch of catalog and leaders, and the transfer of a leader.

use super::errors::ApiError;
use super::Doors;
use crate::client::wire;
use crate::group::driver::DriverStatus;
use crate::group::replica::{MemberStatus, ReplicaStatus};
use crate::ids::{GroupId, NodeId, Revision};
use crate::metadata::{Catalog, Change};
use crate::router::{catalog_of, RouteError};
use crate::usage::Usage;
use crate::{planted, reached};
use futures::stream::BoxStream;
use futures::StreamExt;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use wire::catalog_event::Event;

/// Events that wait for the transport before the watcher waits.
const EVENTS_QUEUED_MAX: usize = 256;

/// How long the other nodes may take to add what they see to a status.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(500);
/// Largest status that another node may answer with, in bytes.
const STATUS_BYTES_MAX: usize = 16 << 20;

type Watched = Result<wire::CatalogEvent, Status>;

/// One watch under way.
struct Watcher {
    doors: Doors,
    events: mpsc::Sender<Watched>,
    after: Revision,
}

impl Doors {
    async fn status_response(&self, local_only: bool) -> wire::StatusResponse {
        let catalog = if local_only {
            self.router.catalog()
        } else {
            // Without a majority, what this node sees is what an operator needs to see.
            self.router.fresh_catalog().await.unwrap_or_else(|_| self.router.catalog())
        };
        let up: BTreeMap<NodeId, bool> =
            self.router.peers().status().into_iter().map(|peer| (peer.node, peer.connected)).collect();
        let mut nodes = self.node_statuses(&catalog, &up);
        let DriverStatus { replicas, full } = self.router.driver().status().await.unwrap_or_default();
        let mut partitions: Vec<wire::PartitionStatus> = catalog
            .partitions()
            .map(|partition| {
                let view = self.router.driver().view(partition.group);
                let (start, tail) = view.map_or((0, 0), |view| (view.borrow().start.0, view.borrow().tail.0));
                wire::PartitionStatus {
                    topic: partition.topic_name.to_string(),
                    partition: partition.number,
                    leader: self.live_leader(partition.group, &up),
                    replicas: partition.members.nodes().into_iter().map(|node| node.0).collect(),
                    tail,
                    start,
                    lag: replicas.get(&partition.group).map(lag).unwrap_or_default(),
                    tail_known: replicas.contains_key(&partition.group),
                }
            })
            .collect();
        partitions.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        if !local_only {
            for other in self.ask_others(&up).await {
                merge(&mut nodes, &mut partitions, other);
            }
        }
        let problems = self.problems(&catalog, &nodes, &partitions, &full);
        wire::StatusResponse {
            cluster_id: catalog.cluster().map(|cluster| cluster.id.to_string()).unwrap_or_default(),
            nodes,
            partitions,
            revision: catalog.revision().0,
            problems,
            answered_by: self.router.node().0,
        }
    }

    /// What the other nodes see, as far as they answer in time: their lags, and the tails of what is not hosted here.
    async fn ask_others(&self, up: &BTreeMap<NodeId, bool>) -> Vec<wire::StatusResponse> {
        let reachable = up.iter().filter(|(_, up)| **up).map(|(node, _)| *node);
        let asked = reachable.map(|node| async move {
            let channel = self.proxies.channel(node, &self.client_address(node)).ok()?;
            let mut client =
                wire::cluster_client::ClusterClient::new(channel).max_decoding_message_size(STATUS_BYTES_MAX);
            let status = client.status(wire::StatusRequest { local_only: true });
            Some(tokio::time::timeout(OTHERS_TIMEOUT, status).await.ok()?.ok()?.into_inner())
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// The leader, unless it is on a node that can't be reached from here and nobody else vouches for it.
    fn live_leader(&self, group: GroupId, up: &BTreeMap<NodeId, bool>) -> Option<wire::Leader> {
        let leader = self.leader(group)?;
        let node = NodeId(leader.node);
        (node == self.router.node() || up.get(&node).copied().unwrap_or(false)).then_some(leader)
    }

    fn node_statuses(&self, catalog: &Catalog, up: &BTreeMap<NodeId, bool>) -> Vec<wire::NodeStatus> {
        let mut leads: BTreeMap<u32, u32> = BTreeMap::new();
        for leader in catalog.partitions().filter_map(|partition| self.live_leader(partition.group, up)) {
            *leads.entry(leader.node).or_default() += 1;
        }
        let state = |node: NodeId| {
            if node == self.router.node() {
                return wire::NodeState::Up;
            }
            match up.get(&node) {
                Some(true) => wire::NodeState::Up,
                Some(false) => wire::NodeState::Down,
                None => wire::NodeState::Unknown,
            }
        };
        let own_usage = Usage::of_this_process().map(|usage| wire::ProcessUsage {
            cpu_us: usage.cpu_us,
            resident_bytes: usage.resident_bytes,
            written_bytes: usage.written_bytes,
        });
        catalog
            .nodes()
            .map(|node| wire::NodeStatus {
                id: node.id.0,
                address: node.client_address.to_string(),
                state: state(node.id) as i32,
                version: node.version.to_string(),
                leads: leads.get(&node.id.0).copied().unwrap_or_default(),
                usage: own_usage.filter(|_| node.id == self.router.node()),
            })
            .collect()
    }

    /// What is wrong, in words.
    fn problems(
        &self,
        catalog: &Catalog,
        nodes: &[wire::NodeStatus],
        partitions: &[wire::PartitionStatus],
        full: &[NodeId],
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let down: Vec<u32> =
            nodes.iter().filter(|node| node.state == wire::NodeState::Down as i32).map(|node| node.id).collect();
        for node in &down {
            problems.push(format!("node {node} can't be reached from node {}", self.router.node()));
        }
        for node in full {
            problems
                .push(format!("the disk of node {node} is full: its reserve is reached; make room, or delete topics"));
        }
        if self.router.leader(GroupId::METADATA).is_none() {
            problems.push("the metadata group has no leader: no topic can be created or changed".into());
        }
        let leaderless = partitions.iter().filter(|partition| partition.leader.is_none()).count();
        if leaderless > 0 {
            problems.push(format!("{leaderless} of {} partitions have no leader", partitions.len()));
        }
        let short =
            partitions.iter().filter(|partition| partition.replicas.iter().any(|node| down.contains(node))).count();
        if short > 0 {
            problems.push(format!("{short} of {} partitions have a replica that is down", partitions.len()));
        }
        if catalog.cluster().is_none() {
            problems.push("the cluster is not founded yet: a majority of its nodes has not been reached".into());
        }
        problems
    }

    async fn transfer(&self, asked: wire::TransferLeaderRequest) -> Result<(), ApiError> {
        let target = self.target(&asked.topic, asked.partition).await?;
        let to = NodeId(asked.to_node);
        if !target.partition.members.nodes().contains(&to) {
            return Err(ApiError::Invalid(format!("node {to} hosts no replica of {target}")));
        }
        let moved = self.router.driver().transfer(target.group(), to).await;
        moved.map_err(|error| self.route_failed(target.to_string(), target.group(), RouteError::Here(error)))
    }
}

impl Watcher {
    async fn run(mut self) {
        let mut metadata = self.doors.router.metadata();
        loop {
            let catalog = catalog_of(&metadata.borrow_and_update());
            let sent = match self.after {
                Revision::ZERO => self.send_present(&catalog).await,
                after => match catalog.events_after(after) {
                    Ok(events) => self.send_changes(&catalog, events).await,
                    Err(compacted) => {
                        let error = ApiError::Compacted { wanted: after.0, oldest: compacted.oldest.0 };
                        let _ = self.events.send(Err(self.doors.status(&error, None))).await;
                        false
                    }
                },
            };
            if !sent {
                return;
            }
            tokio::select! {
                biased;
                _ = self.events.closed() => return,
                () = self.doors.stopped() => {
                    let _ = self.events.send(Err(self.doors.status(&ApiError::ShuttingDown, None))).await;
                    return;
                }
                changed = metadata.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn send_present(&mut self, catalog: &Catalog) -> bool {
        let revision = catalog.revision();
        if revision == Revision::ZERO {
            return true;
        }
        let nodes = catalog.nodes().map(|node| Event::NodeSet(node_set(node)));
        let topics = catalog.topics().map(|topic| Event::TopicSet(self.doors.topic_on_the_wire(catalog, topic)));
        let events: Vec<Event> = nodes.chain(topics).chain([Event::Synced(true)]).collect();
        for event in events {
            if !self.send(revision, event).await {
                return false;
            }
        }
        self.after = revision;
        true
    }

    async fn send_changes(&mut self, catalog: &Catalog, events: Vec<crate::metadata::CatalogEvent>) -> bool {
        let skipped = usize::from(planted!("watch-skips-a-revision") && events.len() > 1);
        for changed in events.into_iter().skip(skipped) {
            self.after = changed.revision;
            let Some(event) = self.on_the_wire(catalog, changed.change) else { continue };
            if !self.send(changed.revision, event).await {
                return false;
            }
        }
        true
    }

    /// A change in the words of the wire; `None` if what it is about is gone by now, which a later event tells.
    fn on_the_wire(&self, catalog: &Catalog, change: Change) -> Option<Event> {
        Some(match change {
            Change::ControlSet => return None,
            Change::TopicSet { name, .. } => {
                Event::TopicSet(self.doors.topic_on_the_wire(catalog, catalog.topic(&name)?))
            }
            Change::TopicDeleted { name, .. } => Event::TopicDeleted(name.to_string()),
            Change::LeaderChanged { group, topic, partition, leader } => Event::LeaderChanged(wire::LeaderChanged {
                topic: topic.to_string(),
                partition,
                group: group.0,
                leader: Some(wire::Leader {
                    node: leader.node.0,
                    term: leader.term.0,
                    address: self.doors.client_address(leader.node),
                }),
            }),
            Change::NodeSet { node } => Event::NodeSet(node_set(catalog.node(node)?)),
        })
    }

    async fn send(&self, revision: Revision, event: Event) -> bool {
        let event = wire::CatalogEvent { revision: revision.0, event: Some(event) };
        self.events.send(Ok(event)).await.is_ok()
    }
}

/// Adds what another node sees to what this one does.
fn merge(nodes: &mut [wire::NodeStatus], partitions: &mut [wire::PartitionStatus], other: wire::StatusResponse) {
    if let Some(node) = nodes.iter_mut().find(|node| node.id == other.answered_by) {
        node.state = wire::NodeState::Up as i32;
        node.usage = other.nodes.iter().find(|theirs| theirs.id == node.id).and_then(|theirs| theirs.usage);
    }
    // Both come out of a catalog, sorted; one of them may know a topic that the other does not know yet.
    for theirs in other.partitions {
        let key = |partition: &wire::PartitionStatus| (partition.topic.clone(), partition.partition);
        let Ok(at) = partitions.binary_search_by_key(&key(&theirs), key) else { continue };
        let ours = &mut partitions[at];
        if theirs.tail_known && (!ours.tail_known || theirs.tail > ours.tail) {
            (ours.start, ours.tail, ours.tail_known) = (theirs.start, theirs.tail, true);
        }
        if ours.lag.is_empty() {
            ours.lag = theirs.lag;
        }
        let term = |leader: &Option<wire::Leader>| leader.as_ref().map(|leader| leader.term);
        if term(&theirs.leader) > term(&ours.leader) {
            ours.leader = theirs.leader;
        }
    }
}

/// How far each member is behind; known to the leader alone.
fn lag(status: &ReplicaStatus) -> Vec<wire::ReplicaLag> {
    let behind = |member: &MemberStatus| {
        let entries = status.last.0.saturating_sub(member.matched?.0);
        Some(wire::ReplicaLag { node: member.id.node().0, entries })
    };
    status.members.iter().filter_map(behind).collect()
}

fn node_set(node: &crate::metadata::Node) -> wire::NodeSet {
    wire::NodeSet { id: node.id.0, address: node.client_address.to_string() }
}

#[tonic::async_trait]
impl wire::cluster_server::Cluster for Doors {
    type WatchCatalogStream = BoxStream<'static, Watched>;

    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        Ok(Response::new(self.status_response(request.into_inner().local_only).await))
    }

    async fn watch_catalog(
        &self,
        request: Request<wire::WatchCatalogRequest>,
    ) -> Result<Response<Self::WatchCatalogStream>, Status> {
        let (events, events_end) = mpsc::channel(EVENTS_QUEUED_MAX);
        let after = Revision(request.into_inner().after_revision);
        if after > Revision::ZERO {
            reached!("watch resumed");
        }
        tokio::spawn(Watcher { doors: self.clone(), events, after }.run());
        Ok(Response::new(ReceiverStream::new(events_end).boxed()))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferLeaderRequest>,
    ) -> Result<Response<wire::TransferLeaderResponse>, Status> {
        self.transfer(request.into_inner()).await.map_err(|error| self.status(&error, None))?;
        Ok(Response::new(wire::TransferLeaderResponse {}))
    }
}
