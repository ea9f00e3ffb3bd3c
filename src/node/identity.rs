//! Whose data directory this is: the lock, the format's version, the node, its incarnation, and its cluster.
//!
//! `IDENTITY` is a small text file that ends with its own checksum, and is replaced whole. It is written before anything
//! else, so a directory that holds something but no identity has lost it, and is refused rather than started empty
//! (promise 6); and so is one whose journal should be there and is not. A wiped directory gets a new incarnation, by which
//! the other nodes know it for a new node (promise 7).
//!
//! ```text
//! balsa identity 1                                   format version
//! node 2
//! incarnation 5d1c...                                16 bytes in hex
//! cluster 77a0...                                    from here on only once the genesis is synced
//! founder 1 8be2... 10.0.0.1:7400 10.0.0.1:7401      node, incarnation, address for clients, address for peers
//! founder 2 5d1c... 10.0.0.2:7400 10.0.0.2:7401
//! journal created                                    only once there is one
//! crc32c 1b2c3d4e                                    of all bytes before this line
//! ```
//!
//! Invariants: node and incarnation never change; the cluster is set once; `journal created` is set once, after the journal
//! is synced and before this node's first vote.

use crate::disk::{self, Disk, LockGuard};
use crate::ids::{ClusterId, Incarnation, NodeId};
use crate::limits;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Version of the data directory's layout.
pub const FORMAT: u32 = 1;
/// Largest identity file, in bytes: all founders with their addresses, and some.
const IDENTITY_BYTES_MAX: u64 = (limits::NODES_MAX * (2 * limits::ADDRESS_BYTES_MAX + 64) + 1024) as u64;
const IDENTITY: &str = "IDENTITY";
const IDENTITY_NEW: &str = "IDENTITY.new";
const LOCK: &str = "LOCK";
const JOURNAL: &str = "journal";

/// How a cluster began. The same on all its founders.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Genesis {
    /// Derives from the founders.
    pub cluster_id: ClusterId,
    /// The nodes that founded it.
    pub founders: BTreeMap<NodeId, FoundingNode>,
}

/// One founder, as it announced itself at the founding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundingNode {
    /// The life of its data directory then.
    pub incarnation: Incarnation,
    /// Where it served clients.
    pub client_address: String,
    /// Where it served peers.
    pub peer_address: String,
}

impl Genesis {
    /// The genesis of these founders. The cluster id commits to all that is said of them, so that founders who would
    /// disagree on anything found different clusters and refuse each other, rather than differ in silence.
    #[must_use]
    pub fn new(founders: BTreeMap<NodeId, FoundingNode>) -> Genesis {
        let mut hasher = blake3::Hasher::new_derive_key("balsa 2026 cluster id from founders");
        for (node, founder) in &founders {
            hasher.update(&node.0.to_le_bytes());
            hasher.update(&founder.incarnation.0);
            for address in [&founder.client_address, &founder.peer_address] {
                hasher.update(&(address.len() as u32).to_le_bytes());
                hasher.update(address.as_bytes());
            }
        }
        let mut cluster_id = ClusterId::default();
        cluster_id.0.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Genesis { cluster_id, founders }
    }
}

/// Why a data directory can't be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process has it open.
    #[error("{} is in use by another process; stop that one, or give this node a directory of its own", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Written by another version.
    #[error("{} has format version {found}, this balsa reads version {FORMAT}; run the version that wrote it, or upgrade", path.display())]
    OtherVersion {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// Another node's.
    #[error(
        "{} is the directory of node {found}, and this is node {wanted}; correct the node's id or its data directory",
        path.display()
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who we are.
        wanted: NodeId,
    },
    /// Another cluster's.
    #[error(
        "{} belongs to cluster {found}, and this would be cluster {wanted}; use the cluster's own directory, or an \
         empty one",
        path.display()
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        found: ClusterId,
        /// The one that it should be.
        wanted: ClusterId,
    },
    /// The identity can't be read.
    #[error(
        "{} is damaged ({what}); restore it from this node's own directory; this version has no command yet to replace a node",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// There is something, and no identity.
    #[error(
        "{} holds {found} but no {IDENTITY}; a node never starts empty over what it does not know: restore the \
         identity, or name an empty directory",
        path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// What was found, in part.
        found: String,
    },
    /// The journal is gone.
    #[error(
        "{} is missing, though node {node} once had it: what the node promised is gone; restore this node's \
         own directory; this version has no command yet to replace a node",
        path.display()
    )]
    JournalMissing {
        /// Where it should be.
        path: PathBuf,
        /// Whose it was.
        node: NodeId,
    },
    /// The disk fails.
    #[error("{} can't be {action}", path.display())]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl IdentityError {
    /// Whether stored data is damaged or gone.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, IdentityError::Damaged { .. } | IdentityError::JournalMissing { .. })
    }
}

/// A node's data directory, locked for as long as this lives.
pub struct DataDir {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    identity: Identity,
    _lock: Box<dyn LockGuard>,
}

/// What the identity file says.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Identity {
    node: NodeId,
    incarnation: Incarnation,
    genesis: Option<Genesis>,
    journal_created: bool,
}

impl DataDir {
    /// Opens the directory of `node`, creating it if it is absent or empty; then it begins a life under `fresh`, sixteen
    /// random bytes.
    ///
    /// # Errors
    /// [`IdentityError`]. Nothing is created in a directory that is refused, but for the lock.
    pub async fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        node: NodeId,
        fresh: Incarnation,
    ) -> Result<DataDir, IdentityError> {
        let failed = |action| move |source| IdentityError::Disk { path: path.to_owned(), action, source };
        disk.create_dir_all(path).await.map_err(failed("created"))?;
        let lock = disk.lock(&path.join(LOCK)).await.map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => IdentityError::InUse { path: path.to_owned() },
            _ => failed("locked")(source),
        })?;
        let names = disk.list(path).await.map_err(failed("listed"))?;
        let has = |wanted: &str| names.iter().any(|name| name.file_name().is_some_and(|name| name == wanted));
        let identity = if has(IDENTITY) { Some(read(&*disk, path).await?) } else { None };
        let identity = match identity {
            Some(found) => {
                check(path, &found, node, has(JOURNAL))?;
                found
            }
            None => {
                refuse_strangers(path, &names)?;
                let fresh = Identity { node, incarnation: fresh, genesis: None, journal_created: false };
                write(&*disk, path, &fresh).await?;
                fresh
            }
        };
        Ok(DataDir { disk, path: path.to_owned(), identity, _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the journal is, or will be.
    #[must_use]
    pub fn journal_path(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    /// Whose it is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.identity.node
    }

    /// The life of this directory.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.identity.incarnation
    }

    /// How the node's cluster began; `None` until that is synced.
    #[must_use]
    pub fn genesis(&self) -> Option<&Genesis> {
        self.identity.genesis.as_ref()
    }

    /// Whether the journal was created: if so it must be opened, never created. If not, whatever lies there is an attempt
    /// that a crash cut short, on which nothing was promised.
    #[must_use]
    pub fn journal_created(&self) -> bool {
        self.identity.journal_created
    }

    /// Sets the cluster, once and for all; durable when this returns.
    ///
    /// # Errors
    /// `OtherCluster` if there is another one already, or those of the disk.
    pub async fn record_genesis(&mut self, genesis: Genesis) -> Result<(), IdentityError> {
        if let Some(present) = &self.identity.genesis {
            if *present == genesis {
                return Ok(());
            }
            let (found, wanted) = (present.cluster_id, genesis.cluster_id);
            return Err(IdentityError::OtherCluster { path: self.path.clone(), found, wanted });
        }
        let changed = Identity { genesis: Some(genesis), ..self.identity.clone() };
        self.replace(changed).await
    }

    /// Remembers that the journal is there and synced; durable when this returns. Must come before the first vote.
    ///
    /// # Errors
    /// Those of the disk.
    pub async fn record_journal_created(&mut self) -> Result<(), IdentityError> {
        assert!(self.identity.genesis.is_some(), "the genesis is synced before the journal is created");
        if self.identity.journal_created {
            return Ok(());
        }
        let changed = Identity { journal_created: true, ..self.identity.clone() };
        self.replace(changed).await
    }

    async fn replace(&mut self, identity: Identity) -> Result<(), IdentityError> {
        write(&*self.disk, &self.path, &identity).await?;
        self.identity = identity;
        Ok(())
    }
}

async fn read(disk: &dyn Disk, dir: &Path) -> Result<Identity, IdentityError> {
    let path = dir.join(IDENTITY);
    let content = disk::read_file(disk, &path, IDENTITY_BYTES_MAX).await.map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => IdentityError::Damaged { path: path.clone(), what: "it is too large" },
        _ => IdentityError::Disk { path: path.clone(), action: "read", source },
    })?;
    Identity::decode(&content).map_err(|error| match error {
        DecodeError::Version(found) => IdentityError::OtherVersion { path: dir.to_owned(), found },
        DecodeError::Damaged(what) => IdentityError::Damaged { path, what },
    })
}

async fn write(disk: &dyn Disk, dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let path = dir.join(IDENTITY);
    let written = disk::replace_file(disk, &path, identity.encode()).await;
    written.map_err(|source| IdentityError::Disk { path, action: "written", source })
}

fn check(path: &Path, found: &Identity, node: NodeId, has_journal: bool) -> Result<(), IdentityError> {
    if found.node != node {
        return Err(IdentityError::OtherNode { path: path.to_owned(), found: found.node, wanted: node });
    }
    if found.journal_created && !has_journal {
        return Err(IdentityError::JournalMissing { path: path.join(JOURNAL), node });
    }
    Ok(())
}

/// Only what an interrupted first start leaves, or a file system keeps for itself, may be there without an identity.
fn refuse_strangers(path: &Path, names: &[PathBuf]) -> Result<(), IdentityError> {
    let names = names.iter().filter_map(|name| name.file_name()).map(|name| name.to_string_lossy());
    let strangers: Vec<_> = names.filter(|name| ![LOCK, IDENTITY_NEW, "lost+found"].contains(&name.as_ref())).collect();
    match strangers.len() {
        0 => Ok(()),
        count => {
            let mut found = strangers[..count.min(3)].join(", ");
            if count > 3 {
                let _ = write!(found, " and {} more", count - 3);
            }
            Err(IdentityError::NotEmpty { path: path.to_owned(), found })
        }
    }
}

enum DecodeError {
    Version(String),
    Damaged(&'static str),
}

impl Identity {
    fn encode(&self) -> Bytes {
        let mut text = format!("balsa identity {FORMAT}\nnode {}\nincarnation {}\n", self.node, self.incarnation);
        if let Some(genesis) = &self.genesis {
            let _ = writeln!(text, "cluster {}", genesis.cluster_id);
            for (node, founder) in &genesis.founders {
                let FoundingNode { incarnation, client_address, peer_address } = founder;
                let _ = writeln!(text, "founder {node} {incarnation} {client_address} {peer_address}");
            }
        }
        if self.journal_created {
            text.push_str("journal created\n");
        }
        let checksum = crc32c::crc32c(text.as_bytes());
        let _ = writeln!(text, "crc32c {checksum:08x}");
        text.into()
    }

    fn decode(content: &[u8]) -> Result<Identity, DecodeError> {
        use DecodeError::Damaged;
        let text = std::str::from_utf8(content).map_err(|_| Damaged("it is not text"))?;
        let (body, checksum) = text.rsplit_once("crc32c ").ok_or(Damaged("its checksum is missing"))?;
        if checksum != format!("{:08x}\n", crc32c::crc32c(body.as_bytes())) {
            return Err(Damaged("its checksum does not match"));
        }
        let mut lines = body.lines();
        let version = lines.next().and_then(|line| line.strip_prefix("balsa identity "));
        let version = version.ok_or(Damaged("its first line is another"))?;
        if version != FORMAT.to_string() {
            return Err(DecodeError::Version(version.to_owned()));
        }
        Identity::decode_lines(lines).ok_or(Damaged("a line is not as it should be"))
    }

    fn decode_lines<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Identity> {
        let mut lines = lines.peekable();
        let node = NodeId(lines.next()?.strip_prefix("node ")?.parse().ok()?);
        let incarnation = Incarnation(sixteen(lines.next()?.strip_prefix("incarnation ")?)?);
        let mut genesis = None;
        if let Some(cluster) = lines.peek().and_then(|line| line.strip_prefix("cluster ")) {
            let cluster_id = ClusterId(sixteen(cluster)?);
            lines.next();
            let mut founders = BTreeMap::new();
            while let Some(line) = lines.peek().and_then(|line| line.strip_prefix("founder ")) {
                let (node, founder) = decode_founder(line)?;
                founders.insert(node, founder);
                lines.next();
            }
            genesis = Some(Genesis { cluster_id, founders });
        }
        let journal_created = lines.next_if_eq(&"journal created").is_some();
        lines.next().is_none().then_some(Identity { node, incarnation, genesis, journal_created })
    }
}

fn decode_founder(line: &str) -> Option<(NodeId, FoundingNode)> {
    let mut words = line.split(' ');
    let node = NodeId(words.next()?.parse().ok()?);
    let incarnation = Incarnation(sixteen(words.next()?)?);
    let (client_address, peer_address) = (words.next()?.to_owned(), words.next()?.to_owned());
    words.next().is_none().then_some((node, FoundingNode { incarnation, client_address, peer_address }))
}

fn sixteen(hex: &str) -> Option<[u8; 16]> {
    if hex.len() != 32 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    Some(u128::from_str_radix(hex, 16).ok()?.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let founder = |byte: u8| FoundingNode {
            incarnation: Incarnation([byte; 16]),
            client_address: format!("host{byte}:7400"),
            peer_address: format!("host{byte}:7401"),
        };
        let founders = BTreeMap::from([(NodeId(1), founder(1)), (NodeId(2), founder(0xa2))]);
        let genesis = Some(Genesis::new(founders));
        Identity { node: NodeId(2), incarnation: Incarnation([0xa2; 16]), genesis, journal_created: true }
    }

    #[test]
    fn an_identity_survives_encoding_in_each_of_its_stages() {
        let whole = identity();
        let founded = Identity { journal_created: false, ..whole.clone() };
        let fresh = Identity { genesis: None, ..founded.clone() };
        for stage in [whole, founded, fresh] {
            assert!(matches!(Identity::decode(&stage.encode()), Ok(decoded) if decoded == stage));
        }
    }

    #[test]
    fn no_damage_to_an_identity_goes_unseen() {
        let encoded = identity().encode();
        for len in 0..encoded.len() {
            assert!(Identity::decode(&encoded[..len]).is_err(), "cut to {len} bytes");
        }
        for bit in 0..encoded.len() * 8 {
            let mut flipped = encoded.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Identity::decode(&flipped).is_err(), "bit {bit} flipped");
        }
    }

    #[test]
    fn an_identity_of_another_version_is_told_from_a_damaged_one() {
        let text = String::from_utf8(identity().encode().to_vec()).unwrap();
        let (body, _) = text.rsplit_once("crc32c").unwrap();
        let body = body.replace("identity 1", "identity 7");
        let whole = format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()));
        assert!(matches!(Identity::decode(whole.as_bytes()), Err(DecodeError::Version(found)) if found == "7"));
    }

    #[test]
    fn the_cluster_id_commits_to_every_founder_and_all_it_says_of_itself() {
        let genesis = identity().genesis.unwrap();
        let change = |change: fn(&mut FoundingNode)| {
            let mut founders = genesis.founders.clone();
            change(founders.get_mut(&NodeId(1)).unwrap());
            Genesis::new(founders).cluster_id
        };
        let fewer = Genesis::new(genesis.founders.clone().into_iter().take(1).collect()).cluster_id;
        let others = [
            change(|founder| founder.incarnation.0[15] ^= 1),
            change(|founder| founder.client_address.push('1')),
            change(|founder| founder.peer_address = "elsewhere:1".to_owned()),
            fewer,
        ];
        assert!(others.iter().all(|other| *other != genesis.cluster_id));
        assert_eq!(Genesis::new(genesis.founders.clone()).cluster_id, genesis.cluster_id);
    }
}
