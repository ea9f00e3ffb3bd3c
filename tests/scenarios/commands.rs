//! The commands of the scenarios. `docs/scenarios.md` lists them.

use super::cluster::{genesis, id_of, Cluster};
use super::words;
use balsa::group::log_time::ClockTrust;
use balsa::group::membership::MemberChange;
use balsa::group::replica::{Replica, Role};
use balsa::ids::{NodeId, ReplicaId};
use bytes::Bytes;
use raft::eraftpb::{Entry, Message, MessageType};
use std::collections::BTreeMap;

/// A scenario under way.
#[derive(Default)]
pub struct Stage {
    pub cluster: Cluster,
    founders: (Vec<u64>, Vec<u64>),
    pub copies: BTreeMap<String, Message>,
    tokens: u64,
    repeated: u64,
}

impl Stage {
    /// Performs a command; returns what it led to.
    pub fn run(&mut self, line: &str) -> Vec<String> {
        let (line, wordy) = match line.strip_prefix("quiet ") {
            Some(rest) => (rest, false),
            None => (line, true),
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let (command, rest) = words.split_first().expect("a command");
        self.cluster.wordy = wordy && *command != "settle" && !["rounds", "many"].contains(command);
        self.perform(command, rest);
        let mut told = std::mem::take(&mut self.cluster.told);
        if told.is_empty() {
            told.push("ok".to_owned());
        }
        told
    }

    /// Whether a node was there from the start.
    pub fn is_founder(&self, node: u64) -> bool {
        self.founders.0.contains(&node)
    }

    /// The scenario is over; the rules held at each step.
    pub fn end(&mut self) {
        self.cluster.told.clear();
    }

    fn perform(&mut self, command: &str, rest: &[&str]) {
        match (command, rest) {
            ("cluster", [voters, options @ ..]) => self.found(number(voters), options),
            ("host", [node]) => self.cluster.add(number(node), genesis(&self.founders.0, &self.founders.1)),
            ("tick", [nodes, count @ ..]) => self.tick(nodes, count),
            ("rounds", [count]) => self.rounds(number(count)),
            ("campaign", [node]) => self.campaign(number(node)),
            ("deliver", [link, count @ ..]) => self.deliver(link, count),
            ("settle", []) => self.cluster.settle(),
            ("drop", [link, count @ ..]) => self.drop(link, count),
            ("copy", [link, "as", name]) => self.copy(link, name),
            ("late", [name]) => self.late(name),
            ("cut", groups) => self.cut(&groups.join(" ")),
            ("heal", []) => self.cluster.cut.clear(),
            ("slow", [node]) => self.node(node).slow = true,
            ("fast", [node]) => {
                let node = number(node);
                while self.cluster.sync(node) {}
                self.cluster.nodes.get_mut(&node).expect("a node").slow = false;
            }
            ("sync", [node, count @ ..]) => {
                for _ in 0..count_of(count) {
                    assert!(self.cluster.sync(number(node)), "nothing to sync");
                }
            }
            ("propose", [node, texts @ ..]) => self.propose(number(node), texts),
            ("many", [node, count]) => {
                for text in 0..number(count) {
                    self.propose(number(node), &[&format!("m{text}")]);
                    self.cluster.settle();
                }
                let answers = self.cluster.told.len();
                self.cluster.told = vec![format!("{answers} lines of answers")];
            }
            ("read", [node]) => self.read(number(node)),
            ("crash", [node]) => self.cluster.crash(number(node)),
            ("destroy", [node]) => self.cluster.destroy(number(node)),
            ("restart", [node]) => self.cluster.start(number(node)),
            ("roll", [node]) => self.cluster.roll(number(node)),
            ("trim", [node]) => self.cluster.trim(number(node)),
            ("fetch", [node]) => assert!(self.cluster.fetch(number(node)), "nothing to fetch"),
            ("change", [node, steps @ ..]) => self.change(number(node), &steps.join(" ")),
            ("transfer", [link]) => self.transfer(link),
            ("lost", [node, peer]) => {
                let peer = NodeId(number(peer) as u32);
                self.cluster.act(number(node), |replica| replica.leader_lost(peer));
            }
            ("unreachable", [node, peer]) => {
                let peer = id_of(number(peer));
                self.cluster.act(number(node), |replica| replica.report_unreachable(peer));
            }
            ("lead", [node, may]) => {
                self.cluster.act(number(node), |replica| replica.set_may_lead(*may == "on"));
            }
            ("sleep", [node]) => self.sleep(number(node)),
            ("wake", [node]) => self.cluster.act(number(node), Replica::wake),
            ("clock", [node, what]) => self.clock(node, what),
            ("forge", [link, kind, fields @ ..]) => self.forge(link, kind, fields),
            ("log", [node]) => self.log(number(node)),
            ("records", [node]) => self.records(number(node)),
            ("time", [node]) => {
                let time = self.cluster.replica(number(node)).timestamp();
                self.cluster.told.push(format!("the log's time is {time}"));
            }
            ("status", []) => self.status(),
            ("members", [node]) => self.members(number(node)),
            _ => panic!("no command {command} {rest:?}"),
        }
    }

    fn found(&mut self, voters: u64, options: &[&str]) {
        let mut learners = Vec::new();
        for option in options {
            let (name, value) = option.split_once('=').expect("name=value");
            match name {
                "learner" => learners.push(number(value)),
                _ => drop(self.cluster.tune.insert(name.to_owned(), number(value))),
            }
        }
        self.founders = ((1..=voters).collect(), learners);
        let base = genesis(&self.founders.0, &self.founders.1);
        for node in self.founders.0.iter().chain(&self.founders.1) {
            self.cluster.add(*node, base.clone());
        }
    }

    fn node(&mut self, node: &str) -> &mut super::cluster::Node {
        self.cluster.nodes.get_mut(&number(node)).expect("a node of the cluster")
    }

    fn all(&self) -> Vec<u64> {
        self.cluster.nodes.keys().copied().collect()
    }

    fn tick(&mut self, nodes: &str, count: &[&str]) {
        let nodes = if nodes == "all" { self.all() } else { nodes.split(',').map(number).collect() };
        for _ in 0..count_of(count) {
            for node in &nodes {
                self.cluster.tick(*node);
            }
        }
    }

    /// Time passes for all, and the network keeps up.
    fn rounds(&mut self, count: u64) {
        for _ in 0..count {
            self.tick("all", &[]);
            self.cluster.settle();
        }
    }

    /// Time passes for one node alone until it campaigns, unless it does already.
    fn campaign(&mut self, node: u64) {
        for _ in 0..40 {
            if self.cluster.replica(node).status().role != Role::Follower {
                return;
            }
            self.cluster.tick(node);
        }
        panic!("{node} does not campaign");
    }

    fn deliver(&mut self, link: &str, count: &[&str]) {
        let (from, to) = pair(link);
        let count = match count {
            ["all"] => self.cluster.links.get(&(from, to)).map_or(0, std::collections::VecDeque::len) as u64,
            count => count_of(count),
        };
        for _ in 0..count {
            assert!(self.cluster.deliver(from, to), "nothing on its way {link}");
        }
    }

    fn drop(&mut self, link: &str, count: &[&str]) {
        let (from, to) = pair(link);
        let link = self.cluster.links.entry((from, to)).or_default();
        let count = if count == ["all"] { link.len() } else { count_of(count) as usize };
        for message in link.drain(..count) {
            self.cluster.told.push(format!("lost: {}", words::message(&message)));
        }
    }

    fn copy(&mut self, link: &str, name: &str) {
        let message = self.cluster.links[&pair(link)].front().expect("a message on its way").clone();
        self.cluster.told.push(format!("{name}: {}", words::message(&message)));
        self.copies.insert(name.to_owned(), message);
    }

    fn late(&mut self, name: &str) {
        let message = self.copies[name].clone();
        let to = u64::from(ReplicaId(message.to).node().0);
        self.cluster.hand_over(to, message);
    }

    /// `1 | 2 3` separates the groups; `1 > 2` cuts one way.
    fn cut(&mut self, groups: &str) {
        let two_way = !groups.contains('>');
        let groups: Vec<Vec<u64>> =
            groups.split(['|', '>']).map(|group| group.split_whitespace().map(number).collect()).collect();
        for (place, group) in groups.iter().enumerate() {
            for other in groups.iter().skip(place + 1) {
                for (from, to) in group.iter().flat_map(|from| other.iter().map(move |to| (*from, *to))) {
                    self.cluster.cut.insert((from, to));
                    if two_way {
                        self.cluster.cut.insert((to, from));
                    }
                }
            }
        }
        let Cluster { links, cut, .. } = &mut self.cluster;
        links.retain(|pair, _| !cut.contains(pair));
    }

    fn token(&mut self, node: u64, label: String) -> u64 {
        self.tokens += 1;
        let token = node << 32 | self.tokens;
        self.cluster.labels.insert(token, label);
        token
    }

    /// `a*100` is a record of 100 bytes; `x..y` would be a name.
    fn propose(&mut self, node: u64, texts: &[&str]) {
        let mut commands = Vec::new();
        for text in texts {
            let text = match text.split_once('*') {
                Some((start, len)) => {
                    self.repeated += 1;
                    let start = format!("{start}{}", self.repeated);
                    let filler = (number(len) as usize).saturating_sub(start.len());
                    start + &".".repeat(filler)
                }
                None => (*text).to_owned(),
            };
            let token = self.token(node, text.clone());
            commands.push((Bytes::from(text), token));
        }
        self.cluster.act(node, |replica| {
            for (command, token) in commands {
                replica.propose(command, token);
            }
        });
    }

    fn read(&mut self, node: u64) {
        self.tokens += 1;
        let token = node << 32 | self.tokens;
        self.cluster.labels.insert(token, format!("read on {node}"));
        self.cluster.checks.read_asked(token);
        self.cluster.act(node, |replica| replica.read_index(token));
    }

    fn change(&mut self, node: u64, steps: &str) {
        let step = |step: &str| {
            let (verb, id) = step.trim().split_once(' ').expect("verb and node");
            let id = id_of(number(id));
            match verb {
                "learn" => MemberChange::AddLearner(id),
                "promote" => MemberChange::Promote(id),
                "demote" => MemberChange::Demote(id),
                "remove" => MemberChange::Remove(id),
                other => panic!("no change {other}"),
            }
        };
        let changes: Vec<MemberChange> = steps.split(',').map(step).collect();
        let token = self.token(node, format!("change {steps}"));
        self.cluster.act(node, |replica| replica.change_members(&changes, token));
    }

    fn transfer(&mut self, link: &str) {
        let (from, to) = pair(link);
        let mut refused = None;
        self.cluster.act(from, |replica| refused = replica.transfer_leader(NodeId(to as u32)).err());
        self.cluster.told.extend(refused.map(|error| format!("{from} refuses: {}", words::plain(&error))));
    }

    /// What a driver does to a leader that has been idle for a while.
    fn sleep(&mut self, node: u64) {
        if self.cluster.replica(node).is_idle() {
            self.cluster.act(node, Replica::fall_asleep);
        } else {
            self.cluster.told.push(format!("{node} has something to do"));
        }
    }

    fn clock(&mut self, node: &str, what: &str) {
        let node = self.node(node);
        match what {
            "trusted" => node.trust = ClockTrust::Trusted,
            "untrusted" => node.trust = ClockTrust::Untrusted,
            jump => node.clock.0 = node.clock.0.saturating_add_signed(jump.parse().expect("a jump in ms")),
        }
    }

    /// A message that no sound replica sends.
    fn forge(&mut self, link: &str, kind: &str, fields: &[&str]) {
        let (from, to) = pair(link);
        let mut message = Message { from: id_of(from).0, to: id_of(to).0, ..Message::default() };
        message.set_msg_type(match kind {
            "hup" => MessageType::MsgHup,
            "propose" => MessageType::MsgPropose,
            "transfer" => MessageType::MsgTransferLeader,
            "append" => MessageType::MsgAppend,
            "appended" => MessageType::MsgAppendResponse,
            "heartbeat" => MessageType::MsgHeartbeat,
            "vote" => MessageType::MsgRequestVote,
            "snapshot" => MessageType::MsgSnapshot,
            "campaign-now" => MessageType::MsgTimeoutNow,
            "read" => MessageType::MsgReadIndex,
            other => panic!("no kind {other}"),
        });
        for field in fields {
            let (name, value) = field.split_once('=').expect("name=value");
            match name {
                "kind" => message.msg_type = number(value) as i32,
                "to" => message.to = id_of(number(value)).0,
                "term" => message.term = number(value),
                "index" => message.index = number(value),
                "log_term" => message.log_term = number(value),
                "commit" => message.commit = number(value),
                "entry" => {
                    let (index, term) = value.split_once('/').expect("index/term");
                    message.entries.push(Entry { index: number(index), term: number(term), ..Entry::default() });
                }
                "snapshot" => {
                    let metadata = message.snapshot.get_or_insert_default().metadata.get_or_insert_default();
                    (metadata.index, metadata.term) = (number(value), message.term);
                }
                other => panic!("no field {other}"),
            }
        }
        self.cluster.hand_over(to, message);
    }

    fn log(&mut self, node: u64) {
        let kept = &self.cluster.nodes[&node].durable;
        let base = format!("base {}/{}", kept.base.index, kept.base.term);
        let entries = kept.entries.iter().map(words::entry);
        let text = [base].into_iter().chain(entries).collect::<Vec<_>>().join(" ");
        self.cluster.told.push(format!("on disk: {text}"));
    }

    fn records(&mut self, node: u64) {
        let records = &self.cluster.replica(node).machine().0;
        let text = records.iter().map(|text| words::short(text)).collect::<Vec<_>>().join(" ");
        self.cluster.told.push(format!("{node} has [{text}]"));
    }

    fn status(&mut self) {
        for (number, node) in &self.cluster.nodes {
            let text = match &node.replica {
                None if node.removed => "destroyed".to_owned(),
                None => "down".to_owned(),
                Some(replica) => {
                    let status = replica.status();
                    let leader = status.leader.map_or_else(|| "nobody".to_owned(), |id| words::replica(id.0));
                    format!(
                        "{}{} in term {}, leader {leader}, log [{}, {}], commit {}, applied {}",
                        if replica.is_asleep() { "sleeping " } else { "" },
                        words::role(status.role),
                        status.term,
                        status.first,
                        status.last,
                        status.commit,
                        status.applied
                    )
                }
            };
            self.cluster.told.push(format!("{number}: {text}"));
        }
    }

    fn members(&mut self, node: u64) {
        let replica = self.cluster.replica(node);
        let settled = if replica.status().settled { "; settled" } else { "" };
        let mut lines = vec![words::conf(replica.conf_state()) + settled];
        for member in replica.status().members {
            let matched = member.matched.map_or_else(String::new, |index| format!(", matched {index}"));
            let kind = if member.voter { "voter" } else { "learner" };
            let snapshot = if member.needs_snapshot { ", needs a snapshot" } else { "" };
            lines.push(format!("{}: {kind}{matched}{snapshot}", words::replica(member.id.0)));
        }
        self.cluster.told.extend(lines);
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

fn count_of(count: &[&str]) -> u64 {
    count.first().map_or(1, |count| number(count))
}

fn pair(link: &str) -> (u64, u64) {
    let (from, to) = link.split_once("->").expect("from->to");
    (number(from), number(to))
}
