//! The rules for watches: forward only, complete, and the same for all who watch the same.

use super::check::broken;
use super::{rules, Broken, Watch};
use std::collections::BTreeMap;

pub(super) fn check(watches: &[Watch]) -> Result<(), Broken> {
    for watch in watches {
        forward(watch)?;
    }
    let mut subjects: BTreeMap<u64, Vec<&Watch>> = BTreeMap::new();
    for watch in watches {
        subjects.entry(watch.subject).or_default().push(watch);
    }
    subjects.values().try_for_each(|watches| same(watches))
}

fn forward(watch: &Watch) -> Result<(), Broken> {
    let mut last = watch.after;
    for &(revision, _) in &watch.changes {
        if revision <= last {
            let what = format!("client {} was told revision {revision} after {last}", watch.client);
            return broken(rules::WATCH_FORWARD, what);
        }
        last = revision;
    }
    Ok(())
}

/// Between where a watcher began and the last it was told lies, for every watcher, all that any was told.
fn same(watches: &[&Watch]) -> Result<(), Broken> {
    let mut told: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    for watch in watches {
        for &(revision, change) in &watch.changes {
            let (known, client) = *told.entry(revision).or_insert((change, watch.client));
            if known != change {
                let what = format!(
                    "revision {revision} told client {client} of change {known:x}, and client {} of {change:x}",
                    watch.client
                );
                return broken(rules::WATCH_AGREES, what);
            }
        }
    }
    watches.iter().try_for_each(|watch| complete(watch, &told))
}

fn complete(watch: &Watch, told: &BTreeMap<u64, (u64, u32)>) -> Result<(), Broken> {
    let Some(&(last, _)) = watch.changes.last() else { return Ok(()) };
    let mut own = watch.changes.iter().map(|(revision, _)| *revision);
    for (revision, (_, client)) in told.range(watch.after + 1..=last) {
        if own.next() != Some(*revision) {
            let what = format!(
                "client {} watched from {} to {last} and was not told revision {revision}; client {client} was",
                watch.client, watch.after
            );
            return broken(rules::WATCH_COMPLETE, what);
        }
    }
    Ok(())
}
