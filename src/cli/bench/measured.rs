//! What was measured: latencies, records, and what the nodes used meanwhile.

use super::Failure;
use crate::client::Client;
use crate::ids::NodeId;
use crate::usage::Usage;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Longest latency told apart, in microseconds.
const LATENCY_MAX_US: u64 = 120_000_000;

/// What one worker measured.
pub(super) struct Measured {
    latency_us: Histogram<u64>,
    pub(super) records: u64,
}

impl Measured {
    pub(super) fn new() -> Result<Measured, Failure> {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3);
        let latency_us = latency_us.map_err(|error| Failure::failed(format!("cannot measure: {error}")))?;
        Ok(Measured { latency_us, records: 0 })
    }

    pub(super) fn note(&mut self, latency: Duration, records: u64) {
        self.latency_us.saturating_record(latency.as_micros() as u64);
        self.records += records;
    }

    pub(super) fn add(&mut self, other: &Measured) -> Result<(), Failure> {
        self.records += other.records;
        self.latency_us.add(&other.latency_us).map_err(|error| Failure::failed(format!("cannot measure: {error}")))
    }

    /// The latency that this share of all did not exceed, in milliseconds.
    pub(super) fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1e3
    }

    pub(super) fn max_ms(&self) -> f64 {
        self.latency_us.max() as f64 / 1e3
    }
}

/// When to measure.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) from: Instant,
    pub(super) to: Instant,
}

impl Window {
    /// Opens after the warm-up.
    pub(super) fn after(warmup: Duration, duration: Duration) -> Window {
        let from = Instant::now() + warmup;
        Window { from, to: from + duration }
    }

    pub(super) fn holds(&self, at: Instant) -> bool {
        self.from <= at && at < self.to
    }
}

/// What each node has used since it started; `None` unless all of them told.
pub(super) struct NodesUsage(Option<BTreeMap<NodeId, Usage>>);

impl NodesUsage {
    pub(super) async fn ask(client: &Client) -> Result<NodesUsage, Failure> {
        let nodes = client.status(false).await?.nodes;
        Ok(NodesUsage(nodes.into_iter().map(|node| Some((node.id, node.usage?))).collect()))
    }

    /// What was used since `before`; `None` if a node did not answer each time, or was started anew between.
    pub(super) fn since(&self, before: &NodesUsage) -> Option<Vec<(NodeId, Usage)>> {
        let (now, before) = (self.0.as_ref()?, before.0.as_ref()?);
        if !now.keys().eq(before.keys()) {
            return None;
        }
        let pairs = now.iter().zip(before.values());
        let used = pairs.map(|((node, now), then)| {
            let used = Usage {
                cpu_us: now.cpu_us.checked_sub(then.cpu_us)?,
                resident_bytes: now.resident_bytes,
                written_bytes: now.written_bytes.checked_sub(then.written_bytes)?,
            };
            Some((*node, used))
        });
        used.collect()
    }
}

/// What the nodes used together during a measurement.
#[derive(Clone, Copy)]
pub(super) struct Used {
    pub(super) cpu_us: u64,
    pub(super) written_bytes: u64,
}

/// Asks the nodes at both ends of a window.
pub(super) async fn used_within(client: Client, window: Window) -> Option<Used> {
    tokio::time::sleep_until(window.from).await;
    let before = NodesUsage::ask(&client).await.ok()?;
    tokio::time::sleep_until(window.to).await;
    let nodes = NodesUsage::ask(&client).await.ok()?.since(&before)?;
    let cpu_us = nodes.iter().map(|(_, used)| used.cpu_us).sum();
    let written_bytes = nodes.iter().map(|(_, used)| used.written_bytes).sum();
    Some(Used { cpu_us, written_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(nodes: &[(u32, u64)]) -> NodesUsage {
        let of = |(id, cpu_us): &(u32, u64)| (NodeId(*id), Usage { cpu_us: *cpu_us, ..Usage::default() });
        NodesUsage(Some(nodes.iter().map(of).collect()))
    }

    #[test]
    fn use_is_told_only_if_every_node_told_both_times_and_none_was_restarted() {
        let before = usage(&[(1, 10), (2, 20)]);
        let used = usage(&[(1, 15), (2, 20)]).since(&before).unwrap();
        assert_eq!(used.iter().map(|(_, used)| used.cpu_us).collect::<Vec<_>>(), [5, 0]);
        assert!(usage(&[(1, 15)]).since(&before).is_none() && usage(&[(1, 15), (2, 19)]).since(&before).is_none());
        assert!(NodesUsage(None).since(&before).is_none() && before.since(&NodesUsage(None)).is_none());
    }
}
