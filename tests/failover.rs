//! How long a partition is without a leader after `kill -9` of it, under load: the time from the kill to the acknowledgement of an
//! append that was sent after it, and of all that were under way. `BALSA_FAILOVERS=20` measures more of them than the few that every test run does.

#[cfg(not(madsim))]
mod support;

#[cfg(not(madsim))]
mod tests {
    use super::support::{wait_until, Cluster};
    use balsa::batch::RecordRef;
    use balsa::client::{Client, NewTopic, Outgoing, Producer, ProducerOptions};
    use balsa::ids::TimestampMs;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    const TOPIC: &str = "failover";
    /// Far above what is measured on a quiet machine: it guards against a lost fast path, not against noise.
    const MEDIAN_MAX: Duration = Duration::from_millis(1_500);

    /// How many records were sent, and how many acknowledged. They are acknowledged in the order they were sent.
    #[derive(Default)]
    struct Counts {
        sent: AtomicU64,
        acknowledged: AtomicU64,
    }

    impl Counts {
        fn sent(&self) -> u64 {
            self.sent.load(Ordering::SeqCst)
        }

        fn acknowledged(&self) -> u64 {
            self.acknowledged.load(Ordering::SeqCst)
        }
    }

    /// Appends without a pause, and counts.
    async fn load(client: Client, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
        let options = ProducerOptions { linger: Duration::from_millis(1), ..ProducerOptions::default() };
        let (producer, mut deliveries) = Producer::open(&client, TOPIC, options).await.expect("a producer");
        let counted = counts.clone();
        let counting = tokio::spawn(async move {
            while let Some(delivery) = deliveries.next().await {
                delivery.result.expect("the append is acknowledged in the end");
                counted.acknowledged.fetch_add(u64::from(delivery.count), Ordering::SeqCst);
            }
        });
        let mut pace = tokio::time::interval(Duration::from_millis(2));
        while !stop.load(Ordering::SeqCst) {
            pace.tick().await;
            for _ in 0..10 {
                let record =
                    RecordRef { key: None, value: Some(b"under load"), headers: &[], timestamp: TimestampMs(1) };
                counts.sent.fetch_add(1, Ordering::SeqCst);
                producer.send(Outgoing { partition: Some(0), record }).await.expect("the record is taken");
            }
        }
        producer.flush().await.expect("all is acknowledged");
        drop(producer);
        counting.await.expect("all deliveries are taken");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_killed_leader_is_replaced_within_moments() {
        let count = std::env::var("BALSA_FAILOVERS").ok().and_then(|count| count.parse().ok()).unwrap_or(5);
        let mut cluster = Cluster::start("failover", 3).await;
        let client = cluster.client();
        client.create_topic(TOPIC, &NewTopic::default()).await.expect("the topic is created");
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let loading = tokio::spawn(load(client.clone(), counts.clone(), stop.clone()));
        let mut gaps = Vec::new();
        for _ in 0..count {
            let before = counts.sent();
            wait_until("the load to flow", || async { (counts.acknowledged() > before).then_some(()) }).await;
            let leader = cluster.leader_of(TOPIC, 0).await;
            cluster.nodes[leader].kill();
            let killed = Instant::now();
            let sent = counts.sent();
            let mut look = tokio::time::interval(Duration::from_millis(1));
            while counts.acknowledged() <= sent {
                look.tick().await;
                assert!(killed.elapsed() < super::support::PATIENCE, "nothing was acknowledged after the kill");
            }
            gaps.push(killed.elapsed());
            cluster.nodes[leader].start();
            cluster.wait_until_up().await;
        }
        stop.store(true, Ordering::SeqCst);
        loading.await.expect("the load ends");
        gaps.sort();
        let (median, worst) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
        eprintln!("{count} leaders killed: next acknowledgement after {median:?} in the median, {worst:?} at worst");
        assert!(median <= MEDIAN_MAX, "all: {gaps:?}");
    }
}
