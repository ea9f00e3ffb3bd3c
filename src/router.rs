//! From a partition to the replica that must act: hosted here, or on the node that leads it.
//!
//! Knows where things are and passes commands on, at most over one hop; refuses to know what a command means. A command that
//! definitely did not happen is tried again until a deadline; one that may have happened never is.

use crate::group::driver::{forwarded, CommandError, Committed, DriverHandle, GroupView};
use crate::group::replica::Role;
use crate::ids::{Digest, GroupId, LogIndex, NodeId, Term, TimestampMs};
use crate::metadata::{Catalog, Machine, MachineView, Partition};
use crate::peers::{wire, ForwardError, Peers};
use crate::segments::verdict::Verdict;
use crate::watch;
use crate::{planted, reached};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The view of a group, as its replica here publishes it.
pub type View = watch::Receiver<GroupView<MachineView>>;

/// Who leads a group, as far as this node knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaderAt {
    /// The leader's node.
    pub node: NodeId,
    /// Its term.
    pub term: Term,
}

/// Why a command got no verdict.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No leader was found in time. It did not happen.
    #[error("no leader was found")]
    NoLeader,
    /// The replica here refused or lost it.
    #[error(transparent)]
    Here(#[from] CommandError),
    /// Another node refused it, lost it, or broke off.
    #[error(transparent)]
    There(#[from] ForwardError),
    /// The leader's answer can't be read. It may have happened.
    #[error("the answer of node {0} can't be read")]
    BadAnswer(NodeId),
}

impl RouteError {
    /// Whether the command may take effect all the same.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        match self {
            RouteError::NoLeader => false,
            RouteError::Here(error) => error.may_have_happened(),
            RouteError::There(error) => forwarded::may_have_happened(error),
            RouteError::BadAnswer(_) => true,
        }
    }

    /// Whether trying again may help, and can't double anything.
    fn is_worth_another_try(&self) -> bool {
        match self {
            RouteError::NoLeader | RouteError::BadAnswer(_) => false,
            RouteError::Here(error) => error.is_not_leader(),
            RouteError::There(ForwardError::Broken { .. }) if planted!("command-forwarded-twice") => true,
            RouteError::There(error) => forwarded::is_not_leader(error),
        }
    }
}

/// Finds the replica that must act. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    node: NodeId,
    driver: DriverHandle<Machine>,
    peers: Peers,
    metadata: View,
    /// How long a command waits for a leader: two election timeouts.
    patience: Duration,
}

impl Router {
    /// A router over the groups of `driver`. `metadata` is the view of group 0, which every node hosts.
    #[must_use]
    pub fn new(
        node: NodeId,
        driver: DriverHandle<Machine>,
        peers: Peers,
        metadata: View,
        patience: Duration,
    ) -> Router {
        Router { node, driver, peers, metadata, patience }
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The groups hosted here.
    #[must_use]
    pub fn driver(&self) -> &DriverHandle<Machine> {
        &self.driver
    }

    /// The links to the other nodes.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The catalog as applied here.
    #[must_use]
    pub fn catalog(&self) -> Arc<Catalog> {
        catalog_of(&self.metadata.borrow())
    }

    /// The catalog as it changes.
    #[must_use]
    pub fn metadata(&self) -> View {
        self.metadata.clone()
    }

    /// Who leads `group`: what the replica here knows, or what the leader reported, whichever is of the higher term.
    #[must_use]
    pub fn leader(&self, group: GroupId) -> Option<LeaderAt> {
        let reported = self.catalog().leader(group).map(|leader| LeaderAt { node: leader.node, term: leader.term });
        let known = self.driver.view(group).and_then(|view| {
            let view = view.borrow();
            let node = view.leader?.node();
            Some(LeaderAt { node, term: view.term })
        });
        match (known, reported) {
            (Some(known), Some(reported)) if reported.term > known.term => Some(reported),
            (Some(known), _) => Some(known),
            // A replica here that knows of no leader in this term makes a report of an older term worthless.
            (None, Some(reported)) => match self.driver.view(group) {
                Some(view) if view.borrow().term >= reported.term => {
                    reached!("stale report of a leader passed over");
                    None
                }
                _ => Some(reported),
            },
            (None, None) => None,
        }
    }

    /// The role of the replica of `group` that is here, if there is one.
    #[must_use]
    pub fn role_here(&self, group: GroupId) -> Option<Role> {
        self.driver.view(group).map(|view| view.borrow().role)
    }

    /// The nodes that host a partition, this one first if it does, then the leader, then the others.
    #[must_use]
    pub fn hosts(&self, partition: &Partition) -> Vec<NodeId> {
        let leader = self.leader(partition.group).map(|leader| leader.node);
        let mut nodes = partition.members.nodes();
        nodes.sort_by_key(|node| (*node != self.node, Some(*node) != leader, *node));
        nodes
    }

    /// Voters' nodes of a group that this node has no connection to.
    #[must_use]
    pub fn missing(&self, group: GroupId) -> Vec<NodeId> {
        let up: Vec<NodeId> =
            self.peers.status().into_iter().filter(|peer| peer.connected).map(|peer| peer.node).collect();
        self.members(group).into_iter().filter(|node| *node != self.node && !up.contains(node)).collect()
    }

    /// Whether so many nodes of a group are missing that the others are no majority.
    #[must_use]
    pub fn lacks_majority(&self, group: GroupId, missing: &[NodeId]) -> bool {
        !missing.is_empty() && missing.len() * 2 >= self.members(group).len()
    }

    fn members(&self, group: GroupId) -> Vec<NodeId> {
        let catalog = self.catalog();
        match catalog.partition(group) {
            Some(partition) => partition.members.nodes(),
            None => catalog.control().members.nodes(),
        }
    }

    /// Proposes a command wherever the leader is, and waits for the verdict.
    ///
    /// # Errors
    /// [`RouteError`]; it tells *did not happen* from *may have happened*.
    pub async fn propose(&self, group: GroupId, command: Bytes) -> Result<Committed, RouteError> {
        let deadline = Instant::now() + self.patience;
        loop {
            let error = match self.leader(group) {
                Some(leader) => match self.propose_at(leader.node, group, command.clone()).await {
                    Ok(committed) => return Ok(committed),
                    Err(error) if !error.is_worth_another_try() => return Err(error),
                    Err(error) => error,
                },
                None => RouteError::NoLeader,
            };
            if Instant::now() >= deadline {
                reached!("no leader found in time");
                return Err(error);
            }
            reached!("command tried again");
            self.something_changes(group).await;
        }
    }

    /// Proposes a command at one node, here or over one hop, once.
    ///
    /// The command's place among those to the same node is taken when this is called, before the future is first polled,
    /// if it goes over the hop.
    pub fn propose_at(
        &self,
        node: NodeId,
        group: GroupId,
        command: Bytes,
    ) -> impl std::future::Future<Output = Result<Committed, RouteError>> + Send + 'static {
        let here = (node == self.node).then(|| self.driver.clone());
        let there = (node != self.node).then(|| self.peers.forward(node, group, command.clone()));
        async move {
            match (here, there) {
                (Some(driver), _) => Ok(driver.propose(group, command).await?),
                (None, Some(answer)) => committed_from(answer.await?).ok_or(RouteError::BadAnswer(node)),
                (None, None) => Err(RouteError::NoLeader),
            }
        }
    }

    /// Waits until a leader may have become known: the group's own view or the catalog changed, or a moment passed.
    async fn something_changes(&self, group: GroupId) {
        const MOMENT: Duration = Duration::from_millis(50);
        let mut metadata = self.metadata.clone();
        metadata.mark_unchanged();
        let changed = async {
            let told = match self.driver.view(group) {
                Some(mut view) => {
                    view.mark_unchanged();
                    tokio::select! {
                        biased;
                        told = view.changed() => told,
                        told = metadata.changed() => told,
                    }
                }
                None => metadata.changed().await,
            };
            // Whoever would tell is gone: the node is ending, or the group was dropped. That is no change, and coming back at once would
            // keep the caller's loop from ever yielding.
            if told.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let _ = tokio::time::timeout(MOMENT, changed).await;
    }

    /// Waits until the catalog as applied here has reached a revision.
    ///
    /// # Errors
    /// `NoLeader` if it takes longer than this node's patience.
    pub async fn catalog_at(&self, revision: u64) -> Result<Arc<Catalog>, RouteError> {
        let mut metadata = self.metadata.clone();
        let reached = async {
            let view = metadata.wait_for(|view| catalog_of(view).revision().0 >= revision).await;
            view.ok().map(|view| catalog_of(&view))
        };
        let reached = tokio::time::timeout(self.patience, reached).await;
        reached.ok().flatten().ok_or(RouteError::NoLeader)
    }

    /// A catalog at least as new as every change acknowledged before the call.
    ///
    /// # Errors
    /// If no majority of group 0 answers.
    pub async fn fresh_catalog(&self) -> Result<Arc<Catalog>, RouteError> {
        let point = self.driver.tail(GroupId::METADATA).await?;
        self.catalog_at(point.tail.0).await
    }
}

/// The catalog inside the view of group 0.
#[must_use]
pub fn catalog_of(view: &GroupView<MachineView>) -> Arc<Catalog> {
    match &view.machine {
        MachineView::Metadata(catalog) => catalog.clone(),
        MachineView::Partition(_) => Arc::default(),
    }
}

fn committed_from(applied: wire::Applied) -> Option<Committed> {
    Some(Committed {
        index: LogIndex(applied.index),
        term: Term(applied.term),
        timestamp: TimestampMs(applied.timestamp_ms),
        verdict: Verdict::decode(&mut &applied.verdict[..])?,
        chain: Digest::from_slice(&applied.chain)?,
    })
}
