//! Holds a history against the rules, the most telling first. See the module above for what is checked, and `rules` for names.

use super::placed::{self, Placed};
use super::{by_time, fences, leaders, rules, sweep, watches, Broken, FinalLog, History};
use std::collections::BTreeMap;

pub(super) fn broken<T>(rule: &'static str, what: String) -> Result<T, Broken> {
    Err(Broken { rule, what })
}

pub(super) fn check(history: &History) -> Result<(), Broken> {
    dense(history)?;
    for placed in placed::place(history)? {
        final_logs(history, &placed)?;
        expected_offsets(&placed)?;
        terms(&placed)?;
        sessions(&placed)?;
        fences::check(history, &placed)?;
        by_time::check(history, &placed)?;
        sweep::check(history, &placed)?;
    }
    leaders::check(&history.leaders)?;
    watches::check(&history.watches)
}

/// A read and a final log begin where they were asked to, and have no gaps.
fn dense(history: &History) -> Result<(), Broken> {
    let gap = |from: u64, records: &[(u64, u64)]| {
        let numbered = records.iter().zip(from..);
        numbered.filter(|((offset, _), wanted)| offset != wanted).map(|((offset, _), wanted)| (*offset, wanted)).next()
    };
    for read in &history.reads {
        if let Some((offset, wanted)) = gap(read.from, &read.records) {
            let what = format!(
                "{}: a read of client {} through node {} from {} gave offset {offset} where {wanted} was due",
                read.partition, read.client, read.through_node, read.from
            );
            return broken(rules::DENSE, what);
        }
    }
    for log in &history.final_logs {
        if let Some((offset, wanted)) = gap(log.start, &log.records) {
            let what = format!(
                "{}: the final log of node {} from {} has offset {offset} where {wanted} was due",
                log.partition, log.node, log.start
            );
            return broken(rules::DENSE, what);
        }
    }
    Ok(())
}

/// Nobody lacks at the end what anybody was told.
fn final_logs(history: &History, placed: &Placed) -> Result<(), Broken> {
    let logs: Vec<&FinalLog> = history.final_logs.iter().filter(|log| log.partition == placed.partition).collect();
    let end = |log: &FinalLog| log.start + log.records.len() as u64;
    for log in &logs {
        let here = format!("{}: the final log of node {} ends at offset {}", placed.partition, log.node, end(log));
        for at in &placed.by_offset {
            let batch = &placed.batches[*at];
            let Some(batch_end) = batch.end().filter(|batch_end| *batch_end > end(log)) else { continue };
            let torn = batch.offset < Some(end(log));
            return match batch.acknowledged_us {
                Some(_) => {
                    broken(rules::ACKNOWLEDGED_STAYS, format!("{here}; {batch} was acknowledged up to {batch_end}"))
                }
                None if torn => broken(rules::WHOLE_BATCHES, format!("{here}, in the middle of {batch}")),
                None => ended_otherwise(history, placed, &logs, batch_end, here),
            };
        }
        let told = history.tails.iter().filter(|tail| tail.partition == placed.partition);
        if let Some(tail) = told.max_by_key(|tail| tail.tail).filter(|tail| tail.tail > end(log)) {
            let what = format!("{here}; client {} was told the tail {}", tail.client, tail.tail);
            return broken(rules::VISIBLE_STAYS, what);
        }
    }
    Ok(())
}

/// A batch that nobody acknowledged lies beyond the end of a log: a client saw it there, or another replica has it.
fn ended_otherwise(
    history: &History,
    placed: &Placed,
    logs: &[&FinalLog],
    batch_end: u64,
    here: String,
) -> Result<(), Broken> {
    let mut reads = history.reads.iter().filter(|read| read.partition == placed.partition);
    let read_to = |read: &super::Read| read.records.last().map(|(offset, _)| offset + 1);
    if let Some(read) = reads.find(|read| read_to(read) >= Some(batch_end)) {
        let what = format!("{here}; client {} read up to {batch_end} through node {}", read.client, read.through_node);
        return broken(rules::VISIBLE_STAYS, what);
    }
    let longest = logs.iter().max_by_key(|log| log.start + log.records.len() as u64).map_or(0, |log| log.node);
    broken(rules::REPLICAS_AGREE, format!("{here}, that of node {longest} at {batch_end} or later"))
}

fn expected_offsets(placed: &Placed) -> Result<(), Broken> {
    for batch in &placed.batches {
        if let (Some(expected), Some(offset)) = (batch.expected_offset, batch.offset) {
            if expected != offset {
                let what = format!("{}: {batch} expected offset {expected} and is at {offset}", placed.partition);
                return broken(rules::EXPECTED_OFFSET, what);
            }
        }
    }
    Ok(())
}

fn terms(placed: &Placed) -> Result<(), Broken> {
    let mut highest = (0, 0);
    for at in &placed.by_offset {
        let Some((offset, term)) = placed.batches[*at].receipt.filter(|(_, term)| *term != 0) else { continue };
        if term < highest.1 {
            let what = format!(
                "{}: offset {} was acknowledged in term {}, offset {offset} in term {term}",
                placed.partition, highest.0, highest.1
            );
            return broken(rules::TERMS_RISE, what);
        }
        highest = (offset, term);
    }
    Ok(())
}

/// A session's batches lie in the order of their sequences, and without a gap wherever the log between two of them is known.
fn sessions(placed: &Placed) -> Result<(), Broken> {
    let mut last: BTreeMap<u64, (u64, u32, u64)> = BTreeMap::new();
    for at in &placed.by_offset {
        let batch = &placed.batches[*at];
        let (Some(session), Some(offset)) = (batch.session, batch.offset) else { continue };
        let (due, epoch, known_before) = *last.entry(session.producer).or_insert((0, 0, 0));
        let here = || format!("{}: {batch} is at offset {offset}", placed.partition);
        if session.sequence < due {
            let what = format!("{}; sequences up to {due} lie before it", here());
            return broken(rules::SESSION_ORDER, what);
        }
        if session.epoch < epoch {
            return broken(rules::SESSION_ORDER, format!("{}; epoch {epoch} lies before it", here()));
        }
        if session.sequence > due && placed.known_from.is_some_and(|from| from <= known_before) {
            return broken(rules::SESSION_ORDER, format!("{}; sequence {due} was due", here()));
        }
        last.insert(session.producer, (session.sequence + u64::from(batch.count), session.epoch, offset));
    }
    Ok(())
}
