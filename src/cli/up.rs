//! `balsa up`: a local cluster of real processes, in the foreground.
//!
//! Writes a configuration per node into `DIR/nodeK/node.toml` once and keeps to it afterwards; starts one child process per
//! node (`balsa start --config ...`), whose words go to `DIR/nodeK/log`; waits until they serve; stops them when it is
//! stopped. A node that dies is reported and left dead: how the others take it is what one wants to see.

use super::exit::Failure;
use super::output::{Format, Out};
use super::start::{read_config, PARENT_ENV};
use super::{signals, Common};
use crate::client::{Client, ClientOptions, NodeState};
use crate::limits::NODES_MAX;
use crate::node::config::{ConfigFile, NodeConfig};
use clap::Args;
use serde_json::json;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const NODES_DEFAULT: u32 = 3;
const PORT_DEFAULT: u16 = 7400;
/// How long the nodes may take until they serve.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long they may take to stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);
/// What to do about a port in use.
const WAY_OUT: &str =
    "stop what listens there, or choose another --port (a folder keeps its ports: with another --dir)";
const POLL: Duration = Duration::from_millis(25);

/// Run a cluster on this machine, in the foreground; Ctrl-C stops it cleanly
#[derive(Debug, Args)]
#[command(after_help = "\
Node k listens for clients on port+(k-1)*10 and for the other nodes on the port above, on 127.0.0.1 only. Its settings,
data and log lie in DIR/nodeK. Run again in the same folder, it goes on with what is there.

Examples:
  balsa up
  balsa up --nodes 5 --dir /tmp/five --port 9000")]
pub(super) struct UpArgs {
    /// How many nodes [default: 3, or as many as DIR holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=NODES_MAX as i64))]
    nodes: Option<u32>,
    /// Where everything lies
    #[arg(long, value_name = "DIR", default_value = "./balsa-data")]
    dir: PathBuf,
    /// The first node's port for clients [default: 7400, or as DIR says]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
}

/// The folder of a local cluster: what it holds, or what was just written into it.
pub(super) struct ClusterDir {
    dir: PathBuf,
    configs: Vec<NodeConfig>,
}

impl ClusterDir {
    /// Opens the folder, or makes it for `nodes` (or else `nodes_default`) nodes. What is asked for must agree with what is
    /// there.
    pub(super) fn open(
        dir: &Path,
        nodes: Option<u32>,
        port: Option<u16>,
        nodes_default: u32,
    ) -> Result<ClusterDir, Failure> {
        let there = (1..=NODES_MAX as u32).take_while(|id| config_file(dir, *id).exists()).count() as u32;
        if there > 0 {
            return ClusterDir::reopen(dir, there, nodes, port);
        }
        let (nodes, port) = (nodes.unwrap_or(nodes_default), port.unwrap_or(PORT_DEFAULT));
        let last = u32::from(port) + (nodes - 1) * 10 + 1;
        if last > u32::from(u16::MAX) {
            return Err(Failure::usage(format!(
                "--port {port} with {nodes} nodes needs ports up to {last}; the highest is {}: choose a lower --port",
                u16::MAX
            )));
        }
        for id in 1..=nodes {
            write_config(dir, id, nodes, port)?;
        }
        ClusterDir::read(dir, nodes)
    }

    fn reopen(dir: &Path, there: u32, nodes: Option<u32>, port: Option<u16>) -> Result<ClusterDir, Failure> {
        let cluster = ClusterDir::read(dir, there)?;
        let founded = cluster.configs[0].nodes.len() as u32;
        if founded != there {
            return Err(Failure::usage(format!(
                "{} was made for {founded} nodes but holds {there} of their node.toml: put back what is missing, or choose \
                 another --dir",
                dir.display()
            )));
        }
        if let Some(nodes) = nodes.filter(|nodes| *nodes != there) {
            return Err(Failure::usage(format!(
                "{} holds a cluster of {there} nodes, not {nodes}: leave --nodes out to go on with it, or choose another --dir",
                dir.display()
            )));
        }
        let first = cluster.configs[0].listen.client.port();
        if let Some(port) = port.filter(|port| *port != first) {
            return Err(Failure::usage(format!(
                "{} holds a cluster whose first port is {first}, not {port}: leave --port out to go on with it, or choose \
                 another --dir",
                dir.display()
            )));
        }
        Ok(cluster)
    }

    fn read(dir: &Path, nodes: u32) -> Result<ClusterDir, Failure> {
        let configs: Result<Vec<NodeConfig>, Failure> =
            (1..=nodes).map(|id| read_config(&config_file(dir, id))).collect();
        let configs = configs?;
        for (at, config) in configs.iter().enumerate() {
            let file = config_file(dir, at as u32 + 1);
            if config.node_id.0 as usize != at + 1 {
                let (id, folder) = (config.node_id, at + 1);
                return Err(Failure::usage(format!("{} is of node {id}; node{folder} belongs there", file.display())));
            }
            if config.nodes != configs[0].nodes {
                let first = config_file(dir, 1);
                return Err(Failure::usage(format!(
                    "{} and {} name different [[nodes]]: make them the same",
                    first.display(),
                    file.display()
                )));
            }
        }
        Ok(ClusterDir { dir: dir.to_path_buf(), configs })
    }

    pub(super) fn nodes(&self) -> u32 {
        self.configs.len() as u32
    }

    pub(super) fn config_file(&self, id: u32) -> PathBuf {
        config_file(&self.dir, id)
    }

    fn log_file(&self, id: u32) -> PathBuf {
        node_dir(&self.dir, id).join("log")
    }

    pub(super) fn client_address(&self, id: u32) -> String {
        self.configs[id as usize - 1].listen.client.to_string()
    }

    /// Whether every port is free, before anything is started.
    pub(super) fn check_ports(&self, way_out: &str) -> Result<(), Failure> {
        self.configs.iter().try_for_each(|config| {
            let listen = [config.listen.client, config.listen.peer];
            listen.into_iter().try_for_each(|address| check_port(address, config.node_id.0, way_out))
        })
    }
}

/// The same before a folder is made for the cluster: it would hold on to ports that can't be had.
pub(super) fn check_ports_of_new(dir: &Path, nodes: u32, port: Option<u16>, way_out: &str) -> Result<(), Failure> {
    if config_file(dir, 1).exists() {
        return Ok(());
    }
    for id in 1..=nodes {
        let listen = ConfigFile::on_loopback(id, nodes, port.unwrap_or(PORT_DEFAULT)).listen;
        // Ports too high for these nodes are refused a moment later, with a better text.
        for address in [listen.client, listen.peer].iter().filter_map(|address| address.parse().ok()) {
            check_port(address, id, way_out)?;
        }
    }
    Ok(())
}

fn check_port(address: SocketAddr, node: u32, way_out: &str) -> Result<(), Failure> {
    // Closed again at once; the node takes it a moment later.
    let Err(error) = TcpListener::bind(address) else { return Ok(()) };
    let why = match error.kind() {
        ErrorKind::AddrInUse => "is in use; does another cluster run there?".to_string(),
        _ => format!("cannot be listened on: {error}"),
    };
    Err(Failure::failed(format!("{address}, wanted by node {node}, {why}\n  nothing was started; {way_out}")))
}

fn node_dir(dir: &Path, id: u32) -> PathBuf {
    dir.join(format!("node{id}"))
}

fn config_file(dir: &Path, id: u32) -> PathBuf {
    node_dir(dir, id).join("node.toml")
}

fn write_config(dir: &Path, id: u32, nodes: u32, port: u16) -> Result<(), Failure> {
    let file = config_file(dir, id);
    let text = ConfigFile::on_loopback(id, nodes, port).to_toml();
    let text = text.map_err(|error| Failure::failed(format!("cannot write a configuration: {error}")))?;
    let written = fs::create_dir_all(node_dir(dir, id)).and_then(|()| fs::write(&file, text));
    written.map_err(|error| Failure::failed(format!("cannot write {}: {error}", file.display())))
}

/// One child process.
struct Node {
    id: u32,
    child: Child,
    ended: Option<ExitStatus>,
}

pub(super) async fn run(common: &Common, args: UpArgs) -> Result<(), Failure> {
    check_ports_of_new(&args.dir, args.nodes.unwrap_or(NODES_DEFAULT), args.port, WAY_OUT)?;
    let cluster = ClusterDir::open(&args.dir, args.nodes, args.port, NODES_DEFAULT)?;
    cluster.check_ports(WAY_OUT)?;
    let mut stop = std::pin::pin!(signals::stop_asked());
    let mut nodes = Nodes { cluster: &cluster, nodes: Vec::new() };
    let result = tokio::select! {
        biased;
        () = &mut stop => Ok(()),
        result = nodes.live(common) => result,
    };
    nodes.stop().await;
    result
}

/// The children; stopped by `stop`, and killed if they are dropped alive.
struct Nodes<'a> {
    cluster: &'a ClusterDir,
    nodes: Vec<Node>,
}

impl Nodes<'_> {
    async fn live(&mut self, common: &Common) -> Result<(), Failure> {
        let started = Instant::now();
        for id in 1..=self.cluster.nodes() {
            let child = self.start(id)?;
            self.nodes.push(Node { id, child, ended: None });
        }
        self.wait_until_ready().await?;
        self.tell(common, started.elapsed())?;
        loop {
            tokio::time::sleep(POLL * 4).await;
            self.report_deaths();
            if self.nodes.iter().all(|node| node.ended.is_some()) {
                return Err(Failure::failed(format!(
                    "all nodes are gone; their logs are in {}/node*/log",
                    self.cluster.dir.display()
                )));
            }
        }
    }

    fn start(&self, id: u32) -> Result<Child, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::failed(format!("cannot find this program's own file: {error}")))?;
        let log_file = self.cluster.log_file(id);
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_file);
        let log = log.and_then(|log| Ok((log.try_clone()?, log)));
        let (out, err) =
            log.map_err(|error| Failure::failed(format!("cannot open {}: {error}", log_file.display())))?;
        let mut command = Command::new(program);
        command.arg("start").arg("--config").arg(self.cluster.config_file(id));
        command.env(PARENT_ENV, std::process::id().to_string());
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // Ctrl-C reaches only us: we stop the nodes, in order, and say so.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn().map_err(|error| Failure::failed(format!("cannot start node {id}: {error}")))
    }

    /// Waits until each node serves and sees all others.
    async fn wait_until_ready(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let mut waiting: Vec<u32> = (1..=self.cluster.nodes()).collect();
        let clients: Result<Vec<Client>, _> = (1..=self.cluster.nodes()).map(|id| self.client_of(id)).collect();
        let clients = clients?;
        loop {
            let mut left = Vec::new();
            for id in waiting {
                let answer = clients[id as usize - 1].status(false).await;
                let ready = answer.is_ok_and(|status| {
                    !status.nodes.is_empty() && status.nodes.iter().all(|node| node.state == NodeState::Up)
                });
                if !ready {
                    left.push(id);
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            waiting = left;
            if self.report_deaths() {
                let logs = self.cluster.dir.display();
                return Err(Failure::failed(format!("the cluster did not start; its logs are in {logs}/node*/log")));
            }
            if began.elapsed() > READY_WITHIN {
                let ids: Vec<String> = waiting.iter().map(ToString::to_string).collect();
                return Err(Failure::failed(format!(
                    "node {} not ready within {} s; the logs are in {}/node*/log",
                    ids.join(", "),
                    READY_WITHIN.as_secs(),
                    self.cluster.dir.display()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn client_of(&self, id: u32) -> Result<Client, Failure> {
        let options = ClientOptions {
            timeout: Duration::from_millis(500),
            unreachable_timeout: Duration::ZERO,
            attempt_timeout: Duration::from_millis(500),
            ..ClientOptions::default()
        };
        Ok(Client::connect(vec![self.cluster.client_address(id)], options)?)
    }

    fn tell(&self, common: &Common, took: Duration) -> Result<(), Failure> {
        let mut out = Out::new();
        if common.output == Format::Json {
            let nodes: Vec<_> = (self.nodes.iter())
                .map(|node| json!({"id": node.id, "address": self.cluster.client_address(node.id), "pid": node.child.id()}))
                .collect();
            out.json(&json!({ "nodes": nodes }))?;
            return Ok(out.flush()?);
        }
        let count = self.nodes.len();
        let noun = if count == 1 { "node" } else { "nodes" };
        out.line(&format!(
            "{count} {noun} up after {:.1} s, data in {}",
            took.as_secs_f64(),
            self.cluster.dir.display()
        ))?;
        for node in &self.nodes {
            let (address, log) = (self.cluster.client_address(node.id), self.cluster.log_file(node.id));
            out.line(&format!("  node {}  {address}  pid {}  log {}", node.id, node.child.id(), log.display()))?;
        }
        let servers: Vec<String> = (1..=self.cluster.nodes()).map(|id| self.cluster.client_address(id)).collect();
        out.line("")?;
        out.line("Try in another terminal:")?;
        if self.cluster.configs[0].listen.client.port() != PORT_DEFAULT {
            out.line(&format!("  export BALSA_SERVERS={}", servers.join(",")))?;
        }
        out.line("  balsa topic create access --partitions 4")?;
        out.line("  seq 100000 | balsa append access")?;
        out.line("  balsa read access --follow")?;
        out.line(&format!("  balsa status --watch          and then: kill -9 {}", self.nodes[0].child.id()))?;
        out.line("")?;
        out.line("Ctrl-C stops the nodes cleanly; `balsa up` goes on with their data.")?;
        Ok(out.flush()?)
    }

    /// Says which nodes died since the last look; whether any is dead.
    fn report_deaths(&mut self) -> bool {
        for node in self.nodes.iter_mut().filter(|node| node.ended.is_none()) {
            if let Ok(Some(status)) = node.child.try_wait() {
                node.ended = Some(status);
                let (id, how) = (node.id, ending(status));
                eprintln!("node {id} {how}; its log: {}", self.cluster.log_file(id).display());
                eprintln!("  start it again with: balsa start --config {}", self.cluster.config_file(id).display());
            }
        }
        self.nodes.iter().any(|node| node.ended.is_some())
    }

    /// Asks all nodes to stop, waits for them, and kills those that do not.
    async fn stop(&mut self) {
        self.nodes.retain(|node| node.ended.is_none());
        if self.nodes.is_empty() {
            return;
        }
        eprintln!("stopping {}", if self.nodes.len() == 1 { "the node" } else { "the nodes" });
        self.nodes.iter().for_each(|node| ask_to_stop(&node.child));
        let began = Instant::now();
        while began.elapsed() < STOPPED_WITHIN {
            for node in self.nodes.iter_mut().filter(|node| node.ended.is_none()) {
                node.ended = node.child.try_wait().ok().flatten();
            }
            if self.nodes.iter().all(|node| node.ended.is_some()) {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        for node in &mut self.nodes {
            match node.ended {
                Some(status) if status.success() => {}
                Some(status) => eprintln!(
                    "node {} {}; its log: {}",
                    node.id,
                    ending(status),
                    self.cluster.log_file(node.id).display()
                ),
                None => {
                    eprintln!("node {} did not stop within {} s and is killed", node.id, STOPPED_WITHIN.as_secs());
                    let _ = node.child.kill();
                    let _ = node.child.wait();
                }
            }
        }
        if self.nodes.iter().all(|node| node.ended.is_some_and(|status| status.success())) {
            eprintln!("stopped cleanly after {:.1} s", began.elapsed().as_secs_f64());
        }
        self.nodes.clear();
    }
}

impl Drop for Nodes<'_> {
    fn drop(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.ended.is_none()) {
            // Already gone is as good.
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

/// How a process ended, in words.
fn ending(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("died (signal {signal})");
    }
    match status.code() {
        Some(0) => "stopped".to_string(),
        Some(code) => format!("ended with exit code {code}"),
        None => "died".to_string(),
    }
}

fn ask_to_stop(child: &Child) {
    #[cfg(unix)]
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // A child that is gone already needs no asking.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    #[cfg(not(unix))]
    let _ = child;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own for one test, gone afterwards.
    struct TempDir(PathBuf);

    impl TempDir {
        fn new(name: &str) -> TempDir {
            let dir = std::env::temp_dir().join(format!("balsa-up-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            TempDir(dir)
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_second_up_goes_on_with_what_is_there() {
        let dir = TempDir::new("again");
        let made = ClusterDir::open(&dir.0, Some(5), Some(9000), 3).ok().unwrap();
        assert_eq!((made.nodes(), made.client_address(5)), (5, "127.0.0.1:9040".to_string()));
        let again = ClusterDir::open(&dir.0, None, None, 3).ok().unwrap();
        assert_eq!((again.nodes(), again.client_address(1)), (5, "127.0.0.1:9000".to_string()));
    }

    #[test]
    fn contradicting_what_is_there_is_refused() {
        let dir = TempDir::new("contradiction");
        assert!(ClusterDir::open(&dir.0, Some(3), Some(9000), 3).is_ok());
        let nodes = ClusterDir::open(&dir.0, Some(5), None, 3).err().unwrap();
        assert!(nodes.message().contains("a cluster of 3 nodes, not 5"), "{}", nodes.message());
        let port = ClusterDir::open(&dir.0, None, Some(9100), 3).err().unwrap();
        assert!(port.message().contains("first port is 9000, not 9100"), "{}", port.message());
        fs::remove_dir_all(node_dir(&dir.0, 3)).unwrap();
        let missing = ClusterDir::open(&dir.0, None, None, 3).err().unwrap();
        assert!(missing.message().contains("made for 3 nodes but holds 2"), "{}", missing.message());
    }

    #[test]
    fn a_port_in_use_is_found_before_anything_starts() {
        let dir = TempDir::new("port");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let failure = check_ports_of_new(&dir.0, 1, Some(port), WAY_OUT).err().unwrap();
        assert!(failure.message().contains(&format!("127.0.0.1:{port}, wanted by node 1, is in use")));
        assert!(!dir.0.exists(), "no folder holds on to that port");
    }
}
