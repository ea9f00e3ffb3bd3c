//! Newtypes for every number with a meaning, so that an offset is never taken for an index.
//!
//! Refuses to hold behaviour: these types order, print and step, and nothing else. Ranges over them are half-open.

use std::fmt;

/// Declares a `u64` newtype with the few operations a position on a line needs.
macro_rules! position {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The smallest value.
            pub const ZERO: $name = $name(0);

            /// The value right after this one.
            #[must_use]
            pub const fn next(self) -> $name {
                $name(self.0 + 1)
            }

            /// The value `count` steps further.
            #[must_use]
            pub const fn plus(self, count: u64) -> $name {
                $name(self.0 + count)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                $name(value)
            }
        }
    };
}

position! {
    /// A position in one group's Raft log. No-ops, refusals and configuration changes have one too.
    LogIndex, "i"
}
position! {
    /// A Raft term.
    Term, "t"
}
position! {
    /// A record's position in a partition: dense, from zero, assigned by the state machine alone.
    Offset, "o"
}
position! {
    /// A Raft group. Zero is the metadata group; never used again once its partition is gone.
    GroupId, "g"
}
position! {
    /// A revision of the catalog: one per applied change, only ever forward.
    Revision, "r"
}
position! {
    /// A producer's session in one partition. Counts up from a number of the group's own, hence never used again, not even by a
    /// topic created again under the name of a deleted one.
    ProducerId, "p"
}
position! {
    /// Milliseconds since the Unix epoch.
    TimestampMs, "ms"
}

impl GroupId {
    /// The group that holds nodes, topics, partitions and their leaders.
    pub const METADATA: GroupId = GroupId(0);
}

/// A node's number, chosen by the operator, unique in its cluster, from one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// One replica of one group: the node in the low half, a generation in the high half.
///
/// A replica that was removed never comes back under the same id (its votes of old could count twice); a node that
/// hosts the group again does so under the next generation. The founding replicas have generation one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplicaId(pub u64);

impl ReplicaId {
    /// The replica of `generation` on `node`.
    #[must_use]
    pub const fn new(node: NodeId, generation: u32) -> ReplicaId {
        ReplicaId((generation as u64) << 32 | node.0 as u64)
    }

    /// A founding replica of a group on `node`.
    #[must_use]
    pub const fn founding(node: NodeId) -> ReplicaId {
        ReplicaId::new(node, 1)
    }

    /// The node that hosts this replica.
    #[must_use]
    pub const fn node(self) -> NodeId {
        NodeId(self.0 as u32)
    }

    /// How many replicas of the group this node hosted before, plus one.
    #[must_use]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node().0, self.generation())
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}.{}", self.node().0, self.generation())
    }
}

/// Sixteen random or derived bytes, printed as hex.
macro_rules! sixteen_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The value held by these bytes; `None` unless they are sixteen.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<$name> {
                Some($name(bytes.try_into().ok()?))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }
    };
}

sixteen_bytes! {
    /// A cluster: derived from the incarnations of all its founders.
    ClusterId
}
sixteen_bytes! {
    /// One life of a node's data directory: random, written before anything else. A wiped node has another one.
    Incarnation
}
sixteen_bytes! {
    /// A topic: random, so that a topic deleted and created again under its old name is another topic.
    TopicId
}

/// A BLAKE3 digest: of a batch, of a state, or a link of a partition's chain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest held by these bytes; `None` unless they are thirty-two.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Digest> {
        Some(Digest(bytes.try_into().ok()?))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0[..4])
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}
