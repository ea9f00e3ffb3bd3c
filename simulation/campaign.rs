//! `cargo sim planted`: is every planted bug found, by which rule, at which seed, and how soon?
//!
//! Each bug is hunted by a process of its own, for a bug may do anything: end the process, or never end a run. The hunter
//! tells what it begins and ends, line by line; when it dies, what it had begun is tried again one by one. A seed counts only
//! if it holds every rule without the bug.

use crate::command_line::{Conditions, Jobs, Worlds, BROKEN, HELD, USAGE};
use crate::plants::{self, Plant};
use crate::print::{self, Progress};
use crate::run::{Registered, Report, World};
use crate::sweep;
use crate::trace::Detail;
use clap::Args;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{env, thread};

/// How often a seed that fails without the bug too may be passed over before the bug counts as missed.
const PASSED_OVER_MAX: u32 = 20;

#[derive(Args)]
pub struct PlantedArgs {
    /// Only these bugs, with commas between
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    only: Vec<String>,
    /// Only say what there is
    #[arg(long)]
    list: bool,
    /// For so long at most, each
    #[arg(long, value_name = "M", default_value = "10", value_parser = crate::command_line::minutes)]
    minutes_each: Duration,
    /// Where to look; both worlds are searched side by side
    #[arg(long, value_enum, default_value = "both")]
    world: Worlds,
    /// The first seed
    #[arg(long, value_name = "K", default_value_t = 1)]
    from: u64,
    #[command(flatten)]
    jobs: Jobs,
}

/// What a hunting process is told; not for people.
#[derive(Args)]
pub struct HuntArgs {
    #[arg(long, value_enum)]
    world: Worlds,
    #[arg(long)]
    from: u64,
    #[arg(long)]
    seeds: Option<u64>,
    #[arg(long)]
    milliseconds: u64,
    #[command(flatten)]
    conditions: Conditions,
    #[command(flatten)]
    jobs: Jobs,
}

/// A seed under which a bug was found.
struct Find {
    world: World,
    seed: u64,
    rule: String,
}

/// What came of one bug.
struct Hunted {
    find: Option<Find>,
    took: Duration,
    /// Runs that held, by world.
    held: [u64; 2],
    /// Seeds that fail without the bug too.
    passed_over: u32,
}

pub fn run(args: &PlantedArgs) -> u8 {
    let unknown: Vec<&String> =
        args.only.iter().filter(|name| plants::PLANTS.iter().all(|one| one.name != **name)).collect();
    if !unknown.is_empty() {
        eprintln!("no bug is planted under the name of {unknown:?}; `cargo sim planted --list` tells them");
        return USAGE;
    }
    let wanted = |plant: &&Plant| args.only.is_empty() || args.only.iter().any(|name| name == plant.name);
    let here = |plant: &&Plant| places(args.world, plant).is_some();
    let wanted: Vec<&Plant> = plants::PLANTS.iter().filter(wanted).filter(here).collect();
    if args.list {
        wanted.iter().for_each(|plant| print::line(plant.name));
        return HELD;
    }
    let (mut found, mut passed_over) = (Vec::new(), 0);
    for plant in &wanted {
        let hunted = hunt_down(args, plant);
        passed_over += hunted.passed_over;
        print::line(&told(plant, &hunted));
        if hunted.find.is_some() {
            found.push((hunted.took, plant.name));
        }
    }
    found.sort_unstable();
    print::line(&summary(wanted.len(), &found, passed_over));
    if found.len() == wanted.len() && passed_over == 0 {
        HELD
    } else {
        BROKEN
    }
}

fn told(plant: &Plant, hunted: &Hunted) -> String {
    let Plant { name, what, incident, .. } = plant;
    let seconds = hunted.took.as_secs_f64();
    match &hunted.find {
        Some(Find { world, seed, rule }) => {
            format!("found   {name:<44} {seconds:>6.1} s  by {rule:<26} {world:<5} seed {seed}")
        }
        None => {
            let [core, whole] = hunted.held;
            format!(
                "MISSED  {name:<44} {seconds:>6.1} s  in {core} seeds of the core world, {whole} of the whole world\n        \
                 {what}; as in {incident}"
            )
        }
    }
}

fn summary(wanted: usize, found: &[(Duration, &str)], passed_over: u32) -> String {
    let mut text = format!("{} of {wanted} planted bugs found", found.len());
    if let (Some((median, _)), Some((worst, name))) = (found.get(found.len() / 2), found.last()) {
        let (median, worst) = (median.as_secs_f64(), worst.as_secs_f64());
        text = format!("{text}; median {median:.1} s, worst {worst:.1} s ({name})");
    }
    if passed_over > 0 {
        text = format!("{text}; {passed_over} times a seed failed that fails without the bug too");
    }
    text
}

/// Where a bug can be found, as far as it is asked for.
fn places(asked: Worlds, plant: &Plant) -> Option<Worlds> {
    let asked = asked.registered();
    let mut places = asked.iter().map(|one| one.world).filter(|world| plant.worlds.contains(world));
    match (places.next(), places.next()) {
        (Some(_), Some(_)) => Some(Worlds::Both),
        (Some(world), None) => Some(worlds_of(world)),
        (None, _) => None,
    }
}

/// Hunts one bug until it is found or its time is over.
fn hunt_down(args: &PlantedArgs, plant: &Plant) -> Hunted {
    let (name, places) = (plant.name, places(args.world, plant).unwrap_or(args.world));
    let began = Instant::now();
    let mut hunted = Hunted { find: None, took: Duration::ZERO, held: [0; 2], passed_over: 0 };
    let mut from = args.from;
    let mut verifying = Duration::ZERO;
    loop {
        let spent = began.elapsed() - verifying;
        let left = args.minutes_each.saturating_sub(spent);
        let tried = hunt(args, Some(name), places, from, None, left, &mut hunted.held);
        hunted.took = began.elapsed() - verifying;
        let Some(find) = tried else { return hunted };
        let verification = Instant::now();
        let mut ignored = [0; 2];
        let alone = worlds_of(find.world);
        let without = hunt(args, None, alone, find.seed, Some(1), Duration::MAX, &mut ignored);
        verifying += verification.elapsed();
        if without.is_none() {
            hunted.find = Some(find);
            return hunted;
        }
        print::line(&format!("        {} world, seed {} fails without {name} too", find.world, find.seed));
        hunted.passed_over += 1;
        if hunted.passed_over == PASSED_OVER_MAX {
            return hunted;
        }
        from = find.seed + 1;
    }
}

fn worlds_of(world: World) -> Worlds {
    match world {
        World::Core => Worlds::Core,
        World::Whole => Worlds::Whole,
    }
}

/// Lets a process hunt. What it says is followed; if it dies, what it had begun is tried again, one by one.
fn hunt(
    args: &PlantedArgs,
    plant: Option<&str>,
    world: Worlds,
    from: u64,
    seeds: Option<u64>,
    time: Duration,
    held: &mut [u64; 2],
) -> Option<Find> {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut command = Command::new(env::current_exe().expect("the system tells where this program is"));
    command.args(["hunt", "--world", world.name(), "--from", &from.to_string()]);
    command.args(["--milliseconds", &milliseconds.to_string(), "--jobs", &args.jobs.count().to_string()]);
    if let Some(plant) = plant {
        command.args(["--plant", plant]);
    }
    if let Some(seeds) = seeds {
        command.args(["--seeds", &seeds.to_string()]);
    }
    let mut hunter = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the simulator starts itself again");
    let mut under_way: Vec<(World, u64)> = Vec::new();
    let mut find = None;
    let mut progress = Progress::new();
    for line in BufReader::new(hunter.stdout.take().expect("its output is piped")).lines().map_while(Result::ok) {
        let mut words = line.splitn(4, ' ');
        let (Some(verb), Some(world), Some(seed)) = (words.next(), words.next(), words.next()) else { continue };
        let (Some(world), Ok(seed)) = (World::from_name(world), seed.parse::<u64>()) else { continue };
        match verb {
            "begin" => under_way.push((world, seed)),
            "held" => {
                under_way.retain(|one| *one != (world, seed));
                held[world as usize] += 1;
                let [core, whole] = *held;
                progress.show(|| format!("{}: {core} seeds of core, {whole} of whole", plant.unwrap_or("nothing")));
            }
            "found" => {
                find = Some(Find { world, seed, rule: words.next().unwrap_or("unnamed").to_owned() });
                break;
            }
            _ => {}
        }
    }
    // It has told all it knows: a run that hangs, or one that goes on, is of no interest any more.
    if find.is_some() {
        drop(hunter.kill());
    }
    let ended = hunter.wait().expect("its end can be waited for");
    if find.is_some() || ended.success() {
        return find;
    }
    if seeds == Some(1) {
        return under_way.first().map(|&(world, seed)| Find { world, seed, rule: "process-ended".to_owned() });
    }
    let mut again = under_way.into_iter();
    again.find_map(|(world, seed)| hunt(args, plant, worlds_of(world), seed, Some(1), Duration::MAX, held))
}

/// The hunting process: seeds of its worlds until one breaks a rule, its time is over, or it is ended.
pub fn hunt_alone(args: &HuntArgs) -> u8 {
    balsa::probe::plant(args.conditions.plant.as_deref());
    let worlds = args.world.registered();
    let until = Instant::now().checked_add(Duration::from_millis(args.milliseconds));
    let next: Vec<AtomicU64> = worlds.iter().map(|_| AtomicU64::new(0)).collect();
    // Each world has threads of its own as far as there are threads; what is left over takes turns.
    let jobs = args.jobs.count();
    let telling = Mutex::new(());
    thread::scope(|scope| {
        for job in 0..jobs {
            let (worlds, next, telling) = (&worlds, &next, &telling);
            scope.spawn(move || {
                for turn in 0.. {
                    let at = if jobs >= worlds.len() { job % worlds.len() } else { turn % worlds.len() };
                    let number = next[at].fetch_add(1, Ordering::Relaxed);
                    let over = until.is_some_and(|until| Instant::now() >= until);
                    if over || args.seeds.is_some_and(|seeds| number >= seeds) {
                        return;
                    }
                    hunt_seed(args, &worlds[at], args.from.wrapping_add(number), telling);
                }
            });
        }
    });
    HELD
}

fn hunt_seed(args: &HuntArgs, world: &Registered, seed: u64, telling: &Mutex<()>) {
    let tell = |text: String| {
        let _one_at_a_time = telling.lock();
        print::line(&text);
    };
    tell(format!("begin {} {seed}", world.world));
    let report: Report = sweep::run_once(world, &args.conditions.request(seed, Detail::Hash));
    match report.violation {
        None => tell(format!("held {} {seed}", world.world)),
        Some(violation) => tell(format!("found {} {seed} {}", world.world, violation.rule)),
    }
}
