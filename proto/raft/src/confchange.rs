//! Configuration changes: the old and the new form behind one trait, what a change asks of the joint
//! configuration, and a short text form for tests and logs.

use std::borrow::Cow;

use crate::eraftpb::{ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

/// The change of one member.
pub fn new_conf_change_single(node_id: u64, ty: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle { change_type: ty.into(), node_id }
}

/// Reads changes such as `v1 l2 r3`: 1 a voter, 2 a learner, 3 removed. An empty text is no changes.
pub fn parse_conf_change(s: &str) -> Result<Vec<ConfChangeSingle>, String> {
    s.split_whitespace().map(parse_single).collect()
}

fn parse_single(word: &str) -> Result<ConfChangeSingle, String> {
    let mut chars = word.chars();
    let ty = match chars.next() {
        Some('v') => ConfChangeType::AddNode,
        Some('l') => ConfChangeType::AddLearnerNode,
        Some('r') => ConfChangeType::RemoveNode,
        _ => return Err(format!("{word:?}: a change starts with v, l or r")),
    };
    match chars.as_str().parse() {
        Ok(node_id) => Ok(new_conf_change_single(node_id, ty)),
        Err(error) => Err(format!("{word:?}: no node id: {error}")),
    }
}

/// Writes changes as [`parse_conf_change`] reads them.
pub fn stringify_conf_change(ccs: &[ConfChangeSingle]) -> String {
    let word = |cc: &ConfChangeSingle| match cc.get_change_type() {
        ConfChangeType::AddNode => format!("v{}", cc.node_id),
        ConfChangeType::AddLearnerNode => format!("l{}", cc.node_id),
        ConfChangeType::RemoveNode => format!("r{}", cc.node_id),
    };
    ccs.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Either form of a configuration change.
pub trait ConfChangeI {
    /// This change in the new form.
    fn into_v2(self) -> ConfChangeV2;

    /// This change in the new form, borrowed where it already has it.
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;

    /// This change in the old form, if it has it; the new form is never turned back.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    /// Drops the id, which the new form does not have.
    fn into_v2(self) -> ConfChangeV2 {
        let change = new_conf_change_single(self.node_id, self.get_change_type());
        ConfChangeV2 { transition: ConfChangeTransition::Auto.into(), changes: vec![change], context: self.context }
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

impl ConfChangeV2 {
    /// Whether this change goes through a joint configuration, and if so whether raft leaves that by itself.
    pub fn enter_joint(&self) -> Option<bool> {
        match self.get_transition() {
            ConfChangeTransition::Auto if self.changes.len() <= 1 => None,
            ConfChangeTransition::Auto | ConfChangeTransition::Implicit => Some(true),
            ConfChangeTransition::Explicit => Some(false),
        }
    }

    /// Whether this change leaves a joint configuration: it changes nothing. It may carry a context.
    pub fn leave_joint(&self) -> bool {
        self.get_transition() == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}
