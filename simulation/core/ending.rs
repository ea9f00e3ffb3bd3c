//! The end of a run: everything is healed, all goes on within a bound, all replicas become alike, and what they hold is read through and
//! held against what was agreed on; once more after all of them were restarted.

use super::shared::End;
use super::world::World;
use balsa::group::machine::StateMachine;
use balsa::ids::{GroupId, Offset, ReplicaId};
use balsa::segments::Located;
use futures::FutureExt;

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
            return self.run_for(20_000_000);
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
            let Some(replica) = hosted(*node).map(|hosted| &hosted.replica) else {
                return Some(format!("node {node} hosts no group {group}"));
            };
            if replica.applied_index() != status.applied {
                return Some(format!(
                    "node {node} applied {} of group {group}'s {}",
                    replica.applied_index(),
                    status.applied
                ));
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
                    process.inspect(|process| process.gate.set_open(true));
                    let read = read.run().now_or_never();
                    process.inspect(|process| process.gate.set_open(false));
                    match read {
                        Some(Ok(batches)) => batches,
                        Some(Err(error)) => return Err(("read-wrong", format!("{at} can't be read: {error}"))),
                        None => return Err(("read-wrong", format!("a read at {at} does not come back"))),
                    }
                }
            };
            at = ledger.read(at, &batches)?;
        }
    }
}
