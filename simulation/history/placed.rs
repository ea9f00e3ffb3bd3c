//! Where each batch ended up: the one log that all claims of a history add up to, or the proof that there is none.
//!
//! A *claim* is one client's or node's word that a record is at an offset: a receipt, a record read, a record of a final log. All
//! claims of a partition must agree. What comes out is each batch's place, if it has one.

use super::check::broken;
use super::{rules, Append, Broken, History, Outcome, PartitionKey, SessionPlace};
use std::collections::BTreeMap;
use std::fmt;

/// A batch that somebody wanted in a log, over all attempts at it.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) payload: u64,
    pub(super) count: u32,
    /// When the first attempt began.
    pub(super) invoked_us: u64,
    /// When it was first acknowledged.
    pub(super) acknowledged_us: Option<u64>,
    /// Where the receipts say it is.
    pub(super) receipt: Option<(u64, u64)>,
    /// Every attempt definitely failed.
    pub(super) failed: bool,
    pub(super) expected_offset: Option<u64>,
    pub(super) session: Option<SessionPlace>,
    /// Offset of its first record, if anybody saw it.
    pub(super) offset: Option<u64>,
}

impl Batch {
    fn first(append: &Append) -> Batch {
        Batch {
            payload: append.payload,
            count: append.count,
            invoked_us: append.invoked_us,
            acknowledged_us: None,
            receipt: None,
            failed: true,
            expected_offset: append.expected_offset,
            session: append.session,
            offset: None,
        }
    }

    fn attempt(&mut self, append: &Append) -> Result<(), Broken> {
        self.invoked_us = self.invoked_us.min(append.invoked_us);
        self.failed &= append.outcome == Outcome::Failed;
        let Outcome::Ok(receipt) = append.outcome else { return Ok(()) };
        self.acknowledged_us = Some(self.acknowledged_us.map_or(append.returned_us, |us| us.min(append.returned_us)));
        match self.receipt {
            Some((offset, _)) if offset != receipt.offset => broken(
                rules::AT_MOST_ONCE,
                format!("{self} was acknowledged at offset {offset} and again at offset {}", receipt.offset),
            ),
            Some((_, term)) if term != 0 => Ok(()),
            _ => {
                self.receipt = Some((receipt.offset, receipt.term));
                Ok(())
            }
        }
    }

    /// The offset after its last record, if it is anywhere.
    pub(super) fn end(&self) -> Option<u64> {
        self.offset.map(|offset| offset + u64::from(self.count))
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {} ({} records, sent at {})", self.payload, self.count, seconds(self.invoked_us))?;
        if let Some(session) = &self.session {
            write!(f, " of session {} epoch {} sequence {}", session.producer, session.epoch, session.sequence)?;
        }
        Ok(())
    }
}

/// A moment, as it stands in the log.
pub(super) fn seconds(us: u64) -> String {
    format!("{}.{:06} s", us / 1_000_000, us % 1_000_000)
}

/// Who says that a record is at an offset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Source {
    Receipt { us: u64 },
    Read { client: u32, node: u32, us: u64 },
    FinalLog { node: u32 },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Receipt { us } => write!(f, "the receipt of {}", seconds(*us)),
            Source::Read { client, node, us } => {
                write!(f, "a read of client {client} through node {node} at {}", seconds(*us))
            }
            Source::FinalLog { node } => write!(f, "the final log of node {node}"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Claim {
    offset: u64,
    payload: u64,
    source: Source,
}

/// A partition's batches, and what is known of its log.
pub(super) struct Placed {
    pub(super) partition: PartitionKey,
    /// By payload number.
    pub(super) batches: Vec<Batch>,
    /// Indexes into `batches` of those with a place, by offset.
    pub(super) by_offset: Vec<usize>,
    /// First offset from which on all is known, because a node's whole log was read.
    pub(super) known_from: Option<u64>,
}

/// All partitions of a history, each with its batches placed.
pub(super) fn place(history: &History) -> Result<Vec<Placed>, Broken> {
    let mut appends: BTreeMap<PartitionKey, Vec<&Append>> = BTreeMap::new();
    for append in &history.appends {
        appends.entry(append.partition).or_default().push(append);
    }
    let mut claims = claims(history);
    let partitions: Vec<PartitionKey> = appends.keys().chain(claims.keys()).copied().collect();
    for partition in partitions {
        appends.entry(partition).or_default();
        claims.entry(partition).or_default();
    }
    appends
        .into_iter()
        .map(|(partition, appends)| {
            let batches = batches(appends)?;
            let claims = claims.remove(&partition).unwrap_or_default();
            let logs = history.final_logs.iter().filter(|log| log.partition == partition);
            let known_from = logs.map(|log| log.start).min();
            place_one(partition, batches, claims, known_from)
        })
        .collect()
}

fn claims(history: &History) -> BTreeMap<PartitionKey, Vec<Claim>> {
    let mut claims: BTreeMap<PartitionKey, Vec<Claim>> = BTreeMap::new();
    for append in &history.appends {
        if let Outcome::Ok(receipt) = append.outcome {
            let source = Source::Receipt { us: append.returned_us };
            let records = 0..u64::from(append.count);
            let of = |at| Claim { offset: receipt.offset + at, payload: append.payload + at, source };
            claims.entry(append.partition).or_default().extend(records.map(of));
        }
    }
    for read in &history.reads {
        let source = Source::Read { client: read.client, node: read.through_node, us: read.returned_us };
        let records = read.records.iter().map(|&(offset, payload)| Claim { offset, payload, source });
        claims.entry(read.partition).or_default().extend(records);
    }
    for log in &history.final_logs {
        let source = Source::FinalLog { node: log.node };
        let records = log.records.iter().map(|&(offset, payload)| Claim { offset, payload, source });
        claims.entry(log.partition).or_default().extend(records);
    }
    claims
}

/// The attempts, joined to batches.
fn batches(mut appends: Vec<&Append>) -> Result<Vec<Batch>, Broken> {
    appends.sort_by_key(|append| (append.payload, append.invoked_us));
    let mut batches: Vec<Batch> = Vec::new();
    for append in appends {
        match batches.last_mut() {
            Some(last) if last.payload == append.payload => {
                let same = last.count == append.count && append.session.is_some() && last.session == append.session;
                if !same {
                    return broken(rules::WELL_FORMED, format!("two different appends carry the number of {last}"));
                }
            }
            Some(last) if last.payload + u64::from(last.count) > append.payload => {
                let what =
                    format!("{last} and append {} of client {} share payload numbers", append.payload, append.client);
                return broken(rules::WELL_FORMED, what);
            }
            _ => batches.push(Batch::first(append)),
        }
        if let Some(last) = batches.last_mut() {
            last.attempt(append)?;
        }
    }
    Ok(batches)
}

fn place_one(
    partition: PartitionKey,
    mut batches: Vec<Batch>,
    mut claims: Vec<Claim>,
    known_from: Option<u64>,
) -> Result<Placed, Broken> {
    claims.sort_unstable();
    one_payload_per_offset(partition, &claims)?;
    claims.dedup_by_key(|claim| (claim.offset, claim.payload));
    let mut by_payload = claims.clone();
    by_payload.sort_unstable_by_key(|claim| (claim.payload, claim.offset));
    one_offset_per_payload(partition, &by_payload)?;
    for claim in &by_payload {
        place_record(partition, &mut batches, claim)?;
    }
    let mut by_offset: Vec<usize> = (0..batches.len()).filter(|at| batches[*at].offset.is_some()).collect();
    by_offset.sort_unstable_by_key(|at| batches[*at].offset);
    nothing_between(partition, &batches, &by_offset)?;
    Ok(Placed { partition, batches, by_offset, known_from })
}

fn one_payload_per_offset(partition: PartitionKey, claims: &[Claim]) -> Result<(), Broken> {
    for pair in claims.windows(2) {
        let (one, other) = (pair[0], pair[1]);
        if one.offset == other.offset && one.payload != other.payload {
            let receipt = |claim: Claim| matches!(claim.source, Source::Receipt { .. });
            let rule = if receipt(one) || receipt(other) { rules::ACKNOWLEDGED_STAYS } else { rules::ONE_PAYLOAD };
            let what = format!(
                "{partition}: offset {} holds {} by {}, and {} by {}",
                one.offset, one.payload, one.source, other.payload, other.source
            );
            return broken(rule, what);
        }
    }
    Ok(())
}

fn one_offset_per_payload(partition: PartitionKey, by_payload: &[Claim]) -> Result<(), Broken> {
    for pair in by_payload.windows(2) {
        let (one, other) = (pair[0], pair[1]);
        if one.payload == other.payload {
            let what = format!(
                "{partition}: record {} is at offset {} by {}, and at offset {} by {}",
                one.payload, one.offset, one.source, other.offset, other.source
            );
            return broken(rules::AT_MOST_ONCE, what);
        }
    }
    Ok(())
}

/// Gives the claim's batch its place, or holds the claim against the place that it has.
fn place_record(partition: PartitionKey, batches: &mut [Batch], claim: &Claim) -> Result<(), Broken> {
    let at = batches.partition_point(|batch| batch.payload <= claim.payload);
    let batch = at.checked_sub(1).map(|at| &mut batches[at]);
    let Some(batch) = batch.filter(|batch| claim.payload - batch.payload < u64::from(batch.count)) else {
        let what = format!(
            "{partition}: offset {} holds {} by {}, which nobody sent there",
            claim.offset, claim.payload, claim.source
        );
        return broken(rules::NOTHING_INVENTED, what);
    };
    if batch.failed {
        let what = format!("{partition}: {batch} definitely failed, and is at {} by {}", claim.offset, claim.source);
        return broken(rules::FAILED_NEVER_APPEARS, what);
    }
    let into = claim.payload - batch.payload;
    match (claim.offset.checked_sub(into), batch.offset) {
        (Some(offset), None) => batch.offset = Some(offset),
        (Some(offset), Some(placed)) if offset == placed => {}
        (_, placed) => {
            let what = format!(
                "{partition}: record {into} of {batch} is at offset {} by {}; the batch begins at {placed:?}",
                claim.offset, claim.source
            );
            return broken(rules::WHOLE_BATCHES, what);
        }
    }
    Ok(())
}

/// No two batches overlap: a part of one would be missing.
fn nothing_between(partition: PartitionKey, batches: &[Batch], by_offset: &[usize]) -> Result<(), Broken> {
    for pair in by_offset.windows(2) {
        let (one, other) = (&batches[pair[0]], &batches[pair[1]]);
        if one.end() > other.offset {
            let what = format!("{partition}: {one} ends at {:?}, {other} begins at {:?}", one.end(), other.offset);
            return broken(rules::WHOLE_BATCHES, what);
        }
    }
    Ok(())
}
