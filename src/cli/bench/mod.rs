//! `balsa bench`: load from this process, measured in this process.
//!
//! Without a rate, loops are closed: a fixed number of appends is in flight, the next goes out when one is answered. With `--rate` they
//! are open: each append has its moment, whatever became of those before it, and its latency counts from that moment, so that a
//! server that stands still is not made to look fast by what was never sent. Every latency ends at the acknowledgement.

mod append;
mod failover;
mod idle;
mod measured;
mod read;

use super::exit::Failure;
use super::output::{bytes_text, grouped, Format, Out};
use super::{moment, signals, Common};
use clap::{Args, Subcommand};

/// Measure appends, latency, reads, failover and idling
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
#[command(after_help = "\
The topic is created if it is not there. Latencies are from handing a record over to its acknowledgement, or, with --rate, from
the moment at which it was due.

Examples:
  balsa bench append --in-flight 64 --unary
  balsa bench append --batch 100 --in-flight 32 --partitions 8
  balsa bench append --rate 5000 --duration 30s
  balsa bench latency
  balsa bench read
  balsa bench failover --times 10
  balsa bench idle")]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Append as fast as the cluster acknowledges, or at a fixed rate
    #[command(after_help = "\
Examples:
  balsa bench append --in-flight 64 --unary
  balsa bench append --rate 5000 --in-flight 1000")]
    Append {
        #[command(flatten)]
        flow: append::Flow,
        #[command(flatten)]
        load: append::Load,
    },
    /// Append one at a time, and look at the latency alone
    #[command(after_help = "Example:\n  balsa bench latency --record-bytes 1000")]
    Latency(append::Load),
    /// Read the topic from its start
    #[command(after_help = "Example:\n  balsa bench read --clients 4")]
    Read(read::ReadLoad),
    /// Start a cluster of its own and kill or freeze its leaders
    #[command(after_help = failover::HELP)]
    Failover(failover::FailoverArgs),
    /// What the nodes use while nobody asks them for anything
    #[command(after_help = "Example:\n  balsa bench idle --duration 30s")]
    Idle(idle::IdleArgs),
}

pub(super) async fn run(common: &Common, args: BenchArgs) -> Result<(), Failure> {
    let what = match args.what {
        // It has nodes to stop before it ends.
        What::Failover(args) => return failover::run(common, args).await,
        what => what,
    };
    let measured = async {
        match what {
            What::Append { flow, load } => append::run(common, "append", load.with(flow)).await,
            What::Latency(load) => append::run(common, "latency", load).await,
            What::Read(load) => read::run(common, load).await,
            What::Idle(args) => idle::run(common, args).await,
            What::Failover(_) => Ok(()),
        }
    };
    tokio::select! {
        biased;
        () = signals::stop_asked() => Err(Failure::failed("interrupted before the measurement was over")),
        result = measured => result,
    }
}
