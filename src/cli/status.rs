//! `balsa status`: nodes, partitions, leaders, lag, and what is wrong, in words.

use super::exit::Failure;
use super::output::{counted, stdout_is_terminal, Format, Out, Table};
use super::{signals, Common};
use crate::client::{Client, ClusterStatus, NodeState, PartitionStatus};
use clap::Args;
use serde::Serialize;
use std::time::Duration;

const REDRAW: Duration = Duration::from_millis(500);

/// Show nodes, partitions, leaders, lag, and what is wrong
#[derive(Debug, Args)]
#[command(after_help = "\
Any node that answers will do; --watch goes on through whichever is left.

Examples:
  balsa status
  balsa status --watch
  balsa status -o json --servers 127.0.0.1:7410")]
pub(super) struct StatusArgs {
    /// Look again every half second until Ctrl-C
    #[arg(long, short)]
    watch: bool,
    /// What the answering node knows by itself, without asking the others
    #[arg(long)]
    local: bool,
}

pub(super) async fn run(common: &Common, args: StatusArgs) -> Result<(), Failure> {
    let client = common.client()?;
    if !args.watch {
        let status = client.status(args.local).await?;
        let mut out = Out::new();
        print(common, &mut out, &status, usize::MAX)?;
        return Ok(out.flush()?);
    }
    tokio::select! {
        () = signals::stop_asked() => Ok(()),
        ended = watch(common, &client, args.local) => ended,
    }
}

async fn watch(common: &Common, client: &Client, local: bool) -> Result<(), Failure> {
    let mut out = Out::new();
    let redraw = stdout_is_terminal() && common.output == Format::Table;
    loop {
        let answer = client.status(local).await;
        if redraw {
            // Home, then clear what is below: no flicker, nothing left of longer lines.
            out.bytes(b"\x1b[H\x1b[J")?;
        }
        match answer {
            Ok(status) => print(common, &mut out, &status, if redraw { rows() } else { usize::MAX })?,
            Err(error) if redraw => out.line(&format!("{error}"))?,
            Err(error) => eprintln!("balsa: {error}"),
        }
        if !redraw && common.output == Format::Table {
            out.line("")?;
        }
        out.flush()?;
        tokio::time::sleep(REDRAW).await;
    }
}

/// Rows of the terminal.
fn rows() -> usize {
    #[cfg(unix)]
    if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout()) {
        return usize::from(size.ws_row).max(10);
    }
    24
}

fn print(common: &Common, out: &mut Out, status: &ClusterStatus, rows: usize) -> Result<(), Failure> {
    if common.output == Format::Json {
        return Ok(out.json(&status_json(status))?);
    }
    Ok(draw(status, rows).iter().try_for_each(|line| out.line(line))?)
}

fn draw(status: &ClusterStatus, rows: usize) -> Vec<String> {
    let up = status.nodes.iter().filter(|node| node.state == NodeState::Up).count();
    let mut lines = vec![format!(
        "cluster {}: {} of {} up, {}; as node {} sees it",
        status.cluster_id,
        up,
        counted(status.nodes.len() as u64, "node"),
        counted(status.partitions.len() as u64, "partition"),
        status.answered_by,
    )];
    lines.extend(problems(status));
    lines.push(String::new());
    lines.extend(nodes_table(status).lines());
    if status.partitions.is_empty() {
        lines.push(String::new());
        lines.push("no topics yet: `balsa topic create NAME` makes one".to_string());
        return lines;
    }
    lines.push(String::new());
    let partitions = partitions_table(status).lines();
    let room = rows.saturating_sub(lines.len() + 2).max(2);
    let hidden = partitions.len().saturating_sub(room);
    lines.extend(partitions.into_iter().take(room));
    if hidden > 0 {
        lines.push(format!("... and {} more; without --watch all are shown", counted(hidden as u64, "partition")));
    }
    lines
}

/// What is wrong, in words: what the node says, and what can be seen from here.
fn problems(status: &ClusterStatus) -> Vec<String> {
    let mut problems: Vec<String> = status.problems.clone();
    if problems.is_empty() {
        let down = status.nodes.iter().filter(|node| node.state == NodeState::Down);
        problems.extend(down.map(|node| format!("node {} at {} is down", node.id, node.address)));
        let headless = status.partitions.iter().filter(|partition| partition.leader.is_none());
        problems.extend(headless.map(|partition| format!("{}/{} has no leader", partition.topic, partition.partition)));
    }
    if problems.is_empty() {
        return vec!["all is well".to_string()];
    }
    problems.into_iter().map(|problem| format!("! {problem}")).collect()
}

fn nodes_table(status: &ClusterStatus) -> Table {
    let mut table = Table::new(&["NODE", "ADDRESS", "STATE", "LEADS", "VERSION"]);
    for node in &status.nodes {
        let version = if node.version.is_empty() { "-".to_string() } else { node.version.clone() };
        let state = state_text(node.state).to_string();
        table.row(vec![node.id.to_string(), node.address.clone(), state, node.leads.to_string(), version]);
    }
    table
}

fn partitions_table(status: &ClusterStatus) -> Table {
    let mut table = Table::new(&["TOPIC", "PARTITION", "LEADER", "TERM", "REPLICAS", "START", "TAIL", "BEHIND"]);
    for partition in &status.partitions {
        let leader = partition.leader.as_ref();
        table.row(vec![
            partition.topic.clone(),
            partition.partition.to_string(),
            leader.map_or("none".to_string(), |leader| format!("node {}", leader.node)),
            leader.map_or("-".to_string(), |leader| leader.term.to_string()),
            partition.replicas.iter().map(ToString::to_string).collect::<Vec<String>>().join(","),
            partition.start.to_string(),
            partition.tail.map_or("?".to_string(), |tail| tail.to_string()),
            lag_text(partition),
        ]);
    }
    table
}

/// Followers that lack entries, and how many.
fn lag_text(partition: &PartitionStatus) -> String {
    let behind = partition.lag.iter().filter(|(_, entries)| *entries > 0);
    let texts: Vec<String> = behind.map(|(node, entries)| format!("node {node} by {entries}")).collect();
    if texts.is_empty() {
        "-".to_string()
    } else {
        texts.join(", ")
    }
}

fn state_text(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Up => "up",
        NodeState::Down => "down",
    }
}

/// The status as JSON, in the order that scripts see.
#[derive(Serialize)]
struct StatusJson<'a> {
    nodes: Vec<NodeJson<'a>>,
    partitions: Vec<PartitionJson<'a>>,
}

#[derive(Serialize)]
struct NodeJson<'a> {
    id: u32,
    address: &'a str,
    state: &'static str,
}

#[derive(Serialize)]
struct PartitionJson<'a> {
    topic: &'a str,
    partition: u32,
    leader: Option<u32>,
    term: Option<u64>,
    replicas: Vec<u32>,
    tail: Option<u64>,
}

fn status_json(status: &ClusterStatus) -> StatusJson<'_> {
    let nodes = status.nodes.iter().map(|node| NodeJson {
        id: node.id.0,
        address: &node.address,
        state: state_text(node.state),
    });
    let partitions = status.partitions.iter().map(|partition| PartitionJson {
        topic: &partition.topic,
        partition: partition.partition,
        leader: partition.leader.as_ref().map(|leader| leader.node.0),
        term: partition.leader.as_ref().map(|leader| leader.term.0),
        replicas: partition.replicas.iter().map(|node| node.0).collect(),
        tail: partition.tail.map(|tail| tail.0),
    });
    StatusJson { nodes: nodes.collect(), partitions: partitions.collect() }
}
