//! The outcome as a table for people.

use crate::load::Measured;
use crate::outcome::{medians, Failover, Outcome, Pairing};
use crate::rows::{Row, ROWS};
use crate::statistics::{median, Ratio};

const HEADS: [&str; 8] =
    ["", "records/s", "p50 ms", "p99 ms", "CPU s/100k", "Balsa/it", "round by round", "p99 Balsa/it"];

/// The whole text, with what was skipped and what failed at its end.
pub fn text(outcome: &Outcome) -> String {
    let mut text = String::new();
    for row in ROWS {
        if outcome.of_row(row.key).next().is_some() {
            text += &format!("{}: {}\n{}\n", row.key, row.title, lines(&row_cells(outcome, row)));
        }
    }
    if !outcome.failovers.is_empty() {
        text += &format!("failover: kill -9 of the leader, to the next acknowledged append\n{}\n", {
            lines(&failover_cells(&outcome.failovers))
        });
    }
    for (who, why) in &outcome.skipped {
        text += &format!("skipped: {who}: {why}\n");
    }
    for (who, why) in &outcome.failed {
        text += &format!("failed: {who}: {why}\n");
    }
    text
}

fn row_cells(outcome: &Outcome, row: &Row) -> Vec<Vec<String>> {
    let mut cells = vec![HEADS.map(String::from).to_vec()];
    let ours = outcome.of_row(row.key).flat_map(|pairing| &pairing.rounds).map(|round| &round.balsa);
    if let Some(ours) = medians(ours) {
        let name = format!("Balsa {}", outcome.balsa_version);
        cells.push([vec![name], figures(&ours)].concat());
    }
    cells.extend(outcome.of_row(row.key).filter_map(pairing_cells));
    cells
}

fn pairing_cells(pairing: &Pairing) -> Option<Vec<String>> {
    let theirs = medians(pairing.rounds.iter().map(|round| &round.peer))?;
    let rate = pairing.ratio(|one| one.records_per_s)?;
    let p99 = pairing.ratio(|one| one.p99_ms)?;
    let compared = vec![times(rate.of_medians), spread(&rate), times(p99.of_medians)];
    Some([vec![pairing.peer.label()], figures(&theirs), compared].concat())
}

fn failover_cells(failovers: &[Failover]) -> Vec<Vec<String>> {
    let mut cells = vec![["", "median s", "least", "greatest", "kills"].map(String::from).to_vec()];
    for failover in failovers {
        let seconds = || failover.seconds.iter().copied();
        let Some(middle) = median(seconds()) else { continue };
        let (least, greatest) = (seconds().fold(f64::INFINITY, f64::min), seconds().fold(0.0, f64::max));
        let figures = [middle, least, greatest].map(|figure| format!("{figure:.2}"));
        cells.push([vec![failover.who.label()], figures.to_vec(), vec![failover.seconds.len().to_string()]].concat());
    }
    cells
}

fn figures(measured: &Measured) -> Vec<String> {
    let cpu = measured.cpu_s_per_100k;
    let cpu = if cpu < 1.0 { format!("{cpu:.3}") } else { format!("{cpu:.1}") };
    vec![grouped(measured.records_per_s), format!("{:.2}", measured.p50_ms), format!("{:.2}", measured.p99_ms), cpu]
}

fn spread(ratio: &Ratio) -> String {
    format!("{} to {}", times(ratio.least), times(ratio.greatest))
}

fn times(ratio: f64) -> String {
    if ratio < 10.0 {
        format!("{ratio:.2}")
    } else {
        format!("{ratio:.1}")
    }
}

/// A rate with commas between thousands.
pub fn grouped(rate: f64) -> String {
    let digits = format!("{rate:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Columns as wide as what is in them: names to the left, figures to the right.
fn lines(cells: &[Vec<String>]) -> String {
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |column: usize| cells.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| wide(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in cells {
        let mut told = format!("  {:<width$}", line[0], width = widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            told += &format!("  {cell:>width$}");
        }
        text += told.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_line::Options;
    use crate::outcome::{Round, Who};

    fn measured(records_per_s: f64, p99_ms: f64) -> Measured {
        Measured { records_per_s, p50_ms: p99_ms / 2.0, p99_ms, cpu_s_per_100k: 2.5 }
    }

    fn outcome() -> Outcome {
        let who = |key, title, version: &str, syncs| Who { key, title, version: version.to_string(), syncs };
        let round = |balsa, peer| Round { balsa: measured(balsa, 2.0), peer: measured(peer, 8.0) };
        let pairing = |peer, rounds| Pairing { row: &ROWS[0], peer, rounds };
        Outcome {
            balsa_version: "0.1.0".to_string(),
            pairings: vec![
                pairing(who("etcd", "etcd", "3.4.23", true), vec![round(30_000.0, 10_000.0), round(20_000.0, 5_000.0)]),
                pairing(who("nats-default", "NATS, default", "2.9.10", false), vec![round(1_234_567.0, 100_000.0)]),
                pairing(who("zookeeper", "ZooKeeper", "3.8.0", true), vec![]),
            ],
            failovers: vec![Failover { who: who("etcd", "etcd", "3.4.23", true), seconds: vec![1.5, 1.25, 2.0] }],
            skipped: vec![("RabbitMQ stream".to_string(), "rabbitmq-server is not installed".to_string())],
            failed: vec![],
        }
    }

    #[test]
    fn the_table_reads_like_this() {
        let expected = "\
unary-64: single records of 100 B, one call each, 64 in flight
                                        records/s  p50 ms  p99 ms  CPU s/100k  Balsa/it  round by round  p99 Balsa/it
  Balsa 0.1.0                              30,000    1.00    2.00         2.5
  etcd 3.4.23                               7,500    4.00    8.00         2.5      3.33    3.00 to 4.00          0.25
  NATS, default 2.9.10 (does not sync)    100,000    4.00    8.00         2.5      12.3    12.3 to 12.3          0.25

failover: kill -9 of the leader, to the next acknowledged append
               median s  least  greatest  kills
  etcd 3.4.23      1.50   1.25      2.00      3

skipped: RabbitMQ stream: rabbitmq-server is not installed
";
        assert_eq!(text(&outcome()), expected);
    }

    #[test]
    fn json_holds_every_round() {
        let json = outcome().json(&Options::by_default());
        assert_eq!(json["seconds"], 5);
        assert_eq!(json["rows"][0]["rounds"].as_array().map(Vec::len), Some(2));
        assert_eq!(json["rows"][0]["peer_median"]["records_per_s"], 7_500.0);
        assert_eq!(json["rows"][1]["syncs"], false);
        assert!(json["rows"][2]["ratio"].is_null());
        assert_eq!(json["failover"][0]["median_s"], 1.5);
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(["7", "70", "700", "7,000", "1,234,567"], [7.0, 70.0, 700.0, 7e3, 1_234_567.0].map(grouped));
    }
}
