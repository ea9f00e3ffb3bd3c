//! Unary calls under way. To the rounds all of them are one client, so that an acknowledgement says only how many.

use super::super::shared::{lock, Shared};
use super::put;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, oneshot};

pub(super) struct Calls {
    shared: Arc<Shared>,
    client: usize,
    waiting: Arc<Mutex<Waiting>>,
}

/// Invariant: in the order in which their requests were added to the rounds. Bounded by the calls that are open.
type Waiting = VecDeque<oneshot::Sender<u64>>;

impl Calls {
    /// Must be called in the runtime that serves the calls.
    pub fn new(shared: Arc<Shared>) -> Calls {
        let (told, acknowledged) = mpsc::unbounded_channel();
        let waiting = Arc::default();
        let client = shared.join(move |count| {
            let _ = told.send(count); // the task below lives as long as the runtime
        });
        tokio::spawn(answer(Arc::clone(&waiting), acknowledged));
        Calls { shared, client, waiting }
    }

    /// Adds a request to the rounds. What it returns completes when the request is acknowledged, with the number of those
    /// that are. Fails only when the runtime ends.
    pub fn append(
        &self,
        payload: &[u8],
    ) -> impl Future<Output = Result<u64, oneshot::error::RecvError>> + Send + 'static {
        let (call, acknowledged) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        waiting.push_back(call);
        self.shared.add_requests(self.client, 1, |pending| put(pending, payload));
        acknowledged
    }
}

/// Wakes calls, from a task of the runtime: a thread that syncs would pay a system call for each of them, and so pays one
/// for all.
async fn answer(waiting: Arc<Mutex<Waiting>>, mut acknowledged: mpsc::UnboundedReceiver<u32>) {
    let mut done = 0;
    while let Some(count) = acknowledged.recv().await {
        for call in lock(&waiting).drain(..count as usize) {
            done += 1;
            let _ = call.send(done); // a client that is gone has nobody to tell
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_is_answered_at_the_second_sync_of_its_round_and_in_its_turn() {
        let shared = Arc::new(Shared::default());
        let calls = Calls::new(shared.clone());
        let (first, second) = (calls.append(b"one"), calls.append(b"two"));
        let mut message = Vec::new();
        shared.begin(1, shared.next_requests(&mut message));
        assert!(message.ends_with(b"\x03\0\0\0one\x03\0\0\0two"), "{message:?}");
        let third = calls.append(b"three");
        shared.synced(0, 1);
        shared.synced(2, 1);
        assert_eq!((first.await, second.await), (Ok(1), Ok(2)));
        let third = tokio::spawn(third);
        shared.begin(2, shared.next_requests(&mut message));
        shared.synced(2, 2);
        tokio::task::yield_now().await;
        assert!(!third.is_finished(), "one disk is not enough");
        shared.synced(1, 2);
        assert_eq!(third.await.expect("it ends"), Ok(3));
    }
}
