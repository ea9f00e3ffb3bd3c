//! `cargo sim coverage`: was everything seen that can happen? What stays at zero over a sweep is a hole in the net.
//!
//! Each world must see every class of faults and every event that it says it knows; the worlds together must take every branch
//! that is marked with `reached!` in `src/`. The marks are found in the sources as they are now.

use crate::command_line::{BROKEN, HELD, USAGE};
use crate::coverage::Coverage;
use crate::print;
use crate::run::World;
use crate::sweep::Swept;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

const MARK: &str = "reached!(\"";

/// Tells how often everything was seen; fails if something was not that had to be.
pub fn tell(swept: &[Swept]) -> u8 {
    let marks = match marks() {
        Ok(marks) => marks,
        Err(error) => {
            eprintln!("the sources can't be searched for marked branches: {error}");
            return USAGE;
        }
    };
    let (mut never, mut all) = (Vec::new(), Coverage::default());
    for one in swept {
        all.merge(&one.coverage);
        for (name, count) in one.coverage.iter().filter(|(name, _)| !name.starts_with("branch.")) {
            print::line(&format!("{:<6} {name:<40} {:>14}", one.world.world, print::grouped(count)));
        }
        let faults = one.world.faults.iter().map(|class| format!("fault.{class}"));
        let triggers = one.world.triggers.iter().map(|trigger| format!("trigger.{trigger}"));
        let unseen = faults.chain(triggers).filter(|name| one.coverage.count(name) == 0);
        never.extend(unseen.map(|name| format!("{name}, in the {} world", one.world.world)));
    }
    for mark in &marks {
        let count = all.count(&format!("branch.{mark}"));
        let by: Vec<&str> = swept
            .iter()
            .filter(|one| one.coverage.count(&format!("branch.{mark}")) > 0)
            .map(|one| one.world.world.name())
            .collect();
        print::line(&format!("{:<6} branch.{mark:<33} {:>14}  {}", "", print::grouped(count), by.join(", ")));
    }
    // One world alone can't take the branches of the other.
    if swept.len() == World::ALL.len() {
        let unseen = marks.iter().map(|mark| format!("branch.{mark}")).filter(|name| all.count(name) == 0);
        never.extend(unseen);
    }
    for name in &never {
        print::line(&format!("NEVER  {name}"));
    }
    print::line(&format!(
        "{} counters, {} marked branches; {} never seen",
        all.iter().count(),
        marks.len(),
        never.len()
    ));
    if never.is_empty() {
        HELD
    } else {
        BROKEN
    }
}

/// The names of all marked branches.
fn marks() -> io::Result<BTreeSet<String>> {
    let root =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let mut marks = BTreeSet::new();
    collect(&root.join("src"), &mut marks)?;
    Ok(marks)
}

fn collect(dir: &Path, marks: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, marks)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let after = code.flat_map(|line| line.split(MARK).skip(1));
            marks.extend(after.filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned()));
        }
    }
    Ok(())
}
