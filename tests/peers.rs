//! Links between nodes, over real sockets on loopback: order, loss, refusals, garbage, and commands passed on.
#![cfg(not(madsim))]

use balsa::ids::{ClusterId, GroupId, Incarnation, NodeId, ReplicaId, TimestampMs};
use balsa::limits;
use balsa::peers::{
    wire, Door, ForwardError, Forwarded, Identity, NotSent, PeerAddress, PeerEvent, Peers, PeersOptions,
};
use balsa::telemetry::silent_logger;
use bytes::Bytes;
use raft::eraftpb;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use wire::peers_client::PeersClient;

/// No condition in these tests takes as long unless it never comes.
const DEADLINE: Duration = Duration::from_secs(20);

fn identity(node: u32, boot: u64) -> Identity {
    let incarnation = Incarnation([node as u8; 16]);
    Identity { cluster_id: ClusterId([9; 16]), node_id: NodeId(node), incarnation, boot }
}

fn addresses(nodes: &[(u32, SocketAddr)]) -> BTreeMap<NodeId, PeerAddress> {
    let address = |(node, address): &(u32, SocketAddr)| {
        let incarnation = Some(Incarnation([*node as u8; 16]));
        (NodeId(*node), PeerAddress { incarnation, address: address.to_string() })
    };
    nodes.iter().map(address).collect()
}

async fn door(port: u16) -> Door {
    Door::bind(SocketAddr::from(([127, 0, 0, 1], port)), silent_logger()).await.unwrap()
}

struct Node {
    peers: Peers,
    events: mpsc::Receiver<PeerEvent>,
    address: SocketAddr,
}

fn start(node: u32, boot: u64, door: Door, peers: &[(u32, SocketAddr)], queue: usize) -> Node {
    let address = door.local_address();
    let (sink, events) = mpsc::channel(queue);
    let options =
        PeersOptions { me: identity(node, boot), peers: addresses(peers), seed: node.into(), log: silent_logger() };
    Node { peers: Peers::start(door, options, sink), events, address }
}

impl Node {
    async fn event(&mut self) -> PeerEvent {
        within(self.events.recv()).await.expect("the node runs")
    }

    /// The next event that is no message.
    async fn change(&mut self) -> PeerEvent {
        loop {
            match self.event().await {
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

    async fn forwarded(&mut self) -> Vec<Forwarded> {
        match self.change().await {
            PeerEvent::Forwarded(forwarded) => forwarded,
            other => panic!("{other:?}"),
        }
    }

    /// Takes messages until the one with sequence `last` came; returns all sequences in the order of arrival.
    async fn sequences_through(&mut self, last: u64) -> Vec<u64> {
        let mut sequences = Vec::new();
        while sequences.last() != Some(&last) {
            if let PeerEvent::Messages { messages, .. } = self.event().await {
                sequences.extend(messages.iter().map(|message| message.message.as_ref().unwrap().index));
            }
        }
        sequences
    }
}

async fn within<T>(future: impl std::future::Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the condition comes before the deadline")
}

/// A message that carries a sequence number and some bytes.
fn message(from: u32, to: u32, sequence: u64, bytes: usize) -> wire::GroupMessage {
    let message = eraftpb::Message {
        from: ReplicaId::founding(NodeId(from)).0,
        to: ReplicaId::founding(NodeId(to)).0,
        index: sequence,
        context: vec![7; bytes].into(),
        ..Default::default()
    };
    wire::GroupMessage { group: 3, message: Some(Box::new(message)) }
}

async fn pair(queue: usize) -> (Node, Node) {
    let (first, second) = (door(0).await, door(0).await);
    let nodes = [(1, first.local_address()), (2, second.local_address())];
    (start(1, 1, first, &nodes, queue), start(2, 1, second, &nodes, queue))
}

/// Carries bytes between a port of its own and a node, until it is told to cut.
struct Proxy {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn to(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let kept: Arc<Mutex<Vec<TcpStream>>> = connections.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(target) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    kept.lock().unwrap().push(from.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Proxy { address, connections }
    }

    fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_whole_and_in_order_with_what_the_sender_says_of_itself() {
    let (mut one, mut two) = pair(64).await;
    one.up(2).await;
    two.up(1).await;
    one.peers.set_local_report(TimestampMs(77), 1 << 40, true);
    for turn in 0..500 {
        one.peers.send(NodeId(2), (0..20).map(|i| message(1, 2, turn * 20 + i, (i * 100) as usize)).collect());
    }
    let PeerEvent::Messages { from, messages, clock, free_bytes, reserve_reached } = two.event().await else {
        panic!("messages come next");
    };
    assert_eq!((from, clock, free_bytes, reserve_reached), (NodeId(1), TimestampMs(77), 1 << 40, true));
    assert_eq!(messages[0], message(1, 2, 0, 0), "a message arrives as it was sent");
    let first = messages.len() as u64;
    assert_eq!(two.sequences_through(9_999).await, (first..10_000).collect::<Vec<_>>());
    assert_eq!(one.peers.status()[0].dropped_messages, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_loses_only_what_was_on_its_way_and_never_the_order() {
    let (first, second) = (door(0).await, door(0).await);
    let proxy = Proxy::to(second.local_address());
    let (one_at, two_at) = (first.local_address(), second.local_address());
    let mut one = start(1, 1, first, &[(1, one_at), (2, proxy.address)], 64);
    let mut two = start(2, 1, second, &[(1, one_at), (2, two_at)], 64);
    one.up(2).await;
    let (mut sent, mut received) = (0, Vec::new());
    for round in 0..5 {
        // What is sent before and after a cut may be on its way at the cut; the last one of a round is not.
        for _ in 0..200 {
            one.peers.send(NodeId(2), vec![message(1, 2, sent, 2_000)]);
            sent += 1;
            if round < 4 && sent % 100 == 50 {
                proxy.cut();
            }
        }
        let deadline = Instant::now() + DEADLINE;
        'delivered: loop {
            // A probe of its own, since any message may be on its way while the link breaks.
            one.peers.send(NodeId(2), vec![message(1, 2, sent, 0)]);
            sent += 1;
            while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(50), two.events.recv()).await {
                if let PeerEvent::Messages { messages, .. } = event {
                    received.extend(messages.iter().map(|message| message.message.as_ref().unwrap().index));
                }
                if received.last() == Some(&(sent - 1)) {
                    break 'delivered;
                }
            }
            assert!(Instant::now() < deadline, "{} of {sent} came", received.len());
        }
    }
    assert!(received.windows(2).all(|pair| pair[0] < pair[1]), "in order, and none twice");
    let in_last_round = received.iter().filter(|sequence| **sequence >= sent - 150).count();
    assert_eq!(in_last_round, 150, "nothing is lost while nothing breaks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_dies_is_reported_lost_at_once_and_once_and_up_again_when_it_is_back() {
    let (mut one, mut two) = pair(64).await;
    one.up(2).await;
    two.up(1).await;
    let died = Instant::now();
    let Node { peers, events, address } = two;
    drop((peers, events));
    one.lost(2).await;
    // Generous, as the machine may be busy; what is told apart is a reset from a timeout.
    assert!(died.elapsed() < Duration::from_millis(900), "known after {:?}", died.elapsed());

    one.peers.send(NodeId(2), vec![message(1, 2, 1, 0)]);
    let mut two = start(2, 2, rebind(address).await, &[(1, one.address), (2, address)], 64);
    one.up(2).await;
    one.peers.send(NodeId(2), vec![message(1, 2, 2, 0)]);
    assert_eq!(two.sequences_through(2).await, [2], "what was sent to a lost peer is not kept for it");
    assert_eq!(one.peers.status()[0].dropped_messages, 1);
}

/// The address of a node that just ended: its connections may take a moment to close.
async fn rebind(address: SocketAddr) -> Door {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match Door::bind(address, silent_logger()).await {
            Ok(door) => return door,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_nothing_is_reported_lost_though_its_connection_stands() {
    // Its driver reads nothing, so its queue of one fills up and nothing more is taken.
    let (first, second) = (door(0).await, door(0).await);
    let nodes = [(1, first.local_address()), (2, second.local_address())];
    let mut one = start(1, 1, first, &nodes, 64);
    let mut two = start(2, 1, second, &nodes, 1);
    one.up(2).await;
    for sequence in 0..200 {
        one.peers.send(NodeId(2), vec![message(1, 2, sequence, 1 << 16)]);
    }
    one.lost(2).await;
    // It wakes up and takes what is there.
    let waking = tokio::spawn(async move { while two.events.recv().await.is_some() {} });
    one.up(2).await;
    waking.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_peer_is_bounded_and_the_newest_is_dropped() {
    let (mut one, _two) = pair(1).await;
    one.up(2).await;
    for sequence in 0..160 {
        one.peers.send(NodeId(2), vec![message(1, 2, sequence, 1 << 20)]);
        assert!(one.peers.status()[0].queued_bytes <= limits::PEER_OUTBOX_BYTES_MAX);
    }
    let status = one.peers.status()[0];
    assert!(status.dropped_messages > 0 && status.dropped_bytes >= status.dropped_messages << 20, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_sends_what_waits_and_ends() {
    let (mut one, mut two) = pair(64).await;
    one.up(2).await;
    two.up(1).await;
    for sequence in 0..50 {
        one.peers.send(NodeId(2), vec![message(1, 2, sequence, 100)]);
    }
    let peers = one.peers.clone();
    let stopping = tokio::spawn(async move { peers.shutdown().await });
    assert_eq!(two.sequences_through(49).await, (0..50).collect::<Vec<_>>());
    two.lost(1).await;
    within(stopping).await.unwrap();
    let free = tokio::net::TcpListener::bind(one.address).await;
    assert!(free.is_ok(), "the address is free again");
}

/// A stranger who speaks the protocol: sends frames on a link and sees the answers.
async fn raw_link(
    to: SocketAddr,
    frames: Vec<wire::LinkFrame>,
) -> (mpsc::UnboundedSender<wire::LinkFrame>, Result<tonic::Streaming<wire::LinkReply>, tonic::Status>) {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{to}")).unwrap().connect().await.unwrap();
    let mut client = PeersClient::new(channel);
    let (sender, outgoing) = mpsc::unbounded_channel();
    frames.into_iter().for_each(|frame| sender.send(frame).unwrap());
    let answer = within(client.link(UnboundedReceiverStream::new(outgoing))).await;
    (sender, answer.map(tonic::Response::into_inner))
}

fn hello(change: impl FnOnce(&mut wire::Hello)) -> wire::LinkFrame {
    let mut hello = wire::Hello {
        cluster_id: vec![9; 16].into(),
        node_id: 2,
        incarnation: vec![2; 16].into(),
        protocol: 1,
        boot: 1,
        to_node_id: 1,
    };
    change(&mut hello);
    wire::LinkFrame { frame: Some(wire::link_frame::Frame::Hello(hello)) }
}

fn batch(messages: Vec<wire::GroupMessage>) -> wire::LinkFrame {
    let batch = wire::Batch { messages, ..Default::default() };
    wire::LinkFrame { frame: Some(wire::link_frame::Frame::Batch(batch)) }
}

/// Waits until a stream ends; returns what it ended with.
async fn end_of(mut replies: tonic::Streaming<wire::LinkReply>) -> Option<tonic::Status> {
    loop {
        match within(replies.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(status) => return Some(status),
        }
    }
}

/// A node that knows node 2 at an address where nobody answers.
async fn lone_node() -> Node {
    let first = door(0).await;
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nodes = [(1, first.local_address()), (2, nobody)];
    start(1, 1, first, &nodes, 64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_belong_here_is_refused_with_the_reason_and_the_way_out() {
    let one = lone_node().await;
    type Case = (fn(&mut wire::Hello), &'static [&'static str]);
    let cases: [Case; 7] = [
        (|h| h.cluster_id = vec![1; 16].into(), &["cluster 0101", "this node to cluster 0909", "correct the address"]),
        (|h| h.cluster_id = vec![1; 5].into(), &["not 16 bytes"]),
        (|h| h.protocol = 2, &["version 2", "this node version 1"]),
        (|h| h.to_node_id = 3, &["meant to reach node 3, but this is node 1"]),
        (|h| h.node_id = 7, &["node 7 is not a node of this cluster", "no command yet to add one"]),
        (|h| h.node_id = 1, &["another process calls itself node 1"]),
        (|h| h.incarnation = vec![5; 16].into(), &["0505", "0202", "no command yet to replace a node"]),
    ];
    for (change, expected) in cases {
        let (_frames, answer) = raw_link(one.address, vec![hello(change)]).await;
        let status = answer.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
        assert!(expected.iter().all(|part| status.message().contains(part)), "{expected:?} in {:?}", status.message());
    }
    let (_frames, answer) = raw_link(one.address, vec![batch(vec![])]).await;
    assert!(answer.expect_err("refused").message().contains("no greeting"));
    let (_frames, answer) = raw_link(one.address, vec![hello(|_| {})]).await;
    assert!(answer.is_ok(), "node 2 itself is let in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_taken_from_a_peer_that_speaks_for_another_or_for_nobody() {
    let mut one = lone_node().await;
    let bad = [message(3, 1, 1, 0), message(2, 3, 1, 0), wire::GroupMessage { group: 1, message: None }];
    for message in bad {
        let (_frames, answer) = raw_link(one.address, vec![hello(|_| {}), batch(vec![message])]).await;
        let status = end_of(answer.unwrap()).await.expect("an error");
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    }
    let good = vec![hello(|_| {}), batch(vec![message(2, 1, 42, 0)])];
    let (_frames, _answer) = raw_link(one.address, good).await;
    assert_eq!(one.sequences_through(42).await, [42], "and only that");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_link_of_the_same_node_ends_the_older_one() {
    let mut one = lone_node().await;
    let (older, answer) = raw_link(one.address, vec![hello(|_| {}), batch(vec![message(2, 1, 1, 0)])]).await;
    assert_eq!(one.sequences_through(1).await, [1]);
    let (_newer, _replies) = raw_link(one.address, vec![hello(|_| {}), batch(vec![message(2, 1, 2, 0)])]).await;
    assert_eq!(one.sequences_through(2).await, [2]);
    end_of(answer.unwrap()).await;
    let _ = older.send(batch(vec![message(2, 1, 3, 0)]));
    let (_newest, _replies) = raw_link(one.address, vec![hello(|_| {}), batch(vec![message(2, 1, 4, 0)])]).await;
    assert_eq!(one.sequences_through(4).await, [4], "the older one delivers nothing any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_giants_at_the_door_hurt_nobody() {
    let mut one = lone_node().await;
    let address = one.address;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let after_preface = |bytes: &[u8]| [&preface[..], bytes].concat();
    let garbage: Vec<Vec<u8>> = vec![
        vec![],
        vec![0; 10_000],
        (0..50_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
        b"GET / HTTP/1.1\r\nHost: balsa\r\n\r\n".to_vec(),
        after_preface(&[0xff; 4_000]),
        after_preface(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0]),
    ];
    let sending = tokio::task::spawn_blocking(move || {
        for bytes in garbage {
            let mut stream = TcpStream::connect(address).unwrap();
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(Shutdown::Write);
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    within(sending).await.unwrap();

    let giant = batch(vec![message(2, 1, 1, limits::PEER_MESSAGE_BYTES_MAX)]);
    let (_frames, answer) = raw_link(one.address, vec![hello(|_| {}), giant]).await;
    end_of(answer.unwrap()).await;
    let (_frames, answer) = raw_link(one.address, vec![hello(|_| {}), hello(|_| {})]).await;
    end_of(answer.unwrap()).await;

    let good = vec![hello(|_| {}), batch(vec![message(2, 1, 2, 0)])];
    let (_frames, _answer) = raw_link(one.address, good).await;
    assert_eq!(one.sequences_through(2).await, [2], "the door still stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_door_that_is_not_open_yet_sends_nobody_away_for_good() {
    let (first, second) = (door(0).await, door(0).await);
    let nodes = [(1, first.local_address()), (2, second.local_address())];
    let mut one = start(1, 1, first, &nodes, 64);
    let (_frames, answer) = raw_link(second.local_address(), vec![hello(|_| {})]).await;
    assert_eq!(answer.expect_err("not open").code(), tonic::Code::Unavailable);
    let mut two = start(2, 1, second, &nodes, 64);
    one.up(2).await;
    two.up(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_use_is_said_before_anything_else_happens() {
    let first = door(0).await;
    let second = Door::bind(first.local_address(), silent_logger()).await;
    let error = second.err().expect("in use").to_string();
    assert!(error.contains(&first.local_address().to_string()) && error.contains("choose another"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_come_and_go_with_the_catalog() {
    let (mut one, mut two) = pair(64).await;
    one.up(2).await;
    two.up(1).await;
    two.peers.set_peers(BTreeMap::new());
    one.lost(2).await;
    assert!(two.peers.status().is_empty());
    let error = two.peers.forward(NodeId(1), GroupId(1), Bytes::new()).await.unwrap_err();
    assert_eq!(error, NotSent::NotConnected { node: NodeId(1) }.into());
    two.peers.set_peers(addresses(&[(1, one.address), (2, two.address)]));
    two.up(1).await;
    one.up(2).await;
}

fn applied(index: u64) -> wire::Applied {
    wire::Applied { index, term: 1, timestamp_ms: 5, verdict: vec![1; 24].into(), chain: vec![2; 32].into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarded_commands_come_in_order_and_their_answers_in_any() {
    let (mut one, mut two) = pair(64).await;
    one.up(2).await;
    two.up(1).await;
    let commands = 5_000u64;
    let asking: Vec<_> = (0..commands)
        .map(|i| one.peers.forward(NodeId(2), GroupId(i % 7), Bytes::from(i.to_le_bytes().to_vec())))
        .collect();
    let mut taken = Vec::new();
    while taken.len() < commands as usize {
        taken.extend(two.forwarded().await);
    }
    for (i, forwarded) in taken.iter().enumerate() {
        let number = u64::from_le_bytes(forwarded.command[..].try_into().unwrap());
        assert_eq!((number, forwarded.from, forwarded.group), (i as u64, NodeId(1), GroupId(i as u64 % 7)));
    }
    let failure = wire::Failure { code: 4, leader_replica: 9, term: 2, detail: 1 };
    for (i, forwarded) in taken.into_iter().enumerate().rev() {
        match i % 3 {
            0 => forwarded.respond.answer(Ok(applied(i as u64))),
            1 => forwarded.respond.answer(Err(failure)),
            _ => drop(forwarded.respond),
        }
    }
    let node = NodeId(2);
    for (i, answer) in within(futures::future::join_all(asking)).await.into_iter().enumerate() {
        match i % 3 {
            0 => assert_eq!(answer, Ok(applied(i as u64))),
            1 => assert_eq!(answer, Err(ForwardError::Failure { node, failure })),
            _ => assert_eq!(answer, Err(ForwardError::Broken { node }), "given up on: it may have happened"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_told_to_be_unsent_or_to_have_perhaps_happened() {
    let (mut one, mut two) = pair(64).await;
    one.up(2).await;
    two.up(1).await;
    let unknown = one.peers.forward(NodeId(9), GroupId(1), Bytes::new()).await;
    assert_eq!(unknown, Err(NotSent::Unknown { node: NodeId(9) }.into()));

    let waiting = tokio::spawn(one.peers.forward(NodeId(2), GroupId(1), Bytes::from_static(b"command")));
    let taken = two.forwarded().await;
    let two_address = two.address;
    drop(two);
    assert_eq!(within(waiting).await.unwrap(), Err(ForwardError::Broken { node: NodeId(2) }));
    drop(taken);
    one.lost(2).await;
    let away = one.peers.forward(NodeId(2), GroupId(1), Bytes::new()).await;
    assert_eq!(away, Err(NotSent::NotConnected { node: NodeId(2) }.into()));

    let mut two = start(2, 2, rebind(two_address).await, &[(1, one.address), (2, two_address)], 64);
    one.up(2).await;
    two.up(1).await;
    let again = tokio::spawn(one.peers.forward(NodeId(2), GroupId(1), Bytes::from_static(b"again")));
    let mut taken = two.forwarded().await;
    taken.remove(0).respond.answer(Ok(applied(3)));
    assert_eq!(within(again).await.unwrap(), Ok(applied(3)), "a new lane serves new commands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_beyond_the_bound_are_refused_unsent() {
    let (mut one, two) = pair(64).await;
    one.up(2).await;
    let command = Bytes::from(vec![0; limits::COMMAND_BYTES_MAX]);
    let mut asking = Vec::new();
    let refused = loop {
        let mut asked = Box::pin(one.peers.forward(NodeId(2), GroupId(1), command.clone()));
        match futures::poll!(&mut asked) {
            std::task::Poll::Ready(answer) => break answer,
            std::task::Poll::Pending => asking.push(asked),
        }
        assert!(asking.len() * limits::COMMAND_BYTES_MAX <= limits::FORWARD_HELD_BYTES_MAX);
    };
    let expected = |error: &ForwardError| matches!(error, ForwardError::NotSent(NotSent::Overloaded { .. }));
    assert!(refused.as_ref().is_err_and(expected), "{refused:?}");
    drop((asking, two));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_answers_under_anothers_address_is_refused_by_the_caller() {
    let (first, second) = (door(0).await, door(0).await);
    let (one_at, two_at) = (first.local_address(), second.local_address());
    // Node 1 takes node 2's door for node 3's.
    let mut one = start(1, 1, first, &[(2, two_at), (3, two_at)], 64);
    let mut two = start(2, 1, second, &[(1, one_at), (2, two_at), (3, one_at)], 64);
    one.up(2).await;
    two.up(1).await;
    one.peers.send(NodeId(3), vec![message(1, 3, 1, 0)]);
    one.peers.send(NodeId(2), vec![message(1, 2, 2, 0)]);
    assert_eq!(two.sequences_through(2).await, [2], "nothing meant for node 3 reaches node 2");
    assert!(one.peers.status().iter().all(|status| status.connected == (status.node == NodeId(2))));
}

/// A stranger on the lane of commands is refused as on a link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_taken_from_nobody_unknown() {
    let one = lone_node().await;
    let target = format!("http://{}", one.address);
    let channel = tonic::transport::Endpoint::from_shared(target).unwrap().connect().await.unwrap();
    let wire::LinkFrame { frame: Some(wire::link_frame::Frame::Hello(mut hello)) } = hello(|_| {}) else {
        unreachable!("it is a greeting");
    };
    hello.node_id = 8;
    let (frames, outgoing) = mpsc::channel(1);
    frames.try_send(wire::ForwardFrame { frame: Some(wire::forward_frame::Frame::Hello(hello)) }).unwrap();
    let answer = within(PeersClient::new(channel).forward(ReceiverStream::new(outgoing))).await;
    assert!(answer.expect_err("refused").message().contains("node 8 is not a node of this cluster"));
}

/// A peer that greets and hangs up, and notes when it was called.
struct HangsUp {
    called: mpsc::UnboundedSender<Instant>,
}

#[tonic::async_trait]
impl wire::peers_server::Peers for HangsUp {
    type LinkStream = ReceiverStream<Result<wire::LinkReply, tonic::Status>>;
    type ForwardStream = ReceiverStream<Result<wire::ForwardReply, tonic::Status>>;

    async fn link(
        &self,
        _frames: tonic::Request<tonic::Streaming<wire::LinkFrame>>,
    ) -> Result<tonic::Response<Self::LinkStream>, tonic::Status> {
        let _ = self.called.send(Instant::now());
        let wire::LinkFrame { frame: Some(wire::link_frame::Frame::Hello(greeting)) } = hello(|h| h.to_node_id = 1)
        else {
            unreachable!("it is a greeting");
        };
        let (replies, outgoing) = mpsc::channel(1);
        let greeting = wire::LinkReply { reply: Some(wire::link_reply::Reply::Hello(greeting)) };
        replies.try_send(Ok(greeting)).unwrap();
        Ok(tonic::Response::new(ReceiverStream::new(outgoing)))
    }

    async fn forward(
        &self,
        _frames: tonic::Request<tonic::Streaming<wire::ForwardFrame>>,
    ) -> Result<tonic::Response<Self::ForwardStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }

    async fn introduce(
        &self,
        _said: tonic::Request<wire::Introduction>,
    ) -> Result<tonic::Response<wire::Introduction>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_greets_and_hangs_up_is_called_less_and_less_often() {
    let (called, mut calls) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = listener.local_addr().unwrap();
    let service = wire::peers_server::PeersServer::new(HangsUp { called });
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let _one = start(1, 1, door(0).await, &[(2, there)], 64);
    let first = within(calls.recv()).await.unwrap();
    let mut last = first;
    for _ in 0..4 {
        last = within(calls.recv()).await.unwrap();
    }
    // Pauses of at least half of 50, 100, 200 and 400 ms lie between five calls.
    assert!(last - first >= Duration::from_millis(375), "five calls in {:?}", last - first);
}
