//! The rules about time: what was known before an operation began, it can't contradict.
//!
//! That nothing is seen before it was sent follows: what was seen up to an offset raises the floor to it, and an append that is
//! sent later can't lie below.
//!
//! One sweep over all moments of a partition. The *floor* is the lowest tail that everything which has ended so far allows; it
//! only rises. Whatever begins is held against the floor of that moment. Moments are compared strictly: what happens in the
//! same microsecond has no order.

use super::check::broken;
use super::placed::{seconds, Placed};
use super::{rules, Broken, History};

/// What is known when an operation has ended: the log reached up to here.
struct Ended {
    us: u64,
    tail: u64,
    what: Known,
}

#[derive(Clone, Copy)]
enum Known {
    Acknowledged { payload: u64 },
    Read { client: u32 },
    Tail { client: u32 },
}

/// What begins, and where it must not be below the floor.
struct Begun {
    us: u64,
    at: u64,
    rule: &'static str,
    what: String,
}

pub(super) fn check(history: &History, placed: &Placed) -> Result<(), Broken> {
    let mut ended = ended(history, placed);
    ended.sort_by_key(|ended| ended.us);
    let mut begun = begun(history, placed);
    begun.sort_by_key(|begun| begun.us);
    let mut ended = ended.into_iter().peekable();
    let mut floor: Option<Ended> = None;
    for begun in begun {
        while let Some(next) = ended.next_if(|ended| ended.us < begun.us) {
            if floor.as_ref().is_none_or(|floor| floor.tail < next.tail) {
                floor = Some(next);
            }
        }
        if let Some(floor) = floor.as_ref().filter(|floor| begun.at < floor.tail) {
            let known = match floor.what {
                Known::Acknowledged { payload } => format!("batch {payload} had been acknowledged"),
                Known::Read { client } => format!("client {client} had read"),
                Known::Tail { client } => format!("client {client} had been told the tail"),
            };
            let what = format!(
                "{}: {} begun at {}; at {} {known} up to offset {}",
                placed.partition,
                begun.what,
                seconds(begun.us),
                seconds(floor.us),
                floor.tail
            );
            return broken(begun.rule, what);
        }
    }
    Ok(())
}

fn ended(history: &History, placed: &Placed) -> Vec<Ended> {
    let acknowledged = placed.batches.iter().filter_map(|batch| {
        let (us, tail) = (batch.acknowledged_us?, batch.end()?);
        Some(Ended { us, tail, what: Known::Acknowledged { payload: batch.payload } })
    });
    let reads = history.reads.iter().filter(|read| read.partition == placed.partition).filter_map(|read| {
        let (offset, _) = *read.records.last()?;
        Some(Ended { us: read.returned_us, tail: offset + 1, what: Known::Read { client: read.client } })
    });
    let tails = history.tails.iter().filter(|tail| tail.partition == placed.partition);
    let tails =
        tails.map(|tail| Ended { us: tail.returned_us, tail: tail.tail, what: Known::Tail { client: tail.client } });
    acknowledged.chain(reads).chain(tails).collect()
}

fn begun(history: &History, placed: &Placed) -> Vec<Begun> {
    let appends = placed.batches.iter().filter_map(|batch| {
        let at = batch.offset?;
        let what = format!("{batch} is at offset {at},");
        Some(Begun { us: batch.invoked_us, at, rule: rules::REAL_TIME, what })
    });
    let tails = history.tails.iter().filter(|tail| tail.partition == placed.partition).map(|tail| {
        let what = format!("client {} was told the tail {}, having", tail.client, tail.tail);
        Begun { us: tail.invoked_us, at: tail.tail, rule: rules::TAIL_LINEARIZABLE, what }
    });
    appends.chain(tails).collect()
}
