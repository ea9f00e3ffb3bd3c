//! The bound from end to end: three real processes, real files and sockets.

use balsa_compare::command_line::Options;
use balsa_compare::ground::Ground;
use balsa_compare::load::{Load, Mode, Timing};
use balsa_compare::peers::{Bound, Peer};
use std::path::{Path, PathBuf};
use std::time::Duration;

const QUICK: Timing = Timing { warmup: Duration::from_millis(100), measured: Duration::from_millis(400) };

fn load(in_flight: usize, batch: usize, record_bytes: usize) -> Load {
    Load { mode: Mode::Stream, in_flight, batch, record_bytes }
}

#[tokio::test]
async fn the_bound_acknowledges_every_kind_of_load_and_leaves_nothing() {
    let ground = Ground::new(Path::new(env!("CARGO_TARGET_TMPDIR")), false).expect("the target directory is on a disk");
    let mut bound = Bound::new(&Options::by_default()).with_program(PathBuf::from(env!("CARGO_BIN_EXE_balsa-compare")));
    bound.start(&ground).await.expect("it starts");
    for load in [load(1, 1, 100), load(64, 1, 100), load(1000, 1, 100), load(32, 100, 1024)] {
        let measured = bound.load(&load, QUICK).await.expect("it acknowledges");
        assert!(measured.records_per_s > 0.0 && measured.p50_ms <= measured.p99_ms, "{load:?}: {measured:?}");
    }
    let probe = bound.servers().cpu();
    assert!(probe.time() > Duration::ZERO, "its processes did something");
    bound.stop();
    assert_eq!(probe.time(), Duration::ZERO, "no process is left");
    let dir = ground.cluster("bound").expect("an empty directory");
    drop(ground);
    assert!(!dir.exists(), "no data is left");
}

#[tokio::test]
async fn a_dead_node_is_told_of_and_not_waited_for() {
    let below = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dead");
    std::fs::create_dir_all(&below).expect("a directory of its own");
    let ground = Ground::new(&below, false).expect("the target directory is on a disk");
    let mut bound = Bound::new(&Options::by_default()).with_program(PathBuf::from("/bin/false"));
    let failure = bound.start(&ground).await.expect_err("it can't start");
    assert!(failure.told().contains("ended with"), "{}", failure.told());
}
