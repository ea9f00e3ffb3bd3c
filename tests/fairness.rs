//! Nobody waits for what is another's, or keeps it in memory: a partition under load, a node that hangs.
//!
//! Ratios within one run: what a machine takes for an append says nothing here, what an append takes beside another does.

#[cfg(not(madsim))]
mod support;

#[cfg(not(madsim))]
mod tests {
    use super::support::{expect, json_lines, Cluster, Signal};
    use serde_json::Value;

    /// A lone append beside others has less than this part of their latency. It waits for one round of theirs; behind all that they have
    /// under way it would wait as long as they do.
    const LONE_PART_MAX: f64 = 0.4;
    /// With one node of three hung at least this part of the records is appended. There is less to do, if anything.
    const HUNG_PART_MIN: f64 = 0.5;
    /// What a node holds beside a flood, at most: what it starts with, what the flood has under way, and its few caches.
    const RESIDENT_BYTES_MAX: u64 = 256 << 20;

    fn number(measured: &Value, key: &str) -> f64 {
        measured[key].as_f64().unwrap_or_else(|| panic!("{key} is no number in {measured}"))
    }

    fn bench(cluster: &Cluster, options: &[&str]) -> Value {
        let output = cluster.balsa(&[&["bench", "append", "--warmup", "200ms", "-o", "json"], options].concat());
        expect(&output, 0, &[]);
        json_lines(&output).remove(0)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lone_append_gets_by_a_partition_that_has_megabytes_under_way() {
        let cluster = Cluster::start("fairness-busy", 3).await;
        for topic in ["busy", "lone"] {
            expect(&cluster.balsa(&["topic", "create", topic]), 0, &[]);
        }
        let flood = ["--topic", "busy", "--batch", "500", "--record-bytes", "1024", "--in-flight", "48"];
        let lone = ["--topic", "lone", "--unary", "--rate", "50", "--duration", "1500ms"];
        let (busy, lone) = std::thread::scope(|scope| {
            let busy = scope.spawn(|| bench(&cluster, &[&flood[..], &["--duration", "4s"]].concat()));
            let first = cluster.balsa(&["read", "busy", "--follow", "--count", "1"]);
            expect(&first, 0, &[]);
            let lone = bench(&cluster, &lone);
            assert!(!busy.is_finished(), "the flood ended too early to be measured beside");
            (busy.join().expect("it was measured"), lone)
        });
        let (busy_ms, lone_ms) = (number(&busy, "p50_ms"), number(&lone, "p50_ms"));
        assert!(number(&lone, "records") > 20.0, "{lone}");
        assert!(lone_ms < LONE_PART_MAX * busy_ms, "alone it takes {lone_ms} ms, among many {busy_ms} ms");
    }

    /// An entry of a quiet partition arrives in one batch with megabytes of a busy one, and is kept for long: it must not keep the batch.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_quiet_partitions_keep_in_memory_is_their_own() {
        let cluster = Cluster::start("fairness-memory", 3).await;
        expect(&cluster.balsa(&["topic", "create", "busy"]), 0, &[]);
        expect(&cluster.balsa(&["topic", "create", "quiet", "--partitions", "32"]), 0, &[]);
        let flood = ["--topic", "busy", "--batch", "500", "--record-bytes", "1024", "--in-flight", "32"];
        let drip = ["--topic", "quiet", "--partitions", "32", "--rate", "500", "--in-flight", "256"];
        std::thread::scope(|scope| {
            scope.spawn(|| bench(&cluster, &[&flood[..], &["--duration", "4s"]].concat()));
            let quiet = bench(&cluster, &[&drip[..], &["--duration", "4s"]].concat());
            assert!(number(&quiet, "records") > 1_000.0, "{quiet}");
        });
        for node in &cluster.nodes {
            let held = node.resident_bytes();
            assert!(held < RESIDENT_BYTES_MAX, "node {} holds {held} bytes", node.id);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_follower_that_hangs_holds_nobody_up() {
        let mut cluster = Cluster::start("fairness-hung", 3).await;
        expect(&cluster.balsa(&["topic", "create", "bench"]), 0, &[]);
        let load = ["--batch", "20", "--in-flight", "32", "--duration", "1s"];
        let well = number(&bench(&cluster, &load), "records_per_s");
        let leader = cluster.leader_of("bench", 0).await;
        let hung = (leader + 1) % 3;
        cluster.nodes[hung].signal(Signal::Stop);
        let slowed = number(&bench(&cluster, &load), "records_per_s");
        assert!(slowed > HUNG_PART_MIN * well, "{slowed} records a second, {well} with all nodes well");
        cluster.nodes[hung].signal(Signal::Continue);
        cluster.wait_until_up().await;
        assert!(cluster.nodes[hung].stop().success());
    }
}
