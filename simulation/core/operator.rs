//! Who decides which nodes hold a group: the catalog's part, played by the world. Replaces replicas that are gone, and, as a fault
//! class, moves them about.
//!
//! One small step at a time, through whoever leads; a step that fails is taken again later.

use super::chance::Chance;
use super::shared::{End, Event};
use super::world::World;
use crate::faults::FaultClass;
use balsa::group::membership::MemberChange;
use balsa::ids::{GroupId, NodeId, ReplicaId};
use balsa::segments::SegmentsOptions;
use std::collections::BTreeMap;

const EVERY_US: u64 = 400_000;
/// How long a node serves with rotten files that nobody noticed.
const ROT_LASTS_US: u64 = 8_000_000;
/// Token of what the world itself asks for; nobody waits for it.
pub const NOBODY: u64 = u64::MAX;

/// See the module's text.
pub struct Operator {
    chance: Chance,
    /// Which nodes should vote in a group.
    pub wanted: BTreeMap<GroupId, Vec<u32>>,
    /// Nodes that learn for a while instead of voting.
    demoted: BTreeMap<GroupId, u32>,
}

impl Operator {
    pub fn new(chance: Chance, wanted: BTreeMap<GroupId, Vec<u32>>) -> Operator {
        Operator { chance, wanted, demoted: BTreeMap::new() }
    }

    /// Everybody is to be a voter again.
    pub fn settle(&mut self) {
        self.demoted.clear();
    }
}

impl World {
    /// The node whose replica leads a group and serves, in the highest term.
    pub fn leader_of(&self, group: GroupId) -> Option<u32> {
        let leaders = self.nodes.iter().enumerate().filter_map(|(node, at)| {
            let term = at.process.as_ref()?.groups.get(&group)?.replica.serving_term()?;
            Some((term, node as u32))
        });
        leaders.max().map(|(_, node)| node)
    }

    pub fn operate(&mut self) {
        self.shared.after(EVERY_US, Event::Operator);
        if self.put_rot_away() {
            return;
        }
        let groups: Vec<GroupId> = self.found.keys().copied().collect();
        for group in groups {
            self.quieten(group);
            if let Some(leader) = self.leader_of(group) {
                self.tend(group, leader);
            }
        }
    }

    /// Now and then nobody asks anything of a group for a while.
    fn quieten(&mut self, group: GroupId) {
        let quiet = self.shared.options.has_quiet && !self.watch.is_healed && self.operator.chance.ratio(1, 50);
        if quiet && self.clients.quiet_until(group) < self.shared.now {
            let lasts_us = self.operator.chance.within(2_000_000..9_000_000);
            self.shared.event(0, "quiet", &[group.0, lasts_us], || format!("g{group} for {} ms", lasts_us / 1_000));
            self.clients.keep_quiet(group, self.shared.now + lasts_us);
        }
    }

    /// Whoever was just elected is asked to change the members of its group.
    pub fn change_hastily(&mut self, node: u32, group: GroupId) {
        let leads = |process: &super::process::Process| {
            process.groups.get(&group).is_some_and(|hosted| hosted.replica.is_leader())
        };
        let is_rotten = self.nodes.iter().any(|at| at.rotted);
        if self.watch.is_healed || is_rotten || !self.nodes[node as usize].process.as_ref().is_some_and(leads) {
            return;
        }
        self.stir_members(group);
        self.tend(group, node);
    }

    /// A node with rotten files is given up once that is noticed, or a while later. Until then nobody's membership changes: the budget was
    /// reckoned with the members of that moment. True if there is such a node.
    fn put_rot_away(&mut self) -> bool {
        for node in 1..=self.shared.options.nodes {
            let at = &self.nodes[node as usize];
            if !at.rotted {
                continue;
            }
            let noticed = at.process.as_ref().is_some_and(|process| process.rotten);
            if noticed || (at.process.is_some() && self.shared.now > at.rotted_at + ROT_LASTS_US) {
                self.end(node, End::Kill);
                self.wipe(node);
            }
            return true;
        }
        false
    }

    fn tend(&mut self, group: GroupId, leader: u32) {
        let Some(process) = &self.nodes[leader as usize].process else { return };
        let Some(hosted) = process.groups.get(&group) else { return };
        let conf = hosted.replica.conf_state().clone();
        if !conf.voters_outgoing.is_empty() {
            return;
        }
        let current = |id: &u64| {
            let id = ReplicaId(*id);
            self.nodes.get(id.node().0 as usize).and_then(|at| at.home.ids.get(&group)) == Some(&id)
        };
        let wanted = &self.operator.wanted[&group];
        let demoted = self.operator.demoted.get(&group).copied();
        let keeps = |id: &u64| current(id) && wanted.contains(&ReplicaId(*id).node().0);
        let mut stale: Vec<u64> = conf.voters.iter().chain(&conf.learners).filter(|id| !keeps(id)).copied().collect();
        // Those that are gone for good first: while they count, the others are needed.
        stale.sort_by_key(current);
        let mut changes = Vec::new();
        for node in wanted {
            let id = self.nodes[*node as usize].home.ids.get(&group).copied();
            match id {
                Some(id) if conf.voters.contains(&id.0) => {
                    if demoted == Some(*node) && stale.is_empty() && conf.voters.len() > 2 {
                        changes.push(MemberChange::Demote(id));
                    }
                }
                Some(id) if conf.learners.contains(&id.0) => {
                    if demoted != Some(*node) {
                        changes.push(MemberChange::Promote(id));
                    }
                }
                Some(id) => changes.push(MemberChange::AddLearner(id)),
                None => {}
            }
        }
        let adds = changes.iter().any(|change| matches!(change, MemberChange::AddLearner(_)));
        let learns = conf.learners.iter().any(keeps);
        if !adds {
            // Whoever replaces a replica is promoted first, or together with the removal.
            let may_remove = !learns || self.operator.chance.ratio(1, 2);
            changes.extend(stale.iter().filter(|_| may_remove).map(|id| MemberChange::Remove(ReplicaId(*id))));
        }
        let settled = hosted.replica.status().settled;
        if changes.is_empty() {
            if settled {
                self.destroy_outsiders(group, &conf.voters, &conf.learners);
            }
            return;
        }
        let most = 1 + self.operator.chance.below(2) as usize;
        changes.truncate(most);
        if changes.len() > 1 {
            self.aim_at_joint();
        }
        self.shared.coverage.hit("operation.member-change");
        self.shared.operations += 1;
        let numbers = [group.0, changes.len() as u64, changes[0].replica().0];
        self.shared.event(leader, "change", &numbers, || format!("g{group}: {changes:?}"));
        self.with(leader, None, |process, shared| {
            process.act(group, shared, |replica| replica.change_members(&changes, NOBODY));
        });
    }

    /// The catalog has dropped replicas that are members no more, and the change is settled: they go.
    fn destroy_outsiders(&mut self, group: GroupId, voters: &[u64], learners: &[u64]) {
        let wanted = self.operator.wanted[&group].clone();
        for node in 1..=self.shared.options.nodes {
            let at = &mut self.nodes[node as usize];
            let Some(id) = at.home.ids.get(&group).copied() else { continue };
            if wanted.contains(&node) || voters.contains(&id.0) || learners.contains(&id.0) || at.process.is_none() {
                continue;
            }
            at.home.ids.remove(&group);
            self.shared.coverage.hit("operation.destroy-replica");
            self.with(node, None, |process, shared| {
                process.remove(group, shared);
                process.turn(shared);
            });
        }
    }

    /// Moves replicas about, or lets one learn for a while.
    pub fn stir_members(&mut self, group: GroupId) {
        self.struck(FaultClass::Membership);
        let nodes = self.shared.options.nodes;
        let wanted = self.operator.wanted[&group].clone();
        let outside = |node: &u32| {
            let at = &self.nodes[*node as usize];
            let stranger = at.process.as_ref().is_some_and(|process| !process.tombstones.contains(&group));
            !wanted.contains(node) && stranger && !at.home.ids.contains_key(&group)
        };
        let spare: Vec<u32> = (1..=nodes).filter(outside).collect();
        let (spare, leaves) = (self.operator.chance.pick(&spare), self.operator.chance.pick(&wanted));
        match (spare, leaves) {
            (Some(spare), Some(leaves)) if self.operator.chance.ratio(1, 2) => {
                self.shared.event(spare, "moves", &[group.0, u64::from(leaves)], || {
                    format!("g{group} from n{leaves} to n{spare}")
                });
                if let Some(nodes) = self.operator.wanted.get_mut(&group) {
                    nodes.retain(|node| *node != leaves);
                    nodes.push(spare);
                }
                let id = ReplicaId::new(NodeId(spare), self.nodes[spare as usize].home.generation + 1);
                self.nodes[spare as usize].home.ids.insert(group, id);
                let base = self.found[&group].clone();
                self.with(spare, None, |process, shared| {
                    let options = SegmentsOptions { group, ..shared.options.segments };
                    process.host(group, id, base, options);
                    process.turn(shared);
                });
            }
            (_, Some(leaves)) => {
                self.shared.event(leaves, "demoted", &[group.0], || format!("g{group}"));
                if self.operator.demoted.remove(&group).is_none() {
                    self.operator.demoted.insert(group, leaves);
                }
            }
            _ => {}
        }
    }
}
