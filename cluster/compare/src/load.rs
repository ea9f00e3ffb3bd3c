//! A load, the window of time in which it is measured, and what is measured.
//!
//! All loads are closed loops: a fixed number of appends is in flight, the next goes out when one is acknowledged.

use crate::failure::Failure;
use crate::servers::CpuProbe;
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// Longest latency told apart, in microseconds.
const LATENCY_MAX_US: u64 = 120_000_000;

/// How Balsa's client asks, and that of the bound over gRPC. Other peers know but one way, whatever this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One call for each append.
    Unary,
    /// Appends pipelined on streams, each acknowledged.
    Stream,
}

/// What is to be appended, and how.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub mode: Mode,
    /// Appends in flight, over all connections.
    pub in_flight: usize,
    /// Records in each append.
    pub batch: usize,
    pub record_bytes: usize,
}

impl Load {
    /// Appends in flight on each of at most `connections` connections; none has nothing to do.
    pub fn shares(&self, connections: usize) -> Vec<usize> {
        let lanes = connections.clamp(1, self.in_flight);
        (0..lanes).map(|lane| self.in_flight / lanes + usize::from(lane < self.in_flight % lanes)).collect()
    }

    /// One record of 100 B, and nothing else in flight.
    pub fn single() -> Load {
        Load { mode: Mode::Unary, in_flight: 1, batch: 1, record_bytes: 100 }
    }

    /// The bytes of one record.
    pub fn record(&self) -> Vec<u8> {
        (0..self.record_bytes).map(|at| b'a' + (at % 26) as u8).collect()
    }
}

/// How long a load runs.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub warmup: Duration,
    pub measured: Duration,
}

/// When acknowledgements count.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    from: Instant,
    to: Instant,
}

impl Window {
    /// The warm-up begins now.
    pub fn begin(timing: Timing) -> Window {
        let from = Instant::now() + timing.warmup;
        Window { from, to: from + timing.measured }
    }

    pub fn holds(&self, at: Instant) -> bool {
        self.from <= at && at < self.to
    }

    pub fn is_over(&self, at: Instant) -> bool {
        at >= self.to
    }

    pub fn end(&self) -> tokio::time::Instant {
        self.to.into()
    }

    pub fn length(&self) -> Duration {
        self.to - self.from
    }

    /// Processor time that `probe` counts while acknowledgements count.
    pub async fn cpu(self, probe: CpuProbe) -> Duration {
        tokio::time::sleep_until(self.from.into()).await;
        let before = probe.time();
        tokio::time::sleep_until(self.to.into()).await;
        probe.time().saturating_sub(before)
    }
}

/// Acknowledgements inside the window, of one connection or of all.
#[derive(Debug)]
pub struct Acks {
    latency_us: Histogram<u64>,
    records: u64,
}

impl Default for Acks {
    fn default() -> Acks {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are constants that work");
        Acks { latency_us, records: 0 }
    }
}

impl Acks {
    pub fn note(&mut self, latency: Duration, records: usize) {
        self.latency_us.saturating_record(latency.as_micros() as u64);
        self.records += records as u64;
    }

    pub fn add(&mut self, other: &Acks) {
        self.latency_us.add(&other.latency_us).expect("all have the same bounds");
        self.records += other.records;
    }

    /// The figures of one measurement.
    ///
    /// # Errors
    /// `Failed` if nothing was acknowledged.
    pub fn measured(&self, window: &Window, cpu: Duration) -> Result<Measured, Failure> {
        let ms = |quantile| self.latency_us.value_at_quantile(quantile) as f64 / 1e3;
        Measured::new(self.records as f64 / window.length().as_secs_f64(), ms(0.5), ms(0.99), cpu, window.length())
    }
}

/// The figures of one measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    pub records_per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Of all servers together, in seconds for 100,000 records.
    pub cpu_s_per_100k: f64,
}

impl Measured {
    /// # Errors
    /// `Failed` if the rate is zero: there is nothing to compare.
    pub fn new(
        records_per_s: f64,
        p50_ms: f64,
        p99_ms: f64,
        cpu: Duration,
        measured: Duration,
    ) -> Result<Measured, Failure> {
        if records_per_s <= 0.0 {
            return Err(Failure::Failed("nothing was acknowledged in the measured time".to_string()));
        }
        let records = records_per_s * measured.as_secs_f64();
        Ok(Measured { records_per_s, p50_ms, p99_ms, cpu_s_per_100k: cpu.as_secs_f64() / records * 1e5 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(in_flight: usize) -> Load {
        Load { mode: Mode::Unary, in_flight, batch: 1, record_bytes: 100 }
    }

    #[test]
    fn shares_add_up_and_leave_nobody_idle() {
        assert_eq!(load(64).shares(4), [16, 16, 16, 16]);
        assert_eq!(load(10).shares(4), [3, 3, 2, 2]);
        assert_eq!(load(1).shares(4), [1]);
    }

    #[test]
    fn figures_are_of_the_window() {
        let window = Window::begin(Timing { warmup: Duration::ZERO, measured: Duration::from_secs(2) });
        let mut acks = Acks::default();
        for at in 1..=100 {
            acks.note(Duration::from_millis(at), 10);
        }
        let measured = acks.measured(&window, Duration::from_millis(500)).expect("there were acknowledgements");
        assert_eq!(measured.records_per_s, 500.0);
        assert_eq!(measured.cpu_s_per_100k, 50.0);
        assert!((measured.p50_ms - 50.0).abs() < 0.1 && (measured.p99_ms - 99.0).abs() < 0.1, "{measured:?}");
    }

    #[test]
    fn silence_is_a_failure_and_not_a_rate_of_zero() {
        let window = Window::begin(Timing { warmup: Duration::ZERO, measured: Duration::from_secs(1) });
        assert!(Acks::default().measured(&window, Duration::ZERO).is_err());
    }
}
