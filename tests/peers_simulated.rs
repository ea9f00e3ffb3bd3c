//! The same links in the simulated network, which loses no order, pushes nothing back and resets nothing on a cut: what over
//! real sockets is the system's doing must here be ours.
#![cfg(madsim)]

use balsa::ids::{ClusterId, GroupId, Incarnation, NodeId, ReplicaId};
use balsa::peers::{wire, Door, ForwardError, Identity, PeerAddress, PeerEvent, Peers, PeersOptions};
use balsa::telemetry::silent_logger;
use bytes::Bytes;
use madsim::net::NetSim;
use madsim::runtime::{Handle, NodeHandle};
use madsim::time::timeout;
use raft::eraftpb;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const DEADLINE: Duration = Duration::from_secs(60);

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.expect("the condition comes before the deadline")
}

fn address(node: u32) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 7401))
}

/// How long to look away between two looks at a condition.
const POLL: Duration = Duration::from_millis(1);

/// A node of the simulation, and what it says to the test.
struct Node {
    number: u32,
    machine: NodeHandle,
    peers: Arc<Mutex<Option<Peers>>>,
    events: mpsc::UnboundedReceiver<PeerEvent>,
}

impl Node {
    /// A machine that runs nothing but its peers, and starts them again after a kill.
    fn start(number: u32) -> Node {
        let peers: Arc<Mutex<Option<Peers>>> = Arc::default();
        let (told, events) = mpsc::unbounded_channel();
        let handle = peers.clone();
        let machine = Handle::current()
            .create_node()
            .name(format!("node {number}"))
            .ip(address(number).ip())
            .init(move || live(number, handle.clone(), told.clone()))
            .build();
        Node { number, machine, peers, events }
    }

    /// What the test asks of its peers, once they run.
    async fn peers(&self) -> Peers {
        within(async {
            loop {
                if let Some(peers) = self.peers.lock().unwrap().clone() {
                    return peers;
                }
                madsim::time::sleep(POLL).await;
            }
        })
        .await
    }

    async fn send(&self, to: u32, sequence: u64) {
        let message = eraftpb::Message {
            from: ReplicaId::founding(NodeId(self.number)).0,
            to: ReplicaId::founding(NodeId(to)).0,
            index: sequence,
            ..Default::default()
        };
        self.peers().await.send(NodeId(to), vec![wire::GroupMessage { group: 1, message: Some(Box::new(message)) }]);
    }

    async fn change(&mut self) -> PeerEvent {
        loop {
            match within(self.events.recv()).await.expect("the test holds a sender") {
                PeerEvent::Messages { .. } => {}
                other => return other,
            }
        }
    }

    async fn up(&mut self, node: u32) {
        let event = self.change().await;
        assert!(matches!(event, PeerEvent::Up(up) if up == NodeId(node)), "{event:?}");
    }

    async fn lost(&mut self, node: u32) {
        let event = self.change().await;
        assert!(matches!(event, PeerEvent::Lost(lost) if lost == NodeId(node)), "{event:?}");
    }

    async fn sequences_through(&mut self, last: u64) -> Vec<u64> {
        let mut sequences = Vec::new();
        while sequences.last() != Some(&last) {
            if let PeerEvent::Messages { messages, .. } = within(self.events.recv()).await.unwrap() {
                sequences.extend(messages.iter().map(|message| message.message.as_ref().unwrap().index));
            }
        }
        sequences
    }
}

async fn live(number: u32, handle: Arc<Mutex<Option<Peers>>>, told: mpsc::UnboundedSender<PeerEvent>) {
    handle.lock().unwrap().take();
    let incarnation = |node: u32| Incarnation([node as u8; 16]);
    let me = Identity {
        cluster_id: ClusterId([9; 16]),
        node_id: NodeId(number),
        incarnation: incarnation(number),
        boot: madsim::rand::random(),
    };
    let peers: BTreeMap<_, _> = (1..=2)
        .map(|node| {
            let incarnation = Some(incarnation(node));
            (NodeId(node), PeerAddress { incarnation, address: address(node).to_string() })
        })
        .collect();
    let door = Door::bind(address(number), silent_logger()).await.unwrap();
    let (sink, mut events) = mpsc::channel(16);
    let started = Peers::start(door, PeersOptions { me, peers, seed: number.into(), log: silent_logger() }, sink);
    *handle.lock().unwrap() = Some(started);
    while let Some(event) = events.recv().await {
        let _ = told.send(event);
    }
}

#[madsim::test]
async fn messages_arrive_in_order_and_a_killed_peer_is_lost_and_comes_back() {
    let (mut one, mut two) = (Node::start(1), Node::start(2));
    one.up(2).await;
    two.up(1).await;
    for sequence in 0..2_000 {
        one.send(2, sequence).await;
    }
    assert_eq!(two.sequences_through(1_999).await, (0..2_000).collect::<Vec<_>>());

    Handle::current().kill(two.machine.id());
    let killed = Instant::now();
    one.lost(2).await;
    assert!(killed.elapsed() < Duration::from_millis(500), "known after {:?}", killed.elapsed());
    Handle::current().restart(two.machine.id());
    one.up(2).await;
    two.up(1).await;
    one.send(2, 1).await;
    assert_eq!(two.sequences_through(1).await, [1]);
}

#[madsim::test]
async fn a_cut_that_resets_nothing_is_known_by_the_silence_and_heals_within_moments() {
    let (mut one, mut two) = (Node::start(1), Node::start(2));
    one.up(2).await;
    two.up(1).await;
    let net = NetSim::current();
    net.clog_node(two.machine.id());
    one.send(2, 1).await;
    let cut = Instant::now();
    one.lost(2).await;
    assert!(cut.elapsed() < Duration::from_millis(1_500), "known after {:?}", cut.elapsed());
    // A long cut, in which nothing gets through and nothing is kept.
    madsim::time::sleep(Duration::from_secs(60)).await;
    net.unclog_node(two.machine.id());
    let healed = Instant::now();
    one.up(2).await;
    assert!(healed.elapsed() < Duration::from_secs(3), "up after {:?}", healed.elapsed());
    one.send(2, 2).await;
    let received = two.sequences_through(2).await;
    assert!(received == [2] || received == [1, 2], "in order, none twice: {received:?}");
}

#[madsim::test]
async fn a_command_whose_node_dies_may_have_happened() {
    let (mut one, mut two) = (Node::start(1), Node::start(2));
    one.up(2).await;
    two.up(1).await;
    let peers = one.peers().await;
    let asking = one.machine.spawn(peers.forward(NodeId(2), GroupId(1), Bytes::from_static(b"command")));
    let PeerEvent::Forwarded(mut taken) = two.change().await else { panic!("a command comes next") };
    let applied = wire::Applied { index: 7, ..Default::default() };
    taken.remove(0).respond.answer(Ok(applied.clone()));
    assert_eq!(within(asking).await.unwrap(), Ok(applied));

    let asking = one.machine.spawn(peers.forward(NodeId(2), GroupId(1), Bytes::from_static(b"command")));
    let PeerEvent::Forwarded(taken) = two.change().await else { panic!("a command comes next") };
    Handle::current().kill(two.machine.id());
    assert_eq!(within(asking).await.unwrap(), Err(ForwardError::Broken { node: NodeId(2) }));
    drop(taken);
}
