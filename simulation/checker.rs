//! `cargo sim checker`: the history checker put to the test, in words: on histories from a model, and on those of real runs.

use crate::command_line::{BROKEN, HELD};
use crate::faults::FaultSet;
use crate::history::proof::{self, Proven};
use crate::history::{model, rules, History};
use crate::print;
use crate::run::Request;
use crate::trace::Detail;
use crate::whole;
use std::collections::BTreeSet;
use std::thread;

/// Rules that no change of a recorded history breaks alone: what is out of order there is refused by another one first.
const SHADOWED: &[&str] = &[];

/// Accepts `histories` good histories of a model and of as many seeds of the whole world as `runs` says, refuses them mutated, and tells each way of
/// being wrong with the rules that refused it.
pub fn run(histories: u64, runs: u64) -> u8 {
    let good: Vec<(u64, History)> = (0..histories).map(|seed| (seed, model::good_history(seed))).collect();
    let mut code = tell("of the model", &good).0;
    let real: Vec<(u64, History)> = (1..=runs).filter_map(|seed| Some((seed, history_of(seed)?))).collect();
    if !real.is_empty() {
        let (told, refused) = tell("of real runs", &real);
        code = code.max(told);
        for rule in rules::ALL.iter().filter(|rule| !refused.contains(*rule) && !SHADOWED.contains(*rule)) {
            code = BROKEN;
            print::line(&format!("MISSED          no mutated history of a real run was refused by {rule}"));
        }
    }
    code
}

/// What clients saw of a run that keeps all rules.
fn history_of(seed: u64) -> Option<History> {
    let request = Request { seed, allowed: FaultSet::all(), over_budget: false, detail: Detail::Hash };
    // On a thread of its own, like every run.
    let ran = thread::spawn(move || whole::run_and_keep(&request)).join();
    let (report, history) = ran.ok()?;
    report.violation.is_none().then_some(history)
}

/// Which rules refused something.
fn tell(whose: &str, good: &[(u64, History)]) -> (u8, BTreeSet<&'static str>) {
    let mut code = HELD;
    let mut accepted = 0;
    for (seed, history) in good {
        match history.check() {
            Ok(()) => accepted += 1,
            Err(broken) => {
                code = BROKEN;
                print::line(&format!("WRONG: good history {seed} refused by {}: {}", broken.rule, broken.what));
            }
        }
    }
    let proven = proof::prove_on(good);
    for one in &proven {
        let rules: Vec<&str> = one.rules.iter().copied().collect();
        match &one.missed {
            None => print::line(&format!("refused {:>6}  {}: {}", one.tried, one.name, rules.join(", "))),
            Some(missed) => {
                code = BROKEN;
                print::line(&format!("MISSED          {}: {missed}", one.name));
            }
        }
    }
    let held = |one: &&Proven| one.missed.is_none() && one.tried > 0;
    let refused: u64 = proven.iter().filter(held).map(|one| one.tried).sum();
    print::line(&format!(
        "{accepted} of {} good histories {whose} accepted; {} mutated ones refused, in {} of {} ways",
        good.len(),
        print::grouped(refused),
        proven.iter().filter(held).count(),
        proven.len()
    ));
    (code, proven.into_iter().flat_map(|one| one.rules).collect())
}
