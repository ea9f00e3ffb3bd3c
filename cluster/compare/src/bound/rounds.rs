//! Who has synced which round, and what is acknowledged by it. Pure.

use std::collections::{BTreeMap, VecDeque};

/// Requests of each client, by the number it got when it joined.
pub type Counts = BTreeMap<usize, u32>;

/// Rounds that are not on two of three disks yet.
#[derive(Debug, Default)]
pub struct Rounds {
    /// The last round that each node has synced; the first node is the one that clients talk to.
    synced: [u64; 3],
    waiting: VecDeque<(u64, Counts)>,
}

impl Rounds {
    /// A round is about to be written. Rounds are numbered from 1, without gaps.
    pub fn begin(&mut self, round: u64, requests: Counts) {
        self.waiting.push_back((round, requests));
    }

    /// A node has synced all rounds up to `round`: returns the requests that are thereby on two disks.
    pub fn synced(&mut self, node: usize, round: u64) -> Counts {
        self.synced[node] = self.synced[node].max(round);
        let mut sorted = self.synced;
        sorted.sort_unstable();
        let durable = sorted[1];
        let mut acknowledged = Counts::new();
        while self.waiting.front().is_some_and(|(round, _)| *round <= durable) {
            let Some((_, requests)) = self.waiting.pop_front() else { break };
            for (client, count) in requests {
                *acknowledged.entry(client).or_default() += count;
            }
        }
        acknowledged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_counts_at_its_second_sync_whosever_it_is() {
        let mut rounds = Rounds::default();
        rounds.begin(1, Counts::from([(0, 2), (1, 1)]));
        rounds.begin(2, Counts::from([(0, 3)]));
        assert!(rounds.synced(2, 2).is_empty(), "one disk is not enough");
        assert_eq!(rounds.synced(1, 1), Counts::from([(0, 2), (1, 1)]));
        assert_eq!(rounds.synced(0, 2), Counts::from([(0, 3)]));
        assert!(rounds.synced(1, 2).is_empty(), "nothing is acknowledged twice");
    }
}
