//! Balsa beside its peers: the same load on the same disk and cores, in the same minutes.
//!
//! | module | duty |
//! |---|---|
//! | `command_line` | options, and what `--help` says |
//! | `rows` | what is measured: the loads, and whom each is put to |
//! | `run` | the order of things: who is started when, whose turn it is; the only module that decides it |
//! | `peers` | one file for each peer: how its cluster is started and loaded |
//! | `bound` | three processes that write, sync and acknowledge, and nothing else; over plain TCP, or over gRPC |
//! | `load`, `lanes` | closed loops, windows of time, latencies |
//! | `ground`, `servers` | the directory and the ports; processes, what they cost and their end |
//! | `outcome`, `statistics`, `table` | what was seen, and how it is shown |

pub mod bound;
pub mod command_line;
pub mod failover;
pub mod failure;
pub mod ground;
pub mod lanes;
pub mod load;
pub mod outcome;
pub mod peers;
pub mod rows;
pub mod run;
pub mod servers;
pub mod statistics;
pub mod table;
