//! Real processes, killed, frozen and all lost at once, while a web server's log is appended: no acknowledged record is lost,
//! moved or doubled, and all nodes tell the same.

#[cfg(not(madsim))]
mod support;

#[cfg(not(madsim))]
mod tests {
    use super::support::{wait_until, weblog, Cluster, Signal};
    use balsa::batch::{self, RecordRef};
    use balsa::client::wire::{self, log_client::LogClient};
    use balsa::client::{NewTopic, Outgoing, Producer, ProducerOptions};
    use balsa::ids::{Offset, TimestampMs};
    use bytes::Bytes;
    use std::collections::{BTreeMap, HashMap};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    const LINES: usize = 200_000;
    const CLIENTS: u32 = 500;
    const PARTITIONS: u32 = 4;
    const TOPIC: &str = "access";
    const DURATION: Duration = Duration::from_secs(60);
    const EVERY: Duration = Duration::from_secs(3);
    /// Longer than an election timeout, so that a frozen leader wakes up deposed.
    const FROZEN: Duration = Duration::from_millis(1_800);

    /// Three tests of sixty seconds on one machine: one after the other.
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// What happens to the cluster every three seconds.
    #[derive(Clone, Copy, Debug)]
    enum Blow {
        KillALeader,
        FreezeALeader,
        KillAll,
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn leaders_killed_under_load_lose_and_reorder_nothing() {
        endure("chaos-kill", Blow::KillALeader).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn leaders_frozen_under_load_lose_and_reorder_nothing() {
        endure("chaos-freeze", Blow::FreezeALeader).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_nodes_killed_at_once_lose_and_reorder_nothing() {
        endure("chaos-all", Blow::KillAll).await;
    }

    async fn endure(name: &str, blow: Blow) {
        let _alone = ONE_AT_A_TIME.lock().await;
        let lines = weblog::lines(7, LINES, CLIENTS);
        let mut cluster = Cluster::start(name, 3).await;
        let client = cluster.client();
        let new = NewTopic { partitions: Some(PARTITIONS), ..NewTopic::default() };
        client.create_topic(TOPIC, &new).await.expect("the topic is created");

        let done = Arc::new(AtomicBool::new(false));
        let appending = tokio::spawn(append_all(client.clone(), lines.clone(), done.clone()));
        let blows = strike(&mut cluster, blow, &done).await;
        let acknowledged = appending.await.expect("the appender ends");
        cluster.wait_until_up().await;

        let copies = read_everywhere(&cluster).await;
        let in_doubt = check(&lines, &acknowledged, &copies);
        eprintln!("{name}: {blows} blows, {LINES} records, {in_doubt} of them unacknowledged");
        assert!(blows >= 10, "the cluster was struck only {blows} times");
    }

    /// Strikes every three seconds until everything is appended and the time is up.
    async fn strike(cluster: &mut Cluster, blow: Blow, done: &AtomicBool) -> usize {
        let start = Instant::now();
        let mut every = tokio::time::interval(EVERY);
        every.tick().await;
        let mut blows = 0;
        while start.elapsed() < DURATION || !done.load(Ordering::Relaxed) {
            every.tick().await;
            if start.elapsed() >= DURATION {
                // Peace from here on: what is left must go through.
                continue;
            }
            blows += 1;
            match blow {
                Blow::KillALeader => {
                    let victim = cluster.leader_of(TOPIC, blows as u32 % PARTITIONS).await;
                    cluster.nodes[victim].kill();
                    cluster.nodes[victim].start();
                }
                Blow::FreezeALeader => {
                    let victim = cluster.leader_of(TOPIC, blows as u32 % PARTITIONS).await;
                    cluster.nodes[victim].signal(Signal::Stop);
                    let mut thaw = tokio::time::interval(FROZEN);
                    thaw.tick().await;
                    thaw.tick().await;
                    cluster.nodes[victim].signal(Signal::Continue);
                }
                Blow::KillAll => {
                    cluster.nodes.iter().for_each(|node| node.signal(Signal::Kill));
                    for node in &mut cluster.nodes {
                        node.wait();
                        node.start();
                    }
                }
            }
        }
        blows
    }

    /// Appends all lines, spread over the whole time, keyed by client. Gives each acknowledged line's place.
    async fn append_all(
        client: balsa::client::Client,
        lines: Vec<weblog::Line>,
        done: Arc<AtomicBool>,
    ) -> HashMap<usize, (u32, Offset)> {
        let options = ProducerOptions { timeout: Duration::from_secs(120), ..ProducerOptions::default() };
        let (producer, mut deliveries) = Producer::open(&client, TOPIC, options).await.expect("a producer");
        let mut sent: BTreeMap<u32, std::collections::VecDeque<usize>> = BTreeMap::new();
        for (number, line) in lines.iter().enumerate() {
            let partition = balsa::client::partition_of_key(line.client.as_bytes(), PARTITIONS);
            sent.entry(partition).or_default().push_back(number);
        }
        let taking = tokio::spawn(async move {
            let mut acknowledged = HashMap::new();
            while let Some(delivery) = deliveries.next().await {
                let queue = sent.get_mut(&delivery.partition).expect("a partition that was sent to");
                let numbers: Vec<usize> = queue.drain(..delivery.count as usize).collect();
                let receipt = delivery.result.unwrap_or_else(|error| panic!("an append failed for good: {error}"));
                for (record, number) in numbers.into_iter().enumerate() {
                    acknowledged.insert(number, (delivery.partition, receipt.offset.plus(record as u64)));
                }
            }
            acknowledged
        });
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        let per_step = LINES / (DURATION.as_millis() as usize / 10) + 1;
        for step in lines.chunks(per_step) {
            pace.tick().await;
            for line in step {
                let record = RecordRef {
                    key: Some(line.client.as_bytes()),
                    value: Some(line.text.as_bytes()),
                    headers: &[],
                    timestamp: TimestampMs(1),
                };
                producer.send(Outgoing { partition: None, record }).await.expect("the record is taken");
            }
        }
        producer.flush().await.expect("all is acknowledged");
        drop(producer);
        done.store(true, Ordering::Relaxed);
        taking.await.expect("all deliveries are taken")
    }

    /// Every partition's bytes, read from each node by itself.
    async fn read_everywhere(cluster: &Cluster) -> Vec<Vec<Vec<Bytes>>> {
        let mut copies = Vec::new();
        for node in &cluster.nodes {
            let address = format!("http://{}", node.client);
            let mut client =
                LogClient::connect(address).await.expect("the node answers").max_decoding_message_size(8 << 20);
            let mut partitions = Vec::new();
            for partition in 0..PARTITIONS {
                partitions.push(read_partition(&mut client, partition).await);
            }
            copies.push(partitions);
        }
        copies
    }

    async fn read_partition(client: &mut LogClient<tonic::transport::Channel>, partition: u32) -> Vec<Bytes> {
        let request = wire::ReadRequest {
            topic: TOPIC.into(),
            partition,
            from: Some(wire::read_request::From::Earliest(true)),
            ..Default::default()
        };
        let mut answers = wait_until("the node to serve a read", || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.read(request).await.ok() }
        })
        .await
        .into_inner();
        let mut batches = Vec::new();
        while let Some(answer) = answers.message().await.expect("the read goes to its end") {
            batches.extend(answer.batches.into_iter().map(|batch| batch.batch));
        }
        batches
    }

    /// Holds what the nodes have against what was sent and acknowledged. Gives how many lines nobody acknowledged.
    fn check(
        lines: &[weblog::Line],
        acknowledged: &HashMap<usize, (u32, Offset)>,
        copies: &[Vec<Vec<Bytes>>],
    ) -> usize {
        for (node, copy) in copies.iter().enumerate().skip(1) {
            for partition in 0..PARTITIONS as usize {
                assert!(copy[partition] == copies[0][partition], "node {} has other bytes", node + 1);
            }
        }
        let number_of: HashMap<&str, usize> =
            lines.iter().enumerate().map(|(number, line)| (line.text.as_str(), number)).collect();
        let mut place_of: HashMap<usize, (u32, Offset)> = HashMap::new();
        let mut last_of_key: HashMap<String, usize> = HashMap::new();
        for (partition, batches) in copies[0].iter().enumerate() {
            let mut next = Offset(0);
            for record in batches.iter().flat_map(batch::records) {
                assert_eq!(record.offset, next, "offsets of partition {partition} are dense");
                next = next.next();
                let text = String::from_utf8(record.value.expect("a value").to_vec()).expect("text");
                let number = *number_of.get(text.as_str()).expect("a line that was sent");
                let doubled = place_of.insert(number, (partition as u32, record.offset));
                assert_eq!(doubled, None, "line {number} is there twice");
                let key = String::from_utf8(record.key.expect("a key").to_vec()).expect("text");
                let before = last_of_key.insert(key, number);
                assert!(before.is_none_or(|before| before < number), "line {number} comes after {before:?}");
            }
        }
        for (number, place) in acknowledged {
            assert_eq!(place_of.get(number), Some(place), "line {number} is not where it was acknowledged");
        }
        assert_eq!(place_of.len(), LINES, "all lines are there");
        LINES - acknowledged.len()
    }
}
