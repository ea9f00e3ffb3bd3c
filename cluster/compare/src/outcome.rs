//! What was seen: every single measurement, in the order of the table.

use crate::command_line::Options;
use crate::load::Measured;
use crate::rows::Row;
use crate::statistics::{median, ratio, Ratio};
use serde_json::{json, Value};

/// Who was compared, by name and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    pub key: &'static str,
    pub title: &'static str,
    pub version: String,
    pub syncs: bool,
}

impl Who {
    /// As the table names it.
    pub fn label(&self) -> String {
        let name = [self.title, &self.version].join(" ");
        let name = name.trim_end();
        if self.syncs {
            name.to_string()
        } else {
            format!("{name} (does not sync)")
        }
    }
}

/// One round: both sides, measured one right after the other.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub balsa: Measured,
    pub peer: Measured,
}

/// The rounds of one row with one peer.
#[derive(Debug)]
pub struct Pairing {
    pub row: &'static Row,
    pub peer: Who,
    pub rounds: Vec<Round>,
}

/// How long nobody could write, of one peer.
#[derive(Debug)]
pub struct Failover {
    pub who: Who,
    pub seconds: Vec<f64>,
}

/// All that one run has seen so far.
#[derive(Debug, Default)]
pub struct Outcome {
    pub balsa_version: String,
    pub pairings: Vec<Pairing>,
    pub failovers: Vec<Failover>,
    /// Those that are not here, with what to do.
    pub skipped: Vec<(String, String)>,
    /// Those that did not do what they should.
    pub failed: Vec<(String, String)>,
}

/// Medians of several measurements, figure by figure.
pub fn medians<'a>(measured: impl Iterator<Item = &'a Measured> + Clone) -> Option<Measured> {
    Some(Measured {
        records_per_s: median(measured.clone().map(|one| one.records_per_s))?,
        p50_ms: median(measured.clone().map(|one| one.p50_ms))?,
        p99_ms: median(measured.clone().map(|one| one.p99_ms))?,
        cpu_s_per_100k: median(measured.map(|one| one.cpu_s_per_100k))?,
    })
}

impl Pairing {
    /// A figure of Balsa's to the peer's.
    pub fn ratio(&self, figure: impl Fn(&Measured) -> f64) -> Option<Ratio> {
        let pairs: Vec<(f64, f64)> =
            self.rounds.iter().map(|round| (figure(&round.balsa), figure(&round.peer))).collect();
        ratio(&pairs)
    }
}

impl Outcome {
    /// The pairings of a row that have at least one round.
    pub fn of_row<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Pairing> + Clone + 'a {
        self.pairings.iter().filter(move |pairing| pairing.row.key == key && !pairing.rounds.is_empty())
    }

    /// The whole of it, for programs.
    pub fn json(&self, options: &Options) -> Value {
        let told = |those: &[(String, String)]| -> Vec<Value> {
            those.iter().map(|(who, why)| json!({ "who": who, "why": why })).collect()
        };
        json!({
            "balsa": self.balsa_version,
            "rounds": options.rounds, "seconds": options.seconds, "warmup": options.warmup,
            "connections": options.connections, "partitions": options.partitions,
            "rows": self.pairings.iter().map(pairing_json).collect::<Vec<_>>(),
            "failover": self.failovers.iter().map(failover_json).collect::<Vec<_>>(),
            "skipped": told(&self.skipped),
            "failed": told(&self.failed),
        })
    }
}

fn pairing_json(pairing: &Pairing) -> Value {
    let load = &pairing.row.load;
    let rounds: Vec<Value> = pairing
        .rounds
        .iter()
        .map(|round| json!({ "balsa": measured_json(&round.balsa), "peer": measured_json(&round.peer) }))
        .collect();
    let ratio = pairing.ratio(|one| one.records_per_s);
    json!({
        "row": pairing.row.key, "in_flight": load.in_flight, "batch": load.batch, "record_bytes": load.record_bytes,
        "peer": pairing.peer.key, "version": pairing.peer.version, "syncs": pairing.peer.syncs,
        "balsa_median": medians(pairing.rounds.iter().map(|round| &round.balsa)).as_ref().map(measured_json),
        "peer_median": medians(pairing.rounds.iter().map(|round| &round.peer)).as_ref().map(measured_json),
        "ratio": ratio.map(|ratio| json!({
            "of_medians": ratio.of_medians, "least": ratio.least, "greatest": ratio.greatest,
        })),
        "rounds": rounds,
    })
}

fn measured_json(measured: &Measured) -> Value {
    json!({
        "records_per_s": measured.records_per_s, "p50_ms": measured.p50_ms, "p99_ms": measured.p99_ms,
        "cpu_s_per_100k": measured.cpu_s_per_100k,
    })
}

fn failover_json(failover: &Failover) -> Value {
    json!({
        "who": failover.who.key, "version": failover.who.version,
        "median_s": median(failover.seconds.iter().copied()), "seconds": failover.seconds,
    })
}
