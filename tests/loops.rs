//! A node that divides its groups among several loops, on several threads, as it does where there are cores for them.

#[cfg(not(madsim))]
mod support;

#[cfg(not(madsim))]
mod tests {
    use super::support::{free_address, wait_until, Scratch};
    use balsa::batch::{BatchBuilder, RecordRef};
    use balsa::client::{AppendConditions, Client, ClientOptions, NewTopic, Subscription, SubscriptionOptions};
    use balsa::clock::Clock;
    use balsa::disk::real::RealDisk;
    use balsa::node::config::{ConfigFile, ListenSection, NodeConfig, NodeSection};
    use balsa::node::{self, NodeError, Sizes, World};
    use balsa::telemetry::silent_logger;
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Arc;
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    const TOPIC: &str = "spread";
    const PARTITIONS: u32 = 7;
    const RECORDS_EACH: u64 = 200;

    /// A node inside this process.
    struct Running {
        stop: oneshot::Sender<()>,
        ended: JoinHandle<Result<(), NodeError>>,
    }

    impl Running {
        async fn stop(self) {
            drop(self.stop);
            self.ended.await.expect("it does not panic").expect("it stops cleanly");
        }
    }

    fn sections() -> Vec<NodeSection> {
        let address = || free_address().to_string();
        (1..=3).map(|id| NodeSection { id, client: address(), peer: address() }).collect()
    }

    /// Starts all nodes, each with so many loops.
    fn start(dir: &Path, sections: &[NodeSection], loops: [usize; 3]) -> Vec<Running> {
        let begin = |(node, loops): (&NodeSection, usize)| {
            let file = ConfigFile {
                node_id: node.id,
                data_dir: dir.join(node.id.to_string()).display().to_string(),
                listen: ListenSection { client: node.client.clone(), peer: node.peer.clone() },
                nodes: sections.to_vec(),
            };
            let text = file.to_toml().expect("plain data");
            let config = NodeConfig::from_toml(&text, &dir.join("balsa.toml")).expect("a sound configuration");
            let world = World {
                disk: Arc::new(RealDisk::new().expect("threads")),
                clock: Clock::default(),
                seed: [node.id as u8; 32],
                observer: None,
                sizes: Sizes::default(),
                loops,
            };
            let (stop, stopped) = oneshot::channel::<()>();
            let shutdown = async move { drop(stopped.await) };
            Running { stop, ended: tokio::spawn(node::run(config, world, silent_logger(), shutdown)) }
        };
        sections.iter().zip(loops).map(begin).collect()
    }

    fn value(partition: u32, number: u64) -> String {
        format!("{partition}/{number}")
    }

    /// Appends to one partition, one record after the other, and gives the offset of each.
    async fn append(client: Client, partition: u32) -> Vec<u64> {
        let mut offsets = Vec::new();
        for number in 0..RECORDS_EACH {
            let value = value(partition, number);
            let mut builder = BatchBuilder::new();
            builder.push(RecordRef { value: Some(value.as_bytes()), ..RecordRef::default() }).expect("it fits");
            let receipt = client.append(TOPIC, partition, builder.build(), &AppendConditions::default()).await;
            offsets.push(receipt.expect("all is well").offset.0);
        }
        offsets
    }

    async fn read_all(client: &Client) -> BTreeMap<(u32, u64), String> {
        let mut records = BTreeMap::new();
        let mut subscription =
            Subscription::open(client, TOPIC, SubscriptionOptions::default()).await.expect("the topic is there");
        while let Some(chunk) = subscription.next().await {
            let chunk = chunk.expect("all is well");
            for record in chunk.records() {
                let value = String::from_utf8(record.value.expect("a value").to_vec()).expect("text");
                records.insert((chunk.partition, record.offset.0), value);
            }
        }
        records
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn groups_spread_over_loops_keep_every_record_in_its_order_and_move_between_loops_at_a_restart() {
        let dir = Scratch::new("loops");
        let sections = sections();
        let servers = sections.iter().map(|node| node.client.clone()).collect();
        let client = Client::connect(servers, ClientOptions::default()).expect("addresses");
        let nodes = start(&dir.0, &sections, [3, 2, 4]);
        let topic = NewTopic { partitions: Some(PARTITIONS), ..NewTopic::default() };
        wait_until("the topic", || async { client.create_topic(TOPIC, &topic).await.ok() }).await;
        let appending: Vec<_> =
            (0..PARTITIONS).map(|partition| tokio::spawn(append(client.clone(), partition))).collect();
        for appended in appending {
            let offsets = appended.await.expect("no panic");
            assert_eq!(offsets, (0..RECORDS_EACH).collect::<Vec<_>>());
        }
        for node in nodes {
            node.stop().await;
        }
        // Other counts: a group may be another loop's now.
        let nodes = start(&dir.0, &sections, [1, 3, 2]);
        let records = wait_until("all records", || async {
            let up = client.tail(TOPIC, PARTITIONS - 1, false).await.is_ok();
            if up {
                Some(read_all(&client).await)
            } else {
                None
            }
        })
        .await;
        let expected = (0..PARTITIONS)
            .flat_map(|partition| (0..RECORDS_EACH).map(move |number| ((partition, number), value(partition, number))));
        assert_eq!(records, expected.collect());
        for node in nodes {
            node.stop().await;
        }
    }
}
