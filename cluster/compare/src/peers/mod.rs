//! The peers, one file each: how a cluster of three is started with durable settings, and how it is loaded.

mod balsa;
mod bound;
mod etcd;
mod nats;
mod rabbitmq;
mod zookeeper;

pub use balsa::Balsa;
pub use bound::{Bound, Over};

use crate::command_line::Options;
use crate::failure::Failure;
use crate::ground::Ground;
use crate::load::{Load, Measured, Timing};
use crate::servers::Servers;
use async_trait::async_trait;
use std::future::Future;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Nodes of every cluster.
pub const NODES: usize = 3;

/// Between two looks at whether a server is ready.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A cluster that can be loaded.
#[async_trait]
pub trait Peer: Send {
    /// What `--only` and JSON call it.
    fn key(&self) -> &'static str;

    /// What the table calls it.
    fn title(&self) -> &'static str;

    /// False if it acknowledges what is on no disk yet: its figures are of another thing, and are labelled so.
    fn syncs(&self) -> bool {
        true
    }

    /// False if there is nobody to take over from a leader that is killed.
    fn elects(&self) -> bool {
        true
    }

    /// Looks for its programs, and returns their version.
    ///
    /// # Errors
    /// `Absent`, with what to install.
    fn find(&mut self) -> Result<String, Failure>;

    /// Starts the cluster on a directory that is empty, and returns when it takes appends.
    ///
    /// # Errors
    /// `Absent` if its version can't do what is asked; else what its servers or their clients say.
    async fn start(&mut self, ground: &Ground) -> Result<(), Failure>;

    /// Puts a load to it and measures.
    ///
    /// # Errors
    /// What its servers or its client say.
    async fn load(&mut self, load: &Load, timing: Timing) -> Result<Measured, Failure>;

    /// The node that leads what `attempt` appends to.
    ///
    /// # Errors
    /// `Failed` if there is none.
    async fn leader(&mut self) -> Result<usize, Failure>;

    /// Appends one record, through that node if it matters. Gives up when it is dropped.
    ///
    /// # Errors
    /// What its client says, such as that the node is gone.
    async fn attempt(&mut self, node: usize) -> Result<(), Failure>;

    /// Its processes: their processor time, and their end.
    fn servers(&mut self) -> &mut Servers;

    /// Kills the cluster and drops what its clients hold.
    fn stop(&mut self) {
        self.servers().stop();
    }
}

/// All peers that Balsa is compared with, in the table's order.
pub fn all(options: &Options) -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(Bound::new(options, Over::Tcp)),
        Box::new(Bound::new(options, Over::Grpc)),
        Box::new(etcd::Etcd::new(options)),
        Box::new(rabbitmq::RabbitMq::new(options, rabbitmq::Kind::QuorumQueue)),
        Box::new(zookeeper::ZooKeeper::new(options)),
        Box::new(nats::Nats::new(options, nats::Syncing::Always)),
        Box::new(nats::Nats::new(options, nats::Syncing::Default)),
        Box::new(rabbitmq::RabbitMq::new(options, rabbitmq::Kind::Stream)),
    ]
}

/// Keys of all peers.
pub const KEYS: &[&str] =
    &["bound", "bound-grpc", "etcd", "rabbitmq", "zookeeper", "nats", "nats-default", "rabbitmq-stream"];

/// Tries until it succeeds, watching that no server dies meanwhile.
///
/// # Errors
/// `Failed` with the last failure when `patience` is over, or with the last words of a server that ended.
pub(crate) async fn until_ready<T, F>(
    servers: &mut Servers,
    patience: Duration,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let deadline = Instant::now() + patience;
    loop {
        servers.check()?;
        let left = deadline.saturating_duration_since(Instant::now());
        let last = match tokio::time::timeout(left, attempt()).await {
            Ok(Ok(ready)) => return Ok(ready),
            Ok(Err(failure)) => failure.told(),
            Err(_) => "no answer".to_string(),
        };
        if Instant::now() + LOOK_EVERY > deadline {
            return Err(servers.blame(Failure::Failed(format!("not ready within {patience:?}: {last}"))));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What a program says of its version when asked: the first word that begins with a digit, or with a `v` and a digit.
pub(crate) fn version_of(asking: &mut Command) -> String {
    let said = asking.stdin(Stdio::null()).output();
    first_version(&said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default())
}

fn first_version(text: &str) -> String {
    let words = text.split_whitespace().map(|word| word.trim_start_matches('v'));
    let mut numbered = words.filter(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    numbered.next().unwrap_or("of unknown version").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(first_version("etcd Version: 3.4.23\nGit SHA: x"), "3.4.23");
        assert_eq!(first_version("nats-server: v2.9.10"), "2.9.10");
        assert_eq!(first_version("balsa 0.1.0"), "0.1.0");
        assert_eq!(first_version("nothing"), "of unknown version");
    }

    #[test]
    fn the_keys_are_those_of_the_peers() {
        let options = Options::by_default();
        let keys: Vec<&str> = all(&options).iter().map(|peer| peer.key()).collect();
        assert_eq!(keys, KEYS);
    }
}
