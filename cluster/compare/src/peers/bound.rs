//! The bound's three processes: this program, started as something else. Clients reach the first over plain TCP or gRPC.

use super::{until_ready, Peer};
use crate::bound::{client, grpc};
use crate::command_line::Options;
use crate::failure::Failure;
use crate::ground::{free_ports, local, Ground};
use crate::load::{Load, Measured, Timing};
use crate::servers::Servers;
use async_trait::async_trait;
use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(20);

/// How clients reach the first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Tcp,
    Grpc,
}

#[derive(Debug)]
pub struct Bound {
    over: Over,
    program: Option<PathBuf>,
    connections: usize,
    first: SocketAddr,
    servers: Servers,
}

impl Bound {
    pub fn new(options: &Options, over: Over) -> Bound {
        let connections = options.connections as usize;
        Bound { over, program: None, connections, first: local(0), servers: Servers::default() }
    }

    /// With this program for its nodes, where it is not the one that runs.
    pub fn with_program(self, program: PathBuf) -> Bound {
        Bound { program: Some(program), ..self }
    }
}

#[async_trait]
impl Peer for Bound {
    fn key(&self) -> &'static str {
        match self.over {
            Over::Tcp => "bound",
            Over::Grpc => "bound-grpc",
        }
    }

    fn title(&self) -> &'static str {
        match self.over {
            Over::Tcp => "the bound",
            Over::Grpc => "the bound over gRPC",
        }
    }

    fn elects(&self) -> bool {
        false
    }

    fn find(&mut self) -> Result<String, Failure> {
        if self.program.is_none() {
            self.program = Some(env::current_exe().map_err(Failure::io("find this program itself"))?);
        }
        Ok(String::new())
    }

    async fn start(&mut self, ground: &Ground) -> Result<(), Failure> {
        self.find()?;
        let program = self.program.clone().unwrap_or_default();
        let dir = ground.cluster(self.key())?;
        let addresses: Vec<SocketAddr> = free_ports(3)?.into_iter().map(local).collect();
        for (number, address) in addresses.iter().enumerate() {
            let mut node = Command::new(&program);
            node.args(["bound-node", "--listen", &address.to_string(), "--file"]);
            node.arg(dir.join(format!("node{}", number + 1)));
            if number == 0 {
                node.args(["--followers", &addresses[1].to_string(), &addresses[2].to_string()]);
                node.args((self.over == Over::Grpc).then_some("--grpc"));
            }
            let name = format!("{}, node {}", self.title(), number + 1);
            self.servers.start(&name, dir.join(format!("node{}.log", number + 1)), &mut node)?;
        }
        self.first = addresses[0];
        let (over, first) = (self.over, self.first);
        until_ready(&mut self.servers, PATIENCE, || append_one(over, first)).await
    }

    async fn load(&mut self, load: &Load, timing: Timing) -> Result<Measured, Failure> {
        let (first, connections, probe) = (self.first, self.connections, self.servers.cpu());
        match self.over {
            Over::Tcp => client::drive(first, load, connections, timing, probe).await,
            Over::Grpc => grpc::client::drive(first, load, connections, timing, probe).await,
        }
    }

    async fn leader(&mut self) -> Result<usize, Failure> {
        Ok(0)
    }

    async fn attempt(&mut self, _node: usize) -> Result<(), Failure> {
        append_one(self.over, self.first).await
    }

    fn servers(&mut self) -> &mut Servers {
        &mut self.servers
    }
}

async fn append_one(over: Over, first: SocketAddr) -> Result<(), Failure> {
    match over {
        Over::Tcp => append_one_plainly(first).await,
        Over::Grpc => grpc::client::append_one(first).await,
    }
}

async fn append_one_plainly(first: SocketAddr) -> Result<(), Failure> {
    let failed = |error| Failure::of("the bound", error);
    let mut node = TcpStream::connect(first).await.map_err(failed)?;
    node.write_all(&[1, 0, 0, 0, b'a']).await.map_err(failed)?;
    node.read_u32_le().await.map_err(failed)?;
    Ok(())
}
