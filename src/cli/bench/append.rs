//! Appending: closed loops, or at a fixed rate.

use super::measured::{used_within, Measured, Used, Window};
use super::{bytes_text, grouped, moment, Common, Failure, Format, Out};
use crate::batch::{BatchBuilder, RecordRef};
use crate::client::{
    AppendConditions, Client, ClientError, Deliveries, NewTopic, Outgoing, Producer, ProducerOptions, Reason,
};
use crate::clock::Clock;
use bytes::Bytes;
use clap::Args;
use serde_json::json;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How many appends are under way, and when they begin.
#[derive(Clone, Debug, Args)]
pub(super) struct Flow {
    /// Clients, each with its own connections
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    clients: u32,
    /// Appends in flight, over all clients
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: u32,
    /// Appends a second, each at its moment whatever became of those before it; --in-flight bounds how many may be under way
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: Option<u32>,
}

impl Flow {
    pub(super) const ONE_AT_A_TIME: Flow = Flow { clients: 1, in_flight: 1, rate: None };
}

/// What is appended, and for how long.
#[derive(Clone, Debug, Args)]
pub(super) struct Load {
    #[arg(skip = Flow::ONE_AT_A_TIME)]
    flow: Flow,
    /// The topic
    #[arg(long, default_value = "bench", value_name = "TOPIC")]
    topic: String,
    /// Partitions, if the topic is created
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
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

impl Load {
    pub(super) fn with(self, flow: Flow) -> Load {
        Load { flow, ..self }
    }

    /// One client's share of what may be in flight.
    fn share(&self, client: u32) -> u32 {
        self.flow.in_flight / self.flow.clients + u32::from(client < self.flow.in_flight % self.flow.clients)
    }

    /// Between two appends of one client, at a fixed rate.
    fn pace(&self) -> Option<Duration> {
        let rate = f64::from(self.flow.rate?) / f64::from(self.flow.clients.min(self.flow.in_flight));
        Some(Duration::from_secs_f64(1.0 / rate))
    }
}

/// When the next append is due.
struct Schedule {
    next: Instant,
    pace: Option<Duration>,
}

impl Schedule {
    fn of(load: &Load) -> Schedule {
        Schedule { next: Instant::now(), pace: load.pace() }
    }

    /// Waits until the next append is due, and says when that was: now, in a closed loop.
    async fn due(&mut self) -> Instant {
        let Some(pace) = self.pace else { return Instant::now() };
        let due = self.next;
        self.next += pace;
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        due
    }
}

pub(super) async fn run(common: &Common, name: &str, load: Load) -> Result<(), Failure> {
    let client = common.client()?;
    let partitions = topic_partitions(&client, &load).await?;
    let window = Window::after(load.warmup, load.duration);
    let used = tokio::spawn(used_within(client, window));
    let mut workers = Vec::new();
    for number in (0..load.flow.clients).filter(|number| load.share(*number) > 0) {
        let (load, client, share) = (load.clone(), common.client()?, load.share(number));
        workers.push(match load.unary {
            true => tokio::spawn(unary(load, client, number, partitions, window)),
            false => tokio::spawn(stream(load, client, share, partitions, window)),
        });
    }
    let mut total = Measured::new()?;
    for worker in workers {
        let measured = worker.await.map_err(|error| Failure::failed(format!("a worker failed: {error}")))??;
        total.add(&measured)?;
    }
    let used = used.await.map_err(|error| Failure::failed(format!("a worker failed: {error}")))?;
    report(common, name, &load, partitions, &total, used)
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

/// One client's unary appends: each in a task of its own, so many at a time.
async fn unary(load: Load, client: Client, number: u32, partitions: u32, window: Window) -> Result<Measured, Failure> {
    let (mut measured, mut under_way) = (Measured::new()?, JoinSet::new());
    let (value, clock, mut schedule) = (filler(load.record_bytes), Clock::default(), Schedule::of(&load));
    let topic: Arc<str> = load.topic.as_str().into();
    let mut note = |done: Result<Result<(Instant, Instant), ClientError>, tokio::task::JoinError>| {
        let (since, acknowledged) = done.map_err(|error| Failure::failed(format!("a worker failed: {error}")))??;
        if window.holds(acknowledged) {
            measured.note(acknowledged - since, u64::from(load.batch));
        }
        Ok::<(), Failure>(())
    };
    let mut turn = number;
    loop {
        let since = schedule.due().await;
        while under_way.len() >= load.share(number) as usize {
            if let Some(done) = under_way.join_next().await {
                note(done)?;
            }
        }
        while let Some(done) = under_way.try_join_next() {
            note(done)?;
        }
        // In a closed loop the clock starts when there is room.
        let since = if load.flow.rate.is_some() { since } else { Instant::now() };
        if Instant::now() >= window.to {
            break;
        }
        let batch = batch(&load, &value, &clock)?;
        let (client, topic, partition) = (client.clone(), topic.clone(), turn % partitions);
        under_way.spawn(async move {
            client.append(&topic, partition, batch, &AppendConditions::default()).await.map(|_| (since, Instant::now()))
        });
        turn = turn.wrapping_add(1);
    }
    while let Some(done) = under_way.join_next().await {
        note(done)?;
    }
    Ok(measured)
}

fn batch(load: &Load, value: &[u8], clock: &Clock) -> Result<Bytes, Failure> {
    let mut builder = BatchBuilder::new();
    let timestamp = clock.now();
    for _ in 0..load.batch {
        let record = RecordRef { value: Some(value), timestamp, ..RecordRef::default() };
        builder.push(record).map_err(ClientError::Record)?;
    }
    Ok(builder.build())
}

/// When each append under way was due, by partition: a producer delivers those of a partition in their order.
type Due = Arc<Mutex<Vec<VecDeque<Instant>>>>;

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
    let due: Due = Arc::new(Mutex::new(vec![VecDeque::new(); partitions as usize]));
    let counter = tokio::spawn(count(deliveries, permits.clone(), due.clone(), window));
    let (value, clock, mut schedule) = (filler(load.record_bytes), Clock::default(), Schedule::of(&load));
    let mut turn = 0;
    let mut failed = None;
    while Instant::now() < window.to && failed.is_none() {
        let since = schedule.due().await;
        let Ok(permit) = permits.acquire().await else { break };
        permit.forget();
        let since = if load.flow.rate.is_some() { since } else { Instant::now() };
        due.lock().expect("nobody panics while holding it")[turn as usize].push_back(since);
        let timestamp = clock.now();
        for _ in 0..load.batch {
            let record = RecordRef { value: Some(&value), timestamp, ..RecordRef::default() };
            failed = producer.send(Outgoing { partition: Some(turn), record }).await.err();
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

async fn count(
    mut deliveries: Deliveries,
    permits: Arc<Semaphore>,
    due: Due,
    window: Window,
) -> Result<Measured, Failure> {
    let mut measured = Measured::new()?;
    while let Some(delivery) = deliveries.next().await {
        let now = Instant::now();
        let since = due.lock().expect("nobody panics while holding it")[delivery.partition as usize].pop_front();
        match (delivery.result, since) {
            (Ok(_), Some(since)) if window.holds(now) => measured.note(now - since, u64::from(delivery.count)),
            (Ok(_), _) => {}
            (Err(_), _) => permits.close(),
        }
        permits.add_permits(1);
    }
    Ok(measured)
}

fn filler(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|at| b'a' + (at % 26) as u8).collect()
}

fn report(
    common: &Common,
    name: &str,
    load: &Load,
    partitions: u32,
    total: &Measured,
    used: Option<Used>,
) -> Result<(), Failure> {
    let seconds = load.duration.as_secs_f64();
    let per_second = total.records as f64 / seconds;
    let bytes_per_second = per_second * f64::from(load.record_bytes);
    let (p50, p99, p999) = (total.quantile_ms(0.5), total.quantile_ms(0.99), total.quantile_ms(0.999));
    let max = total.max_ms();
    let mode = if load.unary { "unary" } else { "stream" };
    // What 100,000 records cost all nodes together.
    let used = used.filter(|_| total.records > 0);
    let per_100k = |amount: u64| amount as f64 * 100_000.0 / total.records as f64;
    let cpu_s = used.map(|used| per_100k(used.cpu_us) / 1e6);
    let written = used.map(|used| per_100k(used.written_bytes));
    let mut out = Out::new();
    if common.output == Format::Json {
        out.json(&json!({
            "bench": name, "mode": mode, "clients": load.flow.clients, "in_flight": load.flow.in_flight, "batch": load.batch,
            "record_bytes": load.record_bytes, "partitions": partitions, "rate": load.flow.rate, "seconds": seconds,
            "records": total.records, "records_per_s": per_second, "bytes_per_s": bytes_per_second,
            "p50_ms": p50, "p99_ms": p99, "p999_ms": p999, "max_ms": max,
            "server_cpu_s_per_100k": cpu_s, "server_written_bytes_per_100k": written,
        }))?;
        return Ok(out.flush()?);
    }
    let rate = load.flow.rate.map_or(String::new(), |rate| format!(", {} appends/s due", grouped(rate.into())));
    out.line(&format!(
        "{name}: {mode}, {} in flight{rate}, batches of {}, {} B records, {partitions} partitions, {} clients, {seconds} s",
        load.flow.in_flight, load.batch, load.record_bytes, load.flow.clients
    ))?;
    out.line(&format!("  {} records/s, {}/s", grouped(per_second as u64), bytes_text(bytes_per_second as u64)))?;
    out.line(&format!("  latency ms: p50 {p50:.2}, p99 {p99:.2}, p99.9 {p999:.2}, max {max:.2}"))?;
    if let (Some(cpu_s), Some(written)) = (cpu_s, written) {
        let written = bytes_text(written as u64);
        out.line(&format!("  all nodes, per 100,000 records: {cpu_s:.2} s of processor time, {written} written"))?;
    }
    Ok(out.flush()?)
}
