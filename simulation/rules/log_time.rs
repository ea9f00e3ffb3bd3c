//! The rule for the log's own time: a node whose clock is far from all others' stamps nothing with it, and no leader's log time outruns its ticks.
//!
//! Fed with how far each clock is off, with who heard from whom, and with what leaders append. From these alone it reckons whether a leader
//! may take its clock for right: a node knows another's clock from the last message it got of it, and that may be older than the
//! jump of one of the two. Where a majority of what it can have heard speaks against its clock, the log's time may run no further ahead of the
//! true time than it was before; and no further, whatever was heard, once this leader has stamped with a clock that all agreed with. That
//! the log's time lags is no harm.

use balsa::group::entry;
use balsa::group::observe::Observed;
use balsa::ids::GroupId;
use std::collections::BTreeMap;

/// The rule's name.
pub const LOG_TIME: &str = "log-time";

/// Clocks nearer than this to each other may agree: the bound of the node, and what messages take.
const AGREE_MS: i64 = 9_000;
/// Clocks as near as this to each other agree, however late their messages are: a clock that is told late seems to be behind.
const SURELY_AGREE_MS: i64 = 500;
/// How far ahead the stamps of a node may be whose clock is as right as the bound of the node demands, or that counts its ticks: they come late,
/// and then at once.
const AHEAD_MS: i64 = 15_000;
/// A message that arrives so long after a jump was sent after it.
const ON_ITS_WAY_US: u64 = 3_000_000;
/// What was heard longer ago than this many ticks counts no more, in the node.
const REPORT_AGE_TICKS: u64 = 200;

/// A stamp that no clock accounts for, on an entry that is not committed yet.
#[derive(Clone, Copy)]
struct Suspect {
    node: u32,
    ahead_ms: i64,
}

/// See the module's text.
pub struct LogTimes {
    nodes: u32,
    report_age_us: u64,
    /// By how much each clock is off, and since when.
    clocks: BTreeMap<u32, (i64, u64)>,
    /// When the first heard of the second last.
    heard_us: BTreeMap<(u32, u32), u64>,
    /// By how much a group's log may be ahead, for its leaders had reason to trust their clocks.
    ahead_ms: BTreeMap<GroupId, i64>,
    /// By group and term: when its leader stamped for the first time with a clock that no other contradicted, and how far ahead that was.
    anchors: BTreeMap<(GroupId, u64), (u64, i64)>,
    /// By group, index and term.
    suspects: BTreeMap<(GroupId, u64, u64), Suspect>,
}

impl LogTimes {
    pub fn new(nodes: u32, tick_ms: u64) -> LogTimes {
        LogTimes {
            nodes,
            report_age_us: REPORT_AGE_TICKS * tick_ms * 1_000,
            clocks: BTreeMap::new(),
            heard_us: BTreeMap::new(),
            ahead_ms: BTreeMap::new(),
            anchors: BTreeMap::new(),
            suspects: BTreeMap::new(),
        }
    }

    /// From now on this node's clock is off by so much.
    pub fn clock(&mut self, now_us: u64, node: u32, skew_ms: i64) {
        self.clocks.insert(node, (skew_ms, now_us));
    }

    /// What the node had heard is forgotten.
    pub fn node_down(&mut self, node: u32) {
        self.heard_us.retain(|(by, _), _| *by != node);
    }

    /// A step of a replica. Answers what was seen if the rule is broken.
    pub fn observe(
        &mut self,
        now_us: u64,
        true_ms: u64,
        node: u32,
        group: GroupId,
        observed: &Observed<'_>,
    ) -> Result<(), String> {
        match observed {
            Observed::Received { from, .. } => {
                self.heard_us.insert((node, from.0), now_us);
                Ok(())
            }
            Observed::Taken { effects, term, leads, .. } => {
                for frame in &effects.frames {
                    self.committed(group, frame.index.0, frame.term.0)?;
                }
                let own = effects.write.entries.iter().filter(|entry| *leads && entry.term == term.0);
                for entry in own {
                    let Some(payload) = entry::decode(&entry.data) else { continue };
                    let ahead_ms = payload.timestamp.0 as i64 - true_ms as i64;
                    self.stamped(now_us, Suspect { node, ahead_ms }, (group, entry.index, entry.term));
                }
                Ok(())
            }
            Observed::Opened { .. } | Observed::Persisted { .. } | Observed::Sent { .. } | Observed::Removed => Ok(()),
        }
    }

    fn stamped(&mut self, now_us: u64, stamp: Suspect, at: (GroupId, u64, u64)) {
        let (group, _, term) = at;
        let before_ms = self.ahead_ms.get(&group).copied().unwrap_or_default();
        let anchor = self.anchors.get(&(group, term)).copied();
        // Ticks may be taken for an eighth more than they are.
        let bound_ms =
            anchor.map(|(since_us, ahead_ms)| ahead_ms.max(0) + ((now_us - since_us) / 8_000) as i64 + AHEAD_MS);
        let outruns = bound_ms.is_some_and(|bound_ms| stamp.ahead_ms > bound_ms);
        if stamp.ahead_ms > before_ms + AHEAD_MS && (outruns || !self.may_trust_its_clock(now_us, stamp.node)) {
            self.suspects.insert(at, stamp);
            return;
        }
        self.ahead_ms.insert(group, stamp.ahead_ms.max(before_ms));
        if anchor.is_none() && self.must_trust_its_clock(now_us, stamp.node) {
            self.anchors.insert((group, term), (now_us, stamp.ahead_ms));
        }
    }

    /// What never commits is nobody's time.
    fn committed(&mut self, group: GroupId, index: u64, term: u64) -> Result<(), String> {
        let Some(Suspect { node, ahead_ms }) = self.suspects.remove(&(group, index, term)) else { return Ok(()) };
        let skew_ms = self.clocks.get(&node).map_or(0, |(skew, _)| *skew);
        let before_ms = self.ahead_ms.get(&group).copied().unwrap_or_default();
        Err(format!(
            "entry {index} of group {group}, of term {term}, is {ahead_ms} ms ahead of the true time, the log was {before_ms} ms ahead; \
             nothing spoke for the clock of its leader, node {node}, which is off by {skew_ms} ms now"
        ))
    }

    /// Whether all clocks have agreed with this one for so long that it can have heard nothing else.
    fn must_trust_its_clock(&self, now_us: u64, node: u32) -> bool {
        let skew_ms = self.clocks.get(&node).map_or(0, |(skew_ms, _)| *skew_ms);
        let known_us = self.report_age_us + ON_ITS_WAY_US;
        let agrees = |(other_ms, since_us): &(i64, u64)| {
            (skew_ms - other_ms).abs() <= SURELY_AGREE_MS && (*since_us == 0 || now_us - since_us > known_us)
        };
        self.clocks.values().all(agrees)
    }

    /// Whether more of the nodes it can have heard may agree with its clock than disagree, itself included.
    fn may_trust_its_clock(&self, now_us: u64, node: u32) -> bool {
        let clock = |node: u32| self.clocks.get(&node).copied().unwrap_or_default();
        let (skew_ms, since_us) = clock(node);
        let (mut heard, mut agreeing) = (1, 1);
        for other in (1..=self.nodes).filter(|other| *other != node) {
            let (other_ms, other_since_us) = clock(other);
            let jump_us = since_us.max(other_since_us);
            let last_us = self.heard_us.get(&(node, other)).copied();
            let after_the_jump = jump_us == 0 || last_us.is_some_and(|last_us| last_us >= jump_us + ON_ITS_WAY_US);
            let outdated = now_us - jump_us > self.report_age_us + ON_ITS_WAY_US;
            let agrees = (skew_ms - other_ms).abs() <= AGREE_MS || !(after_the_jump || outdated);
            // What is about to count no more counts for the clock, not against it.
            let counts = last_us.is_some_and(|last_us| now_us - last_us < self.report_age_us - ON_ITS_WAY_US);
            heard += usize::from(agrees || counts);
            agreeing += usize::from(agrees);
        }
        agreeing > heard / 2
    }
}
