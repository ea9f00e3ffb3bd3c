//! NATS JetStream, two peers in one: a stream of three replicas that syncs each write, and one with the default, which syncs every
//! two minutes and acknowledges long before.
//!
//! Each load gets a stream of its own, which is deleted afterwards; all connections go to the node that leads it.

use super::{until_ready, version_of, Peer, NODES};
use crate::command_line::Options;
use crate::failure::{write_file, Failure};
use crate::ground::{find_program, free_ports, Ground};
use crate::lanes::{drive, open_lanes, Lane};
use crate::load::{Load, Measured, Timing};
use crate::servers::Servers;
use async_nats::jetstream::{self, stream, Context};
use async_trait::async_trait;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// The stream for single attempts.
const ATTEMPTS: &str = "attempts";
/// Far beyond what is in flight: the client must not be what waits.
const ACKS_MAX: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncing {
    Always,
    Default,
}

pub struct Nats {
    syncing: Syncing,
    given: Option<PathBuf>,
    program: PathBuf,
    connections: usize,
    ports: Vec<u16>,
    streams: usize,
    /// For single attempts: a connection to the node that was asked last.
    attempts: Option<(usize, NatsLane)>,
    servers: Servers,
}

impl Nats {
    pub fn new(options: &Options, syncing: Syncing) -> Nats {
        Nats {
            syncing,
            given: options.programs.nats_server.clone(),
            program: PathBuf::new(),
            connections: options.connections as usize,
            ports: Vec::new(),
            streams: 0,
            attempts: None,
            servers: Servers::default(),
        }
    }

    fn configuration(&self, at: usize, dir: &Path, ports: &[u16]) -> String {
        let sync = match self.syncing {
            Syncing::Always => "sync_interval: always",
            Syncing::Default => "",
        };
        let (clients, cluster) = ports.split_at(NODES);
        let routes: Vec<String> = cluster.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let store = dir.join(node_name(at));
        let lines = [
            format!("server_name: {}", node_name(at)),
            format!("listen: 127.0.0.1:{}", clients[at]),
            format!("jetstream {{\n  store_dir: {:?}\n  {sync}\n}}", store.display().to_string()),
            format!("cluster {{\n  name: compare\n  listen: 127.0.0.1:{}\n  routes: {routes:?}\n}}", cluster[at]),
        ];
        lines.join("\n") + "\n"
    }

    /// Fails where the server does not know how to sync always.
    fn check_configuration(&self, file: &Path) -> Result<(), Failure> {
        let checked = Command::new(&self.program).arg("-t").arg("-c").arg(file).output();
        let checked = checked.map_err(Failure::io("run nats-server"))?;
        let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).trim().to_string();
        if checked.status.success() {
            Ok(())
        } else if said.contains("sync_interval") {
            let unknown =
                "this nats-server does not know sync_interval: always (2.10 and newer do); name one with --nats-server";
            Err(Failure::Absent(unknown.to_string()))
        } else {
            Err(Failure::Failed(format!("nats-server refuses its configuration: {said}")))
        }
    }

    /// Creates a stream, and returns the node that leads it.
    async fn create(&self, name: &str) -> Result<usize, Failure> {
        create_stream(self.ports[0], name).await
    }
}

#[async_trait]
impl Peer for Nats {
    fn key(&self) -> &'static str {
        match self.syncing {
            Syncing::Always => "nats",
            Syncing::Default => "nats-default",
        }
    }

    fn title(&self) -> &'static str {
        match self.syncing {
            Syncing::Always => "NATS, sync always",
            Syncing::Default => "NATS, default",
        }
    }

    fn syncs(&self) -> bool {
        self.syncing == Syncing::Always
    }

    fn find(&mut self) -> Result<String, Failure> {
        let install = "apt-get install nats-server, or name it with --nats-server";
        self.program = find_program(self.given.as_deref(), &["nats-server"], install)?;
        Ok(version_of(Command::new(&self.program).arg("--version")))
    }

    async fn start(&mut self, ground: &Ground) -> Result<(), Failure> {
        let dir = ground.cluster(self.key())?;
        let ports = free_ports(2 * NODES)?;
        self.ports = ports[..NODES].to_vec();
        let mut files = Vec::new();
        for at in 0..NODES {
            let file = dir.join(format!("n{at}.conf"));
            write_file(&file, &self.configuration(at, &dir, &ports))?;
            self.check_configuration(&file)?;
            files.push(file);
        }
        for (at, file) in files.iter().enumerate() {
            let mut node = Command::new(&self.program);
            node.arg("-c").arg(file);
            self.servers.start(&format!("NATS {}", at + 1), dir.join(format!("n{at}.log")), &mut node)?;
        }
        let first = self.ports[0];
        until_ready(&mut self.servers, PATIENCE, || create_stream(first, ATTEMPTS)).await?;
        Ok(())
    }

    async fn load(&mut self, load: &Load, timing: Timing) -> Result<Measured, Failure> {
        self.streams += 1;
        let name = format!("compare-{}", self.streams);
        let leader = self.ports[self.create(&name).await?];
        let lanes = open_lanes(load, self.connections, || NatsLane::open(leader, &name, load)).await?;
        let measured = drive(lanes, load, timing, self.servers.cpu()).await;
        context(self.ports[0]).await?.delete_stream(&name).await.map_err(failed)?;
        measured
    }

    async fn leader(&mut self) -> Result<usize, Failure> {
        self.create(ATTEMPTS).await // Creating what is there, alike, tells of it.
    }

    async fn attempt(&mut self, node: usize) -> Result<(), Failure> {
        let lane = match self.attempts.take() {
            Some((at, lane)) if at == node => lane,
            _ => NatsLane::open(self.ports[node], ATTEMPTS, &Load::single()).await?,
        };
        lane.append().await?;
        self.attempts = Some((node, lane));
        Ok(())
    }

    fn servers(&mut self) -> &mut Servers {
        &mut self.servers
    }

    fn stop(&mut self) {
        self.attempts = None;
        self.servers.stop();
    }
}

struct NatsLane {
    context: Context,
    subject: String,
    record: Bytes,
    batch: usize,
}

impl NatsLane {
    async fn open(port: u16, stream: &str, load: &Load) -> Result<NatsLane, Failure> {
        let context = context(port).await?;
        Ok(NatsLane { context, subject: stream.to_string(), record: load.record().into(), batch: load.batch })
    }
}

#[async_trait]
impl Lane for NatsLane {
    async fn append(&self) -> Result<(), Failure> {
        let mut acks = Vec::with_capacity(self.batch);
        for _ in 0..self.batch {
            acks.push(self.context.publish(self.subject.clone(), self.record.clone()).await.map_err(failed)?);
        }
        for ack in acks {
            ack.await.map_err(failed)?;
        }
        Ok(())
    }
}

async fn context(port: u16) -> Result<Context, Failure> {
    let client = async_nats::connect(format!("nats://127.0.0.1:{port}")).await.map_err(failed)?;
    let builder = jetstream::context::ContextBuilder::new().timeout(Duration::from_secs(30));
    Ok(builder.max_ack_inflight(ACKS_MAX).build(client))
}

async fn create_stream(port: u16, name: &str) -> Result<usize, Failure> {
    let config = stream::Config {
        name: name.to_string(),
        subjects: vec![name.to_string()],
        num_replicas: NODES,
        storage: stream::StorageType::File,
        ..stream::Config::default()
    };
    let mut stream = context(port).await?.create_stream(config).await.map_err(failed)?;
    let info = stream.info().await.map_err(failed)?;
    let leader = info.cluster.as_ref().and_then(|cluster| cluster.leader.clone()).unwrap_or_default();
    let at = (0..NODES).find(|at| node_name(*at) == leader);
    at.ok_or_else(|| Failure::Failed(format!("the NATS stream {name} has no leader")))
}

fn node_name(at: usize) -> String {
    format!("n{at}")
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::of("NATS", error)
}
