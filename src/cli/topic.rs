//! `balsa topic`: create, list, describe, alter, delete.

use super::exit::Failure;
use super::output::{counted, Format, Out, Table};
use super::Common;
use crate::client::{Client, NewTopic, Partition, Topic};
use clap::{Args, Subcommand};
use serde_json::{json, Value};

/// Create, list, describe, alter and delete topics
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
#[command(after_help = "Examples:\n  balsa topic create access --partitions 4\n  balsa topic list")]
pub(super) struct TopicArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a topic
    #[command(after_help = "Example:\n  balsa topic create access --partitions 4")]
    Create {
        /// Its name: letters, digits, `.`, `_` and `-`
        topic: String,
        /// How many partitions: order holds within each
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        partitions: u32,
        /// On how many nodes each partition lies [default: 3, or all nodes if there are fewer]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        replication: Option<u32>,
        /// Largest batch it takes, in bytes [default: 1048576]
        #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
        batch_bytes_max: Option<u32>,
    },
    /// List all topics
    #[command(after_help = "Examples:\n  balsa topic list\n  balsa topic list -o json")]
    List,
    /// Show a topic's partitions: leaders, replicas, start and tail
    #[command(after_help = "Example:\n  balsa topic describe access")]
    Describe {
        /// The topic
        topic: String,
    },
    /// Add partitions, or change limits. Partitions are never taken away
    #[command(after_help = "Example:\n  balsa topic alter access --partitions 8")]
    Alter {
        /// The topic
        topic: String,
        /// How many partitions it shall have. New ones change where keys go
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        partitions: Option<u32>,
        /// Largest batch it takes, in bytes
        #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
        batch_bytes_max: Option<u32>,
    },
    /// Delete a topic and all its records, for good
    #[command(after_help = "Example:\n  balsa topic delete access")]
    Delete {
        /// The topic
        topic: String,
    },
}

pub(super) async fn run(common: &Common, args: TopicArgs) -> Result<(), Failure> {
    let client = common.client()?;
    let mut out = Out::new();
    match args.verb {
        Verb::Create { topic, partitions, replication, batch_bytes_max } => {
            let new = NewTopic { partitions: Some(partitions), replication, batch_bytes_max };
            let topic = client.create_topic(&topic, &new).await?;
            done(common, &mut out, "created", &topic)?;
        }
        Verb::List => list(common, &mut out, &client).await?,
        Verb::Describe { topic } => describe(common, &mut out, &client, &topic).await?,
        Verb::Alter { topic, partitions, batch_bytes_max } => {
            if partitions.is_none() && batch_bytes_max.is_none() {
                return Err(Failure::usage("nothing to alter: give --partitions or --batch-bytes-max"));
            }
            let topic = client.alter_topic(&topic, partitions, batch_bytes_max).await?;
            done(common, &mut out, "altered", &topic)?;
        }
        Verb::Delete { topic } => {
            client.delete_topic(&topic).await?;
            eprintln!("deleted topic {topic}");
        }
    }
    Ok(out.flush()?)
}

fn done(common: &Common, out: &mut Out, what: &str, topic: &Topic) -> Result<(), Failure> {
    if common.output == Format::Json {
        out.json(&topic_json(topic))?;
    }
    let (partitions, replicas) = (counted(topic.partitions.len() as u64, "partition"), topic.replication);
    eprintln!("{what} topic {}: {partitions}, {} each", topic.name, counted(u64::from(replicas), "replica"));
    Ok(())
}

async fn list(common: &Common, out: &mut Out, client: &Client) -> Result<(), Failure> {
    let topics = client.list_topics().await?;
    if common.output == Format::Json {
        return Ok(topics.iter().try_for_each(|topic| out.json(&topic_json(topic)))?);
    }
    if topics.is_empty() {
        eprintln!("there are no topics; `balsa topic create NAME` makes one");
        return Ok(());
    }
    let mut table = Table::new(&["TOPIC", "PARTITIONS", "REPLICAS", "BATCH-BYTES-MAX", "ID"]);
    for topic in topics {
        let (partitions, replicas) = (topic.partitions.len().to_string(), topic.replication.to_string());
        table.row(vec![topic.name, partitions, replicas, topic.batch_bytes_max.to_string(), topic.id]);
    }
    Ok(table.print(out)?)
}

async fn describe(common: &Common, out: &mut Out, client: &Client, name: &str) -> Result<(), Failure> {
    let topic = client.describe_topic(name).await?;
    if common.output == Format::Json {
        return Ok(out.json(&topic_json(&topic))?);
    }
    let mut table = Table::new(&["PARTITION", "LEADER", "TERM", "REPLICAS", "START", "TAIL"]);
    let tails = topic.partitions.iter().map(|partition| client.tail(name, partition.partition, false));
    let mut failure = None;
    for (partition, tail) in topic.partitions.iter().zip(futures::future::join_all(tails).await) {
        let (start, tail) = match tail {
            Ok(tail) => (tail.start.to_string(), tail.tail.to_string()),
            Err(error) => {
                failure.get_or_insert(error);
                ("?".to_string(), "?".to_string())
            }
        };
        let leader = partition.leader.as_ref();
        let node = leader.map_or("-".to_string(), |leader| leader.node.to_string());
        let term = leader.map_or("-".to_string(), |leader| leader.term.to_string());
        table.row(vec![partition.partition.to_string(), node, term, replicas_text(partition), start, tail]);
    }
    out.line(&format!("topic {}, id {}, batches up to {} bytes", topic.name, topic.id, topic.batch_bytes_max))?;
    table.print(out)?;
    out.flush()?;
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn replicas_text(partition: &Partition) -> String {
    let nodes: Vec<String> = partition.replicas.iter().map(ToString::to_string).collect();
    nodes.join(",")
}

fn topic_json(topic: &Topic) -> Value {
    let partitions: Vec<Value> = topic.partitions.iter().map(partition_json).collect();
    json!({
        "topic": topic.name,
        "id": topic.id,
        "replication": topic.replication,
        "batch_bytes_max": topic.batch_bytes_max,
        "created": topic.created.0,
        "partitions": partitions,
    })
}

fn partition_json(partition: &Partition) -> Value {
    json!({
        "partition": partition.partition,
        "leader": partition.leader.as_ref().map(|leader| leader.node.0),
        "term": partition.leader.as_ref().map(|leader| leader.term.0),
        "replicas": partition.replicas.iter().map(|node| node.0).collect::<Vec<u32>>(),
    })
}
