//! How long a partition is without a leader after `kill -9` of it, under load: the time from the kill to the next
//! acknowledged append. `BALSA_FAILOVERS=20` measures more of them than the few that every test run does.

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

    /// Appends without a pause, and counts what is acknowledged.
    async fn load(client: Client, acknowledged: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
        let options = ProducerOptions { linger: Duration::from_millis(1), ..ProducerOptions::default() };
        let (producer, mut deliveries) = Producer::open(&client, TOPIC, options).await.expect("a producer");
        let counting = tokio::spawn(async move {
            while let Some(delivery) = deliveries.next().await {
                delivery.result.expect("the append is acknowledged in the end");
                acknowledged.fetch_add(u64::from(delivery.count), Ordering::SeqCst);
            }
        });
        let mut pace = tokio::time::interval(Duration::from_millis(2));
        while !stop.load(Ordering::SeqCst) {
            pace.tick().await;
            for _ in 0..10 {
                let record =
                    RecordRef { key: None, value: Some(b"under load"), headers: &[], timestamp: TimestampMs(1) };
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
        let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let loading = tokio::spawn(load(client.clone(), acknowledged.clone(), stop.clone()));
        let mut gaps = Vec::new();
        for _ in 0..count {
            let before = acknowledged.load(Ordering::SeqCst);
            wait_until("the load to flow", || async { (acknowledged.load(Ordering::SeqCst) > before).then_some(()) })
                .await;
            let leader = cluster.leader_of(TOPIC, 0).await;
            cluster.nodes[leader].kill();
            let killed = Instant::now();
            let at_kill = acknowledged.load(Ordering::SeqCst);
            // What was on its way back when the leader died counts for nothing.
            let mut look = tokio::time::interval(Duration::from_millis(1));
            let mut last = at_kill;
            let gap = loop {
                look.tick().await;
                let now = acknowledged.load(Ordering::SeqCst);
                if now > last && killed.elapsed() > Duration::from_millis(20) {
                    break killed.elapsed();
                }
                last = now;
                assert!(killed.elapsed() < super::support::PATIENCE, "nothing was acknowledged after the kill");
            };
            gaps.push(gap);
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
