//! Good histories made bad, each in one way that a broken log could show: the checker must refuse every one, by the right rule.
//!
//! A mutation looks for a place in the history where it applies and answers whether it found one. It names all rules by which
//! its result may rightly be refused, since one and the same wrong often breaks several.
//!
//! The file is long because it holds one function for each way of being wrong.

use super::rules::*;
use super::{Append, FinalLog, History, Outcome, PartitionKey, Receipt, SessionPlace};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::Rng;

/// One way of making a good history bad.
pub struct Mutation {
    pub name: &'static str,
    /// The rules that may refuse it.
    pub rules: &'static [&'static str],
    /// Makes it bad; `false` if it found no place, and then the history counts for nothing.
    pub apply: fn(&mut History, &mut StdRng) -> bool,
}

/// More records than any batch has.
const LONGEST_BATCH: u64 = 30;
/// Later than anything in a run.
const RUN_ENDS_US: u64 = u64::MAX / 2;

macro_rules! mutations {
    ($($name:literal by [$($rule:expr),+]: $apply:expr,)*) => {
        /// All of them.
        pub const ALL: &[Mutation] = &[$(Mutation { name: $name, rules: &[$($rule),+], apply: $apply },)*];
    };
}

mutations! {
    "all lose the last acknowledged batch" by [ACKNOWLEDGED_STAYS]: lose_acknowledged,
    "one replica lacks the end" by [REPLICAS_AGREE, ACKNOWLEDGED_STAYS, WHOLE_BATCHES, VISIBLE_STAYS]: shorten_one,
    "one replica has what the others lack" by [REPLICAS_AGREE]: lengthen_one,
    "a record seen by a read is gone at the end" by [VISIBLE_STAYS]: lose_what_was_read,
    "a tail was told that the log does not reach" by [VISIBLE_STAYS, TAIL_LINEARIZABLE, REAL_TIME]: tail_beyond_the_end,
    "two records swap in one read" by [ACKNOWLEDGED_STAYS, ONE_PAYLOAD, AT_MOST_ONCE]: swap_in_read,
    "two records swap in one replica" by [ACKNOWLEDGED_STAYS, ONE_PAYLOAD]: swap_in_replica,
    "two records of a batch swap everywhere" by [WHOLE_BATCHES, ACKNOWLEDGED_STAYS]: swap_inside_batch,
    "an acknowledged batch is overwritten everywhere" by [ACKNOWLEDGED_STAYS]: overwrite_acknowledged,
    "a read leaves a record out" by [DENSE]: gap_in_read,
    "a read begins too late" by [DENSE]: read_begins_late,
    "a read gives a record twice" by [DENSE]: read_repeats,
    "a replica's log has a gap" by [DENSE]: gap_in_replica,
    "a receipt is off by one" by [ACKNOWLEDGED_STAYS, AT_MOST_ONCE, WHOLE_BATCHES]: receipt_off_by_one,
    "two batches get the same offset" by [ACKNOWLEDGED_STAYS, AT_MOST_ONCE]: same_offset_twice,
    "an unknown append is there twice" by [AT_MOST_ONCE]: unknown_twice,
    "a session's retry is appended again" by [AT_MOST_ONCE]: retry_twice,
    "a retry gets another receipt" by [AT_MOST_ONCE]: retry_other_receipt,
    "what failed is in the log" by [FAILED_NEVER_APPEARS]: failed_appears,
    "what failed is seen by one read" by [FAILED_NEVER_APPEARS, ACKNOWLEDGED_STAYS, ONE_PAYLOAD]: failed_is_read,
    "what nobody sent is in the log" by [NOTHING_INVENTED]: invented,
    "another partition's record is in the log" by [NOTHING_INVENTED]: from_another_partition,
    "half of a batch is in the log" by [WHOLE_BATCHES]: half_a_batch,
    "a tail is behind an acknowledgement" by [TAIL_LINEARIZABLE]: tail_behind_acknowledgement,
    "a tail is behind an earlier read" by [TAIL_LINEARIZABLE]: tail_behind_read,
    "a tail is behind an earlier tail" by [TAIL_LINEARIZABLE]: tail_behind_tail,
    "a tail is told before its records were sent" by [REAL_TIME, TAIL_LINEARIZABLE]: tail_from_the_future,
    "a record is read before it was sent" by [REAL_TIME, TAIL_LINEARIZABLE]: read_from_the_future,
    "two acknowledged appends change places" by [REAL_TIME, TAIL_LINEARIZABLE, FENCE_HOLDS]: out_of_order,
    "an unknown append is placed before what preceded it" by [REAL_TIME, TAIL_LINEARIZABLE, FENCE_HOLDS]: unknown_out_of_order,
    "an append is not where it was expected" by [EXPECTED_OFFSET]: unexpected_offset,
    "a session's batch was left out" by [SESSION_ORDER]: session_gap,
    "two batches of a session change places" by [SESSION_ORDER]: session_out_of_order,
    "a session's epoch goes back" by [SESSION_ORDER]: session_epoch_back,
    "a term goes back" by [TERMS_RISE]: term_back,
    "a watch skips a revision" by [WATCH_COMPLETE]: watch_skips,
    "a watch goes back" by [WATCH_FORWARD]: watch_goes_back,
    "a watch tells a revision twice" by [WATCH_FORWARD]: watch_repeats,
    "two watchers are told different things" by [WATCH_AGREES]: watch_differs,
    "the catalog takes a report of an older leader" by [LEADERS_RISE]: leader_goes_back,
    "a term has two leaders in the catalog" by [LEADERS_RISE]: two_leaders_of_a_term,
    "an append passes under a lower token" by [FENCE_HOLDS]: lower_token,
    "an append passes a fence that was raised before it" by [FENCE_HOLDS]: raised_before,
    "the log's time goes back" by [TIME_RISES]: time_goes_back,
    "a record has two times" by [TIME_RISES]: two_times,
    "a time finds too late an offset" by [BY_TIME]: found_too_late,
    "a time finds too early an offset" by [BY_TIME]: found_too_early,
    "two appends carry the same number" by [WELL_FORMED]: number_used_twice,
}

fn acknowledged(history: &History) -> Vec<(usize, Receipt)> {
    let receipt = |(at, append): (usize, &Append)| match append.outcome {
        Outcome::Ok(receipt) => Some((at, receipt)),
        Outcome::Failed | Outcome::Unknown => None,
    };
    history.appends.iter().enumerate().filter_map(receipt).collect()
}

fn end_of_log(history: &History, partition: PartitionKey) -> u64 {
    let log = history.final_logs.iter().find(|log| log.partition == partition);
    log.map_or(0, |log| log.start + log.records.len() as u64)
}

fn append_to_logs(history: &mut History, partition: PartitionKey, payloads: impl Iterator<Item = u64> + Clone) {
    for log in history.final_logs.iter_mut().filter(|log| log.partition == partition) {
        let end = log.start + log.records.len() as u64;
        log.records.extend((end..).zip(payloads.clone()));
    }
}

/// Everybody's view of one partition, with its payload numbers changed.
fn renumber(history: &mut History, partition: PartitionKey, number: impl Fn(u64, u64) -> u64) {
    let reads = history.reads.iter_mut().filter(|read| read.partition == partition).map(|read| &mut read.records);
    let logs = history.final_logs.iter_mut().filter(|log| log.partition == partition).map(|log| &mut log.records);
    for (offset, payload) in reads.chain(logs).flatten() {
        *payload = number(*offset, *payload);
    }
}

fn log_holds(log: &FinalLog, append: &Append) -> bool {
    log.records.iter().any(|(_, payload)| *payload == append.payload)
}

fn is_in_a_log(history: &History, append: &Append) -> bool {
    history.final_logs.iter().any(|log| log.partition == append.partition && log_holds(log, append))
}

/// An append of one record that nobody has seen. Gives its payload.
fn unseen_append(history: &mut History, partition: PartitionKey, invoked_us: u64, returned_us: u64) -> u64 {
    let payload = history.appends.iter().map(|append| append.payload + u64::from(append.count)).max().unwrap_or(1);
    history.append(Append {
        client: 1,
        partition,
        payload,
        count: 1,
        invoked_us,
        returned_us,
        outcome: Outcome::Unknown,
        expected_offset: None,
        session: None,
    });
    payload
}

fn read_longer_than(records: usize, history: &History, rng: &mut StdRng) -> Option<usize> {
    let reads: Vec<usize> = (0..history.reads.len()).filter(|at| history.reads[*at].records.len() > records).collect();
    pick(&reads, rng)
}

fn cut(history: &mut History, partition: PartitionKey, end: u64) {
    for log in history.final_logs.iter_mut().filter(|log| log.partition == partition) {
        log.records.retain(|(offset, _)| *offset < end);
    }
}

fn pick<T: Clone>(from: &[T], rng: &mut StdRng) -> Option<T> {
    from.choose(rng).cloned()
}

/// Two acknowledged single appends of equal size in one partition, the first wholly before the second, outside sessions.
fn ordered_pair(history: &History, rng: &mut StdRng) -> Option<(usize, usize)> {
    let plain: Vec<(usize, Receipt)> =
        acknowledged(history).into_iter().filter(|(at, _)| plain_append(&history.appends[*at])).collect();
    let mut pairs = Vec::new();
    for (one, _) in &plain {
        for (other, _) in &plain {
            let (first, second) = (&history.appends[*one], &history.appends[*other]);
            let alike = first.partition == second.partition && first.count == second.count;
            if alike && first.returned_us < second.invoked_us {
                pairs.push((*one, *other));
            }
        }
    }
    pick(&pairs, rng)
}

fn plain_append(append: &Append) -> bool {
    append.session.is_none() && append.expected_offset.is_none()
}

/// Two batches change places in everybody's view, receipts included.
fn swap_batches(history: &mut History, one: usize, other: usize) {
    let (first, second) = (history.appends[one].clone(), history.appends[other].clone());
    let count = u64::from(first.count);
    renumber(history, first.partition, |_, payload| {
        if (first.payload..first.payload + count).contains(&payload) {
            second.payload + (payload - first.payload)
        } else if (second.payload..second.payload + count).contains(&payload) {
            first.payload + (payload - second.payload)
        } else {
            payload
        }
    });
    (history.appends[one].outcome, history.appends[other].outcome) = (second.outcome, first.outcome);
    for at in [one, other] {
        if let Outcome::Ok(receipt) = &mut history.appends[at].outcome {
            receipt.term = 0;
        }
    }
}

fn lose_acknowledged(history: &mut History, rng: &mut StdRng) -> bool {
    let Some((at, _)) = pick(&acknowledged(history), rng) else { return false };
    let partition = history.appends[at].partition;
    let in_partition = acknowledged(history).into_iter().filter(|(at, _)| history.appends[*at].partition == partition);
    let Some(last) = in_partition.map(|(_, receipt)| receipt.offset).max() else { return false };
    let in_a_log = history
        .final_logs
        .iter()
        .any(|log| log.partition == partition && log.records.iter().any(|(offset, _)| *offset == last));
    cut(history, partition, last);
    in_a_log
}

/// A batch that nobody knows of, in one replica's log alone.
fn lengthen_one(history: &mut History, rng: &mut StdRng) -> bool {
    let at = rng.gen_range(0..history.final_logs.len());
    let partition = history.final_logs[at].partition;
    let payload = unseen_append(history, partition, RUN_ENDS_US - 1, RUN_ENDS_US);
    let log = &mut history.final_logs[at];
    log.records.push((log.start + log.records.len() as u64, payload));
    history.final_logs.iter().filter(|log| log.partition == partition).count() > 1
}

fn shorten_one(history: &mut History, rng: &mut StdRng) -> bool {
    let at = rng.gen_range(0..history.final_logs.len());
    history.final_logs[at].records.pop().is_some()
}

fn lose_what_was_read(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(at) = (0..history.reads.len()).collect::<Vec<_>>().choose(rng).copied() else { return false };
    let partition = history.reads[at].partition;
    let end = end_of_log(history, partition);
    // One that nobody acknowledged, read at the very end of the run and lost after.
    let payload = unseen_append(history, partition, RUN_ENDS_US - 10, RUN_ENDS_US - 5);
    let read = &mut history.reads[at];
    read.from = end;
    read.records = vec![(end, payload)];
    (read.invoked_us, read.returned_us) = (RUN_ENDS_US - 1, RUN_ENDS_US);
    true
}

fn tail_beyond_the_end(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(at) = (0..history.tails.len()).max_by_key(|at| history.tails[*at].invoked_us) else { return false };
    history.tails[at].tail = end_of_log(history, history.tails[at].partition) + rng.gen_range(1..3);
    true
}

fn swap_in_read(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(at) = read_longer_than(1, history, rng) else { return false };
    let records = &mut history.reads[at].records;
    let one = rng.gen_range(1..records.len());
    (records[one - 1].1, records[one].1) = (records[one].1, records[one - 1].1);
    true
}

fn swap_in_replica(history: &mut History, rng: &mut StdRng) -> bool {
    let at = rng.gen_range(0..history.final_logs.len());
    let records = &mut history.final_logs[at].records;
    if records.len() < 2 {
        return false;
    }
    let one = rng.gen_range(1..records.len());
    (records[one - 1].1, records[one].1) = (records[one].1, records[one - 1].1);
    true
}

fn swap_inside_batch(history: &mut History, rng: &mut StdRng) -> bool {
    let long: Vec<Append> = history
        .appends
        .iter()
        .filter(|append| append.count > 1 && append.outcome != Outcome::Failed && append.session.is_none())
        .filter(|append| is_in_a_log(history, append))
        .cloned()
        .collect();
    let Some(append) = pick(&long, rng) else { return false };
    renumber(history, append.partition, |_, payload| match payload.wrapping_sub(append.payload) {
        0 => payload + 1,
        1 => payload - 1,
        _ => payload,
    });
    true
}

fn overwrite_acknowledged(history: &mut History, rng: &mut StdRng) -> bool {
    let Some((one, other)) = ordered_pair(history, rng) else { return false };
    let outcomes = (history.appends[one].outcome, history.appends[other].outcome);
    swap_batches(history, one, other);
    // The receipts stay what they were: only the log changes.
    (history.appends[one].outcome, history.appends[other].outcome) = outcomes;
    true
}

fn gap_in_read(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(at) = read_longer_than(2, history, rng) else { return false };
    let records = &mut history.reads[at].records;
    records.remove(rng.gen_range(1..records.len() - 1));
    true
}

fn read_begins_late(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(at) = read_longer_than(1, history, rng) else { return false };
    history.reads[at].records.remove(0);
    true
}

fn read_repeats(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(at) = read_longer_than(0, history, rng) else { return false };
    let records = &mut history.reads[at].records;
    let one = rng.gen_range(0..records.len());
    records.insert(one, records[one]);
    true
}

fn gap_in_replica(history: &mut History, rng: &mut StdRng) -> bool {
    let at = rng.gen_range(0..history.final_logs.len());
    let records = &mut history.final_logs[at].records;
    if records.len() < 3 {
        return false;
    }
    records.remove(rng.gen_range(1..records.len() - 1));
    true
}

fn receipt_off_by_one(history: &mut History, rng: &mut StdRng) -> bool {
    let single = acknowledged(history).into_iter().filter(|(at, _)| history.appends[*at].session.is_none());
    let Some((at, receipt)) = pick(&single.collect::<Vec<_>>(), rng) else { return false };
    let offset = if rng.gen() || receipt.offset == 0 { receipt.offset + 1 } else { receipt.offset - 1 };
    history.appends[at].outcome = Outcome::Ok(Receipt { offset, ..receipt });
    true
}

fn same_offset_twice(history: &mut History, rng: &mut StdRng) -> bool {
    let Some((one, other)) = ordered_pair(history, rng) else { return false };
    history.appends[other].outcome = history.appends[one].outcome;
    true
}

fn unknown_twice(history: &mut History, rng: &mut StdRng) -> bool {
    let seen: Vec<Append> = history
        .appends
        .iter()
        .filter(|append| append.outcome == Outcome::Unknown && append.session.is_none())
        .filter(|append| is_in_a_log(history, append))
        .cloned()
        .collect();
    let Some(append) = pick(&seen, rng) else { return false };
    append_to_logs(history, append.partition, append.payload..append.payload + u64::from(append.count));
    true
}

fn retry_twice(history: &mut History, rng: &mut StdRng) -> bool {
    let of_sessions = acknowledged(history).into_iter().filter(|(at, _)| history.appends[*at].session.is_some());
    let Some((at, _)) = pick(&of_sessions.collect::<Vec<_>>(), rng) else { return false };
    let append = history.appends[at].clone();
    append_to_logs(history, append.partition, append.payload..append.payload + u64::from(append.count));
    true
}

fn retry_other_receipt(history: &mut History, rng: &mut StdRng) -> bool {
    let of_sessions = acknowledged(history).into_iter().filter(|(at, _)| history.appends[*at].session.is_some());
    let Some((at, receipt)) = pick(&of_sessions.collect::<Vec<_>>(), rng) else { return false };
    let mut again = history.appends[at].clone();
    again.invoked_us = again.returned_us + 1;
    again.returned_us += 10;
    again.outcome = Outcome::Ok(Receipt { offset: receipt.offset + u64::from(again.count), term: 0 });
    history.append(again);
    true
}

fn failed(history: &History, rng: &mut StdRng) -> Option<Append> {
    let failed = history.appends.iter().filter(|append| append.outcome == Outcome::Failed && append.session.is_none());
    pick(&failed.cloned().collect::<Vec<_>>(), rng)
}

fn failed_appears(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(append) = failed(history, rng) else { return false };
    append_to_logs(history, append.partition, append.payload..append.payload + u64::from(append.count));
    true
}

fn failed_is_read(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(append) = failed(history, rng) else { return false };
    let last = |read: &&mut super::Read| read.partition == append.partition && !read.records.is_empty();
    let Some(read) = history.reads.iter_mut().filter(last).max_by_key(|read| read.returned_us) else { return false };
    if let Some((_, payload)) = read.records.last_mut() {
        *payload = append.payload;
    }
    true
}

fn invented(history: &mut History, rng: &mut StdRng) -> bool {
    let at = rng.gen_range(0..history.final_logs.len());
    let partition = history.final_logs[at].partition;
    append_to_logs(history, partition, [u64::MAX / 3].into_iter());
    true
}

fn from_another_partition(history: &mut History, rng: &mut StdRng) -> bool {
    let Some((at, _)) = pick(&acknowledged(history), rng) else { return false };
    let append = history.appends[at].clone();
    let other = history.final_logs.iter().map(|log| log.partition).find(|partition| *partition != append.partition);
    let Some(other) = other else { return false };
    append_to_logs(history, other, [append.payload].into_iter());
    true
}

fn half_a_batch(history: &mut History, rng: &mut StdRng) -> bool {
    let never_there = history.appends.iter().filter(|append| {
        let mut reads = history.reads.iter();
        append.outcome == Outcome::Unknown
            && !reads.any(|read| read.records.iter().any(|(_, payload)| *payload == append.payload))
            && append.session.is_none()
            && append.expected_offset.is_none()
            && append.count > 1
            && !is_in_a_log(history, append)
    });
    let Some(append) = pick(&never_there.cloned().collect::<Vec<_>>(), rng) else { return false };
    append_to_logs(history, append.partition, append.payload..append.payload + u64::from(append.count) - 1);
    true
}

/// A tail that began after something had ended which reached up to an offset above zero, and that offset.
fn tail_after(history: &History, rng: &mut StdRng, ended: &[(PartitionKey, u64, u64)]) -> Option<(usize, u64)> {
    let mut found = Vec::new();
    for (at, tail) in history.tails.iter().enumerate() {
        let before = ended.iter().filter(|(partition, us, _)| *partition == tail.partition && *us < tail.invoked_us);
        if let Some(reached) = before.map(|(_, _, reached)| *reached).max().filter(|reached| *reached > 0) {
            found.push((at, reached));
        }
    }
    pick(&found, rng)
}

fn tail_behind_acknowledgement(history: &mut History, rng: &mut StdRng) -> bool {
    let ended: Vec<_> = acknowledged(history)
        .into_iter()
        .map(|(at, receipt)| (&history.appends[at], receipt))
        .map(|(append, receipt)| (append.partition, append.returned_us, receipt.offset + u64::from(append.count)))
        .collect();
    let Some((at, reached)) = tail_after(history, rng, &ended) else { return false };
    history.tails[at].tail = reached - 1;
    true
}

fn tail_behind_read(history: &mut History, rng: &mut StdRng) -> bool {
    let ended: Vec<_> = history
        .reads
        .iter()
        .filter_map(|read| Some((read.partition, read.returned_us, read.records.last()?.0 + 1)))
        .collect();
    let Some((at, reached)) = tail_after(history, rng, &ended) else { return false };
    history.tails[at].tail = reached - 1;
    true
}

fn tail_behind_tail(history: &mut History, rng: &mut StdRng) -> bool {
    let ended: Vec<_> = history.tails.iter().map(|tail| (tail.partition, tail.returned_us, tail.tail)).collect();
    let Some((at, reached)) = tail_after(history, rng, &ended) else { return false };
    history.tails[at].tail = reached - 1;
    true
}

fn tail_from_the_future(history: &mut History, rng: &mut StdRng) -> bool {
    let early = history.tails.len() / 4;
    if early == 0 {
        return false;
    }
    let at = rng.gen_range(0..early);
    let tail = &history.tails[at];
    let end = end_of_log(history, tail.partition);
    if end == tail.tail {
        return false;
    }
    history.tails[at].tail = end;
    true
}

fn read_from_the_future(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(at) = read_longer_than(0, history, rng) else { return false };
    let read = &history.reads[at];
    let last = read.records.last().map(|(_, payload)| *payload);
    let holds = |append: &Append| {
        last.is_some_and(|last| (append.payload..append.payload + u64::from(append.count)).contains(&last))
    };
    let Some(append) = history.appends.iter().filter(|append| holds(append)).min_by_key(|append| append.invoked_us)
    else {
        return false;
    };
    let sent = append.invoked_us;
    let read = &mut history.reads[at];
    (read.invoked_us, read.returned_us) = (sent.saturating_sub(2), sent.saturating_sub(1));
    true
}

fn out_of_order(history: &mut History, rng: &mut StdRng) -> bool {
    let Some((one, other)) = ordered_pair(history, rng) else { return false };
    swap_batches(history, one, other);
    true
}

fn unknown_out_of_order(history: &mut History, rng: &mut StdRng) -> bool {
    let Some((one, other)) = ordered_pair(history, rng) else { return false };
    let logs = history.final_logs.clone();
    swap_batches(history, one, other);
    history.appends[other].outcome = Outcome::Unknown;
    history.final_logs != logs // what was trimmed has no place any more
}

fn unexpected_offset(history: &mut History, rng: &mut StdRng) -> bool {
    let single = acknowledged(history).into_iter().filter(|(at, _)| history.appends[*at].session.is_none());
    let Some((at, receipt)) = pick(&single.collect::<Vec<_>>(), rng) else { return false };
    history.appends[at].expected_offset = Some(receipt.offset + 1);
    true
}

/// Changes every attempt at the batch of this session place.
fn change_place(history: &mut History, place: SessionPlace, to: SessionPlace) {
    for append in &mut history.appends {
        if append.session == Some(place) {
            append.session = Some(to);
        }
    }
}

/// Of batches that the logs still hold: nobody can tell where the others were.
fn places(history: &History) -> Vec<SessionPlace> {
    let held = history.appends.iter().filter(|append| is_in_a_log(history, append));
    let mut places: Vec<SessionPlace> = held.filter_map(|append| append.session).collect();
    places.sort_unstable();
    places.dedup();
    places
}

fn session_gap(history: &mut History, rng: &mut StdRng) -> bool {
    // One that lies in a log which is known from its beginning: elsewhere nobody can tell what is missing.
    let in_a_whole_log = |append: &&Append| {
        let logs = history.final_logs.iter().filter(|log| log.partition == append.partition);
        let mut lowest = logs.min_by_key(|log| log.start).into_iter().filter(|log| log.start == 0);
        lowest.any(|log| log_holds(log, append))
    };
    let there = history.appends.iter().filter(in_a_whole_log).filter_map(|append| append.session);
    let Some(place) = pick(&there.collect::<Vec<_>>(), rng) else { return false };
    for later in places(history).into_iter().rev() {
        if later.producer == place.producer && later.sequence >= place.sequence {
            change_place(history, later, SessionPlace { sequence: later.sequence + 1, ..later });
        }
    }
    true
}

fn session_out_of_order(history: &mut History, rng: &mut StdRng) -> bool {
    let places = places(history);
    let pairs: Vec<_> = places.windows(2).filter(|pair| pair[0].producer == pair[1].producer).collect();
    let Some(pair) = pairs.choose(rng) else { return false };
    let (one, other) = (pair[0], pair[1]);
    let aside = SessionPlace { producer: u64::MAX, ..one };
    change_place(history, one, aside);
    change_place(history, other, one);
    change_place(history, aside, other);
    true
}

fn session_epoch_back(history: &mut History, rng: &mut StdRng) -> bool {
    let places = places(history);
    let later = places.windows(2).filter(|pair| pair[0].producer == pair[1].producer && pair[0].epoch > 0);
    let Some(pair) = pick(&later.collect::<Vec<_>>(), rng) else { return false };
    change_place(history, pair[1], SessionPlace { epoch: 0, ..pair[1] });
    true
}

fn term_back(history: &mut History, rng: &mut StdRng) -> bool {
    let told: Vec<(usize, Receipt)> =
        acknowledged(history).into_iter().filter(|(_, receipt)| receipt.term > 1 && receipt.offset > 0).collect();
    let Some((at, receipt)) = pick(&told, rng) else { return false };
    let partition = history.appends[at].partition;
    let before = told
        .iter()
        .any(|(other, earlier)| history.appends[*other].partition == partition && earlier.offset < receipt.offset);
    history.appends[at].outcome = Outcome::Ok(Receipt { term: 1, ..receipt });
    before
}

fn watch_skips(history: &mut History, rng: &mut StdRng) -> bool {
    if history.watches.len() < 2 {
        return false;
    }
    // A revision that another watcher was told too.
    let at = rng.gen_range(0..history.watches.len());
    let others: Vec<u64> = history
        .watches
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != at)
        .flat_map(|(_, watch)| watch.changes.iter().map(|(revision, _)| *revision))
        .collect();
    let changes = &mut history.watches[at].changes;
    let inner: Vec<usize> =
        (0..changes.len().saturating_sub(1)).filter(|one| others.contains(&changes[*one].0)).collect();
    let Some(one) = inner.choose(rng) else { return false };
    changes.remove(*one);
    true
}

fn watch_goes_back(history: &mut History, rng: &mut StdRng) -> bool {
    if history.watches.len() < 2 {
        return false;
    }
    let at = rng.gen_range(0..history.watches.len());
    let changes = &mut history.watches[at].changes;
    if changes.len() < 2 {
        return false;
    }
    let one = rng.gen_range(1..changes.len());
    changes.swap(one - 1, one);
    true
}

fn watch_repeats(history: &mut History, rng: &mut StdRng) -> bool {
    if history.watches.len() < 2 {
        return false;
    }
    let at = rng.gen_range(0..history.watches.len());
    let changes = &mut history.watches[at].changes;
    let Some(change) = changes.choose(rng).copied() else { return false };
    changes.push(change);
    true
}

fn watch_differs(history: &mut History, rng: &mut StdRng) -> bool {
    if history.watches.len() < 2 {
        return false;
    }
    let (one, other) = (history.watches[0].clone(), &mut history.watches[1]);
    let both: Vec<usize> = (0..other.changes.len()).filter(|at| one.changes.contains(&other.changes[*at])).collect();
    let Some(at) = both.choose(rng) else { return false };
    other.changes[*at].1 += 1_000;
    true
}

fn number_used_twice(history: &mut History, rng: &mut StdRng) -> bool {
    let plain: Vec<Append> = history.appends.iter().filter(|append| append.session.is_none()).cloned().collect();
    let Some(append) = pick(&plain, rng) else { return false };
    history.append(append);
    true
}

fn leader_goes_back(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(now) = pick(&history.leaders, rng) else { return false };
    let older = history.leaders.iter().copied().filter(|one| one.group == now.group && one.revision < now.revision);
    let Some(older) = pick(&older.collect::<Vec<_>>(), rng) else { return false };
    let revision = history.leaders.iter().map(|one| one.revision).max().unwrap_or_default() + 1;
    history.leaders.push(super::LeaderTold { revision, ..older });
    true
}

fn two_leaders_of_a_term(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(one) = pick(&history.leaders, rng) else { return false };
    history.leaders.push(super::LeaderTold { client: one.client + 1, node: one.node + 1, ..one });
    true
}

/// Offset of a fenced append, as far as it is known.
fn place_of(history: &History, fenced: &super::Fenced) -> Option<u64> {
    let logs = history.final_logs.iter().filter(|log| log.partition == fenced.partition);
    let records = logs.flat_map(|log| &log.records);
    records.into_iter().find(|(_, payload)| *payload == fenced.payload).map(|(offset, _)| *offset)
}

fn lower_token(history: &mut History, rng: &mut StdRng) -> bool {
    let places: Vec<Option<u64>> = history.fenced.iter().map(|fenced| place_of(history, fenced)).collect();
    let behind: Vec<usize> = (0..places.len())
        .filter(|at| {
            let now = &history.fenced[*at];
            let before = history.fenced.iter().zip(&places).filter(|(one, place)| {
                one.partition == now.partition
                    && one.fence.name == now.fence.name
                    && place.is_some()
                    && **place < places[*at]
            });
            before.count() > 0
        })
        .collect();
    let Some(at) = pick(&behind, rng) else { return false };
    history.fenced[at].fence.token = 0;
    true
}

fn raised_before(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(fenced) = pick(&history.fenced, rng) else { return false };
    let Some(sent) = history.appends.iter().filter(|one| one.payload == fenced.payload).map(|one| one.invoked_us).min()
    else {
        return false;
    };
    let fence = super::Fence { token: fenced.fence.token + 1, ..fenced.fence };
    let raise = super::Raise { client: 1, partition: fenced.partition, fence, returned_us: sent - 1 };
    history.raises.push(raise);
    place_of(history, &fenced).is_some()
}

fn time_goes_back(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(stamp) = pick(&history.stamps, rng) else { return false };
    let before = history.stamps.iter().any(|one| one.partition == stamp.partition && one.offset < stamp.offset);
    if !before || stamp.timestamp_ms == 0 {
        return false;
    }
    let here = |one: &&mut super::Stamp| (one.partition, one.offset) == (stamp.partition, stamp.offset);
    history.stamps.iter_mut().filter(here).for_each(|one| one.timestamp_ms = 0);
    let mut here = history.stamps.iter().filter(|one| one.partition == stamp.partition && one.offset < stamp.offset);
    here.any(|one| one.timestamp_ms > 0)
}

fn two_times(history: &mut History, rng: &mut StdRng) -> bool {
    let Some(stamp) = pick(&history.stamps, rng) else { return false };
    history.stamps.push(super::Stamp { timestamp_ms: stamp.timestamp_ms + 1, ..stamp });
    true
}

fn found_too_late(history: &mut History, rng: &mut StdRng) -> bool {
    // Not where it may have been trimmed.
    let kept = |stamp: &super::Stamp| {
        let logs = history.final_logs.iter().filter(|log| log.partition == stamp.partition);
        logs.map(|log| log.start).max().is_some_and(|start| stamp.offset > start + LONGEST_BATCH)
    };
    let known = |one: &super::ByTime, stamp: &super::Stamp| {
        one.partition == stamp.partition
            && one.offset <= stamp.offset
            && stamp.timestamp_ms >= one.time_ms
            && kept(stamp)
    };
    let all: Vec<(usize, u64)> = (history.by_time.iter().enumerate())
        .filter_map(|(at, one)| Some((at, history.stamps.iter().find(|stamp| known(one, stamp))?.offset)))
        .collect();
    let Some((at, offset)) = pick(&all, rng) else { return false };
    history.by_time[at].offset = offset + 1;
    true
}

fn found_too_early(history: &mut History, rng: &mut StdRng) -> bool {
    let older = |one: &super::ByTime, stamp: &super::Stamp| {
        one.partition == stamp.partition && stamp.returned_us < one.invoked_us && stamp.timestamp_ms < one.time_ms
    };
    let all: Vec<(usize, u64)> = (history.by_time.iter().enumerate())
        .filter_map(|(at, one)| Some((at, history.stamps.iter().find(|stamp| older(one, stamp))?.offset)))
        .collect();
    let Some((at, offset)) = pick(&all, rng) else { return false };
    history.by_time[at].offset = offset;
    true
}
