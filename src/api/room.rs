//! What answers of reads may take of the node's memory.
//!
//! A read takes room before its batches are fetched and gives it back when the transport has taken the answer, so that no number
//! of streams whose clients do not listen makes a node hold more than `READS_HELD_BYTES_MAX`. A stream that waits at the tail
//! holds nothing. Where there is no room readers wait in turn, for a bounded time: those who hold it may never take their
//! answers, and another node may have room.

use super::errors::ApiError;
use super::PERMIT_BYTES;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The room of all reads of a node. Cheap to clone.
#[derive(Clone)]
pub(super) struct ReadRoom {
    permits: Arc<Semaphore>,
    bytes_max: usize,
    patience: Duration,
}

/// Room that one answer takes, until it is dropped.
pub(super) struct Room(OwnedSemaphorePermit);

impl ReadRoom {
    /// Room for `bytes_max`; whoever has waited for some for `patience` is refused.
    pub fn new(bytes_max: usize, patience: Duration) -> ReadRoom {
        ReadRoom { permits: Arc::new(Semaphore::new(bytes_max / PERMIT_BYTES)), bytes_max, patience }
    }

    /// Takes room for `bytes`, once there is some.
    ///
    /// # Errors
    /// `Overloaded` if others hold all of it for too long.
    pub async fn take(&self, bytes: usize) -> Result<Room, ApiError> {
        let taken = self.permits.clone().acquire_many_owned(permits(bytes));
        match tokio::time::timeout(self.patience, taken).await {
            Ok(Ok(permit)) => Ok(Room(permit)),
            Ok(Err(_)) | Err(_) => Err(ApiError::Overloaded(format!(
                "this node holds {} bytes of answers that readers have not taken",
                self.bytes_max
            ))),
        }
    }
}

impl Room {
    /// Gives back what `bytes` do not need. An answer larger than was expected keeps what it has.
    pub fn shrink_to(&mut self, bytes: usize) {
        let excess = self.0.num_permits().saturating_sub(permits(bytes) as usize);
        drop(self.0.split(excess));
    }
}

fn permits(bytes: usize) -> u32 {
    bytes.div_ceil(PERMIT_BYTES) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_taken_is_bounded_and_comes_back() {
        let room = ReadRoom::new(10 * PERMIT_BYTES, Duration::from_millis(20));
        let mut first = room.take(8 * PERMIT_BYTES).await.unwrap();
        assert!(matches!(room.take(3 * PERMIT_BYTES).await, Err(ApiError::Overloaded(_))));
        first.shrink_to(PERMIT_BYTES + 1);
        assert_eq!(room.permits.available_permits(), 8);
        first.shrink_to(100 * PERMIT_BYTES);
        let second = room.take(8 * PERMIT_BYTES).await.unwrap();
        drop((first, second));
        assert_eq!(room.permits.available_permits(), 10);
    }

    #[tokio::test]
    async fn a_reader_waits_for_room_that_others_give_back() {
        let room = ReadRoom::new(4 * PERMIT_BYTES, Duration::from_secs(60));
        let held = room.take(4 * PERMIT_BYTES).await.unwrap();
        let (waited, ()) = tokio::join!(room.take(PERMIT_BYTES), async { drop(held) });
        assert!(waited.is_ok());
    }
}
