//! Nobody waits for what is another's, or keeps it in memory: a partition under load, a node that hangs, one whose disk is full.
//!
//! Ratios within one run: what a machine takes for an append says nothing here, what an append takes beside another does.

#[cfg(not(madsim))]
mod support;

#[cfg(not(madsim))]
mod tests {
    use super::support::small_disk::SmallDisk;
    use super::support::{balsa_with, expect, json_lines, said, wait_for, Cluster, Signal};
    use balsa::client::wire::{self, log_client::LogClient};
    use serde_json::Value;
    use tokio::sync::Mutex;

    /// One at a time: what is measured before and after must not have another test beside it in between.
    static ALONE: Mutex<()> = Mutex::const_new(());

    /// A lone append beside others has less than this part of their latency. It waits for one round of theirs; behind all that they have
    /// under way it would wait as long as they do.
    const LONE_PART_MAX: f64 = 0.4;
    /// With one node of three hung at least this part of the records is appended. There is less to do, if anything.
    const HUNG_PART_MIN: f64 = 0.5;
    /// What is appended to one partition, and what a node holds at most beside that: caches of 2 MiB twice for each of 34 groups, 48 MiB of its
    /// journal, what is under way, and what its allocator keeps for a moment.
    const FLOOD_BYTES: f64 = (1_u64 << 30) as f64;
    const RESIDENT_BYTES_MAX: u64 = 400 << 20;
    /// A node's reserve, and the disk that has to hold it and what is appended before it is filled.
    const FULL_RESERVE_BYTES: u64 = 256 << 20;
    const FULL_DISK_BYTES: u64 = 2 << 30;

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
        let _alone = ALONE.lock().await;
        let cluster = Cluster::start("fairness-busy", 3).await;
        for topic in ["busy", "lone"] {
            expect(&cluster.balsa(&["topic", "create", topic]), 0, &[]);
        }
        let flood = ["--topic", "busy", "--batch", "500", "--record-bytes", "1024", "--in-flight", "48"];
        let lone = ["--topic", "lone", "--unary", "--rate", "50", "--duration", "1500ms"];
        let (busy, lone) = std::thread::scope(|scope| {
            // Longer than what is beside it, however slow the disk is with what others left it to write.
            let busy = scope.spawn(|| bench(&cluster, &[&flood[..], &["--duration", "8s"]].concat()));
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
        let _alone = ALONE.lock().await;
        let cluster = Cluster::start("fairness-memory", 3).await;
        expect(&cluster.balsa(&["topic", "create", "busy"]), 0, &[]);
        expect(&cluster.balsa(&["topic", "create", "quiet", "--partitions", "32"]), 0, &[]);
        let flood = ["--topic", "busy", "--batch", "500", "--record-bytes", "1024", "--in-flight", "32"];
        let drip = ["--topic", "quiet", "--partitions", "32", "--rate", "500", "--in-flight", "256"];
        let (mut flooded, mut dripped) = (0.0, 0.0);
        while flooded < FLOOD_BYTES {
            std::thread::scope(|scope| {
                let busy = scope.spawn(|| bench(&cluster, &[&flood[..], &["--duration", "4s"]].concat()));
                dripped += number(&bench(&cluster, &[&drip[..], &["--duration", "4s"]].concat()), "records");
                flooded += number(&busy.join().expect("it was measured"), "records") * 1024.0;
            });
        }
        assert!(dripped > 1_000.0, "{dripped} records among {flooded} bytes");
        for node in &cluster.nodes {
            let held = node.resident_bytes();
            println!("node {} holds {} MiB, {} MiB were appended", node.id, held >> 20, flooded as u64 >> 20);
            assert!(held < RESIDENT_BYTES_MAX, "node {} holds {held} bytes", node.id);
        }
    }

    /// What a majority goes on to append would fill its disk to the last byte, and then its journal could not go on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_follower_whose_disk_is_full_goes_on_as_a_voter_and_catches_up_when_there_is_room() {
        let _alone = ALONE.lock().await;
        let settings = format!("segment_bytes = 4194304\nreserve_bytes = {FULL_RESERVE_BYTES}");
        let mut cluster = Cluster::laid_out_with("fairness-full", 3, &settings);
        let disk = match SmallDisk::mount(&cluster.nodes[2].dir, FULL_DISK_BYTES) {
            Ok(disk) => disk,
            Err(reason) => {
                return println!("SKIPPED a full disk: a small file system can't be mounted here ({reason})")
            }
        };
        cluster.nodes.iter_mut().for_each(|node| node.start());
        cluster.wait_until_up().await;
        expect(&cluster.balsa(&["topic", "create", "bench"]), 0, &[]);
        let load = ["--batch", "100", "--record-bytes", "1024", "--in-flight", "32"];
        // The journal grows to what it takes under this load.
        bench(&cluster, &[&load[..], &["--duration", "2s"]].concat());
        let mut appended = 0.0;
        disk.fill_up_to(FULL_RESERVE_BYTES / 2 - (1 << 20));
        while appended < FULL_RESERVE_BYTES as f64 {
            appended += number(&bench(&cluster, &[&load[..], &["--duration", "1s"]].concat()), "records") * 1024.0;
        }
        assert!(cluster.nodes[2].runs(), "it ended: {}", cluster.nodes[2].logged());
        cluster.nodes[2].kill();
        cluster.nodes[2].start(); // which takes room for a journal file
        wait_for("the node to be back", || {
            let status = json_lines(&cluster.balsa(&["status", "-o", "json"])).remove(0);
            let nodes = status["nodes"].as_array().expect("nodes").clone();
            nodes.iter().all(|node| node["state"] == "up").then_some(())
        });

        let leader = cluster.leader_of("bench", 0).await;
        assert_ne!(leader, 2, "a node with a full disk does not lead");
        cluster.nodes[1 - leader].kill();
        let servers = cluster.nodes[leader].client.to_string();
        let read = ["read", "bench", "--from", "latest"];
        expect(&balsa_with(&servers, &read, &[]), 0, &[]); // linearizable, by the full node's word alone

        disk.make_room();
        cluster.nodes[1 - leader].start();
        let servers = cluster.nodes[2].client.to_string();
        wait_for("the node to catch up", || balsa_with(&servers, &read, &[]).status.success().then_some(()));
        assert!(cluster.nodes[2].runs());
    }

    /// Nothing is appended any more that would move a base, and only below a base files can go.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_trim_makes_room_on_a_full_disk() {
        let _alone = ALONE.lock().await;
        let settings = format!("segment_bytes = 4194304\nreserve_bytes = {FULL_RESERVE_BYTES}");
        let mut cluster = Cluster::laid_out_with("fairness-trim", 1, &settings);
        let disk = match SmallDisk::mount(&cluster.nodes[0].dir, FULL_DISK_BYTES) {
            Ok(disk) => disk,
            Err(reason) => {
                return println!("SKIPPED a full disk: a small file system can't be mounted here ({reason})")
            }
        };
        cluster.nodes[0].start();
        cluster.wait_until_up().await;
        expect(&cluster.balsa(&["topic", "create", "bench"]), 0, &[]);
        bench(&cluster, &["--batch", "100", "--record-bytes", "1024", "--in-flight", "16", "--duration", "2s"]);
        let append = ["append", "bench", "one more", "--timeout", "1s"];
        wait_for("appends to be refused", || {
            // Less is missing than the trim will give back. Journal files that are no longer needed may go meanwhile.
            disk.fill_up_to(FULL_RESERVE_BYTES - (8 << 20));
            let refused = cluster.balsa(&append);
            (!refused.status.success() && said(&refused).contains("full")).then_some(())
        });

        let address = format!("http://{}", cluster.nodes[0].client);
        let mut log = LogClient::connect(address).await.expect("the node is there");
        let tail = log.tail(wire::TailRequest { topic: "bench".into(), ..Default::default() }).await;
        let offset = tail.expect("reads go on").into_inner().tail;
        let trim = wire::TrimRequest { topic: "bench".into(), offset, ..Default::default() };
        log.trim(trim).await.expect("trims go on");
        wait_for("appends to be taken again", || cluster.balsa(&append).status.success().then_some(()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_follower_that_hangs_holds_nobody_up() {
        let _alone = ALONE.lock().await;
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
