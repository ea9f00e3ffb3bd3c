//! What bad input gets: a message that names the value, the limit and the way out, the right exit or status code; nothing is
//! lost, nobody panics, and memory stays bounded. Here: what comes from users, configurations and the wire. What disks do wrong
//! is in `damage`.
#![cfg(not(madsim))]

mod damage;
#[path = "../support/mod.rs"]
mod support;

use balsa::client::wire::{
    self, log_client::LogClient, producers_client::ProducersClient, topics_client::TopicsClient, Outcome, Reason,
};
use balsa::limits::{
    BATCH_BYTES_MAX, NAME_BYTES_MAX, RECORD_HEADERS_MAX, RECORD_KEY_BYTES_MAX, REQUEST_BYTES_MAX, TOPIC_NAME_BYTES_MAX,
};
use bytes::Bytes;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use support::{balsa_with, config_text, detail, expect, free_address, noise, printed, Cluster, Scratch, BALSA};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// More than a node needs for anything here.
const RESIDENT_BYTES_MAX: u64 = 256 << 20;

// ---- requests -------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_over_a_limit_on_the_command_line_is_refused_with_value_and_limit() {
    let cluster = Cluster::start("bad-cli", 1).await;
    expect(&cluster.balsa(&["topic", "create", "t", "--partitions", "2"]), 0, &[]);
    expect(&cluster.balsa(&["topic", "create", "small", "--batch-bytes-max", "1000"]), 0, &[]);

    let long_name = "x".repeat(TOPIC_NAME_BYTES_MAX + 1);
    let create = |name: &str| cluster.balsa(&["topic", "create", name]);
    expect(&create(&long_name), 2, &["201 bytes", "at most 200"]);
    expect(&create("a/b"), 2, &["`a/b`", "'/'", "a-z A-Z 0-9 . _ -"]);
    expect(&create(""), 2, &["empty", "1 to 200"]);
    expect(&create(".."), 2, &["`..`", "directory"]);
    expect(&create("t"), 4, &["\"t\" exists already"]);
    let more = |option: &str, value: &str| cluster.balsa(&["topic", "create", "more", option, value]);
    expect(&more("--partitions", "99999"), 2, &["99999", "10000"]);
    expect(&more("--partitions", "0"), 2, &["--partitions"]);
    expect(&more("--replication", "12"), 2, &["12", "at most 9"]);
    expect(&more("--replication", "5"), 2, &["5 replicas", "1 nodes", "ask for 1 at most"]);
    expect(&more("--batch-bytes-max", "2000000"), 2, &["2000000", "1048576"]);
    expect(&cluster.balsa(&["topic", "alter", "t", "--partitions", "1"]), 2, &["has 2 partitions", "not 1"]);
    expect(&cluster.balsa(&["topic", "alter", "t"]), 2, &["--partitions or --batch-bytes-max"]);

    for verb in ["describe", "delete"] {
        expect(&cluster.balsa(&["topic", verb, "nope"]), 3, &["\"nope\"", "balsa topic create nope"]);
    }
    expect(&cluster.balsa(&["topic", "alter", "nope", "--partitions", "3"]), 3, &["\"nope\"", "balsa topic list"]);
    expect(&cluster.balsa(&["append", "nope", "x"]), 3, &["\"nope\"", "balsa topic create nope"]);
    expect(&cluster.balsa_fed(&["append", "nope"], b"x\n"), 3, &["\"nope\""]);
    expect(&cluster.balsa(&["read", "nope"]), 3, &["\"nope\""]);
    for command in [["append", "t", "x", "--partition", "7"], ["read", "t", "--count", "1", "--partition=7"]] {
        expect(&cluster.balsa(&command), 3, &["no partition 7", "it has 2", "balsa topic describe"]);
    }

    let key = "k".repeat(RECORD_KEY_BYTES_MAX + 1);
    expect(&cluster.balsa(&["append", "t", "x", "--key", &key]), 2, &["65537 bytes", "at most 65536"]);
    let line = vec![b'x'; BATCH_BYTES_MAX + 1];
    expect(&cluster.balsa_fed(&["append", "t"], &line), 1, &["line 1", "1048576 bytes", "split it"]);
    // Fits the line's bound, and not the batch's with the envelope around it.
    let line = vec![b'x'; BATCH_BYTES_MAX - 10];
    expect(&cluster.balsa_fed(&["append", "t"], &line), 1, &["line 1", "allows 1048576"]);
    let over = cluster.balsa_fed(&["append", "small"], &[b"fits\n".as_slice(), &[b'x'; 2_000]].concat());
    expect(&over, 1, &["line 2", "topic small allows 1000", "--batch-bytes-max"]);
    expect(&cluster.balsa_fed(&["append", "t", "--key-separator", "="], b"a=b\nab\n"), 1, &["line 2", "\"=\""]);
    let name = "n".repeat(NAME_BYTES_MAX + 1);
    expect(&cluster.balsa_fed(&["append", "t", "--session", &name], b"x\n"), 2, &["129", "at most 128"]);

    expect(&cluster.balsa(&["read", "t", "--partition", "1", "--from", "5"]), 3, &["ends at offset", "5"]);
    expect(&cluster.balsa(&["read", "t", "--from", "0"]), 2, &["has 2", "--partition"]);
    expect(&cluster.balsa(&["read", "t", "--from", "yesterday"]), 2, &["\"yesterday\"", "earliest, latest"]);
    let expecting = ["append", "t", "x", "--partition", "1", "--expected-offset", "99"];
    expect(&cluster.balsa(&expecting), 4, &["expected offset 99", "nothing was appended"]);
    for servers in ["nohost", "host:0", "host:70000", ":7400", ""] {
        expect(&balsa_with(servers, &["status"], b""), 2, &["host:port"]);
    }

    // What came before the bad line is there, and nothing else.
    let small = printed(&cluster.balsa(&["read", "small"]));
    assert_eq!(small, "fits\n");
    assert_eq!(printed(&cluster.balsa(&["read", "t"])), "b\n");
    cluster.nobody_panicked();
}

/// The door of one node, as other programs use it.
struct Door {
    log: LogClient<Channel>,
    topics: TopicsClient<Channel>,
    producers: ProducersClient<Channel>,
}

impl Door {
    async fn of(address: SocketAddr) -> Door {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = channel.connect().await.expect("the node answers");
        let log = LogClient::new(channel.clone()).max_encoding_message_size(64 << 20);
        Door { log, topics: TopicsClient::new(channel.clone()), producers: ProducersClient::new(channel) }
    }

    async fn append(&self, batch: Bytes) -> Status {
        self.append_with(wire::AppendRequest { batch, ..to("t", 0) }).await
    }

    async fn append_with(&self, request: wire::AppendRequest) -> Status {
        self.log.clone().append(request).await.expect_err("it is refused")
    }

    async fn create(&self, request: wire::CreateTopicRequest) -> Status {
        self.topics.clone().create_topic(request).await.expect_err("it is refused")
    }

    async fn read(&self, request: wire::ReadRequest) -> Status {
        match self.log.clone().read(request).await {
            Err(status) => status,
            Ok(mut answers) => answers.get_mut().message().await.expect_err("it is refused"),
        }
    }
}

fn to(topic: &str, partition: u32) -> wire::AppendRequest {
    wire::AppendRequest { topic: topic.into(), partition, batch: one_record(b"x"), ..Default::default() }
}

fn one_record(value: &[u8]) -> Bytes {
    batch(&[record(None, value, 0)])
}

/// A signed number in zigzag form, seven bits a byte.
fn varint(into: &mut Vec<u8>, number: i64) {
    let mut left = ((number << 1) ^ (number >> 63)) as u64;
    while left >= 0x80 {
        into.push(left as u8 | 0x80);
        left >>= 7;
    }
    into.push(left as u8);
}

/// One record as Kafka lays it out, first of its batch, without regard to any limit.
fn record(key: Option<&[u8]>, value: &[u8], headers: usize) -> Vec<u8> {
    let mut body = vec![0, 0, 0];
    match key {
        None => varint(&mut body, -1),
        Some(key) => {
            varint(&mut body, key.len() as i64);
            body.extend_from_slice(key);
        }
    }
    varint(&mut body, value.len() as i64);
    body.extend_from_slice(value);
    varint(&mut body, headers as i64);
    (0..headers).for_each(|_| body.extend_from_slice(&[2, b'h', 0]));
    let mut record = Vec::new();
    varint(&mut record, body.len() as i64);
    record.extend_from_slice(&body);
    record
}

/// A batch around records, with its checksum.
fn batch(records: &[Vec<u8>]) -> Bytes {
    let body = records.concat();
    let count = records.len() as i32;
    let mut batch = Vec::with_capacity(61 + body.len());
    batch.extend_from_slice(&0_i64.to_be_bytes());
    batch.extend_from_slice(&(49 + body.len() as i32).to_be_bytes());
    batch.extend_from_slice(&0_i32.to_be_bytes());
    batch.push(2);
    batch.extend_from_slice(&[0; 4]);
    batch.extend_from_slice(&0_i16.to_be_bytes());
    batch.extend_from_slice(&(count - 1).to_be_bytes());
    batch.extend_from_slice(&1_i64.to_be_bytes());
    batch.extend_from_slice(&1_i64.to_be_bytes());
    batch.extend_from_slice(&(-1_i64).to_be_bytes());
    batch.extend_from_slice(&(-1_i16).to_be_bytes());
    batch.extend_from_slice(&(-1_i32).to_be_bytes());
    batch.extend_from_slice(&count.to_be_bytes());
    batch.extend_from_slice(&body);
    sealed(batch)
}

/// The same batch with the checksum that its bytes give.
fn sealed(mut batch: Vec<u8>) -> Bytes {
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    batch.into()
}

/// A batch with one byte set and its checksum made right again.
fn with_byte(position: usize, byte: u8) -> Bytes {
    let mut batch = one_record(b"x").to_vec();
    batch[position] = byte;
    sealed(batch)
}

fn refused(status: &Status, code: Code, reason: Reason, parts: &[&str]) {
    let detail = detail(status);
    let text = status.message();
    assert_eq!((status.code(), detail.reason(), detail.outcome()), (code, reason, Outcome::DidNotHappen), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not said: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_batch_at_the_door_is_refused_and_did_not_happen() {
    use Code::InvalidArgument as Bad;
    let cluster = Cluster::start("bad-batch", 1).await;
    expect(&cluster.balsa(&["topic", "create", "t"]), 0, &[]);
    expect(&cluster.balsa(&["topic", "create", "small", "--batch-bytes-max", "1000"]), 0, &[]);
    let door = Door::of(cluster.nodes[0].client).await;

    let key = vec![b'k'; RECORD_KEY_BYTES_MAX + 1];
    let status = door.append(batch(&[record(Some(&key), b"", 0)])).await;
    refused(&status, Bad, Reason::TooLarge, &["65537", "65536"]);
    let status = door.append(batch(&[record(None, b"", RECORD_HEADERS_MAX + 1)])).await;
    refused(&status, Bad, Reason::TooLarge, &["1001 headers", "1000"]);
    let status = door.append(one_record(&vec![0; BATCH_BYTES_MAX])).await;
    refused(&status, Bad, Reason::TooLarge, &["1048576"]);
    let small = wire::AppendRequest { batch: one_record(&[0; 2_000]), ..to("small", 0) };
    refused(&door.append_with(small).await, Bad, Reason::TooLarge, &["at most 1000"]);

    let mut flipped = one_record(b"value").to_vec();
    *flipped.last_mut().expect("a byte") ^= 1;
    refused(&door.append(flipped.into()).await, Bad, Reason::BadChecksum, &["checksum"]);
    let truncated = one_record(b"value").slice(..65);
    refused(&door.append(truncated).await, Bad, Reason::InvalidArgument, &["says it is"]);
    refused(&door.append(Bytes::new()).await, Bad, Reason::InvalidArgument, &["0 bytes", "61"]);
    refused(&door.append(vec![0xff; 400].into()).await, Bad, Reason::InvalidArgument, &[]);
    refused(&door.append(with_byte(7, 1)).await, Bad, Reason::InvalidArgument, &["base offset 1", "must be 0"]);
    refused(&door.append(with_byte(16, 1)).await, Bad, Reason::InvalidArgument, &["version 1", "only 2"]);
    refused(&door.append(with_byte(22, 1)).await, Bad, Reason::InvalidArgument, &["compressed"]);
    // A count that the bytes can't hold must cost no memory.
    refused(&door.append(with_byte(57, 0x7f)).await, Bad, Reason::InvalidArgument, &["at most 100000"]);
    refused(&door.append(with_byte(26, 9)).await, Bad, Reason::InvalidArgument, &["delta 9"]);

    // Over what a request may be: refused before memory is taken for it, whichever door it knocks at.
    let bound = REQUEST_BYTES_MAX.to_string();
    for bytes in [REQUEST_BYTES_MAX + 1, 32 << 20, 32 << 20, 32 << 20, 63 << 20] {
        let status = door.append(vec![0; bytes].into()).await;
        refused(&status, Bad, Reason::TooLarge, &["the request is ", &bound, "nothing was done", "send less"]);
        let said = detail(&status);
        assert!(said.wanted > bytes as u64 && said.limit == REQUEST_BYTES_MAX as u64, "{said:?}");
    }
    let name = "x".repeat(REQUEST_BYTES_MAX + 1);
    let create = wire::CreateTopicRequest { name: name.clone(), ..Default::default() };
    refused(&door.create(create).await, Bad, Reason::TooLarge, &["the request is ", &bound]);
    let open = wire::OpenSessionRequest { topic: name, ..Default::default() };
    let status = door.producers.clone().open_session(open).await.expect_err("it is refused");
    refused(&status, Bad, Reason::TooLarge, &["the request is ", &bound]);

    // On a stream one refusal ends neither the stream nor what follows.
    let appends = [vec![0; 70].into(), one_record(b"good")].into_iter().zip(1..).map(|(batch, number)| {
        wire::AppendStreamRequest { number, append: Some(wire::AppendRequest { batch, ..to("small", 0) }) }
    });
    let requests = tokio_stream::iter(appends.collect::<Vec<_>>());
    let mut answers = door.log.clone().append_stream(requests).await.expect("a stream").into_inner();
    let mut outcomes = std::collections::BTreeMap::new();
    while let Some(answer) = answers.message().await.expect("answers") {
        outcomes.insert(answer.number, answer.outcome);
    }
    let failed = match &outcomes[&1] {
        Some(wire::append_stream_response::Outcome::Failure(failure)) => failure,
        other => panic!("{other:?}"),
    };
    assert_eq!(failed.code, Bad as i32);
    assert_eq!(failed.detail.as_ref().map(wire::ErrorDetail::outcome), Some(Outcome::DidNotHappen));
    assert!(matches!(outcomes[&2], Some(wire::append_stream_response::Outcome::Receipt(_))));

    // What is too large ends a stream, after all that was taken before it has its answer: the rest did not happen.
    let batches = [one_record(b"before"), vec![0; 5 << 20].into(), one_record(b"behind")];
    let appends = batches.into_iter().zip(1..).map(|(batch, number)| wire::AppendStreamRequest {
        number,
        append: Some(wire::AppendRequest { batch, ..to("small", 0) }),
    });
    let requests = tokio_stream::iter(appends.collect::<Vec<_>>());
    let mut answers = door.log.clone().append_stream(requests).await.expect("a stream").into_inner();
    let mut acknowledged = 0;
    let status = loop {
        match answers.message().await {
            Ok(answer) => acknowledged = answer.expect("the stream ends with a refusal").number,
            Err(status) => break status,
        }
    };
    refused(&status, Bad, Reason::TooLarge, &["the request is ", &bound]);

    assert_eq!(printed(&cluster.balsa(&["read", "t"])), "", "nothing was appended");
    let small = if acknowledged == 1 { "good\nbefore\n" } else { "good\n" };
    assert_eq!(printed(&cluster.balsa(&["read", "small"])), small);
    assert!(cluster.nodes[0].resident_bytes() < RESIDENT_BYTES_MAX);
    cluster.nobody_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_what_is_not_there_or_not_allowed_says_so_with_its_code() {
    use Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfRange};
    let cluster = Cluster::start("bad-request", 1).await;
    expect(&cluster.balsa(&["topic", "create", "t"]), 0, &[]);
    expect(&cluster.balsa(&["append", "t", "only"]), 0, &[]);
    let door = Door::of(cluster.nodes[0].client).await;

    let status = door.append_with(to("nope", 0)).await;
    refused(&status, NotFound, Reason::UnknownTopic, &["\"nope\"", "balsa topic create nope"]);
    let status = door.append_with(to("t", 5)).await;
    refused(&status, NotFound, Reason::UnknownPartition, &["\"t\"", "0 to 0", "5"]);
    assert_eq!((detail(&status).wanted, detail(&status).limit), (5, 1));
    let name = |name: &str| wire::CreateTopicRequest { name: name.into(), ..Default::default() };
    refused(&door.create(name("t")).await, AlreadyExists, Reason::TopicExists, &["\"t\""]);
    refused(&door.create(name("späße")).await, InvalidArgument, Reason::InvalidArgument, &["'ä'"]);
    refused(&door.create(name("")).await, InvalidArgument, Reason::InvalidArgument, &["empty"]);
    refused(&door.create(name(&"x".repeat(5_000))).await, InvalidArgument, Reason::InvalidArgument, &["5000", "200"]);
    let many = wire::CreateTopicRequest { partitions: u32::MAX, ..name("many") };
    refused(&door.create(many).await, InvalidArgument, Reason::TooLarge, &["4294967295", "10000"]);
    let wide = wire::CreateTopicRequest { replication: 3, ..name("wide") };
    refused(&door.create(wide).await, FailedPrecondition, Reason::InvalidArgument, &["3 replicas", "1 nodes"]);

    let read = |from| wire::ReadRequest { topic: "t".into(), from, ..Default::default() };
    let status = door.read(read(Some(wire::read_request::From::Offset(2)))).await;
    refused(&status, OutOfRange, Reason::OffsetPastTail, &["t/0", "ends at offset 1", "2"]);
    assert_eq!((detail(&status).wanted, detail(&status).limit), (2, 1));
    refused(&door.read(read(None)).await, InvalidArgument, Reason::InvalidArgument, &["earliest, latest"]);

    let expecting = wire::AppendRequest { expected_offset: Some(u64::MAX), ..to("t", 0) };
    let status = door.append_with(expecting).await;
    refused(&status, FailedPrecondition, Reason::WrongExpectedOffset, &["ends at 1", "nothing was appended"]);
    let fence = |name: String| Some(wire::Fence { name, token: 1 });
    let empty = wire::AppendRequest { fence: fence(String::new()), ..to("t", 0) };
    refused(&door.append_with(empty).await, InvalidArgument, Reason::InvalidArgument, &["empty"]);
    let long = wire::AppendRequest { fence: fence("f".repeat(NAME_BYTES_MAX + 1)), ..to("t", 0) };
    refused(&door.append_with(long).await, InvalidArgument, Reason::TooLarge, &["129", "128"]);
    let open = wire::OpenSessionRequest { topic: "t".into(), partition: 0, name: "s".repeat(NAME_BYTES_MAX + 1) };
    let status = door.producers.clone().open_session(open).await.expect_err("it is refused");
    refused(&status, InvalidArgument, Reason::TooLarge, &["129", "128"]);

    assert_eq!(printed(&cluster.balsa(&["read", "t"])), "only\n");
    cluster.nobody_panicked();
}

// ---- configuration, ports, directories ------------------------------------------------------------------------

fn start_with(config: &Path) -> Output {
    Command::new(BALSA).arg("start").arg("--config").arg(config).output().expect("the command runs")
}

#[test]
fn a_config_that_cannot_be_right_is_refused_with_file_line_and_way_out() {
    let scratch = Scratch::new("bad-config");
    let addresses = [(free_address(), free_address()), (free_address(), free_address())];
    let good = config_text(1, &scratch.0.join("data"), &addresses);
    let file = scratch.0.join("node1.toml");
    let refused = |text: &str, parts: &[&str]| {
        fs::write(&file, text).expect("the configuration");
        let said = expect(&start_with(&file), 2, parts);
        assert!(said.contains("node1.toml"), "the file is not named: {said}");
    };
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    refused(&changed("node_id", "colour = 1\nnode_id"), &["line 1", "colour", "expected one of"]);
    refused(&changed("[listen]\n", "[listen]\nhttp = 1\n"), &["line 5", "http"]);
    refused(&changed("node_id = 1", "node_id = 3"), &["line 1", "node_id = 3", "(1, 2)", "add a [[nodes]] entry"]);
    refused(&changed("id = 2\n", "id = 1\n"), &["nodes.id = 1", "twice", "an id of its own"]);
    refused(&changed("node_id = 1", "node_id = \"one\""), &["line 1", "expected u32"]);
    refused(&changed("node_id = 1\n", ""), &["node_id"]);
    refused(&changed("node_id", "= ="), &["line 1"]);
    let beyond = changed("[listen]\nclient = \"127.0.0.1", "[listen]\nclient = \"0.0.0.0");
    refused(&beyond, &["line 5", "listen.client", "insecure_beyond_loopback = true", "127.0.0.1"]);
    let same = changed(&format!("peer = \"{}\"", addresses[0].1), &format!("peer = \"{}\"", addresses[0].0));
    refused(&same, &["listen.peer", "different ports"]);
    fs::write(&file, [0xff, 0xfe, 0x00]).expect("the configuration");
    expect(&start_with(&file), 2, &["node1.toml", "UTF-8"]);
    expect(&start_with(&scratch.0.join("none.toml")), 2, &["none.toml", "No such file"]);
    expect(&start_with(&scratch.0), 2, &["cannot read"]);
    assert!(!scratch.0.join("data").exists(), "nothing was started");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named_by_start_and_up_before_anything_is_founded() {
    let mut cluster = Cluster::laid_out("bad-port", 1);
    let node = &mut cluster.nodes[0];
    for address in [node.client, node.peer] {
        let _taken = TcpListener::bind(address).expect("the port");
        let (code, text) = node.refuses_to_start();
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(&address.to_string()) && text.contains("in use") && text.contains("another"), "{text}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let dir = cluster.scratch.0.join("up");
    let up = Command::new(BALSA).args(["up", "--nodes", "1", "--port", &port, "--dir"]).arg(&dir).output();
    let text = expect(&up.expect("the command runs"), 1, &["in use", "nothing was started", "--port"]);
    assert!(text.contains(&format!("127.0.0.1:{port}, wanted by node 1")), "{text}");
    assert!(!dir.exists(), "no folder holds on to a port that was never had");
    // Nothing was promised meanwhile: the node founds its cluster as if nothing had been.
    cluster.nodes[0].start();
    cluster.wait_until_up().await;
}

/// Rewrites IDENTITY's text with its checksum made right.
fn rewrite_identity(dir: &Path, change: impl FnOnce(&str) -> String) {
    let file = dir.join("IDENTITY");
    let text = fs::read_to_string(&file).expect("the identity");
    let body = change(text.rsplit_once("crc32c ").expect("a checksum").0);
    let checksum = crc32c::crc32c(body.as_bytes());
    fs::write(file, format!("{body}crc32c {checksum:08x}\n")).expect("the identity");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_that_is_not_this_nodes_own_is_refused_and_left_as_it_is() {
    let mut cluster = Cluster::start("bad-dir", 1).await;
    expect(&cluster.balsa(&["topic", "create", "t"]), 0, &[]);
    expect(&cluster.balsa(&["append", "t", "kept"]), 0, &[]);
    let dir = cluster.nodes[0].dir.clone();

    // In use, by a node that would listen elsewhere.
    let mut other = Cluster::laid_out("bad-dir-other", 1);
    let moved = config_text(1, &dir, &[(other.nodes[0].client, other.nodes[0].peer)]);
    fs::write(&other.nodes[0].config, moved).expect("the configuration");
    let (code, text) = other.nodes[0].refuses_to_start();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("in use by another process") && text.contains(&dir.display().to_string()), "{text}");
    assert!(cluster.nodes[0].stop().success());

    // Of a cluster with other founders than the configuration names.
    let (code, text) = other.nodes[0].refuses_to_start();
    assert_eq!(code, 1, "{text}");
    let parts = ["belongs to cluster", &cluster.nodes[0].peer.to_string(), &other.nodes[0].peer.to_string()];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");

    // Of another node.
    let own = fs::read_to_string(&cluster.nodes[0].config).expect("the configuration");
    let id_two = own.replace("id = 1", "id = 2");
    fs::write(&cluster.nodes[0].config, id_two).expect("the configuration");
    let (code, text) = cluster.nodes[0].refuses_to_start();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("directory of node 1") && text.contains("this is node 2"), "{text}");
    fs::write(&cluster.nodes[0].config, own).expect("the configuration");

    // Of another version, and damaged.
    let identity = fs::read(dir.join("IDENTITY")).expect("the identity");
    rewrite_identity(&dir, |text| text.replace("balsa identity 1", "balsa identity 9"));
    let (code, text) = cluster.nodes[0].refuses_to_start();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("format version 9") && text.contains("reads version 1"), "{text}");
    for (position, length) in [(20, identity.len()), (0, 0), (identity.len() - 3, identity.len())] {
        let mut damaged = identity[..length].to_vec();
        if let Some(byte) = damaged.get_mut(position) {
            *byte ^= 0x20;
        }
        fs::write(dir.join("IDENTITY"), damaged).expect("the identity");
        let (code, text) = cluster.nodes[0].refuses_to_start();
        assert_eq!(code, 7, "{text}");
        assert!(text.contains("IDENTITY is damaged") && text.contains("no command yet to replace a node"), "{text}");
    }
    fs::remove_file(dir.join("IDENTITY")).expect("the identity");
    let (code, text) = cluster.nodes[0].refuses_to_start();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("no IDENTITY") && text.contains("never starts empty"), "{text}");

    fs::write(dir.join("IDENTITY"), identity).expect("the identity");
    cluster.nodes[0].start();
    cluster.wait_until_up().await;
    assert_eq!(printed(&cluster.balsa(&["read", "t"])), "kept\n");
    cluster.nobody_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_refused_with_the_way_out_while_the_others_go_on() {
    let mut cluster = Cluster::start("bad-wiped", 3).await;
    expect(&cluster.balsa(&["topic", "create", "t", "--partitions", "3"]), 0, &[]);
    cluster.nodes[1].kill();
    fs::remove_dir_all(&cluster.nodes[1].dir).expect("the directory goes");
    let (code, text) = cluster.nodes[1].refuses_to_start();
    assert_eq!(code, 1, "{text}");
    for part in
        ["node 2's directory is empty", "knows node 2", "no command yet to replace a node", "restore that directory"]
    {
        assert!(text.contains(part), "{part:?} is not said: {text}");
    }
    let lines: String = (0..100).map(|line| format!("{line}\n")).collect();
    expect(&cluster.balsa_fed(&["append", "t"], lines.as_bytes()), 0, &["100 records acknowledged"]);
    assert_eq!(printed(&cluster.balsa(&["read", "t"])).lines().count(), 100);
    cluster.nobody_panicked();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_another_cluster_is_refused_and_that_cluster_goes_on() {
    let theirs = Cluster::start("bad-peer-theirs", 1).await;
    expect(&theirs.balsa(&["topic", "create", "t"]), 0, &[]);
    let mut ours = Cluster::laid_out("bad-peer-ours", 2);
    // Node 2 of our cluster is said to be where their node 1 is.
    let addresses = [(ours.nodes[0].client, ours.nodes[0].peer), (theirs.nodes[0].client, theirs.nodes[0].peer)];
    fs::write(&ours.nodes[0].config, config_text(1, &ours.nodes[0].dir, &addresses)).expect("the configuration");
    let (code, text) = ours.nodes[0].refuses_to_start();
    assert_eq!(code, 1, "{text}");
    for part in [&theirs.nodes[0].peer.to_string(), "node 2", "node 1", "correct the address"] {
        assert!(text.contains(part), "{part:?} is not said: {text}");
    }
    expect(&theirs.balsa(&["append", "t", "still here"]), 0, &[]);
    assert_eq!(printed(&theirs.balsa(&["read", "t"])), "still here\n");
    theirs.nobody_panicked();
    ours.nobody_panicked();
}

// ---- garbage on the wire --------------------------------------------------------------------------------------

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, said_length: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = said_length.to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Says something to a port and takes what comes back until the other side ends it, or says nothing more.
fn shout(address: SocketAddr, bytes: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(address) else { panic!("{address} does not listen any more") };
    stream.set_read_timeout(Some(std::time::Duration::from_millis(100))).expect("a timeout");
    // The other side may hang up in the middle, which is its right.
    let _ = stream.write_all(bytes);
    let mut answer = [0; 4096];
    while matches!(stream.read(&mut answer), Ok(count) if count > 0) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_either_port_changes_nothing_and_takes_no_memory() {
    let cluster = Cluster::start("bad-noise", 3).await;
    expect(&cluster.balsa(&["topic", "create", "t"]), 0, &[]);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = frame(4, 0, 0, 0, b"");
    let http2 = |frames: &[Vec<u8>]| [preface.as_slice(), &settings, &frames.concat()].concat();
    let shouts = [
        noise(1, 100_000),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &noise(2, 500)].concat(),
        [b"POST /".as_slice(), &vec![b'x'; 1 << 20]].concat(),
        http2(&[frame(0, 0, 1, 0xff_ffff, &noise(3, 1 << 20))]),
        http2(&[frame(1, 4, 1, 500, &noise(4, 500))]),
        http2(&[frame(1, 0, 1, 16_384, &[0x40; 16_384]), frame(9, 0, 1, 16_384, &[0x40; 16_384])]),
        http2(&(0..5_000).map(|_| frame(4, 0, 0, 6, &[0, 3, 0, 0, 0, 9])).collect::<Vec<_>>()),
        http2(&(0..5_000).map(|at| frame(3, 0, 2 * at + 1, 4, &[0, 0, 0, 8])).collect::<Vec<_>>()),
        noise(5, 24),
        Vec::new(),
    ];
    let addresses: Vec<SocketAddr> = cluster.nodes.iter().flat_map(|node| [node.client, node.peer]).collect();
    std::thread::scope(|scope| {
        for address in &addresses {
            scope.spawn(|| shouts.iter().for_each(|bytes| shout(*address, bytes)));
        }
    });
    // Connections that say nothing and stay.
    let silent: Vec<TcpStream> =
        (0..300).map(|at| TcpStream::connect(addresses[at % addresses.len()]).expect("a connection")).collect();
    // A client that speaks its language at the wrong door.
    let status = Door::of(cluster.nodes[0].peer).await.append(one_record(b"x")).await;
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");

    expect(&cluster.balsa(&["append", "t", "still here"]), 0, &[]);
    drop(silent);
    for (at, node) in cluster.nodes.iter().enumerate() {
        let read = balsa_with(&node.client.to_string(), &["read", "t"], b"");
        assert_eq!(printed(&read), "still here\n", "node {}", at + 1);
        assert!(node.resident_bytes() < RESIDENT_BYTES_MAX, "{} bytes", node.resident_bytes());
    }
    cluster.nobody_panicked();
}
