//! `cargo sim checker`: the history checker put to the test, in words.

use crate::command_line::{BROKEN, HELD};
use crate::history::{model, proof};
use crate::print;

/// Accepts `histories` good histories, refuses them mutated, and tells each way of being wrong with the rules that refused it.
pub fn run(histories: u64) -> u8 {
    let mut code = HELD;
    let mut accepted = 0;
    for seed in 0..histories {
        match model::good_history(seed).check() {
            Ok(()) => accepted += 1,
            Err(broken) => {
                code = BROKEN;
                print::line(&format!("WRONG: good history {seed} refused by {}: {}", broken.rule, broken.what));
            }
        }
    }
    let proven = proof::prove(0..histories);
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
    let refused: u64 = proven.iter().filter(|one| one.missed.is_none()).map(|one| one.tried).sum();
    print::line(&format!(
        "{accepted} of {histories} good histories accepted; {} mutated ones refused, in {} ways",
        print::grouped(refused),
        proven.iter().filter(|one| one.missed.is_none()).count()
    ));
    code
}
