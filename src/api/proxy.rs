//! Reads for partitions that this node hosts no replica of: passed on, once, to a node that does.

use super::errors::ApiError;
use super::target::Target;
use super::Doors;
use crate::client::wire;
use crate::ids::NodeId;
use crate::limits::REQUEST_BYTES_MAX;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// Marks a request that a node passed on, so that it goes over one hop only.
const PASSED_ON: &str = "balsa-passed-on";
/// How long a connection to another node's door may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Channels to the doors of other nodes, opened when first needed.
#[derive(Default)]
pub(super) struct Proxies {
    channels: Mutex<BTreeMap<(NodeId, String), Channel>>,
}

impl Proxies {
    pub fn channel(&self, node: NodeId, address: &str) -> Result<Channel, ApiError> {
        let mut channels = self.channels.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(channel) = channels.get(&(node, address.to_owned())) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| ApiError::Invalid(format!("the address {address:?} of node {node}: {error}")))?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy();
        channels.insert((node, address.to_owned()), channel.clone());
        Ok(channel)
    }
}

/// Who serves a read.
pub(super) enum Served {
    /// A replica of this node.
    Here,
    /// Another node, at the other end of this client.
    There(wire::log_client::LogClient<Channel>),
}

impl Doors {
    /// Finds who serves a read of `target`.
    pub(super) fn served<T>(&self, target: &Target, request: &Request<T>) -> Result<Served, ApiError> {
        if self.router.driver().view(target.group()).is_some() {
            return Ok(Served::Here);
        }
        let nowhere = || self.no_leader(target.to_string(), target.group());
        if request.metadata().contains_key(PASSED_ON) {
            return Err(nowhere());
        }
        let up: Vec<NodeId> =
            self.router.peers().status().iter().filter(|peer| peer.connected).map(|peer| peer.node).collect();
        let host = self.router.hosts(&target.partition).into_iter().find(|node| up.contains(node));
        let host = host.ok_or_else(nowhere)?;
        let channel = self.proxies.channel(host, &self.client_address(host))?;
        let client = wire::log_client::LogClient::new(channel).max_decoding_message_size(2 * REQUEST_BYTES_MAX);
        Ok(Served::There(client))
    }
}

/// The same request, marked as passed on.
pub(super) fn passed_on<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.metadata_mut().insert(PASSED_ON, MetadataValue::from_static("1"));
    request
}

/// A failure between two nodes must not look like one between the client and this node.
pub(super) fn seen_from_here(status: Status) -> Status {
    if status.details().is_empty() {
        return Status::unavailable(format!("the node that hosts the partition did not answer: {}", status.message()));
    }
    status
}
