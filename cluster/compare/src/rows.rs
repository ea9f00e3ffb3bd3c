//! What is measured: one row of the table for each load.

use crate::load::{Load, Mode};

/// A load, and whom it is put to.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub key: &'static str,
    pub title: &'static str,
    pub load: Load,
    pub against: Against,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    Everybody,
    /// Only the bounds: a question about our own distance from the disk.
    Bounds,
}

impl Row {
    pub fn is_for(&self, peer: &str) -> bool {
        self.against == Against::Everybody || matches!(peer, "bound" | "bound-grpc")
    }
}

/// All rows, in the table's order.
pub const ROWS: &[Row] = &[
    row("unary-64", "single records of 100 B, one call each, 64 in flight", Mode::Unary, 64, 1),
    row("unary-1000", "single records of 100 B, one call each, 1,000 in flight", Mode::Unary, 1000, 1),
    row("one", "single records of 100 B, one at a time", Mode::Unary, 1, 1),
    row("stream-64", "single records of 100 B, Balsa's on its stream, 64 in flight", Mode::Stream, 64, 1),
    row("stream-1000", "single records of 100 B, Balsa's on its stream, 1,000 in flight", Mode::Stream, 1000, 1),
    row("batch-100", "batches of 100 records of 100 B, 32 in flight", Mode::Stream, 32, 100),
    Row {
        key: "kib-batch",
        title: "batches of 100 records of 1 KiB, 32 in flight",
        load: Load { mode: Mode::Stream, in_flight: 32, batch: 100, record_bytes: 1024 },
        against: Against::Bounds,
    },
];

const fn row(key: &'static str, title: &'static str, mode: Mode, in_flight: usize, batch: usize) -> Row {
    Row { key, title, load: Load { mode, in_flight, batch, record_bytes: 100 }, against: Against::Everybody }
}

/// Keys of all rows.
pub fn keys() -> Vec<&'static str> {
    ROWS.iter().map(|row| row.key).collect()
}
