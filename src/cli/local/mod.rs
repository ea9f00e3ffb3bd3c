//! Clusters of real processes on this machine: a folder with a configuration per node, and the nodes as children.
//!
//! Writes a configuration per node into `DIR/nodeK/node.toml` once and keeps to it afterwards. For `balsa up`, for a node alone, and
//! for measurements that have to kill a leader.

mod nodes;

pub(super) use nodes::Nodes;

use super::exit::Failure;
use super::start::read_config;
use crate::limits::NODES_MAX;
use crate::node::config::{ConfigFile, NodeConfig};
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// The first node's port for clients, unless somebody says otherwise.
pub(super) const PORT_DEFAULT: u16 = 7400;

/// The folder of a local cluster: what it holds, or what was just written into it.
pub(in crate::cli) struct ClusterDir {
    dir: PathBuf,
    configs: Vec<NodeConfig>,
}

impl ClusterDir {
    /// Opens the folder, or makes it for `nodes` (or else `nodes_default`) nodes. What is asked for must agree with what is
    /// there.
    pub(in crate::cli) fn open(
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

    pub(in crate::cli) fn nodes(&self) -> u32 {
        self.configs.len() as u32
    }

    pub(in crate::cli) fn config_file(&self, id: u32) -> PathBuf {
        config_file(&self.dir, id)
    }

    pub(in crate::cli) fn log_file(&self, id: u32) -> PathBuf {
        node_dir(&self.dir, id).join("log")
    }

    /// Where everything lies.
    pub(in crate::cli) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the nodes' logs are, in words.
    pub(in crate::cli) fn logs(&self) -> String {
        format!("{}/node*/log", self.dir.display())
    }

    /// The first node's port for clients.
    pub(in crate::cli) fn port(&self) -> u16 {
        self.configs[0].listen.client.port()
    }

    /// All nodes' addresses for clients.
    pub(in crate::cli) fn servers(&self) -> Vec<String> {
        (1..=self.nodes()).map(|id| self.client_address(id)).collect()
    }

    pub(in crate::cli) fn client_address(&self, id: u32) -> String {
        self.configs[id as usize - 1].listen.client.to_string()
    }

    /// Whether every port is free, before anything is started.
    pub(in crate::cli) fn check_ports(&self, way_out: &str) -> Result<(), Failure> {
        self.configs.iter().try_for_each(|config| {
            let listen = [config.listen.client, config.listen.peer];
            listen.into_iter().try_for_each(|address| check_port(address, config.node_id.0, way_out))
        })
    }
}

/// The same before a folder is made for the cluster: it would hold on to ports that can't be had.
pub(in crate::cli) fn check_ports_of_new(
    dir: &Path,
    nodes: u32,
    port: Option<u16>,
    way_out: &str,
) -> Result<(), Failure> {
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
        let failure = check_ports_of_new(&dir.0, 1, Some(port), "choose another --port").err().unwrap();
        assert!(failure.message().contains(&format!("127.0.0.1:{port}, wanted by node 1, is in use")));
        assert!(!dir.0.exists(), "no folder holds on to that port");
    }
}
