//! How results are shown: results on standard output, progress on standard error and on a terminal only.
//!
//! A reader that goes away is no error: whoever printed into a closed pipe ends quietly with what was found so far unsaid.

use crate::run::{Report, World};
use crate::sweep::Swept;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process;

/// Events that a failure is told with; `--log` tells all.
const EVENTS_MAX: usize = 60;

/// Prints one line of results.
pub fn line(text: &str) {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    or_gone(written);
}

/// Ends the process quietly if the reader of our output is gone.
pub fn or_gone(written: io::Result<()>) {
    if let Err(error) = written {
        process::exit(if error.kind() == ErrorKind::BrokenPipe { 0 } else { 2 });
    }
}

/// A line that is written over and over, while somebody looks.
pub struct Progress {
    shown: bool,
    terminal: bool,
}

impl Progress {
    pub fn new() -> Progress {
        Progress { shown: false, terminal: io::stderr().is_terminal() }
    }

    pub fn show(&mut self, text: impl FnOnce() -> String) {
        if self.terminal {
            self.shown = true;
            drop(write!(io::stderr(), "\r\x1b[K{}", text()));
        }
    }

    pub fn clear(&mut self) {
        if self.shown {
            drop(write!(io::stderr(), "\r\x1b[K"));
            self.shown = false;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How a sweep is getting on.
pub fn getting_on(swept: &Swept) -> String {
    format!(
        "{} world: {} seeds in {:.0} s, {:.1} a second, {} failed",
        swept.world.world,
        grouped(swept.seeds),
        swept.took.as_secs_f64(),
        swept.per_second(),
        swept.failures.len()
    )
}

/// What a sweep came to, in one line.
pub fn summary(swept: &Swept) -> String {
    let runs = swept.seeds.max(1) as f64;
    let mut text = format!(
        "{} world: {} seeds in {:.1} s on {} threads, {} an hour; ",
        swept.world.world,
        grouped(swept.seeds),
        swept.took.as_secs_f64(),
        swept.jobs,
        grouped((swept.per_second() * 3600.0) as u64),
    );
    let passed = swept.seeds > swept.failures.len() as u64;
    let least = |number: u64| if passed { format!(" (least {number})") } else { String::new() };
    let _ = write!(
        text,
        "a run: {:.1} simulated s, {:.1} faults{}, {:.1} operations{}, {} MiB at most; {} failed",
        swept.simulated_ms as f64 / 1000.0 / runs,
        swept.faults as f64 / runs,
        least(swept.faults_least),
        swept.operations as f64 / runs,
        least(swept.operations_least),
        swept.bytes_most >> 20,
        swept.failures.len()
    );
    text
}

/// A broken rule: the seed, its options, what was seen, the last events, and the command that runs it again.
pub fn failure(report: &Report, replay: &str) -> String {
    let mut text = String::new();
    let Some(violation) = &report.violation else { return text };
    let _ = writeln!(text, "FAILED: {} world, seed {}", report.world, report.seed);
    let _ = writeln!(text, "  options  {}", report.options);
    let _ = writeln!(text, "  rule     {}", violation.rule);
    let _ = writeln!(text, "  seen     {}", violation.what.replace('\n', "\n           "));
    let events = &violation.events[violation.events.len().saturating_sub(EVENTS_MAX)..];
    if !events.is_empty() {
        let _ = writeln!(text, "  the last {} events of the nodes concerned:", events.len());
    }
    for event in events {
        let _ = writeln!(text, "    {event}");
    }
    let _ = write!(text, "  replay   {replay}");
    text
}

/// What a single replayed seed came to, if it broke no rule.
pub fn passed(report: &Report) -> String {
    format!(
        "{} world, seed {}: passed; {:.1} simulated s, {} faults, {} operations, trace {:016x}\n  options  {}",
        report.world,
        report.seed,
        report.simulated_ms as f64 / 1000.0,
        report.faults,
        report.operations,
        report.trace_hash,
        report.options
    )
}

/// The command that runs one seed again and tells everything.
pub fn replay(world: World, seed: u64, others: &str) -> String {
    format!("cargo sim --world {world} --seed {seed}{others} --log")
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
