//! `balsa up`: a local cluster of real processes, in the foreground.
//!
//! Waits until the nodes serve, says what to try, and stops them when it is stopped. A node that dies is reported and left dead: how
//! the others take it is what one wants to see.

use super::exit::Failure;
use super::local::{check_ports_of_new, ClusterDir, Nodes, PORT_DEFAULT};
use super::output::{Format, Out};
use super::{signals, Common};
use crate::limits::NODES_MAX;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const NODES_DEFAULT: u32 = 3;
/// What to do about a port in use.
const WAY_OUT: &str =
    "stop what listens there, or choose another --port (a folder keeps its ports: with another --dir)";
/// How often the nodes are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Run a cluster on this machine, in the foreground; Ctrl-C stops it cleanly
#[derive(Debug, Args)]
#[command(after_help = "\
Node k listens for clients on port+(k-1)*10 and for the other nodes on the port above, on 127.0.0.1 only. Its settings,
data and log lie in DIR/nodeK. Run again in the same folder, it goes on with what is there.

Examples:
  balsa up
  balsa up --nodes 5 --dir /tmp/five --port 9000")]
pub(super) struct UpArgs {
    /// How many nodes [default: 3, or as many as DIR holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=NODES_MAX as i64))]
    nodes: Option<u32>,
    /// Where everything lies
    #[arg(long, value_name = "DIR", default_value = "./balsa-data")]
    dir: PathBuf,
    /// The first node's port for clients [default: 7400, or as DIR says]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
}

pub(super) async fn run(common: &Common, args: UpArgs) -> Result<(), Failure> {
    check_ports_of_new(&args.dir, args.nodes.unwrap_or(NODES_DEFAULT), args.port, WAY_OUT)?;
    let cluster = ClusterDir::open(&args.dir, args.nodes, args.port, NODES_DEFAULT)?;
    cluster.check_ports(WAY_OUT)?;
    let mut stop = std::pin::pin!(signals::stop_asked());
    let mut nodes = Nodes::of(&cluster);
    let result = tokio::select! {
        biased;
        () = &mut stop => Ok(()),
        result = live(&mut nodes, common) => result,
    };
    nodes.stop().await;
    result
}

/// Starts the nodes and watches over them until all are gone.
async fn live(nodes: &mut Nodes<'_>, common: &Common) -> Result<(), Failure> {
    let started = Instant::now();
    nodes.start_all()?;
    nodes.wait_until_ready().await?;
    tell(nodes, common, started.elapsed())?;
    while !nodes.are_gone() {
        tokio::time::sleep(LOOK).await;
        nodes.report_deaths();
    }
    Err(Failure::failed(format!("all nodes are gone; their logs are in {}", nodes.cluster().logs())))
}

fn tell(nodes: &Nodes<'_>, common: &Common, took: Duration) -> Result<(), Failure> {
    let mut out = Out::new();
    let cluster = nodes.cluster();
    let ids: Vec<(u32, u32)> = nodes.pids().collect();
    if common.output == Format::Json {
        let nodes: Vec<_> = (ids.iter())
            .map(|(id, pid)| json!({"id": id, "address": cluster.client_address(*id), "pid": pid}))
            .collect();
        out.json(&json!({ "nodes": nodes }))?;
        return Ok(out.flush()?);
    }
    let noun = if ids.len() == 1 { "node" } else { "nodes" };
    let (count, seconds, dir) = (ids.len(), took.as_secs_f64(), cluster.dir().display());
    out.line(&format!("{count} {noun} up after {seconds:.1} s, data in {dir}"))?;
    for (id, pid) in &ids {
        let (address, log) = (cluster.client_address(*id), cluster.log_file(*id));
        out.line(&format!("  node {id}  {address}  pid {pid}  log {}", log.display()))?;
    }
    out.line("")?;
    out.line("Try in another terminal:")?;
    if cluster.port() != PORT_DEFAULT {
        out.line(&format!("  export BALSA_SERVERS={}", cluster.servers().join(",")))?;
    }
    out.line("  balsa topic create access --partitions 4")?;
    out.line("  seq 100000 | balsa append access")?;
    out.line("  balsa read access --follow")?;
    if let Some((_, pid)) = ids.first() {
        out.line(&format!("  balsa status --watch          and then: kill -9 {pid}"))?;
    }
    out.line("")?;
    out.line("Ctrl-C stops the nodes cleanly; `balsa up` goes on with their data.")?;
    Ok(out.flush()?)
}
