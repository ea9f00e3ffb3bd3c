//! The only source of wall-clock time: one per node, so that the simulator can skew it.
//!
//! Wall-clock time may influence availability and retention, never order, acknowledgement or exactly-once. Durations
//! are measured in ticks or by the runtime's own timer, not here.

use crate::ids::TimestampMs;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// A node's wall clock. Clones share the skew.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    skew_ms: Arc<AtomicI64>,
}

impl Clock {
    /// What this node takes for the present, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> TimestampMs {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        TimestampMs(since_epoch.saturating_add(self.skew_ms.load(Ordering::Relaxed)).max(0) as u64)
    }

    /// Sets by how much this clock is off, in milliseconds.
    pub fn set_skew_ms(&self, skew_ms: i64) {
        self.skew_ms.store(skew_ms, Ordering::Relaxed);
    }
}
