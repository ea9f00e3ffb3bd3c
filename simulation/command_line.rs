//! The command `cargo sim`: what can be asked for, and in which order it is done and told.

use crate::campaign::{self, HuntArgs, PlantedArgs};
use crate::checker;
use crate::faults::{FaultClass, FaultSet};
use crate::print::{self, Progress};
use crate::run::{Registered, Report, Request, World};
use crate::seen;
use crate::sweep::{self, Plan, Swept};
use crate::trace::Detail;
use crate::worlds;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::process::ExitCode;
use std::time::Duration;

/// Every seed held every rule.
pub const HELD: u8 = 0;
/// A rule was broken, a planted bug was not found, a counter stayed at zero.
pub const BROKEN: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;

/// Seeds of each world, where nothing was said.
const SEEDS_DEFAULT: u64 = 200;

const ABOUT: &str = "\
Runs clusters in a simulated world, under faults, and checks every rule at every step.

Each run follows from its seed: the same seed gives the same run, to the byte. Without options, a short sweep of both worlds.";

const EXAMPLES: &str = "\
Try it:
  cargo sim                                    200 seeds of each world
  cargo sim --minutes 60                       as many as there is time for, half of it for each world
  cargo sim --world core --seed 123 --log      one seed again, with everything that happened
  cargo sim --faults kill,power-loss,rot-bit   only these classes of faults
  cargo sim planted                            are all planted bugs found?
  cargo sim coverage                           was everything that can happen seen?

Exit codes: 0 all held, 1 something did not, 2 wrong usage. docs/simulation.md tells the rest.";

#[derive(Parser)]
#[command(name = "cargo sim", bin_name = "cargo sim", about = ABOUT, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    sweep: SweepArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Tests the checker of histories: good ones must be accepted, and mutated ones refused by the right rule
    Checker {
        /// So many good histories
        #[arg(long, value_name = "N", default_value_t = 200)]
        histories: u64,
        /// So many seeds of the whole world, whose histories are mutated too
        #[arg(long, value_name = "N", default_value_t = 20)]
        runs: u64,
    },
    /// Switches each planted bug on, and runs seeds until it is found
    Planted(PlantedArgs),
    /// Sweeps, tells how often everything was seen, and fails if something was not that can happen
    Coverage(SweepArgs),
    #[command(hide = true)]
    Hunt(HuntArgs),
}

/// Which worlds.
#[derive(Clone, Copy, ValueEnum)]
pub enum Worlds {
    /// Pure replicas over real journals and segments, in one event queue: quick, and reorders single messages
    Core,
    /// The shipped node and client, from the gRPC doors down to the disk, under a simulated network and clock
    Whole,
    /// One after the other
    Both,
}

impl Worlds {
    pub fn name(self) -> &'static str {
        match self {
            Worlds::Core => "core",
            Worlds::Whole => "whole",
            Worlds::Both => "both",
        }
    }

    pub fn registered(self) -> Vec<Registered> {
        match self {
            Worlds::Core => worlds::chosen(&[World::Core]),
            Worlds::Whole => worlds::chosen(&[World::Whole]),
            Worlds::Both => worlds::chosen(&World::ALL),
        }
    }
}

/// What each run may hold; it goes into the command that replays a seed.
#[derive(Args, Clone)]
pub struct Conditions {
    /// Only these classes of faults, with commas between, or `none`; each seed switches some of them off
    #[arg(long, value_name = "LIST", value_parser = fault_set)]
    pub faults: Option<FaultSet>,
    /// Damage more than a minority of the copies of records: then only refusing to serve is right, never a wrong answer
    #[arg(long)]
    pub over_budget: bool,
    /// Switch on a planted bug, by its name
    #[arg(long, value_name = "NAME")]
    pub plant: Option<String>,
}

impl Conditions {
    fn allowed(&self) -> FaultSet {
        self.faults.clone().unwrap_or_else(FaultSet::all)
    }

    /// The request for a run under them.
    pub fn request(&self, seed: u64, detail: Detail) -> Request {
        Request { seed, allowed: self.allowed(), over_budget: self.over_budget, detail }
    }

    /// As they are written on the command line.
    fn written(&self) -> String {
        let mut text = String::new();
        if let Some(faults) = &self.faults {
            let list = if faults.0.is_empty() { "none".to_owned() } else { faults.to_string() };
            text.push_str(&format!(" --faults {list}"));
        }
        if self.over_budget {
            text.push_str(" --over-budget");
        }
        if let Some(name) = &self.plant {
            text.push_str(&format!(" --plant {name}"));
        }
        text
    }
}

#[derive(Args)]
struct SweepArgs {
    /// Which world
    #[arg(long, value_enum, default_value = "both")]
    world: Worlds,
    /// So many seeds, of each world
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed; the others follow one by one
    #[arg(long, value_name = "K", default_value_t = 1)]
    from: u64,
    /// This seed alone
    #[arg(long, value_name = "K", conflicts_with_all = ["seeds", "from", "minutes"])]
    seed: Option<u64>,
    /// For so long, shared by the worlds
    #[arg(long, value_name = "M", value_parser = minutes)]
    minutes: Option<Duration>,
    #[command(flatten)]
    conditions: Conditions,
    /// Tell everything that happens, in simulated time; see the legend in docs/simulation.md
    #[arg(long, requires = "seed")]
    log: bool,
    /// Run each seed twice: equal hashes, or the rule `determinism` is broken
    #[arg(long)]
    twice: bool,
    /// Go on until so many seeds failed
    #[arg(long, value_name = "N", default_value_t = 1)]
    failures: usize,
    #[command(flatten)]
    jobs: Jobs,
}

/// How many at once.
#[derive(Args, Clone, Copy)]
pub struct Jobs {
    /// Seeds at once [default: one for each processor]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
}

impl Jobs {
    pub fn count(self) -> usize {
        self.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }
}

fn fault_set(list: &str) -> Result<FaultSet, String> {
    match list {
        "all" => return Ok(FaultSet::all()),
        "none" => return Ok(FaultSet(Default::default())),
        _ => {}
    }
    let class = |name: &str| {
        FaultClass::from_name(name.trim()).ok_or_else(|| {
            let known: Vec<&str> = FaultClass::ALL.iter().map(|class| class.name()).collect();
            format!("there is no class of faults {name:?}; there are: {}", known.join(", "))
        })
    };
    list.split(',').map(class).collect::<Result<_, _>>().map(FaultSet)
}

/// A time in minutes, parts of one included.
pub fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "minutes are a number".to_owned())?;
    Duration::try_from_secs_f64(minutes * 60.0).map_err(|_| "minutes are a number that is not negative".to_owned())
}

/// Parses the command line and does what it says.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let code = match cli.command {
        None => swept(&cli.sweep),
        Some(Command::Planted(args)) => campaign::run(&args),
        Some(Command::Hunt(args)) => campaign::hunt_alone(&args),
        Some(Command::Coverage(args)) => covered(&args),
        Some(Command::Checker { histories, runs }) => checker::run(histories, runs),
    };
    ExitCode::from(code)
}

fn swept(args: &SweepArgs) -> u8 {
    let worlds = args.world.registered();
    if worlds.is_empty() {
        eprintln!("this build holds no such world");
        return USAGE;
    }
    balsa::probe::plant(args.conditions.plant.as_deref());
    if let Some(seed) = args.seed {
        return worlds.iter().map(|world| one_seed(args, *world, seed)).max().unwrap_or(HELD);
    }
    let time = args.minutes.map(|time| time / worlds.len() as u32);
    let mut code = HELD;
    for world in worlds {
        let plan = plan(args, world, time);
        let swept = sweep_showing(&plan);
        code = code.max(tell(&plan, &args.conditions, &swept));
    }
    code
}

fn covered(args: &SweepArgs) -> u8 {
    let worlds = args.world.registered();
    let time = args.minutes.map(|time| time / worlds.len().max(1) as u32);
    let (mut code, mut all) = (HELD, Vec::new());
    for world in worlds {
        let plan = plan(args, world, time);
        let swept = sweep_showing(&plan);
        code = code.max(tell(&plan, &args.conditions, &swept));
        all.push(swept);
    }
    code.max(seen::tell(&all))
}

fn plan(args: &SweepArgs, world: Registered, time: Option<Duration>) -> Plan {
    let seeds_default = time.is_none().then_some(SEEDS_DEFAULT);
    Plan {
        world,
        from: args.from,
        seeds: args.seeds.or(seeds_default),
        time,
        allowed: args.conditions.allowed(),
        over_budget: args.conditions.over_budget,
        twice: args.twice,
        jobs: args.jobs.count(),
        failures_max: args.failures.max(1),
    }
}

/// Sweeps, and shows how it is getting on.
pub fn sweep_showing(plan: &Plan) -> Swept {
    let mut progress = Progress::new();
    sweep::sweep(plan, |swept| progress.show(|| print::getting_on(swept)))
}

/// Tells what a sweep came to: each failed seed, run again with its events kept, and one line for all.
fn tell(plan: &Plan, conditions: &Conditions, swept: &Swept) -> u8 {
    for failed in &swept.failures {
        let again = with_events(plan, failed);
        print::line(&print::failure(&again, &print::replay(again.world, again.seed, &conditions.written())));
    }
    print::line(&print::summary(swept));
    if swept.failures.is_empty() {
        HELD
    } else {
        BROKEN
    }
}

/// A failed seed again, with its events kept; what it gave at first, if that is not what it gives now.
fn with_events(plan: &Plan, failed: &Report) -> Report {
    let first = || Report {
        coverage: Default::default(),
        options: failed.options.clone(),
        violation: failed.violation.clone(),
        ..*failed
    };
    let rule = failed.violation.as_ref().map(|violation| violation.rule);
    if matches!(rule, Some("stuck" | "determinism")) {
        return first();
    }
    let mut again = sweep::run_once(&plan.world, &plan.request(failed.seed, Detail::Last));
    if again.violation.as_ref().map(|violation| violation.rule) != rule {
        again = first();
        if let Some(violation) = &mut again.violation {
            violation.what.push_str("\n(run again, it came out otherwise: the run is not deterministic)");
        }
    }
    again
}

fn one_seed(args: &SweepArgs, world: Registered, seed: u64) -> u8 {
    let plan = plan(args, world, None);
    let others = args.conditions.written();
    let report = if args.log {
        // With both, the second run is told: held against the log of a first one it shows where they part.
        if args.twice {
            sweep::run_once(&world, &plan.request(seed, Detail::Hash));
        }
        sweep::run_once(&world, &plan.request(seed, Detail::Printed))
    } else {
        sweep::run_seed(&plan, seed)
    };
    match (&report.violation, args.log) {
        (None, _) => print::line(&print::passed(&report)),
        (Some(_), true) => print::line(&print::failure(&report, &print::replay(world.world, seed, &others))),
        (Some(_), false) => {
            print::line(&print::failure(&with_events(&plan, &report), &print::replay(world.world, seed, &others)));
        }
    }
    if report.violation.is_none() {
        HELD
    } else {
        BROKEN
    }
}
