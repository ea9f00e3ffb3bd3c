//! Faults: when which one strikes, and how it ends.
//!
//! Some strike at once, some wait for an event (`Armed`). Damage that loses bytes stays within the budget: it strikes a node only if all that
//! was agreed on has a majority's copies without it, and no other node's files are rotten.

use super::chance::Chance;
use super::process::RESERVE_BYTES;
use super::shared::{Armed, End, Event, Shared, Strike};
use super::world::World;
use crate::faults::{FaultClass, Trigger};
use balsa::disk::sim::{Fault, FaultEffect, OperationKind, SimDisk};
use balsa::disk::{read_file, Disk};
use balsa::ids::{GroupId, NodeId};
use futures::FutureExt;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// What ends a fault that lasts.
enum Undo {
    Mend(Vec<(u32, u32)>),
    Quicken(Vec<(u32, u32)>),
    Flap { one: u32, other: u32, times: u64, is_cut: bool },
    Loss,
    Delay,
    Reorder,
    Double,
    Clients(u32),
    DiskSlow(u32),
    DiskHung(u32),
    DiskFull(u32),
}

/// See the module's text.
pub struct Mischief {
    chance: Chance,
    under_way: BTreeMap<u64, Undo>,
    next: u64,
    /// Older states of disks, for files that come back from the past.
    old: BTreeMap<u32, SimDisk>,
    /// After how many operations the node that starts now crashes, if it does.
    pub start_crash_after: u64,
}

impl Mischief {
    pub fn new(chance: Chance, shared: &mut Shared) -> Mischief {
        shared.after(2_000_000, Event::Fault);
        Mischief { chance, under_way: BTreeMap::new(), next: 0, old: BTreeMap::new(), start_crash_after: 0 }
    }
}

fn pairs(ones: &[u32], others: &[u32]) -> Vec<(u32, u32)> {
    let all = ones.iter().flat_map(|one| others.iter().flat_map(move |other| [(*one, *other), (*other, *one)]));
    all.filter(|(one, other)| one != other).collect()
}

impl World {
    fn all(&self) -> Vec<u32> {
        (1..=self.shared.options.nodes).collect()
    }

    pub fn make_mischief(&mut self) {
        if self.watch.is_healed || !self.shared.is_stormy() {
            return;
        }
        let every = self.shared.options.fault_every_us;
        // Some come in bursts: what goes wrong while something else does.
        let next_us = match self.mischief.chance.ratio(1, 5) {
            true => self.mischief.chance.within(2_000..400_000),
            false => self.mischief.chance.within(every / 4..every * 7 / 4),
        };
        self.shared.after(next_us, Event::Fault);
        let classes: Vec<FaultClass> = self.shared.options.faults.0.iter().copied().collect();
        let Some(class) = self.mischief.chance.pick(&classes) else { return };
        let all = self.all();
        let node = self.mischief.chance.pick(&all).unwrap_or(1);
        self.shared.event(node, "fault", &[class as u64], || class.to_string());
        self.strike(class, node);
    }

    fn lasts(&mut self, class: FaultClass, undo: Undo) {
        self.struck(class);
        let fault = self.mischief.next;
        self.mischief.next += 1;
        self.mischief.under_way.insert(fault, undo);
        let lasts_us = match self.mischief.chance.below(4) {
            0 => self.mischief.chance.within(100_000..1_000_000),
            1 => self.mischief.chance.within(4_000_000..20_000_000),
            _ => self.mischief.chance.within(1_000_000..5_000_000),
        };
        self.shared.after(lasts_us, Event::Over { fault });
    }

    fn cut(&mut self, class: FaultClass, pairs: Vec<(u32, u32)>) {
        for (from, to) in &pairs {
            self.shared.network.cut(*from, *to);
            if self.mischief.chance.ratio(1, 4) {
                let delay_us = self.mischief.chance.within(100_000..1_000_000);
                self.shared.after(delay_us, Event::Lost { node: *to, peer: *from });
            }
        }
        self.lasts(class, Undo::Mend(pairs));
    }

    /// The leader of some group, if there is one.
    fn some_leader(&mut self) -> Option<(GroupId, u32)> {
        let groups: Vec<GroupId> = self.found.keys().copied().collect();
        let group = self.mischief.chance.pick(&groups)?;
        Some((group, self.leader_of(group)?))
    }

    fn other(&mut self, node: u32) -> u32 {
        let others: Vec<u32> = self.all().into_iter().filter(|other| *other != node).collect();
        self.mischief.chance.pick(&others).unwrap_or(node)
    }

    fn strike(&mut self, class: FaultClass, node: u32) {
        let all = self.all();
        match class {
            FaultClass::Loss => {
                self.shared.network.loss += self.mischief.chance.within(5..200);
                self.lasts(class, Undo::Loss);
            }
            FaultClass::Delay => {
                self.shared.network.delays = true;
                self.lasts(class, Undo::Delay);
            }
            FaultClass::Reorder => {
                self.shared.network.reorders = true;
                self.lasts(class, Undo::Reorder);
            }
            FaultClass::Double => {
                self.shared.network.doubles = true;
                self.lasts(class, Undo::Double);
            }
            FaultClass::OneWayCut => {
                let other = self.other(node);
                self.cut(class, vec![(node, other)]);
            }
            FaultClass::PartialPartition => {
                let mut cut = Vec::new();
                for _ in 0..self.mischief.chance.within(1..all.len() as u64) {
                    let (one, other) = (self.mischief.chance.pick(&all).unwrap_or(1), self.other(node));
                    cut.extend(pairs(&[one], &[other]));
                }
                self.cut(class, cut);
            }
            FaultClass::Flap => {
                let (other, times) = (self.other(node), self.mischief.chance.within(3..20));
                self.struck(class);
                self.flap(Undo::Flap { one: node, other, times, is_cut: false });
            }
            FaultClass::SlowLink => {
                let other = self.other(node);
                let slow = pairs(&[node], &[other]);
                slow.iter().for_each(|(from, to)| self.shared.network.slow(*from, *to));
                self.lasts(class, Undo::Quicken(slow));
            }
            FaultClass::SplitBrain => {
                let sides = 2 + self.mischief.chance.below(2);
                let side_of: Vec<u64> = all.iter().map(|_| self.mischief.chance.below(sides)).collect();
                let of = |side: u64| {
                    all.iter()
                        .zip(&side_of)
                        .filter(move |(_, of)| **of == side)
                        .map(|(node, _)| *node)
                        .collect::<Vec<_>>()
                };
                let mut cut = pairs(&of(0), &of(1));
                cut.extend(pairs(&of(0), &of(2)));
                cut.extend(pairs(&of(1), &of(2)));
                self.cut(class, cut);
            }
            FaultClass::LeaderFromFollowers if self.waits(Strike::CutOff) => {}
            FaultClass::LeaderFromFollowers => {
                let leader = self.some_leader().map_or(node, |(_, leader)| leader);
                let one_way = self.mischief.chance.ratio(1, 3);
                let cut = pairs(&[leader], &all);
                self.cut(class, cut.into_iter().filter(|(from, _)| !one_way || *from == leader).collect());
            }
            FaultClass::NodeFromClients => {
                self.shared.network.clients_cut[node as usize] += 1;
                self.lasts(class, Undo::Clients(node));
            }
            FaultClass::Kill => self.crash(class, node, End::Kill),
            FaultClass::PowerLoss => self.crash(class, node, End::PowerLoss),
            FaultClass::AllAtOnce => {
                self.struck(class);
                all.into_iter().for_each(|node| self.end(node, End::PowerLoss));
            }
            FaultClass::Pause if self.waits(Strike::Pause) => {}
            FaultClass::Pause => self.pause(node),
            FaultClass::Wipe => {
                if self.may_damage(node) {
                    self.struck(class);
                    self.end(node, End::Kill);
                    self.wipe(node);
                }
            }
            FaultClass::Membership => {
                let groups: Vec<GroupId> = self.found.keys().copied().collect();
                let group = self.mischief.chance.pick(&groups).unwrap_or_default();
                self.stir_members(group);
            }
            FaultClass::Transfer => {
                if let Some((group, leader)) = self.some_leader() {
                    self.struck(class);
                    self.shared.operations += 1;
                    self.with(leader, None, |process, shared| {
                        process.act(group, shared, |replica| drop(replica.transfer_leader(NodeId(node))));
                    });
                }
            }
            FaultClass::ClockStep => {
                self.struck(class);
                let step_ms = self.mischief.chance.within(0..4_000_000) as i64 - 2_000_000;
                self.nodes[node as usize].clock_offset_ms += step_ms;
            }
            FaultClass::ClockDrift => {
                self.struck(class);
                self.nodes[node as usize].drift_ppm = self.mischief.chance.within(0..400_000) as i64 - 200_000;
            }
            FaultClass::WriteFails => self.fail_disk(class, node, OperationKind::Write),
            FaultClass::SyncFails => self.fail_disk(class, node, OperationKind::Sync),
            FaultClass::RotBit | FaultClass::RotBlock | FaultClass::RotFile => self.rot(class, node),
            FaultClass::DiskFull if self.waits(Strike::Fill) => {}
            FaultClass::DiskFull => self.fill_disk(node, None),
            FaultClass::DiskSlow => {
                // So slow that its syncs may count as hung; or what is read alone: that matters where others wait to be sent it.
                let reads_alone = self.mischief.chance.ratio(1, 2);
                let leader = if reads_alone { self.some_leader() } else { None };
                self.slow_disk(leader.map_or(node, |(_, leader)| leader), reads_alone);
            }
            FaultClass::DiskHung if self.waits(Strike::Hang) => {}
            FaultClass::DiskHung => self.hang_disk(node),
        }
    }

    /// A process ends now, or at a moment to come.
    fn crash(&mut self, class: FaultClass, node: u32, how: End) {
        if self.shared.armed.len() < 2 && self.mischief.chance.ratio(2, 3) {
            let joint = self.shared.options.faults.has(FaultClass::Membership);
            let comes = |one: &Trigger| joint || !matches!(one, Trigger::JointEntered | Trigger::JointInherited);
            let trigger = self.mischief.chance.pick(Trigger::ALL).filter(comes);
            self.arm(trigger.unwrap_or(Trigger::AfterVote), Strike::End(how));
            return;
        }
        if self.is_up(node) {
            self.struck(class);
            self.end(node, how);
        }
    }

    /// How a node that starts now crashes, if it does.
    pub fn crash_of_start(&mut self) -> Option<End> {
        let ends = self.ends();
        let strikes = !self.watch.is_healed && self.mischief.chance.ratio(1, 4);
        self.mischief.chance.pick(&ends).filter(|_| strikes)
    }

    /// How processes may end in this run.
    fn ends(&self) -> Vec<End> {
        let faults = &self.shared.options.faults;
        let ends = [(FaultClass::Kill, End::Kill), (FaultClass::PowerLoss, End::PowerLoss)];
        ends.into_iter().filter(|(class, _)| faults.has(*class)).map(|(_, end)| end).collect()
    }

    fn arm(&mut self, trigger: Trigger, strike: Strike) {
        let frequent =
            matches!(trigger, Trigger::BetweenWriteAndSync | Trigger::AfterSyncBeforeAnswer | Trigger::JournalIdle);
        let skip = self.mischief.chance.below(if frequent { 40 } else { 3 });
        let follows = self.mischief.chance.ratio(1, 4);
        self.shared.armed.push(Armed { trigger, skip, strike, follows });
    }

    /// Whether a fault that is no crash waits for its moment instead; a rare one, since it lasts.
    fn waits(&mut self, strike: Strike) -> bool {
        const RARE: [Trigger; 5] = [
            Trigger::AfterVote,
            Trigger::FirstEntryOfTerm,
            Trigger::MidTransfer,
            Trigger::ConfigurationAppended,
            Trigger::SnapshotInstall,
        ];
        /// When there has to be room.
        const GROWTH: [Trigger; 4] =
            [Trigger::SegmentSeal, Trigger::FileRecycling, Trigger::SnapshotInstall, Trigger::SnapshotInstall];
        if self.shared.armed.len() >= 3 || !self.mischief.chance.ratio(1, 2) {
            return false;
        }
        let moments: &[Trigger] = if strike == Strike::Fill { &GROWTH } else { &RARE };
        let trigger = self.mischief.chance.pick(moments).unwrap_or(Trigger::AfterVote);
        self.arm(trigger, strike);
        true
    }

    /// Somebody asks for a joint configuration: who leads then may not live to leave it, and who leads next may not get far.
    pub fn aim_at_joint(&mut self) {
        let ends = self.ends();
        let is_armed = self.shared.armed.iter().any(|armed| armed.trigger == Trigger::JointEntered);
        let strikes = !self.watch.is_healed && !is_armed && self.mischief.chance.ratio(1, 2);
        let Some(how) = self.mischief.chance.pick(&ends).filter(|_| strikes) else { return };
        let at = |trigger, strike| Armed { trigger, skip: 0, strike, follows: false };
        self.shared.armed.retain(|armed| armed.trigger != Trigger::JointInherited);
        self.shared.armed.push(at(Trigger::JointEntered, Strike::End(how)));
        if self.shared.options.faults.has(FaultClass::DiskHung) {
            self.shared.armed.push(at(Trigger::JointInherited, Strike::Hang));
        }
    }

    /// The moment of an aimed fault has come.
    pub fn strike_aimed(&mut self, node: u32, life: u64, strike: Strike) {
        if self.nodes[node as usize].life != life || !self.is_up(node) {
            return;
        }
        match strike {
            Strike::End(how) => {
                self.struck(if how == End::Kill { FaultClass::Kill } else { FaultClass::PowerLoss });
                self.end(node, how);
            }
            Strike::Hang => self.hang_disk(node),
            Strike::Fill => {
                let rest = [0..300, 0..4 << 10, 2 << 10..64 << 10][self.mischief.chance.below(3) as usize].clone();
                let rest = self.mischief.chance.within(rest);
                self.fill_disk(node, Some(rest));
            }
            Strike::Pause => self.pause(node),
            Strike::CutOff => {
                let cut = pairs(&[node], &self.all());
                self.cut(FaultClass::LeaderFromFollowers, cut);
            }
        }
    }

    /// A leader is struck while another node has trouble of its own.
    pub fn strike_leader(&mut self, but: u32) {
        let classes = [
            FaultClass::Kill,
            FaultClass::PowerLoss,
            FaultClass::Pause,
            FaultClass::LeaderFromFollowers,
            FaultClass::Transfer,
        ];
        let classes: Vec<FaultClass> =
            classes.into_iter().filter(|class| self.shared.options.faults.has(*class)).collect();
        let (class, leader) = (self.mischief.chance.pick(&classes), self.some_leader());
        let (Some(class), Some((_, leader))) = (class, leader.filter(|(_, leader)| *leader != but)) else { return };
        if self.watch.is_healed {
            return;
        }
        match class {
            FaultClass::Kill | FaultClass::PowerLoss => {
                self.struck(class);
                self.end(leader, if class == FaultClass::Kill { End::Kill } else { End::PowerLoss });
            }
            FaultClass::Pause => self.pause(leader),
            class => self.strike(class, leader),
        }
    }

    fn pause(&mut self, node: u32) {
        let lasts_us = self.mischief.chance.within(100_000..6_000_000);
        if self.is_up(node) {
            self.struck(FaultClass::Pause);
            // A shorter pause within a longer one ends nothing.
            let until = &mut self.nodes[node as usize].paused_until;
            *until = (*until).max(self.shared.now + lasts_us);
            self.shared.after(lasts_us, Event::Resume { node });
        }
    }

    fn hang_disk(&mut self, node: u32) {
        self.nodes[node as usize].hung_disks += 1;
        self.nodes[node as usize].disk_is_ill = true;
        self.with(node, None, |process, _| process.gate.set_hung(true));
        self.lasts(FaultClass::DiskHung, Undo::DiskHung(node));
    }

    fn slow_disk(&mut self, node: u32, reads_alone: bool) {
        let at = &mut self.nodes[node as usize];
        at.slow_disks += 1;
        at.reads_slow |= reads_alone;
        at.disk_is_ill = true;
        self.set_pace(node);
        self.lasts(FaultClass::DiskSlow, Undo::DiskSlow(node));
    }

    /// A full disk has less than its reserve left; now and then nearly nothing.
    fn fill_disk(&mut self, node: u32, rest: Option<u64>) {
        self.nodes[node as usize].full_disks += 1;
        self.nodes[node as usize].disk_is_ill = true;
        let rest = rest.unwrap_or_else(|| match self.mischief.chance.ratio(1, 3) {
            true => self.mischief.chance.within(2 << 10..64 << 10),
            false => RESERVE_BYTES - (64 << 10),
        });
        self.leave_space(node, rest);
        self.lasts(FaultClass::DiskFull, Undo::DiskFull(node));
    }

    fn fail_disk(&mut self, class: FaultClass, node: u32, kind: OperationKind) {
        if !self.is_up(node) {
            return;
        }
        self.struck(class);
        let at = &mut self.nodes[node as usize];
        at.disk_is_ill = true;
        let path_contains = if self.mischief.chance.ratio(2, 3) { "journal" } else { "" }.to_owned();
        let skip = self.mischief.chance.below(6);
        at.home.disk.inject(Fault { kind, path_contains, skip, effect: FaultEffect::Fail(io::ErrorKind::Other) });
    }

    /// Whether the budget allows to lose what a node has.
    fn may_damage(&self, node: u32) -> bool {
        if self.shared.options.over_budget {
            return true;
        }
        let others_sound = self.nodes.iter().enumerate().all(|(other, at)| other as u32 == node || !at.rotted);
        others_sound && self.shared.rules.can_spare(node) && self.found.keys().all(|group| self.is_settled(*group))
    }

    /// Whether a group is led and no change of its members is on its way: one that is not known to be committed could make voters of
    /// replicas that are gone.
    fn is_settled(&self, group: GroupId) -> bool {
        let leader = self.leader_of(group).and_then(|leader| self.nodes[leader as usize].process.as_ref());
        leader.and_then(|process| process.groups.get(&group)).is_some_and(|hosted| hosted.replica.status().settled)
    }

    /// More often than not a node that was idle until now, if there is one: all that it holds is on record as synced.
    fn rather_idle(&mut self, node: u32) -> u32 {
        let is_idle = |node: &u32| self.nodes[*node as usize].process.as_ref().is_some_and(|process| process.is_marked);
        let idle: Vec<u32> = self.all().into_iter().filter(is_idle).collect();
        match self.mischief.chance.ratio(2, 3) {
            true => self.mischief.chance.pick(&idle).unwrap_or(node),
            false => node,
        }
    }

    /// Files of a node that is down are damaged.
    fn rot(&mut self, class: FaultClass, node: u32) {
        let node = self.rather_idle(node);
        if !self.mischief.old.contains_key(&node) || self.mischief.chance.ratio(1, 3) {
            self.mischief.old.insert(node, self.nodes[node as usize].home.disk.fork());
        }
        if !self.may_damage(node) || !self.nodes[node as usize].home.is_founded {
            return;
        }
        self.end(node, End::Kill);
        let Some(path) = self.some_file(node) else { return };
        let round = self.some_round(node);
        let path = round.as_ref().map_or(path, |(path, ..)| path.clone());
        let chance = &mut self.mischief.chance;
        let at = &mut self.nodes[node as usize];
        let disk = at.home.disk.clone();
        let content = read_file(&disk, &path, u64::MAX).now_or_never().and_then(Result::ok).unwrap_or_default();
        let len = content.len().max(1) as u64;
        let end = content.iter().rposition(|byte| *byte != 0).map_or(len, |last| last as u64 + 1);
        // Often what was written last: that is what could be taken for torn.
        let place = match round {
            Some((_, from, bytes)) if from + bytes <= len => chance.within(from..from + bytes),
            _ if chance.ratio(1, 2) => chance.within(end.saturating_sub(600)..end),
            _ => chance.below(len),
        };
        let done = match class {
            FaultClass::RotBit => disk.flip(&path, place, 1 << chance.below(8)),
            FaultClass::RotBlock => {
                let block = place / 512 * 512;
                disk.zero_block(&path, block, 512.min(len - block))
            }
            _ if chance.ratio(1, 2) => disk.lose_file(&path),
            _ => self.mischief.old.get(&node).is_some_and(|old| disk.restore_file_from(old, &path)),
        };
        if done {
            at.rotted = true;
            at.rots += 1;
            at.rotted_at = self.shared.now;
            // Of two that rot while a node is down, one may be what proves the other's end.
            let unproven = !at.was_marked || at.rots > 1;
            let is_in = |(file, from, bytes): &(PathBuf, u64, u64)| {
                *file == path && (class == FaultClass::RotFile || (*from..from + bytes).contains(&place))
            };
            // What went without a trace leaves the one before it without a successor.
            let last = if at.rots > 1 { at.last_rounds.len() } else { 1 };
            at.last_rounds_struck |= class != FaultClass::RotBit && at.last_rounds.iter().rev().take(last).any(is_in);
            at.rotted_unmarked |= unproven && path.starts_with(super::disk::JOURNAL_DIR);
            if at.rotted_unmarked {
                self.shared.rules.node_down(node, crate::rules::Down::Damaged);
            }
            self.struck(class);
            self.shared
                .event(node, "rot", &[class as u64, len], || format!("{class} in {} of {len} B", path.display()));
        }
    }

    /// One of the rounds that were written last before the node went down, more often than not the very last: that could be taken for torn.
    fn some_round(&mut self, node: u32) -> Option<(PathBuf, u64, u64)> {
        let rounds = self.nodes[node as usize].last_rounds.clone();
        let before = if self.mischief.chance.ratio(2, 3) { 0 } else { self.mischief.chance.below(3) as usize };
        let wanted = self.mischief.chance.ratio(1, 2);
        rounds.into_iter().rev().nth(before).filter(|_| wanted)
    }

    fn some_file(&mut self, node: u32) -> Option<PathBuf> {
        let disk = self.nodes[node as usize].home.disk.clone();
        let mut dirs = vec![PathBuf::from(super::disk::JOURNAL_DIR)];
        if self.mischief.chance.ratio(1, 2) {
            dirs =
                self.found.keys().map(|group| Path::new(super::disk::GROUPS_DIR).join(group.0.to_string())).collect();
        }
        let list = |dir: &PathBuf| disk.list(dir).now_or_never().and_then(Result::ok).unwrap_or_default();
        let files: Vec<PathBuf> = dirs.iter().flat_map(list).collect();
        let at = self.mischief.chance.below(files.len().max(1) as u64) as usize;
        files.into_iter().nth(at)
    }

    fn flap(&mut self, undo: Undo) {
        let Undo::Flap { one, other, times, is_cut } = undo else { return };
        for (from, to) in [(one, other), (other, one)] {
            if is_cut {
                self.shared.network.mend(from, to);
            } else {
                self.shared.network.cut(from, to);
            }
        }
        if is_cut && times == 0 {
            return;
        }
        let fault = self.mischief.next;
        self.mischief.next += 1;
        let times = times.saturating_sub(1);
        self.mischief.under_way.insert(fault, Undo::Flap { one, other, times, is_cut: !is_cut });
        let delay_us = self.mischief.chance.within(20_000..600_000);
        self.shared.after(delay_us, Event::Over { fault });
    }

    pub fn end_mischief(&mut self, fault: u64) {
        let Some(undo) = self.mischief.under_way.remove(&fault) else { return };
        let network = &mut self.shared.network;
        match undo {
            Undo::Mend(pairs) => pairs.iter().for_each(|(from, to)| network.mend(*from, *to)),
            Undo::Quicken(pairs) => pairs.iter().for_each(|(from, to)| network.quicken(*from, *to)),
            Undo::Flap { .. } => self.flap(undo),
            Undo::Loss => network.loss = 0,
            Undo::Delay => network.delays = false,
            Undo::Reorder => network.reorders = false,
            Undo::Double => network.doubles = false,
            Undo::Clients(node) => network.clients_cut[node as usize] -= 1,
            Undo::DiskSlow(node) => {
                let at = &mut self.nodes[node as usize];
                at.slow_disks -= 1;
                at.reads_slow &= at.slow_disks > 0;
                self.set_pace(node);
            }
            Undo::DiskHung(node) => {
                let at = &mut self.nodes[node as usize];
                at.hung_disks -= 1;
                if at.hung_disks == 0 {
                    self.with(node, None, |process, _| process.gate.set_hung(false));
                }
            }
            Undo::DiskFull(node) => {
                let at = &mut self.nodes[node as usize];
                at.full_disks -= 1;
                if at.full_disks == 0 {
                    at.home.disk.set_capacity(None);
                }
            }
        }
    }

    /// All faults end now.
    pub fn heal(&mut self) {
        self.watch.is_healed = true;
        self.shared.armed.clear();
        self.operator.settle();
        while let Some((fault, undo)) = self.mischief.under_way.pop_first() {
            let undo = match undo {
                Undo::Flap { one, other, is_cut: true, .. } => Undo::Mend(pairs(&[one], &[other])),
                Undo::Flap { .. } => continue,
                undo => undo,
            };
            self.mischief.under_way.insert(fault, undo);
            self.end_mischief(fault);
        }
        for node in self.all() {
            self.resume(node);
            let at = &mut self.nodes[node as usize];
            at.drift_ppm = 0;
            at.home.disk.clear_faults();
            if at.process.is_none() {
                self.start_later(node, 10_000);
            }
        }
    }
}
