//! The course of a run: found a cluster, make topics, let clients loose, strike, heal, and look whether all came well out of it.
//!
//! Once or more in a run there is a calm: all is healed but a partial partition, or a leader that can't reach its followers, which
//! must not keep the others from going on.

use super::aims::Aims;
use super::clients::{self, Clients, Log, Shared};
use super::ending::{self, LIVENESS_BOUND};
use super::machine::{End, Happened, Machine, Process, Watch};
use super::options::Options;
use super::stage::{now_us, Stage};
use super::strikes::{Machines, Stricken, Strikes};
use super::trials::{self, Trial};
use crate::history::PartitionKey;
use balsa::client::{Client, ClientOptions, NewTopic};
use madsim::runtime::{Handle, NodeHandle};
use madsim::task::JoinHandle;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use uuid::Uuid;

/// In this time after all is healed nodes have found each other again.
const LINKS_MADE_US: u64 = 4_000_000;
/// Simulated time in which faults strike.
const RUN_US: u64 = 60_000_000;
/// Where long elections left clients little time they go on, after all was healed, until they have done so much.
const OPERATIONS_LEAST: u64 = 300;
/// Nothing takes longer than this.
const LONGEST_US: u64 = 600_000_000;

/// Returns the simulated milliseconds that it took.
pub async fn run(options: Arc<Options>, stage: Stage, seed: u64) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x3a11_d0e5);
    let (tell, mut told) = mpsc::unbounded_channel::<Happened>();
    let aims = Arc::new(Aims::new(stage.clone(), tell.clone()));
    let watch: Arc<dyn Watch> = aims.clone();
    let machines: Machines =
        (1..=options.nodes).map(|id| Arc::new(Machine::new(id, &options, &stage, tell.clone(), rng.gen()))).collect();
    for machine in &machines {
        machine.start(&watch);
    }
    // What the world itself asks of the cluster it asks from a machine like a client's.
    let desk = Handle::current().create_node().name("desk").ip([10, 0, 2, 1].into()).build();
    let desk_client = desk_client(&options, rng.gen());
    let making = make_topics(options.clone(), stage.clone(), desk_client.clone());
    let Ok(Some(logs)) = desk.spawn(making).await else {
        stage.broke("liveness", "no topic could be made, though nothing was wrong".to_owned(), &[]);
        return now_us() / 1_000;
    };
    let shared = Arc::new(Shared::new(options.clone(), stage.clone(), logs.clone()));
    let mut clients = Clients::start(&shared, rng.gen());
    let mut strikes = Strikes::new(Stricken {
        options: options.clone(),
        stage: stage.clone(),
        machines: machines.clone(),
        clients: clients.machines.iter().map(|machine| machine.id()).collect(),
        desk: desk.clone(),
        desk_client: desk_client.clone(),
        logs,
        aims,
        rng: StdRng::seed_from_u64(rng.gen()),
    });
    let mut end_us = now_us() + RUN_US;
    if rng.gen_bool(0.6) && strikes.may_calm() {
        let calm_us = now_us() + rng.gen_range(RUN_US / 5..RUN_US * 3 / 5);
        if rng.gen_bool(0.5) {
            strikes.spare();
        }
        strikes.until(calm_us, &mut told).await;
        calm(&mut strikes, &mut told, &shared, &desk, &desk_client).await;
        end_us += now_us() - calm_us;
        strikes.go_on();
    }
    strikes.until(end_us, &mut told).await;
    strikes.heal();
    let resuming = desk.spawn(ending::resumes(shared.clone(), desk_client.clone()));
    let resumed = wait(&mut strikes, &mut told, resuming).await;
    let within_budget = !options.over_budget;
    if within_budget {
        judge(&stage, "after all was healed", resumed);
    }
    let enough = desk.spawn(until_enough(stage.clone()));
    wait(&mut strikes, &mut told, enough).await;
    shared.stop();
    let ended = desk.spawn(clients.ended());
    wait(&mut strikes, &mut told, ended).await;
    let up = machines.iter().filter(|machine| !matches!(machine.process(), Process::Refusing(_))).map(|one| one.id);
    let (nodes, may_refuse) = (up.collect(), strikes.damaged().clone());
    let converging = desk.spawn(ending::converge(shared.clone(), desk_client, nodes, may_refuse));
    let converged = wait(&mut strikes, &mut told, converging).await;
    if within_budget {
        judge(&stage, "after all was healed", converged);
    }
    if !stage.is_broken() {
        let checked = stage.lock().history.check();
        if let Err(broken) = checked {
            stage.broke(broken.rule, broken.what, &[]);
        }
    }
    let took_ms = now_us() / 1_000;
    end_all(&machines, &clients, &desk);
    madsim::time::sleep(Duration::from_millis(5)).await;
    took_ms
}

async fn until_enough(stage: Stage) {
    while !stage.is_broken() && stage.lock().operations < OPERATIONS_LEAST && now_us() < LONGEST_US {
        madsim::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All is healed but for one thing, and what was promised for that is judged; then for nothing.
async fn calm(
    strikes: &mut Strikes,
    told: &mut mpsc::UnboundedReceiver<Happened>,
    shared: &Arc<Shared>,
    desk: &NodeHandle,
    desk_client: &Client,
) {
    let resumes = || desk.spawn(ending::resumes(shared.clone(), desk_client.clone()));
    let stage = &shared.stage;
    let trial = strikes.calm();
    if matches!(trial, Some((Trial::Cut, _))) {
        // A madsim server takes one connection after the other, and waits for what each says first: if the cut held that up, nobody else
        // would be let in until it is mended. So nodes have their links by then.
        strikes.until(now_us() + LINKS_MADE_US, told).await;
        strikes.cut_in_calm();
    }
    let resumed = wait(strikes, told, resumes()).await;
    judge(stage, "while a majority was connected", resumed);
    let (rule, trying, node) = match trial {
        Some((Trial::Full, node)) if !stage.is_broken() => {
            wait(strikes, told, desk.spawn(trials::prepare(desk_client.clone()))).await;
            strikes.fill(true);
            (trials::REFUSED_FULL, desk.spawn(trials::full(shared.clone(), desk_client.clone(), node)), node)
        }
        Some((Trial::Alone, node)) if !stage.is_broken() => {
            strikes.isolate(node);
            (trials::REFUSED_ALONE, desk.spawn(trials::alone(shared.clone(), node)), node)
        }
        _ => return,
    };
    let lives = strikes.lives();
    match wait(strikes, told, trying).await {
        // A journal that has to grow beyond what is left ends its node, as it says when it starts: such a one refuses nothing.
        Some(Err(_)) if rule == trials::REFUSED_FULL && strikes.lives() != lives => stage.hit("calm.full-ended"),
        Some(Err(what)) => stage.broke(rule, what, &[node]),
        None if !stage.is_broken() => stage.broke(rule, "no end in sight".to_owned(), &[node]),
        _ => {}
    }
    strikes.mend();
    if rule == trials::REFUSED_FULL {
        strikes.fill(false);
    }
    let resumed = wait(strikes, told, resumes()).await;
    judge(stage, "after what was wrong had passed", resumed);
}

/// Lets things happen until a task has ended.
async fn wait<T: Send + 'static>(
    strikes: &mut Strikes,
    told: &mut mpsc::UnboundedReceiver<Happened>,
    mut task: JoinHandle<T>,
) -> Option<T> {
    tokio::select! {
        biased;
        ended = &mut task => ended.ok(),
        () = strikes.until(now_us() + LONGEST_US, told) => {
            task.abort();
            None
        }
    }
}

fn judge(stage: &Stage, when: &str, came: Option<Result<(), String>>) {
    match came {
        Some(Ok(())) => {}
        Some(Err(what)) => stage.broke("liveness", format!("{when}: {what}"), &[]),
        None if stage.is_broken() => {}
        None => stage.broke("liveness", format!("{when}: no end in sight, {LIVENESS_BOUND:?} were allowed"), &[]),
    }
}

/// Ends what still runs, so that nothing of the run outlives it.
fn end_all(machines: &Machines, clients: &Clients, desk: &NodeHandle) {
    for machine in machines {
        machine.end(End::Kill);
    }
    for client in clients.machines.iter().chain([desk]) {
        Handle::current().kill(client.id());
    }
}

fn desk_client(options: &Options, seed: u64) -> Client {
    let client_options = ClientOptions {
        timeout: Duration::from_secs(5),
        unreachable_timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(1),
        attempt_timeout: Duration::from_secs(1),
        seed,
    };
    Client::connect(clients::servers(options), client_options).expect("addresses are addresses")
}

async fn make_topics(options: Arc<Options>, stage: Stage, client: Client) -> Option<Vec<Log>> {
    let mut logs = Vec::new();
    for (number, partitions) in options.topics.iter().enumerate() {
        let name = format!("events{number}");
        let new = NewTopic { partitions: Some(*partitions), replication: Some(options.nodes), batch_bytes_max: None };
        let topic = loop {
            if let Err(error) = client.create_topic(&name, &new).await {
                stage.event(0, "topic", &[], || format!("{name}: {error}"));
            }
            if let Ok(topic) = client.describe_topic(&name).await {
                break topic;
            }
            if now_us() > 2 * LIVENESS_BOUND.as_micros() as u64 {
                return None;
            }
            madsim::time::sleep(Duration::from_millis(100)).await;
        };
        let id = Uuid::parse_str(&topic.id).expect("a topic's id is a UUID").as_u128();
        logs.extend(topic.partitions.iter().map(|partition| Log {
            topic: name.clone(),
            partition: partition.partition,
            group: partition.group.0,
            key: PartitionKey { topic: id, partition: u64::from(partition.partition) },
        }));
    }
    Some(logs)
}
