//! Building and comparing the membership, `ConfState`.

use crate::eraftpb::ConfState;

/// From the voters and the learners, outside any joint configuration.
impl<I1, I2> From<(I1, I2)> for ConfState
where
    I1: IntoIterator<Item = u64>,
    I2: IntoIterator<Item = u64>,
{
    fn from((voters, learners): (I1, I2)) -> Self {
        Self { voters: voters.into_iter().collect(), learners: learners.into_iter().collect(), ..Self::default() }
    }
}

/// Whether two states are the same membership, in whatever order they list it.
pub fn conf_state_eq(lhs: &ConfState, rhs: &ConfState) -> bool {
    same_members(&lhs.voters, &rhs.voters)
        && same_members(&lhs.learners, &rhs.learners)
        && same_members(&lhs.voters_outgoing, &rhs.voters_outgoing)
        && same_members(&lhs.learners_next, &rhs.learners_next)
        && lhs.auto_leave == rhs.auto_leave
}

fn same_members(lhs: &[u64], rhs: &[u64]) -> bool {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    lhs == rhs || (lhs.len() == rhs.len() && sorted(lhs) == sorted(rhs))
}
