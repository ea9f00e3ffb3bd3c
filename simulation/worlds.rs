//! The worlds that this build holds, and what each of them can do. Decides nothing else: a world is a function.
//!
//! A world's module offers `run`, `FAULTS` (the classes it knows), `TRIGGERS` (the events it aims at) and `ONCE_FAILED` (seeds that found
//! something), and is listed here.

use crate::run::{Registered, World};
use crate::{core, whole};

/// All of them, the quickest first.
pub fn registered() -> Vec<Registered> {
    vec![
        Registered {
            world: World::Core,
            run: core::run,
            faults: core::FAULTS,
            triggers: core::TRIGGERS,
            once_failed: core::ONCE_FAILED,
        },
        Registered {
            world: World::Whole,
            run: whole::run,
            faults: whole::FAULTS,
            triggers: whole::TRIGGERS,
            once_failed: whole::ONCE_FAILED,
        },
    ]
}

/// Those of this choice that this build holds.
pub fn chosen(worlds: &[World]) -> Vec<Registered> {
    registered().into_iter().filter(|one| worlds.contains(&one.world)).collect()
}
