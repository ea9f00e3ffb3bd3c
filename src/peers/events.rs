//! What the peers have for the driver, and which of its loops it is for.

use super::forwarded::Forwarded;
use super::wire;
use crate::ids::{GroupId, NodeId, TimestampMs};
use tokio::sync::mpsc;

/// What the peers have for the driver.
#[derive(Debug)]
pub enum PeerEvent {
    /// Messages of one node, in the order in which it sent them.
    Messages {
        /// Who sent them: every message comes from one of its replicas and is for one of ours.
        from: NodeId,
        /// The messages.
        messages: Vec<wire::GroupMessage>,
        /// The sender's wall clock when it sent them.
        clock: TimestampMs,
        /// Free space of the sender's data directory.
        free_bytes: u64,
        /// Whether the sender's free space is below its reserve.
        reserve_reached: bool,
    },
    /// Messages to this node go out now: for the first time, again after it was lost, or to a new life of its process.
    Up(NodeId),
    /// The connection broke and one immediate attempt to reconnect failed, or nothing was taken for a second. Once for
    /// each `Up`. What was on its way is gone; until the next `Up` everything sent is dropped.
    Lost(NodeId),
    /// Commands that another node passes on, in the order in which they must be proposed.
    Forwarded(Vec<Forwarded>),
}

/// Where events go: to one loop, or to several that have the groups divided among them.
///
/// Every loop hears of every node's coming and going, and gets each batch with the messages for its own groups, if need be with none: what a
/// node says about itself concerns all of them.
#[derive(Clone, Debug)]
pub struct Events {
    loops: Vec<mpsc::Sender<PeerEvent>>,
    /// Which of so many loops has the group.
    loop_of: fn(GroupId, usize) -> usize,
}

/// Nobody takes events any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NobodyListens;

impl From<mpsc::Sender<PeerEvent>> for Events {
    fn from(only: mpsc::Sender<PeerEvent>) -> Events {
        Events::new(vec![only], |_, _| 0)
    }
}

impl Events {
    /// Events for several loops.
    #[must_use]
    pub fn new(loops: Vec<mpsc::Sender<PeerEvent>>, loop_of: fn(GroupId, usize) -> usize) -> Events {
        Events { loops, loop_of }
    }

    /// Hands an event over. Waits while a loop concerned has too many.
    pub(super) async fn send(&self, event: PeerEvent) -> Result<(), NobodyListens> {
        if let [only] = &self.loops[..] {
            return only.send(event).await.map_err(|_| NobodyListens);
        }
        for (taker, event) in self.loops.iter().zip(self.divide(event)) {
            if let Some(event) = event {
                taker.send(event).await.map_err(|_| NobodyListens)?;
            }
        }
        Ok(())
    }

    /// Each loop's part, in their order.
    fn divide(&self, event: PeerEvent) -> Vec<Option<PeerEvent>> {
        match event {
            PeerEvent::Messages { from, messages, clock, free_bytes, reserve_reached } => {
                let parts = self.parts(messages, |message| GroupId(message.group));
                let of_part = |messages| PeerEvent::Messages { from, messages, clock, free_bytes, reserve_reached };
                parts.into_iter().map(|messages| Some(of_part(messages))).collect()
            }
            PeerEvent::Forwarded(commands) => {
                let parts = self.parts(commands, |command| command.group);
                let of_part = |commands: Vec<_>| (!commands.is_empty()).then_some(PeerEvent::Forwarded(commands));
                parts.into_iter().map(of_part).collect()
            }
            PeerEvent::Up(node) => self.loops.iter().map(|_| Some(PeerEvent::Up(node))).collect(),
            PeerEvent::Lost(node) => self.loops.iter().map(|_| Some(PeerEvent::Lost(node))).collect(),
        }
    }

    fn parts<T>(&self, whole: Vec<T>, group_of: impl Fn(&T) -> GroupId) -> Vec<Vec<T>> {
        let mut parts: Vec<Vec<T>> = self.loops.iter().map(|_| Vec::new()).collect();
        for one in whole {
            parts[(self.loop_of)(group_of(&one), self.loops.len())].push(one);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(groups: &[u64]) -> PeerEvent {
        let messages = groups.iter().map(|group| wire::GroupMessage { group: *group, message: None }).collect();
        let (from, clock) = (NodeId(2), TimestampMs(7));
        PeerEvent::Messages { from, messages, clock, free_bytes: 9, reserve_reached: true }
    }

    #[tokio::test]
    async fn each_loop_gets_its_groups_messages_in_their_order_and_hears_of_every_batch() {
        let (takers, mut ends): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel(4)).unzip();
        let events = Events::new(takers, |group, loops| group.0 as usize % loops);
        events.send(batch(&[3, 1, 6, 4, 0])).await.unwrap();
        events.send(PeerEvent::Lost(NodeId(2))).await.unwrap();
        let expected: [&[u64]; 3] = [&[3, 6, 0], &[1, 4], &[]];
        for (end, expected) in ends.iter_mut().zip(expected) {
            let Some(PeerEvent::Messages { from: NodeId(2), messages, clock, free_bytes: 9, reserve_reached: true }) =
                end.recv().await
            else {
                panic!("a batch came");
            };
            assert_eq!(clock, TimestampMs(7));
            assert_eq!(messages.iter().map(|message| message.group).collect::<Vec<_>>(), expected);
            assert!(matches!(end.recv().await, Some(PeerEvent::Lost(NodeId(2)))));
        }
        drop(ends);
        assert_eq!(events.send(batch(&[])).await, Err(NobodyListens));
    }
}
