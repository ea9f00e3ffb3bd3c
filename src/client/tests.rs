//! The client against a server that loses answers, refuses, and breaks streams on purpose. The server's log is a model of a
//! partition: dense offsets, sessions that recognise a repetition and refuse a gap.

use super::wire::append_stream_response::Outcome as Answer;
use super::wire::log_server::{Log, LogServer};
use super::wire::producers_server::{Producers, ProducersServer};
use super::wire::topics_server::{Topics, TopicsServer};
use super::*;
use crate::batch::{records, stamp, validate, BatchBuilder, RecordRef};
use crate::limits::BATCH_BYTES_MAX;
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::Stream;
use tonic::{Request, Streaming};

/// What goes wrong with an append, instead of its answer.
#[derive(Clone, Debug)]
enum Fault {
    /// Nothing.
    None,
    /// It is appended, and the connection breaks before the answer.
    LoseAnswer,
    /// The connection breaks before it is appended.
    LoseRequest,
    /// It is refused.
    Refuse(wire::ErrorDetail),
}

#[derive(Debug, Default)]
struct Partition {
    batches: Vec<(u64, Bytes)>,
    tail: u64,
    /// Per session: the next sequence, and the offset that each batch got by its first sequence.
    sessions: BTreeMap<u64, (u32, BTreeMap<u32, u64>)>,
    opened: u64,
    /// Term and address of who leads, as far as this server knows.
    leader: Option<(u64, String)>,
    described: u64,
    /// Appends are never answered.
    hangs: bool,
    faults: VecDeque<Fault>,
    /// Answers a read stream gives before it breaks; none: it never does.
    read_answers: Option<usize>,
    /// A batch that reads leave out.
    hidden: Option<usize>,
}

/// One server with one topic `t` of one partition.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Partition>>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn detail(reason: wire::Reason, outcome: wire::Outcome) -> wire::ErrorDetail {
    wire::ErrorDetail { outcome: outcome as i32, reason: reason as i32, ..Default::default() }
}

fn status(detail: &wire::ErrorDetail) -> Status {
    let any = wire::AnyDetail {
        type_url: "type.googleapis.com/balsa.v1.ErrorDetail".into(),
        value: detail.encode_to_vec().into(),
    };
    let rpc = wire::RpcStatus { code: 14, message: "no".into(), details: vec![any] };
    Status::with_details(tonic::Code::Unavailable, "no", rpc.encode_to_vec().into())
}

impl Fake {
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let server = tonic::transport::Server::builder()
            .add_service(TopicsServer::new(self.clone()))
            .add_service(LogServer::new(self.clone()))
            .add_service(ProducersServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        address
    }

    fn with<T>(&self, f: impl FnOnce(&mut Partition) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    fn values(&self) -> Vec<String> {
        let batches = self.with(|partition| partition.batches.clone());
        let values = batches.iter().flat_map(|(_, batch)| records(batch)).filter_map(|record| record.value);
        values.map(|value| String::from_utf8_lossy(&value).to_string()).collect()
    }

    fn append_batch(&self, batch: &Bytes) -> Result<wire::StreamReceipt, wire::ErrorDetail> {
        let summary = validate(batch, BATCH_BYTES_MAX).unwrap();
        self.with(|partition| {
            let mut offset = partition.tail;
            let mut repeated_append = false;
            if let Some(producer) = summary.producer() {
                let Some((next, known)) = partition.sessions.get_mut(&producer.id.0) else {
                    return Err(detail(wire::Reason::SessionUnknown, wire::Outcome::MayHaveHappened));
                };
                if let Some(first) = known.get(&producer.base_sequence) {
                    (offset, repeated_append) = (*first, true);
                } else if producer.base_sequence != *next {
                    return Err(detail(wire::Reason::SequenceGap, wire::Outcome::DidNotHappen));
                } else {
                    known.insert(producer.base_sequence, offset);
                    *next += summary.count;
                }
            }
            if !repeated_append {
                let mut stamped = batch.to_vec();
                stamp(&mut stamped, Offset(offset), Term(1));
                partition.batches.push((offset, stamped.into()));
                partition.tail += u64::from(summary.count);
            }
            let hash = vec![0; 32].into();
            Ok(wire::StreamReceipt {
                offset,
                count: summary.count,
                term: 1,
                hash,
                repeated_append,
                ..Default::default()
            })
        })
    }

    /// The answer to an append; `None` where the connection breaks instead.
    fn answer(&self, batch: &Bytes) -> Option<Result<wire::StreamReceipt, wire::ErrorDetail>> {
        match self.with(|partition| partition.faults.pop_front()).unwrap_or(Fault::None) {
            Fault::None => Some(self.append_batch(batch)),
            Fault::LoseAnswer => {
                let _ = self.append_batch(batch);
                None
            }
            Fault::LoseRequest => None,
            Fault::Refuse(detail) => Some(Err(detail)),
        }
    }
}

#[tonic::async_trait]
impl Topics for Fake {
    async fn create_topic(&self, _: Request<wire::CreateTopicRequest>) -> Result<Response<wire::Topic>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn list_topics(
        &self,
        _: Request<wire::ListTopicsRequest>,
    ) -> Result<Response<wire::ListTopicsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn describe_topic(
        &self,
        request: Request<wire::DescribeTopicRequest>,
    ) -> Result<Response<wire::Topic>, Status> {
        let leader = self.with(|partition| {
            partition.described += 1;
            partition.leader.clone()
        });
        let leader = leader.map(|(term, address)| wire::Leader { node: 1, term, address });
        let partitions = vec![wire::Partition { leader, ..Default::default() }];
        Ok(Response::new(wire::Topic { name: request.into_inner().name, partitions, ..Default::default() }))
    }
    async fn alter_topic(&self, _: Request<wire::AlterTopicRequest>) -> Result<Response<wire::Topic>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn delete_topic(
        &self,
        _: Request<wire::DeleteTopicRequest>,
    ) -> Result<Response<wire::DeleteTopicResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

#[tonic::async_trait]
impl Producers for Fake {
    async fn open_session(&self, _: Request<wire::OpenSessionRequest>) -> Result<Response<wire::Session>, Status> {
        let producer_id = self.with(|partition| {
            partition.opened += 1;
            partition.sessions.insert(partition.opened, (0, BTreeMap::new()));
            partition.opened
        });
        Ok(Response::new(wire::Session { producer_id, window_batches: 8, ..Default::default() }))
    }
    async fn close_session(
        &self,
        _: Request<wire::CloseSessionRequest>,
    ) -> Result<Response<wire::CloseSessionResponse>, Status> {
        Ok(Response::new(wire::CloseSessionResponse {}))
    }
}

#[tonic::async_trait]
impl Log for Fake {
    type AppendStreamStream = Answers<wire::AppendStreamResponse>;
    type ReadStream = Answers<wire::ReadResponse>;

    async fn append(&self, request: Request<wire::AppendRequest>) -> Result<Response<wire::Receipt>, Status> {
        if self.with(|partition| partition.hangs) {
            std::future::pending::<()>().await;
        }
        match self.answer(&request.into_inner().batch) {
            // What a client sees of a connection that broke: a status without details.
            None => Err(Status::unknown("connection reset")),
            Some(Err(detail)) => Err(status(&detail)),
            Some(Ok(receipt)) => Ok(Response::new(wire::Receipt {
                offset: receipt.offset,
                count: receipt.count,
                hash: receipt.hash,
                ..Default::default()
            })),
        }
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<wire::AppendStreamRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let (out, answers) = mpsc::channel(64);
        let (fake, mut requests) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let batch = request.append.unwrap().batch;
                let outcome = match fake.answer(&batch) {
                    None => {
                        let _ = out.send(Err(Status::unknown("connection reset"))).await;
                        return;
                    }
                    Some(Ok(receipt)) => Answer::Receipt(receipt),
                    Some(Err(detail)) => {
                        Answer::Failure(wire::StreamFailure { code: 14, message: "no".into(), detail: Some(detail) })
                    }
                };
                let answer = wire::AppendStreamResponse { number: request.number, outcome: Some(outcome) };
                if out.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn read(&self, request: Request<wire::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let Some(wire::read_request::From::Offset(from)) = request.into_inner().from else {
            return Err(Status::invalid_argument("the client resolves where to start"));
        };
        let (batches, breaks_after, hidden) =
            self.with(|partition| (partition.batches.clone(), partition.read_answers, partition.hidden));
        let mut answers = Vec::new();
        for (number, (offset, batch)) in batches.into_iter().enumerate() {
            let end = offset + u64::from(batch::peek(&batch).unwrap().count);
            if end <= from || hidden == Some(number) {
                continue;
            }
            if breaks_after == Some(answers.len()) {
                answers.push(Err(Status::unknown("connection reset")));
                break;
            }
            let batches = vec![wire::ReadBatch { batch, timestamp_ms: 1 }];
            answers.push(Ok(wire::ReadResponse { batches, ..Default::default() }));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    async fn tail(&self, _: Request<wire::TailRequest>) -> Result<Response<wire::TailResponse>, Status> {
        Ok(Response::new(wire::TailResponse { tail: self.with(|partition| partition.tail), ..Default::default() }))
    }
    async fn offset_for_time(
        &self,
        _: Request<wire::OffsetForTimeRequest>,
    ) -> Result<Response<wire::OffsetForTimeResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn trim(&self, _: Request<wire::TrimRequest>) -> Result<Response<wire::TrimResponse>, Status> {
        Err(Status::unimplemented("not asked for in these tests"))
    }

    async fn raise_fence(&self, _: Request<wire::RaiseFenceRequest>) -> Result<Response<wire::Receipt>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

fn client(address: &str) -> Client {
    let options = ClientOptions { timeout: Duration::from_secs(10), seed: 1, ..ClientOptions::default() };
    Client::connect(vec![address.to_string()], options).unwrap()
}

/// Small batches, so that many are in flight.
fn small_batches() -> ProducerOptions {
    let (linger, batch_records) = (Duration::ZERO, 3);
    ProducerOptions { linger, batch_records, timeout: Duration::from_secs(10), ..ProducerOptions::default() }
}

async fn send(producer: &Producer, value: &str) -> Result<(), ClientError> {
    let record = RecordRef { value: Some(value.as_bytes()), ..RecordRef::default() };
    producer.send(Outgoing { partition: None, record }).await
}

fn one(value: &str) -> Bytes {
    let mut builder = BatchBuilder::new();
    builder.push(RecordRef { value: Some(value.as_bytes()), ..RecordRef::default() }).unwrap();
    builder.build()
}

#[tokio::test]
async fn whatever_breaks_a_producer_in_a_session_appends_each_record_once_and_in_order() {
    for seed in 0..6 {
        let fake = Fake::default();
        let jitter = Jitter::new(seed);
        let no_leader = detail(wire::Reason::NoLeader, wire::Outcome::DidNotHappen);
        let lost = detail(wire::Reason::TimedOut, wire::Outcome::MayHaveHappened);
        let faults = (0..200).map(|_| match jitter.next() % 24 {
            0 => Fault::LoseAnswer,
            1 => Fault::LoseRequest,
            2 => Fault::Refuse(no_leader.clone()),
            3 => Fault::Refuse(lost.clone()),
            _ => Fault::None,
        });
        fake.with(|partition| partition.faults = faults.collect());
        let (producer, mut deliveries) =
            Producer::open(&client(&fake.serve().await), "t", small_batches()).await.unwrap();
        let sent: Vec<String> = (0..500).map(|number| format!("record {number}")).collect();
        for value in &sent {
            send(&producer, value).await.unwrap();
        }
        producer.flush().await.unwrap();
        drop(producer);
        assert_eq!(fake.values(), sent, "seed {seed}");
        let mut next = 0;
        while let Some(delivery) = deliveries.next().await {
            let receipt = delivery.result.unwrap();
            assert_eq!(receipt.offset, Offset(next), "receipts name the offsets, in order; seed {seed}");
            next += u64::from(receipt.count);
        }
        assert_eq!(next, 500);
    }
}

#[tokio::test]
async fn a_forgotten_session_is_not_opened_again_to_send_something_twice() {
    let fake = Fake::default();
    let unknown = detail(wire::Reason::SessionUnknown, wire::Outcome::MayHaveHappened);
    fake.with(|partition| partition.faults = VecDeque::from([Fault::LoseAnswer, Fault::Refuse(unknown)]));
    let (producer, _deliveries) = Producer::open(&client(&fake.serve().await), "t", small_batches()).await.unwrap();
    send(&producer, "once").await.unwrap();
    let error = producer.flush().await.unwrap_err();
    assert_eq!((error.reason(), error.outcome()), (Some(Reason::SessionUnknown), Outcome::MayHaveHappened));
    assert!(send(&producer, "behind the gap").await.is_err());
    assert_eq!(fake.with(|partition| partition.opened), 1);
    assert_eq!(fake.values(), ["once"]);
}

#[tokio::test]
async fn without_a_session_a_lost_answer_is_reported_and_not_repeated() {
    let fake = Fake::default();
    let client = client(&fake.serve().await);
    fake.with(|partition| partition.faults.push_back(Fault::LoseAnswer));
    let error = client.append("t", 0, one("a"), &AppendConditions::default()).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::MayHaveHappened);
    assert_eq!(fake.values(), ["a"]);
    let options = ProducerOptions { session: SessionChoice::Off, ..small_batches() };
    let (producer, _deliveries) = Producer::open(&client, "t", options).await.unwrap();
    fake.with(|partition| partition.faults.push_back(Fault::LoseAnswer));
    send(&producer, "b").await.unwrap();
    assert_eq!(producer.flush().await.unwrap_err().outcome(), Outcome::MayHaveHappened);
    assert_eq!(fake.values(), ["a", "b"]);
}

/// Deliveries name no records: they come in the order in which the records were given, so that one out of its turn is told of others.
#[tokio::test]
async fn a_producer_that_fails_tells_first_what_was_under_way_and_then_what_waited() {
    let unknown = detail(wire::Reason::SessionUnknown, wire::Outcome::MayHaveHappened);
    let ends = [(SessionChoice::Off, Fault::LoseAnswer), (SessionChoice::Anonymous, Fault::Refuse(unknown))];
    for (session, end) in ends {
        for before in 0..8 {
            let fake = Fake::default();
            let mut faults = vec![Fault::None; before];
            // In a session a lost answer alone would be made good by a second try.
            faults.extend([Fault::LoseAnswer, end.clone()]);
            fake.with(|partition| partition.faults = faults.into());
            let options = ProducerOptions { session: session.clone(), ..small_batches() };
            let (producer, mut deliveries) = Producer::open(&client(&fake.serve().await), "t", options).await.unwrap();
            let sent: Vec<String> = (0..60).map(|number| format!("record {number}")).collect();
            let mut given = 0;
            while given < sent.len() && send(&producer, &sent[given]).await.is_ok() {
                given += 1;
            }
            assert!(producer.flush().await.is_err());
            drop(producer);
            let mut told = Vec::new();
            while let Some(delivery) = deliveries.next().await {
                let outcome = delivery.result.map(|_| ()).map_err(|error| error.outcome());
                told.extend(vec![outcome; delivery.count as usize]);
            }
            assert_eq!(told.len(), given, "{session:?}, after {before} batches");
            let rank = |outcome: &Result<(), Outcome>| match outcome {
                Ok(()) => 0,
                Err(Outcome::MayHaveHappened) => 1,
                Err(Outcome::DidNotHappen) => 2,
            };
            assert!(told.is_sorted_by_key(rank), "{session:?}, after {before} batches: {told:?}");
            assert!(told.contains(&Err(Outcome::MayHaveHappened)), "{session:?}, after {before} batches: {told:?}");
            let there = fake.values();
            for (value, outcome) in sent.iter().zip(&told) {
                let is_there = there.contains(value);
                let lie = (outcome.is_ok() && !is_there) || (*outcome == Err(Outcome::DidNotHappen) && is_there);
                assert!(!lie, "{session:?}, after {before} batches: {value} was told {outcome:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_did_not_happen_is_tried_again_even_without_a_session() {
    let fake = Fake::default();
    let overloaded = Fault::Refuse(detail(wire::Reason::Overloaded, wire::Outcome::DidNotHappen));
    fake.with(|partition| partition.faults = VecDeque::from([overloaded.clone(), overloaded]));
    let client = client(&fake.serve().await);
    let receipt = client.append("t", 0, one("a"), &AppendConditions::default()).await.unwrap();
    assert_eq!((receipt.offset, fake.values()), (Offset(0), vec!["a".to_string()]));
}

#[tokio::test]
async fn a_refusal_that_names_the_leader_is_followed_there() {
    let (follower, leader) = (Fake::default(), Fake::default());
    let address = leader.serve().await;
    let hint = wire::Leader { node: 2, term: 7, address: address.clone() };
    let refusal =
        wire::ErrorDetail { leader: Some(hint), ..detail(wire::Reason::NoLeader, wire::Outcome::DidNotHappen) };
    follower.with(|partition| partition.faults = vec![Fault::Refuse(refusal); 100].into());
    let client = client(&follower.serve().await);
    client.append("t", 0, one("a"), &AppendConditions::default()).await.unwrap();
    assert_eq!(leader.values(), ["a"]);
    assert_eq!(client.shared.connections.leader_of("t", 0), Some(address));
}

async fn read_values(subscription: &mut Subscription) -> Result<Vec<String>, ClientError> {
    let mut values = Vec::new();
    while let Some(chunk) = subscription.next().await {
        let chunk_values = chunk?.records().filter_map(|record| record.value).collect::<Vec<Bytes>>();
        values.extend(chunk_values.iter().map(|value| String::from_utf8_lossy(value).to_string()));
    }
    Ok(values)
}

async fn fake_with_records(count: usize) -> (Fake, Client, Vec<String>) {
    let fake = Fake::default();
    let client = client(&fake.serve().await);
    let (producer, _) = Producer::open(&client, "t", small_batches()).await.unwrap();
    let sent: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    for value in &sent {
        send(&producer, value).await.unwrap();
    }
    producer.flush().await.unwrap();
    (fake, client, sent)
}

#[tokio::test]
async fn a_subscription_survives_broken_streams_without_a_gap_or_a_double() {
    let (fake, client, sent) = fake_with_records(100).await;
    for answers in [1, 2, 5] {
        fake.with(|partition| partition.read_answers = Some(answers));
        for (from, count_max) in [(0, None), (1, None), (50, Some(10)), (98, Some(1))] {
            let options = SubscriptionOptions { from: ReadFrom::Offset(Offset(from)), count_max, ..Default::default() };
            let mut subscription = Subscription::open(&client, "t", options).await.unwrap();
            let end = count_max.map_or(100, |count| from + count) as usize;
            let values = read_values(&mut subscription).await.unwrap();
            assert_eq!(values, sent[from as usize..end], "from {from}, {count_max:?}, broken after {answers}");
        }
    }
}

#[tokio::test]
async fn a_gap_in_what_a_server_sends_is_an_error_and_never_passed_over() {
    let (fake, client, _) = fake_with_records(30).await;
    fake.with(|partition| partition.hidden = Some(2));
    let mut subscription = Subscription::open(&client, "t", SubscriptionOptions::default()).await.unwrap();
    let error = read_values(&mut subscription).await.unwrap_err();
    assert!(matches!(&error, ClientError::BadAnswer { what, .. } if what.contains("was next")), "{error}");
}

#[tokio::test]
async fn where_nobody_listens_nothing_happened() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let options = ClientOptions { unreachable_timeout: Duration::from_millis(50), ..ClientOptions::default() };
    let client = Client::connect(vec![address.clone()], options).unwrap();
    let error = client.append("t", 0, one("a"), &AppendConditions::default()).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::DidNotHappen);
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn an_append_that_waits_for_a_leader_of_before_may_have_happened_and_is_not_sent_to_the_next() {
    let (hung, other) = (Fake::default(), Fake::default());
    let (at_hung, at_other) = (hung.serve().await, other.serve().await);
    hung.with(|partition| partition.hangs = true);
    other.with(|partition| partition.leader = Some((1, at_hung.clone())));
    let options = ClientOptions { attempt_timeout: Duration::from_millis(50), seed: 1, ..ClientOptions::default() };
    let client = Client::connect(vec![at_other.clone(), at_hung], options).unwrap();
    client.describe_topic("t").await.unwrap();
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.append("t", 0, one("a"), &AppendConditions::default()).await })
        })
        .collect();
    let asked = || other.with(|partition| partition.described);
    let asked_often = async {
        while asked() < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asked_often)
        .await
        .expect("others are asked while the leader is silent");
    assert!(waiting.iter().all(|append| !append.is_finished()), "as far as anybody knows it still leads");
    other.with(|partition| partition.leader = Some((2, at_other)));
    for append in waiting {
        let error = append.await.unwrap().unwrap_err();
        assert_eq!(error.outcome(), Outcome::MayHaveHappened, "{error}");
    }
    assert!(asked() < 50, "one asks for all, not each of a hundred: {}", asked());
    assert!(other.values().is_empty(), "nothing was sent twice");
    client.append("t", 0, one("b"), &AppendConditions::default()).await.unwrap();
    assert_eq!(other.values(), ["b"]);
}
