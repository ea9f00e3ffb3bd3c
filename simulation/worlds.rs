//! The worlds that this build holds, and what each of them can do. Decides nothing else: a world is a function.
//!
//! A world's module offers `run`, `FAULTS` (the classes it knows) and `TRIGGERS` (the events it aims at), and is listed here.

use crate::run::{Registered, World};
use crate::{core, whole};

/// All of them, the quickest first.
pub fn registered() -> Vec<Registered> {
    vec![
        Registered { world: World::Core, run: core::run, faults: core::FAULTS, triggers: core::TRIGGERS },
        Registered { world: World::Whole, run: whole::run, faults: whole::FAULTS, triggers: whole::TRIGGERS },
    ]
}

/// Those of this choice that this build holds.
pub fn chosen(worlds: &[World]) -> Vec<Registered> {
    registered().into_iter().filter(|one| worlds.contains(&one.world)).collect()
}
