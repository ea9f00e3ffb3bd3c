//! The options, and what `--help` says of them.

use crate::load::Timing;
use crate::peers;
use crate::rows;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Compare Balsa with its peers: three nodes each, the same load, the same disk and cores, turn by turn
#[derive(Debug, Parser)]
#[command(name = "balsa-compare", version, args_conflicts_with_subcommands = true)]
#[command(after_help = "\
For each peer its cluster and Balsa's are started, and loaded in turns, round by round; then both are killed and their data
removed. The table goes to standard output, progress to standard error. A peer that is not installed is named and skipped.

Peers: bound, bound-grpc, etcd, rabbitmq, zookeeper, nats, nats-default, rabbitmq-stream. The last two acknowledge
before they sync.
Rows:  unary-64, unary-1000, one, stream-64, stream-1000, batch-100, kib-batch.

Examples:
  balsa-compare --balsa target/release/balsa
  balsa-compare --only etcd,bound --rows unary-64,stream-64
  balsa-compare --rounds 1 --seconds 2            a look, not a measurement
  balsa-compare --failover                        how long nobody can write after kill -9 of the leader
  balsa-compare -o json > comparison.json

Exit codes: 0 done, 1 a peer or Balsa failed (the rest is still measured), 2 wrong usage, 130 interrupted. docs/comparing.md tells what the
figures mean and what they don't.")]
pub struct CommandLine {
    #[command(flatten)]
    pub options: Options,
    #[command(subcommand)]
    pub hidden: Option<Hidden>,
}

/// What one comparison is to do.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Peers to compare with, separated by commas [default: all]
    #[arg(long, value_name = "PEERS", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(peers::KEYS), hide_possible_values = true)]
    pub only: Vec<String>,
    /// Rows of the table, separated by commas [default: all]
    #[arg(long, value_name = "ROWS", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(rows::keys()), hide_possible_values = true)]
    pub rows: Vec<String>,
    /// Rounds; in each, both sides are measured once. With --failover, kills for each peer
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// How long to measure, each time
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// How long to load before measuring, each time
    #[arg(long, default_value_t = 1, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub warmup: u32,
    /// Connections that each load is spread over, fewer if less is in flight
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: u32,
    /// Partitions of Balsa's topics; the peers have one log each
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub partitions: u32,
    /// Measure from kill -9 of the leader to the next acknowledged append, and nothing else
    #[arg(long)]
    pub failover: bool,
    /// What to print
    #[arg(short, long, default_value = "text", value_name = "FORMAT")]
    pub output: Format,
    /// Directory on the disk to compare on [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Keep data and logs
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    pub programs: Programs,
}

/// Where programs are, when not where they are looked for.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Programs")]
pub struct Programs {
    /// Balsa [default: beside this program, or on PATH]
    #[arg(long, value_name = "PATH")]
    pub balsa: Option<PathBuf>,
    /// etcd [default: on PATH]
    #[arg(long, value_name = "PATH")]
    pub etcd: Option<PathBuf>,
    /// nats-server [default: on PATH]
    #[arg(long, value_name = "PATH")]
    pub nats_server: Option<PathBuf>,
    /// RabbitMQ's own rabbitmq-server, not a wrapper that changes the user [default: where Debian has it]
    #[arg(long, value_name = "PATH")]
    pub rabbitmq_server: Option<PathBuf>,
    /// zookeeper.jar, whose manifest names what it needs [default: where Debian has it]
    #[arg(long, value_name = "PATH")]
    pub zookeeper_jar: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people
    Text,
    /// One object, with every single measurement
    Json,
}

/// What the program starts itself as.
#[derive(Debug, Subcommand)]
pub enum Hidden {
    /// One node of the bound
    #[command(hide = true)]
    BoundNode {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        file: PathBuf,
        /// The other two, if this is the first
        #[arg(long, num_args = 2)]
        followers: Vec<SocketAddr>,
        /// Whether clients come over gRPC, if this is the first
        #[arg(long)]
        grpc: bool,
    },
}

impl Options {
    pub fn timing(&self) -> Timing {
        Timing { warmup: Duration::from_secs(self.warmup.into()), measured: Duration::from_secs(self.seconds.into()) }
    }

    pub fn wants_peer(&self, key: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == key)
    }

    pub fn wants_row(&self, key: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| row == key)
    }

    /// What no argument at all means.
    pub fn by_default() -> Options {
        CommandLine::parse_from(["balsa-compare"]).options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_options_are_sound() {
        CommandLine::command().debug_assert();
        let options = Options::by_default();
        assert!(options.wants_peer("etcd") && options.wants_row("one"));
        assert_eq!((options.rounds, options.seconds), (5, 5));
    }

    #[test]
    fn help_names_every_peer_and_row() {
        let help = CommandLine::command().render_long_help().to_string();
        for key in peers::KEYS.iter().chain(&rows::keys()) {
            assert!(help.contains(key), "--help does not tell of {key}");
        }
    }

    #[test]
    fn an_unknown_peer_is_refused() {
        assert!(CommandLine::try_parse_from(["balsa-compare", "--only", "etcd,kafka"]).is_err());
    }
}
