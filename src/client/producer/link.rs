//! One append stream to one server, as a task: requests in, answers out as events to the producer's driver.
//!
//! Requests go out, and answers come in, by the lot: as many as there are. It decides nothing. When the stream ends, for whatever
//! reason, it says so once; which batches that concerns is the driver's to know. Requests wait unbounded here because the driver
//! bounds what is in flight.

use super::super::{log_client, wire, Client, ClientError, Outcome, Session, Topic};
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Answers told together, at most.
const TOGETHER_MAX: usize = 256;

/// What the driver waits for.
#[derive(Debug)]
pub(super) enum Event {
    /// Batches were answered, in this order.
    Answers { answers: Vec<wire::AppendStreamResponse> },
    /// A stream ended, with what was on it.
    LinkEnded { link: u64, address: String, error: ClientError },
    /// A session was opened, or could not be.
    SessionOpened { partition: u32, result: Result<Session, ClientError> },
    /// The topic was described anew.
    Described { result: Result<Topic, ClientError> },
}

/// A stream to one server.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) address: String,
    requests: mpsc::UnboundedSender<Vec<wire::AppendStreamRequest>>,
}

impl Link {
    /// Opens a stream to `address`. Requests may be given at once.
    pub(super) fn open(client: &Client, address: String, link: u64, events: mpsc::Sender<Event>) -> Link {
        let (requests, queue) = mpsc::unbounded_channel();
        let (client, to) = (client.clone(), address.clone());
        tokio::spawn(async move {
            let error = carry(&client, &to, queue, &events).await;
            // The driver may be gone; then nobody needs to know.
            let _ = events.send(Event::LinkEnded { link, address: to, error }).await;
        });
        Link { address, requests }
    }

    /// Sends requests. If the stream has ended already, the event that says so is on its way.
    pub(super) fn send(&self, requests: Vec<wire::AppendStreamRequest>) {
        let _ = self.requests.send(requests);
    }
}

async fn carry(
    client: &Client,
    address: &str,
    queue: mpsc::UnboundedReceiver<Vec<wire::AppendStreamRequest>>,
    events: &mpsc::Sender<Event>,
) -> ClientError {
    let connections = &client.shared.connections;
    let channel = match connections.channel(address).await {
        Ok(channel) => channel,
        Err(error) => return error,
    };
    let requests = UnboundedReceiverStream::new(queue).flat_map(futures::stream::iter);
    let mut stream = match log_client(channel).append_stream(requests).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return ClientError::from_status(address, &status),
    };
    loop {
        let (mut next, mut answers) = (Some(stream.message().await), Vec::new());
        let ended = loop {
            match next {
                None => break None,
                Some(Ok(Some(answer))) => answers.push(answer),
                Some(Ok(None)) => {
                    let cause = "the server ended the stream".to_string();
                    let outcome = Outcome::MayHaveHappened;
                    break Some(ClientError::Broken { address: address.to_string(), cause, outcome });
                }
                Some(Err(status)) => break Some(ClientError::from_status(address, &status)),
            }
            next = if answers.len() < TOGETHER_MAX { stream.message().now_or_never() } else { None };
        };
        if !answers.is_empty() && events.send(Event::Answers { answers }).await.is_err() {
            return ClientError::Closed;
        }
        if let Some(error) = ended {
            return error;
        }
    }
}
