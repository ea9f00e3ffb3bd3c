//! Balsa itself, by its own program: three `balsa start`, loaded by `balsa bench`, as anybody would run them.
//!
//! Each load gets a topic of its own, which is deleted afterwards.

use super::{until_ready, version_of, Peer, NODES};
use crate::command_line::Options;
use crate::failure::{make_dir, write_file, Failure};
use crate::ground::{find_program, free_ports, Ground};
use crate::load::{Load, Measured, Mode, Timing, Window};
use crate::servers::Servers;
use async_trait::async_trait;
use serde_json::Value;
use std::env;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(30);
/// The topic for single attempts.
const ATTEMPTS: &str = "attempts";

#[derive(Debug)]
pub struct Balsa {
    given: Option<PathBuf>,
    program: PathBuf,
    connections: usize,
    partitions: u32,
    clients: Vec<String>,
    topics: usize,
    servers: Servers,
}

impl Balsa {
    pub fn new(options: &Options) -> Balsa {
        Balsa {
            given: options.programs.balsa.clone(),
            program: PathBuf::new(),
            connections: options.connections as usize,
            partitions: options.partitions,
            clients: Vec::new(),
            topics: 0,
            servers: Servers::default(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).args(["--servers", &self.clients.join(",")]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    fn bench(&self, topic: &str, load: &Load, timing: Timing) -> Command {
        let connections = load.shares(self.connections).len().to_string();
        let (warmup, measured) = (format!("{}s", timing.warmup.as_secs()), format!("{}s", timing.measured.as_secs()));
        let mode = match load.mode {
            Mode::Unary => "--unary",
            Mode::Stream => "--stream",
        };
        let mut bench = self.command(&["bench", "append", mode, "-o", "json", "--topic", topic]);
        bench.args(["--clients", &connections, "--partitions", &self.partitions.to_string()]);
        bench.args(["--in-flight", &load.in_flight.to_string(), "--batch", &load.batch.to_string()]);
        bench.args(["--record-bytes", &load.record_bytes.to_string(), "--warmup", &warmup, "--duration", &measured]);
        bench
    }
}

#[async_trait]
impl Peer for Balsa {
    fn key(&self) -> &'static str {
        "balsa"
    }

    fn title(&self) -> &'static str {
        "Balsa"
    }

    fn find(&mut self) -> Result<String, Failure> {
        let beside = env::current_exe().ok().map(|path| path.with_file_name("balsa")).filter(|path| path.is_file());
        let how = "build it with `cargo build --release` at the top of the sources and name it with --balsa";
        self.program = find_program(self.given.as_deref().or(beside.as_deref()), &["balsa"], how)?;
        Ok(version_of(std::process::Command::new(&self.program).arg("--version")))
    }

    async fn start(&mut self, ground: &Ground) -> Result<(), Failure> {
        let dir = ground.cluster(self.key())?;
        let ports = free_ports(2 * NODES)?;
        let (clients, peers) = ports.split_at(NODES);
        self.clients = clients.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        for at in 0..NODES {
            let node = make_dir(dir.join(format!("node{}", at + 1)))?;
            write_file(&node.join("node.toml"), &configuration(at, clients, peers))?;
            let mut start = std::process::Command::new(&self.program);
            start.args(["start", "--config"]).arg(node.join("node.toml"));
            self.servers.start(&format!("Balsa {}", at + 1), node.join("log"), &mut start)?;
        }
        let (program, servers) = (self.program.clone(), self.clients.join(","));
        until_ready(&mut self.servers, PATIENCE, || {
            let mut create = Command::new(&program);
            create.args(["topic", "create", ATTEMPTS, "--servers", &servers]).stdin(Stdio::null()).kill_on_drop(true);
            answer(create)
        })
        .await?;
        Ok(())
    }

    async fn load(&mut self, load: &Load, timing: Timing) -> Result<Measured, Failure> {
        self.topics += 1;
        let topic = format!("compare-{}", self.topics);
        answer(self.command(&["topic", "create", &topic, "--partitions", &self.partitions.to_string()])).await?;
        // The bench warms up from its start on, and so does our window: it is a process's start off, some milliseconds.
        let (window, bench) = (Window::begin(timing), self.bench(&topic, load, timing));
        let (said, cpu) = tokio::join!(answer(bench), window.cpu(self.servers.cpu()));
        answer(self.command(&["topic", "delete", &topic])).await?;
        let said = said?;
        let bench: Value = serde_json::from_str(&said).map_err(|error| Failure::of("balsa bench", error))?;
        let figure = |name: &str| {
            let figure = bench[name].as_f64();
            figure.ok_or_else(|| Failure::Failed(format!("balsa bench told no {name} but {said}")))
        };
        Measured::new(figure("records_per_s")?, figure("p50_ms")?, figure("p99_ms")?, cpu, timing.measured)
    }

    async fn leader(&mut self) -> Result<usize, Failure> {
        let said = answer(self.command(&["status", "-o", "json"])).await?;
        let status: Value = serde_json::from_str(&said).map_err(|error| Failure::of("balsa status", error))?;
        let partitions = status["partitions"].as_array().cloned().unwrap_or_default();
        let of_topic = partitions.iter().find(|partition| partition["topic"] == ATTEMPTS);
        let leader = of_topic.and_then(|partition| partition["leader"].as_u64());
        leader.map(|id| id as usize - 1).ok_or_else(|| Failure::Failed(format!("{ATTEMPTS} has no leader: {said}")))
    }

    async fn attempt(&mut self, _node: usize) -> Result<(), Failure> {
        let record = String::from_utf8_lossy(&Load::single().record()).into_owned();
        answer(self.command(&["append", ATTEMPTS, &record])).await.map(|_| ())
    }

    fn servers(&mut self) -> &mut Servers {
        &mut self.servers
    }
}

/// What the program prints.
async fn answer(mut command: Command) -> Result<String, Failure> {
    let output = command.output().await.map_err(Failure::io("run balsa"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Failure::of("balsa", String::from_utf8_lossy(&output.stderr).trim()))
}

fn configuration(at: usize, clients: &[u16], peers: &[u16]) -> String {
    let mut text = format!("node_id = {}\ndata_dir = \"data\"\n", at + 1);
    let _ = writeln!(text, "[listen]\nclient = \"127.0.0.1:{}\"\npeer = \"127.0.0.1:{}\"", clients[at], peers[at]);
    for node in 0..NODES {
        let (client, peer) = (clients[node], peers[node]);
        let _ = writeln!(
            text,
            "[[nodes]]\nid = {}\nclient = \"127.0.0.1:{client}\"\npeer = \"127.0.0.1:{peer}\"",
            node + 1
        );
    }
    text
}
