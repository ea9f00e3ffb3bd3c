//! What goes wrong and when: one agenda of all that is to happen, from which the next thing is taken at its time.
//!
//! Each fault is drawn when the one before struck, and puts its own end on the agenda. Damage, that is what loses synced
//! bytes, is kept to a minority of nodes; whoever was damaged stays so for the rest of the run. Nodes that end come back after a while, unless
//! they refuse to: then that must have been for a reason this file gave them.
//!
//! The file is long because it holds one function for each class of faults, and all of them share the agenda.

use super::aims::{Aim, Aims, TRIGGERS};
use super::clients::{doors, Log};
use super::machine::{End, Happened, Machine, Process, Watch};
use super::network::{between, set_weather, Cut, Network};
use super::options::Options;
use super::stage::{now_us, Stage};
use super::trials::Trial;
use crate::faults::{FaultClass, Trigger};
use balsa::client::wire::{self, read_request::From};
use balsa::client::{Client, NewTopic};
use balsa::disk::sim::{Fault, FaultEffect, OperationKind, SimDisk};
use balsa::node::founding::FoundingError;
use balsa::node::NodeError;
use madsim::runtime::NodeHandle;
use madsim::task::NodeId;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Classes of faults that this world knows.
pub const FAULTS: &[FaultClass] = &[
    FaultClass::Loss,
    FaultClass::Delay,
    FaultClass::OneWayCut,
    FaultClass::PartialPartition,
    FaultClass::Flap,
    FaultClass::SlowLink,
    FaultClass::SplitBrain,
    FaultClass::LeaderFromFollowers,
    FaultClass::NodeFromClients,
    FaultClass::Kill,
    FaultClass::PowerLoss,
    FaultClass::AllAtOnce,
    FaultClass::Pause,
    FaultClass::Wipe,
    FaultClass::Transfer,
    FaultClass::ClockStep,
    FaultClass::ClockDrift,
    FaultClass::WriteFails,
    FaultClass::SyncFails,
    FaultClass::RotBit,
    FaultClass::RotBlock,
    FaultClass::RotFile,
    FaultClass::DiskFull,
    FaultClass::DiskSlow,
    FaultClass::DiskHung,
];

/// All machines of the cluster.
pub type Machines = Vec<Arc<Machine>>;

/// Between two steps of a clock that drifts.
const DRIFT_EVERY_MS: u64 = 500;
/// An aimed fault waits so long for its event.
const AIM_MS: u64 = 8_000;
/// One that waits for what is rare.
const RARE_AIM_MS: u64 = 60_000;
/// So long somebody waits for records that may be trimmed under way.
const READ_PATIENCE: Duration = Duration::from_secs(3);

/// What is to happen.
#[derive(Clone, Debug)]
enum Action {
    Strike,
    Mend(Cut),
    Toggle { cut: Cut, is_cut: bool, left: u32, open_ms: u64, cut_ms: u64 },
    UsualWeather,
    Start(u32),
    Resume(u32),
    End { node: u32, end: End },
    Drift { node: u32, step_ms: i64, left: u32 },
    ClockRight(u32),
    UsualDisk { node: u32, life: u32 },
    Room { node: u32 },
    EndHung { node: u32, life: u32 },
}

/// See the module's text.
pub struct Strikes {
    options: Arc<Options>,
    stage: Stage,
    machines: Machines,
    clients: Vec<NodeId>,
    desk: NodeHandle,
    desk_client: Client,
    logs: Vec<Log>,
    aims: Arc<Aims>,
    watch: Arc<dyn Watch>,
    network: Network,
    rng: StdRng,
    agenda: BTreeMap<(u64, u64), Action>,
    agenda_next: u64,
    skews_ms: BTreeMap<u32, i64>,
    /// By how much all clocks are ahead of the runtime's.
    slept_ms: u64,
    /// Nodes that lost synced bytes.
    damaged: BTreeSet<u32>,
    /// Nodes whose disk was told to fail, fill up or hang in this life: they may end.
    may_end: BTreeSet<u32>,
    /// Nodes whose disk has little room left; a new life finds it so.
    full: BTreeSet<u32>,
    /// Nodes whose disk answers no more in this life.
    hung: BTreeSet<u32>,
    /// Lives of nodes that were asked to stop.
    stopping: BTreeSet<(u32, u32)>,
    /// Nothing is damaged for now: what is tried in a calm needs all nodes.
    sparing: bool,
    /// What a node's disk was like some time ago.
    old_disks: BTreeMap<u32, SimDisk>,
    healing: bool,
}

/// What the strikes need to know of the run.
pub struct Stricken {
    pub options: Arc<Options>,
    pub stage: Stage,
    pub machines: Machines,
    pub clients: Vec<NodeId>,
    pub desk: NodeHandle,
    pub desk_client: Client,
    pub logs: Vec<Log>,
    pub aims: Arc<Aims>,
    pub rng: StdRng,
}

impl Strikes {
    pub fn new(stricken: Stricken) -> Strikes {
        let Stricken { options, stage, machines, clients, desk, desk_client, logs, aims, rng } = stricken;
        let mut strikes = Strikes {
            options,
            stage,
            machines,
            clients,
            desk,
            desk_client,
            logs,
            watch: aims.clone(),
            aims,
            network: Network::default(),
            rng,
            agenda: BTreeMap::new(),
            agenda_next: 0,
            skews_ms: BTreeMap::new(),
            slept_ms: 0,
            damaged: BTreeSet::new(),
            may_end: BTreeSet::new(),
            full: BTreeSet::new(),
            hung: BTreeSet::new(),
            stopping: BTreeSet::new(),
            sparing: false,
            old_disks: BTreeMap::new(),
            healing: false,
        };
        strikes.later(500, Action::Strike);
        strikes
    }

    /// Nodes that need not come back.
    pub fn damaged(&self) -> &BTreeSet<u32> {
        &self.damaged
    }

    /// Lets things happen until a moment.
    pub async fn until(&mut self, end_us: u64, told: &mut mpsc::UnboundedReceiver<Happened>) {
        while now_us() < end_us && !self.stage.is_broken() {
            let next_us = self.agenda.keys().next().map_or(end_us, |(at, _)| (*at).min(end_us));
            let pause = Duration::from_micros(next_us.saturating_sub(now_us()));
            tokio::select! {
                biased;
                Some(happened) = told.recv() => self.happened(happened),
                () = madsim::time::sleep(pause) => self.due(),
            }
        }
    }

    fn due(&mut self) {
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= now_us()) {
            let action = entry.remove();
            self.act(action);
        }
    }

    fn later(&mut self, ms: u64, action: Action) {
        self.agenda_next += 1;
        self.agenda.insert((now_us() + ms * 1_000, self.agenda_next), action);
    }

    fn machine(&self, node: u32) -> Arc<Machine> {
        self.machines[node as usize - 1].clone()
    }

    fn event(&self, node: u32, what: &'static str, text: impl FnOnce() -> String) {
        self.stage.event(node, what, &[], text);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Strike => {
                // What could not strike now, or waits for its event, makes room for the next one.
                let gap = if self.strike() { self.options.fault_gap_ms } else { self.options.fault_gap_ms / 4 };
                let pause = self.rng.gen_range(gap / 4..gap * 7 / 4);
                if !self.healing {
                    self.later(pause, Action::Strike);
                }
            }
            Action::Mend(cut) => self.network.mend(&cut),
            Action::Toggle { cut, is_cut, left, open_ms, cut_ms } => {
                if is_cut {
                    self.network.mend(&cut);
                }
                if left > 0 && !self.healing {
                    if !is_cut {
                        self.network.cut(&cut);
                    }
                    let mean = if is_cut { open_ms } else { cut_ms };
                    let pause = self.rng.gen_range(mean / 2..=mean * 3 / 2);
                    self.later(pause, Action::Toggle { cut, is_cut: !is_cut, left: left - 1, open_ms, cut_ms });
                }
            }
            Action::UsualWeather => set_weather(0.0, &self.options.latency),
            Action::Start(node) => {
                if !self.full.contains(&node) {
                    self.may_end.remove(&node);
                }
                self.machine(node).start(&self.watch);
            }
            Action::Resume(node) => self.resume(node),
            Action::End { node, end } => {
                self.machine(node).end(end);
            }
            Action::Drift { node, step_ms, left } => {
                self.skew(node, step_ms);
                if left > 0 && !self.healing {
                    self.later(DRIFT_EVERY_MS, Action::Drift { node, step_ms, left: left - 1 });
                }
            }
            Action::ClockRight(node) => {
                self.set_clock(node, 0);
                self.event(node, "clock", || "right again".to_owned());
            }
            Action::UsualDisk { node, life } => {
                let machine = self.machine(node);
                if machine.life() == life && !self.hung.contains(&node) {
                    machine.usual_delays(&machine.disk());
                }
            }
            Action::Room { node } => {
                self.event(node, "room", || "again".to_owned());
                self.full.remove(&node);
                self.machine(node).disk().set_capacity(None);
            }
            Action::EndHung { node, life } => {
                let machine = self.machine(node);
                if machine.life() == life {
                    machine.end(End::Kill);
                }
            }
        }
    }

    fn resume(&mut self, node: u32) {
        self.event(node, "resume", String::new);
        self.aims.resumed(node);
        self.machine(node).resume();
    }

    fn skew(&mut self, node: u32, by_ms: i64) {
        let skew = self.skews_ms.get(&node).copied().unwrap_or_default() + by_ms;
        self.event(node, "clock", || format!("off by {skew} ms"));
        self.set_clock(node, skew);
    }

    fn set_clock(&mut self, node: u32, skew_ms: i64) {
        self.skews_ms.insert(node, skew_ms);
        self.machine(node).clock.set_skew_ms(self.slept_ms as i64 + skew_ms);
        self.stage.clock(node, skew_ms);
    }

    /// All machines were suspended for hours: no clock is wrong, and all of them jump.
    fn hours_pass(&mut self) -> String {
        let hour_ms = 60 * 60 * 1_000;
        let ms =
            self.rng.gen_range(hour_ms / 2..3 * hour_ms) + if self.rng.gen_bool(0.2) { 8 * 24 * hour_ms } else { 0 };
        self.slept_ms = self.stage.slept(ms);
        for node in 1..=self.options.nodes {
            let skew_ms = self.skews_ms.get(&node).copied().unwrap_or_default();
            self.machine(node).clock.set_skew_ms(self.slept_ms as i64 + skew_ms);
        }
        // A leader's log time follows its ticks: the next leader's is the first to know how late it is.
        if let Some(log) = self.logs.choose(&mut self.rng).filter(|_| self.options.has(FaultClass::Kill)) {
            if let Some(leader) = self.aims.leader_of(log.group) {
                self.machine(leader).end(End::Kill);
            }
        }
        format!("all by {ms} ms")
    }

    fn happened(&mut self, happened: Happened) {
        match happened {
            Happened::EndLater { node, end, after } => {
                self.later(after.as_millis() as u64, Action::End { node, end });
            }
            Happened::EndAll { end } => {
                for machine in self.machines.clone() {
                    machine.end(end);
                }
            }
            Happened::Ended { node, result } => {
                self.aims.disk_answers(node);
                self.hung.remove(&node);
                if let Some(result) = result {
                    self.ended_by_itself(node, result);
                }
                let machine = self.machine(node);
                if machine.process() != Process::Down {
                    return;
                }
                if !self.healing && self.options.has(FaultClass::PowerLoss) && self.rng.gen_bool(0.15) {
                    machine.lose_power_while_down();
                    self.event(node, "power-loss", || "while it is down".to_owned());
                }
                let pause = if self.healing { 50 } else { self.rng.gen_range(50..4_000) };
                self.later(pause, Action::Start(node));
            }
        }
    }

    /// Whether it may end like that.
    fn ended_by_itself(&mut self, node: u32, result: Result<(), NodeError>) {
        let machine = self.machine(node);
        let (damaged, wiped) = (self.damaged.contains(&node), machine.is_wiped());
        let why =
            result.as_ref().err().map_or_else(|| "without an error".to_owned(), |error| balsa::telemetry::chain(error));
        match result {
            Ok(()) if self.stopping.remove(&(node, machine.life())) => self.stage.hit("stop.ended"),
            Err(NodeError::Founding(FoundingError::Wiped { .. })) if wiped => {
                self.stage.hit("refused.wiped");
                machine.gives_up(why);
            }
            Err(error) if damaged && !wiped => {
                self.stage.hit(if error.is_corruption() { "refused.corruption" } else { "refused.other" });
                machine.gives_up(why);
            }
            Err(error) if self.may_end.contains(&node) && !error.is_corruption() => {
                self.stage.hit("ended.disk-failed");
            }
            _ => self.stage.broke("node-ended", format!("node {node} ended by itself: {why}"), &[node]),
        }
    }

    /// A fault strikes, of a class drawn from those that are on. False if nothing happened, or not yet.
    fn strike(&mut self) -> bool {
        let classes: Vec<FaultClass> = self.options.faults.0.iter().copied().collect();
        if self.rng.gen_bool(0.25) && self.aim() {
            return false;
        }
        if self.rng.gen_bool(0.05) {
            let node = self.any_node();
            self.old_disks.insert(node, self.machine(node).disk().fork());
        }
        let Some(class) = classes.choose(&mut self.rng).copied() else { return false };
        let Some((node, text)) = self.strike_with(class) else { return false };
        let mut kept = self.stage.lock();
        kept.faults += 1;
        kept.coverage.hit(&format!("fault.{class}"));
        kept.trace.event(now_us(), node, "fault", &[class as u64], || format!("{class}: {text}"));
        true
    }

    /// Arms a fault for an event. False if no class that could follow from one is on.
    fn aim(&mut self) -> bool {
        let ends: Vec<End> = [(FaultClass::Kill, End::Kill), (FaultClass::PowerLoss, End::PowerLoss)]
            .into_iter()
            .filter_map(|(class, end)| self.options.has(class).then_some(end))
            .collect();
        let Some(end) = ends.choose(&mut self.rng).copied() else { return false };
        let trigger = *TRIGGERS.choose(&mut self.rng).expect("there are some");
        let often = matches!(trigger, Trigger::BetweenWriteAndSync | Trigger::AfterSyncBeforeAnswer | Trigger::Rename);
        // Few replicas are ever so far behind; the aim waits for one, whoever it is.
        let rare = trigger == Trigger::SnapshotInstall;
        let rng = &mut self.rng;
        let aim = Aim {
            trigger,
            node: (!rare && rng.gen_bool(0.3)).then(|| rng.gen_range(1..=self.options.nodes)),
            skip: if often { rng.gen_range(0..20) } else { rng.gen_range(0..if rare { 1 } else { 3 }) },
            end,
            after: if rng.gen_bool(0.6) { Duration::ZERO } else { Duration::from_millis(rng.gen_range(1..30)) },
            all: self.options.has(FaultClass::AllAtOnce) && rng.gen_bool(0.1),
            until_us: now_us() + if rare { RARE_AIM_MS } else { AIM_MS } * 1_000,
        };
        self.stage.event(0, "aim", &[trigger as u64], || format!("{aim:?}"));
        self.aims.arm(aim);
        if matches!(trigger, Trigger::MidTransfer) {
            self.transfer();
        }
        if matches!(trigger, Trigger::AfterVote | Trigger::FirstEntryOfTerm) && self.rng.gen_bool(0.7) {
            // There is no vote without an election.
            if let Some(leader) = self.any_leader() {
                self.machine(leader).end(end);
            }
        }
        true
    }

    fn any_node(&mut self) -> u32 {
        self.rng.gen_range(1..=self.options.nodes)
    }

    fn any_leader(&mut self) -> Option<u32> {
        let log = self.logs.choose(&mut self.rng)?;
        let group = if self.rng.gen_bool(0.2) { 0 } else { log.group };
        self.aims.leader_of(group)
    }

    /// A node whose process runs, a leader more often than not.
    fn running(&mut self) -> Option<u32> {
        if self.rng.gen_bool(0.5) {
            if let Some(leader) = self.any_leader().filter(|leader| self.machine(*leader).is_running()) {
                return Some(leader);
            }
        }
        let running: Vec<u32> = self.machines.iter().filter(|machine| machine.is_running()).map(|one| one.id).collect();
        running.choose(&mut self.rng).copied()
    }

    /// A node that may lose synced bytes.
    fn may_be_damaged(&mut self) -> Option<u32> {
        if self.sparing {
            return None;
        }
        let spare = if self.options.over_budget { self.options.nodes as usize } else { self.options.minority() };
        let candidates: Vec<u32> = match self.damaged.len() < spare {
            true => (1..=self.options.nodes).collect(),
            false => self.damaged.iter().copied().collect(),
        };
        let kept = self.stage.lock();
        let candidates: Vec<u32> = candidates
            .into_iter()
            .filter(|node| self.options.over_budget || kept.rules.can_spare(*node))
            .filter(|node| matches!(self.machine(*node).process(), Process::Running | Process::Down))
            .filter(|node| !self.machine(*node).is_wiped())
            .collect();
        drop(kept);
        candidates.choose(&mut self.rng).copied()
    }

    fn sims(&self, nodes: &[u32]) -> Vec<NodeId> {
        nodes.iter().map(|node| self.machine(*node).sim).collect()
    }

    fn others(&self, node: u32) -> Vec<u32> {
        (1..=self.options.nodes).filter(|other| *other != node).collect()
    }

    fn cut_for(&mut self, cut: Cut, ms: std::ops::Range<u64>) {
        self.network.cut(&cut);
        let ms = self.rng.gen_range(ms);
        self.later(ms, Action::Mend(cut));
    }

    /// Which node it strikes (0: none of them alone), and in words what happens. `None` if it can't strike now.
    fn strike_with(&mut self, class: FaultClass) -> Option<(u32, String)> {
        Some(match class {
            FaultClass::Loss => {
                let loss = self.rng.gen_range(0.01..0.25);
                set_weather(loss, &self.options.latency);
                self.weather_passes();
                (0, format!("{:.0} percent", loss * 100.0))
            }
            FaultClass::Delay => {
                let (factor, latency) = (self.rng.gen_range(2..12), self.options.latency.clone());
                set_weather(0.0, &(*latency.start()..=*latency.end() * factor));
                self.weather_passes();
                (0, format!("up to {factor} times as long"))
            }
            FaultClass::OneWayCut => {
                let from = self.any_node();
                let to = *self.others(from).choose(&mut self.rng)?;
                self.cut_for(vec![(self.machine(from).sim, self.machine(to).sim)], 500..8_000);
                (from, format!("to node {to}"))
            }
            FaultClass::PartialPartition => self.partial_partition(500..8_000),
            FaultClass::Flap | FaultClass::SlowLink => {
                let one = self.any_node();
                let other = *self.others(one).choose(&mut self.rng)?;
                let cut = between(&self.sims(&[one]), &self.sims(&[other]));
                let (open_ms, cut_ms, left) = match class {
                    FaultClass::Flap => {
                        (self.rng.gen_range(30..600), self.rng.gen_range(30..600), self.rng.gen_range(6..24))
                    }
                    _ => (4, self.rng.gen_range(10..60), self.rng.gen_range(40..120)),
                };
                self.later(0, Action::Toggle { cut, is_cut: false, left, open_ms, cut_ms });
                (one, format!("node {other}: {left} times, {open_ms} ms open, {cut_ms} ms cut"))
            }
            FaultClass::SplitBrain => self.split_brain(),
            FaultClass::LeaderFromFollowers => {
                let leader = self.any_leader()?;
                let (leader_sim, followers) = (self.sims(&[leader]), self.sims(&self.others(leader)));
                let mut cut = between(&leader_sim, &followers);
                let one_way = self.rng.gen_bool(0.4);
                if one_way {
                    cut.retain(|(from, _)| *from == leader_sim[0]);
                }
                self.cut_for(cut, 1_000..8_000);
                (leader, if one_way { "one way".to_owned() } else { "both ways".to_owned() })
            }
            FaultClass::NodeFromClients => {
                let node = self.running()?;
                let cut = between(&self.sims(&[node]), &self.clients);
                self.cut_for(cut, 500..6_000);
                (node, String::new())
            }
            FaultClass::Kill if self.rng.gen_bool(0.25) => {
                // Nobody may be there to hand over to.
                let cuts =
                    self.options.has(FaultClass::SplitBrain) || self.options.has(FaultClass::LeaderFromFollowers);
                let cuts = cuts && self.rng.gen_bool(0.5);
                let node = if cuts { self.any_leader()? } else { self.running()? };
                if !self.machine(node).stop() {
                    return None;
                }
                self.stopping.insert((node, self.machine(node).life()));
                self.stage.hit("stop.asked");
                if !cuts {
                    return Some((node, "in order".to_owned()));
                }
                let cut = between(&self.sims(&[node]), &self.sims(&self.others(node)));
                self.cut_for(cut, 500..5_000);
                (node, "in order, and cut off from all others".to_owned())
            }
            FaultClass::Kill | FaultClass::PowerLoss => {
                let node = self.running()?;
                let end = if class == FaultClass::Kill { End::Kill } else { End::PowerLoss };
                self.machine(node).end(end);
                (node, String::new())
            }
            FaultClass::AllAtOnce => {
                if self.rng.gen_bool(0.5) {
                    return None; // rarer than the others: nothing else goes on meanwhile
                }
                let end = if self.rng.gen_bool(0.3) { End::Kill } else { End::PowerLoss };
                for machine in self.machines.clone() {
                    machine.end(end);
                }
                (0, format!("{end:?}"))
            }
            FaultClass::Pause => {
                let node = self.running()?;
                if !self.machine(node).pause() {
                    return None;
                }
                let ms = self.rng.gen_range(50..7_000);
                self.later(ms, Action::Resume(node));
                (node, format!("for {ms} ms"))
            }
            FaultClass::Wipe => {
                // With all wiped there would be nobody left to know that there ever was a cluster.
                let wiped = self.machines.iter().filter(|machine| machine.is_wiped()).count();
                let node = self.may_be_damaged().filter(|_| wiped + 1 < self.machines.len())?;
                let machine = self.machine(node);
                machine.end(End::Kill);
                machine.wipe();
                self.stage.lock().rules.node_lost(node);
                self.damaged.insert(node);
                (node, String::new())
            }
            FaultClass::Transfer => {
                let text = self.transfer()?;
                (0, text)
            }
            FaultClass::ClockStep if self.rng.gen_bool(0.2) => (0, self.hours_pass()),
            FaultClass::ClockStep => {
                let node = self.any_node();
                let far = *[400, 4_000, 60_000, 3_600_000].choose(&mut self.rng)?;
                let step_ms = self.rng.gen_range(-far..=far);
                self.skew(node, step_ms);
                self.clock_right_later(node);
                (node, format!("{step_ms} ms"))
            }
            FaultClass::ClockDrift => {
                let node = self.any_node();
                let step_ms = self.rng.gen_range(-400..=400);
                let left = self.rng.gen_range(4..30);
                self.later(0, Action::Drift { node, step_ms, left });
                self.clock_right_later(node);
                (node, format!("{step_ms} ms each {DRIFT_EVERY_MS} ms"))
            }
            FaultClass::WriteFails | FaultClass::SyncFails => {
                let node = self.running()?;
                let kind = if class == FaultClass::WriteFails { OperationKind::Write } else { OperationKind::Sync };
                let path = *["/journal/", "/groups/", ""].choose(&mut self.rng)?;
                let skip = self.rng.gen_range(0..8);
                let effect = FaultEffect::Fail(ErrorKind::Other);
                self.machine(node).disk().inject(Fault { kind, path_contains: path.to_owned(), skip, effect });
                self.may_end.insert(node);
                (node, format!("{kind:?} of {path:?} after {skip}"))
            }
            FaultClass::RotBit | FaultClass::RotBlock | FaultClass::RotFile => return self.rot(class),
            FaultClass::DiskFull => {
                let node = self.running()?;
                let nodes = if self.rng.gen_bool(0.4) { self.others(0) } else { vec![node] };
                // Hardly anything at times: not even a new group finds room then.
                let share = match self.rng.gen_range(0..8) {
                    0 => 0.0,
                    1 => self.rng.gen_range(0.0..0.1),
                    _ => self.rng.gen_range(0.3..1.1),
                };
                if share == 0.0 {
                    self.make_topic();
                }
                for node in &nodes {
                    let disk = self.machine(*node).disk();
                    let free = (self.options.reserve_bytes() as f64 * share) as u64;
                    disk.set_capacity(Some(disk.bytes_used() + free));
                    self.may_end.insert(*node);
                    self.full.insert(*node);
                    let ms = self.rng.gen_range(1_500..7_000);
                    self.later(ms, Action::Room { node: *node });
                }
                (node, format!("{nodes:?}, {share:.2} of the reserve is left"))
            }
            FaultClass::DiskSlow if self.rng.gen_bool(0.5) => {
                // What is read alone: files go under whoever is about to open them.
                let node = self.running().filter(|node| !self.hung.contains(node))?;
                let machine = self.machine(node);
                let longest = Duration::from_millis(self.rng.gen_range(500..4_000));
                machine.disk().set_delays(OperationKind::Read, Duration::ZERO..=longest);
                let ms = self.rng.gen_range(3_000..10_000);
                self.later(ms, Action::UsualDisk { node, life: machine.life() });
                self.trim_what_is_read(node);
                (node, format!("reads, up to {longest:?} for {ms} ms"))
            }
            FaultClass::DiskSlow => {
                let node = self.running().filter(|node| !self.hung.contains(node))?;
                let machine = self.machine(node);
                let longest = Duration::from_millis(self.rng.gen_range(20..1_500));
                for kind in [OperationKind::Sync, OperationKind::Write, OperationKind::Read] {
                    machine.disk().set_delays(kind, Duration::ZERO..=longest);
                }
                let ms = self.rng.gen_range(1_000..6_000);
                self.later(ms, Action::UsualDisk { node, life: machine.life() });
                (node, format!("up to {longest:?} for {ms} ms"))
            }
            FaultClass::DiskHung => {
                let node = self.running()?;
                let machine = self.machine(node);
                for kind in [OperationKind::Sync, OperationKind::Write, OperationKind::SyncDir, OperationKind::Rename] {
                    machine.disk().set_delay(kind, Duration::from_secs(3_600));
                }
                self.aims.disk_hangs(node);
                self.hung.insert(node);
                self.may_end.insert(node);
                if self.rng.gen_bool(0.7) {
                    let ms = self.rng.gen_range(3_000..12_000);
                    self.later(ms, Action::EndHung { node, life: machine.life() });
                }
                (node, String::new())
            }
            FaultClass::Reorder | FaultClass::Double | FaultClass::Membership => return None,
        })
    }

    /// Some read a log from its beginning on a node, and it is trimmed meanwhile. What they get nobody looks at: clients do that.
    fn trim_what_is_read(&mut self, node: u32) {
        let Some(log) = self.logs.choose(&mut self.rng).cloned() else { return };
        for _ in 0..3 {
            let log = log.clone();
            self.desk.spawn(async move {
                for _ in 0..4 {
                    let _ = doors::read(&log, node, From::Earliest(true), true, READ_PATIENCE).await;
                }
            });
        }
        let (client, late) = (self.desk_client.clone(), Duration::from_millis(self.rng.gen_range(300..3_000)));
        self.desk.spawn(async move {
            madsim::time::sleep(late).await;
            if let Ok(tail) = client.tail(&log.topic, log.partition, false).await {
                let request = wire::TrimRequest { topic: log.topic, partition: log.partition, offset: tail.tail.0 };
                let _ = doors::log(node).trim(request).await;
            }
        });
    }

    /// A topic more, which is deleted a while later.
    fn make_topic(&mut self) {
        let (client, name) = (self.desk_client.clone(), format!("crowded-{}", self.agenda_next));
        let late = Duration::from_millis(self.rng.gen_range(500..5_000));
        self.desk.spawn(async move {
            let _ = client.create_topic(&name, &NewTopic::default()).await;
            madsim::time::sleep(late).await;
            let _ = client.delete_topic(&name).await;
        });
    }

    fn weather_passes(&mut self) {
        let ms = self.rng.gen_range(500..5_000);
        self.later(ms, Action::UsualWeather);
    }

    fn clock_right_later(&mut self, node: u32) {
        // Long, at times, so that all the others get to know it and nobody may follow it any more.
        let longest = if self.rng.gen_bool(0.4) { 30_000 } else { 12_000 };
        let ms = self.rng.gen_range(1_000..longest);
        self.later(ms, Action::ClockRight(node));
    }

    /// Cuts pairs so that nobody is alone.
    fn partial_partition(&mut self, ms: std::ops::Range<u64>) -> (u32, String) {
        let nodes: Vec<u32> = (1..=self.options.nodes).collect();
        let middle = *nodes.choose(&mut self.rng).expect("there are nodes");
        // All can reach the one in the middle; of the other pairs some can't reach each other.
        let mut cut = Cut::new();
        let mut pairs = Vec::new();
        for (at, one) in nodes.iter().enumerate() {
            for other in &nodes[at + 1..] {
                if *one != middle && *other != middle && (nodes.len() == 3 || self.rng.gen_bool(0.6)) {
                    cut.extend(between(&self.sims(&[*one]), &self.sims(&[*other])));
                    pairs.push((*one, *other));
                }
            }
        }
        self.cut_for(cut, ms);
        (0, format!("{pairs:?}"))
    }

    fn split_brain(&mut self) -> (u32, String) {
        let mut nodes: Vec<u32> = (1..=self.options.nodes).collect();
        nodes.shuffle(&mut self.rng);
        let sizes: &[usize] = match (nodes.len(), self.rng.gen_range(0..3)) {
            (3, _) => &[2, 1],
            (_, 0) => &[2, 2, 1],
            _ => &[3, 2],
        };
        let mut sides: Vec<Vec<u32>> = Vec::new();
        for size in sizes {
            sides.push(nodes.drain(..*size).collect());
        }
        let mut cut = Cut::new();
        for (at, side) in sides.iter().enumerate() {
            for other in &sides[at + 1..] {
                cut.extend(between(&self.sims(side), &self.sims(other)));
            }
        }
        self.cut_for(cut, 1_000..9_000);
        (0, format!("{sides:?}"))
    }

    fn transfer(&mut self) -> Option<String> {
        let log = self.logs.choose(&mut self.rng)?.clone();
        let (client, to) = (self.desk_client.clone(), self.any_node());
        let text = format!("{} to node {to}", log.key);
        self.desk.spawn(async move {
            let _ = client.transfer_leader(&log.topic, log.partition, to).await;
        });
        Some(text)
    }

    /// Ends a node, if it runs, and damages one of its files.
    fn rot(&mut self, class: FaultClass) -> Option<(u32, String)> {
        let node = self.may_be_damaged()?;
        let machine = self.machine(node);
        let disk = machine.disk();
        // A class of files first: there are many more segments than identities.
        let mut classes: BTreeMap<&'static str, Vec<PathBuf>> = BTreeMap::new();
        for path in disk.files() {
            classes.entry(class_of(&path)).or_default().push(path);
        }
        let kinds: Vec<&'static str> = classes.keys().copied().collect();
        let path = classes[*kinds.choose(&mut self.rng)?].choose(&mut self.rng)?.clone();
        machine.end(End::Kill);
        let disk = machine.disk();
        let content = disk.content(&path)?;
        let used = content.iter().rposition(|byte| *byte != 0).map_or(content.len(), |last| last + 1).max(1) as u64;
        let what = match class {
            FaultClass::RotBit => {
                let position = self.rng.gen_range(0..used);
                let mask = 1 << self.rng.gen_range(0..8);
                if !disk.flip(&path, position, mask) {
                    return None;
                }
                format!("bit {mask:08b} of byte {position}")
            }
            FaultClass::RotBlock => {
                let len = *[512, 4_096].choose(&mut self.rng)?;
                let position = self.rng.gen_range(0..used) / len * len;
                let len = len.min((content.len() as u64).saturating_sub(position));
                if len == 0 || !disk.zero_block(&path, position, len) {
                    return None;
                }
                format!("{len} bytes from {position}")
            }
            _ => match self.old_disks.get(&node).filter(|_| self.rng.gen_bool(0.5)) {
                Some(old) if disk.restore_file_from(old, &path) => "an old one is back".to_owned(),
                _ if disk.lose_file(&path) => "is gone".to_owned(),
                _ => return None,
            },
        };
        self.damaged.insert(node);
        machine.rotted(&path);
        self.stage.hit(&format!("rot.{}", class_of(&path)));
        Some((node, format!("{} {what}", path.display())))
    }

    /// Whether a calm can be had: with too many nodes gone for good a cut could leave no majority.
    pub fn may_calm(&self) -> bool {
        !self.options.over_budget
    }

    /// No damage is done until the calm.
    pub fn spare(&mut self) {
        self.sparing = true;
    }

    /// Heals all, and answers what is to be wrong all the same, with the node concerned. With a damaged node nothing is: the others may be the
    /// bare majority.
    pub fn calm(&mut self) -> Option<(Trial, u32)> {
        self.heal();
        self.sparing = false;
        if !self.damaged.is_empty() {
            return None;
        }
        let trial = *[Trial::Cut, Trial::Cut, Trial::Full, Trial::Alone].choose(&mut self.rng)?;
        Some((trial, self.any_node()))
    }

    /// Cuts what must not keep a majority from going on.
    pub fn cut_in_calm(&mut self) {
        let leader = self.any_leader().filter(|_| self.rng.gen_bool(0.4));
        let text = match leader {
            Some(leader) => {
                let mut cut = between(&self.sims(&[leader]), &self.sims(&self.others(leader)));
                let leader_sim = self.machine(leader).sim;
                if self.rng.gen_bool(0.5) {
                    cut.retain(|(from, _)| *from == leader_sim);
                }
                self.network.cut(&cut);
                format!("leader {leader} is cut off")
            }
            None => {
                let (one, mut cut) = (self.any_node(), Cut::new());
                let others = self.others(one);
                let mut far: Vec<u32> = others.clone();
                far.shuffle(&mut self.rng);
                // One node reaches one of the others and no more; all others reach each other.
                for other in &far[1..] {
                    cut.extend(between(&self.sims(&[one]), &self.sims(&[*other])));
                }
                self.network.cut(&cut);
                format!("node {one} reaches node {} alone", far[0])
            }
        };
        self.stage.hit("calm.cut");
        self.event(0, "calm", || text);
    }

    /// All disks have less room than their reserve, or as much as they want again.
    pub fn fill(&mut self, full: bool) {
        let share = self.rng.gen_range(0.4..0.9);
        for machine in self.machines.clone() {
            let disk = machine.disk();
            let free = (self.options.reserve_bytes() as f64 * share) as u64;
            disk.set_capacity(full.then(|| disk.bytes_used() + free));
            if full {
                self.may_end.insert(machine.id);
                self.full.insert(machine.id); // a life that begins meanwhile may end, too
            } else {
                self.full.remove(&machine.id);
            }
        }
        self.stage.hit("calm.full");
        self.event(0, "calm", || format!("disks are full: {full}, {share:.2} of the reserve is left"));
    }

    /// How often each machine was started, and whether it runs.
    pub fn lives(&self) -> Vec<(u32, bool)> {
        self.machines.iter().map(|machine| (machine.life(), machine.is_running())).collect()
    }

    /// Cuts a node off from all others, not from clients.
    pub fn isolate(&mut self, node: u32) {
        let cut = between(&self.sims(&[node]), &self.sims(&self.others(node)));
        self.network.cut(&cut);
        self.stage.hit("calm.alone");
        self.event(node, "calm", || "is cut off from all others".to_owned());
    }

    /// Mends all links.
    pub fn mend(&mut self) {
        self.network.mend_all();
    }

    /// Things go wrong again.
    pub fn go_on(&mut self) {
        self.network.mend_all();
        self.healing = false;
        self.later(200, Action::Strike);
    }

    /// Nothing new goes wrong, and what is wrong is put right.
    pub fn heal(&mut self) {
        self.healing = true;
        self.event(0, "heal", String::new);
        self.agenda.clear();
        self.aims.disarm();
        self.network.mend_all();
        set_weather(0.0, &self.options.latency);
        for machine in self.machines.clone() {
            let node = machine.id;
            self.set_clock(node, 0);
            machine.resume();
            let disk = machine.disk();
            disk.clear_faults();
            disk.set_capacity(None);
            machine.usual_delays(&disk);
            if self.may_end.contains(&node) {
                machine.end(End::Kill); // what hangs goes on hanging
            }
            if machine.process() == Process::Down {
                self.later(100, Action::Start(node));
            }
        }
    }
}

/// What kind of file it is.
fn class_of(path: &std::path::Path) -> &'static str {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match name {
        "IDENTITY" | "IDENTITY.new" => "identity",
        "marks" => "marks",
        _ if name.starts_with("journal-") => "journal",
        _ if name.starts_with("identity-") => "journal-identity",
        _ if name.starts_with("state-") => "state",
        _ if name.ends_with(".seg") => "segment",
        _ => "other",
    }
}
