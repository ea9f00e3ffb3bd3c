//! Consensus: a majority agrees on the order of a group's commands before anybody is told "yes".
//!
//! [`replica`] is the pure core: events in, effects out. It wraps the `raft` crate and keeps the rules that the
//! crate leaves to its user:
//!
//! | file | rule |
//! |---|---|
//! | [`replica`], `turn` | persist before promise; what a turn's effects are, and in which order |
//! | [`log_view`], [`terms`] | what Raft may ask of the log, and what of it is in memory |
//! | `proposals` | every command gets a verdict, or learns whether it may have happened |
//! | `reads` | a read sees all that was committed when it came, whoever leads |
//! | `leading` | handing leadership over, giving it up, what a leader looks after |
//! | `elections` | when to campaign, from a seed |
//! | [`sleep`] | a group that nobody uses costs nothing |
//! | `log_time` | the log's own time never goes back and never outruns ticks |
//! | [`membership`] | learners first, one change at a time, leaders move before they leave |
//! | [`inbound`] | no message can make Raft abort the process |
//! | [`entry`] | the bytes of an entry |
//! | [`machine`] | what a state machine owes the group |
//! | [`observe`] | what an onlooker sees of all this |
//!
//! Protocol behaviour is told in `tests/scenarios/*.txt`.

pub mod driver;
pub mod effects;
mod elections;
pub mod entry;
pub mod inbound;
mod leading;
pub mod log_time;
pub mod log_view;
pub mod machine;
pub mod membership;
pub mod observe;
pub mod options;
mod proposals;
mod reads;
pub mod replica;
pub mod sleep;
pub mod status;
mod tampering;
pub mod terms;
mod turn;
pub mod untold;
