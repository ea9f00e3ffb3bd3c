//! ZooKeeper: `setData` on a thousand nodes in turn, and `multi` of as many as a batch has records.
//!
//! Durable as it comes (`forceSync` is on). There is nothing to append to: each record overwrites one, which keeps its tree in
//! memory small and is the best it can do; its transaction log gets every record all the same. All sessions go to the leader.

use super::{until_ready, version_of, Peer, NODES};
use crate::command_line::Options;
use crate::failure::{make_dir, write_file, Failure};
use crate::ground::{find_program, free_ports, Ground};
use crate::lanes::{drive, open_lanes, Lane};
use crate::load::{Load, Measured, Timing};
use crate::servers::Servers;
use async_trait::async_trait;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zookeeper_client::{Acls, Client, CreateMode};

const PATIENCE: Duration = Duration::from_secs(60);
const DEBIANS: &str = "/usr/share/java/zookeeper.jar";
const PATHS: usize = 1000;
const LOGGING: &str = "\
log4j.rootLogger=WARN, CONSOLE
log4j.appender.CONSOLE=org.apache.log4j.ConsoleAppender
log4j.appender.CONSOLE.layout=org.apache.log4j.PatternLayout
log4j.appender.CONSOLE.layout.ConversionPattern=%d %p %c: %m%n
";

pub struct ZooKeeper {
    given: Option<PathBuf>,
    java: PathBuf,
    jar: PathBuf,
    connections: usize,
    ports: Vec<u16>,
    /// For single attempts: a session with the node that was asked last.
    attempts: Option<(usize, ZooLane)>,
    servers: Servers,
}

impl ZooKeeper {
    pub fn new(options: &Options) -> ZooKeeper {
        ZooKeeper {
            given: options.programs.zookeeper_jar.clone(),
            java: PathBuf::new(),
            jar: PathBuf::new(),
            connections: options.connections as usize,
            ports: Vec::new(),
            attempts: None,
            servers: Servers::default(),
        }
    }
}

#[async_trait]
impl Peer for ZooKeeper {
    fn key(&self) -> &'static str {
        "zookeeper"
    }

    fn title(&self) -> &'static str {
        "ZooKeeper"
    }

    fn find(&mut self) -> Result<String, Failure> {
        let install = "apt-get install zookeeper, or name it with --zookeeper-jar";
        self.jar = find_program(self.given.as_deref(), &[DEBIANS], install)?;
        self.java = find_program(None, &["java"], "apt-get install default-jre-headless")?;
        let mut asking = Command::new(&self.java);
        Ok(version_of(asking.arg("-cp").arg(&self.jar).arg("org.apache.zookeeper.version.VersionInfoMain")))
    }

    async fn start(&mut self, ground: &Ground) -> Result<(), Failure> {
        let dir = ground.cluster(self.key())?;
        let ports = free_ports(3 * NODES)?;
        write_file(&dir.join("log4j.properties"), LOGGING)?;
        self.ports = ports[..NODES].to_vec();
        for at in 0..NODES {
            let data = make_dir(dir.join(format!("n{at}")))?;
            write_file(&data.join("myid"), &format!("{}\n", at + 1))?;
            let mut text = String::from("tickTime=2000\ninitLimit=10\nsyncLimit=5\nadmin.enableServer=false\n");
            text += "4lw.commands.whitelist=srvr\n";
            let _ = writeln!(text, "dataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1", data.display(), ports[at]);
            for node in 0..NODES {
                let (quorum, election) = (ports[NODES + node], ports[2 * NODES + node]);
                let _ = writeln!(text, "server.{}=127.0.0.1:{quorum}:{election}", node + 1);
            }
            let file = dir.join(format!("n{at}.cfg"));
            write_file(&file, &text)?;
            let mut node = Command::new(&self.java);
            node.arg("-cp").arg(format!("{}:{}", dir.display(), self.jar.display()));
            node.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(file);
            self.servers.start(&format!("ZooKeeper {}", at + 1), dir.join(format!("n{at}.log")), &mut node)?;
        }
        let ports = &self.ports;
        let leader = until_ready(&mut self.servers, PATIENCE, || leader_of(ports)).await?;
        create_paths(self.ports[leader]).await
    }

    async fn load(&mut self, load: &Load, timing: Timing) -> Result<Measured, Failure> {
        let leader = self.ports[leader_of(&self.ports).await?];
        let lanes = open_lanes(load, self.connections, || ZooLane::open(leader, load)).await?;
        drive(lanes, load, timing, self.servers.cpu()).await
    }

    async fn leader(&mut self) -> Result<usize, Failure> {
        leader_of(&self.ports).await
    }

    async fn attempt(&mut self, node: usize) -> Result<(), Failure> {
        let lane = match self.attempts.take() {
            Some((at, lane)) if at == node => lane,
            _ => ZooLane::open(self.ports[node], &Load::single()).await?,
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

struct ZooLane {
    client: Client,
    next: AtomicUsize,
    record: Vec<u8>,
    batch: usize,
}

impl ZooLane {
    async fn open(port: u16, load: &Load) -> Result<ZooLane, Failure> {
        let client = session(port).await?;
        Ok(ZooLane { client, next: AtomicUsize::new(0), record: load.record(), batch: load.batch })
    }

    fn path(&self) -> String {
        path_of(self.next.fetch_add(1, Ordering::Relaxed) % PATHS)
    }
}

#[async_trait]
impl Lane for ZooLane {
    async fn append(&self) -> Result<(), Failure> {
        if self.batch == 1 {
            self.client.set_data(&self.path(), &self.record, None).await.map_err(failed)?;
            return Ok(());
        }
        let mut multi = self.client.new_multi_writer();
        for _ in 0..self.batch {
            multi.add_set_data(&self.path(), &self.record, None).map_err(failed)?;
        }
        multi.commit().await.map_err(failed)?;
        Ok(())
    }
}

async fn session(port: u16) -> Result<Client, Failure> {
    Client::connector().with_fail_eagerly().connect(&format!("127.0.0.1:{port}")).await.map_err(failed)
}

fn path_of(number: usize) -> String {
    format!("/compare-{number}")
}

async fn create_paths(port: u16) -> Result<(), Failure> {
    let client = session(port).await?;
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    for number in 0..PATHS {
        client.create(&path_of(number), b"", &options).await.map_err(failed)?;
    }
    Ok(())
}

async fn leader_of(ports: &[u16]) -> Result<usize, Failure> {
    for (at, port) in ports.iter().enumerate() {
        if ask(*port).await.is_ok_and(|said| said.contains("Mode: leader")) {
            return Ok(at);
        }
    }
    Err(Failure::Failed("ZooKeeper has no leader".to_string()))
}

/// What a server says of itself, by its command of four letters.
async fn ask(port: u16) -> std::io::Result<String> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    server.write_all(b"srvr").await?;
    let mut said = String::new();
    server.read_to_string(&mut said).await?;
    Ok(said)
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::of("ZooKeeper", error)
}
