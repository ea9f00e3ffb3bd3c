//! The end of a run: everything is healed, all goes on within a bound, all replicas become alike, and what they hold is read through and
//! held against what was agreed on; once more after all of them were restarted.

use super::hosted::Hosted;
use super::process::Process;
use super::shared::End;
use super::world::World;
use crate::rules::kept::mark_of;
use balsa::group::machine::StateMachine;
use balsa::ids::{GroupId, Offset, ReplicaId};
use balsa::segments::{Located, LocatedEntries, SegmentsError};
use futures::FutureExt;
use std::future::Future;

/// How long healing may take.
const HEALING_US: u64 = 120_000_000;
/// Between two looks whether it has.
const LOOK_US: u64 = 200_000;
/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;

impl World {
    /// Heals the world and holds everything against everything.
    pub fn finish(&mut self) {
        self.heal();
        if self.shared.options.over_budget {
            self.run_for(20_000_000);
            return self.compare_what_is_there();
        }
        self.run_for(2_000_000);
        self.clients.closing = true;
        self.settle("after all was healed");
        self.compare();
        if self.shared.violation().is_some() {
            return;
        }
        for node in 1..=self.shared.options.nodes {
            self.end(node, End::PowerLoss);
        }
        self.settle("after all were restarted");
        self.compare();
    }

    fn run_for(&mut self, time_us: u64) {
        let until = self.shared.now + time_us;
        while self.shared.now < until && self.step() {}
    }

    fn settle(&mut self, when: &str) {
        let deadline = self.shared.now + HEALING_US;
        while self.shared.violation().is_none() {
            let Some(reason) = self.unsettled() else { return };
            if self.shared.now > deadline {
                let groups: Vec<String> = self.found.keys().map(|group| self.describe_group(*group)).collect();
                let (seconds, groups) = (HEALING_US / 1_000_000, groups.join("; "));
                return self.shared.broke(
                    "liveness",
                    &[],
                    format!("{when} {seconds} s passed, and {reason}: {groups}"),
                );
            }
            self.run_for(LOOK_US);
        }
    }

    /// What is not yet as it should be.
    fn unsettled(&mut self) -> Option<String> {
        for node in 1..=self.shared.options.nodes {
            if !self.is_up(node) {
                return Some(format!("node {node} is down"));
            }
            if self.nodes[node as usize].rotted {
                self.end(node, End::Kill);
                self.wipe(node);
                return Some(format!("node {node} is rotten"));
            }
        }
        if !self.clients.are_done() {
            return Some("a client waits".to_owned());
        }
        let groups: Vec<GroupId> = self.found.keys().copied().collect();
        groups.into_iter().find_map(|group| self.unsettled_group(group))
    }

    fn unsettled_group(&self, group: GroupId) -> Option<String> {
        let Some(leader) = self.leader_of(group) else { return Some(format!("nobody leads group {group}")) };
        let hosted =
            |node: u32| self.nodes[node as usize].process.as_ref().and_then(|process| process.groups.get(&group));
        let leading = &hosted(leader)?.replica;
        let status = leading.status();
        let mut wanted: Vec<u64> = Vec::new();
        for node in &self.operator.wanted[&group] {
            wanted.extend(self.nodes[*node as usize].home.ids.get(&group).map(|id| id.0));
        }
        wanted.sort_unstable();
        let conf = leading.conf_state();
        if conf.voters != wanted || !conf.learners.is_empty() || !conf.voters_outgoing.is_empty() || !status.settled {
            return Some(format!(
                "group {group} has members {conf:?} instead of {wanted:?}, settled: {}",
                status.settled
            ));
        }
        if status.applied != status.last {
            return Some(format!("leader {leader} of group {group} applied {} of {}", status.applied, status.last));
        }
        for node in &self.operator.wanted[&group] {
            let Some(Hosted { replica, segments, .. }) = hosted(*node) else {
                return Some(format!("node {node} hosts no group {group}"));
            };
            if replica.applied_index() != status.applied {
                return Some(format!(
                    "node {node} applied {} of group {group}'s {}",
                    replica.applied_index(),
                    status.applied
                ));
            }
            // A segment without any offset, at a start of zero, was not trimmed.
            let start = replica.machine().log_start();
            let is_trimmed = |(last, tail)| tail > Offset::ZERO && tail <= start && last < replica.applied_index();
            if segments.oldest_sealed().is_some_and(is_trimmed) {
                return Some(format!("node {node} keeps a segment of group {group} below its start, {start}"));
            }
        }
        None
    }

    /// A group's replicas in few words, for who reads the broken rule.
    fn describe_group(&self, group: GroupId) -> String {
        let mut text = format!("group {group}");
        for (node, at) in self.nodes.iter().enumerate().skip(1) {
            let Some(hosted) = at.process.as_ref().and_then(|process| process.groups.get(&group)) else { continue };
            let (status, conf) = (hosted.replica.status(), hosted.replica.conf_state());
            let ids = |ids: &[u64]| ids.iter().map(|id| ReplicaId(*id).to_string()).collect::<Vec<_>>().join(" ");
            text += &format!(
                ", n{node} {} {:?} term {} log {}..{} commit {} applied {} [{} | {} | {}]{}{}",
                status.id,
                status.role,
                status.term,
                status.first,
                status.last,
                status.commit,
                status.applied,
                ids(&conf.voters),
                ids(&conf.voters_outgoing),
                ids(&conf.learners),
                if status.may_lead { "" } else { " may not lead" },
                if hosted.held.is_some() { " held" } else { "" },
            );
        }
        text
    }

    /// All replicas are alike, are what follows from the whole log, and give all records to readers.
    fn compare(&mut self) {
        if self.shared.violation().is_some() {
            return;
        }
        let groups: Vec<GroupId> = self.found.keys().copied().collect();
        for group in groups {
            for node in self.operator.wanted[&group].clone() {
                if let Err((rule, what)) = self.compare_replica(group, node) {
                    return self.shared.broke(rule, &[node], format!("group {group} on node {node}: {what}"));
                }
            }
        }
    }

    /// Over the budget a replica may be gone, behind, or refuse; what it holds must still be what was agreed on.
    fn compare_what_is_there(&mut self) {
        for node in 1..=self.shared.options.nodes {
            let process = self.nodes[node as usize].process.as_ref();
            let hosted = process.into_iter().flat_map(|process| &process.groups);
            let differs = hosted.map(|(group, hosted)| (*group, self.compare_log(*group, hosted, process, true)));
            let differs =
                differs.collect::<Vec<_>>().into_iter().find_map(|(group, compared)| Some((group, compared.err()?)));
            if let Some((group, (rule, what))) = differs {
                return self.shared.broke(rule, &[node], format!("group {group} on node {node}: {what}"));
            }
        }
    }

    /// Each entry that a replica keeps, from its oldest to the last it applied, is the one that was agreed on. `may_refuse`: not to give
    /// one is no wrong answer.
    fn compare_log(
        &self,
        group: GroupId,
        hosted: &Hosted,
        process: Option<&Process>,
        may_refuse: bool,
    ) -> Result<(), (&'static str, String)> {
        let Some(agreed) = self.shared.rules.agreed(group) else { return Ok(()) };
        let mut at = hosted.segments.first_index();
        let end = hosted.replica.applied_index().next();
        while at < end {
            let entries = match hosted.segments.entries(at, end, READ_BYTES as u64) {
                LocatedEntries::Cached(entries) => Ok(entries),
                LocatedEntries::Compacted { .. } => return Ok(()),
                LocatedEntries::Cold(read) => at_once(process, read.run()),
            };
            let entries = match entries {
                Ok(entries) if !entries.is_empty() => entries,
                _ if may_refuse => return Ok(()),
                Ok(_) => return Err(("read-wrong", format!("entry {at} of {end} is not there"))),
                Err(reason) => return Err(("read-wrong", format!("entry {at} can't be read: {reason}"))),
            };
            for entry in entries {
                let (term, digest) = mark_of(&entry);
                let committed = agreed.at(at.0).map(|committed| (committed.term, committed.digest));
                if entry.index != at.0 || committed.is_some_and(|committed| committed != (term, digest)) {
                    let what = format!("entry {}/{term} is read at {at}; another one was agreed on", entry.index);
                    return Err(("read-wrong", what));
                }
                at = at.next();
            }
        }
        Ok(())
    }

    fn compare_replica(&self, group: GroupId, node: u32) -> Result<(), (&'static str, String)> {
        let process = self.nodes[node as usize].process.as_ref();
        let Some(hosted) = process.and_then(|process| process.groups.get(&group)) else { return Ok(()) };
        let (Some(agreed), Some(ledger)) = (self.shared.rules.agreed(group), self.shared.ledgers.get(&group)) else {
            return Ok(());
        };
        let (replica, last) = (&hosted.replica, agreed.last());
        let chain = agreed.at(last).map(|committed| committed.chain);
        if replica.applied_index().0 != last || Some(replica.chain()) != chain {
            let what = format!(
                "it applied {} with chain {:?}; agreed are {last} and {chain:?}",
                replica.applied_index(),
                replica.chain()
            );
            return Err(("state-differs", what));
        }
        let expected = agreed.reference_digest(last);
        if expected.is_some_and(|expected| replica.machine().digest() != expected) {
            return Err(("state-differs", format!("its state at {last} is not what follows from the whole log")));
        }
        if agreed.configuration().voters != replica.conf_state().voters {
            return Err(("state-differs", format!("its configuration is {:?}", replica.conf_state())));
        }
        self.compare_log(group, hosted, process, false)?;
        if group == GroupId::METADATA {
            return Ok(());
        }
        let mut at = hosted.start().0;
        if hosted.segments.tail().0 != ledger.log.len() as u64 {
            let what = format!("its tail is {}; {} records were appended", hosted.segments.tail(), ledger.log.len());
            return Err(("read-wrong", what));
        }
        loop {
            let batches = match hosted.segments.locate(Offset(at), READ_BYTES) {
                Located::AtTail => return Ok(()),
                Located::Cached(batches) => batches,
                Located::Trimmed { start } => {
                    return Err(("read-wrong", format!("{at} is trimmed; the log starts at {start}")))
                }
                Located::Cold(read) => {
                    let read = at_once(process, read.run());
                    read.map_err(|reason| ("read-wrong", format!("{at} can't be read: {reason}")))?
                }
            };
            at = ledger.read(at, &batches)?;
        }
    }
}

/// A read of a node's disk with all gates open.
fn at_once<T>(process: Option<&Process>, read: impl Future<Output = Result<T, SegmentsError>>) -> Result<T, String> {
    process.inspect(|process| process.gate.set_open(true));
    let read = read.now_or_never();
    process.inspect(|process| process.gate.set_open(false));
    match read {
        Some(Ok(read)) => Ok(read),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("it does not come back".to_owned()),
    }
}
