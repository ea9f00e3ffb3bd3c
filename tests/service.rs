//! The doors of real nodes: every node takes every request, answers name the leader, failures say whether it happened, and
//! what only standard tools ask for is there too.

#[cfg(not(madsim))]
mod support;

#[cfg(not(madsim))]
mod tests {
    use super::support::{detail, wait_until, Cluster};
    use balsa::batch::{self, BatchBuilder, RecordRef};
    use balsa::client::wire::{self, log_client::LogClient, producers_client::ProducersClient};
    use balsa::client::{CatalogChange, NewTopic};
    use balsa::ids::{ProducerId, Revision, TimestampMs};
    use bytes::Bytes;
    use std::collections::BTreeMap;
    use tonic::transport::Channel;
    use tonic::Code;

    const TOPIC: &str = "doors";

    fn batch_of(values: &[&str], session: Option<(u64, u16, u32)>) -> Bytes {
        let mut builder = BatchBuilder::new();
        if let Some((id, epoch, sequence)) = session {
            builder.producer(ProducerId(id), epoch, sequence);
        }
        for value in values {
            let record =
                RecordRef { key: None, value: Some(value.as_bytes()), headers: &[], timestamp: TimestampMs(5) };
            builder.push(record).expect("the record fits");
        }
        builder.build()
    }

    fn append(batch: Bytes) -> wire::AppendRequest {
        wire::AppendRequest { topic: TOPIC.into(), partition: 0, batch, ..Default::default() }
    }

    async fn with_topic(name: &str) -> (Cluster, usize, usize) {
        let cluster = Cluster::start(name, 3).await;
        cluster.client().create_topic(TOPIC, &NewTopic::default()).await.expect("the topic is created");
        let leader = cluster.leader_of(TOPIC, 0).await;
        (cluster, leader, (0..3).find(|node| *node != leader).expect("another node"))
    }

    async fn log(cluster: &Cluster, node: usize) -> LogClient<Channel> {
        LogClient::connect(format!("http://{}", cluster.nodes[node].client)).await.expect("the node answers")
    }

    #[tokio::test]
    async fn any_node_takes_an_append_and_a_retry_through_another_returns_the_first_offset() {
        let (cluster, leader, other) = with_topic("doors-append").await;
        let (mut direct, mut passed_on) = (log(&cluster, leader).await, log(&cluster, other).await);
        let here = direct.append(append(batch_of(&["a", "b"], None))).await.expect("appended").into_inner();
        assert_eq!((here.offset, here.count, here.repeated_append), (0, 2, false));
        assert_eq!(here.leader.as_ref().map(|at| at.node), Some(cluster.nodes[leader].id));
        assert_eq!(here.hash.len(), 32);

        let mut producers = ProducersClient::connect(format!("http://{}", cluster.nodes[other].client))
            .await
            .expect("the node answers");
        let open = wire::OpenSessionRequest { topic: TOPIC.into(), ..Default::default() };
        let session = producers.open_session(open).await.expect("a session").into_inner();
        let batch = batch_of(&["c"], Some((session.producer_id, session.epoch as u16, session.next_sequence)));
        let first = passed_on.append(append(batch.clone())).await.expect("passed on").into_inner();
        assert_eq!((first.offset, first.count, first.repeated_append), (2, 1, false));
        assert_eq!(first.leader.as_ref().map(|at| at.node), Some(cluster.nodes[leader].id), "it names the leader");
        let again = direct.append(append(batch)).await.expect("a retry is answered").into_inner();
        assert_eq!((again.offset, again.count, again.repeated_append), (2, 1, true));

        let gap = batch_of(&["e"], Some((session.producer_id, session.epoch as u16, session.next_sequence + 7)));
        let refused = passed_on.append(append(gap)).await.expect_err("nothing is admitted past a gap");
        assert_eq!(refused.code(), Code::Aborted);
        let told = detail(&refused);
        assert_eq!((told.outcome(), told.reason()), (wire::Outcome::DidNotHappen, wire::Reason::SequenceGap));
        let stranger = batch_of(&["f"], Some((1 << 40, 0, 0)));
        let refused = direct.append(append(stranger)).await.expect_err("an unknown session is refused at any sequence");
        assert_eq!(detail(&refused).reason(), wire::Reason::SessionUnknown);
    }

    #[tokio::test]
    async fn a_pipelined_stream_is_answered_by_number_in_order_on_the_leader_and_elsewhere() {
        let (cluster, leader, other) = with_topic("doors-stream").await;
        let mut next = 0;
        for node in [leader, other] {
            let requests: Vec<wire::AppendStreamRequest> = (0..200)
                .map(|number| {
                    let batch = batch_of(&[&format!("{node}-{number}")], None);
                    wire::AppendStreamRequest { number, append: Some(append(batch)) }
                })
                .collect();
            let mut client = log(&cluster, node).await;
            let stream = client.append_stream(futures::stream::iter(requests)).await.expect("a stream");
            let mut answers = stream.into_inner();
            for number in 0..200 {
                let answer = answers.message().await.expect("the stream goes on").expect("an answer");
                assert_eq!(answer.number, number);
                let Some(wire::append_stream_response::Outcome::Receipt(receipt)) = answer.outcome else {
                    panic!("append {number} through node {node} failed: {answer:?}");
                };
                assert_eq!(receipt.offset, next);
                next += 1;
            }
            assert!(answers.message().await.expect("the stream ends well").is_none());
        }
    }

    #[tokio::test]
    async fn an_acknowledged_append_is_in_every_nodes_next_linearizable_read() {
        let (cluster, leader, _) = with_topic("doors-reads").await;
        let mut direct = log(&cluster, leader).await;
        let mut readers = [log(&cluster, 0).await, log(&cluster, 1).await, log(&cluster, 2).await];
        for number in 0..100u64 {
            let receipt = direct.append(append(batch_of(&[&number.to_string()], None))).await.expect("appended");
            let receipt = receipt.into_inner();
            assert_eq!(receipt.offset, number);
            let asked = wire::TailRequest { topic: TOPIC.into(), ..Default::default() };
            let reader = &mut readers[number as usize % 3];
            let tail = reader.tail(asked).await.expect("a tail").into_inner();
            assert_eq!((tail.tail, &tail.hash), (number + 1, &receipt.hash), "the chain is the receipt's");
        }
        let times: Vec<u64> = read_all(&mut readers[1], None).await.into_iter().map(|(_, time)| time).collect();
        assert!(times.windows(2).all(|pair| pair[0] <= pair[1]), "log time never goes back");
        let asked = wire::OffsetForTimeRequest { topic: TOPIC.into(), time_ms: times[50], ..Default::default() };
        let offset = readers[2].offset_for_time(asked).await.expect("an offset").into_inner().offset as usize;
        assert!(times[offset] == times[50] && (offset == 0 || times[offset - 1] < times[50]), "the first at that time");
        assert_eq!(read_all(&mut readers[0], Some(95)).await.len(), 5);
    }

    async fn read_all(client: &mut LogClient<Channel>, from: Option<u64>) -> Vec<(u64, u64)> {
        let from = from.map_or(wire::read_request::From::Earliest(true), wire::read_request::From::Offset);
        let request = wire::ReadRequest { topic: TOPIC.into(), from: Some(from), ..Default::default() };
        let mut answers = client.read(request).await.expect("a read").into_inner();
        let mut records = Vec::new();
        while let Some(answer) = answers.message().await.expect("the read goes on") {
            for read in answer.batches {
                records.extend(batch::records(&read.batch).map(|record| (record.offset.0, read.timestamp_ms)));
            }
        }
        records
    }

    #[tokio::test]
    async fn conditions_hold_in_log_order_or_nothing_is_appended() {
        let (cluster, _, other) = with_topic("doors-conditions").await;
        let mut client = log(&cluster, other).await;
        let expecting =
            |offset| wire::AppendRequest { expected_offset: Some(offset), ..append(batch_of(&["expecting"], None)) };
        assert_eq!(client.append(expecting(0)).await.expect("the log is empty").into_inner().offset, 0);
        let refused = client.append(expecting(0)).await.expect_err("the log has moved on");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let told = detail(&refused);
        assert_eq!(told.reason(), wire::Reason::WrongExpectedOffset);
        assert_eq!((told.outcome(), told.wanted, told.limit), (wire::Outcome::DidNotHappen, 0, 1));

        let fence = |token| Some(wire::Fence { name: "holder".into(), token });
        let raise = wire::RaiseFenceRequest { topic: TOPIC.into(), partition: 0, fence: fence(7) };
        client.raise_fence(raise).await.expect("raised");
        let fenced = wire::AppendRequest { fence: fence(6), ..append(batch_of(&["late"], None)) };
        let refused = client.append(fenced).await.expect_err("an older holder is fenced off");
        assert_eq!(detail(&refused).reason(), wire::Reason::Fenced);
        let holder = wire::AppendRequest { fence: fence(7), ..append(batch_of(&["holder"], None)) };
        assert_eq!(client.append(holder).await.expect("the holder appends").into_inner().offset, 1);
    }

    #[tokio::test]
    async fn a_watch_of_the_catalog_resumes_and_leaders_only_move_forward() {
        let (mut cluster, leader, _) = with_topic("doors-watch").await;
        let client = cluster.client();
        let mut watch = client.watch_catalog(Revision::ZERO);
        let mut terms: BTreeMap<String, u64> = BTreeMap::new();
        while !matches!(watch.next().await.expect("the present state"), (_, CatalogChange::Synced)) {}
        let seen = watch.revision();
        cluster.nodes[leader].kill();
        let (first, moved_to) = next_leader(&mut watch, &mut terms, cluster.nodes[leader].id).await;
        assert!(first > seen, "a change has a revision of its own");
        assert_ne!(moved_to, cluster.nodes[leader].id);
        cluster.nodes[leader].start();

        // Another watcher, who has seen the same as the first had before the kill, misses nothing of it.
        let mut resumed = client.watch_catalog(seen);
        let (revision, _) = next_leader(&mut resumed, &mut BTreeMap::new(), cluster.nodes[leader].id).await;
        assert_eq!(revision, first);
    }

    /// Follows a watch until the topic's partition is led by another node than `not`.
    async fn next_leader(
        watch: &mut balsa::client::CatalogWatch,
        terms: &mut BTreeMap<String, u64>,
        not: u32,
    ) -> (Revision, u32) {
        loop {
            let (revision, change) = watch.next().await.expect("the watch goes on");
            let CatalogChange::LeaderChanged { topic, leader: Some(leader), .. } = change else { continue };
            let before = terms.insert(topic.clone(), leader.term.0);
            assert!(before.is_none_or(|before| before < leader.term.0), "leaders only move forward");
            if topic == TOPIC && leader.node.0 != not {
                return (revision, leader.node.0);
            }
        }
    }

    #[tokio::test]
    async fn a_node_behind_the_logs_start_catches_up_by_snapshot() {
        let mut cluster = Cluster::laid_out("doors-snapshot", 3);
        for node in &mut cluster.nodes {
            // Small segments, so that a trim drops some of them within seconds.
            let text = std::fs::read_to_string(&node.config).expect("the configuration");
            std::fs::write(&node.config, format!("segment_bytes = 4194304\n{text}")).expect("the configuration");
            node.start();
        }
        cluster.wait_until_up().await;
        cluster.client().create_topic(TOPIC, &NewTopic::default()).await.expect("the topic is created");
        let leader = cluster.leader_of(TOPIC, 0).await;
        let behind = (0..3).find(|node| *node != leader).expect("another node");
        let mut direct = log(&cluster, leader).await;
        direct.append(append(batch_of(&["known to all"], None))).await.expect("appended");
        cluster.nodes[behind].kill();

        let large = "x".repeat(900 << 10);
        let mut tail = 1;
        for round in 0..2 {
            for _ in 0..20 {
                tail =
                    direct.append(append(batch_of(&[&large], None))).await.expect("appended").into_inner().offset + 1;
            }
            if round == 0 {
                let trim = wire::TrimRequest { topic: TOPIC.into(), partition: 0, offset: tail - 1 };
                assert_eq!(direct.trim(trim).await.expect("trimmed").into_inner().start, tail - 1);
            }
        }
        let start = tail - 21;
        let refused = wire::ReadRequest {
            topic: TOPIC.into(),
            from: Some(wire::read_request::From::Offset(0)),
            ..Default::default()
        };
        let refused = direct.read(refused).await.expect_err("it was trimmed");
        assert_eq!((refused.code(), detail(&refused).limit), (Code::OutOfRange, start));
        let segments = |node: usize| {
            let files = std::fs::read_dir(cluster.nodes[node].dir.join("groups/1")).expect("the group's directory");
            files
                .filter(|file| file.as_ref().is_ok_and(|file| file.path().extension().is_some_and(|e| e == "seg")))
                .count()
        };
        wait_until("segments below the start to go", || async { (segments(leader) < 8).then_some(()) }).await;

        cluster.nodes[behind].start();
        let mut late = wait_until("the late node to answer", || async {
            LogClient::connect(format!("http://{}", cluster.nodes[behind].client)).await.ok()
        })
        .await
        .max_decoding_message_size(8 << 20);
        let asked = wire::TailRequest { topic: TOPIC.into(), ..Default::default() };
        let (seen, expected) = (
            wait_until("the late node to catch up", || {
                let (mut late, asked) = (late.clone(), asked.clone());
                async move { late.tail(asked).await.ok().map(tonic::Response::into_inner) }
            })
            .await,
            direct.tail(asked.clone()).await.expect("a tail").into_inner(),
        );
        assert_eq!((seen.start, seen.tail, &seen.hash), (start, tail, &expected.hash), "the chain is the same");
        assert!(cluster.nodes[behind].logged().contains("snapshot installed"), "it came by snapshot");
        assert_eq!(read_all(&mut late, None).await.first().map(|(offset, _)| *offset), Some(start));

        // What was installed survives the next start, and the node goes on from there.
        cluster.nodes[behind].kill();
        cluster.nodes[behind].start();
        cluster.wait_until_up().await;
        let last = direct.append(append(batch_of(&["after"], None))).await.expect("appended").into_inner();
        let mut late = log(&cluster, behind).await.max_decoding_message_size(8 << 20);
        let seen = late.tail(asked).await.expect("a tail").into_inner();
        assert_eq!((seen.tail, &seen.hash), (tail + 1, &last.hash));
    }

    #[tokio::test]
    async fn a_planned_stop_hands_leadership_over_first() {
        let (mut cluster, leader, other) = with_topic("doors-stop").await;
        let mut client = log(&cluster, other).await;
        client.append(append(batch_of(&["before"], None))).await.expect("appended");
        let status = cluster.nodes[leader].stop();
        assert!(status.success(), "a planned stop is a success: {status}");
        assert!(cluster.nodes[leader].logged().contains("handing over leadership"));
        assert!(!cluster.nodes[leader].logged().contains("groups are still led here"));
        let after = client.append(append(batch_of(&["after"], None))).await.expect("somebody leads already");
        let after = after.into_inner();
        assert_eq!(after.offset, 1);
        assert_ne!(after.leader.map(|at| at.node), Some(cluster.nodes[leader].id));
    }

    #[tokio::test]
    async fn a_deleted_topic_stays_deleted_over_restarts() {
        let (mut cluster, _, _) = with_topic("doors-delete").await;
        let client = cluster.client();
        client.delete_topic(TOPIC).await.expect("deleted");
        for node in &mut cluster.nodes {
            assert!(node.stop().success());
        }
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.wait_until_up().await;
        let error = client.describe_topic(TOPIC).await.expect_err("it is gone");
        assert_eq!(error.reason(), Some(balsa::client::Reason::UnknownTopic), "{error}");
        client.create_topic(TOPIC, &NewTopic::default()).await.expect("its name is free");
        wait_until("an append to the new topic", || async {
            let mut client = log(&cluster, 0).await;
            Some(client.append(append(batch_of(&["new"], None))).await.ok()?.into_inner().offset)
        })
        .await;
        assert!(cluster.nodes.iter_mut().all(super::support::Node::runs));
    }

    #[tokio::test]
    async fn health_and_reflection_answer_standard_tools() {
        use tonic_health::pb::{health_client::HealthClient, HealthCheckRequest};
        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
        use tonic_reflection::pb::v1::ServerReflectionRequest;

        let (cluster, _, _) = with_topic("doors-standard").await;
        let address = format!("http://{}", cluster.nodes[0].client);
        let channel = tonic::transport::Endpoint::from_shared(address).expect("an address").connect().await;
        let channel = channel.expect("the node answers");
        let mut health = HealthClient::new(channel.clone());
        for service in ["", "balsa.v1.Log", "balsa.v1.Topics", "balsa.v1.Producers", "balsa.v1.Cluster"] {
            let checked = health.check(HealthCheckRequest { service: service.into() }).await.expect("a known service");
            assert_eq!(checked.into_inner().status, 1, "{service:?} serves");
        }
        let mut reflection = ServerReflectionClient::new(channel);
        let list = MessageRequest::ListServices(String::new());
        let request = ServerReflectionRequest { message_request: Some(list), ..Default::default() };
        let answers = reflection.server_reflection_info(futures::stream::iter([request])).await.expect("reflection");
        let answer = answers.into_inner().message().await.expect("an answer").expect("not the end");
        let Some(MessageResponse::ListServicesResponse(listed)) = answer.message_response else {
            panic!("no list of services: {answer:?}");
        };
        assert!(listed.service.iter().any(|service| service.name == "balsa.v1.Log"));
    }
}
