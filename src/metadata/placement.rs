//! Which nodes get the replicas of a new partition.
//!
//! Follows from the catalog alone, so that every replica of group 0 decides alike. Two loads are kept level: how many replicas
//! a node holds, and of how many partitions it is the preferred leader (the first of the founding replicas). It moves
//! nothing that exists, and knows nothing of a node's disk or of its being up.

use crate::ids::NodeId;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What a node carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Replicas it holds.
    pub replicas: u32,
    /// Partitions whose preferred leader it is.
    pub preferred: u32,
}

/// Chooses the nodes of one partition's replicas, the preferred leader first.
///
/// The leader is the node preferred least often, then least loaded, then of the lowest number. Each other replica goes to the
/// least loaded node; of equals to the one that is preferred more often, which leaves room on those that must lead next, then
/// to the lowest number. Returns fewer than `replication` nodes only if there are fewer.
#[must_use]
pub fn place(loads: &BTreeMap<NodeId, Load>, replication: usize) -> Vec<NodeId> {
    let Some((leader, _)) = loads.iter().min_by_key(|(node, load)| (load.preferred, load.replicas, **node)) else {
        return Vec::new();
    };
    let mut others: Vec<(&NodeId, &Load)> = loads.iter().filter(|(node, _)| *node != leader).collect();
    others.sort_by_key(|(node, load)| (load.replicas, Reverse(load.preferred), **node));
    std::iter::once(*leader).chain(others.into_iter().map(|(node, _)| *node)).take(replication).collect()
}

/// Adds a partition's replicas to the loads.
pub(super) fn add(loads: &mut BTreeMap<NodeId, Load>, preferred: Option<NodeId>, nodes: &[NodeId]) {
    for node in nodes {
        let load = loads.entry(*node).or_default();
        load.replicas += 1;
        load.preferred += u32::from(preferred == Some(*node));
    }
}

/// Takes them off again.
pub(super) fn subtract(loads: &mut BTreeMap<NodeId, Load>, preferred: Option<NodeId>, nodes: &[NodeId]) {
    for node in nodes {
        let load = loads.get_mut(node).expect("what is subtracted was added");
        load.replicas -= 1;
        load.preferred -= u32::from(preferred == Some(*node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(loads: &BTreeMap<NodeId, Load>, of: impl Fn(&Load) -> u32) -> u32 {
        loads.values().map(&of).max().unwrap() - loads.values().map(&of).min().unwrap()
    }

    #[test]
    fn replicas_and_preferred_leaders_stay_level_at_every_step() {
        for nodes in 1..=16u32 {
            for replication in 1..=nodes.min(9) {
                let mut loads: BTreeMap<NodeId, Load> = (1..=nodes).map(|id| (NodeId(id), Load::default())).collect();
                for partition in 0..300 {
                    let placed = place(&loads, replication as usize);
                    let mut distinct = placed.clone();
                    distinct.sort();
                    distinct.dedup();
                    assert_eq!(distinct.len(), replication as usize);
                    add(&mut loads, placed.first().copied(), &placed);
                    let at = format!("{nodes} nodes, {replication} replicas, partition {partition}: {loads:?}");
                    assert!(spread(&loads, |load| load.replicas) <= 1, "{at}");
                    assert!(spread(&loads, |load| load.preferred) <= 1, "{at}");
                }
            }
        }
    }

    #[test]
    fn a_new_node_is_filled_first() {
        let loaded = Load { replicas: 6, preferred: 2 };
        let mut loads: BTreeMap<NodeId, Load> = (1..=3).map(|id| (NodeId(id), loaded)).collect();
        loads.insert(NodeId(4), Load::default());
        assert_eq!(place(&loads, 3), [NodeId(4), NodeId(1), NodeId(2)]);
    }

    #[test]
    fn without_enough_nodes_there_are_fewer_replicas() {
        assert!(place(&BTreeMap::new(), 3).is_empty());
        assert_eq!(place(&BTreeMap::from([(NodeId(7), Load::default())]), 3), [NodeId(7)]);
    }
}
