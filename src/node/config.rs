//! What a node is told before it starts: who it is, where it listens, which nodes founded the cluster.
//!
//! Refuses unknown keys, and settings that contradict each other, with file, line, key and the way out. Reading the file
//! is the command line's duty; this module sees only text. A relative data directory is relative to the file's folder.

use crate::ids::NodeId;
use crate::limits::{ADDRESS_BYTES_MAX, NODES_MAX, SEGMENT_BYTES};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Sizes that a segment may be sealed at: larger than any entry, small enough to be scanned at a start.
const SEGMENT_BYTES_RANGE: std::ops::RangeInclusive<u64> = (4 << 20)..=(1 << 30);

/// A node's settings, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Who this node is.
    pub node_id: NodeId,
    /// Where its data lies.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: Listen,
    /// The nodes that found the cluster, by id; the same on each. Invariant: this one is among them.
    pub nodes: Vec<NodeAddresses>,
    /// Least level of the lines it logs.
    pub log_level: slog::Level,
    /// Length of one tick of the consensus clock, in milliseconds.
    pub tick_ms: u64,
    /// A follower campaigns after so many ticks without its leader, up to twice as many.
    pub election_ticks: usize,
    /// Appends stop when fewer bytes than this are free on the disk.
    pub reserve_bytes: u64,
    /// Size at which a segment file is sealed.
    pub segment_bytes: u64,
}

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// For clients.
    pub client: SocketAddr,
    /// For the other nodes.
    pub peer: SocketAddr,
}

/// One of the nodes that found a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Its id.
    pub id: NodeId,
    /// Where clients reach it.
    pub client: String,
    /// Where the other nodes reach it.
    pub peer: String,
}

/// Why a configuration is refused. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is no TOML, or has a key that does not exist, lacks one, or has a value of the wrong kind.
    #[error("{}: {error}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What is wrong, with line and key.
        error: Box<toml::de::Error>,
    },
    /// A value is not allowed, or contradicts another one.
    #[error("{}, line {line}: {key} {problem}; {way_out}", file.display())]
    Refused {
        /// The file.
        file: PathBuf,
        /// The line, from one.
        line: usize,
        /// The key and its value.
        key: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        way_out: String,
    },
}

/// The file, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    node_id: Spanned<u32>,
    data_dir: Spanned<PathBuf>,
    listen: RawListen,
    nodes: Vec<RawNode>,
    log_level: Option<Spanned<String>>,
    tick_ms: Option<Spanned<u64>>,
    election_ticks: Option<Spanned<u32>>,
    reserve_bytes: Option<u64>,
    segment_bytes: Option<Spanned<u64>>,
    #[serde(default)]
    insecure_beyond_loopback: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    client: Spanned<String>,
    peer: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    id: Spanned<u32>,
    client: Spanned<String>,
    peer: Spanned<String>,
}

impl NodeConfig {
    /// Length of a tick unless the file says otherwise, in milliseconds.
    pub const TICK_MS: u64 = 100;
    /// Ticks to an election unless the file says otherwise.
    pub const ELECTION_TICKS: u32 = 6;
    /// Bytes kept free on the disk unless the file says otherwise.
    pub const RESERVE_BYTES: u64 = 256 << 20;

    /// Reads a configuration. `file` is where the text comes from: named in errors, and what a relative data directory is
    /// relative to.
    ///
    /// # Errors
    /// If anything in it is unknown, missing, not allowed or contradictory.
    pub fn from_toml(text: &str, file: &Path) -> Result<NodeConfig, ConfigError> {
        let raw: Raw = toml::from_str(text)
            .map_err(|error| ConfigError::Unreadable { file: file.to_path_buf(), error: Box::new(error) })?;
        let checker = Checker { text, file };
        checker.nodes(&raw)?;
        let (tick_ms, election_ticks) = checker.ticks(&raw)?;
        let client = checker.listen("listen.client", &raw.listen.client, raw.insecure_beyond_loopback)?;
        let peer = checker.listen("listen.peer", &raw.listen.peer, raw.insecure_beyond_loopback)?;
        if client == peer {
            let problem = "is where it listens for clients too";
            return Err(checker.refuse("listen.peer", &raw.listen.peer, problem, "give the two doors different ports"));
        }
        if raw.data_dir.get_ref().as_os_str().is_empty() {
            return Err(checker.refuse("data_dir", &raw.data_dir, "is empty", "name a folder for this node alone"));
        }
        let folder = file.parent().unwrap_or_else(|| Path::new(""));
        let mut nodes: Vec<NodeAddresses> = raw.nodes.into_iter().map(NodeAddresses::from).collect();
        nodes.sort_by_key(|node| node.id);
        Ok(NodeConfig {
            node_id: NodeId(raw.node_id.into_inner()),
            data_dir: folder.join(raw.data_dir.into_inner()),
            listen: Listen { client, peer },
            nodes,
            log_level: checker.log_level(raw.log_level.as_ref())?,
            tick_ms,
            election_ticks,
            reserve_bytes: raw.reserve_bytes.unwrap_or(NodeConfig::RESERVE_BYTES),
            segment_bytes: checker.segment_bytes(raw.segment_bytes.as_ref())?,
        })
    }

    /// This node's own entry among the founding nodes.
    ///
    /// # Panics
    /// If there is none, which [`NodeConfig::from_toml`] refuses.
    #[must_use]
    pub fn me(&self) -> &NodeAddresses {
        let me = self.nodes.iter().find(|node| node.id == self.node_id);
        me.expect("a node is among the founding nodes")
    }

    /// The longest that a follower waits for its leader before it campaigns.
    #[must_use]
    pub fn election_timeout_ms(&self) -> u64 {
        self.tick_ms * self.election_ticks as u64 * 2
    }
}

impl From<RawNode> for NodeAddresses {
    fn from(raw: RawNode) -> NodeAddresses {
        let (client, peer) = (raw.client.into_inner(), raw.peer.into_inner());
        NodeAddresses { id: NodeId(raw.id.into_inner()), client, peer }
    }
}

/// Checks what TOML can't, and knows where in the file it stands.
struct Checker<'a> {
    text: &'a str,
    file: &'a Path,
}

impl Checker<'_> {
    fn refuse<T: std::fmt::Debug>(&self, key: &str, value: &Spanned<T>, problem: &str, way_out: &str) -> ConfigError {
        let before = self.text.as_bytes().get(..value.span().start).unwrap_or_default();
        ConfigError::Refused {
            file: self.file.to_path_buf(),
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            key: format!("{key} = {:?}", value.get_ref()),
            problem: problem.to_string(),
            way_out: way_out.to_string(),
        }
    }

    fn nodes(&self, raw: &Raw) -> Result<(), ConfigError> {
        if raw.nodes.len() > NODES_MAX {
            let problem = format!("stands above {} [[nodes]]; at most {NODES_MAX} are allowed", raw.nodes.len());
            return Err(self.refuse("node_id", &raw.node_id, &problem, "take some away"));
        }
        let mut addresses: Vec<(&str, u32)> = Vec::new();
        for (at, node) in raw.nodes.iter().enumerate() {
            if *node.id.get_ref() == 0 {
                return Err(self.refuse("nodes.id", &node.id, "is no node id", "number the nodes from 1"));
            }
            if raw.nodes[..at].iter().any(|other| other.id.get_ref() == node.id.get_ref()) {
                return Err(self.refuse("nodes.id", &node.id, "stands there twice", "give each node an id of its own"));
            }
            for (key, address) in [("nodes.client", &node.client), ("nodes.peer", &node.peer)] {
                self.address(key, address)?;
                let text = address.get_ref().as_str();
                if let Some((_, other)) = addresses.iter().find(|(known, _)| *known == text) {
                    let problem = format!("is an address of node {other} already");
                    return Err(self.refuse(key, address, &problem, "give every door an address of its own"));
                }
                addresses.push((text, *node.id.get_ref()));
            }
        }
        if !raw.nodes.iter().any(|node| node.id.get_ref() == raw.node_id.get_ref()) {
            let ids: Vec<String> = raw.nodes.iter().map(|node| node.id.get_ref().to_string()).collect();
            let problem = format!("is not among the [[nodes]] ({})", ids.join(", "));
            let way_out = "add a [[nodes]] entry with its id, client and peer, or correct node_id";
            return Err(self.refuse("node_id", &raw.node_id, &problem, way_out));
        }
        Ok(())
    }

    fn address(&self, key: &str, address: &Spanned<String>) -> Result<(), ConfigError> {
        let text = address.get_ref();
        let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
        if text.len() > ADDRESS_BYTES_MAX {
            let problem = format!("is {} bytes long; {ADDRESS_BYTES_MAX} are allowed", text.len());
            return Err(self.refuse(key, address, &problem, "give a shorter host name, or its number"));
        }
        match port {
            None | Some(0_u16) => Err(self.refuse(
                key,
                address,
                "is no host:port that others can reach",
                "write it as in \"127.0.0.1:7400\"",
            )),
            Some(_) => Ok(()),
        }
    }

    fn listen(&self, key: &str, address: &Spanned<String>, insecure: bool) -> Result<SocketAddr, ConfigError> {
        let Ok(parsed) = address.get_ref().parse::<SocketAddr>() else {
            let way_out = "write a numeric address and a port, as in \"127.0.0.1:7400\"";
            return Err(self.refuse(key, address, "is no address to listen on", way_out));
        };
        if parsed.port() == 0 {
            return Err(self.refuse(key, address, "has no port", "name the port that the other nodes are told of"));
        }
        if !parsed.ip().is_loopback() && !insecure {
            let problem =
                "lies beyond this machine, and there is no TLS yet: anybody who reaches it could read and write";
            let way_out = "listen on 127.0.0.1, or set insecure_beyond_loopback = true if the network is trusted";
            return Err(self.refuse(key, address, problem, way_out));
        }
        Ok(parsed)
    }

    fn ticks(&self, raw: &Raw) -> Result<(u64, usize), ConfigError> {
        if let Some(tick) = raw.tick_ms.as_ref().filter(|tick| !(5..=1_000).contains(tick.get_ref())) {
            return Err(self.refuse(
                "tick_ms",
                tick,
                "lies outside 5 to 1000",
                "leave it out: 100 suits most networks",
            ));
        }
        // Heartbeats come every tick, behind an append every other one; a follower must be able to miss several of them without calling an election.
        if let Some(ticks) = raw.election_ticks.as_ref().filter(|ticks| !(6..=1_000).contains(ticks.get_ref())) {
            let problem = "lies outside 6 to 1000: elections would come between two heartbeats, or never";
            return Err(self.refuse("election_ticks", ticks, problem, "leave it out: 6 suits most networks"));
        }
        let tick_ms = raw.tick_ms.as_ref().map_or(NodeConfig::TICK_MS, |ticks| *ticks.get_ref());
        let election_ticks = raw.election_ticks.as_ref().map_or(NodeConfig::ELECTION_TICKS, |ticks| *ticks.get_ref());
        Ok((tick_ms, election_ticks as usize))
    }

    fn segment_bytes(&self, bytes: Option<&Spanned<u64>>) -> Result<u64, ConfigError> {
        let Some(bytes) = bytes else { return Ok(SEGMENT_BYTES) };
        if SEGMENT_BYTES_RANGE.contains(bytes.get_ref()) {
            return Ok(*bytes.get_ref());
        }
        let problem = "lies outside 4194304 to 1073741824";
        Err(self.refuse("segment_bytes", bytes, problem, "leave it out: 134217728 suits most disks"))
    }

    fn log_level(&self, level: Option<&Spanned<String>>) -> Result<slog::Level, ConfigError> {
        let Some(level) = level else { return Ok(slog::Level::Info) };
        level.get_ref().parse().map_err(|()| {
            let way_out = "choose one of critical, error, warning, info, debug, trace";
            self.refuse("log_level", level, "is no level", way_out)
        })
    }
}

/// A configuration file to be written, for a cluster that `balsa up` makes.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigFile {
    /// Who the node is.
    pub node_id: u32,
    /// Where its data lies, relative to the file's folder.
    pub data_dir: String,
    /// Where it listens.
    pub listen: ListenSection,
    /// The founding nodes.
    pub nodes: Vec<NodeSection>,
}

/// Where a node listens.
#[derive(Clone, Debug, Serialize)]
pub struct ListenSection {
    /// For clients.
    pub client: String,
    /// For the other nodes.
    pub peer: String,
}

/// One of the founding nodes.
#[derive(Clone, Debug, Serialize)]
pub struct NodeSection {
    /// Its id.
    pub id: u32,
    /// Where clients reach it.
    pub client: String,
    /// Where the other nodes reach it.
    pub peer: String,
}

impl ConfigFile {
    /// Node `id` of `nodes` on the loopback address: node k listens for clients on `port` + (k-1)*10, for peers one above.
    #[must_use]
    pub fn on_loopback(id: u32, nodes: u32, port: u16) -> ConfigFile {
        let (client, peer) = loopback_addresses(id, port);
        let sections = (1..=nodes).map(|id| {
            let (client, peer) = loopback_addresses(id, port);
            NodeSection { id, client, peer }
        });
        let (listen, nodes) = (ListenSection { client, peer }, sections.collect());
        ConfigFile { node_id: id, data_dir: "data".to_string(), listen, nodes }
    }

    /// The file's text.
    ///
    /// # Errors
    /// Never for what [`ConfigFile::on_loopback`] makes.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

fn loopback_addresses(id: u32, port: u16) -> (String, String) {
    let client = u32::from(port) + (id - 1) * 10;
    (format!("127.0.0.1:{client}"), format!("127.0.0.1:{}", client + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
node_id = 2
data_dir = "data"
[listen]
client = "127.0.0.1:7410"
peer = "127.0.0.1:7411"
[[nodes]]
id = 2
client = "127.0.0.1:7410"
peer = "127.0.0.1:7411"
[[nodes]]
id = 1
client = "127.0.0.1:7400"
peer = "127.0.0.1:7401"
"#;

    fn refusal(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        let text = GOOD.replacen(from, to, 1);
        NodeConfig::from_toml(&text, Path::new("dir/node.toml")).unwrap_err().to_string()
    }

    #[test]
    fn a_good_file_is_read_and_its_data_lies_beside_it() {
        let config = NodeConfig::from_toml(GOOD, Path::new("some/dir/node.toml")).unwrap();
        assert_eq!(config.node_id, NodeId(2));
        assert_eq!(config.data_dir, Path::new("some/dir/data"));
        assert_eq!(config.nodes.iter().map(|node| node.id.0).collect::<Vec<_>>(), [1, 2], "sorted by id");
    }

    #[test]
    fn what_up_writes_is_read_back() {
        let text = ConfigFile::on_loopback(3, 3, 7400).to_toml().unwrap();
        let config = NodeConfig::from_toml(&text, Path::new("node3/node.toml")).unwrap();
        assert_eq!(config.listen.client.to_string(), "127.0.0.1:7420");
        assert_eq!(config.listen.peer.to_string(), "127.0.0.1:7421");
        assert_eq!(config.nodes.len(), 3);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let text = refusal("data_dir", "data_dri = 1\ndata_dir");
        assert!(text.contains("dir/node.toml") && text.contains("line 3") && text.contains("data_dri"), "{text}");
        let text = refusal("id = 1", "id = 1\nweight = 3");
        assert!(text.contains("weight"), "{text}");
    }

    #[test]
    fn contradictions_are_refused_with_line_key_and_way_out() {
        for (from, to, expected) in [
            ("id = 1", "id = 2", "line 12: nodes.id = 2 stands there twice"),
            ("node_id = 2", "node_id = 3", "line 2: node_id = 3 is not among the [[nodes]] (2, 1)"),
            ("client = \"127.0.0.1:7400\"", "client = \"127.0.0.1:7410\"", "is an address of node 2 already"),
            ("peer = \"127.0.0.1:7401\"", "peer = \"7401\"", "is no host:port"),
            ("peer = \"127.0.0.1:7411\"", "peer = \"127.0.0.1:7410\"", "line 6: listen.peer"),
            ("client = \"127.0.0.1:7410\"", "client = \"0.0.0.0:7410\"", "insecure_beyond_loopback = true"),
            ("client = \"127.0.0.1:7410\"", "client = \"localhost\"", "is no address to listen on"),
            ("node_id = 2", "node_id = 2\nelection_ticks = 2", "line 3: election_ticks = 2 lies outside 6 to 1000"),
            ("node_id = 2", "node_id = 2\ntick_ms = 0", "tick_ms = 0 lies outside 5 to 1000"),
            ("node_id = 2", "node_id = 2\nlog_level = \"loud\"", "critical, error"),
        ] {
            let text = refusal(from, to);
            assert!(text.contains(expected), "{to}: {text}");
        }
    }

    #[test]
    fn beyond_loopback_must_be_asked_for_by_name() {
        let text = GOOD.replacen("127.0.0.1:7410", "0.0.0.0:7410", 1);
        let text = format!("insecure_beyond_loopback = true\n{text}");
        assert!(NodeConfig::from_toml(&text, Path::new("node.toml")).is_ok());
    }
}
