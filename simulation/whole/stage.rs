//! What all parts of a run share: the trace, the counters, the rules, the history, the first broken rule.
//!
//! One lock, taken for a moment and never across an await. Whoever holds it calls nothing that could take it again.

use super::options::Options;
use crate::coverage::Coverage;
use crate::history::History;
use crate::rules::log_time::{LogTimes, LOG_TIME};
use crate::rules::{Down, Rules};
use crate::run::Violation;
use crate::trace::{Detail, Trace};
use balsa::clock::Clock;
use balsa::group::observe::Observed;
use balsa::ids::GroupId;
use raft::eraftpb::Message;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// See the module's text. Clones are handles on the same one.
#[derive(Clone)]
pub struct Stage(Arc<Mutex<Kept>>);

/// What is kept of a run.
pub struct Kept {
    pub trace: Trace,
    pub coverage: Coverage,
    pub history: History,
    pub rules: Rules,
    log_times: LogTimes,
    /// By how much the true time is ahead of the runtime's: hours passed, and nobody was running.
    slept_ms: u64,
    /// The first rule that was broken, and the nodes concerned.
    pub broken: Option<(&'static str, String, Vec<u32>)>,
    /// Faults that struck.
    pub faults: u64,
    /// Operations that clients began.
    pub operations: u64,
}

impl Stage {
    pub fn new(detail: Detail, options: &Options) -> Stage {
        let round_bytes_max = options.sizes.journal.round_bytes_max as u64;
        let kept = Kept {
            trace: Trace::new(detail),
            coverage: Coverage::default(),
            history: History::default(),
            rules: Rules::new(round_bytes_max),
            log_times: LogTimes::new(options.nodes, options.tick_ms),
            slept_ms: 0,
            broken: None,
            faults: 0,
            operations: 0,
        };
        Stage(Arc::new(Mutex::new(kept)))
    }

    pub fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened on a node (0: to the world or a client).
    pub fn event(&self, node: u32, kind: &'static str, numbers: &[u64], text: impl FnOnce() -> String) {
        self.lock().trace.event(now_us(), node, kind, numbers, text);
    }

    pub fn hit(&self, name: &str) {
        self.lock().coverage.hit(name);
    }

    /// A rule was broken; only the first one counts.
    pub fn broke(&self, rule: &'static str, what: String, nodes: &[u32]) {
        let mut kept = self.lock();
        kept.trace.event(now_us(), 0, "broken", &[], || format!("{rule}: {what}"));
        kept.broken.get_or_insert((rule, what, nodes.to_vec()));
    }

    /// A step of a replica: into the trace, and past the rules.
    pub fn observe(&self, now_us: u64, node: u32, group: GroupId, observed: &Observed<'_>) {
        let mut kept = self.lock();
        kept.trace_step(now_us, node, group, observed);
        if kept.broken.is_none() {
            kept.rules.observe(now_us, node, group, observed);
            let mut broken = kept.rules.violation().cloned().map(|broken| (broken.rule, broken.what, broken.nodes));
            let true_ms = kept.true_ms();
            if let Err(what) = kept.log_times.observe(now_us, true_ms, node, group, observed) {
                broken.get_or_insert((LOG_TIME, what, vec![node]));
            }
            if let Some((rule, what, _)) = &broken {
                kept.trace.event(now_us, node, "broken", &[], || format!("{rule}: {what}"));
            }
            kept.broken = broken;
        }
    }

    /// A node's clock is off by so much from now on.
    pub fn clock(&self, node: u32, skew_ms: i64) {
        self.lock().log_times.clock(now_us(), node, skew_ms);
    }

    /// Time passes, and nobody was running meanwhile.
    pub fn slept(&self, ms: u64) -> u64 {
        let mut kept = self.lock();
        kept.slept_ms += ms;
        kept.slept_ms
    }

    /// The true time, which no node's clock has any say in.
    pub fn true_ms(&self) -> u64 {
        self.lock().true_ms()
    }

    /// A node's process ended.
    pub fn node_down(&self, node: u32, how: Down) {
        let mut kept = self.lock();
        kept.rules.node_down(node, how);
        kept.log_times.node_down(node);
    }

    pub fn is_broken(&self) -> bool {
        self.lock().broken.is_some()
    }
}

impl Kept {
    fn true_ms(&self) -> u64 {
        Clock::default().now().0 + self.slept_ms
    }

    fn trace_step(&mut self, now_us: u64, node: u32, group: GroupId, observed: &Observed<'_>) {
        let message = |kind: &str, message: &Message| {
            format!(
                "{group} {kind} {:?} {:x}->{:x} term {} index {} log term {} commit {} entries {} reject {}",
                message.msg_type(),
                message.from,
                message.to,
                message.term,
                message.index,
                message.log_term,
                message.commit,
                message.entries.len(),
                message.reject
            )
        };
        let numbers = |message: &Message| {
            let Message { msg_type, from, to, term, index, log_term, commit, entries, reject, .. } = message;
            [
                group.0,
                *msg_type as u64,
                *from,
                *to,
                *term,
                *index,
                *log_term,
                *commit,
                entries.len() as u64,
                u64::from(*reject),
            ]
        };
        match observed {
            Observed::Opened { replica, recovered, created } => {
                let (base, count) = (recovered.base.index.0, recovered.entries.len() as u64);
                let numbers = [group.0, replica.0, base, count, recovered.hard_state.term, u64::from(*created)];
                self.trace.event(now_us, node, "opened", &numbers, || {
                    format!("{group} replica {:x} base {base} entries {count} {:?}", replica.0, recovered.hard_state)
                });
            }
            Observed::Taken { effects, term, leads, .. } => {
                let (entries, frames) = (effects.write.entries.len() as u64, effects.frames.len() as u64);
                let numbers = [group.0, effects.number, term.0, u64::from(*leads), entries, frames];
                self.trace.event(now_us, node, "taken", &numbers, || {
                    let last = effects.write.entries.last().map_or(0, |entry| entry.index);
                    let applied = effects.frames.last().map_or(0, |frame| frame.index.0);
                    format!(
                        "{group} #{} term {term} leads {leads} write {entries} to {last} {:?} apply {frames} to {applied}",
                        effects.number, effects.write.hard_state
                    )
                });
            }
            Observed::Persisted { number } => {
                self.trace.event(now_us, node, "persisted", &[group.0, *number], || format!("{group} #{number}"));
            }
            Observed::Sent { message: sent } => {
                self.trace.event(now_us, node, "sent", &numbers(sent), || message("sent", sent));
            }
            Observed::Received { message: received, .. } => {
                self.trace.event(now_us, node, "received", &numbers(received), || message("received", received));
            }
            Observed::Removed => self.trace.event(now_us, node, "removed", &[group.0], || format!("{group}")),
        }
    }

    /// The first broken rule, with the last events of the nodes concerned and of the world.
    pub fn violation(&self) -> Option<Violation> {
        let (rule, what, nodes) = self.broken.clone()?;
        let concerned: Vec<u32> = if nodes.is_empty() { nodes } else { nodes.into_iter().chain([0]).collect() };
        Some(Violation { rule, what, events: self.trace.last_events(&concerned) })
    }
}

/// Simulated microseconds since the run began.
pub fn now_us() -> u64 {
    madsim::time::TimeHandle::try_current().map_or(0, |time| time.elapsed().as_micros() as u64)
}
