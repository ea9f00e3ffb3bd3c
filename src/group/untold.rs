//! Commits that followers have not been told of.
//!
//! What a majority holds is committed the moment its leader counts it, and acknowledged then; followers hear of it with the
//! next append. A message of its own would cost them and the leader as much as an append does, and under load an append
//! follows at once. Where none does for a moment the driver has the commit told, so that those who read from followers wait no longer.
//! Of many groups at a time it does not: their next appends or heartbeats tell, within two ticks.

use crate::ids::{GroupId, LogIndex};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a commit waits for an append that tells of it.
pub const COMMIT_UNTOLD: Duration = Duration::from_millis(5);
/// Groups told of in one moment at most.
const TOLD_MAX: usize = 16;

/// Groups led here whose followers lag behind the commit index, with the index that they knew when the moment began.
#[derive(Default)]
pub struct Untold {
    told: BTreeMap<GroupId, LogIndex>,
}

impl Untold {
    /// A group's followers know commits through `told` alone. True if a moment begins: [`Untold::due`] is to be called
    /// when it is over.
    #[must_use]
    pub fn note(&mut self, group: GroupId, told: LogIndex) -> bool {
        let begins = self.told.is_empty();
        self.told.entry(group).or_insert(told);
        begins
    }

    /// The moment is over: the groups to tell of, unless they were told meanwhile.
    pub fn due(&mut self) -> BTreeMap<GroupId, LogIndex> {
        let due = std::mem::take(&mut self.told);
        if due.len() > TOLD_MAX {
            return BTreeMap::new(); // no mark: no simulated node leads so many groups
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_begins_with_its_first_group_and_of_many_none_is_told() {
        let mut untold = Untold::default();
        assert!(untold.note(GroupId(7), LogIndex(3)));
        assert!(!untold.note(GroupId(8), LogIndex(5)) && !untold.note(GroupId(7), LogIndex(4)));
        assert_eq!(untold.due(), BTreeMap::from([(GroupId(7), LogIndex(3)), (GroupId(8), LogIndex(5))]));
        for group in 0..=TOLD_MAX as u64 {
            assert_eq!(untold.note(GroupId(group), LogIndex(1)), group == 0);
        }
        assert!(untold.due().is_empty());
        assert!(untold.note(GroupId(7), LogIndex(3)), "the next moment begins");
    }
}
