//! How a cluster begins: its founders learn each other's incarnations, derive the cluster's id from them, and each syncs that
//! genesis before its first vote.
//!
//! So a founder whose directory is wiped can't help found a second history: its new incarnation belongs to no cluster, and
//! the others, who know the old one, say so (promise 7). Only a round in which *all* founders answer founds; what was heard
//! in an earlier round counts for nothing, because a founder may have been wiped since.
//!
//! A founder that hears of a genesis with its own incarnation in it had told it to somebody, and crashed before it synced
//! its own: it adopts that one, word for word.
//!
//! Refuses to guess: founders that disagree on who they are stop with an error that names both lists.

use super::identity::{DataDir, FoundingNode, Genesis, IdentityError};
use crate::ids::{ClusterId, Incarnation, NodeId};
use crate::limits::ADDRESS_BYTES_MAX;
use crate::peers::{introduce, Door, Founder, IntroduceError, Introduction};
use crate::{planted, reached};
use futures::future::join_all;
use slog::{info, Logger};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// How long one introduction may take.
const INTRODUCE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two rounds of introductions, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How often to say who is missing.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// What the configuration says of the founding.
#[derive(Clone, Debug)]
pub struct FoundingOptions {
    /// All founders with the addresses of their peer doors, this node included.
    pub founders: BTreeMap<NodeId, String>,
    /// Where clients reach this node.
    pub client_address: String,
    /// Where peers reach this node.
    pub peer_address: String,
}

/// Why this node can't found its cluster. Nothing was promised to anybody.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// The configuration does not name this node.
    #[error("node {node} is not among the founders its configuration names ({}); correct the list", list(founders))]
    NotNamed {
        /// This node.
        node: NodeId,
        /// The list.
        founders: BTreeSet<NodeId>,
    },
    /// An address of this node that no one could use.
    #[error("{address:?} is no address for this node: 1 to {ADDRESS_BYTES_MAX} visible characters are expected")]
    BadAddress {
        /// The address.
        address: String,
    },
    /// The configurations of two founders differ.
    #[error(
        "node {node} takes the founders to be {}, this node's configuration names {}; give all founders the same list",
        list(theirs),
        list(ours)
    )]
    FoundersDiffer {
        /// The other one.
        node: NodeId,
        /// Its list.
        theirs: BTreeSet<NodeId>,
        /// Ours.
        ours: BTreeSet<NodeId>,
    },
    /// The data directory's cluster has other founders than the configuration names.
    #[error(
        "{} belongs to cluster {cluster}, founded by {}; this node's configuration names {}; correct [[nodes]], or name the \
         cluster's own data directory",
        path.display(),
        places(theirs),
        places(ours)
    )]
    OtherFounders {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        cluster: ClusterId,
        /// That cluster's founders with the addresses of their peer doors.
        theirs: BTreeMap<NodeId, String>,
        /// Those that the configuration names.
        ours: BTreeMap<NodeId, String>,
    },
    /// Another node answers than should.
    #[error("{address} is the address of node {wanted}, but node {found} answers there; correct the address")]
    WrongNode {
        /// Where.
        address: String,
        /// Who should be there.
        wanted: NodeId,
        /// Who is.
        found: NodeId,
    },
    /// This node was wiped since the cluster was founded.
    #[error(
        "node {node}'s directory is empty, but cluster {cluster} (so says node {witness}) knows node {node} under \
         incarnation {known}; restore that directory; this version has no command yet to replace a node"
    )]
    Wiped {
        /// This node.
        node: NodeId,
        /// The cluster that knew it.
        cluster: ClusterId,
        /// Who says so.
        witness: NodeId,
        /// What it was known under.
        known: Incarnation,
    },
    /// A genesis that does not follow from its founders.
    #[error(
        "node {witness} tells of cluster {cluster}, whose id does not follow from its founders; its identity is wrong"
    )]
    Forged {
        /// Who tells.
        witness: NodeId,
        /// What it tells of.
        cluster: ClusterId,
    },
    /// The genesis can't be kept.
    #[error("the genesis can't be kept")]
    Identity(#[from] IdentityError),
}

fn list(nodes: &BTreeSet<NodeId>) -> String {
    let nodes: Vec<_> = nodes.iter().map(NodeId::to_string).collect();
    format!("[{}]", nodes.join(", "))
}

fn places(nodes: &BTreeMap<NodeId, String>) -> String {
    let nodes: Vec<_> = nodes.iter().map(|(node, address)| format!("node {node} at {address}")).collect();
    nodes.join(", ")
}

/// Returns the genesis of this node's cluster, founding it together with the others if it has none yet. From then on the
/// door answers for it. Takes as long as founders are missing; says who they are every few seconds.
///
/// # Errors
/// [`FoundingError`]; each needs a human.
pub async fn found(
    door: &Door,
    dir: &mut DataDir,
    options: &FoundingOptions,
    log: &Logger,
) -> Result<Genesis, FoundingError> {
    let genesis = match dir.genesis() {
        Some(genesis) => {
            check_founders(dir, genesis, options)?;
            genesis.clone()
        }
        None => {
            let founding = Founding::new(dir, options)?;
            door.introduce_as(founding.me.clone());
            let genesis = founding.agree(log).await?;
            dir.record_genesis(genesis.clone()).await?;
            info!(log, "cluster founded"; "cluster" => %genesis.cluster_id, "founders" => genesis.founders.len());
            genesis
        }
    };
    door.introduce_as(introduction(dir.node(), &genesis));
    Ok(genesis)
}

/// Links go where the genesis says. A configuration that says otherwise is of another cluster, or hopes to move this one.
fn check_founders(dir: &DataDir, genesis: &Genesis, options: &FoundingOptions) -> Result<(), FoundingError> {
    let founders = genesis.founders.iter();
    let theirs: BTreeMap<_, _> = founders.map(|(node, founder)| (*node, founder.peer_address.clone())).collect();
    if theirs == options.founders {
        return Ok(());
    }
    let (path, cluster, ours) = (dir.path().to_owned(), genesis.cluster_id, options.founders.clone());
    Err(FoundingError::OtherFounders { path, cluster, theirs, ours })
}

/// What a node says of itself once it has a genesis.
fn introduction(node: NodeId, genesis: &Genesis) -> Introduction {
    let founders = genesis.founders.iter().map(|(node, founder)| (*node, Founder::from(founder)));
    Introduction { node, cluster_id: Some(genesis.cluster_id), founders: founders.collect() }
}

impl From<&FoundingNode> for Founder {
    fn from(founder: &FoundingNode) -> Founder {
        let FoundingNode { incarnation, client_address, peer_address } = founder.clone();
        Founder { incarnation: Some(incarnation), client_address, peer_address }
    }
}

struct Founding {
    me: Introduction,
    incarnation: Incarnation,
    /// Addresses of the other founders.
    others: BTreeMap<NodeId, String>,
}

/// What one answer amounts to.
enum Heard {
    /// The founder as it announces itself.
    Founder(FoundingNode),
    /// The cluster is founded, and we belong to it.
    Founded(Genesis),
    /// It knows nothing of itself yet.
    Nothing,
}

impl Founding {
    fn new(dir: &DataDir, options: &FoundingOptions) -> Result<Founding, FoundingError> {
        let (node, incarnation) = (dir.node(), dir.incarnation());
        let mut others = options.founders.clone();
        if others.remove(&node).is_none() {
            return Err(FoundingError::NotNamed { node, founders: options.founders.keys().copied().collect() });
        }
        for address in [&options.client_address, &options.peer_address] {
            let fits = (1..=ADDRESS_BYTES_MAX).contains(&address.len());
            if !fits || !address.chars().all(|c| c.is_ascii_graphic()) {
                return Err(FoundingError::BadAddress { address: address.clone() });
            }
        }
        let mut founders: BTreeMap<_, _> = others.keys().map(|other| (*other, Founder::default())).collect();
        let (client_address, peer_address) = (options.client_address.clone(), options.peer_address.clone());
        founders.insert(node, Founder { incarnation: Some(incarnation), client_address, peer_address });
        Ok(Founding { me: Introduction { node, cluster_id: None, founders }, incarnation, others })
    }

    /// Asks all other founders, round after round, until all answer in one round or one tells of our genesis.
    async fn agree(&self, log: &Logger) -> Result<Genesis, FoundingError> {
        let mut pause = FIRST_PAUSE;
        let mut next_progress = Instant::now() + PROGRESS_EVERY;
        loop {
            let asking = self.others.iter().map(|(node, address)| async move {
                (*node, address, introduce(address, *node, &self.me, INTRODUCE_TIMEOUT).await)
            });
            let (mut founders, mut missing) = (BTreeMap::new(), BTreeMap::new());
            for (node, address, answer) in join_all(asking).await {
                match answer.map(|said| self.weigh(node, address, said)) {
                    Ok(Ok(Heard::Founded(genesis))) => return Ok(genesis),
                    Ok(Ok(Heard::Founder(founder))) => {
                        founders.insert(node, founder);
                    }
                    Ok(Ok(Heard::Nothing)) => {
                        missing.insert(node, format!("{address} is still starting"));
                    }
                    Ok(Err(error)) => return Err(error),
                    Err(error) => {
                        missing.insert(node, IntroduceError::whole(&error));
                    }
                }
            }
            if missing.is_empty() {
                founders.extend(self.me.founders.get(&self.me.node).and_then(known).map(|me| (self.me.node, me)));
                return Ok(Genesis::new(founders));
            }
            if Instant::now() >= next_progress {
                next_progress = Instant::now() + PROGRESS_EVERY;
                let reasons: Vec<_> = missing.into_iter().map(|(node, why)| format!("node {node} ({why})")).collect();
                info!(log, "waiting for the other founders"; "missing" => reasons.join(", "));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// What an answer from the address of `node` means for us.
    fn weigh(&self, node: NodeId, address: &str, said: Introduction) -> Result<Heard, FoundingError> {
        if said.node != node {
            return Err(FoundingError::WrongNode { address: address.to_owned(), wanted: node, found: said.node });
        }
        let theirs: BTreeSet<_> = said.founders.keys().copied().collect();
        let ours: BTreeSet<_> = self.me.founders.keys().copied().collect();
        if theirs != ours {
            return Err(FoundingError::FoundersDiffer { node, theirs, ours });
        }
        let Some(cluster) = said.cluster_id else {
            return Ok(said.founders.get(&node).and_then(known).map_or(Heard::Nothing, Heard::Founder));
        };
        let founders: BTreeMap<_, _> =
            said.founders.iter().filter_map(|(node, founder)| Some((*node, known(founder)?))).collect();
        let genesis = Genesis::new(founders);
        if genesis.cluster_id != cluster {
            return Err(FoundingError::Forged { witness: node, cluster });
        }
        match genesis.founders.get(&self.me.node) {
            Some(me) if me.incarnation == self.incarnation || planted!("wiped-founder-votes-again") => {
                reached!("genesis taken over from another founder");
                Ok(Heard::Founded(genesis))
            }
            Some(me) => {
                reached!("wiped founder refused");
                let (node, witness, known) = (self.me.node, node, me.incarnation);
                Err(FoundingError::Wiped { node, cluster, witness, known })
            }
            None => Err(FoundingError::Forged { witness: node, cluster }),
        }
    }
}

/// A founder that is known in full.
fn known(founder: &Founder) -> Option<FoundingNode> {
    let Founder { incarnation, client_address, peer_address } = founder.clone();
    Some(FoundingNode { incarnation: incarnation?, client_address, peer_address })
}
