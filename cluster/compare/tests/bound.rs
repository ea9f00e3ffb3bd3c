//! The bounds from end to end: three real processes, real files and sockets.

use balsa_compare::command_line::Options;
use balsa_compare::ground::Ground;
use balsa_compare::load::{Load, Mode, Timing};
use balsa_compare::peers::{Bound, Over, Peer};
use std::path::{Path, PathBuf};
use std::time::Duration;

const QUICK: Timing = Timing { warmup: Duration::from_millis(100), measured: Duration::from_millis(400) };

fn load(mode: Mode, in_flight: usize, batch: usize, record_bytes: usize) -> Load {
    Load { mode, in_flight, batch, record_bytes }
}

/// A directory of this test's own: the tests of this file share a process, and so the name below it.
fn ground(test: &str) -> Ground {
    let below = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&below).expect("a directory of its own");
    Ground::new(&below, false).expect("the target directory is on a disk")
}

async fn acknowledges_every_kind_of_load_and_leaves_nothing(over: Over, modes: &[Mode]) {
    let ground = ground(&format!("{over:?}"));
    let program = PathBuf::from(env!("CARGO_BIN_EXE_balsa-compare"));
    let mut bound = Bound::new(&Options::by_default(), over).with_program(program);
    bound.start(&ground).await.expect("it starts");
    for mode in modes {
        for (in_flight, batch, record_bytes) in [(1, 1, 100), (64, 1, 100), (1000, 1, 100), (32, 100, 1024)] {
            let load = load(*mode, in_flight, batch, record_bytes);
            let measured = bound.load(&load, QUICK).await.expect("it acknowledges");
            assert!(measured.records_per_s > 0.0 && measured.p50_ms <= measured.p99_ms, "{load:?}: {measured:?}");
        }
    }
    bound.attempt(0).await.expect("it still takes a single record");
    let probe = bound.servers().cpu();
    assert!(probe.time() > Duration::ZERO, "its processes did something");
    bound.stop();
    assert_eq!(probe.time(), Duration::ZERO, "no process is left");
    let dir = ground.cluster(bound.key()).expect("an empty directory");
    drop(ground);
    assert!(!dir.exists(), "no data is left");
}

#[tokio::test]
async fn the_bound_acknowledges_every_kind_of_load_and_leaves_nothing() {
    acknowledges_every_kind_of_load_and_leaves_nothing(Over::Tcp, &[Mode::Stream]).await;
}

#[tokio::test]
async fn over_grpc_it_does_so_by_calls_and_by_streams() {
    acknowledges_every_kind_of_load_and_leaves_nothing(Over::Grpc, &[Mode::Unary, Mode::Stream]).await;
}

#[tokio::test]
async fn a_dead_node_is_told_of_and_not_waited_for() {
    let ground = ground("dead");
    for over in [Over::Tcp, Over::Grpc] {
        let mut bound = Bound::new(&Options::by_default(), over).with_program(PathBuf::from("/bin/false"));
        let failure = bound.start(&ground).await.expect_err("it can't start");
        assert!(failure.told().contains("ended with"), "{}", failure.told());
    }
}
