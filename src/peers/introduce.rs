//! How founders tell each other who they are, before a cluster exists and for ever after.
//!
//! One question, one answer: each side says its number, its incarnation, whom it takes for the founders, and, once it has
//! synced a genesis, what that says. Draws no conclusion; `node::founding` does.

use super::{connect, whole, wire};
use crate::ids::{ClusterId, Incarnation, NodeId};
use crate::limits;
use std::collections::BTreeMap;
use std::time::Duration;

/// A founding node, as far as the speaker knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Founder {
    /// The life of its data directory.
    pub incarnation: Option<Incarnation>,
    /// Where it serves clients, as it says itself.
    pub client_address: String,
    /// Where it serves peers, as it says itself.
    pub peer_address: String,
}

/// What a node says about itself and the founding of its cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Introduction {
    /// Who speaks.
    pub node: NodeId,
    /// Its cluster, once it has synced a genesis.
    pub cluster_id: Option<ClusterId>,
    /// Whom it takes for the founders. Before there is a cluster it says more than the number only of itself.
    pub founders: BTreeMap<NodeId, Founder>,
}

/// Why an introduction failed.
#[derive(Debug, thiserror::Error)]
pub enum IntroduceError {
    /// Nobody answers there, yet.
    #[error("{address} is not reachable")]
    Unreachable {
        /// Where we called.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// It took too long.
    #[error("{address} did not answer within {} ms", limit.as_millis())]
    TimedOut {
        /// Where we called.
        address: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The node there will not or can't answer.
    #[error("{address} does not introduce itself: {reason}")]
    Refused {
        /// Where we called.
        address: String,
        /// What it says.
        reason: String,
    },
    /// The answer breaks a rule.
    #[error("{address} introduces itself with something else: {what}")]
    Malformed {
        /// Where we called.
        address: String,
        /// Which rule.
        what: &'static str,
    },
}

impl IntroduceError {
    /// The error with its causes, in one line.
    #[must_use]
    pub fn whole(&self) -> String {
        whole(self)
    }
}

/// Introduces `me` to whoever answers at `address`, which should be `to`, and returns what it says of itself. The caller
/// checks who it was.
///
/// # Errors
/// [`IntroduceError`]; all of them may pass with time.
pub async fn introduce(
    address: &str,
    to: NodeId,
    me: &Introduction,
    limit: Duration,
) -> Result<Introduction, IntroduceError> {
    let asked = tokio::time::timeout(limit, ask(address, to, me, limit)).await;
    asked.unwrap_or_else(|_| Err(IntroduceError::TimedOut { address: address.to_owned(), limit }))
}

async fn ask(address: &str, to: NodeId, me: &Introduction, limit: Duration) -> Result<Introduction, IntroduceError> {
    let owned = || address.to_owned();
    let connected = connect(address, limit).await;
    let mut client = connected.map_err(|source| IntroduceError::Unreachable { address: owned(), source })?;
    let answer = client.introduce(me.to_wire(to)).await;
    let answer = answer.map_err(|status| {
        let reason = status.message().to_owned();
        IntroduceError::Refused { address: owned(), reason }
    })?;
    Introduction::from_wire(answer.into_inner()).map_err(|what| IntroduceError::Malformed { address: owned(), what })
}

impl Introduction {
    pub(super) fn to_wire(&self, to: NodeId) -> wire::Introduction {
        let sixteen = |bytes: Option<[u8; 16]>| bytes.map(|bytes| bytes.to_vec().into()).unwrap_or_default();
        let founders = self.founders.iter().map(|(node, founder)| wire::Founder {
            node_id: node.0,
            incarnation: sixteen(founder.incarnation.map(|incarnation| incarnation.0)),
            client_address: founder.client_address.clone(),
            peer_address: founder.peer_address.clone(),
        });
        wire::Introduction {
            node_id: self.node.0,
            to_node_id: to.0,
            cluster_id: sixteen(self.cluster_id.map(|cluster| cluster.0)),
            founders: founders.collect(),
        }
    }

    pub(super) fn from_wire(said: wire::Introduction) -> Result<Introduction, &'static str> {
        if said.founders.len() > limits::NODES_MAX {
            return Err("it names more founders than a cluster may have nodes");
        }
        let mut founders = BTreeMap::new();
        for founder in said.founders {
            let addresses = [&founder.client_address, &founder.peer_address];
            if addresses.iter().any(|address| address.len() > limits::ADDRESS_BYTES_MAX) {
                return Err("an address is too long");
            }
            if addresses.iter().any(|address| !address.chars().all(|c| c.is_ascii_graphic())) {
                return Err("an address holds what no address holds");
            }
            let incarnation = match founder.incarnation.len() {
                0 => None,
                _ => Some(Incarnation::from_slice(&founder.incarnation).ok_or("an incarnation is not 16 bytes")?),
            };
            let (client_address, peer_address) = (founder.client_address, founder.peer_address);
            let known = Founder { incarnation, client_address, peer_address };
            if founders.insert(NodeId(founder.node_id), known).is_some() {
                return Err("it names a founder twice");
            }
        }
        let cluster_id = match said.cluster_id.len() {
            0 => None,
            _ => Some(ClusterId::from_slice(&said.cluster_id).ok_or("the cluster id is not 16 bytes")?),
        };
        Ok(Introduction { node: NodeId(said.node_id), cluster_id, founders })
    }
}
