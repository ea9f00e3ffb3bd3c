//! What the nodes use while nobody asks them for anything.

use super::measured::NodesUsage;
use super::{bytes_text, moment, Common, Failure, Format, Out};
use crate::cli::output::{counted, Table};
use clap::Args;
use serde_json::json;
use std::time::Duration;

#[derive(Clone, Debug, Args)]
pub(super) struct IdleArgs {
    /// How long to look on
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = moment::duration)]
    duration: Duration,
}

pub(super) async fn run(common: &Common, args: IdleArgs) -> Result<(), Failure> {
    let client = common.client()?;
    let partitions = client.status(false).await?.partitions.len();
    let before = NodesUsage::ask(&client).await?;
    tokio::time::sleep(args.duration).await;
    let used = NodesUsage::ask(&client).await?.since(&before);
    let used = used.ok_or_else(|| {
        Failure::failed("not every node told what it uses: is one down, or restarted meanwhile, or not on Linux?")
    })?;
    let seconds = args.duration.as_secs_f64();
    let share = |cpu_us: u64| cpu_us as f64 / 1e4 / seconds;
    let total = share(used.iter().map(|(_, used)| used.cpu_us).sum());
    let mut out = Out::new();
    if common.output == Format::Json {
        let nodes: Vec<_> = (used.iter())
            .map(|(node, used)| {
                json!({
                    "id": node.0, "cpu_percent": share(used.cpu_us), "resident_bytes": used.resident_bytes,
                    "written_bytes": used.written_bytes,
                })
            })
            .collect();
        out.json(&json!({
            "bench": "idle", "seconds": seconds, "partitions": partitions, "cpu_percent": total, "nodes": nodes,
        }))?;
        return Ok(out.flush()?);
    }
    out.line(&format!("idle: {}, {seconds} s", counted(partitions as u64, "partition")))?;
    let mut table = Table::new(&["NODE", "CPU OF ONE CORE", "RESIDENT", "WRITTEN"]);
    for (node, used) in &used {
        let (resident, written) = (bytes_text(used.resident_bytes), bytes_text(used.written_bytes));
        table.row(vec![node.to_string(), format!("{:.2} %", share(used.cpu_us)), resident, written]);
    }
    table.print(&mut out)?;
    out.line(&format!("all nodes together: {total:.2} % of one core"))?;
    Ok(out.flush()?)
}
