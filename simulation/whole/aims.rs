//! Faults aimed at events: looks on at every step of every replica and every operation of every disk, and strikes when the
//! event comes that a fault was armed for. Also knows who leads, and whether a node with a hung disk goes on leading.
//!
//! Strikes on the spot, on the task that does the thing: what it would have done next never happens. Some faults come a
//! moment later instead, so that what was just sent gets out.

use super::machine::{End, Happened, Machine, Watch};
use super::stage::{now_us, Stage};
use crate::faults::Trigger;
use balsa::disk::sim::{Operation, OperationKind};
use balsa::group::observe::Observed;
use balsa::ids::GroupId;
use raft::eraftpb::MessageType;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Events that this world aims at.
pub const TRIGGERS: &[Trigger] = &[
    Trigger::AfterVote,
    Trigger::BetweenWriteAndSync,
    Trigger::AfterSyncBeforeAnswer,
    Trigger::SegmentSeal,
    Trigger::FileRecycling,
    Trigger::Rename,
    Trigger::FirstEntryOfTerm,
    Trigger::MidTransfer,
    Trigger::SnapshotInstall,
    Trigger::BaseMoved,
    Trigger::GroupCreated,
];

/// A fault that waits for its event.
#[derive(Clone, Debug)]
pub struct Aim {
    pub trigger: Trigger,
    /// On this node; on any.
    pub node: Option<u32>,
    /// How many such events pass before it strikes.
    pub skip: u32,
    pub end: End,
    /// Zero: on the spot.
    pub after: Duration,
    /// Whom else it takes along.
    pub all: bool,
    /// Not any more after this moment.
    pub until_us: u64,
}

/// How long a node whose disk answers no more may go on leading, from its first write that is not answered: the first bound of the
/// node, and time to notice.
const HUNG_LEADER: Duration = Duration::from_millis(3_500);

#[derive(Default)]
struct Seen {
    armed: Vec<Aim>,
    /// Who leads a group, and since which term.
    leaders: BTreeMap<GroupId, (u64, u32)>,
    /// Nodes whose disk hangs, and since when a write of theirs waits.
    hung: BTreeMap<u32, Option<u64>>,
}

/// See the module's text.
pub struct Aims {
    stage: Stage,
    told: mpsc::UnboundedSender<Happened>,
    seen: Mutex<Seen>,
}

impl Aims {
    pub fn new(stage: Stage, told: mpsc::UnboundedSender<Happened>) -> Aims {
        Aims { stage, told, seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn arm(&self, aim: Aim) {
        self.seen().armed.push(aim);
    }

    pub fn disarm(&self) {
        self.seen().armed.clear();
    }

    pub fn leader_of(&self, group: u64) -> Option<u32> {
        self.seen().leaders.get(&GroupId(group)).map(|(_, node)| *node)
    }

    pub fn disk_hangs(&self, node: u32) {
        self.seen().hung.insert(node, None);
    }

    pub fn disk_answers(&self, node: u32) {
        self.seen().hung.remove(&node);
    }

    /// A node stood still, and notices nothing of what it waited for meanwhile.
    pub fn resumed(&self, node: u32) {
        if let Some(Some(waits)) = self.seen().hung.get_mut(&node) {
            *waits = now_us();
        }
    }

    /// An event happened at a node: whatever was armed for it strikes.
    fn happened(&self, machine: &Machine, trigger: Trigger) {
        let now = now_us();
        let struck = {
            let mut seen = self.seen();
            seen.armed.retain(|aim| aim.until_us > now);
            let mut struck = None;
            for (at, aim) in seen.armed.iter_mut().enumerate() {
                if aim.trigger != trigger || aim.node.is_some_and(|node| node != machine.id) {
                    continue;
                }
                if aim.skip == 0 {
                    struck = Some(at);
                    break;
                }
                aim.skip -= 1;
            }
            struck.map(|at| seen.armed.remove(at))
        };
        let Some(aim) = struck else { return };
        {
            let mut kept = self.stage.lock();
            kept.faults += 1;
            kept.coverage.hit(&format!("trigger.{trigger}"));
            let numbers = [trigger as u64, aim.end as u64, aim.after.as_micros() as u64, u64::from(aim.all)];
            kept.trace.event(now, machine.id, "trigger", &numbers, || format!("{aim:?}"));
        }
        if aim.after.is_zero() {
            machine.end(aim.end);
        } else {
            let _ = self.told.send(Happened::EndLater { node: machine.id, end: aim.end, after: aim.after });
        }
        if aim.all {
            let _ = self.told.send(Happened::EndAll { end: aim.end });
        }
    }

    fn note_leader(&self, machine: &Machine, group: GroupId, term: u64, leads: bool, writes: bool) {
        let mut seen = self.seen();
        if leads {
            let known = seen.leaders.entry(group).or_insert((term, machine.id));
            if known.0 <= term {
                *known = (term, machine.id);
            }
        }
        let Some(waits) = seen.hung.get_mut(&machine.id) else { return };
        if writes && waits.is_none() {
            *waits = Some(now_us());
        }
        let too_long = waits.is_some_and(|since| now_us() - since > HUNG_LEADER.as_micros() as u64);
        drop(seen);
        if leads && too_long {
            let what =
                format!("node {} leads group {group}, though its disk has answered no write for long", machine.id);
            self.stage.broke("hung-disk-leads", what, &[machine.id]);
        }
    }
}

impl Watch for Aims {
    fn step(&self, machine: &Machine, group: GroupId, observed: &Observed<'_>) {
        match observed {
            Observed::Opened { created: true, .. } => self.happened(machine, Trigger::GroupCreated),
            Observed::Taken { effects, term, leads, .. } => {
                let write = &effects.write;
                let writes = !write.entries.is_empty() || write.hard_state.is_some() || write.base.is_some();
                self.note_leader(machine, group, term.0, *leads, writes);
                let votes = effects
                    .send_after_sync
                    .iter()
                    .any(|message| message.msg_type() == MessageType::MsgRequestVoteResponse && !message.reject);
                if votes {
                    self.happened(machine, Trigger::AfterVote);
                }
                let first = |entry: &raft::eraftpb::Entry| entry.term == term.0 && entry.data.is_empty();
                if *leads && write.entries.iter().any(first) {
                    self.happened(machine, Trigger::FirstEntryOfTerm);
                }
                if effects.installed {
                    self.happened(machine, Trigger::SnapshotInstall);
                }
            }
            Observed::Sent { message } => match message.msg_type() {
                MessageType::MsgRequestVoteResponse if !message.reject => self.happened(machine, Trigger::AfterVote),
                MessageType::MsgTimeoutNow => self.happened(machine, Trigger::MidTransfer),
                _ => {}
            },
            Observed::Received { message, .. } if message.msg_type() == MessageType::MsgTimeoutNow => {
                self.happened(machine, Trigger::MidTransfer);
            }
            Observed::Received { .. } | Observed::Opened { .. } | Observed::Persisted { .. } | Observed::Removed => {}
        }
    }

    fn operation(&self, machine: &Machine, operation: &Operation) {
        let path = operation.path.to_string_lossy();
        let journal = path.contains("/journal/journal-");
        let segment = path.ends_with(".seg");
        let trigger = match operation.kind {
            OperationKind::Write if journal && operation.position == 0 => Trigger::FileRecycling,
            OperationKind::Write if journal => Trigger::BetweenWriteAndSync,
            OperationKind::Sync if journal => Trigger::AfterSyncBeforeAnswer,
            OperationKind::Sync if segment => Trigger::BaseMoved,
            OperationKind::SetLen if segment => Trigger::SegmentSeal,
            OperationKind::Remove if journal => Trigger::FileRecycling,
            OperationKind::Rename => Trigger::Rename,
            _ => return,
        };
        self.happened(machine, trigger);
    }
}
