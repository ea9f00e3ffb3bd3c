//! What the doors of real nodes answer when something is missing: a majority, or a file.

#[cfg(not(madsim))]
mod support;

#[cfg(not(madsim))]
mod tests {
    use super::support::{wait_for, wait_until, Cluster, Signal, PATIENCE};
    use balsa::batch::{BatchBuilder, RecordRef};
    use balsa::client::wire::{self, log_client::LogClient, topics_client::TopicsClient};
    use balsa::client::NewTopic;
    use std::path::{Path, PathBuf};
    use tonic::transport::Channel;
    use tonic::{Code, Status};

    const TOPIC: &str = "t";

    fn append(topic: &str, value_bytes: usize) -> wire::AppendRequest {
        let mut batch = BatchBuilder::new();
        let value = vec![b'x'; value_bytes];
        batch.push(RecordRef { value: Some(&value), ..RecordRef::default() }).expect("a record that fits");
        wire::AppendRequest { topic: topic.into(), batch: batch.build(), ..Default::default() }
    }

    async fn door(cluster: &Cluster, node: usize) -> (LogClient<Channel>, TopicsClient<Channel>) {
        let channel = Channel::from_shared(format!("http://{}", cluster.nodes[node].client)).expect("an address");
        let channel = channel.connect().await.expect("the node answers");
        (LogClient::new(channel.clone()).max_encoding_message_size(4 << 20), TopicsClient::new(channel))
    }

    fn assert_names(status: &Status, missing: &str) {
        assert!(status.message().contains(missing), "{status:?} does not name {missing:?}");
    }

    /// A topic that is not known here may exist all the same, and what was under way may have happened.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn without_a_majority_nothing_is_definitely_absent_and_the_missing_nodes_are_named() {
        let mut cluster = Cluster::start("doors-quorum", 3).await;
        let new = NewTopic { partitions: Some(1), ..NewTopic::default() };
        cluster.client().create_topic(TOPIC, &new).await.expect("the topic is created");
        let leader = cluster.leader_of(TOPIC, 0).await;
        let (mut log, mut topics) = door(&cluster, leader).await;
        log.append(append(TOPIC, 1)).await.expect("a majority is there");

        let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
        others.iter().for_each(|node| cluster.nodes[*node].signal(Signal::Kill));
        let under_way = log.append(append(TOPIC, 1)).await.expect_err("no majority is left");
        for node in &others {
            cluster.nodes[*node].wait();
        }
        let ids: Vec<String> = others.iter().map(|node| cluster.nodes[*node].id.to_string()).collect();
        let missing = format!("nodes {}", ids.join(", "));
        assert_eq!(under_way.code(), Code::DeadlineExceeded, "{under_way:?}");
        assert_names(&under_way, &missing);

        let tail = wire::TailRequest { topic: TOPIC.into(), ..Default::default() };
        let elsewhere = wire::DescribeTopicRequest { name: "created-elsewhere".into() };
        let refused = [
            log.append(append(TOPIC, 1)).await.map(drop),
            log.tail(tail).await.map(drop),
            log.append(append("created-elsewhere", 1)).await.map(drop),
            topics.describe_topic(elsewhere).await.map(drop),
            topics.list_topics(wire::ListTopicsRequest {}).await.map(drop),
        ];
        for (place, refused) in refused.into_iter().enumerate() {
            let status = refused.expect_err("no majority is left");
            assert_eq!(status.code(), Code::Unavailable, "request {place}: {status:?}");
            assert_names(&status, &missing);
        }
    }

    /// It used to be looked for again and again, for ever.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_segment_that_is_gone_ends_the_read_and_is_called_data_loss() {
        let cluster = Cluster::start("doors-gone", 1).await;
        let new = NewTopic { partitions: Some(1), ..NewTopic::default() };
        cluster.client().create_topic(TOPIC, &new).await.expect("the topic is created");
        let (mut log, _) = door(&cluster, 0).await;
        // More than stays in memory for readers.
        for _ in 0..5 {
            log.append(append(TOPIC, 1_000_000)).await.expect("the append succeeds");
        }
        let segment = wait_for("the segment to hold what left memory", || {
            segments(&cluster.nodes[0].dir).into_iter().find(|(_, bytes)| *bytes > 3_000_000)
        });
        std::fs::remove_file(segment.0).expect("the segment goes");

        let earliest = Some(wire::read_request::From::Earliest(true));
        let request = wire::ReadRequest { topic: TOPIC.into(), from: earliest, ..Default::default() };
        // Until the write is reported, memory still has all of it.
        let status = wait_until("a read that needs the file", || {
            let (mut log, request) = (log.clone(), request.clone());
            async move {
                let mut answers = log.read(request).await.expect("the read starts").into_inner();
                tokio::time::timeout(PATIENCE, answers.message()).await.expect("the read is answered").err()
            }
        })
        .await;
        assert_eq!(status.code(), Code::DataLoss, "{status:?}");
        assert_eq!(status.message(), "t/0: the file that holds offset 0 is gone from this node's disk");
    }

    fn segments(dir: &Path) -> Vec<(PathBuf, u64)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                found.extend(segments(&path));
            } else if path.extension().is_some_and(|extension| extension == "seg") {
                found.push((path, entry.metadata().map_or(0, |metadata| metadata.len())));
            }
        }
        found
    }
}
