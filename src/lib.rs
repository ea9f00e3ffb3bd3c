//! Balsa: a replicated log. A majority writes a record to disk and agrees on its place before anybody is told "yes".
//!
//! The map of the crate is the way of one append. `P` marks what is pure: events in, effects out, nothing awaited.
//!
//! ```text
//! cli, any gRPC client ──> api ──> router ──> group::driver ──> group::replica (P) ──> partition, metadata (P)
//!                         checks   finds       owns all            decides                apply
//!                         once     the leader  replicas, performs    │ effects
//!                                                   ┌────────────────┼─────────────────┐
//!                                                   v                v                 v
//!                                                journal           peers            segments
//!                                                one log and       one ordered      each group's
//!                                                one sync for      link per         committed log,
//!                                                all groups        pair of nodes    read by offset
//!                                                   └───────> disk <─┴─────────────────┘
//! ```
//!
//! Imports run down only, in the order of the list below read from its end; `tests/tidy.rs` holds the table. What each part owes
//! the others stands at the top of its files, the whole in `docs/architecture.md`.

// The ground: numbers with a meaning, bounds, time, files.
pub mod clock;
pub mod disk;
pub mod ids;
pub mod limits;
pub mod probe;
pub mod telemetry;
pub mod usage;
pub mod watch;

// What is durable, what travels.
pub mod batch;
pub mod journal;
pub mod peers;

pub mod client;
// Offline tools and the command line work on real files and terminals: the simulation has neither.
#[cfg(not(madsim))]
pub mod inspect;
pub mod segments;

// Agreement, and what is agreed on.
pub mod group;
pub mod metadata;
pub mod partition;

// The node and its doors.
pub mod api;
#[cfg(not(madsim))]
pub mod cli;
pub mod node;
pub mod router;
