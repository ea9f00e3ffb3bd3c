//! One append stream to one server, as a task: requests in, answers out as events to the producer's driver.
//!
//! It decides nothing. When the stream ends, for whatever reason, it says so once; which batches that concerns is the
//! driver's to know. Requests wait unbounded here because the driver bounds what is in flight.

use super::super::{log_client, wire, Client, ClientError, Outcome, Session, Topic};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// What the driver waits for.
#[derive(Debug)]
pub(super) enum Event {
    /// A batch was answered.
    Answer { answer: wire::AppendStreamResponse },
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
    requests: mpsc::UnboundedSender<wire::AppendStreamRequest>,
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

    /// Sends a request. If the stream has ended already, the event that says so is on its way.
    pub(super) fn send(&self, request: wire::AppendStreamRequest) {
        let _ = self.requests.send(request);
    }
}

async fn carry(
    client: &Client,
    address: &str,
    queue: mpsc::UnboundedReceiver<wire::AppendStreamRequest>,
    events: &mpsc::Sender<Event>,
) -> ClientError {
    let connections = &client.shared.connections;
    let channel = match connections.channel(address).await {
        Ok(channel) => channel,
        Err(error) => return error,
    };
    let mut answers = match log_client(channel).append_stream(UnboundedReceiverStream::new(queue)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return ClientError::from_status(address, &status),
    };
    loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                if events.send(Event::Answer { answer }).await.is_err() {
                    return ClientError::Closed;
                }
            }
            Ok(None) => {
                let cause = "the server ended the stream".to_string();
                let outcome = Outcome::MayHaveHappened;
                return ClientError::Broken { address: address.to_string(), cause, outcome };
            }
            Err(status) => return ClientError::from_status(address, &status),
        }
    }
}
