//! Makes this node what the catalog says, and the catalog what this node knows.
//!
//! Groups exist only by the catalog's word: the steward watches the catalog and has the driver host what belongs here and
//! drop what was deleted. In the other direction it tells group 0 who this node is and which groups it leads. Everything it
//! proposes is idempotent, so that it may be proposed again whenever it isn't in the catalog yet.

use crate::group::driver::Led;
use crate::group::replica::Role;
use crate::ids::{Digest, GroupId, LogIndex, NodeId, Offset, ReplicaId, Term, TimestampMs};
use crate::journal::base::Base;
use crate::metadata::{Bootstrap, Catalog, GroupStanding, Machine, MetadataCommand, NodeRegistration, Partition};
use crate::peers::PeerAddress;
use crate::router::Router;
use bytes::Bytes;
use raft::eraftpb::ConfState;
use slog::{debug, info, warn, Logger};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long to wait before something that failed is proposed again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How often the catalog is followed again although it has not changed: a group may have found no room.
const FOLLOW_EVERY: Duration = Duration::from_secs(5);
/// Leaders reported at a time.
const REPORTS_AT_A_TIME: usize = 64;

/// Index and term of every group's first base. Not zero, so that an empty replica never replays the first configuration.
const FIRST: u64 = 1;

/// See the module's text.
pub(super) struct Steward {
    pub router: Router,
    pub me: NodeRegistration,
    pub bootstrap: Bootstrap,
    pub log: Logger,
}

/// The base that the founding replicas of a group start from.
pub(super) fn first_base(voters: Vec<u64>, learners: Vec<u64>, state: Bytes) -> Base {
    Base {
        index: LogIndex(FIRST),
        term: Term(FIRST),
        tail: Offset::ZERO,
        timestamp: TimestampMs::ZERO,
        chain: Digest::default(),
        conf_state: ConfState::from((voters, learners)),
        state,
    }
}

/// Where a founding replica of a partition starts.
fn founding_base(partition: &Partition) -> Base {
    let voters = partition.founding.iter().map(|node| ReplicaId::founding(*node).0).collect();
    first_base(voters, Vec::new(), Machine::initial_partition(partition.group))
}

impl Steward {
    /// Runs until the node stops.
    pub async fn run(self, mut led: mpsc::UnboundedReceiver<Led>) {
        let mut metadata = self.router.metadata();
        let mut to_report: BTreeMap<GroupId, Term> = BTreeMap::new();
        let (mut seen, mut opening) = (None, BTreeSet::new());
        let mut again = tokio::time::interval(FOLLOW_EVERY);
        loop {
            let catalog = self.router.catalog();
            if seen != Some(catalog.revision()) {
                seen = Some(catalog.revision());
                self.follow(&catalog, &mut opening).await;
            }
            let busy = self.tell(&catalog, &mut to_report).await;
            let pause = async {
                match busy {
                    true => tokio::time::sleep(RETRY_PAUSE).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = metadata.changed() => if changed.is_err() { return },
                leads = led.recv() => match leads {
                    Some(Led { group, term }) => {
                        to_report.insert(group, term);
                    }
                    None => return,
                },
                () = pause => {}
                _ = again.tick() => seen = None,
            }
        }
    }

    /// Makes this node what the catalog says. `opening` are groups that it was told to host and does not yet: one that is deleted meanwhile
    /// need not come up first.
    async fn follow(&self, catalog: &Arc<Catalog>, opening: &mut BTreeSet<GroupId>) {
        let me = self.router.node();
        let peers: BTreeMap<NodeId, PeerAddress> = catalog
            .nodes()
            .map(|node| {
                let address = node.peer_address.to_string();
                (node.id, PeerAddress { incarnation: Some(node.incarnation), address })
            })
            .collect();
        if !peers.is_empty() {
            self.router.peers().set_peers(peers);
        }
        let hosted = self.router.driver().hosted();
        for partition in catalog.partitions().filter(|partition| !hosted.contains(&partition.group)) {
            let Some(replica) = partition.members.replicas().find(|replica| replica.node() == me) else { continue };
            if replica != ReplicaId::founding(me) || !partition.founding.contains(&me) {
                // Nothing adds other replicas yet; one that comes later has to learn the group's state first.
                continue;
            }
            if self.router.driver().host(partition.group, replica, founding_base(partition)).await.is_err() {
                return;
            }
            opening.insert(partition.group);
        }
        opening.retain(|group| !hosted.contains(group));
        let may_go: Vec<GroupId> = hosted.into_iter().chain(opening.iter().copied()).collect();
        for group in may_go.into_iter().filter(|group| *group != GroupId::METADATA) {
            if catalog.standing(group) == GroupStanding::Removed {
                opening.remove(&group);
                info!(self.log, "group was deleted"; "group" => %group);
                let _ = self.router.driver().remove(group).await;
            }
        }
    }

    /// Tells group 0 what it does not know yet. True if something is left to be told.
    async fn tell(&self, catalog: &Catalog, to_report: &mut BTreeMap<GroupId, Term>) -> bool {
        if catalog.cluster().is_none() {
            // Whoever leads group 0 founds; the others wait for it to be applied.
            if self.router.role_here(GroupId::METADATA) != Some(Role::Leader) {
                return false;
            }
            return !self.propose("the genesis", MetadataCommand::Bootstrap(self.bootstrap.clone())).await;
        }
        let mut left = false;
        if !self.is_registered(catalog) && self.router.leader(GroupId::METADATA).is_some() {
            left |= !self.propose("this node", MetadataCommand::RegisterNode(self.me.clone())).await;
        }
        to_report.retain(|group, term| {
            let known = catalog.leader(*group).is_some_and(|leader| leader.term >= *term);
            !known && catalog.standing(*group) != GroupStanding::Removed
        });
        let reports: Vec<MetadataCommand> = to_report
            .iter()
            .take(REPORTS_AT_A_TIME)
            .map(|(group, term)| MetadataCommand::ReportLeader { group: *group, node: self.router.node(), term: *term })
            .collect();
        let told = reports.into_iter().map(|report| self.propose("a leader", report));
        left |= futures::future::join_all(told).await.contains(&false);
        left
    }

    fn is_registered(&self, catalog: &Catalog) -> bool {
        catalog.node(self.me.id).is_some_and(|node| {
            node.incarnation == self.me.incarnation
                && node.client_address == self.me.client_address
                && node.peer_address == self.me.peer_address
                && node.version == self.me.version
        })
    }

    async fn propose(&self, what: &str, command: MetadataCommand) -> bool {
        match self.router.propose(GroupId::METADATA, command.encode()).await {
            Ok(committed) => {
                if let crate::segments::verdict::Verdict::Refused(refusal) = committed.verdict {
                    warn!(self.log, "the catalog refuses what it was told"; "what" => what, "refusal" => ?refusal);
                }
                true
            }
            Err(error) => {
                debug!(self.log, "group 0 could not be told yet"; "what" => what, "reason" => %error);
                false
            }
        }
    }
}
