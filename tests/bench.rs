//! `balsa bench` as a user meets it: each measurement runs, counts what was really appended, and says what it measured.

#[cfg(not(madsim))]
mod support;

#[cfg(not(madsim))]
mod tests {
    use super::support::{balsa_with, expect, json_lines, printed, Cluster, Scratch};
    use serde_json::Value;
    use std::net::TcpListener;

    fn float(value: &Value) -> f64 {
        value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn appends_are_measured_closed_and_open_and_all_of_them_are_there() {
        let cluster = Cluster::start("bench-append", 3).await;
        let short = ["--duration", "500ms", "--warmup", "50ms", "-o", "json"];
        let mut least = 0.0;
        for how in [&["--unary"][..], &["--batch", "10"], &["--clients", "3", "--in-flight", "7", "--unary"]] {
            let output = cluster.balsa(&[&["bench", "append", "--partitions", "2"], how, &short].concat());
            let measured = &json_lines(&output)[0];
            least += float(&measured["records"]);
            assert!(float(&measured["records"]) > 0.0, "{measured}");
            let latencies = ["p50_ms", "p99_ms", "p999_ms", "max_ms"].map(|key| float(&measured[key]));
            assert!(latencies.is_sorted() && latencies[0] > 0.0, "{measured}");
            if cfg!(target_os = "linux") {
                assert!(float(&measured["server_cpu_s_per_100k"]) > 0.0, "{measured}");
                assert!(float(&measured["server_written_bytes_per_100k"]) > 0.0, "{measured}");
            }
        }
        let output = cluster.balsa(&[&["bench", "append", "--rate", "100"][..], &short].concat());
        let open = &json_lines(&output)[0];
        // Never more than were due, however fast the cluster is.
        assert!((1.0..=60.0).contains(&float(&open["records"])) && open["rate"] == 100, "{open}");
        let status = &json_lines(&cluster.balsa(&["status", "-o", "json"]))[0];
        let tails =
            status["partitions"].as_array().expect("partitions").iter().map(|partition| float(&partition["tail"]));
        let there = tails.sum::<f64>();
        assert!(there >= least, "{there} records are there, {least} were measured");

        let read = &json_lines(&cluster.balsa(&["bench", "read", "-o", "json"]))[0];
        assert_eq!(float(&read["records"]), there);
        let told = cluster.balsa(&["bench", "latency", "--duration", "200ms", "--warmup", "10ms"]);
        expect(&told, 0, &[]);
        assert!(
            printed(&told).contains("latency ms: p50") && printed(&told).contains("1 in flight"),
            "{}",
            printed(&told)
        );
        expect(&cluster.balsa(&["bench", "latency", "--in-flight", "2"]), 2, &["unexpected argument '--in-flight'"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn idling_is_told_of_each_node_and_a_dead_one_is_said_to_be_missing() {
        let mut cluster = Cluster::start("bench-idle", 3).await;
        let idle = &json_lines(&cluster.balsa(&["bench", "idle", "--duration", "300ms", "-o", "json"]))[0];
        assert_eq!(idle["nodes"].as_array().map(Vec::len), Some(3), "{idle}");
        assert!(float(&idle["nodes"][0]["resident_bytes"]) > 1e6, "{idle}");
        cluster.nodes[2].kill();
        let mut missing = cluster.balsa(&["bench", "idle", "--duration", "100ms"]);
        for _ in 0..100 {
            if !missing.status.success() {
                break;
            }
            missing = cluster.balsa(&["bench", "idle", "--duration", "100ms"]);
        }
        expect(&missing, 1, &["not every node told what it uses"]);
    }

    #[test]
    fn a_leader_of_a_cluster_of_its_own_is_killed_and_nothing_is_left() {
        let scratch = Scratch::new("bench-failover");
        let dir = scratch.0.display().to_string();
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("its number").port().min(65_000);
        let run = |port: u16, more: &[&str]| {
            let port = port.to_string();
            let arguments = ["bench", "failover", "--times", "1", "--dir", &dir, "--port", &port, "-o", "json"];
            balsa_with("", &[&arguments[..], more].concat(), b"")
        };
        if taken.local_addr().expect("its number").port() == port {
            expect(&run(port, &[]), 1, &["is in use", "nothing was started"]);
        }
        // Below the ports that systems give out by themselves.
        let free = (23_000..24_000).step_by(40).find(|port| {
            (0..3).all(|node| [0, 1].iter().all(|at| TcpListener::bind(("127.0.0.1", port + node * 10 + at)).is_ok()))
        });
        let free = free.expect("free ports");
        let measured = &json_lines(&run(free, &[]))[0];
        assert!(float(&measured["median_ms"]) > 0.0 && measured["blow"] == "kill", "{measured}");
        // A leader that hangs keeps its connections. Clients must not wait for the keep-alives' eight seconds to find out.
        let measured = &json_lines(&run(free, &["--freeze"]))[0];
        let gap_ms = float(&measured["median_ms"]);
        assert!(gap_ms > 0.0 && gap_ms < 7_000.0 && measured["blow"] == "freeze", "{measured}");
        assert_eq!(std::fs::read_dir(&scratch.0).expect("the folder").count(), 0, "its folder is gone");
    }
}
