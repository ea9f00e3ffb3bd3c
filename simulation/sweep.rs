//! Many seeds over a few worker threads: each run on a thread of its own, its panics caught, its end waited for with a bound.
//!
//! A fresh thread per run is part of determinism: the hash maps of dependencies draw their keys per thread, so that they
//! iterate alike only on one that nothing ran on before. Wall-clock time lives here, and decides only how many seeds are run,
//! never what one of them does.

use crate::coverage::Coverage;
use crate::faults::FaultSet;
use crate::memory;
use crate::panics;
use crate::run::{Registered, Report, Request, Violation};
use crate::trace::Detail;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Stack of a run's thread. Only what is touched of it is memory.
const STACK_BYTES: usize = 64 << 20;

/// A run that takes longer hangs: it takes a second at most where nothing else is running.
const RUN_MAX: Duration = Duration::from_secs(120);

/// More than this no run holds at once, disks included: the most that was ever seen is a fraction of it.
const RUN_BYTES_MAX: u64 = 128 << 20;

/// How often those who wait for news look around.
const PROGRESS: Duration = Duration::from_millis(250);

/// What to run.
#[derive(Clone)]
pub struct Plan {
    pub world: Registered,
    /// The first seed, after those that failed once; the others follow it one by one.
    pub from: u64,
    /// No more than so many seeds, beside those that failed once.
    pub seeds: Option<u64>,
    /// None is begun after so long.
    pub time: Option<Duration>,
    pub allowed: FaultSet,
    pub over_budget: bool,
    /// Each seed is run twice, and the hashes must be equal.
    pub twice: bool,
    /// Worker threads.
    pub jobs: usize,
    /// Seeds that break a rule before no more are begun.
    pub failures_max: usize,
}

/// What came of it, or has so far.
pub struct Swept {
    pub world: Registered,
    pub jobs: usize,
    pub seeds: u64,
    pub took: Duration,
    pub simulated_ms: u64,
    pub faults: u64,
    pub operations: u64,
    /// Of the run with the fewest.
    pub faults_least: u64,
    /// Of the run with the fewest.
    pub operations_least: u64,
    /// The most memory that a run held at once.
    pub bytes_most: u64,
    pub coverage: Coverage,
    /// Of the seeds that broke a rule, by seed; without events.
    pub failures: Vec<Report>,
}

impl Swept {
    fn none(plan: &Plan) -> Swept {
        Swept {
            world: plan.world,
            jobs: plan.jobs,
            seeds: 0,
            took: Duration::ZERO,
            simulated_ms: 0,
            faults: 0,
            operations: 0,
            faults_least: u64::MAX,
            operations_least: u64::MAX,
            bytes_most: 0,
            coverage: Coverage::default(),
            failures: Vec::new(),
        }
    }

    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.simulated_ms += report.simulated_ms;
        self.faults += report.faults;
        self.operations += report.operations;
        self.bytes_most = self.bytes_most.max(report.bytes);
        self.coverage.merge(&report.coverage);
        if report.violation.is_some() {
            self.failures.push(report);
        } else {
            self.faults_least = self.faults_least.min(report.faults);
            self.operations_least = self.operations_least.min(report.operations);
        }
    }

    pub fn per_second(&self) -> f64 {
        self.seeds as f64 / self.took.as_secs_f64().max(1e-9)
    }
}

impl Plan {
    /// The request for one of its seeds.
    pub fn request(&self, seed: u64, detail: Detail) -> Request {
        Request { seed, allowed: self.allowed.clone(), over_budget: self.over_budget, detail }
    }
}

/// Runs the plan. `progress` is called a few times a second, on this thread.
pub fn sweep(plan: &Plan, mut progress: impl FnMut(&Swept)) -> Swept {
    let began = Instant::now();
    let (next, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
    let (told, news) = mpsc::channel();
    let mut swept = Swept::none(plan);
    thread::scope(|scope| {
        for _ in 0..plan.jobs.max(1) {
            let (told, next, stopped) = (told.clone(), &next, &stopped);
            scope.spawn(move || {
                while let Some(seed) = next_seed(plan, next, stopped, began) {
                    if told.send(run_seed(plan, seed)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(told);
        loop {
            match news.recv_timeout(PROGRESS) {
                Ok(report) => swept.add(report),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            swept.took = began.elapsed();
            if swept.failures.len() >= plan.failures_max {
                stopped.store(true, Ordering::Relaxed);
            }
            progress(&swept);
        }
    });
    swept.took = began.elapsed();
    swept.failures.sort_by_key(|report| report.seed);
    swept
}

fn next_seed(plan: &Plan, next: &AtomicU64, stopped: &AtomicBool, began: Instant) -> Option<u64> {
    if stopped.load(Ordering::Relaxed) || plan.time.is_some_and(|time| began.elapsed() >= time) {
        return None;
    }
    let number = next.fetch_add(1, Ordering::Relaxed);
    let once_failed = plan.world.once_failed;
    let Some(number) = number.checked_sub(once_failed.len() as u64) else {
        return Some(once_failed[number as usize].0);
    };
    let wanted = plan.seeds.is_none_or(|seeds| number < seeds);
    wanted.then(|| plan.from.wrapping_add(number))
}

/// Runs one seed of the plan, twice if the plan says so.
pub fn run_seed(plan: &Plan, seed: u64) -> Report {
    let request = plan.request(seed, Detail::Hash);
    let mut first = run_once(&plan.world, &request);
    if plan.twice && first.violation.is_none() {
        let second = run_once(&plan.world, &request);
        if let Some(violation) = difference(&first, &second) {
            first.violation = Some(violation);
        }
    }
    first
}

fn difference(first: &Report, second: &Report) -> Option<Violation> {
    if second.violation.is_none() && first.trace_hash == second.trace_hash {
        return None;
    }
    let mut what =
        format!("the first run's hash is {:016x}, the second's {:016x}", first.trace_hash, second.trace_hash);
    if let Some(violation) = &second.violation {
        what = format!("{what}; only the second broke {}: {}", violation.rule, violation.what);
    }
    Some(Violation { rule: "determinism", what, events: Vec::new() })
}

/// Runs a world once, on a thread of its own. A panic is the violation `panic`, a run without end `stuck`.
pub fn run_once(world: &Registered, request: &Request) -> Report {
    let (told, answer) = mpsc::channel();
    let (run, asked) = (world.run, request.clone());
    let thread = thread::Builder::new()
        .name(format!("{} world, seed {}", world.world, request.seed))
        .stack_size(STACK_BYTES)
        .spawn(move || {
            panics::keep_here();
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&asked)));
            let outcome = outcome.map_err(|_| panics::take().unwrap_or_else(|| "a panic nobody noted".to_owned()));
            let outcome = outcome.map(weighed);
            drop(told.send(outcome));
        })
        .expect("the system grants a thread");
    match answer.recv_timeout(RUN_MAX) {
        Ok(outcome) => {
            // Its thread-locals are destroyed before the next run begins, as they may be part of it.
            drop(thread.join());
            outcome.unwrap_or_else(|said| without_end(world, request, "panic", said))
        }
        Err(RecvTimeoutError::Disconnected) => {
            without_end(world, request, "panic", "the thread of the run ended without an answer".to_owned())
        }
        Err(RecvTimeoutError::Timeout) => {
            without_end(world, request, "stuck", format!("no end after {} s of wall-clock time", RUN_MAX.as_secs()))
        }
    }
}

/// Held against the bound of memory, too.
fn weighed(mut report: Report) -> Report {
    let bytes = memory::most();
    report.bytes = bytes;
    if bytes > RUN_BYTES_MAX && report.violation.is_none() {
        let what = format!("the run held {bytes} bytes at once; {RUN_BYTES_MAX} are far more than it needs");
        report.violation = Some(Violation { rule: "memory", what, events: Vec::new() });
    }
    report
}

/// The report of a run that gave none.
fn without_end(world: &Registered, request: &Request, rule: &'static str, what: String) -> Report {
    Report {
        seed: request.seed,
        world: world.world,
        options: "not known: the run gave no report".to_owned(),
        trace_hash: 0,
        simulated_ms: 0,
        faults: 0,
        operations: 0,
        bytes: 0,
        coverage: Coverage::default(),
        violation: Some(Violation { rule, what, events: Vec::new() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::World;

    fn held(request: &Request) -> Report {
        let mut coverage = Coverage::default();
        coverage.hit("fault.kill");
        Report {
            seed: request.seed,
            world: World::Core,
            options: String::new(),
            trace_hash: request.seed,
            simulated_ms: 60_000,
            faults: request.seed,
            operations: 300,
            bytes: 0,
            coverage,
            violation: None,
        }
    }

    fn breaks_a_rule_at_seven(request: &Request) -> Report {
        let violation = Violation { rule: "dense", what: String::new(), events: Vec::new() };
        Report { violation: (request.seed == 7).then_some(violation), ..held(request) }
    }

    fn panics_at_seven(request: &Request) -> Report {
        assert!(request.seed != 7, "seven is too much");
        held(request)
    }

    fn never_the_same(request: &Request) -> Report {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        Report { trace_hash: RUNS.fetch_add(1, Ordering::Relaxed), ..held(request) }
    }

    fn plan(run: fn(&Request) -> Report) -> Plan {
        Plan {
            world: Registered { world: World::Core, run, faults: &[], triggers: &[], once_failed: &[] },
            from: 1,
            seeds: Some(20),
            time: None,
            allowed: FaultSet::all(),
            over_budget: false,
            twice: false,
            jobs: 3,
            failures_max: 1,
        }
    }

    #[test]
    fn each_seed_of_a_plan_is_run_once() {
        let swept = sweep(&plan(held), |_| ());
        assert_eq!((swept.seeds, swept.faults, swept.faults_least), (20, 210, 1));
        assert_eq!(swept.coverage.count("fault.kill"), 20);
        assert!(swept.failures.is_empty());
    }

    #[test]
    fn seeds_that_failed_once_come_first() {
        let mut plan = plan(breaks_a_rule_at_seven);
        (plan.world.once_failed, plan.from, plan.jobs) = (&[(7, "it broke a rule")], 100, 1);
        let swept = sweep(&plan, |_| ());
        assert_eq!(swept.failures.iter().map(|failed| failed.seed).collect::<Vec<_>>(), [7]);
        assert!(swept.seeds < 20, "{} seeds were run", swept.seeds);
    }

    #[test]
    fn a_broken_rule_is_told_with_its_seed_and_no_more_seeds_are_begun() {
        let swept = sweep(&Plan { seeds: None, jobs: 1, ..plan(breaks_a_rule_at_seven) }, |_| ());
        assert_eq!(swept.failures.iter().map(|failed| failed.seed).collect::<Vec<_>>(), [7]);
        assert!(swept.seeds < 1_000, "{} seeds were run", swept.seeds);
    }

    #[test]
    fn a_panic_is_a_broken_rule_and_says_where() {
        let swept = sweep(&plan(panics_at_seven), |_| ());
        let failed = swept.failures.first().and_then(|failed| failed.violation.as_ref());
        let failed = failed.expect("seed seven fails");
        assert_eq!(failed.rule, "panic");
        assert!(failed.what.starts_with("seven is too much (") && failed.what.contains("sweep.rs:"), "{}", failed.what);
    }

    #[test]
    fn a_seed_that_runs_differently_the_second_time_is_not_deterministic() {
        let swept = sweep(&Plan { twice: true, ..plan(never_the_same) }, |_| ());
        let rules = swept.failures.iter().filter_map(|failed| failed.violation.as_ref()).map(|broken| broken.rule);
        assert!(!swept.failures.is_empty() && rules.into_iter().all(|rule| rule == "determinism"));
        assert!(sweep(&Plan { twice: true, ..plan(held) }, |_| ()).failures.is_empty());
    }

    #[test]
    fn a_plan_with_time_ends() {
        let swept = sweep(&Plan { seeds: None, time: Some(Duration::from_millis(50)), ..plan(held) }, |_| ());
        assert!(swept.seeds > 0);
    }
}
