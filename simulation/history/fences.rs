//! The rule for fences: exclusivity holds in log order, whatever clocks and pauses do.
//!
//! In the log, the tokens of a fence never fall from one batch to a later one. And a token that somebody was told is raised
//! shuts out every append that is sent afterwards under a lower one.

use super::check::broken;
use super::placed::{seconds, Batch, Placed};
use super::{rules, Broken, Fence, History};
use std::collections::BTreeMap;

pub(super) fn check(history: &History, placed: &Placed) -> Result<(), Broken> {
    let here = history.fenced.iter().filter(|fenced| fenced.partition == placed.partition);
    let fences: BTreeMap<u64, Fence> = here.map(|fenced| (fenced.payload, fenced.fence)).collect();
    let in_order = placed.by_offset.iter().map(|at| &placed.batches[*at]);
    let fenced: Vec<(&Batch, Fence)> =
        in_order.filter_map(|batch| Some((batch, *fences.get(&batch.payload)?))).collect();
    let mut highest: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (batch, fence) in &fenced {
        let (token, offset) = *highest.entry(fence.name).or_insert((fence.token, batch.offset.unwrap_or_default()));
        if fence.token < token {
            let what = format!(
                "{}: {batch} was appended under token {} of fence {}; token {token} is at offset {offset}",
                placed.partition, fence.token, fence.name
            );
            return broken(rules::FENCE_HOLDS, what);
        }
        highest.insert(fence.name, (fence.token, batch.offset.unwrap_or_default()));
    }
    for raise in history.raises.iter().filter(|raise| raise.partition == placed.partition) {
        let passed = |(batch, fence): &&(&Batch, Fence)| {
            fence.name == raise.fence.name && fence.token < raise.fence.token && batch.invoked_us > raise.returned_us
        };
        if let Some((batch, fence)) = fenced.iter().find(passed) {
            let what = format!(
                "{}: {batch} was appended under token {} of fence {}; client {} had raised it to {} at {}",
                placed.partition,
                fence.token,
                fence.name,
                raise.client,
                raise.fence.token,
                seconds(raise.returned_us)
            );
            return broken(rules::FENCE_HOLDS, what);
        }
    }
    Ok(())
}
