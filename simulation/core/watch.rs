//! Liveness: a group with a majority of healthy nodes that all reach each other goes on, whatever the others do; and all goes on once
//! everything is healed.

use super::shared::Event;
use super::world::World;
use balsa::ids::{GroupId, ReplicaId};
use std::collections::BTreeMap;

const EVERY_US: u64 = 500_000;

/// See the module's text.
#[derive(Default)]
pub struct Watch {
    /// All faults are over.
    pub is_healed: bool,
    /// Since when each majority of a group has been well: by its nodes, as bits.
    well_since: BTreeMap<(GroupId, u64), u64>,
    /// Since when a leader reaches no majority.
    alone_since: BTreeMap<(GroupId, u32), u64>,
    /// When a group last committed something, and what.
    progress: BTreeMap<GroupId, (u64, u64)>,
}

impl World {
    /// How long a healthy majority may take until it goes on.
    fn patience_us(&self) -> u64 {
        40 * self.shared.options.election_ticks as u64 * self.shared.options.tick_us + 10_000_000
    }

    fn is_well(&self, node: u32) -> bool {
        let at = &self.nodes[node as usize];
        at.process.as_ref().is_some_and(|process| !process.reserve_reached && !process.retired)
            && at.paused_until <= self.shared.now
            && at.slow_disks + at.hung_disks + at.full_disks == 0
            && self.shared.network.clients_cut[node as usize] == 0
    }

    pub fn look(&mut self) {
        self.shared.after(EVERY_US, Event::Watch);
        let groups: Vec<GroupId> = self.found.keys().copied().collect();
        for group in groups {
            self.look_at(group);
            (1..=self.shared.options.nodes).for_each(|node| self.look_at_leader(group, node));
        }
        (1..=self.shared.options.nodes).for_each(|node| self.look_at_bounds(node));
        self.shared.network.looked_at();
    }

    /// A leader that reaches no majority gives up: nobody is served by it (check-quorum; Ongaro 2014, 6.2).
    fn look_at_leader(&mut self, group: GroupId, node: u32) {
        let at = &self.nodes[node as usize];
        let leading = at
            .process
            .as_ref()
            .and_then(|process| process.groups.get(&group))
            .filter(|hosted| hosted.replica.is_leader() && at.paused_until <= self.shared.now && at.drift_ppm == 0);
        let reaches = |id: &&ReplicaId| {
            let other = id.node().0;
            let current = self
                .nodes
                .get(other as usize)
                .is_some_and(|at| at.home.ids.get(&group) == Some(id) && at.process.is_some());
            other == node
                || (current && !self.shared.network.was_cut(node, other) && !self.shared.network.was_cut(other, node))
        };
        let is_alone = leading.is_some_and(|hosted| {
            let voters = hosted.replica.voters();
            !hosted.replica.status().joint && voters.iter().filter(reaches).count() <= voters.len() / 2
        });
        if !is_alone {
            self.watch.alone_since.remove(&(group, node));
            return;
        }
        let now = self.shared.now;
        let since = *self.watch.alone_since.entry((group, node)).or_insert(now);
        let patience_us = 4 * self.shared.options.election_ticks as u64 * self.shared.options.tick_us + 1_500_000;
        if now - since > patience_us {
            let what = format!(
                "node {node} leads group {group}, and has reached no majority of it for {} ms",
                (now - since) / 1_000
            );
            self.shared.broke("leads-alone", &[node], what);
        }
    }

    fn look_at(&mut self, group: GroupId) {
        let now = self.shared.now;
        let Some(agreed) = self.shared.rules.agreed(group) else { return };
        let (last, conf) = (agreed.last(), agreed.configuration().clone());
        let progress = self.watch.progress.entry(group).or_insert((now, last));
        if progress.1 != last {
            *progress = (now, last);
        }
        let since_progress = progress.0.max(self.clients.quiet_until(group));
        let halves = [&conf.voters, &conf.voters_outgoing];
        let nodes = self.shared.options.nodes;
        let calm = self.shared.network.is_calm();
        let mut kept = BTreeMap::new();
        for set in 1u64..1 << nodes {
            let members: Vec<u32> = (1..=nodes).filter(|node| set >> (node - 1) & 1 == 1).collect();
            let hosts = |id: &&u64| {
                let (id, node) = (ReplicaId(**id), ReplicaId(**id).node().0);
                members.contains(&node) && self.nodes[node as usize].home.ids.get(&group) == Some(&id)
            };
            let majority = |ids: &&Vec<u64>| ids.is_empty() || ids.iter().filter(hosts).count() > ids.len() / 2;
            let connected = || {
                members.iter().all(|one| {
                    self.is_well(*one)
                        && members.iter().all(|other| one == other || self.shared.network.is_well(*one, *other))
                })
            };
            if calm && halves.iter().all(majority) && connected() {
                let since = self.watch.well_since.get(&(group, set)).copied().unwrap_or(now);
                kept.insert((group, set), since);
            }
        }
        let longest = kept.iter().min_by_key(|(_, since)| **since).map(|((_, set), since)| (*set, *since));
        self.watch.well_since.retain(|(other, _), _| *other != group);
        self.watch.well_since.append(&mut kept);
        let Some((set, since)) = longest else { return };
        let stuck_us = now.saturating_sub(since.max(since_progress));
        if stuck_us > self.patience_us() && !self.clients.closing {
            let members: Vec<u32> = (1..=nodes).filter(|node| set >> (node - 1) & 1 == 1).collect();
            let what = format!(
                "group {group} committed nothing for {} ms beyond {last}, although nodes {members:?} of it are well and reach each other",
                stuck_us / 1_000
            );
            self.shared.broke("liveness", &members, what);
        }
    }
}
