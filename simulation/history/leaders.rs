//! The rule for what the catalog says of leaders: reports of older terms change nothing, however late they come.

use super::check::broken;
use super::{rules, Broken, LeaderTold};
use std::collections::BTreeMap;

pub(super) fn check(told: &[LeaderTold]) -> Result<(), Broken> {
    let mut told = told.to_vec();
    told.sort_by_key(|one| (one.group, one.revision, one.client));
    let mut latest: BTreeMap<u64, LeaderTold> = BTreeMap::new();
    for now in told {
        let Some(before) = latest.insert(now.group, now) else { continue };
        let same = before.revision == now.revision;
        let rises = if same { (before.term, before.node) == (now.term, now.node) } else { before.term < now.term };
        if !rises {
            let what = format!(
                "group {}: revision {} told client {} of node {} in term {}, revision {} told client {} of node {} in term {}",
                now.group, before.revision, before.client, before.node, before.term, now.revision, now.client, now.node, now.term
            );
            return broken(rules::LEADERS_RISE, what);
        }
    }
    Ok(())
}
