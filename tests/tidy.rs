//! Keeps house: the table of imports, module documentation, no clocks or randomness in pure code, no long files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors of the house, from the top. A module may import from floors below its own and from its own, not from above.
const FLOORS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["node"],
    &["api"],
    &["router"],
    &["partition", "metadata"],
    &["group"],
    &["segments", "client", "inspect"],
    &["journal", "batch", "peers"],
    &["disk", "clock", "limits", "ids", "telemetry", "probe", "usage", "watch"],
];

/// Pure code: no async, clocks, locks, randomness, or iteration in the order of a hash.
const PURE: &[&str] = &[
    "src/ids.rs",
    "src/limits.rs",
    "src/batch",
    "src/partition",
    "src/metadata",
    "src/peers/outbox.rs",
    "src/journal/base.rs",
    "src/segments/frame.rs",
    "src/segments/verdict.rs",
    "src/group",
];

/// Below `src/group`, what performs effects may await.
const NOT_PURE: &[&str] = &["src/group/driver"];

const FORBIDDEN_IN_PURE: &[&str] = &[
    "async fn",
    ".await",
    "tokio::",
    "tonic::",
    "sled::",
    "std::thread",
    "SystemTime",
    "Instant::",
    "rand::",
    "thread_rng",
    "HashMap",
    "HashSet",
    "Mutex",
    "RwLock",
];

/// What would make a simulated run differ from its repetition: nothing that runs in one may ask for it.
const NOT_DETERMINISTIC: &[&str] = &[
    "HashMap",
    "HashSet",
    "RandomState",
    "thread_rng",
    "rand::random",
    "from_entropy",
    "OsRng",
    "getrandom",
    "new_v4",
    "std::time::Instant",
    "SystemTime",
    "std::thread",
    "sync::watch",
];

/// Whoever may all the same, and what.
const MAY_ALL_THE_SAME: &[(&str, &[&str], &str)] = &[
    ("src/clock.rs", &["SystemTime"], "the one source of wall-clock time; the simulator skews it"),
    ("src/disk/real.rs", &["std::thread"], "stands in for nothing simulated: the simulated disk takes its place"),
    ("src/watch.rs", &["sync::watch"], "takes its place in the simulation: it wakes by a random number"),
    ("src/client/mod.rs", &["rand::random"], "the default of an option that the simulator sets"),
    ("simulation/sweep.rs", &["std::time::Instant", "std::thread"], "runs are begun, bounded and counted by real time"),
    ("simulation/campaign.rs", &["std::time::Instant", "std::thread"], "a bug is hunted for so many real minutes"),
    ("simulation/checker.rs", &["std::thread"], "a run has a thread of its own"),
    ("simulation/panics.rs", &["std::thread"], "names the thread that panicked"),
    ("simulation/command_line.rs", &["std::thread"], "counts processors"),
];

/// Runs in no simulation: the command line, and what real processes start from.
const OUTSIDE: &[&str] = &["src/cli", "src/main.rs"];

/// Where wall-clock time or unseeded randomness may be asked for at all.
const CLOCK_SOURCES: &[&str] = &["src/clock.rs"];

/// Past this many lines a file's first comment must say why it is that long.
const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("source directory is readable") {
        let path = entry.expect("entry is readable").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    sources_below("src")
}

fn sources_below(dir: &str) -> Vec<(String, String)> {
    let root = root();
    rust_files(&root.join(dir))
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().replace('\\', "/");
            (name, fs::read_to_string(path).expect("source is readable"))
        })
        .collect()
}

/// The code before the file's own tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

fn module_of(name: &str) -> &str {
    let path = name.trim_start_matches("src/");
    path.split(['/', '.']).next().unwrap_or(path)
}

fn floor_of(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn imported_modules(text: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let before = text[..at].chars().next_back().unwrap_or(' ');
        if before == ':' || before == '_' || before.is_alphanumeric() {
            continue;
        }
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        modules.insert(name);
    }
    modules
}

#[test]
fn imports_run_down_only() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let module = module_of(&name);
        if module == "lib" || module == "main" {
            continue;
        }
        let floor = floor_of(module).unwrap_or_else(|| panic!("{name}: module {module} has no floor in the table"));
        for imported in imported_modules(code(&text)) {
            match floor_of(&imported) {
                Some(other) if other < floor => wrong.push(format!("{name} imports from {imported}, a floor above it")),
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "imports run down only:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    for (name, text) in sources().into_iter().chain(sources_below("simulation")) {
        assert!(text.starts_with("//! "), "{name} does not open with its duty");
    }
}

#[test]
fn pure_code_asks_for_no_clock_randomness_lock_or_hash_order() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let tests = ["/tests.rs", "/histories.rs"].iter().any(|file| name.ends_with(file));
        let pure =
            PURE.iter().any(|path| name.starts_with(path)) && !NOT_PURE.iter().any(|path| name.starts_with(path));
        if tests || !pure {
            continue;
        }
        for (number, line) in code(&text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for forbidden in FORBIDDEN_IN_PURE.iter().filter(|forbidden| line.contains(**forbidden)) {
                wrong.push(format!("{name}:{}: {forbidden}", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "pure code holds:\n{}", wrong.join("\n"));
}

/// The code, `use` lines with several names in braces taken apart: `use std::{thread, time::Instant}` hides nothing.
fn mentions(line: &str, what: &str) -> bool {
    if line.contains(what) {
        return true;
    }
    let Some((path, name)) = what.rsplit_once("::") else { return false };
    let Some((before, braced)) = line.trim_start().strip_prefix("use ").and_then(|line| line.split_once("::{")) else {
        return false;
    };
    let names = braced.trim_end_matches(['}', ';']).split(", ").map(|one| one.split("::").last().unwrap_or(one));
    (path.starts_with(before) || before.ends_with(path))
        && names.map(|one| one.trim_matches(['{', '}'])).any(|one| one == name)
}

#[test]
fn what_runs_in_a_simulation_asks_for_no_clock_randomness_thread_or_hash_order() {
    let mut wrong = Vec::new();
    for (name, text) in sources().into_iter().chain(sources_below("simulation")) {
        let tests = ["/tests.rs", "/histories.rs"].iter().any(|file| name.ends_with(file));
        if tests || OUTSIDE.iter().any(|path| name.starts_with(path)) {
            continue;
        }
        let excepted = MAY_ALL_THE_SAME.iter().filter(|(file, ..)| *file == name).flat_map(|(_, what, _)| *what);
        let excepted: Vec<&str> = excepted.copied().collect();
        for (number, line) in code(&text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for forbidden in NOT_DETERMINISTIC.iter().filter(|what| mentions(line, what)) {
                if !excepted.contains(forbidden) {
                    wrong.push(format!("{name}:{}: {forbidden}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "no two runs are alike with:\n{}", wrong.join("\n"));
}

#[test]
fn a_select_tries_its_branches_in_their_order() {
    let mut wrong = Vec::new();
    let inside = |name: &str| !OUTSIDE.iter().any(|path| name.starts_with(path));
    for (name, text) in sources().into_iter().chain(sources_below("simulation")).filter(|(name, _)| inside(name)) {
        for (at, _) in text.match_indices("select! {") {
            let first = text[at + "select! {".len()..].trim_start();
            if !first.starts_with("biased;") {
                wrong.push(format!("{name}:{}", text[..at].lines().count()));
            }
        }
    }
    assert!(wrong.is_empty(), "picks at random, unless it begins with `biased;`:\n{}", wrong.join("\n"));
}

#[test]
fn wall_clock_time_has_one_source() {
    for (name, text) in sources() {
        if CLOCK_SOURCES.contains(&name.as_str()) {
            continue;
        }
        assert!(
            !code(&text).contains("SystemTime::now"),
            "{name} asks for wall-clock time; src/clock.rs is its source"
        );
    }
}

#[test]
fn long_files_say_why() {
    for (name, text) in sources().into_iter().chain(sources_below("simulation")) {
        let lines = text.lines().count();
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(
            lines <= LINES_MAX || head.contains("long because"),
            "{name} has {lines} lines and does not say why in its head (\"long because\")"
        );
    }
}

#[test]
fn nothing_is_left_undone() {
    let root = root();
    for dir in ["src", "tests", "proto", "simulation"] {
        for path in rust_files(&root.join(dir)) {
            if path.ends_with("tests/tidy.rs") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("source is readable");
            for mark in ["todo!(", "unimplemented!(", "#[ignore", "FIXME", "XXX"] {
                assert!(!text.contains(mark), "{}: {mark}", path.display());
            }
        }
    }
}

#[test]
fn tests_wait_for_conditions_not_for_time() {
    let root = root();
    for path in rust_files(&root.join("tests")) {
        if path.ends_with("tests/tidy.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("source is readable");
        for (number, line) in text.lines().enumerate() {
            // Simulated time is no guess: nothing else happens meanwhile but what the test ordered.
            let sleeps =
                line.contains("thread::sleep") || line.replace("madsim::time::sleep", "").contains("time::sleep");
            // The poll of a wait-until helper is no guess either, nor how long a test freezes a process before it thaws it.
            assert!(
                !sleeps || line.contains("POLL") || line.contains("sleep_until(thaw)"),
                "{}:{}: a sleep instead of a condition",
                path.display(),
                number + 1
            );
        }
    }
}

/// What stands between `opening` and the next quote, wherever it does.
fn quoted_after<'a>(text: &'a str, opening: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(opening).skip(1).filter_map(|rest| rest.split('"').next())
}

#[test]
fn every_planted_bug_is_listed_and_every_listed_one_planted() {
    let sources = sources();
    let planted: BTreeSet<&str> = sources
        .iter()
        .filter(|(name, _)| name != "src/probe.rs")
        .flat_map(|(_, text)| quoted_after(text, "planted!(\""))
        .collect();
    let list = fs::read_to_string(root().join("simulation/plants.rs")).expect("source is readable");
    let listed: Vec<&str> = quoted_after(&list, "\n        name: \"").collect();
    assert_eq!(listed.len(), listed.iter().collect::<BTreeSet<_>>().len(), "a bug is listed twice");
    assert_eq!(planted, listed.into_iter().collect(), "planted in the code, and listed in simulation/plants.rs");
}

#[test]
fn every_marked_branch_has_a_name_of_its_own() {
    let sources = sources();
    let marks = sources.iter().filter(|(name, _)| name != "src/probe.rs");
    let mut marks: Vec<&str> = marks.flat_map(|(_, text)| quoted_after(text, "reached!(\"")).collect();
    marks.sort_unstable();
    let twice: Vec<&str> = marks.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    assert!(twice.is_empty(), "marked twice: {twice:?}");
}

/// The words of a table's first column that stand between backticks.
fn first_column(page: &str) -> BTreeSet<&str> {
    page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}

#[test]
fn the_page_on_the_simulator_names_all_faults_triggers_rules_and_planted_bugs() {
    let read = |path: &str| fs::read_to_string(root().join(path)).expect("source is readable");
    let page = read("docs/simulation.md");
    let told = first_column(&page);
    let (faults, history, steps) =
        (read("simulation/faults.rs"), read("simulation/history/rules.rs"), read("simulation/rules/mod.rs"));
    let plants = read("simulation/plants.rs");
    let faults =
        faults.lines().filter_map(|line| line.trim().strip_suffix("\",")?.rsplit_once(" = \"")).map(|(_, name)| name);
    let history = quoted_after(&history, ": &str = \"");
    let steps = steps.lines().filter_map(|line| line.strip_prefix("//! | `")?.split('`').next());
    let named: BTreeSet<&str> =
        faults.chain(history).chain(steps).chain(quoted_after(&plants, "\n        name: \"")).collect();
    assert!(named.len() > 100, "names are found where they are written");
    let missing: Vec<&&str> = named.difference(&told).collect();
    assert!(missing.is_empty(), "docs/simulation.md does not tell: {missing:?}");
}

#[test]
fn the_lint_looks_into_braces() {
    assert!(mentions("use std::time::{Duration, Instant};", "std::time::Instant"));
    assert!(mentions("use std::{env, thread};", "std::thread"));
    assert!(mentions("use tokio::sync::{mpsc, watch};", "sync::watch"));
    assert!(!mentions("use tokio::time::{Duration, Instant};", "std::time::Instant"));
    assert!(!mentions("use tokio::sync::mpsc;", "sync::watch"));
}
