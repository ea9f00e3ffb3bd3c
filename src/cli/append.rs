//! `balsa append`: one record from the command line, or one per line of standard input.
//!
//! Lines go through a producer in sessions, so that a retry never doubles one. Whatever ends it early, the summary on
//! standard error says what was acknowledged. With `--session NAME` the lines that an earlier run of the same input had
//! appended are skipped: lines are assigned to partitions by nothing but the input, so the n-th line of a partition is the
//! n-th record of that partition's session.

use super::exit::Failure;
use super::input::{self, Block, InputError};
use super::output::{bytes_text, counted, grouped, stderr_is_terminal, Format, Out};
use super::{signals, Common};
use crate::batch::{BatchBuilder, RecordRef};
use crate::client::{
    partition_of_key, AppendConditions, Client, ClientError, Deliveries, Outcome, Outgoing, Producer, ProducerOptions,
    Receipt, SessionChoice,
};
use crate::clock::Clock;
use crate::ids::{Offset, TimestampMs};
use clap::Args;
use serde::Serialize;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long an interrupted append waits for what is under way.
const GRACE: Duration = Duration::from_secs(2);
/// How long the end waits for its session to be closed.
const CLOSE: Duration = Duration::from_millis(500);
const PROGRESS: Duration = Duration::from_millis(500);

/// Append records: one from the command line, or one per line of standard input
#[derive(Debug, Args)]
#[command(after_help = "\
Prints nothing on standard output unless asked. With -o json, a line per batch:
  {\"topic\",\"partition\",\"offset\",\"term\",\"hash\",\"count\"}
where offset is its first record's (no count for a single RECORD). A summary goes
to standard error.

Examples:
  balsa append access < access.log
  balsa append access --key-separator ' ' < access.log
                       the text before the first blank is the key
  balsa append access --session import-7 < access.log
                       may be run again: nothing is appended twice
  balsa append jobs 'one record' --partition 0 --expected-offset 17")]
pub(super) struct AppendArgs {
    /// The topic
    topic: String,
    /// The record; without it, each line of standard input is one
    record: Option<String>,
    /// To this partition [default: by key, or in turn where there is none]
    #[arg(long, short, value_name = "N")]
    partition: Option<u32>,
    /// The key of every record
    #[arg(long, short, value_name = "K", conflicts_with = "key_separator")]
    key: Option<String>,
    /// Each line is KEY, this separator, VALUE; \t is a tab
    #[arg(long, value_name = "C", conflicts_with = "record")]
    key_separator: Option<String>,
    /// Append only if the partition ends at this offset, which the first record then gets
    #[arg(long, value_name = "N", conflicts_with = "session")]
    expected_offset: Option<u64>,
    /// Append in the sessions of this name: run again with the same input, it goes on where it stopped
    #[arg(long, value_name = "NAME", conflicts_with = "record")]
    session: Option<String>,
    /// How long a batch that is not full waits for more lines, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2)]
    linger: u64,
    /// A batch is full at so many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    batch_bytes: u32,
    /// Print where each batch went
    #[arg(long, short)]
    verbose: bool,
}

pub(super) async fn run(common: &Common, args: AppendArgs) -> Result<(), Failure> {
    let client = common.client()?;
    match (&args.record, args.expected_offset) {
        (Some(record), _) => append_one(common, &args, &client, record).await,
        (None, Some(expected)) => append_expecting(common, &args, &client, Offset(expected)).await,
        (None, None) => append_lines(common, &args, &client).await,
    }
}

/// One batch, as JSON.
#[derive(Serialize)]
struct Line<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    term: u64,
    hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u32>,
}

/// Prints receipts as asked for.
struct Printer {
    out: Out,
    topic: String,
    format: Format,
    verbose: bool,
    single: bool,
}

impl Printer {
    fn new(common: &Common, args: &AppendArgs) -> Printer {
        let (format, verbose, single) = (common.output, args.verbose, args.record.is_some());
        Printer { out: Out::new(), topic: args.topic.clone(), format, verbose, single }
    }

    fn print(&mut self, receipt: &Receipt) -> std::io::Result<()> {
        let Receipt { partition, offset, count, term, hash, .. } = receipt;
        if self.format == Format::Json {
            return self.out.json(&Line {
                topic: &self.topic,
                partition: *partition,
                offset: offset.0,
                term: term.0,
                hash: hash.to_string(),
                count: (!self.single).then_some(*count),
            });
        }
        if self.verbose {
            let (topic, end) = (&self.topic, offset.plus(u64::from(*count)));
            self.out.line(&format!("{topic}/{partition} offsets {offset}..{end} term {term} hash {hash}"))?;
        }
        Ok(())
    }
}

/// What came of the records so far.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: u64,
    repeated: u64,
    unknown: u64,
    refused: u64,
    /// Per partition: the first and the last offset acknowledged.
    ranges: Vec<(u32, Offset, Offset)>,
    failure: Option<ClientError>,
    /// Standard output failed; nothing is printed any more.
    output: Option<Failure>,
}

impl Tally {
    fn note(&mut self, count: u32, result: Result<Receipt, ClientError>) {
        let count = u64::from(count);
        match result {
            Ok(receipt) => {
                self.acknowledged += count;
                self.repeated += if receipt.repeated { count } else { 0 };
                let end = receipt.offset.plus(count);
                match self.ranges.iter_mut().find(|(partition, ..)| *partition == receipt.partition) {
                    Some((_, first, last)) => (*first, *last) = ((*first).min(receipt.offset), (*last).max(end)),
                    None => self.ranges.push((receipt.partition, receipt.offset, end)),
                }
            }
            Err(error) => {
                match error.outcome() {
                    Outcome::MayHaveHappened => self.unknown += count,
                    Outcome::DidNotHappen => self.refused += count,
                }
                if self.failure.is_none() || matches!(self.failure, Some(ClientError::AfterFailure { .. })) {
                    self.failure = Some(error);
                }
            }
        }
    }
}

/// Takes deliveries until there are no more: prints, counts, shows progress.
async fn report(mut deliveries: Deliveries, mut printer: Printer, shared: Arc<Mutex<Tally>>) {
    let started = Instant::now();
    let mut shown = started;
    let progress = stderr_is_terminal() && !std::io::stdin().is_terminal();
    while let Some(delivery) = deliveries.next().await {
        let mut tally = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Ok(receipt), None) = (&delivery.result, &tally.output) {
            if let Err(error) = printer.print(receipt).and_then(|()| printer.out.flush()) {
                tally.output = Some(error.into());
            }
        }
        tally.note(delivery.count, delivery.result);
        if progress && shown.elapsed() >= PROGRESS {
            shown = Instant::now();
            eprint!(
                "\r{} acknowledged in {:.0} s ",
                counted(tally.acknowledged, "record"),
                started.elapsed().as_secs_f64()
            );
        }
    }
    if progress && shown > started {
        eprint!("\r\x1b[K");
    }
}

/// Why the lines ended.
enum End {
    AtEof,
    Interrupted,
    BadInput(Failure),
    Failed,
}

async fn append_lines(common: &Common, args: &AppendArgs, client: &Client) -> Result<(), Failure> {
    if std::io::stdin().is_terminal() {
        eprintln!("type records, one a line; Ctrl-D ends");
    }
    let options = ProducerOptions {
        linger: Duration::from_millis(args.linger),
        batch_bytes: args.batch_bytes as usize,
        session: args.session.clone().map_or(SessionChoice::Anonymous, SessionChoice::Named),
        timeout: common.timeout,
        ..ProducerOptions::default()
    };
    let started = Instant::now();
    let (producer, deliveries) = Producer::open(client, &args.topic, options).await?;
    let mut lines = Lines::new(args, producer.partitions())?;
    lines.skip_appended(args, &producer).await?;
    let tally: Arc<Mutex<Tally>> = Arc::default();
    let reporter = tokio::spawn(report(deliveries, Printer::new(common, args), tally.clone()));
    let mut stop = std::pin::pin!(signals::stop_asked());
    let mut end = tokio::select! {
        biased;
        () = &mut stop => End::Interrupted,
        end = lines.send_all(&producer, input::stdin_blocks()) => end,
    };
    let grace = if matches!(end, End::Interrupted) { GRACE } else { common.timeout + GRACE };
    let mut first_failure = None;
    let unresolved = tokio::select! {
        biased;
        () = &mut stop, if !matches!(end, End::Interrupted) => { end = End::Interrupted; producer.unresolved() }
        flushed = tokio::time::timeout(grace, producer.flush()) => match flushed {
            Ok(flushed) => { first_failure = flushed.err(); 0 }
            Err(_) => producer.unresolved(),
        },
    };
    drop(producer);
    // What is still under way is not waited for any more: it counts as unknown.
    if unresolved == 0 {
        let _ = reporter.await;
    } else {
        reporter.abort();
    }
    let mut tally = std::mem::take(&mut *tally.lock().unwrap_or_else(PoisonError::into_inner));
    tally.unknown += lines.sent.saturating_sub(tally.acknowledged + tally.refused + tally.unknown);
    // What failed first says why; the records behind it only say that they are behind it.
    if let (Some(ClientError::AfterFailure { .. }), Some(first)) = (&tally.failure, first_failure) {
        tally.failure = Some(first);
    }
    conclude(args, &lines, tally, end, started.elapsed())
}

/// The lines of the input on their way into the producer.
struct Lines<'a> {
    key: Option<&'a [u8]>,
    separator: Option<Vec<u8>>,
    /// The partition of every line; `None`: by key, or else as `in_turn` says.
    partition: Option<u32>,
    partitions: u32,
    /// Lines without a key go to partitions by line number, so that another run makes the same choice.
    in_turn: bool,
    clock: Clock,
    line: u64,
    bytes: u64,
    sent: u64,
    skipped: u64,
    /// Per partition: lines that the session had appended before, still to be skipped.
    to_skip: Vec<u64>,
}

impl<'a> Lines<'a> {
    fn new(args: &'a AppendArgs, partitions: u32) -> Result<Lines<'a>, Failure> {
        let separator = args.key_separator.as_ref().map(|text| text.replace("\\t", "\t").into_bytes());
        if separator.as_ref().is_some_and(Vec::is_empty) {
            return Err(Failure::usage("--key-separator is empty; give the text that stands between key and value"));
        }
        if let Some(partition) = args.partition.filter(|partition| *partition >= partitions) {
            let topic = args.topic.clone();
            return Err(ClientError::NoSuchPartition { topic, partition, count: partitions }.into());
        }
        Ok(Lines {
            key: args.key.as_deref().map(str::as_bytes),
            separator,
            partition: args.partition,
            partitions,
            in_turn: args.session.is_some(),
            clock: Clock::default(),
            line: 0,
            bytes: 0,
            sent: 0,
            skipped: 0,
            to_skip: Vec::new(),
        })
    }

    /// Learns how far an earlier run of the same session got in each partition.
    async fn skip_appended(&mut self, args: &AppendArgs, producer: &Producer) -> Result<(), Failure> {
        if args.session.is_none() {
            return Ok(());
        }
        self.to_skip = vec![0; self.partitions as usize];
        let wanted = args.partition.map_or(0..self.partitions, |partition| partition..partition + 1);
        let opened = wanted.map(|partition| async move { (partition, producer.session(partition).await) });
        let (mut new, mut old) = (None, None);
        for (partition, session) in futures::future::join_all(opened).await {
            let session = session?;
            self.to_skip[partition as usize] = session.records;
            if session.records > 0 {
                old = Some(partition);
            } else if session.epoch == 0 {
                new = Some(partition);
            }
        }
        if let (Some(new), Some(old)) = (new, old) {
            // Lines would go to other partitions than they did: some would be appended twice, others never.
            let name = args.session.as_deref().unwrap_or_default();
            return Err(Failure::precondition(format!(
                "session {name:?} has appended to partition {old} of {}, and is new in partition {new}: the topic got more \
                 partitions since, the session expired there, or an earlier run named a --partition\n  append the rest of \
                 the input under another --session name, from where that run ended",
                args.topic
            )));
        }
        Ok(())
    }

    async fn send_all(&mut self, producer: &Producer, mut blocks: mpsc::Receiver<Result<Block, InputError>>) -> End {
        while let Some(block) = blocks.recv().await {
            let block = match block {
                Ok(block) => block,
                Err(error) => return End::BadInput(Failure::failed(error.to_string())),
            };
            let now = self.clock.now();
            for line in block.lines() {
                self.line += 1;
                if let Err(end) = self.send(producer, line, now).await {
                    return end;
                }
            }
        }
        End::AtEof
    }

    async fn send(&mut self, producer: &Producer, line: &[u8], timestamp: TimestampMs) -> Result<(), End> {
        let (key, value) = self.split(line).map_err(End::BadInput)?;
        let partition = self.partition.or_else(|| match key {
            Some(key) => Some(partition_of_key(key, self.partitions)),
            None if self.in_turn => Some(((self.line - 1) % u64::from(self.partitions.max(1))) as u32),
            None => None,
        });
        if let Some(left) = partition.and_then(|partition| self.to_skip.get_mut(partition as usize)) {
            if *left > 0 {
                *left -= 1;
                self.skipped += 1;
                return Ok(());
            }
        }
        let record = RecordRef { key, value: Some(value), timestamp, ..RecordRef::default() };
        match producer.send(Outgoing { partition, record }).await {
            Ok(()) => {
                self.sent += 1;
                self.bytes += line.len() as u64;
                Ok(())
            }
            Err(error @ (ClientError::Record(_) | ClientError::RecordTooLarge { .. })) => {
                Err(End::BadInput(Failure::failed(format!("line {}: {}", self.line, Failure::from(error).message()))))
            }
            Err(_) => Err(End::Failed),
        }
    }

    fn split<'b>(&self, line: &'b [u8]) -> Result<(Option<&'b [u8]>, &'b [u8]), Failure>
    where
        'a: 'b,
    {
        let Some(separator) = &self.separator else { return Ok((self.key, line)) };
        let at = line.windows(separator.len()).position(|window| window == separator.as_slice());
        let Some(at) = at else {
            let text = String::from_utf8_lossy(separator);
            return Err(Failure::failed(format!("line {} holds no separator {text:?}", self.line)));
        };
        Ok((Some(&line[..at]), &line[at + separator.len()..]))
    }
}

/// The summary, and how it ended.
fn conclude(args: &AppendArgs, lines: &Lines<'_>, tally: Tally, end: End, elapsed: Duration) -> Result<(), Failure> {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let Tally { acknowledged, unknown, refused, .. } = tally;
    let rate = grouped((acknowledged as f64 / seconds) as u64);
    let mut summary = format!("{} acknowledged by {}", counted(acknowledged, "record"), args.topic);
    summary.push_str(&format!(" in {seconds:.2} s ({rate}/s; {} sent)", bytes_text(lines.bytes)));
    if lines.skipped > 0 {
        summary.push_str(&format!("; {} skipped, appended by an earlier run", counted(lines.skipped, "line")));
    }
    if tally.repeated > 0 {
        summary.push_str(&format!("; {} of them sent more than once, appended once", grouped(tally.repeated)));
    }
    if unknown > 0 {
        summary.push_str(&format!("; {} may or may not be appended", grouped(unknown)));
    }
    if refused > 0 {
        summary.push_str(&format!("; {} taken from the input and not appended", grouped(refused)));
    }
    eprintln!("{summary}");
    let mut ranges = tally.ranges;
    ranges.sort_unstable();
    if !matches!(end, End::AtEof) || tally.failure.is_some() {
        for (partition, first, end) in &ranges {
            eprintln!("  {}/{partition}: acknowledged within offsets {first}..{end}", args.topic);
        }
    }
    let again = match &args.session {
        Some(_) => "run the same command again to go on: nothing is appended twice",
        None => "with --session NAME such a run can be run again without appending anything twice",
    };
    if let Some(failure) = tally.failure {
        let line = lines.line;
        let told = Failure::from(failure).context(&format!("appending stopped at or before line {line}"), again);
        return Err(if unknown > 0 { told.turned_unknown() } else { told });
    }
    match end {
        End::BadInput(failure) if unknown > 0 => return Err(failure.turned_unknown()),
        End::BadInput(failure) => return Err(failure),
        End::Interrupted if unknown > 0 => return Err(Failure::unknown(format!("interrupted\n  {again}"))),
        _ if unknown > 0 => return Err(Failure::unknown(format!("not all was answered in time\n  {again}"))),
        End::Interrupted => return Err(Failure::failed(format!("interrupted after line {}\n  {again}", lines.line))),
        End::Failed => return Err(Failure::failed("appending stopped")),
        End::AtEof => {}
    }
    let missing: u64 = lines.to_skip.iter().sum();
    if missing > 0 {
        let name = args.session.as_deref().unwrap_or_default();
        return Err(Failure::precondition(format!(
            "session {name:?} had already appended {} more than this input holds: was it another input?",
            counted(missing, "record")
        )));
    }
    // Last: that nobody reads the output is no excuse for what went wrong before.
    tally.output.map_or(Ok(()), Err)
}

async fn append_one(common: &Common, args: &AppendArgs, client: &Client, record: &str) -> Result<(), Failure> {
    let now = Clock::default().now();
    let key = args.key.as_deref().map(str::as_bytes);
    let record = RecordRef { key, value: Some(record.as_bytes()), timestamp: now, ..RecordRef::default() };
    let partitions = client.describe_topic(&args.topic).await?.partitions.len() as u32;
    if args.expected_offset.is_some() && args.partition.is_none() && partitions > 1 {
        return Err(needs_partition(args, partitions));
    }
    let partition = args.partition.unwrap_or_else(|| match key {
        Some(key) => partition_of_key(key, partitions),
        None => (rand::random::<u32>()) % partitions.max(1),
    });
    if partition >= partitions {
        return Err(ClientError::NoSuchPartition { topic: args.topic.clone(), partition, count: partitions }.into());
    }
    let mut builder = BatchBuilder::new();
    let mut session = None;
    if args.expected_offset.is_none() {
        let opened = client.open_session(&args.topic, partition, "").await.map_err(ClientError::of_nothing_sent)?;
        builder.producer(opened.producer_id.into(), opened.epoch, opened.next_sequence);
        session = Some(opened);
    }
    builder.push(record).map_err(ClientError::Record)?;
    let conditions =
        AppendConditions { expected_offset: args.expected_offset.map(Offset), ..AppendConditions::default() };
    let receipt = client.append(&args.topic, partition, builder.build(), &conditions).await?;
    if let Some(session) = session {
        // Otherwise it expires by itself; the record is in the log either way.
        let _ = tokio::time::timeout(CLOSE, client.close_session(&args.topic, partition, &session)).await;
    }
    eprintln!("appended to {}/{partition} at offset {}", args.topic, receipt.offset);
    let mut printer = Printer::new(common, args);
    printer.print(&receipt)?;
    Ok(printer.out.flush()?)
}

/// Lines behind an expected offset: batch by batch, each expecting to follow the one before.
async fn append_expecting(common: &Common, args: &AppendArgs, client: &Client, first: Offset) -> Result<(), Failure> {
    let started = Instant::now();
    let partitions = client.describe_topic(&args.topic).await?.partitions.len() as u32;
    if args.partition.is_none() && partitions > 1 {
        return Err(needs_partition(args, partitions));
    }
    let mut lines = Lines::new(args, partitions)?;
    let partition = args.partition.unwrap_or(0);
    let mut expecting = Expecting {
        client,
        topic: &args.topic,
        partition,
        next: first,
        builder: BatchBuilder::new(),
        bytes_max: args.batch_bytes as usize,
        tally: Tally::default(),
        printer: Printer::new(common, args),
    };
    let mut blocks = input::stdin_blocks();
    let end = tokio::select! {
        biased;
        () = signals::stop_asked() => End::Interrupted,
        end = expecting.send_all(&mut lines, &mut blocks) => end,
    };
    // Interrupted with an append under way: nobody waits for its answer any more.
    if matches!(end, End::Interrupted) {
        expecting.tally.unknown = lines.sent - expecting.tally.acknowledged;
    }
    conclude(args, &lines, expecting.tally, end, started.elapsed())
}

struct Expecting<'a> {
    client: &'a Client,
    topic: &'a str,
    partition: u32,
    next: Offset,
    builder: BatchBuilder,
    bytes_max: usize,
    tally: Tally,
    printer: Printer,
}

impl Expecting<'_> {
    async fn send_all(&mut self, lines: &mut Lines<'_>, blocks: &mut mpsc::Receiver<Result<Block, InputError>>) -> End {
        while let Some(block) = blocks.recv().await {
            let block = match block {
                Ok(block) => block,
                Err(error) => return End::BadInput(Failure::failed(error.to_string())),
            };
            let timestamp = lines.clock.now();
            for line in block.lines() {
                lines.line += 1;
                let (key, value) = match lines.split(line) {
                    Ok(split) => split,
                    Err(failure) => return End::BadInput(failure),
                };
                let record = RecordRef { key, value: Some(value), timestamp, ..RecordRef::default() };
                if self.builder.bytes_with(&record) > self.bytes_max && !self.send().await {
                    return End::Failed;
                }
                if let Err(error) = self.builder.push(record) {
                    return End::BadInput(Failure::failed(format!("line {}: {error}", lines.line)));
                }
                lines.sent += 1;
                lines.bytes += line.len() as u64;
            }
        }
        if self.send().await {
            End::AtEof
        } else {
            End::Failed
        }
    }

    /// Sends what is collected; says whether to go on.
    async fn send(&mut self) -> bool {
        if self.builder.is_empty() {
            return true;
        }
        let builder = std::mem::take(&mut self.builder);
        let count = builder.len() as u32;
        let conditions = AppendConditions { expected_offset: Some(self.next), ..AppendConditions::default() };
        let result = self.client.append(self.topic, self.partition, builder.build(), &conditions).await;
        if let Ok(receipt) = &result {
            self.next = receipt.offset.plus(u64::from(count));
            if self.tally.output.is_none() {
                let printed = self.printer.print(receipt).and_then(|()| self.printer.out.flush());
                self.tally.output = printed.err().map(Into::into);
            }
        }
        let done = result.is_ok();
        self.tally.note(count, result);
        done
    }
}

fn needs_partition(args: &AppendArgs, partitions: u32) -> Failure {
    let topic = &args.topic;
    Failure::usage(format!(
        "an expected offset belongs to one partition, and {topic} has {partitions}: add --partition N"
    ))
}
