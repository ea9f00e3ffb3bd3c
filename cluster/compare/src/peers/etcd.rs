//! etcd: puts of new keys, and transactions of as many puts as a batch has records.
//!
//! Durable as it comes: its write-ahead log is synced before an entry is acknowledged. All connections go to the leader, which
//! saves etcd the forwarding.

use super::{until_ready, version_of, Peer, NODES};
use crate::command_line::Options;
use crate::failure::Failure;
use crate::ground::{find_program, free_ports, Ground};
use crate::lanes::{drive, open_lanes, Lane};
use crate::load::{Load, Measured, Timing};
use crate::servers::Servers;
use async_trait::async_trait;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

const PATIENCE: Duration = Duration::from_secs(30);
/// Puts that a transaction may hold; etcd's default is 128.
const TXN_OPS_MAX: &str = "1024";
/// Bytes that etcd's database may have before it refuses writes; its default of 2 GiB would end a long comparison.
const QUOTA_BYTES: &str = "8589934592";

pub struct Etcd {
    given: Option<PathBuf>,
    program: PathBuf,
    connections: usize,
    clients: Vec<String>,
    /// Number of the next key: no key is written twice.
    keys: Arc<AtomicU64>,
    /// For single attempts, by node.
    channels: Vec<Channel>,
    servers: Servers,
}

impl Etcd {
    pub fn new(options: &Options) -> Etcd {
        Etcd {
            given: options.programs.etcd.clone(),
            program: PathBuf::new(),
            connections: options.connections as usize,
            clients: Vec::new(),
            keys: Arc::default(),
            channels: Vec::new(),
            servers: Servers::default(),
        }
    }

    fn lane(&self, channel: Channel, load: &Load) -> EtcdLane {
        EtcdLane { channel, keys: self.keys.clone(), value: load.record(), batch: load.batch }
    }
}

#[async_trait]
impl Peer for Etcd {
    fn key(&self) -> &'static str {
        "etcd"
    }

    fn title(&self) -> &'static str {
        "etcd"
    }

    fn find(&mut self) -> Result<String, Failure> {
        self.program =
            find_program(self.given.as_deref(), &["etcd"], "apt-get install etcd-server, or name it with --etcd")?;
        Ok(version_of(Command::new(&self.program).arg("--version")))
    }

    async fn start(&mut self, ground: &Ground) -> Result<(), Failure> {
        let dir = ground.cluster(self.key())?;
        let ports = free_ports(2 * NODES)?;
        let urls: Vec<String> = ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect();
        let (clients, peers) = urls.split_at(NODES);
        let members: Vec<String> = peers.iter().enumerate().map(|(at, url)| format!("n{at}={url}")).collect();
        for at in 0..NODES {
            let mut node = Command::new(&self.program);
            node.args(["--name", &format!("n{at}"), "--data-dir"]).arg(dir.join(format!("n{at}")));
            node.args(["--listen-client-urls", &clients[at], "--advertise-client-urls", &clients[at]]);
            node.args(["--listen-peer-urls", &peers[at], "--initial-advertise-peer-urls", &peers[at]]);
            node.args(["--initial-cluster", &members.join(","), "--initial-cluster-state", "new"]);
            node.args(["--max-txn-ops", TXN_OPS_MAX, "--quota-backend-bytes", QUOTA_BYTES]);
            node.args(["--logger", "zap", "--log-level", "warn"]);
            self.servers.start(&format!("etcd {}", at + 1), dir.join(format!("n{at}.log")), &mut node)?;
        }
        self.clients = clients.to_vec();
        self.channels = self.clients.iter().map(|url| channel_to(url)).collect::<Result<_, _>>()?;
        let channels = &self.channels;
        until_ready(&mut self.servers, PATIENCE, || leader_of(channels)).await?;
        Ok(())
    }

    async fn load(&mut self, load: &Load, timing: Timing) -> Result<Measured, Failure> {
        let leader = &self.clients[leader_of(&self.channels).await?];
        let lanes = open_lanes(load, self.connections, || async { Ok(self.lane(channel_to(leader)?, load)) }).await?;
        drive(lanes, load, timing, self.servers.cpu()).await
    }

    async fn leader(&mut self) -> Result<usize, Failure> {
        leader_of(&self.channels).await
    }

    async fn attempt(&mut self, node: usize) -> Result<(), Failure> {
        self.lane(self.channels[node].clone(), &Load::single()).append().await
    }

    fn servers(&mut self) -> &mut Servers {
        &mut self.servers
    }

    fn stop(&mut self) {
        self.channels.clear();
        self.servers.stop();
    }
}

struct EtcdLane {
    channel: Channel,
    keys: Arc<AtomicU64>,
    value: Vec<u8>,
    batch: usize,
}

impl EtcdLane {
    fn put(&self) -> messages::Put {
        let key = self.keys.fetch_add(1, Ordering::Relaxed);
        messages::Put { key: format!("{key:016x}").into_bytes(), value: self.value.clone() }
    }
}

#[async_trait]
impl Lane for EtcdLane {
    async fn append(&self) -> Result<(), Failure> {
        if self.batch == 1 {
            let _: messages::Nothing = call(&self.channel, "/etcdserverpb.KV/Put", self.put()).await?;
            return Ok(());
        }
        let puts = (0..self.batch).map(|_| messages::Operation { put: Some(self.put()) }).collect();
        let done: messages::TxnDone =
            call(&self.channel, "/etcdserverpb.KV/Txn", messages::Txn { success: puts }).await?;
        done.succeeded.then_some(()).ok_or_else(|| Failure::Failed("etcd did not carry out a transaction".to_string()))
    }
}

fn channel_to(url: &str) -> Result<Channel, Failure> {
    let endpoint = Endpoint::from_shared(url.to_string()).map_err(|error| Failure::of("etcd", error))?;
    Ok(endpoint.tcp_nodelay(true).connect_lazy())
}

async fn leader_of(channels: &[Channel]) -> Result<usize, Failure> {
    for (at, channel) in channels.iter().enumerate() {
        let status: Result<messages::Status, _> =
            call(channel, "/etcdserverpb.Maintenance/Status", messages::Nothing {}).await;
        let Ok(status) = status else { continue };
        if status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader) {
            return Ok(at);
        }
    }
    Err(Failure::Failed("etcd has no leader".to_string()))
}

async fn call<Q, A>(channel: &Channel, path: &'static str, request: Q) -> Result<A, Failure>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Failure::of("etcd", error))?;
    let path = PathAndQuery::from_static(path);
    let answer = client.unary(tonic::Request::new(request), path, ProstCodec::default()).await;
    Ok(answer.map_err(|status| Failure::of("etcd", status))?.into_inner())
}

/// The few messages of etcd's that we need, with its field numbers. What we don't name is skipped when it comes.
mod messages {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Nothing {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Put {
        #[prost(bytes = "vec", tag = "1")]
        pub key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub value: Vec<u8>,
    }

    /// A `RequestOp`; of its alternatives we know the put, which on the wire is an optional field like any other.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Operation {
        #[prost(message, optional, tag = "2")]
        pub put: Option<Put>,
    }

    /// A transaction without conditions: what it does on success is done.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Txn {
        #[prost(message, repeated, tag = "2")]
        pub success: Vec<Operation>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct TxnDone {
        #[prost(bool, tag = "2")]
        pub succeeded: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Header {
        #[prost(uint64, tag = "2")]
        pub member_id: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Status {
        #[prost(message, optional, tag = "1")]
        pub header: Option<Header>,
        #[prost(uint64, tag = "4")]
        pub leader: u64,
    }
}
