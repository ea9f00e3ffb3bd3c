//! `balsa bench`: load from this process, measured in this process.
//!
//! Closed loops: a fixed number of appends is in flight, the next goes out when one is answered, so a slow server is not
//! made to look fast by what was never sent. Latency is from handing a record over to its acknowledgement.

use super::exit::Failure;
use super::output::{bytes_text, grouped, Format, Out};
use super::{moment, signals, Common};
use crate::batch::{BatchBuilder, RecordRef};
use crate::client::{
    AppendConditions, Client, ClientError, Deliveries, NewTopic, Outgoing, Producer, ProducerOptions, Reason,
    Subscription, SubscriptionOptions,
};
use crate::clock::Clock;
use clap::{Args, Subcommand};
use hdrhistogram::Histogram;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Longest latency told apart, in microseconds.
const LATENCY_MAX_US: u64 = 120_000_000;

/// Measure appends, latency and reads
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
#[command(after_help = "\
The topic is created if it is not there. Latencies are from handing a record over to its acknowledgement.

Examples:
  balsa bench append --in-flight 64 --unary
  balsa bench append --batch 100 --in-flight 32 --stream --partitions 8
  balsa bench latency
  balsa bench read")]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Append as fast as the cluster acknowledges
    #[command(after_help = "Example:\n  balsa bench append --in-flight 64 --unary")]
    Append(Load),
    /// Append one at a time, and look at the latency alone
    #[command(after_help = "Example:\n  balsa bench latency --record-bytes 1000")]
    Latency(Load),
    /// Read the topic from its start
    #[command(after_help = "Example:\n  balsa bench read --clients 4")]
    Read(ReadLoad),
}

#[derive(Clone, Debug, Args)]
struct Load {
    /// The topic
    #[arg(long, default_value = "bench", value_name = "TOPIC")]
    topic: String,
    /// Partitions, if the topic is created
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// Clients, each with its own connections
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: u32,
    /// Appends in flight, over all clients
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: u32,
    /// Bytes of each record
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    record_bytes: u32,
    /// Records in each append
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// How long to measure
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = moment::duration)]
    duration: Duration,
    /// How long to append before measuring
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = moment::duration)]
    warmup: Duration,
    /// One call per append
    #[arg(long, conflicts_with = "stream")]
    unary: bool,
    /// Pipelined streams in producer sessions (the default)
    #[arg(long)]
    stream: bool,
}

#[derive(Clone, Debug, Args)]
struct ReadLoad {
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

pub(super) async fn run(common: &Common, args: BenchArgs) -> Result<(), Failure> {
    let measured = async {
        match args.what {
            What::Append(load) => append(common, "append", load).await,
            What::Latency(load) => append(common, "latency", Load { in_flight: 1, clients: 1, ..load }).await,
            What::Read(load) => read(common, load).await,
        }
    };
    tokio::select! {
        biased;
        () = signals::stop_asked() => Err(Failure::failed("interrupted before the measurement was over")),
        result = measured => result,
    }
}

/// What one worker measured.
struct Measured {
    latency_us: Histogram<u64>,
    records: u64,
}

impl Measured {
    fn new() -> Result<Measured, Failure> {
        let latency_us = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3);
        let latency_us = latency_us.map_err(|error| Failure::failed(format!("cannot measure: {error}")))?;
        Ok(Measured { latency_us, records: 0 })
    }

    fn note(&mut self, latency: Duration, records: u64) {
        self.latency_us.saturating_record(latency.as_micros() as u64);
        self.records += records;
    }

    fn add(&mut self, other: &Measured) -> Result<(), Failure> {
        self.records += other.records;
        self.latency_us.add(&other.latency_us).map_err(|error| Failure::failed(format!("cannot measure: {error}")))
    }
}

/// When to measure.
#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    to: Instant,
}

impl Window {
    fn holds(&self, at: Instant) -> bool {
        self.from <= at && at < self.to
    }
}

async fn append(common: &Common, name: &str, load: Load) -> Result<(), Failure> {
    let partitions = topic_partitions(&common.client()?, &load).await?;
    let began = Instant::now();
    let window = Window { from: began + load.warmup, to: began + load.warmup + load.duration };
    let mut workers = Vec::new();
    for number in 0..load.clients {
        let share = load.in_flight / load.clients + u32::from(number < load.in_flight % load.clients);
        let client = common.client()?;
        if share == 0 {
            continue;
        }
        if load.unary {
            for lane in 0..share {
                let (load, client) = (load.clone(), client.clone());
                workers.push(tokio::spawn(unary(load, client, (number * share + lane) % partitions, window)));
            }
        } else {
            workers.push(tokio::spawn(stream(load.clone(), client, share, partitions, window)));
        }
    }
    let mut total = Measured::new()?;
    for worker in workers {
        let measured = worker.await.map_err(|error| Failure::failed(format!("a worker failed: {error}")))??;
        total.add(&measured)?;
    }
    report(common, name, &load, partitions, &total)
}

async fn topic_partitions(client: &Client, load: &Load) -> Result<u32, Failure> {
    let described = match client.describe_topic(&load.topic).await {
        Err(error) if error.reason() == Some(Reason::UnknownTopic) => {
            let new = NewTopic { partitions: Some(load.partitions), ..NewTopic::default() };
            client.create_topic(&load.topic, &new).await
        }
        described => described,
    };
    let count = described?.partitions.len() as u32;
    if count != load.partitions {
        eprintln!("topic {} has {count} partitions; --partitions counts only when it is created", load.topic);
    }
    Ok(count.max(1))
}

async fn unary(load: Load, client: Client, partition: u32, window: Window) -> Result<Measured, Failure> {
    let mut measured = Measured::new()?;
    let value = filler(load.record_bytes);
    let (clock, conditions) = (Clock::default(), AppendConditions::default());
    loop {
        let since = Instant::now();
        if since >= window.to {
            return Ok(measured);
        }
        let mut builder = BatchBuilder::new();
        let timestamp = clock.now();
        for _ in 0..load.batch {
            let record = RecordRef { value: Some(&value), timestamp, ..RecordRef::default() };
            builder.push(record).map_err(ClientError::Record)?;
        }
        client.append(&load.topic, partition, builder.build(), &conditions).await?;
        let now = Instant::now();
        if window.holds(now) {
            measured.note(now - since, u64::from(load.batch));
        }
    }
}

async fn stream(
    load: Load,
    client: Client,
    in_flight: u32,
    partitions: u32,
    window: Window,
) -> Result<Measured, Failure> {
    let options = ProducerOptions {
        // A batch leaves when it is full, and only then.
        linger: Duration::from_secs(60),
        batch_bytes: usize::MAX,
        batch_records: load.batch as usize,
        buffer_bytes: 256 << 20,
        in_flight_batches: in_flight as usize,
        ..ProducerOptions::default()
    };
    let (producer, deliveries) = Producer::open(&client, &load.topic, options).await?;
    let permits = Arc::new(Semaphore::new(in_flight as usize));
    let counter = tokio::spawn(count(deliveries, permits.clone(), window));
    let (value, clock) = (filler(load.record_bytes), Clock::default());
    let mut turn = 0;
    let mut failed = None;
    while Instant::now() < window.to {
        let Ok(permit) = permits.acquire().await else { break };
        permit.forget();
        let timestamp = clock.now();
        for _ in 0..load.batch {
            let record = RecordRef { value: Some(&value), timestamp, ..RecordRef::default() };
            failed = producer.send(Outgoing { partition: Some(turn), record }).await.err();
        }
        if failed.is_some() {
            break;
        }
        turn = (turn + 1) % partitions;
    }
    let flushed = producer.flush().await;
    drop(producer);
    let measured = counter.await.map_err(|error| Failure::failed(format!("a worker failed: {error}")))?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    flushed?;
    measured
}

async fn count(mut deliveries: Deliveries, permits: Arc<Semaphore>, window: Window) -> Result<Measured, Failure> {
    let mut measured = Measured::new()?;
    while let Some(delivery) = deliveries.next().await {
        let now = Instant::now();
        if delivery.result.is_err() {
            permits.close();
        } else if window.holds(now) {
            measured.note(now - delivery.since, u64::from(delivery.count));
        }
        permits.add_permits(1);
    }
    Ok(measured)
}

fn filler(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|at| b'a' + (at % 26) as u8).collect()
}

fn report(common: &Common, name: &str, load: &Load, partitions: u32, total: &Measured) -> Result<(), Failure> {
    let seconds = load.duration.as_secs_f64();
    let per_second = total.records as f64 / seconds;
    let bytes_per_second = per_second * f64::from(load.record_bytes);
    let ms = |quantile: f64| total.latency_us.value_at_quantile(quantile) as f64 / 1e3;
    let (p50, p99, p999, max) = (ms(0.5), ms(0.99), ms(0.999), total.latency_us.max() as f64 / 1e3);
    let mode = if load.unary { "unary" } else { "stream" };
    let mut out = Out::new();
    if common.output == Format::Json {
        out.json(&json!({
            "bench": name, "mode": mode, "clients": load.clients, "in_flight": load.in_flight, "batch": load.batch,
            "record_bytes": load.record_bytes, "partitions": partitions, "seconds": seconds, "records": total.records,
            "records_per_s": per_second, "bytes_per_s": bytes_per_second,
            "p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "max_ms": max,
        }))?;
        return Ok(out.flush()?);
    }
    out.line(&format!(
        "{name}: {mode}, {} in flight, batches of {}, {} B records, {partitions} partitions, {} clients, {seconds} s",
        load.in_flight, load.batch, load.record_bytes, load.clients
    ))?;
    out.line(&format!("  {} records/s, {}/s", grouped(per_second as u64), bytes_text(bytes_per_second as u64)))?;
    out.line(&format!("  latency ms: p50 {p50:.2}, p99 {p99:.2}, p99.9 {p999:.2}, max {max:.2}"))?;
    Ok(out.flush()?)
}

async fn read(common: &Common, load: ReadLoad) -> Result<(), Failure> {
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
