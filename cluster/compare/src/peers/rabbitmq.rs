//! RabbitMQ, two peers in one: a quorum queue, and a stream. Both with publisher confirms.
//!
//! A quorum queue confirms after a sync on a majority. A stream confirms when a majority has it in the page cache; it never syncs. Each
//! load gets a queue of its own, which is deleted afterwards; all connections go to the node where it was declared, which leads
//! it.

use super::{until_ready, Peer, NODES};
use crate::command_line::Options;
use crate::failure::{write_file, Failure};
use crate::ground::{find_program, free_ports, local, Ground};
use crate::lanes::{drive, open_lanes, Lane};
use crate::load::{Load, Measured, Timing};
use crate::servers::Servers;
use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::net::TcpStream;

/// Erlang starts slowly on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Messages outlive a restart only if they say so.
const PERSISTENT: u8 = 2;
const DEBIANS: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const INSTALL: &str = "apt-get install rabbitmq-server, or name it with --rabbitmq-server";
/// The queue for single attempts.
const ATTEMPTS: &str = "attempts";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    QuorumQueue,
    Stream,
}

pub struct RabbitMq {
    kind: Kind,
    given: Option<PathBuf>,
    program: PathBuf,
    connections: usize,
    ports: Vec<u16>,
    queues: usize,
    /// For single attempts: a connection to the node that was asked last.
    attempts: Option<(usize, RabbitLane)>,
    servers: Servers,
    /// Erlang's name service, on a port of its own and in the foreground; nodes would start one that stays.
    names: Servers,
}

impl RabbitMq {
    pub fn new(options: &Options, kind: Kind) -> RabbitMq {
        RabbitMq {
            kind,
            given: options.programs.rabbitmq_server.clone(),
            program: PathBuf::new(),
            connections: options.connections as usize,
            ports: Vec::new(),
            queues: 0,
            attempts: None,
            servers: Servers::default(),
            names: Servers::default(),
        }
    }

    async fn start_names(&mut self, dir: &Path, port: u16) -> Result<(), Failure> {
        let mut epmd = Command::new(find_program(None, &["epmd"], INSTALL)?);
        epmd.args(["-port", &port.to_string(), "-address", "127.0.0.1"]);
        self.names.start("epmd", dir.join("epmd.log"), &mut epmd)?;
        until_ready(&mut self.names, PATIENCE, || async {
            TcpStream::connect(local(port)).await.map(|_| ()).map_err(Failure::io("reach epmd"))
        })
        .await
    }

    /// A node's command: everything it would look for in the system's directories is named.
    fn node(&self, at: usize, dir: &Path, epmd: u16, distribution: u16) -> Command {
        let mut node = Command::new(&self.program);
        node.env_clear();
        node.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8").env("HOME", dir);
        node.env("ERL_EPMD_PORT", epmd.to_string()).env("RABBITMQ_NODENAME", node_name(at));
        node.env("RABBITMQ_DIST_PORT", distribution.to_string());
        node.env("RABBITMQ_CONFIG_FILE", dir.join(format!("n{at}.conf")));
        node.env("RABBITMQ_ADVANCED_CONFIG_FILE", dir.join("nothing.config"));
        node.env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("nothing.config"));
        node.env("RABBITMQ_CONF_ENV_FILE", dir.join("nothing.sh"));
        node.env("RABBITMQ_MNESIA_BASE", dir).env("RABBITMQ_LOG_BASE", dir).env("RABBITMQ_LOGS", "-");
        // So the scripts exec the virtual machine and no shell stays around it; it must read no terminal all the same.
        node.env("RABBITMQ_ALLOW_INPUT", "1");
        let ours = "-noinput -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}";
        node.env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", ours);
        node
    }

    async fn declare(&mut self, queue: &str) -> Result<Channel, Failure> {
        let kind = match self.kind {
            Kind::QuorumQueue => "quorum",
            Kind::Stream => "stream",
        };
        let channel = channel_to(self.ports[0]).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        let declared = channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await;
        declared.map_err(failed)?;
        Ok(channel)
    }
}

#[async_trait]
impl Peer for RabbitMq {
    fn key(&self) -> &'static str {
        match self.kind {
            Kind::QuorumQueue => "rabbitmq",
            Kind::Stream => "rabbitmq-stream",
        }
    }

    fn title(&self) -> &'static str {
        match self.kind {
            Kind::QuorumQueue => "RabbitMQ quorum queue",
            Kind::Stream => "RabbitMQ stream",
        }
    }

    fn syncs(&self) -> bool {
        self.kind == Kind::QuorumQueue
    }

    fn find(&mut self) -> Result<String, Failure> {
        find_program(None, &["epmd"], INSTALL)?;
        self.program = find_program(self.given.as_deref(), &[DEBIANS], INSTALL)?;
        let real = fs::canonicalize(&self.program).unwrap_or_default();
        let home = real.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        Ok(home.trim_start_matches("rabbitmq_server-").to_string())
    }

    async fn start(&mut self, ground: &Ground) -> Result<(), Failure> {
        let dir = ground.cluster(self.key())?;
        let ports = free_ports(2 * NODES + 1)?;
        let (clients, others) = ports.split_at(NODES);
        let (epmd_port, distribution) = (others[NODES], &others[..NODES]);
        self.ports = clients.to_vec();
        write_file(&dir.join("nothing.config"), "[].\n")?;
        write_file(&dir.join("nothing.sh"), "")?;
        write_cookie(&dir)?;
        self.start_names(&dir, epmd_port).await?;
        for at in 0..NODES {
            write_file(&dir.join(format!("n{at}.conf")), &configuration(clients[at]))?;
            let mut node = self.node(at, &dir, epmd_port, distribution[at]);
            self.servers.start(&format!("RabbitMQ {}", at + 1), dir.join(format!("n{at}.log")), &mut node)?;
        }
        let control = self.program.with_file_name("rabbitmqctl");
        until_ready(&mut self.servers, PATIENCE, || all_online(&control, &dir, epmd_port)).await?;
        self.declare(ATTEMPTS).await?;
        Ok(())
    }

    async fn load(&mut self, load: &Load, timing: Timing) -> Result<Measured, Failure> {
        self.queues += 1;
        let queue = format!("compare-{}", self.queues);
        let channel = self.declare(&queue).await?;
        let port = self.ports[0];
        let lanes = open_lanes(load, self.connections, || RabbitLane::open(port, &queue, load)).await?;
        let measured = drive(lanes, load, timing, self.servers.cpu()).await;
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.map_err(failed)?;
        measured
    }

    async fn leader(&mut self) -> Result<usize, Failure> {
        Ok(0) // A queue is led by the node where it was declared, until that is killed.
    }

    async fn attempt(&mut self, node: usize) -> Result<(), Failure> {
        let lane = match self.attempts.take() {
            Some((at, lane)) if at == node => lane,
            _ => RabbitLane::open(self.ports[node], ATTEMPTS, &Load::single()).await?,
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
        self.names.stop();
    }
}

struct RabbitLane {
    channel: Channel,
    queue: String,
    record: Vec<u8>,
    batch: usize,
}

impl RabbitLane {
    async fn open(port: u16, queue: &str, load: &Load) -> Result<RabbitLane, Failure> {
        let channel = channel_to(port).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed)?;
        Ok(RabbitLane { channel, queue: queue.to_string(), record: load.record(), batch: load.batch })
    }
}

#[async_trait]
impl Lane for RabbitLane {
    async fn append(&self) -> Result<(), Failure> {
        let mut confirms = Vec::with_capacity(self.batch);
        for _ in 0..self.batch {
            let (queue, options) = (self.queue.as_str().into(), BasicPublishOptions::default());
            let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
            let sent = self.channel.basic_publish("".into(), queue, options, &self.record, properties).await;
            confirms.push(sent.map_err(failed)?);
        }
        for confirm in confirms {
            if !confirm.await.map_err(failed)?.is_ack() {
                return Err(Failure::Failed("RabbitMQ refused a message".to_string()));
            }
        }
        Ok(())
    }
}

async fn channel_to(port: u16) -> Result<Channel, Failure> {
    let address = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    let connection = Connection::connect(&address, ConnectionProperties::default()).await.map_err(failed)?;
    // A channel keeps its connection open.
    connection.create_channel().await.map_err(failed)
}

fn failed(error: lapin::Error) -> Failure {
    Failure::of("RabbitMQ", error)
}

fn node_name(at: usize) -> String {
    format!("compare{at}@localhost")
}

fn configuration(port: u16) -> String {
    let mut text = format!("listeners.tcp.1 = 127.0.0.1:{port}\n");
    text += "cluster_formation.peer_discovery_backend = classic_config\n";
    for at in 0..NODES {
        text += &format!("cluster_formation.classic_config.nodes.{} = {}\n", at + 1, node_name(at));
    }
    text + "log.console.level = warning\n"
}

/// The secret that lets nodes talk to each other; they refuse it if others may read it.
fn write_cookie(dir: &Path) -> Result<(), Failure> {
    let path = dir.join(".erlang.cookie");
    write_file(&path, "BALSACOMPARE")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).map_err(Failure::io("restrict the Erlang cookie"))
}

async fn all_online(control: &Path, dir: &Path, epmd: u16) -> Result<(), Failure> {
    let mut asking = tokio::process::Command::new(control);
    asking.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
    asking
        .env("HOME", dir)
        .env("ERL_EPMD_PORT", epmd.to_string())
        .env("RABBITMQ_CONF_ENV_FILE", dir.join("nothing.sh"));
    asking.args(["-n", &node_name(0), "await_online_nodes", &NODES.to_string(), "--timeout", "20"]);
    asking.stdin(Stdio::null()).kill_on_drop(true);
    let answer = asking.output().await.map_err(Failure::io("run rabbitmqctl"))?;
    if answer.status.success() {
        return Ok(());
    }
    let said = [answer.stderr, answer.stdout].concat();
    Err(Failure::of("rabbitmqctl await_online_nodes", String::from_utf8_lossy(&said).trim()))
}
