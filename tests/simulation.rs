//! The simulator, as far as `cargo test` goes: its own tests, a bounded sweep of both worlds with each seed run twice, and a part
//! of the planted bugs that is another every day.
//!
//! The parts that need no cluster are compiled into this file. The rest is `cargo sim` itself, built with its own flags into its
//! own directory: some minutes the first time. What it prints goes straight through.

// What their own tests do not use is used by the simulator.
#![allow(dead_code)]

#[cfg(not(madsim))]
#[path = "../simulation/coverage.rs"]
mod coverage;
#[cfg(not(madsim))]
#[path = "../simulation/faults.rs"]
mod faults;
#[cfg(not(madsim))]
#[path = "../simulation/history/mod.rs"]
mod history;
#[cfg(not(madsim))]
#[path = "../simulation/memory.rs"]
mod memory;
#[cfg(not(madsim))]
#[path = "../simulation/panics.rs"]
mod panics;
#[cfg(not(madsim))]
#[path = "../simulation/run.rs"]
mod run;
#[cfg(not(madsim))]
#[path = "../simulation/sweep.rs"]
mod sweep;
#[cfg(not(madsim))]
#[path = "../simulation/trace.rs"]
mod trace;

#[cfg(not(madsim))]
mod tests {
    use std::env;
    use std::io::{self, Write};
    use std::process::Command;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    /// Seeds of the sweep, each run twice.
    const CORE_SEEDS: u32 = 150;
    const WHOLE_SEEDS: u32 = 50;

    /// A day's part of the planted bugs is one in so many.
    const PARTS: u64 = 12;

    /// For each of them; most take seconds.
    const MINUTES_EACH: u32 = 3;

    const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

    /// Both use all processors: one after the other.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Past the test runner, which keeps what a test prints until it fails.
    fn say(text: &str) {
        let _ = writeln!(io::stderr(), "simulation: {text}");
    }

    fn cargo_sim(args: &[&str]) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["--locked", "sim"]).args(args);
        // They would take the place of the flags that make the simulated world.
        for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"] {
            command.env_remove(flags);
        }
        command
    }

    fn run(args: &[&str]) {
        let began = Instant::now();
        say(&format!("cargo sim {}", args.join(" ")));
        let status = cargo_sim(args).status().expect("cargo starts");
        assert!(status.success(), "cargo sim {}: {status}", args.join(" "));
        say(&format!("done in {:.0} s", began.elapsed().as_secs_f64()));
    }

    fn build() {
        say("building; some minutes the first time");
        run(&["checker", "--histories", "5", "--runs", "5"]);
    }

    #[test]
    fn every_swept_seed_keeps_every_rule_and_run_twice_gives_the_same_hash() {
        let _alone = alone();
        build();
        run(&["--world", "core", "--twice", "--seeds", &CORE_SEEDS.to_string()]);
        run(&["--world", "whole", "--twice", "--seeds", &WHOLE_SEEDS.to_string()]);
    }

    #[test]
    fn the_planted_bugs_of_the_day_are_found() {
        let _alone = alone();
        build();
        let listed = cargo_sim(&["planted", "--list"]).output().expect("cargo starts");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout).expect("names are text");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let part = now / SECONDS_PER_DAY % PARTS;
        let of_the_day = (0..).zip(listed.lines()).filter(|(at, _)| at % PARTS == part).map(|(_, name)| name);
        let names = of_the_day.collect::<Vec<_>>().join(",");
        say(&format!("part {part} of {PARTS} of the planted bugs"));
        assert!(!names.is_empty(), "no planted bug is listed");
        run(&["planted", "--minutes-each", &MINUTES_EACH.to_string(), "--only", &names]);
    }
}
