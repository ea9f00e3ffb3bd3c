//! The checker's own test: it accepts what a correct log shows, and refuses each way of being wrong, by the right rule.

use super::model::good_history;
use super::mutations;
use super::proof;

#[test]
fn a_good_history_is_accepted() {
    for seed in 0..100 {
        assert_eq!(good_history(seed).check(), Ok(()), "seed {seed}");
    }
}

#[test]
fn every_mutated_history_is_refused_by_the_right_rule() {
    let proven = proof::prove(0..40);
    for one in &proven {
        assert!(one.tried >= 10, "{}: applied to {} histories only", one.name, one.tried);
        assert!(one.missed.is_none(), "{}: {}", one.name, one.missed.as_deref().unwrap_or_default());
    }
    assert_eq!(proven.len(), mutations::ALL.len());
}

#[test]
fn every_rule_refuses_some_mutation() {
    let refused: Vec<&str> = proof::prove(0..40).iter().flat_map(|one| one.rules.iter().copied()).collect();
    for rule in super::rules::ALL {
        assert!(refused.contains(rule), "no mutation is refused by {rule}");
    }
}

#[test]
fn an_empty_history_is_good() {
    assert_eq!(super::History::default().check(), Ok(()));
}
