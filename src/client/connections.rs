//! Which servers there are, the channels to them, and who leads which partition: all that a client remembers.
//!
//! Nothing here is the truth. A route that turns out wrong costs one hop or one refusal, and is corrected by what the answer
//! says. Routes move only forward in term, so that an old answer can't undo a newer one.

use super::error::{check_address, innermost_of, ClientError};
use super::types::{Leader, Topic};
use crate::ids::Term;
use futures::future::{BoxFuture, FutureExt, Shared};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// How long a server that could not be reached is passed over while there are others.
const SHUNNED: Duration = Duration::from_millis(300);
/// Flow-control windows: large enough that one stream can fill a fast link.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A server that is silent for the interval is asked whether it is there, and given up after the timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(4);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Leads a partition, as far as we know.
#[derive(Clone, Debug)]
struct Route {
    term: Term,
    address: String,
}

/// A connection on its way, for all who wait for it.
type Attempt = Shared<BoxFuture<'static, Result<Channel, ClientError>>>;

#[derive(Debug, Default)]
struct Known {
    /// Those given by the user, then those that answers told of.
    servers: Vec<String>,
    channels: BTreeMap<String, Channel>,
    attempts: BTreeMap<String, Attempt>,
    shunned_until: BTreeMap<String, Instant>,
    routes: BTreeMap<String, BTreeMap<u32, Route>>,
    /// When somebody last asked who leads the partitions of a topic.
    asked_at: BTreeMap<String, Instant>,
    /// Where the next request without a route goes.
    turn: usize,
}

/// What a client knows of its cluster. No lock is held across an await.
#[derive(Debug)]
pub(super) struct Connections {
    known: Mutex<Known>,
    connect_timeout: Duration,
}

impl Connections {
    pub(super) fn new(servers: Vec<String>, connect_timeout: Duration) -> Result<Connections, ClientError> {
        if servers.is_empty() {
            return Err(ClientError::BadAddress { address: String::new(), cause: "no server is given".to_string() });
        }
        servers.iter().try_for_each(|address| check_address(address))?;
        Ok(Connections { known: Mutex::new(Known { servers, ..Known::default() }), connect_timeout })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel to `address`, opened now if there is none. Whoever asks meanwhile waits for the same attempt: a thousand requests that
    /// begin together take one connection.
    pub(super) async fn channel(&self, address: &str) -> Result<Channel, ClientError> {
        let attempt = match self.attempt(address)? {
            Ok(channel) => return Ok(channel),
            Err(attempt) => attempt,
        };
        let connected = attempt.clone().await;
        let mut known = self.known();
        // The first one back tells the others; what is there of a later attempt is not ours.
        if known.attempts.get(address).is_some_and(|known| known.ptr_eq(&attempt)) {
            known.attempts.remove(address);
            match &connected {
                Ok(channel) => {
                    known.shunned_until.remove(address);
                    known.channels.insert(address.to_string(), channel.clone());
                }
                Err(_) => known.shun(address),
            }
        }
        connected
    }

    /// The channel to `address`, or else the attempt to open it that is under way, from now on if there was none.
    fn attempt(&self, address: &str) -> Result<Result<Channel, Attempt>, ClientError> {
        let mut known = self.known();
        if let Some(channel) = known.channels.get(address) {
            return Ok(Ok(channel.clone()));
        }
        if let Some(attempt) = known.attempts.get(address) {
            return Ok(Err(attempt.clone()));
        }
        let (endpoint, to) = (self.endpoint(address)?, address.to_string());
        let connected = async move {
            let unreachable = |error| ClientError::Unreachable { tried: vec![(to, innermost_of(&error))] };
            endpoint.connect().await.map_err(unreachable)
        };
        let attempt = connected.boxed().shared();
        known.attempts.insert(address.to_string(), attempt.clone());
        Ok(Err(attempt))
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, ClientError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| ClientError::BadAddress { address: address.to_string(), cause: innermost_of(&error) })?;
        Ok(endpoint
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT))
    }

    /// Forgets the channel to a server that failed, and passes over it for a moment.
    pub(super) fn shun(&self, address: &str) {
        self.known().shun(address);
    }

    pub(super) fn is_shunned(&self, address: &str) -> bool {
        self.known().shunned(address)
    }

    /// Every server known, those given by the user first.
    pub(super) fn servers(&self) -> Vec<String> {
        self.known().servers.clone()
    }

    /// A server told of by an answer; tried when the others fail.
    pub(super) fn learn_server(&self, address: &str) {
        let mut known = self.known();
        if check_address(address).is_ok() && !known.servers.iter().any(|server| server == address) {
            known.servers.push(address.to_string());
        }
    }

    /// The first server that is not passed over, in the user's order; starts further down after each failure.
    pub(super) fn any_server(&self, avoid: Option<&str>) -> String {
        let known = self.known();
        let count = known.servers.len();
        let in_turn = (0..count).map(|step| &known.servers[(known.turn + step) % count]);
        let usable = in_turn.clone().find(|server| !known.shunned(server) && Some(server.as_str()) != avoid);
        let other = usable.or_else(|| in_turn.clone().find(|server| Some(server.as_str()) != avoid));
        other.unwrap_or(&known.servers[known.turn % count]).clone()
    }

    /// The server that just failed is not the first choice any more.
    pub(super) fn next_turn(&self, failed: &str) {
        let mut known = self.known();
        let count = known.servers.len();
        if known.servers[known.turn % count] == failed {
            known.turn = (known.turn + 1) % count;
        }
    }

    /// Who leads a partition, unless we know nobody or could not reach that node a moment ago.
    pub(super) fn leader_of(&self, topic: &str, partition: u32) -> Option<String> {
        let known = self.known();
        let route = known.routes.get(topic)?.get(&partition)?;
        (!known.shunned(&route.address)).then(|| route.address.clone())
    }

    pub(super) fn learn_leader(&self, topic: &str, partition: u32, leader: &Leader) {
        if check_address(&leader.address).is_err() {
            return;
        }
        let mut known = self.known();
        let routes = match known.routes.get_mut(topic) {
            Some(routes) => routes,
            None => known.routes.entry(topic.to_string()).or_default(),
        };
        match routes.get(&partition) {
            Some(route) if route.term >= leader.term => {}
            _ => {
                routes.insert(partition, Route { term: leader.term, address: leader.address.clone() });
                drop(known);
                self.learn_server(&leader.address);
            }
        }
    }

    pub(super) fn learn_topic(&self, topic: &Topic) {
        for partition in &topic.partitions {
            if let Some(leader) = &partition.leader {
                self.learn_leader(&topic.name, partition.partition, leader);
            }
        }
    }

    /// Whether nobody asked who leads this topic's partitions for so long: then the caller does.
    pub(super) fn takes_turn_to_ask(&self, topic: &str, every: Duration) -> bool {
        let (mut known, now) = (self.known(), Instant::now());
        let is_due = known.asked_at.get(topic).is_none_or(|at| now >= *at + every);
        if is_due {
            known.asked_at.insert(topic.to_string(), now);
        }
        is_due
    }

    /// The topic is gone, or another one now bears its name.
    pub(super) fn forget_topic(&self, topic: &str) {
        let mut known = self.known();
        known.routes.remove(topic);
        known.asked_at.remove(topic);
    }
}

impl Known {
    fn shun(&mut self, address: &str) {
        self.channels.remove(address);
        self.shunned_until.insert(address.to_string(), Instant::now() + SHUNNED);
    }

    fn shunned(&self, address: &str) -> bool {
        self.shunned_until.get(address).is_some_and(|until| Instant::now() < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    fn connections(servers: &[&str]) -> Connections {
        let servers = servers.iter().map(ToString::to_string).collect();
        Connections::new(servers, Duration::from_secs(1)).unwrap()
    }

    fn leader(term: u64, address: &str) -> Leader {
        Leader { node: NodeId(1), term: Term(term), address: address.to_string() }
    }

    #[test]
    fn a_route_moves_only_forward_in_term() {
        let connections = connections(&["a:1"]);
        connections.learn_leader("t", 0, &leader(5, "b:1"));
        connections.learn_leader("t", 0, &leader(4, "c:1"));
        assert_eq!(connections.leader_of("t", 0).as_deref(), Some("b:1"));
        connections.learn_leader("t", 0, &leader(6, "c:1"));
        assert_eq!(connections.leader_of("t", 0).as_deref(), Some("c:1"));
        assert_eq!(connections.leader_of("t", 1), None);
    }

    #[test]
    fn a_leader_told_of_becomes_a_server_to_fall_back_to() {
        let connections = connections(&["a:1"]);
        connections.learn_leader("t", 0, &leader(5, "b:1"));
        assert_eq!(connections.servers(), ["a:1", "b:1"]);
        assert_eq!(connections.any_server(Some("a:1")), "b:1");
        connections.next_turn("a:1");
        assert_eq!(connections.any_server(None), "b:1");
    }

    #[tokio::test]
    async fn a_server_that_failed_is_passed_over_while_there_are_others() {
        let connections = connections(&["a:1", "b:1"]);
        connections.shun("a:1");
        assert_eq!(connections.any_server(None), "b:1");
        connections.shun("b:1");
        assert_eq!(connections.any_server(None), "a:1", "with none left the user's order counts");
    }

    #[cfg(not(madsim))]
    #[tokio::test]
    async fn requests_that_begin_together_share_one_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accepted = tokio::spawn(async move {
            let (mut streams, enough) = (Vec::new(), Duration::from_millis(300));
            while let Ok(Ok((stream, _))) = tokio::time::timeout(enough, listener.accept()).await {
                streams.push(stream);
            }
            streams.len()
        });
        let connections = connections(&[&address]);
        let channels = futures::future::join_all((0..1_000).map(|_| connections.channel(&address))).await;
        assert!(channels.iter().all(Result::is_ok) && connections.channel(&address).await.is_ok());
        assert_eq!(accepted.await.unwrap(), 1);
        assert!(connections.known().attempts.is_empty());
    }

    #[tokio::test]
    async fn an_attempt_that_failed_is_told_to_all_and_is_not_the_last() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        drop(taken); // nobody listens there now
        let connections = connections(&[&address]);
        let channels = futures::future::join_all((0..10).map(|_| connections.channel(&address))).await;
        assert!(channels.iter().all(|channel| matches!(channel, Err(ClientError::Unreachable { .. }))));
        assert!(connections.known().attempts.is_empty() && connections.is_shunned(&address));
        assert!(connections.channel(&address).await.is_err());
    }

    #[test]
    fn addresses_that_cannot_be_used_are_refused_before_anything_is_tried() {
        for bad in ["", "host", ":7400", "host:", "host:0", "host:70000", "host:x"] {
            let error = Connections::new(vec![bad.to_string()], Duration::from_secs(1)).unwrap_err();
            assert!(error.to_string().contains("host:port"), "{error}");
        }
    }
}
