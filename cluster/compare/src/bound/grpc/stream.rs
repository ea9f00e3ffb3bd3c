//! One stream of requests, and its answers.
//!
//! Both directions are one task, the one that sends the answers: it takes requests in the same turn, all there are, and
//! gives them to the rounds together. What waits here is bounded by what the client keeps in flight, and one that takes no
//! answers is not read from any more.

use super::super::shared::Shared;
use super::{put, Numbered};
use bytes::Bytes;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::Stream;
use tonic::{Status, Streaming};

pub(super) struct AppendStream {
    shared: Arc<Shared>,
    client: usize,
    requests: Streaming<Numbered>,
    /// False once the client said that it has no more requests.
    open: bool,
    /// Taken in this turn and not with the rounds yet.
    taken: Vec<Bytes>,
    /// Numbers of the requests that are with the rounds or acknowledged, in order.
    under_way: VecDeque<u64>,
    /// How many of them are acknowledged.
    acknowledged: usize,
    told: mpsc::UnboundedReceiver<u32>,
}

impl AppendStream {
    pub fn new(shared: Arc<Shared>, requests: Streaming<Numbered>) -> AppendStream {
        let (tell, told) = mpsc::unbounded_channel();
        let client = shared.join(move |count| {
            let _ = tell.send(count); // a stream that is gone has nobody to tell
        });
        let (taken, under_way) = (Vec::new(), VecDeque::new());
        AppendStream { shared, client, requests, open: true, taken, under_way, acknowledged: 0, told }
    }

    /// Gives the rounds all requests that are here.
    fn take_requests(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        while self.open {
            match Pin::new(&mut self.requests).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(None) => self.open = false,
                Poll::Ready(Some(request)) => {
                    let Numbered { number, payload } = request?;
                    self.under_way.push_back(number);
                    self.taken.push(payload);
                }
            }
        }
        let count = self.taken.len() as u32;
        if count > 0 {
            self.shared.add_requests(self.client, count, |pending| {
                self.taken.drain(..).for_each(|payload| put(pending, &payload));
            });
        }
        Ok(())
    }
}

impl Stream for AppendStream {
    type Item = Result<Numbered, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while self.acknowledged == 0 {
            if let Err(status) = self.take_requests(context) {
                return Poll::Ready(Some(Err(status)));
            }
            if !self.open && self.under_way.is_empty() {
                return Poll::Ready(None);
            }
            match self.told.poll_recv(context) {
                Poll::Ready(Some(count)) => self.acknowledged += count as usize,
                Poll::Ready(None) => return Poll::Ready(Some(Err(Status::unavailable("the rounds have ended")))),
                Poll::Pending => return Poll::Pending,
            }
        }
        self.acknowledged -= 1;
        Poll::Ready(self.under_way.pop_front().map(|number| Ok(Numbered { number, payload: Bytes::new() })))
    }
}

impl Drop for AppendStream {
    fn drop(&mut self) {
        self.shared.leave(self.client);
    }
}
