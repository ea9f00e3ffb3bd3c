//! The checker put to the test: good histories must be accepted, each mutated one refused by the right rule.

#[cfg(test)]
use super::model::good_history;
use super::mutations;
use super::History;
use rand::rngs::StdRng;
use rand::SeedableRng;
use std::collections::BTreeSet;
#[cfg(test)]
use std::ops::Range;

/// What came of one mutation.
pub struct Proven {
    pub name: &'static str,
    /// Histories that it applied to.
    pub tried: u64,
    /// The rules that refused it.
    pub rules: BTreeSet<&'static str>,
    /// The first history that was not refused, or by a rule that has nothing to do with it.
    pub missed: Option<String>,
}

/// Mutates the good history of each seed in every way.
#[cfg(test)]
pub fn prove(seeds: Range<u64>) -> Vec<Proven> {
    let good: Vec<(u64, History)> = seeds.map(|seed| (seed, good_history(seed))).collect();
    prove_on(&good)
}

/// The same on given histories, by seed; they must be good.
pub fn prove_on(good: &[(u64, History)]) -> Vec<Proven> {
    mutations::ALL
        .iter()
        .map(|mutation| {
            let mut proven = Proven { name: mutation.name, tried: 0, rules: BTreeSet::new(), missed: None };
            for (seed, history) in good {
                let (mut bad, mut rng) = (history.clone(), StdRng::seed_from_u64(*seed));
                // What was trimmed, or seen by nobody, can be changed without a trace.
                if !(mutation.apply)(&mut bad, &mut rng) || bad == *history {
                    continue;
                }
                proven.tried += 1;
                match bad.check() {
                    Err(broken) if mutation.rules.contains(&broken.rule) => {
                        proven.rules.insert(broken.rule);
                    }
                    Err(broken) => {
                        let missed = format!("history {seed} was refused by {}: {}", broken.rule, broken.what);
                        proven.missed.get_or_insert(missed);
                    }
                    Ok(()) => {
                        proven.missed.get_or_insert(format!("history {seed} was accepted"));
                    }
                }
            }
            proven
        })
        .collect()
}
