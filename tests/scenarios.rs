//! Runs the text scenarios of `tests/scenarios/*.txt`: pure replicas over a network and disks in memory, one step at a
//! time, with the expected output between the steps. `docs/scenarios.md` says how to read, write and rewrite them.
//!
//! Whatever a scenario tells, the rules of `checks` hold after every step, or the run fails.

#[path = "scenarios/checks.rs"]
mod checks;
#[path = "scenarios/cluster.rs"]
mod cluster;
#[path = "scenarios/commands.rs"]
mod commands;
#[path = "scenarios/machine.rs"]
mod machine;
#[path = "scenarios/storm.rs"]
mod storm;
#[path = "scenarios/unsound.rs"]
mod unsound;
#[path = "scenarios/words.rs"]
mod words;

use commands::Stage;
use std::cell::Cell;
use std::fmt::Write as _;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};

const PROMPT: &str = "> ";

/// The file with every command's output as it is now.
fn played(text: &str, at: &Cell<usize>) -> String {
    let mut stage = Stage::default();
    let mut out = String::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        at.set(number + 1);
        writeln!(out, "{line}").expect("a string takes text");
        let Some(command) = line.strip_prefix(PROMPT) else { continue };
        while lines.peek().is_some_and(|(_, line)| !line.is_empty() && !line.starts_with(PROMPT)) {
            lines.next(); // the output of an earlier run
        }
        for line in stage.run(command) {
            writeln!(out, "{line}").expect("a string takes text");
        }
    }
    stage.end();
    out
}

fn scenario_files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let files = std::fs::read_dir(dir).expect("the scenarios lie beside this file");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a readable directory").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    files
}

#[test]
fn every_scenario_plays_as_written() {
    let rewrite = std::env::var_os("BALSA_REWRITE").is_some_and(|value| value == "1");
    let files = scenario_files();
    assert!(files.len() >= 40, "only {} scenarios found", files.len());
    let mut failures = Vec::new();
    for file in files {
        let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file).expect("a readable scenario");
        let at = Cell::new(0);
        match catch_unwind(AssertUnwindSafe(|| played(&text, &at))) {
            Err(_) => failures.push(format!("{name}:{}: broke a rule (above)", at.get())),
            Ok(now) if now == text => {}
            Ok(now) if rewrite => std::fs::write(&file, now).expect("a writable scenario"),
            Ok(now) => failures.push(format!("{name}:{}", first_difference(&text, &now))),
        }
    }
    assert!(failures.is_empty(), "\n{}\n(BALSA_REWRITE=1 rewrites the expected output)", failures.join("\n"));
}

fn first_difference(expected: &str, now: &str) -> String {
    let (mut left, mut right) = (expected.lines(), now.lines());
    for number in 1.. {
        let pair = (left.next(), right.next());
        if pair.0 != pair.1 {
            return format!(
                "{number}\n  expected {:?}\n  now      {:?}",
                pair.0.unwrap_or("end"),
                pair.1.unwrap_or("end")
            );
        }
    }
    unreachable!("texts that differ have a line that does")
}

#[test]
fn a_scenario_that_tells_something_else_is_noticed() {
    let text = "> cluster 3\n\n> propose 1 a\nanswer a: appended at 0 as 2/1\n";
    assert_ne!(played(text, &Cell::new(0)), text);
}

/// The same commands, drawn by chance: whatever happens, the rules hold, and once all is healed the group goes on. A
/// seed that fails prints its commands, to be made a scenario of.
#[test]
fn the_rules_hold_in_a_storm() {
    let seeds = std::env::var("BALSA_STORM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(150);
    let failed: Vec<u64> = (0..seeds).filter(|seed| !storm::weathers(*seed)).collect();
    assert!(failed.is_empty(), "seeds {failed:?} fail; their commands are above");
}
