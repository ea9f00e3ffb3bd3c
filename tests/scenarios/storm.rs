//! Commands drawn by chance from a seed. The rules of `checks` hold at each step, and at the end, when everything is
//! healed, the group elects a leader, commits a command, and all its members agree.

use super::commands::Stage;
use balsa::group::replica::Role;
use std::panic::{catch_unwind, AssertUnwindSafe};

const STEPS: usize = 600;

struct Generator(u64);

impl Generator {
    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize])
    }
}

/// Whether a run holds; prints its commands if it does not.
pub fn weathers(seed: u64) -> bool {
    let mut commands = Vec::new();
    let run = catch_unwind(AssertUnwindSafe(|| run(seed, &mut commands)));
    if run.is_err() {
        println!("seed {seed}:");
        commands.iter().for_each(|command| println!("> {command}"));
    }
    run.is_ok()
}

fn run(seed: u64, commands: &mut Vec<String>) {
    let mut chance = Generator(seed);
    let mut stage = Stage::default();
    let mut perform = |stage: &mut Stage, command: String| {
        commands.push(command.clone());
        stage.run(&command);
    };
    let voters = [1, 3, 3, 3, 5][chance.below(5) as usize];
    let cache = [0, 0, 200, 1 << 20][chance.below(4) as usize];
    let message = [1, 60, 1 << 20][chance.below(3) as usize];
    perform(&mut stage, format!("cluster {voters} cache={cache} message={message} seed={}", chance.below(1_000)));
    for node in voters + 1..=voters + 2 {
        perform(&mut stage, format!("host {node}"));
    }
    for step in 0..STEPS {
        if let Some(command) = draw(&mut chance, &stage, step) {
            perform(&mut stage, command);
        }
    }
    heal(&mut stage, &mut perform);
}

fn draw(chance: &mut Generator, stage: &Stage, step: usize) -> Option<String> {
    let cluster = &stage.cluster;
    let busy = cluster.links.iter().filter(|(_, link)| !link.is_empty()).map(|(pair, _)| *pair).collect::<Vec<_>>();
    let up: Vec<u64> = cluster.nodes.iter().filter(|(_, node)| node.replica.is_some()).map(|(id, _)| *id).collect();
    let down = cluster.nodes.iter().filter(|(_, node)| node.replica.is_none() && !node.removed);
    let down: Vec<u64> = down.map(|(id, _)| *id).collect();
    let node = chance.pick(&up);
    let other = chance.pick(&up);
    let leaders: Vec<u64> = up.iter().copied().filter(|id| cluster.replica(*id).is_leader()).collect();
    let leader = chance.pick(&leaders).or(node);
    Some(match chance.below(144) {
        0..60 => {
            let (from, to) = chance.pick(&busy)?;
            format!("deliver {from}->{to}")
        }
        60..63 => {
            let (from, to) = chance.pick(&busy)?;
            format!("drop {from}->{to}")
        }
        63..65 => {
            let (from, to) = chance.pick(&busy)?;
            format!("copy {from}->{to} as late{}", chance.below(4))
        }
        65..67 => {
            let name = format!("late{}", chance.below(4));
            stage.copies.contains_key(&name).then(|| format!("late {name}"))?
        }
        67..85 => format!("tick {} {}", node?, 1 + chance.below(6)),
        85..95 => format!("propose {} c{step} d{step}", leader?),
        95..99 => format!("read {}", node?),
        99..101 => format!("slow {}", node?),
        101..103 => format!("fast {}", node?),
        103..108 => {
            let node = node?;
            cluster.has_unsynced(node).then(|| format!("sync {node}"))?
        }
        108..110 => format!("crash {}", node?),
        110..114 => format!("restart {}", chance.pick(&down)?),
        114..116 => format!("cut {} | {}", node?, other.filter(|other| Some(*other) != node)?),
        116..118 => "heal".to_owned(),
        118..120 => format!("transfer {}->{}", leader?, other?),
        120..121 => format!("lost {} {}", node?, other?),
        121..122 => format!("unreachable {} {}", leader?, other?),
        122..123 => format!("lead {} {}", node?, if chance.below(2) == 0 { "off" } else { "on" }),
        123..127 => {
            // A removed replica never comes back under its id, so founders leave and newcomers stay.
            let all: Vec<u64> = cluster.nodes.keys().copied().collect();
            let mut step = || {
                let id = chance.pick(&all)?;
                let founder = stage.is_founder(id);
                let verbs = if founder { ["demote", "promote", "remove"] } else { ["learn", "promote", "promote"] };
                Some(format!("{} {id}", chance.pick(&verbs)?))
            };
            let steps = [step()?, step()?];
            format!("change {} {}", leader?, steps[..1 + usize::from(steps[0] < steps[1])].join(", "))
        }
        127..131 => {
            let node = node?;
            (!cluster.has_unsynced(node) && !cluster.nodes[&node].removed).then(|| format!("roll {node}"))?
        }
        131..133 => {
            let node = node?;
            (!cluster.has_unsynced(node)).then(|| format!("trim {node}"))?
        }
        133..137 => {
            let node = node?;
            (!cluster.nodes[&node].fetches.is_empty()).then(|| format!("fetch {node}"))?
        }
        137 => {
            let id = 1 + chance.below(5);
            let drops = stage.is_founder(id) && !cluster.nodes[&id].removed && cluster.may_destroy(id);
            drops.then(|| format!("destroy {id}"))?
        }
        138..142 => format!("sleep {}", leader?),
        _ => "settle".to_owned(),
    })
}

fn heal(stage: &mut Stage, perform: &mut impl FnMut(&mut Stage, String)) {
    perform(stage, "heal".to_owned());
    let nodes: Vec<u64> = stage.cluster.nodes.keys().copied().collect();
    for node in nodes.iter().filter(|node| !stage.cluster.nodes[node].removed).copied().collect::<Vec<_>>() {
        if stage.cluster.nodes[&node].replica.is_none() {
            perform(stage, format!("restart {node}"));
        }
        perform(stage, format!("fast {node}"));
        perform(stage, format!("lead {node} on"));
    }
    perform(stage, "rounds 120".to_owned());
    let leads = |node: &&u64| {
        let node = &stage.cluster.nodes[node];
        !node.removed && node.replica.as_ref().is_some_and(|replica| replica.status().role == Role::Leader)
    };
    let leader = *nodes.iter().find(leads).expect("a leader after all is healed");
    perform(stage, format!("propose {leader} last"));
    perform(stage, "rounds 10".to_owned());
    let replica = stage.cluster.replica(leader);
    assert_eq!(replica.machine().0.last().map(String::as_str), Some("last"), "appends resume");
    let status = replica.status();
    assert!(!status.joint && status.proposals_waiting == 0 && status.reads_waiting == 0, "{status:?}");
    for member in &status.members {
        let member = u64::from(member.id.node().0);
        let other = stage.cluster.replica(member);
        assert_eq!((other.applied_index(), other.chain()), (replica.applied_index(), replica.chain()), "{member} lags");
        assert_eq!(other.machine().0, replica.machine().0, "{member} differs");
        assert_eq!(other.conf_state(), replica.conf_state(), "{member} has another configuration");
    }
}
