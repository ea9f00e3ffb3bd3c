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
    &["disk", "views", "clock", "limits", "ids", "telemetry", "probe"],
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
    let root = root();
    rust_files(&root.join("src"))
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
    for (name, text) in sources() {
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
    for (name, text) in sources() {
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
    for dir in ["src", "tests", "proto"] {
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
            // The poll of a wait-until helper is the one place where a pause is no guess.
            assert!(
                !sleeps || line.contains("POLL"),
                "{}:{}: a sleep instead of a condition",
                path.display(),
                number + 1
            );
        }
    }
}
