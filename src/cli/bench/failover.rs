//! How long appends stand still when a leader is killed, or hangs.
//!
//! Clusters that others rely on are left alone: it starts one of its own, in a folder that is gone afterwards. Under a light load
//! it strikes the leader, and takes the time to the acknowledgement of an append that was *sent* after the blow.

use super::{moment, signals, Common, Failure, Format, Out};
use crate::batch::{BatchBuilder, RecordRef};
use crate::cli::local::{check_ports_of_new, ClusterDir, Nodes};
use crate::client::{AppendConditions, Client, ClientOptions, NewTopic};
use crate::clock::Clock;
use bytes::Bytes;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub(super) const HELP: &str = "\
It starts a cluster of its own in a folder below --dir and removes both when it is done: --servers is not asked.

Examples:
  balsa bench failover --times 10
  balsa bench failover --freeze";

const TOPIC: &str = "failover";
const WAY_OUT: &str = "choose another --port";
/// Appends of the light load at a time.
const LANES: usize = 8;
/// Between two appends of a lane.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a blow may last before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Args)]
pub(super) struct FailoverArgs {
    /// How many leaders to strike
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    times: u32,
    /// Freeze leaders (SIGSTOP), as a hung machine does, instead of killing them (SIGKILL)
    #[arg(long)]
    freeze: bool,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=9))]
    nodes: u32,
    /// Quiet time before each blow
    #[arg(long, default_value = "500ms", value_name = "TIME", value_parser = moment::duration)]
    pause: Duration,
    /// Where the cluster's folder is made [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The first node's port for clients
    #[arg(long, default_value_t = 7700, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

/// The cluster's folder, gone when this is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // what is left lies where the system cleans up
    }
}

pub(super) async fn run(common: &Common, args: FailoverArgs) -> Result<(), Failure> {
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = Folder(dir.join(format!("balsa-failover-{}", std::process::id())));
    check_ports_of_new(&folder.0, args.nodes, Some(args.port), WAY_OUT)?;
    let cluster = ClusterDir::open(&folder.0, Some(args.nodes), Some(args.port), args.nodes)?;
    let mut nodes = Nodes::of(&cluster);
    let result = tokio::select! {
        biased;
        () = signals::stop_asked() => Err(Failure::failed("interrupted before the measurement was over")),
        result = strike(&mut nodes, &args) => result,
    };
    nodes.stop().await;
    report(common, &args, result?)
}

/// When the newest acknowledged append was sent, and when it was acknowledged.
type Newest = Arc<Mutex<Option<(Instant, Instant)>>>;

async fn strike(nodes: &mut Nodes<'_>, args: &FailoverArgs) -> Result<Vec<Duration>, Failure> {
    nodes.start_all()?;
    nodes.wait_until_ready().await?;
    let client = Client::connect(nodes.cluster().servers(), ClientOptions::default())?;
    client.create_topic(TOPIC, &NewTopic::default()).await?;
    let newest = Newest::default();
    let mut lanes = JoinSet::new(); // they end when it is dropped
    for _ in 0..LANES {
        lanes.spawn(lane(client.clone(), newest.clone()));
    }
    let mut gaps = Vec::new();
    for _ in 0..args.times {
        after(&newest, Instant::now()).await?;
        tokio::time::sleep(args.pause).await;
        let topic = client.describe_topic(TOPIC).await?;
        let leader = topic.partitions.first().and_then(|partition| partition.leader.as_ref());
        let leader = leader.ok_or_else(|| Failure::failed("the partition has no leader"))?.node.0;
        if args.freeze {
            nodes.freeze(leader);
        } else {
            nodes.kill(leader);
        }
        let struck = Instant::now();
        let gap = after(&newest, struck).await.map(|acknowledged| acknowledged - struck);
        if args.freeze {
            nodes.thaw(leader);
        } else {
            nodes.start(leader)?;
        }
        gaps.push(gap?);
        nodes.wait_until_ready().await?;
    }
    Ok(gaps)
}

/// Waits for the acknowledgement of an append that was sent after `moment`; when it came.
async fn after(newest: &Newest, moment: Instant) -> Result<Instant, Failure> {
    loop {
        let seen = *newest.lock().expect("nobody panics while holding it");
        if let Some((_, acknowledged)) = seen.filter(|(sent, _)| *sent > moment) {
            return Ok(acknowledged);
        }
        if moment.elapsed() > PATIENCE {
            let seconds = PATIENCE.as_secs();
            return Err(Failure::failed(format!(
                "nothing was acknowledged within {seconds} s: is the machine overloaded?"
            )));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Appends one record after the other, for ever. What fails is sent no more: the next one tells.
async fn lane(client: Client, newest: Newest) {
    let clock = Clock::default();
    loop {
        let sent = Instant::now();
        let Some(batch) = record(&clock) else { return };
        if client.append(TOPIC, 0, batch, &AppendConditions::default()).await.is_ok() {
            let mut newest = newest.lock().expect("nobody panics while holding it");
            if newest.is_none_or(|(before, _)| before < sent) {
                *newest = Some((sent, Instant::now()));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn record(clock: &Clock) -> Option<Bytes> {
    let mut builder = BatchBuilder::new();
    let record = RecordRef { value: Some(b"under a light load"), timestamp: clock.now(), ..RecordRef::default() };
    builder.push(record).ok()?;
    Some(builder.build())
}

fn report(common: &Common, args: &FailoverArgs, mut gaps: Vec<Duration>) -> Result<(), Failure> {
    gaps.sort_unstable();
    let ms: Vec<f64> = gaps.iter().map(|gap| gap.as_secs_f64() * 1e3).collect();
    let (Some(least), Some(worst)) = (ms.first(), ms.last()) else { return Ok(()) };
    let median = ms[ms.len() / 2];
    let blow = if args.freeze { "freeze" } else { "kill" };
    let mut out = Out::new();
    if common.output == Format::Json {
        out.json(&json!({
            "bench": "failover", "blow": blow, "nodes": args.nodes, "times": args.times,
            "median_ms": median, "least_ms": least, "worst_ms": worst, "all_ms": ms,
        }))?;
    } else {
        let struck = if args.freeze { "frozen" } else { "killed" };
        out.line(&format!("failover: {} leaders of {} nodes {struck}", args.times, args.nodes))?;
        out.line(&format!(
            "  to the next acknowledgement, ms: median {median:.0}, least {least:.0}, worst {worst:.0}"
        ))?;
    }
    Ok(out.flush()?)
}
