//! Reading a topic from its start.

use super::{bytes_text, grouped, moment, Common, Failure, Format, Out};
use crate::client::{Client, ClientError, Subscription, SubscriptionOptions};
use clap::Args;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Clone, Debug, Args)]
pub(super) struct ReadLoad {
    /// The topic
    #[arg(long, default_value = "bench", value_name = "TOPIC")]
    topic: String,
    /// Clients, each of which reads everything
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: u32,
    /// Stop after this time, if the end is not reached sooner
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = moment::duration)]
    duration: Duration,
}

pub(super) async fn run(common: &Common, load: ReadLoad) -> Result<(), Failure> {
    let began = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..load.clients {
        let (client, load) = (common.client()?, load.clone());
        workers.push(tokio::spawn(read_all(client, load, began)));
    }
    let (mut records, mut bytes) = (0, 0);
    for worker in workers {
        let (some_records, some_bytes) =
            worker.await.map_err(|error| Failure::failed(format!("a worker failed: {error}")))??;
        records += some_records;
        bytes += some_bytes;
    }
    let seconds = began.elapsed().as_secs_f64().max(0.001);
    let (per_second, bytes_per_second) = (records as f64 / seconds, bytes as f64 / seconds);
    let mut out = Out::new();
    if common.output == Format::Json {
        out.json(&json!({
            "bench": "read", "clients": load.clients, "seconds": seconds, "records": records,
            "records_per_s": per_second, "bytes_per_s": bytes_per_second,
        }))?;
    } else {
        out.line(&format!("read: {} records in {seconds:.2} s, {} clients", grouped(records), load.clients))?;
        out.line(&format!("  {} records/s, {}/s", grouped(per_second as u64), bytes_text(bytes_per_second as u64)))?;
    }
    Ok(out.flush()?)
}

/// Records and bytes that one client read. Each record is looked at, as a consumer would.
async fn read_all(client: Client, load: ReadLoad, began: Instant) -> Result<(u64, u64), ClientError> {
    let mut subscription = Subscription::open(&client, &load.topic, SubscriptionOptions::default()).await?;
    let (mut records, mut bytes) = (0, 0);
    while let Some(chunk) = subscription.next().await {
        for record in chunk?.records() {
            records += 1;
            bytes += record.value.map_or(0, |value| value.len() as u64) + record.key.map_or(0, |key| key.len() as u64);
        }
        if began.elapsed() > load.duration {
            break;
        }
    }
    Ok((records, bytes))
}
