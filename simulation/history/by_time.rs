//! The rules for the log's own time as clients see it: it never falls, and offsets are found by it.

use super::check::broken;
use super::placed::{Batch, Placed};
use super::{rules, Broken, ByTime, History, Stamp};

pub(super) fn check(history: &History, placed: &Placed) -> Result<(), Broken> {
    let here = history.stamps.iter().filter(|stamp| stamp.partition == placed.partition);
    let mut stamps: Vec<Stamp> = here.copied().collect();
    stamps.sort_unstable();
    rises(placed, &stamps)?;
    // The first who was told of a record knew of it; the later ones add nothing.
    stamps.dedup_by_key(|stamp| stamp.offset);
    let logs = history.final_logs.iter().filter(|log| log.partition == placed.partition);
    let Some(start) = logs.map(|log| log.start).max() else { return Ok(()) };
    // Where a log is trimmed in the middle of a batch, that is still read whole.
    let batches = placed.by_offset.iter().map(|at| &placed.batches[*at]);
    let kept_from =
        batches.filter(|batch| batch.offset <= Some(start)).filter_map(Batch::end).max().unwrap_or(start).max(start);
    let mut asked = history.by_time.iter().filter(|asked| asked.partition == placed.partition);
    asked.try_for_each(|asked| found(placed, &stamps, kept_from, asked))
}

fn rises(placed: &Placed, stamps: &[Stamp]) -> Result<(), Broken> {
    for pair in stamps.windows(2) {
        let (one, other) = (pair[0], pair[1]);
        let same = one.offset == other.offset;
        if (same && one.timestamp_ms != other.timestamp_ms) || one.timestamp_ms > other.timestamp_ms {
            let what = format!(
                "{}: offset {} was told to be of {} ms, offset {} of {} ms",
                placed.partition, one.offset, one.timestamp_ms, other.offset, other.timestamp_ms
            );
            return broken(rules::TIME_RISES, what);
        }
    }
    Ok(())
}

/// What lies below the answer is older, unless it was trimmed; what was known before the question and lies at or behind it is not.
fn found(placed: &Placed, stamps: &[Stamp], kept_from: u64, asked: &ByTime) -> Result<(), Broken> {
    let wrong = |stamp: &&Stamp| {
        let kept = stamp.offset >= kept_from;
        let before = kept && stamp.offset < asked.offset && stamp.timestamp_ms >= asked.time_ms;
        let known = stamp.returned_us < asked.invoked_us;
        before || (known && stamp.offset >= asked.offset && stamp.timestamp_ms < asked.time_ms)
    };
    let Some(stamp) = stamps.iter().find(wrong) else { return Ok(()) };
    let what = format!(
        "{}: client {} asked for {} ms and was told offset {}; offset {} is of {} ms",
        placed.partition, asked.client, asked.time_ms, asked.offset, stamp.offset, stamp.timestamp_ms
    );
    broken(rules::BY_TIME, what)
}
