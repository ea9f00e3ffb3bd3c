//! `balsa read`: records to standard output, from anywhere in the log, once or for ever.

use super::exit::Failure;
use super::moment;
use super::output::{Format, Out};
use super::{signals, Common};
use crate::client::{Chunk, Client, ReadFrom, Subscription, SubscriptionOptions};
use crate::clock::Clock;
use crate::ids::Offset;
use base64::prelude::{Engine, BASE64_STANDARD};
use bytes::Bytes;
use clap::Args;
use serde::Serialize;

/// Print records, one a line
#[derive(Debug, Args)]
#[command(after_help = "\
Without --partition all partitions are read, merged as they come; each keeps its
order. With -o json, a line per record:
  {\"topic\",\"partition\",\"offset\",\"timestamp\",\"key\",\"value\"}
where timestamp is the log's time in milliseconds. If key or value is not UTF-8,
both are base64, and \"encoding\":\"base64\" says so.

Examples:
  balsa read access | sort
  balsa read access --follow --from latest
  balsa read access --partition 2 --from 1000 --count 10 -o json
  balsa read access --from -15m")]
pub(super) struct ReadArgs {
    /// The topic
    topic: String,
    /// Only this partition
    #[arg(long, short, value_name = "N")]
    partition: Option<u32>,
    /// Where to start: earliest, latest, an offset, or a time (2026-11-21T08:00:00Z, or -15m for fifteen minutes ago)
    #[arg(long, value_name = "WHERE", default_value = "earliest", allow_hyphen_values = true)]
    from: String,
    /// Go on with what is appended later, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// End after this many records
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    /// Put partition, offset, time and key before each value, separated by tabs
    #[arg(long, short)]
    verbose: bool,
    /// Take the end of the log as the answering node knows it, without asking a majority
    #[arg(long)]
    stale: bool,
}

pub(super) async fn run(common: &Common, args: ReadArgs) -> Result<(), Failure> {
    let from = read_from(&args.from)?;
    let client = common.client()?;
    tokio::select! {
        biased;
        () = signals::stop_asked() => Ok(()),
        ended = read(common, &client, &args, from) => ended,
    }
}

fn read_from(text: &str) -> Result<ReadFrom, Failure> {
    match text {
        "earliest" => return Ok(ReadFrom::Earliest),
        "latest" => return Ok(ReadFrom::Latest),
        _ => {}
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        if let Ok(offset) = text.parse() {
            return Ok(ReadFrom::Offset(Offset(offset)));
        }
    }
    moment::moment(text, &Clock::default()).map(ReadFrom::Time).ok_or_else(|| {
        Failure::usage(format!(
            "--from {text:?} is neither earliest, latest, an offset, nor a time like {}",
            moment::FORMS
        ))
    })
}

async fn read(common: &Common, client: &Client, args: &ReadArgs, from: ReadFrom) -> Result<(), Failure> {
    if matches!(from, ReadFrom::Offset(_)) && args.partition.is_none() {
        let count = client.describe_topic(&args.topic).await?.partitions.len();
        if count > 1 {
            let (topic, from) = (&args.topic, &args.from);
            return Err(Failure::usage(format!(
                "an offset belongs to one partition, and {topic} has {count}: add --partition N to --from {from}"
            )));
        }
    }
    let options = SubscriptionOptions {
        partitions: args.partition.map(|partition| vec![partition]),
        from,
        follow: args.follow,
        count_max: args.count,
        stale: args.stale,
        ..SubscriptionOptions::default()
    };
    let mut subscription = Subscription::open(client, &args.topic, options).await?;
    let mut out = Out::new();
    while let Some(chunk) = subscription.next().await {
        match chunk {
            Ok(chunk) => print(common, &mut out, args, &chunk)?,
            Err(error) => {
                out.flush()?;
                return Err(error.into());
            }
        }
        if !subscription.has_ready() {
            out.flush()?;
        }
    }
    Ok(out.flush()?)
}

/// One record as JSON.
#[derive(Serialize)]
struct Line<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    timestamp: u64,
    key: Option<&'a str>,
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

fn print(common: &Common, out: &mut Out, args: &ReadArgs, chunk: &Chunk) -> Result<(), Failure> {
    for record in chunk.records() {
        let (key, value) = (record.key.as_ref(), record.value.as_ref());
        if common.output == Format::Json {
            let line = Line {
                topic: &args.topic,
                partition: chunk.partition,
                offset: record.offset.0,
                timestamp: chunk.timestamp.0,
                key: None,
                value: None,
                encoding: None,
            };
            print_json(out, line, key, value)?;
            continue;
        }
        if args.verbose {
            out.bytes(format!("{}\t{}\t{}\t", chunk.partition, record.offset, chunk.timestamp).as_bytes())?;
            out.bytes(key.map_or(&[], |key| key))?;
            out.bytes(b"\t")?;
        }
        out.bytes(value.map_or(&[], |value| value))?;
        out.bytes(b"\n")?;
    }
    Ok(())
}

/// The texts of key and value; base64 of both if either is not UTF-8.
fn print_json<'a>(
    out: &mut Out,
    line: Line<'a>,
    key: Option<&'a Bytes>,
    value: Option<&'a Bytes>,
) -> Result<(), Failure> {
    let text = |bytes: Option<&'a Bytes>| bytes.map(|bytes| std::str::from_utf8(bytes)).transpose();
    if let (Ok(key), Ok(value)) = (text(key), text(value)) {
        return Ok(out.json(&Line { key, value, ..line })?);
    }
    let key = key.map(|key| BASE64_STANDARD.encode(key));
    let value = value.map(|value| BASE64_STANDARD.encode(value));
    Ok(out.json(&Line { key: key.as_deref(), value: value.as_deref(), encoding: Some("base64"), ..line })?)
}
