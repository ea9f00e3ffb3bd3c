//! The command line as a user meets it: a cluster in one command, topics, lines in and out, what is wrong in words, and exit
//! codes and JSON that scripts can rely on.

#[cfg(not(madsim))]
mod support;

#[cfg(not(madsim))]
mod tests {
    use super::support::{
        balsa_with, expect, free_address, json_lines, printed, said, send_signal, wait_for, Cluster, Scratch, Signal,
        BALSA,
    };
    use base64::prelude::{Engine, BASE64_STANDARD};
    use serde_json::Value;
    use std::collections::BTreeSet;
    use std::fs::{self, File};
    use std::io::Write;
    use std::net::TcpListener;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, ExitStatus, Stdio};
    use std::sync::atomic::{AtomicU16, Ordering};
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    /// What a command that must give up may take: two election timeouts for the node, some tries for the client.
    const GIVING_UP: Duration = Duration::from_secs(12);

    /// A command that runs while the test goes on; its words go to files.
    struct Running {
        child: Child,
        out: PathBuf,
        err: PathBuf,
    }

    impl Running {
        fn start(scratch: &Scratch, name: &str, servers: &str, arguments: &[&str]) -> Running {
            let (out, err) = (scratch.0.join(format!("{name}.out")), scratch.0.join(format!("{name}.err")));
            let child = Command::new(BALSA)
                .args(arguments)
                .env("BALSA_SERVERS", servers)
                .stdin(Stdio::piped())
                .stdout(File::create(&out).expect("a file"))
                .stderr(File::create(&err).expect("a file"))
                .spawn()
                .expect("the command runs");
            Running { child, out, err }
        }

        fn printed(&self) -> String {
            fs::read_to_string(&self.out).expect("its output")
        }

        fn said(&self) -> String {
            fs::read_to_string(&self.err).expect("its words")
        }

        fn wait(&mut self) -> ExitStatus {
            wait_for("the command's end", || self.child.try_wait().expect("its state"))
        }

        /// Ctrl-C, and the exit code it ends with.
        fn interrupt(&mut self) -> Option<i32> {
            send_signal(self.child.id(), Signal::Interrupt);
            self.wait().code()
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
                // Its children, if it has any, end when they miss it.
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }

    /// A first port for `balsa up`, with those above it that its nodes take. Below the ports that systems give out by
    /// themselves, so that none is taken meanwhile.
    fn ports_for(nodes: u16) -> u16 {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        wait_for("free ports", || {
            let step = NEXT.fetch_add(1, Ordering::Relaxed) + (std::process::id() % 97) as u16;
            let port = 20_000 + step % 100 * 100;
            let all = (0..nodes).flat_map(|node| [port + node * 10, port + node * 10 + 1]);
            all.map(|port| TcpListener::bind(("127.0.0.1", port))).all(|bound| bound.is_ok()).then_some(port)
        })
    }

    fn up(scratch: &Scratch, name: &str, arguments: &[&str]) -> Running {
        let dir = scratch.0.join("data").display().to_string();
        let running = Running::start(scratch, name, "", &[&["up", "--dir", &dir], arguments].concat());
        wait_for("the cluster to be up", || running.printed().contains("Ctrl-C stops the nodes").then_some(()));
        running
    }

    fn servers(port: u16, nodes: u16) -> String {
        let each: Vec<String> = (0..nodes).map(|node| format!("127.0.0.1:{}", port + node * 10)).collect();
        each.join(",")
    }

    fn now_ms() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis() as u64
    }

    fn keys(value: &Value) -> BTreeSet<&str> {
        value.as_object().expect("an object").keys().map(String::as_str).collect()
    }

    fn number(value: &Value) -> u64 {
        value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
    }

    // ---- up -------------------------------------------------------------------------------------------------------

    #[test]
    fn up_runs_a_cluster_that_ctrl_c_stops_and_a_second_up_goes_on_with() {
        let scratch = Scratch::new("cli-up");
        let port = ports_for(3);
        let servers = servers(port, 3);
        let balsa = |arguments: &[&str], input: &[u8]| balsa_with(&servers, arguments, input);

        let mut first = up(&scratch, "first", &["--port", &port.to_string()]);
        let told = first.printed();
        for part in
            ["3 nodes up", &format!("127.0.0.1:{port}"), "balsa topic create", "kill -9", "export BALSA_SERVERS"]
        {
            assert!(told.contains(part), "{part:?} is not told: {told}");
        }
        expect(&balsa(&["topic", "create", "access", "--partitions", "4"], b""), 0, &["4 partitions, 3 replicas each"]);
        expect(&balsa(&["append", "access"], b"one\ntwo\nthree\n"), 0, &["3 records acknowledged"]);
        let contrary = |option: &str, value: &str| {
            let dir = scratch.0.join("data").display().to_string();
            balsa(&["up", "--dir", &dir, option, value], b"")
        };
        expect(&contrary("--nodes", "5"), 2, &["a cluster of 3 nodes, not 5", "another --dir"]);
        expect(&contrary("--port", "9"), 2, &[&format!("first port is {port}, not 9"), "another --dir"]);
        // The same again while it runs.
        let again = balsa(&["up", "--dir", &scratch.0.join("data").display().to_string()], b"");
        expect(&again, 1, &[&format!("127.0.0.1:{port}"), "in use", "nothing was started"]);
        assert_eq!(first.interrupt(), Some(0), "{}", first.said());
        assert!(first.said().contains("stopped cleanly"), "{}", first.said());
        expect(&balsa(&["status"], b""), 5, &["cannot reach"]);

        let mut second = up(&scratch, "second", &[]);
        let mut lines: Vec<String> = printed(&balsa(&["read", "access"], b"")).lines().map(String::from).collect();
        lines.sort();
        assert_eq!(lines, ["one", "three", "two"]);
        expect(&balsa(&["append", "access", "four"], b""), 0, &["appended to access/"]);

        // A node that dies is told of, with the way to have it again.
        let pid =
            second.printed().lines().find_map(|line| line.strip_prefix("  node 3")?.split(' ').nth(5)?.parse().ok());
        send_signal(pid.expect("node 3's process"), Signal::Kill);
        wait_for("the death to be told", || second.said().contains("node 3 died (signal 9)").then_some(()));
        assert!(second.said().contains("start it again with: balsa start --config"), "{}", second.said());
        expect(&balsa(&["append", "access", "five"], b""), 0, &[]);
        assert_eq!(second.interrupt(), Some(0), "{}", second.said());
        for node in 1..=3 {
            let log = fs::read_to_string(scratch.0.join(format!("data/node{node}/log"))).expect("the node's log");
            assert!(!log.contains("panicked"), "{log}");
        }
    }

    #[test]
    fn any_of_five_nodes_takes_any_request() {
        let scratch = Scratch::new("cli-five");
        let port = ports_for(5);
        let mut five = up(&scratch, "five", &["--nodes", "5", "--port", &port.to_string(), "-o", "table"]);
        assert!(five.printed().contains("5 nodes up"), "{}", five.printed());
        let node = |node: u16, arguments: &[&str]| balsa_with(&servers(port + node * 10, 1), arguments, b"");
        expect(&node(0, &["topic", "create", "t"]), 0, &["1 partition, 3 replicas each"]);
        for from in 0..5 {
            // Over a node that may not host the partition, and whose catalog may have to catch up first.
            expect(&node(from, &["append", "t", &format!("by {from}")]), 0, &[&format!("at offset {from}")]);
        }
        for at in 0..5 {
            assert_eq!(printed(&node(at, &["read", "t"])), "by 0\nby 1\nby 2\nby 3\nby 4\n", "through node {}", at + 1);
            expect(&node(at, &["read", "t", "--from", "9"]), 3, &["ends at offset 5"]);
        }
        let hosts = &json_lines(&node(4, &["status", "-o", "json"]))[0]["partitions"][0]["replicas"];
        assert_eq!(hosts.as_array().map(Vec::len), Some(3), "{hosts}");
        assert_eq!(five.interrupt(), Some(0), "{}", five.said());
    }

    // ---- topics, append, read -------------------------------------------------------------------------------------

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn topics_are_created_listed_described_altered_and_deleted() {
        let cluster = Cluster::start("cli-topics", 3).await;
        let json = |arguments: &[&str]| {
            let output = cluster.balsa(&[arguments, &["-o", "json"]].concat());
            expect(&output, 0, &[]);
            json_lines(&output)
        };
        expect(&cluster.balsa(&["topic", "list"]), 0, &["there are no topics", "balsa topic create"]);
        let created = &json(&["topic", "create", "b", "--partitions", "2", "--batch-bytes-max", "5000"])[0];
        let expected = ["batch_bytes_max", "created", "id", "partitions", "replication", "topic"];
        assert_eq!(keys(created), expected.into(), "{created}");
        assert_eq!(number(&created["batch_bytes_max"]), 5_000);
        assert_eq!(keys(&created["partitions"][1]), ["leader", "partition", "replicas", "term"].into(), "{created}");
        expect(&cluster.balsa(&["topic", "create", "a"]), 0, &["created topic a: 1 partition, 3 replicas each"]);
        let names: Vec<String> = json(&["topic", "list"]).iter().map(|topic| topic["topic"].to_string()).collect();
        assert_eq!(names, ["\"a\"", "\"b\""]);
        let table = printed(&cluster.balsa(&["topic", "list"]));
        assert!(table.starts_with("TOPIC") && table.lines().count() == 3, "{table}");

        expect(&cluster.balsa(&["topic", "alter", "b", "--partitions", "3"]), 0, &["altered topic b: 3 partitions"]);
        expect(&cluster.balsa(&["append", "b", "x", "--partition", "2"]), 0, &["b/2 at offset 0"]);
        let described = printed(&cluster.balsa(&["topic", "describe", "b"]));
        assert!(described.contains("batches up to 5000 bytes") && described.lines().count() == 5, "{described}");
        let last: Vec<&str> = described.lines().last().expect("a line").split_whitespace().collect();
        assert_eq!((last[0], last[4], last[5]), ("2", "0", "1"), "{described}");

        expect(&cluster.balsa(&["topic", "delete", "b"]), 0, &["deleted topic b"]);
        expect(&cluster.balsa(&["read", "b"]), 3, &["\"b\""]);
        // A topic of the same name is another one.
        expect(&cluster.balsa(&["topic", "create", "b"]), 0, &[]);
        assert_eq!(printed(&cluster.balsa(&["read", "b"])), "");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn records_go_in_and_come_out_in_each_documented_way() {
        let cluster = Cluster::start("cli-records", 3).await;
        expect(&cluster.balsa(&["topic", "create", "t", "--partitions", "3"]), 0, &[]);
        let began = now_ms();

        // One record: nothing on standard output unless asked for.
        let one = cluster.balsa(&["append", "t", "first", "--partition", "0", "--key", "k"]);
        expect(&one, 0, &["appended to t/0 at offset 0"]);
        assert_eq!(printed(&one), "");
        let output = cluster.balsa(&["append", "t", "second", "-p", "0", "-o", "json"]);
        let single = &json_lines(&output)[0];
        assert_eq!(keys(single), ["hash", "offset", "partition", "term", "topic"].into(), "{single}");
        assert_eq!(
            (single["topic"].as_str(), number(&single["partition"]), number(&single["offset"])),
            (Some("t"), 0, 1)
        );
        assert!(
            number(&single["term"]) > 0 && single["hash"].as_str().is_some_and(|hash| hash.len() == 64),
            "{single}"
        );

        // Lines: a summary on standard error, and per batch where it went if asked for.
        let lines = cluster.balsa_fed(&["append", "t", "--partition", "0", "-o", "json"], b"third\nfourth");
        expect(&lines, 0, &["2 records acknowledged by t"]);
        let batches = json_lines(&lines);
        assert_eq!(keys(&batches[0]), ["count", "hash", "offset", "partition", "term", "topic"].into());
        assert_eq!(batches.iter().map(|batch| number(&batch["count"])).sum::<u64>(), 2);
        assert_eq!(printed(&cluster.balsa_fed(&["append", "t", "--partition", "0"], b"\n")), "");
        expect(&cluster.balsa_fed(&["append", "t"], b""), 0, &["0 records"]);

        // Keys: the same key goes to the same partition, whichever way it is given.
        expect(&cluster.balsa(&["topic", "create", "keyed", "--partitions", "3"]), 0, &[]);
        let keyed = cluster.balsa_fed(&["append", "keyed", "--key-separator", "\\t"], b"red\t1\nblue\t2\nred\t3\n");
        expect(&keyed, 0, &["3 records"]);
        expect(&cluster.balsa_fed(&["append", "keyed", "--key", "red"], b"4\n"), 0, &[]);
        let all = json_lines(&cluster.balsa(&["read", "keyed", "-o", "json"]));
        let place = |value: &str| {
            let record = all.iter().find(|record| record["value"] == value).unwrap_or_else(|| panic!("no {value}"));
            (number(&record["partition"]), record["key"].clone())
        };
        assert!(place("1") == place("3") && place("3") == place("4") && place("4").1 == "red");
        let read = cluster.balsa(&["read", "t", "-p", "0", "-n", "1", "-o", "json"]);
        let first = &json_lines(&read)[0];
        assert_eq!(keys(first), ["key", "offset", "partition", "timestamp", "topic", "value"].into(), "{first}");
        assert_eq!((first["key"].as_str(), number(&first["offset"])), (Some("k"), 0));
        let timestamp = number(&first["timestamp"]);
        assert!(timestamp + 5_000 >= began && timestamp <= now_ms() + 5_000, "{timestamp} is far from {began}");

        // An expected offset holds or nothing happens.
        let expecting =
            |offset: &str| ["append", "t", "fifth", "--partition=0", "--expected-offset", offset].map(String::from);
        let expecting = |offset: &str| cluster.balsa(&expecting(offset).each_ref().map(String::as_str));
        expect(&expecting("4"), 4, &["expected offset 4", "ends at 5", "nothing was appended"]);
        expect(&expecting("5"), 0, &["t/0 at offset 5"]);
        expect(&expecting("5"), 4, &["ends at 6"]);
        let lines = cluster.balsa_fed(&["append", "t", "--partition=0", "--expected-offset=6"], b"6\n7\n8\n");
        expect(&lines, 0, &["3 records"]);
        let lines = cluster.balsa_fed(&["append", "t", "--partition=0", "--expected-offset=6"], b"6\n7\n8\n");
        expect(&lines, 4, &["0 records acknowledged", "ends at 9"]);
        expect(&cluster.balsa(&["append", "t", "x", "--expected-offset", "0"]), 2, &["has 3", "--partition N"]);

        // From wherever is asked.
        let read = |from: &[&str]| printed(&cluster.balsa(&[&["read", "t", "--partition", "0"], from].concat()));
        assert_eq!(read(&["--from", "earliest", "--count", "2"]), "first\nsecond\n");
        assert_eq!(read(&["--from", "7"]), "7\n8\n");
        assert_eq!(read(&["--from", "9"]), "");
        assert_eq!(read(&["--from", "latest"]), "");
        assert_eq!(read(&["--from", "-1h", "-n", "1"]), "first\n");
        assert_eq!(read(&["--from", "2100-01-01"]), "");
        assert_eq!(read(&["--from", "2001-01-01T00:00:00Z", "--count", "3", "--stale"]), "first\nsecond\nthird\n");
        assert_eq!(read(&["--count", "0"]), "");
        let verbose = read(&["--count", "1", "--verbose"]);
        let fields: Vec<&str> = verbose.trim_end().split('\t').collect();
        assert_eq!((fields[0], fields[1], fields[3], fields[4]), ("0", "0", "k", "first"), "{verbose}");
        cluster.nobody_panicked();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn bytes_that_are_no_text_come_back_as_they_went_in() {
        let cluster = Cluster::start("cli-bytes", 1).await;
        expect(&cluster.balsa(&["topic", "create", "t"]), 0, &[]);
        let bytes: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').chain([0xff, b'\n']).collect();
        expect(&cluster.balsa_fed(&["append", "t", "--key", "k"], &bytes), 0, &[]);
        assert_eq!(cluster.balsa(&["read", "t"]).stdout, bytes);
        let record = &json_lines(&cluster.balsa(&["read", "t", "-o", "json"]))[0];
        assert_eq!(keys(record), ["encoding", "key", "offset", "partition", "timestamp", "topic", "value"].into());
        assert_eq!(record["encoding"], "base64");
        let decoded = |field: &str| BASE64_STANDARD.decode(record[field].as_str().expect("text")).expect("base64");
        assert_eq!((decoded("key"), decoded("value")), (b"k".to_vec(), bytes[..bytes.len() - 1].to_vec()));
        // What has no key says so, and text needs no encoding.
        expect(&cluster.balsa(&["append", "t", "ein Späßchen ☕"]), 0, &[]);
        let record = &json_lines(&cluster.balsa(&["read", "t", "--from", "1", "-o", "json"]))[0];
        assert!(record["key"].is_null() && record["value"] == "ein Späßchen ☕" && record.get("encoding").is_none());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_session_that_is_run_again_appends_each_line_exactly_once() {
        let cluster = Cluster::start("cli-session", 3).await;
        expect(&cluster.balsa(&["topic", "create", "t", "--partitions", "3"]), 0, &[]);
        let lines: Vec<String> = (0..20_000).map(|line| format!("line {line}")).collect();
        let input = lines.join("\n") + "\n";
        let command = ["append", "t", "--session", "import", "--batch-bytes", "4000"];

        // Interrupted in the middle: half of the input was offered, and some of it is acknowledged.
        let mut interrupted = Running::start(&cluster.scratch, "interrupted", &cluster.servers().join(","), &command);
        let mut stdin = interrupted.child.stdin.take().expect("its input");
        stdin.write_all(&input.as_bytes()[..input.len() / 2]).expect("it takes the first half");
        wait_for("something to be acknowledged", || {
            (printed(&cluster.balsa(&["read", "t", "--count", "1000"])).lines().count() == 1_000).then_some(())
        });
        let code = interrupted.interrupt();
        assert!(matches!(code, Some(1 | 6)), "{code:?}: {}", interrupted.said());
        let said = interrupted.said();
        assert!(said.contains("acknowledged by t") && said.contains("run the same command again"), "{said}");
        drop(stdin);

        expect(&cluster.balsa_fed(&command, input.as_bytes()), 0, &["skipped, appended by an earlier run"]);
        expect(&cluster.balsa_fed(&command, input.as_bytes()), 0, &["0 records acknowledged", "20,000 lines skipped"]);
        let mut read: Vec<String> = printed(&cluster.balsa(&["read", "t"])).lines().map(String::from).collect();
        let mut expected = lines.clone();
        read.sort();
        expected.sort();
        assert_eq!(read.len(), expected.len());
        assert!(read == expected, "each line is there exactly once");
        // Each partition has its lines in the input's order.
        for partition in ["0", "1", "2"] {
            let read = printed(&cluster.balsa(&["read", "t", "--partition", partition]));
            let numbers: Vec<u32> = read.lines().map(|line| line[5..].parse().expect("a number")).collect();
            assert!(numbers.is_sorted() && numbers.len() > 6_000, "partition {partition}");
        }
        // Less input than was appended is another input.
        expect(&cluster.balsa_fed(&command, b"line 0\n"), 4, &["19,999", "was it another input?"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_follower_sees_what_is_appended_later_and_ends_when_asked() {
        let cluster = Cluster::start("cli-follow", 3).await;
        expect(&cluster.balsa(&["topic", "create", "t", "--partitions", "2"]), 0, &[]);
        expect(&cluster.balsa(&["append", "t", "old", "--partition", "0"]), 0, &[]);
        let servers = cluster.servers().join(",");
        let follow = |name: &str, more: &[&str]| {
            Running::start(&cluster.scratch, name, &servers, &[&["read", "t", "--follow"], more].concat())
        };
        let mut all = follow("all", &[]);
        let mut counted = follow("counted", &["--count", "3", "-o", "json"]);
        wait_for("the old record", || (all.printed() == "old\n").then_some(()));
        expect(&cluster.balsa(&["append", "t", "new", "--partition", "1"]), 0, &[]);
        wait_for("the new record", || (all.printed() == "old\nnew\n").then_some(()));
        expect(&cluster.balsa(&["append", "t", "newer", "--partition", "0"]), 0, &[]);
        assert_eq!(counted.wait().code(), Some(0), "{}", counted.said());
        assert_eq!(counted.printed().lines().count(), 3);
        wait_for("the newest record", || (all.printed() == "old\nnew\nnewer\n").then_some(()));
        assert_eq!(all.interrupt(), Some(0));
        assert_eq!(all.said(), "");

        // From the tail on: the old ones never show. Whether it follows already can only be seen by what it prints.
        let mut latest = follow("latest", &["--from", "latest"]);
        let mut probes = 0;
        wait_for("a record after the tail", || {
            probes += 1;
            expect(&cluster.balsa(&["append", "t", &format!("probe {probes}")]), 0, &[]);
            (!latest.printed().is_empty()).then_some(())
        });
        assert_eq!(latest.interrupt(), Some(0));
        assert!(latest.printed().lines().all(|line| line.starts_with("probe ")), "{}", latest.printed());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reader_that_goes_away_is_no_error() {
        let cluster = Cluster::start("cli-pipe", 1).await;
        expect(&cluster.balsa(&["topic", "create", "t"]), 0, &[]);
        let lines: String = (0..100_000).map(|line| format!("{line}\n")).collect();
        expect(&cluster.balsa_fed(&["append", "t"], lines.as_bytes()), 0, &["100,000 records"]);
        let piped = |command: &str| {
            let script = format!("\"{BALSA}\" {command} | head -1; exit ${{PIPESTATUS[0]}}");
            let servers = cluster.servers().join(",");
            Command::new("bash").arg("-c").arg(script).env("BALSA_SERVERS", servers).output().expect("bash runs")
        };
        for command in ["read t", "read t --follow", "read t -o json", "--help", "completions bash", "status --watch"] {
            let output = piped(command);
            assert_eq!((output.status.code(), said(&output).as_str()), (Some(0), ""), "{command}");
            assert_eq!(printed(&output).lines().count(), 1, "{command}");
        }
        // Records are appended all the same where only the receipts have no reader.
        let output = piped("append t --batch-bytes 10 -o json < <(seq 3000)");
        assert_eq!((output.status.code(), printed(&output).lines().count()), (Some(0), 1), "{}", said(&output));
        let tail = &json_lines(&cluster.balsa(&["status", "-o", "json"]))[0]["partitions"][0]["tail"];
        assert_eq!(number(tail), 103_000);
    }

    // ---- status and trouble ---------------------------------------------------------------------------------------

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn status_says_what_is_wrong_and_a_lost_quorum_is_told_in_seconds() {
        let mut cluster = Cluster::start("cli-status", 3).await;
        expect(&cluster.balsa(&["topic", "create", "t", "--partitions", "3"]), 0, &[]);
        expect(&cluster.balsa_fed(&["append", "t", "--partition", "1"], b"a\nb\n"), 0, &[]);
        let healthy = cluster.balsa(&["status"]);
        let table = printed(&healthy);
        for part in ["3 of 3 nodes up, 3 partitions", "all is well", "NODE", "TOPIC", "PARTITION", "LEADER", "TAIL"] {
            assert!(table.contains(part), "{part:?} is not shown: {table}");
        }
        let status = &json_lines(&cluster.balsa(&["status", "-o", "json"]))[0];
        assert_eq!(keys(status), ["nodes", "partitions"].into());
        assert_eq!(keys(&status["nodes"][0]), ["address", "id", "state"].into());
        let expected = ["leader", "partition", "replicas", "tail", "term", "topic"];
        assert_eq!(keys(&status["partitions"][0]), expected.into(), "{status}");
        assert_eq!((&status["nodes"][0]["state"], number(&status["partitions"][1]["tail"])), (&"up".into(), 2));

        // One is gone: a survivor says so in words, and everything goes on.
        cluster.nodes[1].kill();
        let survivor = cluster.nodes[0].client.to_string();
        wait_for("the death to be seen", || {
            let table = printed(&balsa_with(&survivor, &["status"], b""));
            let told = table.contains("2 of 3 nodes up") && table.contains("! node 2");
            (told && table.contains("have a replica that is down") && !table.contains("none")).then_some(())
        });
        let down = &json_lines(&balsa_with(&survivor, &["status", "-o", "json"], b""))[0]["nodes"][1];
        assert_eq!((number(&down["id"]), down["state"].as_str()), (2, Some("down")));
        expect(&cluster.balsa(&["append", "t", "c", "--partition", "1"]), 0, &["t/1 at offset 2"]);

        // Two are gone: nothing is agreed on any more, and whoever asks is told why within seconds.
        cluster.nodes[2].kill();
        let told_in_time = |arguments: &[&str], input: &[u8], codes: &[i32], parts: &[&str]| {
            let began = Instant::now();
            let output = cluster.balsa_fed(arguments, input);
            let (code, text) = (output.status.code().expect("a code"), said(&output));
            assert!(codes.contains(&code), "{arguments:?}: {code}: {text}");
            assert!(began.elapsed() < GIVING_UP, "{arguments:?} took {:?}", began.elapsed());
            parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not said: {text}"));
        };
        let missing = ["nodes 2, 3", "no majority", "balsa status"];
        told_in_time(&["append", "t", "d", "--partition", "1"], b"", &[5, 6], &missing);
        told_in_time(&["append", "t", "--partition", "1"], b"d\ne\n", &[5, 6], &missing);
        told_in_time(&["topic", "create", "u"], b"", &[5, 6], &missing);
        told_in_time(&["read", "t", "--partition", "1"], b"", &[5], &missing);
        told_in_time(&["topic", "describe", "t"], b"", &[5], &missing);
        let stale = cluster.balsa(&["read", "t", "--partition", "1", "--stale"]);
        expect(&stale, 0, &[]);
        assert_eq!(printed(&stale), "a\nb\nc\n");
        let table = printed(&cluster.balsa(&["status"]));
        for part in ["1 of 3 nodes up", "! node 2", "! node 3", "3 of 3 partitions have no leader"] {
            assert!(table.contains(part), "{part:?} is not shown: {table}");
        }

        // One comes back, and a majority with it.
        cluster.nodes[2].start();
        wait_for("appends to go through", || {
            let output = cluster.balsa(&["append", "t", "f", "--partition", "1"]);
            (output.status.code() == Some(0)).then_some(())
        });
        let lines = printed(&cluster.balsa(&["read", "t", "--partition", "1"]));
        assert!(lines.starts_with("a\nb\nc\n") && lines.ends_with("f\n"), "{lines}");
        cluster.nobody_panicked();
    }

    #[test]
    fn nobody_listening_is_told_at_once_and_is_safe_to_run_again() {
        let nobody = free_address().to_string();
        for arguments in
            [["status", "-o", "json"].as_slice(), &["topic", "list"], &["append", "t", "x"], &["read", "t"]]
        {
            let began = Instant::now();
            let parts = ["cannot reach", &nobody, "balsa up", "BALSA_SERVERS"];
            expect(&balsa_with(&nobody, arguments, b""), 5, &parts);
            assert!(began.elapsed() < GIVING_UP, "{arguments:?} took {:?}", began.elapsed());
        }
        expect(&balsa_with(&nobody, &["append", "t"], b"x\n"), 5, &["cannot reach", &nobody]);
    }

    // ---- inspect --------------------------------------------------------------------------------------------------

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn inspect_lists_what_the_files_of_a_stopped_node_hold() {
        let mut cluster = Cluster::start("cli-inspect", 1).await;
        expect(&cluster.balsa(&["topic", "create", "t"]), 0, &[]);
        let line = "x".repeat(1_000);
        let lines: String = (0..9_000).map(|number| format!("{number} {line}\n")).collect();
        expect(&cluster.balsa_fed(&["append", "t"], lines.as_bytes()), 0, &[]);
        assert!(cluster.nodes[0].stop().success());
        let dir = &cluster.nodes[0].dir;
        let inspect = |kind: &str, path: &Path, format: &str| {
            balsa_with("", &["inspect", kind, &path.display().to_string(), "-o", format], b"")
        };

        let journal = inspect("journal", &dir.join("journal"), "json");
        expect(&journal, 0, &[]);
        let found = json_lines(&journal);
        let count = |what: &str| found.iter().filter(|line| line["what"] == what).count();
        // How much is left depends on when the node last moved on to another file; what every group is, is always there.
        assert_eq!(count("journal"), 1);
        assert!(["file", "round", "frame"].iter().all(|what| count(what) >= 1), "{found:?}");
        assert!(found.iter().any(|line| line["what"] == "frame" && line["group"] == 1 && !line["vote"].is_null()));
        let table = printed(&inspect("journal", &dir.join("journal"), "table"));
        assert!(table.starts_with("journal of node 1") && table.contains("checkpoint complete"), "{table}");
        let file = found.iter().find(|line| line["what"] == "file").expect("a file")["file"].as_str().expect("a name");
        expect(&inspect("journal", Path::new(file), "table"), 0, &[]);

        // The catalog's group is 0; the topic's partition got the next number.
        let segments = inspect("segment", &dir.join("groups/1"), "json");
        expect(&segments, 0, &[]);
        let found = json_lines(&segments);
        let frames = found.iter().filter(|line| line["what"] == "frame");
        let bytes: u64 = frames.clone().map(|frame| number(&frame["bytes"])).sum();
        assert!(frames
            .clone()
            .any(|frame| frame["commands"][0].as_str().is_some_and(|text| text.contains("offsets 0.."))));
        assert!(bytes > 4_000_000, "{bytes} bytes");
        assert!(frames.is_sorted_by_key(|frame| number(&frame["index"])));
        assert_eq!(number(&found.last().expect("a summary")["header"]["group"]), 1);

        expect(&inspect("segment", &dir.join("nothing"), "table"), 3, &["there is no"]);
        expect(&inspect("segment", dir, "table"), 1, &["holds no segments", "groups"]);
        expect(&inspect("journal", dir, "table"), 1, &["holds no journal", "journal"]);
    }

    // ---- the command line itself ----------------------------------------------------------------------------------

    /// The subcommands that a help text lists.
    fn listed(help: &str) -> Vec<String> {
        let commands = help.split("Commands:\n").nth(1).unwrap_or_default();
        let lines = commands.lines().take_while(|line| !line.is_empty());
        let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        names
            .filter_map(|line| Some(line.split_whitespace().next()?.to_string()))
            .filter(|name| name != "help")
            .collect()
    }

    fn check_help(path: &[String]) -> usize {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = balsa_with("", &arguments, b"");
        expect(&output, 0, &[]);
        let text = printed(&output);
        assert!(text.contains("Example") || text.contains("Try it:"), "{arguments:?} gives no example:\n{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{arguments:?} has long lines:\n{text}");
        let below = listed(&text);
        1 + below.iter().map(|name| check_help(&[path, std::slice::from_ref(name)].concat())).sum::<usize>()
    }

    #[test]
    fn every_command_has_a_help_text_with_examples() {
        assert!(check_help(&[]) >= 20);
        expect(&balsa_with("", &["help", "append"], b""), 0, &[]);
        expect(&balsa_with("", &["--version"], b""), 0, &[]);
        let top = printed(&balsa_with("", &["--help"], b""));
        assert!((0..=7).all(|code| top.contains(&format!("\n  {code}  "))), "exit codes are listed: {top}");
    }

    #[test]
    fn a_wrong_command_line_exits_as_usage_and_says_what_is_wrong() {
        for (arguments, part) in [
            (["apend", "t"].as_slice(), "append"),
            (&["append"], "<TOPIC>"),
            (&["append", "t", "x", "--key"], "--key"),
            (&["append", "t", "x", "--colour", "red"], "--colour"),
            (&["append", "t", "x", "--partition", "minus"], "minus"),
            (&["append", "t", "x", "--session", "s"], "--session"),
            (&["append", "t", "--key", "k", "--key-separator", "="], "--key-separator"),
            (&["append", "t", "--session", "s", "--expected-offset", "1"], "--expected-offset"),
            (&["append", "t", "x", "--timeout", "5"], "500ms, 30s"),
            (&["read", "t", "--count", "-1"], "-1"),
            (&["read", "t", "-o", "yaml"], "json"),
            (&["up", "--nodes", "0"], "1..=64"),
            (&["up", "--port", "70000"], "70000"),
            (&["completions", "tcl"], "fish"),
            (&["topic"], "create"),
        ] {
            expect(&balsa_with("127.0.0.1:1", arguments, b""), 2, &[part]);
        }
    }

    #[test]
    fn completions_are_printed_for_each_shell_and_name_every_command() {
        for shell in ["bash", "zsh", "fish"] {
            let output = balsa_with("", &["completions", shell], b"");
            expect(&output, 0, &[]);
            let script = printed(&output);
            for command in ["up", "start", "status", "topic", "append", "read", "inspect", "bench", "completions"] {
                assert!(script.contains(command), "{shell} knows no {command}");
            }
        }
        let scratch = Scratch::new("cli-completions");
        let file = scratch.0.join("balsa.bash");
        fs::write(&file, balsa_with("", &["completions", "bash"], b"").stdout).expect("the script");
        let checked = Command::new("bash").arg("-n").arg(&file).output().expect("bash runs");
        assert!(checked.status.success(), "{}", said(&checked));
    }
}
