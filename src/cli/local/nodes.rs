//! The nodes of a local cluster, as child processes of this one.

use super::ClusterDir;
use crate::cli::exit::Failure;
use crate::cli::start::PARENT_ENV;
use crate::client::{Client, ClientOptions, NodeState};
use rustix::process::{kill_process, Pid, Signal};
use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long the nodes may take until they serve.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long they may take to stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(25);

/// One child process.
struct Node {
    id: u32,
    child: Child,
    ended: Option<ExitStatus>,
}

/// The children; stopped by `stop`, and killed if they are dropped alive.
pub(in crate::cli) struct Nodes<'a> {
    cluster: &'a ClusterDir,
    nodes: Vec<Node>,
}

impl<'a> Nodes<'a> {
    /// None of them runs yet.
    pub(in crate::cli) fn of(cluster: &'a ClusterDir) -> Nodes<'a> {
        Nodes { cluster, nodes: Vec::new() }
    }

    pub(in crate::cli) fn cluster(&self) -> &ClusterDir {
        self.cluster
    }

    /// Ids and process ids of those that run.
    pub(in crate::cli) fn pids(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.nodes.iter().filter(|node| node.ended.is_none()).map(|node| (node.id, node.child.id()))
    }

    /// Whether none runs any more.
    pub(in crate::cli) fn are_gone(&self) -> bool {
        self.pids().next().is_none()
    }

    /// Starts each one.
    pub(in crate::cli) fn start_all(&mut self) -> Result<(), Failure> {
        (1..=self.cluster.nodes()).try_for_each(|id| self.start(id))
    }

    /// Starts one, which must not run.
    pub(in crate::cli) fn start(&mut self, id: u32) -> Result<(), Failure> {
        let child = self.spawn(id)?;
        self.nodes.retain(|node| node.id != id);
        self.nodes.push(Node { id, child, ended: None });
        self.nodes.sort_by_key(|node| node.id);
        Ok(())
    }

    /// Ends one at once, as `kill -9` does, and waits until it is gone.
    pub(in crate::cli) fn kill(&mut self, id: u32) {
        for node in self.nodes.iter_mut().filter(|node| node.id == id && node.ended.is_none()) {
            let _ = node.child.kill(); // already gone is as good
            node.ended = node.child.wait().ok();
        }
    }

    /// Lets one stand still, as a hung machine does.
    pub(in crate::cli) fn freeze(&self, id: u32) {
        self.signal(id, Signal::STOP);
    }

    /// Lets it go on.
    pub(in crate::cli) fn thaw(&self, id: u32) {
        self.signal(id, Signal::CONT);
    }

    fn signal(&self, id: u32, signal: Signal) {
        let node = self.nodes.iter().find(|node| node.id == id && node.ended.is_none());
        if let Some(pid) = node.and_then(|node| Pid::from_raw(node.child.id() as i32)) {
            let _ = kill_process(pid, signal); // a child that is gone already needs no telling
        }
    }

    fn spawn(&self, id: u32) -> Result<Child, Failure> {
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
    pub(in crate::cli) async fn wait_until_ready(&mut self) -> Result<(), Failure> {
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
                let logs = self.cluster.logs();
                return Err(Failure::failed(format!("the cluster did not start; its logs are in {logs}")));
            }
            if began.elapsed() > READY_WITHIN {
                let ids: Vec<String> = waiting.iter().map(ToString::to_string).collect();
                return Err(Failure::failed(format!(
                    "node {} not ready within {} s; the logs are in {}",
                    ids.join(", "),
                    READY_WITHIN.as_secs(),
                    self.cluster.logs()
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

    /// Says which nodes died since the last look; whether any is dead.
    pub(in crate::cli) fn report_deaths(&mut self) -> bool {
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
    pub(in crate::cli) async fn stop(&mut self) {
        self.nodes.retain(|node| node.ended.is_none());
        if self.nodes.is_empty() {
            return;
        }
        eprintln!("stopping {}", if self.nodes.len() == 1 { "the node" } else { "the nodes" });
        self.pids().for_each(|(id, _)| self.signal(id, Signal::TERM));
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
