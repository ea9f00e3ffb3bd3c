//! The peers we know, found without a lock.
//!
//! A node has few peers and they change rarely, so they stand in a chain that only grows: a reader walks it without a
//! lock, and an entry is never taken out. A node that left the cluster keeps its entry, without an address; should it
//! come back, its tasks go on.

use super::forward::Call;
use super::handshake::Known;
use super::outbox::{Allowance, Queued};
use super::{wire, PeerAddress, PeerStatus};
use crate::ids::NodeId;
use crate::limits;
use crate::watch;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::{mpsc, Notify};

/// All peers ever known.
#[derive(Default)]
pub(super) struct Directory {
    first: OnceLock<Box<Slot>>,
}

struct Slot {
    peer: Arc<Peer>,
    next: OnceLock<Box<Slot>>,
}

/// What is known of one peer, and the near ends of what its tasks hold.
pub(super) struct Peer {
    pub node: NodeId,
    /// Where it is; `None` while it is not in the catalog.
    pub known: watch::Sender<Option<PeerAddress>>,
    /// Whether its link stands; the lane of forwarded commands breaks with it.
    pub up: watch::Sender<bool>,
    /// The same, to be read without a lock.
    reachable: AtomicBool,
    /// It was just heard of: a link that waits before its next attempt tries at once.
    pub dial_now: Notify,
    /// Held by the one incoming link that may deliver, so that an old one of the same node never mixes with a new one.
    pub delivery: Arc<tokio::sync::Mutex<()>>,
    /// Counts its incoming links; all but the newest end.
    pub incoming: watch::Sender<u64>,
    pub allowance: Arc<Allowance>,
    mailbox: mpsc::UnboundedSender<Queued>,
    pub calls_allowance: Arc<Allowance>,
    pub calls: mpsc::UnboundedSender<Call>,
}

/// The far ends, for a peer's tasks.
pub(super) struct FarEnds {
    pub mailbox: mpsc::UnboundedReceiver<Queued>,
    pub calls: mpsc::UnboundedReceiver<Call>,
}

impl Directory {
    /// The peer of that number, if one was ever known.
    pub fn find(&self, node: NodeId) -> Option<&Arc<Peer>> {
        self.iter().find(|peer| peer.node == node)
    }

    /// All peers ever known, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Peer>> {
        let mut at = &self.first;
        std::iter::from_fn(move || {
            let slot = at.get()?;
            at = &slot.next;
            Some(&slot.peer)
        })
    }

    /// Adds a peer that is not there yet. One caller at a time.
    pub fn add(&self, peer: Arc<Peer>) {
        let mut end = &self.first;
        while let Some(slot) = end.get() {
            end = &slot.next;
        }
        let added = end.set(Box::new(Slot { peer, next: OnceLock::new() }));
        assert!(added.is_ok(), "two callers extend the directory of peers at a time");
    }

    /// What the catalog says of `node`.
    pub fn known(&self, node: NodeId) -> Known {
        let Some(address) = self.find(node).and_then(|peer| peer.known.borrow().clone()) else {
            return Known::No;
        };
        address.incarnation.map_or(Known::Node, Known::Incarnation)
    }
}

impl Peer {
    /// A peer without an address.
    pub fn new(node: NodeId) -> (Peer, FarEnds) {
        let (mailbox, mailbox_end) = mpsc::unbounded_channel();
        let (calls, calls_end) = mpsc::unbounded_channel();
        let peer = Peer {
            node,
            known: watch::Sender::new(None),
            up: watch::Sender::new(false),
            reachable: AtomicBool::new(false),
            dial_now: Notify::new(),
            delivery: Arc::default(),
            incoming: watch::Sender::new(0),
            allowance: Arc::new(Allowance::new(limits::PEER_OUTBOX_BYTES_MAX)),
            mailbox,
            calls_allowance: Arc::new(Allowance::new(limits::FORWARD_HELD_BYTES_MAX)),
            calls,
        };
        (peer, FarEnds { mailbox: mailbox_end, calls: calls_end })
    }

    /// The catalog's word on where it is.
    pub fn learn(&self, address: Option<PeerAddress>) {
        self.known.send_if_modified(|known| {
            let changed = *known != address;
            *known = address;
            changed
        });
    }

    /// Queues messages within the allowance; drops and counts them beyond it.
    pub fn queue(&self, messages: Vec<wire::GroupMessage>) {
        let queued = Queued::new(messages);
        let (count, bytes) = (queued.messages.len(), queued.bytes);
        if !self.allowance.try_hold(bytes) {
            self.allowance.count_dropped(count, bytes);
        } else if self.mailbox.send(queued).is_err() {
            self.allowance.release(bytes);
            self.allowance.count_dropped(count, bytes);
        }
    }

    /// The link stands, or does not.
    pub fn set_up(&self, up: bool) {
        self.reachable.store(up, Ordering::Release);
        self.up.send_if_modified(|before| std::mem::replace(before, up) != up);
    }

    /// Whether the link stands.
    pub fn is_up(&self) -> bool {
        self.reachable.load(Ordering::Acquire)
    }

    /// How its link is, if it is in the catalog.
    pub fn status(&self) -> Option<PeerStatus> {
        self.known.borrow().as_ref()?;
        Some(PeerStatus {
            node: self.node,
            connected: self.is_up(),
            queued_bytes: self.allowance.held_bytes(),
            dropped_messages: self.allowance.dropped_messages(),
            dropped_bytes: self.allowance.dropped_bytes(),
        })
    }
}
