//! What a partition's log holds, as its committed entries say; and what clients were promised of it.
//!
//! Records carry a number each that is never used twice. Filled from the first replica that applies an entry; everything that is read
//! or acknowledged anywhere is held against it.

use balsa::batch;
use balsa::segments::verdict::Verdict;
use balsa::segments::{EntryKind, Frame, ReadBatch};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// See the module's text.
#[derive(Default)]
pub struct Ledger {
    last_index: u64,
    /// Payloads by offset.
    pub log: Vec<u64>,
    offsets: BTreeMap<u64, u64>,
    /// Payloads that definitely did not happen.
    denied: BTreeSet<u64>,
    /// One past the highest offset that was acknowledged.
    pub acknowledged: u64,
}

type Breach = (&'static str, String);

/// The number in a record's value.
pub fn payload_of(value: Option<&Bytes>) -> u64 {
    let bytes = value.and_then(|value| value.get(..8)).and_then(|head| <[u8; 8]>::try_from(head).ok());
    bytes.map_or(0, u64::from_le_bytes)
}

impl Ledger {
    /// An entry was applied somewhere.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn applied(&mut self, frame: &Frame) -> Result<(), Breach> {
        if frame.index.0 <= self.last_index {
            return Ok(());
        }
        self.last_index = frame.index.0;
        if frame.kind != EntryKind::Commands {
            return Ok(());
        }
        for item in &frame.items {
            let (Verdict::Appended { offset, count }, Some(at)) = (item.verdict, item.batch_at) else { continue };
            if offset.0 != self.log.len() as u64 {
                return Err((
                    "offsets-dense",
                    format!("records are appended at {offset}; the log ends at {}", self.log.len()),
                ));
            }
            let batch = frame.data.slice(at as usize..);
            let before = self.log.len();
            for record in batch::records(&batch) {
                self.append(payload_of(record.value.as_ref()))?;
            }
            if (self.log.len() - before) as u64 != u64::from(count) {
                return Err((
                    "offsets-dense",
                    format!("{count} records were promised, {} appended", self.log.len() - before),
                ));
            }
        }
        Ok(())
    }

    fn append(&mut self, payload: u64) -> Result<(), Breach> {
        let offset = self.log.len() as u64;
        if let Some(first) = self.offsets.insert(payload, offset) {
            return Err(("record-doubled", format!("record {payload:#x} lies at {first} and again at {offset}")));
        }
        if self.denied.contains(&payload) {
            return Err(("denied-record-appears", format!("record {payload:#x} was denied, and lies at {offset}")));
        }
        self.log.push(payload);
        Ok(())
    }

    /// A client was told where its records lie.
    ///
    /// # Errors
    /// If they don't.
    pub fn acknowledged(&mut self, offset: u64, payloads: &[u64]) -> Result<(), Breach> {
        for (at, payload) in (offset..).zip(payloads) {
            let lies = self.log.get(at as usize).copied();
            if lies != Some(*payload) {
                return Err((
                    "acknowledged-lost",
                    format!("record {payload:#x} was acknowledged at {at}, where {lies:x?} lies"),
                ));
            }
        }
        self.acknowledged = self.acknowledged.max(offset + payloads.len() as u64);
        Ok(())
    }

    /// A client was told that its records were not appended and never will be.
    ///
    /// # Errors
    /// If one of them was.
    pub fn denied(&mut self, payloads: &[u64]) -> Result<(), Breach> {
        for payload in payloads {
            if let Some(offset) = self.offsets.get(payload) {
                return Err(("denied-record-appears", format!("record {payload:#x} lies at {offset}, and is denied")));
            }
            self.denied.insert(*payload);
        }
        Ok(())
    }

    /// Batches that were read from offset `from` on; returns the offset after the last one.
    ///
    /// # Errors
    /// If they are not what the log holds.
    pub fn read(&self, from: u64, batches: &[ReadBatch]) -> Result<u64, Breach> {
        let mut next = None;
        for read in batches {
            let base = read.base_offset.0;
            if next.unwrap_or(base) != base || (next.is_none() && (base > from || base + u64::from(read.count) <= from))
            {
                return Err(("read-wrong", format!("a read from {from} gives a batch at {base} of {}", read.count)));
            }
            let mut at = base;
            for record in batch::records(&read.batch) {
                let (payload, lies) = (payload_of(record.value.as_ref()), self.log.get(at as usize).copied());
                if record.offset.0 != at || lies != Some(payload) {
                    let what =
                        format!("record {payload:#x} is read at {}, where {lies:x?} lies at {at}", record.offset);
                    return Err(("read-wrong", what));
                }
                at += 1;
            }
            if at != base + u64::from(read.count) {
                return Err(("read-wrong", format!("a batch at {base} of {} records holds {}", read.count, at - base)));
            }
            next = Some(at);
        }
        Ok(next.unwrap_or(from))
    }
}
