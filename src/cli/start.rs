//! `balsa start`: one node, from its configuration file, or alone on this machine.

use super::exit::Failure;
use super::local::{check_ports_of_new, ClusterDir};
use super::signals;
use crate::clock::Clock;
use crate::disk::real::RealDisk;
use crate::node::config::NodeConfig;
use crate::node::{Sizes, World};
use crate::telemetry;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a node without a configuration keeps everything.
const DIR_DEFAULT: &str = "./balsa-data";
/// What to do about damage, as long as a node can't repair itself from the others.
const DAMAGE_WAY_OUT: &str =
    "nothing of it was dropped: put back the very files that this node left, or leave it stopped and keep \
    its directory; the other nodes hold the same records";
/// Names the process that a node stops with; set by `balsa up` for its children.
pub(super) const PARENT_ENV: &str = "BALSA_PARENT_PID";

/// Start one node, in the foreground; Ctrl-C or SIGTERM stops it cleanly
#[derive(Debug, Args)]
#[command(after_help = "\
Without --config it is a cluster of one, on 127.0.0.1:7400, with its data in ./balsa-data.
cluster/ in the sources holds three such files, a script and a systemd unit.

Example:
  balsa start --config node1.toml")]
pub(super) struct StartArgs {
    /// The node's configuration file (TOML)
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) async fn run(args: StartArgs) -> Result<(), Failure> {
    let file = match args.config {
        Some(file) => file,
        None => alone()?,
    };
    let config = read_config(&file)?;
    let logger = telemetry::stderr_logger(config.log_level);
    let shutdown = async {
        tokio::select! {
            () = signals::stop_asked() => {}
            () = parent_gone() => {}
        }
    };
    let disk = RealDisk::new().map_err(|error| Failure::failed(format!("cannot start the disk's threads: {error}")))?;
    let world = World {
        disk: Arc::new(disk),
        clock: Clock::default(),
        seed: rand::random(),
        observer: None,
        sizes: Sizes::default(),
        loops: super::loops(),
    };
    let place = (config.node_id, config.data_dir.display().to_string());
    crate::node::run(config, world, logger, shutdown).await.map_err(|error| {
        let message = format!("node {} in {}: {}", place.0, place.1, telemetry::chain(&error));
        if error.is_corruption() {
            Failure::corruption(format!("{message}\n  {DAMAGE_WAY_OUT}"))
        } else {
            Failure::failed(message)
        }
    })
}

/// Reads and checks a configuration file.
pub(super) fn read_config(file: &Path) -> Result<NodeConfig, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("cannot read the configuration {}: {error}", file.display())))?;
    NodeConfig::from_toml(&text, file).map_err(|error| Failure::usage(error.to_string()))
}

/// The configuration of a cluster of one, written if there is none.
fn alone() -> Result<PathBuf, Failure> {
    let way_out = "stop what listens there, or start with other addresses in a --config";
    check_ports_of_new(Path::new(DIR_DEFAULT), 1, None, way_out)?;
    let dir = ClusterDir::open(Path::new(DIR_DEFAULT), None, None, 1)?;
    if dir.nodes() != 1 {
        return Err(Failure::usage(format!(
            "{DIR_DEFAULT} holds a cluster of {} nodes: `balsa up` starts them all, `balsa start --config {}` the first",
            dir.nodes(),
            dir.config_file(1).display()
        )));
    }
    dir.check_ports(way_out)?;
    eprintln!("a cluster of one: listens on {}, data in {DIR_DEFAULT}", dir.client_address(1));
    Ok(dir.config_file(1))
}

/// Resolves when the `balsa up` that started this node has died: nobody would stop the node then.
async fn parent_gone() {
    #[cfg(unix)]
    {
        let parent = std::env::var(PARENT_ENV).ok().and_then(|pid| pid.parse::<i32>().ok());
        if let Some(parent) = parent {
            let is_there = || rustix::process::getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent);
            while is_there() {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
            return;
        }
    }
    std::future::pending().await
}
