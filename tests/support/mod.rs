//! What the tests of real processes share: clusters of them, signals, waiting for conditions, what commands, refusals and journals say,
//! and a web server's log.

#![allow(dead_code)] // each test binary uses a part of it

pub mod small_disk;
pub mod trace;
pub mod weblog;

use balsa::client::{wire, Client, ClientOptions};
use prost::Message;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tonic::Status;

/// How long to look away between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);
/// How long anything in these tests may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub const BALSA: &str = env!("CARGO_BIN_EXE_balsa");

/// A directory of its own, removed at the end unless the test failed.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("balsa-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory for the test");
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what the test left is in {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Ports that are handed out. Below those that systems give to outgoing connections, one of which could take the port of a node
/// that is down for a moment.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

/// An address that nobody listens on, and that is given to nobody else in this process.
pub fn free_address() -> SocketAddr {
    static DRAWN: AtomicU32 = AtomicU32::new(0);
    // Tests that run at the same time in other processes start elsewhere.
    let first = std::process::id().wrapping_mul(2_654_435_761) % PORTS.len() as u32;
    loop {
        let drawn = DRAWN.fetch_add(1, Ordering::Relaxed);
        assert!(drawn < PORTS.len() as u32, "no free port is left");
        let port = PORTS.start + (first + drawn) % PORTS.len() as u32;
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Waits until `condition` gives something; panics with what it last said after `PATIENCE`.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(POLL);
    }
}

/// The same for a condition that has to be awaited.
pub async fn wait_until<T, F: std::future::Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// A signal to a process.
#[derive(Clone, Copy, Debug)]
pub enum Signal {
    Kill,
    Stop,
    Continue,
    Interrupt,
    Terminate,
}

/// Sends a signal; a process that is gone is fine.
pub fn send_signal(pid: u32, signal: Signal) {
    use rustix::process::{kill_process, Pid, Signal as S};
    let signal = match signal {
        Signal::Kill => S::KILL,
        Signal::Stop => S::STOP,
        Signal::Continue => S::CONT,
        Signal::Interrupt => S::INT,
        Signal::Terminate => S::TERM,
    };
    let pid = Pid::from_raw(pid as i32).expect("a process id");
    let _ = kill_process(pid, signal);
}

/// One node of a cluster of real processes.
pub struct Node {
    pub id: u32,
    pub client: SocketAddr,
    pub peer: SocketAddr,
    pub dir: PathBuf,
    pub config: PathBuf,
    pub log: PathBuf,
    /// Words before the command that starts it: a tracer and its options. The process must stay our child.
    pub wrapped_in: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// Starts the process.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "node {} runs already", self.id);
        let log = File::options().append(true).create(true).open(&self.log).expect("the node's log");
        let words = self.wrapped_in.iter().map(String::as_str).chain([BALSA, "start", "--config"]);
        let words: Vec<&str> = words.collect();
        let child = Command::new(words[0])
            .args(&words[1..])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the node's log twice"))
            .stderr(log)
            .spawn()
            .expect("the node starts");
        self.child = Some(child);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("the node's state").is_none())
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// kill -9, and waits until the process is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::Kill);
        self.wait();
    }

    /// SIGTERM, and waits until the process has ended by itself.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::Terminate);
        self.wait()
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the node runs");
        wait_for("the node's end", || child.try_wait().expect("the node's state"))
    }

    /// Starts the process, which must refuse to run. Gives its exit code and what it said.
    pub fn refuses_to_start(&mut self) -> (i32, String) {
        let before = self.logged().len();
        self.start();
        let status = self.wait();
        (status.code().expect("it ends by itself"), self.logged()[before..].to_string())
    }

    /// Resident memory of the process, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process's status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
        let kib = line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        kib.expect("a number") << 10
    }

    /// What it logged.
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// A cluster of real processes on this machine.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub scratch: Scratch,
}

impl Cluster {
    /// Lays out a cluster of `count` nodes without starting any.
    pub fn laid_out(name: &str, count: u32) -> Cluster {
        Cluster::laid_out_with(name, count, "")
    }

    /// The same with more lines in each configuration, such as `segment_bytes = 4194304`.
    pub fn laid_out_with(name: &str, count: u32, settings: &str) -> Cluster {
        let scratch = Scratch::new(name);
        let addresses: Vec<(SocketAddr, SocketAddr)> = (0..count).map(|_| (free_address(), free_address())).collect();
        let nodes = (1..=count)
            .zip(&addresses)
            .map(|(id, (client, peer))| {
                let config = scratch.0.join(format!("node{id}.toml"));
                let dir = scratch.0.join(format!("node{id}"));
                let text = format!("{settings}\n{}", config_text(id, &dir, &addresses));
                fs::write(&config, text).expect("the node's configuration");
                let log = scratch.0.join(format!("node{id}.log"));
                Node { id, client: *client, peer: *peer, dir, config, log, wrapped_in: Vec::new(), child: None }
            })
            .collect();
        Cluster { nodes, scratch }
    }

    /// Starts a cluster of `count` nodes and waits until it answers.
    pub async fn start(name: &str, count: u32) -> Cluster {
        Cluster::start_with(name, count, "").await
    }

    /// The same with more lines in each configuration.
    pub async fn start_with(name: &str, count: u32, settings: &str) -> Cluster {
        let mut cluster = Cluster::laid_out_with(name, count, settings);
        cluster.nodes.iter_mut().for_each(Node::start);
        cluster.wait_until_up().await;
        cluster
    }

    /// Waits until all nodes are seen up.
    pub async fn wait_until_up(&self) {
        let client = self.client();
        let count = self.nodes.len();
        wait_until("all nodes to be up", || async {
            let status = client.status(false).await.ok()?;
            let up = status.nodes.iter().filter(|node| node.state == balsa::client::NodeState::Up).count();
            (up == count && status.problems.is_empty()).then_some(())
        })
        .await;
    }

    pub fn servers(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client.to_string()).collect()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.servers(), ClientOptions::default()).expect("a client")
    }

    /// A client that knows one node only.
    pub fn client_of(&self, node: usize) -> Client {
        Client::connect(vec![self.nodes[node].client.to_string()], ClientOptions::default()).expect("a client")
    }

    /// Which node leads a partition: its place in `nodes`.
    pub async fn leader_of(&self, topic: &str, partition: u32) -> usize {
        let client = self.client();
        let leader = wait_until("a leader", || async {
            let topic = client.describe_topic(topic).await.ok()?;
            Some(topic.partitions.get(partition as usize)?.leader.as_ref()?.node)
        })
        .await;
        let leader = leader.0;
        self.nodes.iter().position(|node| node.id == leader).expect("the leader is one of ours")
    }

    /// Panics if a node of this cluster ever did.
    pub fn nobody_panicked(&self) {
        for node in &self.nodes {
            let log = node.logged();
            assert!(!log.contains("panicked"), "node {} panicked:\n{log}", node.id);
        }
    }

    /// Runs the command line against this cluster.
    pub fn balsa(&self, arguments: &[&str]) -> Output {
        balsa_with(&self.servers().join(","), arguments, b"")
    }

    /// Runs the command line against this cluster with something on standard input.
    pub fn balsa_fed(&self, arguments: &[&str], input: &[u8]) -> Output {
        balsa_with(&self.servers().join(","), arguments, input)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                send_signal(child.id(), Signal::Continue);
                let _ = child.kill();
                let _ = child.wait();
            }
            if std::thread::panicking() {
                let log = node.logged();
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                eprintln!("--- node {}, last lines of its log", node.id);
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

/// The configuration of one node of a cluster at these addresses.
pub fn config_text(id: u32, dir: &Path, addresses: &[(SocketAddr, SocketAddr)]) -> String {
    let (client, peer) = addresses[id as usize - 1];
    let mut text =
        format!("node_id = {id}\ndata_dir = {dir:?}\n\n[listen]\nclient = \"{client}\"\npeer = \"{peer}\"\n");
    for (number, (client, peer)) in (1..).zip(addresses) {
        text.push_str(&format!("\n[[nodes]]\nid = {number}\nclient = \"{client}\"\npeer = \"{peer}\"\n"));
    }
    text
}

/// Runs the command line with these servers.
pub fn balsa_with(servers: &str, arguments: &[&str], input: &[u8]) -> Output {
    use std::io::Write;
    let mut child = Command::new(BALSA)
        .args(arguments)
        .env("BALSA_SERVERS", servers)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    let mut stdin = child.stdin.take().expect("its input");
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || {
        // A command that does not read its input is fine.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("the command ends");
    feeding.join().expect("the input was offered");
    output
}

/// What a command said on standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command printed on standard output.
pub fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Holds a command's exit code against the expected one, and its words on standard error against parts they must hold.
/// Gives the words.
pub fn expect(output: &Output, code: i32, parts: &[&str]) -> String {
    let text = said(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not said: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// What a command printed as JSON, line by line.
pub fn json_lines(output: &Output) -> Vec<serde_json::Value> {
    let lines = printed(output);
    lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// What `balsa inspect journal` or `segment` says of a path, as JSON.
pub fn inspect(what: &str, path: &Path) -> Output {
    balsa_with("", &["inspect", what, &path.display().to_string(), "-o", "json"], b"")
}

/// The journal files in use of a node's directory, each with the position where its rounds end.
pub fn journal_files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let report = inspect("journal", &dir.join("journal"));
    let files = json_lines(&report).into_iter().filter(|line| line["what"] == "file" && line["in_use"] == true);
    let files =
        files.map(|line| (line["file"].as_str().expect("a name").into(), line["end"].as_u64().expect("an end")));
    let files: Vec<(PathBuf, u64)> = files.collect();
    assert!(!files.is_empty(), "{}", said(&report));
    files
}

/// What a refusal's details say; `None` if it has none, as a failure of the transport.
pub fn detail_of(status: &Status) -> Option<wire::ErrorDetail> {
    if status.details().is_empty() {
        return None;
    }
    let rpc = wire::RpcStatus::decode(status.details()).expect("the details are a google.rpc.Status");
    assert_eq!(rpc.code, status.code() as i32);
    let any = rpc.details.first().expect("with one detail");
    assert_eq!(any.type_url, "type.googleapis.com/balsa.v1.ErrorDetail");
    Some(wire::ErrorDetail::decode(&any.value[..]).expect("which is ours"))
}

/// The same of a refusal that must have details.
pub fn detail(status: &Status) -> wire::ErrorDetail {
    detail_of(status).expect("details")
}

/// Bytes that look random and are the same in every run.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| byte()).collect()
}
