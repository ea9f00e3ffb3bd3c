//! What the first node's threads share: requests that wait for a round, rounds that wait for syncs, and clients that wait
//! to be told.
//!
//! It does not know how requests come or where answers go; `node` has clients over plain TCP, `grpc` over gRPC.

use super::rounds::{Counts, Rounds};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};

/// Number and length in front of a round's bytes.
pub const HEAD: usize = 12;

/// Hears how many more of a client's requests are acknowledged, in the order in which they were added.
type Told = Box<dyn FnMut(u32) + Send>;

#[derive(Default)]
pub struct Shared {
    pending: Mutex<Pending>,
    arrived: Condvar,
    rounds: Mutex<Rounds>,
    clients: Mutex<Clients>,
}

/// Requests that no round has taken yet. Bounded by what clients keep in flight.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    requests: Counts,
}

#[derive(Default)]
struct Clients {
    joined: usize,
    told: BTreeMap<usize, Told>,
}

impl Shared {
    /// Takes a client in, and returns its number. `told` is called from the threads that sync, one call at a time, and must
    /// not come back here.
    pub fn join(&self, told: impl FnMut(u32) + Send + 'static) -> usize {
        let mut clients = lock(&self.clients);
        clients.joined += 1;
        let number = clients.joined;
        clients.told.insert(number, Box::new(told));
        number
    }

    /// Lets a client go; what it has under way is still written, and nobody is told.
    pub fn leave(&self, client: usize) {
        lock(&self.clients).told.remove(&client);
    }

    /// Adds a client's requests to the next round: `put` appends so many whole requests to what is there.
    pub fn add_requests(&self, client: usize, count: u32, put: impl FnOnce(&mut Vec<u8>)) {
        let mut pending = lock(&self.pending);
        if pending.bytes.is_empty() {
            pending.bytes.resize(HEAD, 0);
        }
        put(&mut pending.bytes);
        *pending.requests.entry(client).or_default() += count;
        self.arrived.notify_one();
    }

    /// Waits for requests and takes all there are into `message`, behind room for the round's head. The two buffers
    /// change places: new ones would cost more than the copying, page by page.
    pub fn next_requests(&self, message: &mut Vec<u8>) -> Counts {
        message.clear();
        let mut pending = lock(&self.pending);
        while pending.requests.is_empty() {
            pending = self.arrived.wait(pending).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        std::mem::swap(&mut pending.bytes, message);
        std::mem::take(&mut pending.requests)
    }

    /// A round of these requests is about to be written.
    pub fn begin(&self, round: u64, requests: Counts) {
        lock(&self.rounds).begin(round, requests);
    }

    /// A node has synced all rounds up to `round`: tells those whose requests are thereby on two disks.
    pub fn synced(&self, node: usize, round: u64) {
        let acknowledged = lock(&self.rounds).synced(node, round);
        if acknowledged.is_empty() {
            return;
        }
        let mut clients = lock(&self.clients);
        for (client, count) in acknowledged {
            if let Some(told) = clients.told.get_mut(&client) {
                told(count);
            }
        }
    }
}

/// Locks what no panic leaves half done.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
