//! Holds every request against the bound on its size, before memory is taken for it.
//!
//! The transport has a bound of its own, but its refusal is a bare status: the client could not tell that nothing happened. So
//! the lengths that stand before each message of a request are read as the bytes pass by, and the first that is too large ends
//! the request with one of our own errors. What the request says of its length is believed only to refuse it.
//!
//! In the simulation messages travel as values and have no such length; there the doors' other bounds stand alone.

use super::errors::ApiError;
use crate::limits::REQUEST_BYTES_MAX;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::task::{ready, Context, Poll};
use tonic::body::Body;
use tonic::codegen::{http, Service};
use tonic::server::NamedService;
use tonic::Status;

/// What gRPC puts before each message: whether it is compressed, and four bytes of length, highest first.
const PREFIX_LEN: usize = 5;

/// A service whose requests are held against `REQUEST_BYTES_MAX`.
#[derive(Clone)]
pub(super) struct Bounded<S>(pub S);

impl<S: NamedService> NamedService for Bounded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Bounded<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        self.0.call(request.map(|body| Body::new(BoundedBody { body, lengths: Lengths::default() })))
    }
}

/// A request's bytes on their way in.
struct BoundedBody {
    body: Body,
    lengths: Lengths,
}

impl HttpBody for BoundedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &polled {
            let passed = frame.data_ref().map_or(Ok(()), |data| self.lengths.pass(data));
            if let Err(error) = passed {
                return Poll::Ready(Some(Err(error.status(None))));
            }
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Follows the messages of a request, whatever pieces it arrives in.
#[derive(Default)]
struct Lengths {
    prefix: [u8; PREFIX_LEN],
    /// Bytes of the prefix that are here.
    prefix_len: usize,
    /// Bytes of the present message that are still to come.
    message_left: usize,
}

impl Lengths {
    /// Takes note of the next bytes.
    ///
    /// # Errors
    /// If they hold the length of a message that is too large.
    fn pass(&mut self, mut bytes: &[u8]) -> Result<(), ApiError> {
        while !bytes.is_empty() {
            let skipped = self.message_left.min(bytes.len());
            self.message_left -= skipped;
            bytes = &bytes[skipped..];
            let taken = (PREFIX_LEN - self.prefix_len).min(bytes.len());
            self.prefix[self.prefix_len..self.prefix_len + taken].copy_from_slice(&bytes[..taken]);
            self.prefix_len += taken;
            bytes = &bytes[taken..];
            if self.prefix_len == PREFIX_LEN {
                self.prefix_len = 0;
                self.message_left = message_len(self.prefix)?;
            }
        }
        Ok(())
    }
}

fn message_len(prefix: [u8; PREFIX_LEN]) -> Result<usize, ApiError> {
    let [_, length @ ..] = prefix;
    let (actual, limit) = (u64::from(u32::from_be_bytes(length)), REQUEST_BYTES_MAX as u64);
    match actual > limit {
        true => Err(ApiError::RequestTooLarge { actual, limit }),
        false => Ok(actual as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Vec<u8> {
        [&[0], (len as u32).to_be_bytes().as_slice(), &vec![0xff; len]].concat()
    }

    fn pass_in_pieces(bytes: &[u8], piece: usize) -> Result<(), ApiError> {
        let mut lengths = Lengths::default();
        bytes.chunks(piece).try_for_each(|piece| lengths.pass(piece))
    }

    #[test]
    fn each_message_is_measured_whatever_pieces_it_comes_in() {
        let good = [message(0), message(1), message(300), message(0), message(7)].concat();
        let over = [0, 0, 0x40, 0, 1]; // one byte over 4 MiB
        for piece in [1, 2, 3, 4, 5, 6, 7, 64, 10_000] {
            assert!(pass_in_pieces(&good, piece).is_ok());
            let refused = pass_in_pieces(&[good.as_slice(), &over].concat(), piece);
            let limit = REQUEST_BYTES_MAX as u64;
            assert!(
                matches!(refused, Err(ApiError::RequestTooLarge { actual, limit: l }) if actual == limit + 1 && l == limit)
            );
        }
    }

    #[test]
    fn the_bound_itself_is_allowed_and_a_length_alone_decides() {
        assert!(Lengths::default().pass(&message(REQUEST_BYTES_MAX)).is_ok());
        assert!(Lengths::default().pass(&[1, 0xff, 0xff, 0xff]).is_ok(), "not all of the length is here");
        assert!(Lengths::default().pass(&[1, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
