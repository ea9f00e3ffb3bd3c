//! The rules that hold at every step of every replica, in both worlds.
//!
//! Fed with what the driver tells an onlooker ([`Observed`]), and with when a node went down. They trust nothing of the code under
//! test: what a replica has on disk is rebuilt from what it wanted written and what it was told of it ([`kept`]); what the group has agreed on
//! from what its replicas applied ([`agreed`]). The first broken rule is kept, all after it is ignored.
//!
//! | rule | what it says |
//! |---|---|
//! | `election-safety` | one leader for a term |
//! | `promise-regressed` | term, vote and commit never go back, across restarts too; one vote for a term |
//! | `durability-lost` | a restart finds all that was reported durable, and nothing that was never written |
//! | `promise-before-sync` | no append response, vote or message of a term leaves before what it promises is durable |
//! | `vote-for-outdated` | a vote goes to a log that is as far as the voter's |
//! | `vote-unannounced` | votes are asked for after a majority said that it would give them, or the leader told to |
//! | `campaign-unready` | who campaigns has a durable log, and has applied all changes of membership that it knows to be committed |
//! | `log-matching` | one entry, and one log before it, for each (index, term) |
//! | `leader-incomplete` | a leader has all that was committed before its term |
//! | `commit-unsafe` | what is committed lies durably on a majority of its configuration, with an entry of the leader's own term at or behind it |
//! | `change-before-commit` | a leader changes the membership only after an entry of its own term is committed |
//! | `committed-changed` | what was committed never changes; nothing applied is overwritten |
//! | `applied-gap` | entries are applied one after the other, and only what is durable here |
//! | `state-differs` | equal chain and state at equal index, and the same as if all was applied from the beginning |
//! | `log-time` | a leader whose clock a majority speaks against moves the log's time no further ahead ([`log_time`], whole world) |
//! | `context-reused` | no replica asks for two reads under one context |
//! | `sleep-unmatched` | a group is sent to sleep only when every member has all there is on its disk |

pub mod agreed;
mod campaigns;
pub mod kept;
pub mod log_time;
mod replica;

use agreed::Agreed;
use balsa::group::observe::Observed;
use balsa::ids::{GroupId, ReplicaId};
use replica::ReplicaModel;
use std::collections::BTreeMap;

/// How a node went down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Down {
    /// Whatever was reported durable is there when it comes back.
    Intact,
    /// Its files were damaged beyond what it can stand: what comes back under the same id is not compared. Only over the budget.
    Damaged,
}

/// A broken rule.
#[derive(Clone, Debug)]
pub struct Broken {
    pub rule: &'static str,
    pub what: String,
    /// The nodes concerned.
    pub nodes: Vec<u32>,
}

/// What went wrong at one replica: rule, and what was seen.
type Breach = (&'static str, String);

struct GroupModel {
    agreed: Agreed,
    /// In boxes: they are taken out and put back at every step.
    replicas: BTreeMap<ReplicaId, Box<ReplicaModel>>,
    /// Which replica a node hosts.
    hosted: BTreeMap<u32, ReplicaId>,
}

/// See the module's text.
pub struct Rules {
    groups: BTreeMap<GroupId, GroupModel>,
    round_bytes_max: u64,
    broken: Option<Broken>,
}

impl Rules {
    /// `round_bytes_max` is the journals': what is larger may be durable in part.
    pub fn new(round_bytes_max: u64) -> Rules {
        Rules { groups: BTreeMap::new(), round_bytes_max, broken: None }
    }

    /// A step of a replica.
    pub fn observe(&mut self, now_us: u64, node: u32, group: GroupId, observed: &Observed<'_>) {
        if self.broken.is_some() {
            return;
        }
        if let Err((rule, what)) = self.check(node, group, observed) {
            let (seconds, micros) = (now_us / 1_000_000, now_us % 1_000_000);
            let what = format!("at {seconds}.{micros:06} on node {node}, group {group}: {what}");
            self.broken = Some(Broken { rule, what, nodes: vec![node] });
        }
    }

    /// A node went down: what it had under way is lost, or not.
    pub fn node_down(&mut self, node: u32, how: Down) {
        for group in self.groups.values_mut() {
            let Some(id) = group.hosted.get(&node) else { continue };
            let led = group.replicas.get_mut(id).and_then(|replica| replica.went_down(how));
            if let Some(term) = led {
                group.agreed.forget(term);
            }
        }
    }

    /// What a node held is gone for good: none of it counts as a copy from here on.
    pub fn node_lost(&mut self, node: u32) {
        for group in self.groups.values_mut() {
            let Some(id) = group.hosted.remove(&node) else { continue };
            if let Some(replica) = group.replicas.get_mut(&id) {
                replica.is_lost = true;
            }
        }
    }

    /// Whether all that was agreed on has a majority's copies without this node.
    pub fn can_spare(&self, node: u32) -> bool {
        self.groups.values().all(|group| group.can_spare(node))
    }

    /// The first rule that was broken.
    pub fn violation(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    /// What a group has agreed on, once it was seen.
    pub fn agreed(&self, group: GroupId) -> Option<&Agreed> {
        self.groups.get(&group).map(|group| &group.agreed)
    }

    fn check(&mut self, node: u32, group: GroupId, observed: &Observed<'_>) -> Result<(), Breach> {
        if let Observed::Opened { replica: id, recovered, created } = observed {
            let model = self.groups.entry(group).or_insert_with(|| GroupModel {
                agreed: Agreed::new(&recovered.base),
                replicas: BTreeMap::new(),
                hosted: BTreeMap::new(),
            });
            model.hosted.insert(node, *id);
            return model.opened(*id, recovered, *created, self.round_bytes_max);
        }
        let Some(model) = self.groups.get_mut(&group) else { return Ok(()) };
        let Some(id) = model.hosted.get(&node).copied() else { return Ok(()) };
        match observed {
            Observed::Opened { .. } => Ok(()),
            Observed::Taken { effects, term, leads, digest } => model.taken(id, effects, term.0, *leads, *digest),
            Observed::Persisted { number } => model.persisted(id, *number),
            Observed::Sent { message } => model.sent(id, message),
            Observed::Received { message, .. } => {
                if let Some(replica) = model.replicas.get_mut(&id) {
                    replica.received(message);
                }
                Ok(())
            }
            Observed::Removed => {
                model.hosted.remove(&node);
                Ok(())
            }
        }
    }
}
