//! Who may speak to whom: the checks that both sides of every stream make on the first frame.
//!
//! Pure. Refuses whoever belongs to another cluster, speaks another protocol, meant somebody else, or is not the node that
//! the catalog knows under that number and incarnation (promise 7: a wiped node is a new node). Nothing of a stream is
//! looked at before its Hello passed. Raft aborts on what an impostor could send, so this is the door it stands behind.

use super::wire;
use crate::ids::{ClusterId, Incarnation, NodeId, ReplicaId};
use crate::planted;

/// Version of what nodes say to each other.
pub const PROTOCOL: u32 = 1;

/// Who this node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster_id: ClusterId,
    /// Its number in the cluster.
    pub node_id: NodeId,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// Random, one per start of the process.
    pub boot: u64,
}

impl Identity {
    /// The first frame of a stream to or from `to`.
    #[must_use]
    pub(super) fn hello(&self, to: NodeId) -> wire::Hello {
        wire::Hello {
            cluster_id: self.cluster_id.0.to_vec().into(),
            node_id: self.node_id.0,
            incarnation: self.incarnation.0.to_vec().into(),
            protocol: PROTOCOL,
            boot: self.boot,
            to_node_id: to.0,
        }
    }
}

/// Why a stream between two nodes was refused. Nothing that it carried was looked at.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The first frame is none, or is damaged.
    #[error("the first frame is no greeting of a Balsa node: {what}")]
    Malformed {
        /// What is missing or wrong.
        what: &'static str,
    },
    /// Another version of this protocol.
    #[error(
        "node {node} speaks version {theirs} of the protocol between nodes, this node version {ours}; \
         run versions of balsa that follow one another"
    )]
    Protocol {
        /// Who speaks.
        node: NodeId,
        /// Its version.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// Another cluster.
    #[error(
        "node {node} belongs to cluster {theirs}, this node to cluster {ours}; \
         correct the address, or give the node an empty data directory"
    )]
    Cluster {
        /// Who speaks.
        node: NodeId,
        /// Its cluster.
        theirs: ClusterId,
        /// Ours.
        ours: ClusterId,
    },
    /// The speaker meant another node.
    #[error("node {node} meant to reach node {wanted}, but this is node {ours}; correct the address of node {wanted}")]
    Misdirected {
        /// Who speaks.
        node: NodeId,
        /// Whom it meant.
        wanted: NodeId,
        /// Who we are.
        ours: NodeId,
    },
    /// Another node answered than the one that was called.
    #[error("node {found} answered where node {wanted} was expected; correct the address of node {wanted}")]
    WrongNode {
        /// Whom we called.
        wanted: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// The speaker claims our own number.
    #[error("another process calls itself node {node} as well; give each node a number of its own")]
    SameNode {
        /// Our number.
        node: NodeId,
    },
    /// The catalog does not know the speaker.
    #[error("node {node} is not a node of this cluster, and this version has no command yet to add one; correct the node's configuration")]
    Unknown {
        /// Who speaks.
        node: NodeId,
    },
    /// The catalog knows the speaker under another incarnation.
    #[error(
        "node {node} comes with incarnation {theirs}, the cluster knows it under {known}: its data directory was wiped \
         or swapped; restore the directory; this version has no command yet to replace a node"
    )]
    Incarnation {
        /// Who speaks.
        node: NodeId,
        /// The incarnation it comes with.
        theirs: Incarnation,
        /// The one the catalog knows.
        known: Incarnation,
    },
}

/// Who passed the handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Speaker {
    pub node: NodeId,
    pub boot: u64,
}

/// What the catalog knows of a node.
pub(super) enum Known {
    /// No such node.
    No,
    /// A node whose incarnation is not recorded yet.
    Node,
    /// A node with its incarnation.
    Incarnation(Incarnation),
}

/// Checks the greeting of somebody who called us.
pub(super) fn check_caller(
    us: &Identity,
    hello: Option<wire::Hello>,
    known: impl FnOnce(NodeId) -> Known,
) -> Result<Speaker, HandshakeError> {
    let (hello, speaker) = check_common(us, hello)?;
    if NodeId(hello.to_node_id) != us.node_id {
        let wanted = NodeId(hello.to_node_id);
        return Err(HandshakeError::Misdirected { node: speaker.node, wanted, ours: us.node_id });
    }
    check_incarnation(&hello, known(speaker.node))?;
    Ok(speaker)
}

/// Checks the greeting of whoever answered where we called `wanted`.
pub(super) fn check_answerer(
    us: &Identity,
    hello: Option<wire::Hello>,
    wanted: NodeId,
    incarnation: Option<Incarnation>,
) -> Result<Speaker, HandshakeError> {
    let (hello, speaker) = check_common(us, hello)?;
    if speaker.node != wanted {
        return Err(HandshakeError::WrongNode { wanted, found: speaker.node });
    }
    check_incarnation(&hello, incarnation.map_or(Known::Node, Known::Incarnation))?;
    Ok(speaker)
}

fn check_common(us: &Identity, hello: Option<wire::Hello>) -> Result<(wire::Hello, Speaker), HandshakeError> {
    let hello = hello.ok_or(HandshakeError::Malformed { what: "no greeting came first" })?;
    let node = NodeId(hello.node_id);
    if hello.protocol != PROTOCOL {
        return Err(HandshakeError::Protocol { node, theirs: hello.protocol, ours: PROTOCOL });
    }
    let cluster = ClusterId::from_slice(&hello.cluster_id);
    let theirs = cluster.ok_or(HandshakeError::Malformed { what: "the cluster id is not 16 bytes" })?;
    if theirs != us.cluster_id {
        return Err(HandshakeError::Cluster { node, theirs, ours: us.cluster_id });
    }
    if node == us.node_id {
        return Err(HandshakeError::SameNode { node });
    }
    let boot = hello.boot;
    Ok((hello, Speaker { node, boot }))
}

fn check_incarnation(hello: &wire::Hello, known: Known) -> Result<(), HandshakeError> {
    let node = NodeId(hello.node_id);
    let incarnation = Incarnation::from_slice(&hello.incarnation);
    let theirs = incarnation.ok_or(HandshakeError::Malformed { what: "the incarnation is not 16 bytes" })?;
    match known {
        Known::No => Err(HandshakeError::Unknown { node }),
        Known::Incarnation(known) if known != theirs && !planted!("wiped-founder-votes-again") => {
            Err(HandshakeError::Incarnation { node, theirs, known })
        }
        Known::Node | Known::Incarnation(_) => Ok(()),
    }
}

/// What is wrong with a message that `from` sent us, if anything: each must come from a replica on that very node and
/// be for a replica on ours.
pub(super) fn misattributed(us: NodeId, from: NodeId, messages: &[wire::GroupMessage]) -> Option<String> {
    messages.iter().find_map(|wrapped| {
        let Some(message) = &wrapped.message else {
            return Some(format!("a frame for group {} holds no message", wrapped.group));
        };
        let (sender, receiver) = (ReplicaId(message.from), ReplicaId(message.to));
        if sender.node() != from {
            return Some(format!("a message of group {} claims to come from replica {sender}", wrapped.group));
        }
        (receiver.node() != us).then(|| format!("a message of group {} is for replica {receiver}", wrapped.group))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb;

    fn identity(node: u32) -> Identity {
        let incarnation = Incarnation([node as u8; 16]);
        Identity { cluster_id: ClusterId([9; 16]), node_id: NodeId(node), incarnation, boot: 5 }
    }

    fn known(node: NodeId) -> Known {
        match node.0 {
            2 => Known::Incarnation(Incarnation([2; 16])),
            3 => Known::Node,
            _ => Known::No,
        }
    }

    #[test]
    fn only_the_node_that_the_catalog_knows_may_call() {
        let us = identity(1);
        let call = |hello| check_caller(&us, Some(hello), known);
        let good = identity(2).hello(NodeId(1));
        assert_eq!(call(good.clone()), Ok(Speaker { node: NodeId(2), boot: 5 }));
        assert_eq!(call(identity(3).hello(NodeId(1))).map(|s| s.node), Ok(NodeId(3)), "not recorded yet");

        let refusal = |change: fn(&mut wire::Hello)| {
            let mut hello = good.clone();
            change(&mut hello);
            call(hello).expect_err("refused").to_string()
        };
        assert!(refusal(|h| h.protocol = 7).contains("version 7 of the protocol between nodes, this node version 1"));
        assert!(refusal(|h| h.cluster_id = vec![1; 16].into()).contains("0101010101010101"));
        assert!(refusal(|h| h.cluster_id = vec![1; 3].into()).contains("not 16 bytes"));
        assert!(refusal(|h| h.to_node_id = 3).contains("meant to reach node 3, but this is node 1"));
        assert!(refusal(|h| h.node_id = 1).contains("calls itself node 1 as well"));
        assert!(refusal(|h| h.node_id = 8).contains("node 8 is not a node of this cluster"));
        assert!(refusal(|h| h.incarnation = vec![4; 16].into()).contains("restore the directory"));
        assert!(check_caller(&us, None, known).is_err());
    }

    #[test]
    fn only_the_node_that_was_called_may_answer() {
        let us = identity(1);
        let answer = |hello, wanted| check_answerer(&us, Some(hello), NodeId(wanted), Some(Incarnation([2; 16])));
        assert!(answer(identity(2).hello(NodeId(1)), 2).is_ok());
        let refused = answer(identity(2).hello(NodeId(1)), 3);
        assert_eq!(refused, Err(HandshakeError::WrongNode { wanted: NodeId(3), found: NodeId(2) }));
    }

    #[test]
    fn a_message_must_come_from_the_node_that_shook_hands_and_be_for_us() {
        let message = |from: u32, to: u32| wire::GroupMessage {
            group: 4,
            message: Some(Box::new(eraftpb::Message {
                from: ReplicaId::founding(NodeId(from)).0,
                to: ReplicaId::founding(NodeId(to)).0,
                ..Default::default()
            })),
        };
        let check = |messages: &[_]| misattributed(NodeId(1), NodeId(2), messages);
        assert_eq!(check(&[message(2, 1), message(2, 1)]), None);
        assert!(check(&[message(2, 1), message(3, 1)]).unwrap().contains("replica 3.1"));
        assert!(check(&[message(2, 3)]).unwrap().contains("is for replica 3.1"));
        assert!(check(&[wire::GroupMessage { group: 4, message: None }]).unwrap().contains("no message"));
    }
}
