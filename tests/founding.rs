//! How a cluster begins, and what a data directory will and will not be used for: over real sockets and a simulated disk.
#![cfg(not(madsim))]

use balsa::disk::sim::{SimDisk, Survival};
use balsa::disk::{self, Disk};
use balsa::ids::{Incarnation, NodeId};
use balsa::node::founding::{found, FoundingError, FoundingOptions};
use balsa::node::identity::{DataDir, FoundingNode, Genesis, IdentityError};
use balsa::peers::Door;
use balsa::telemetry::silent_logger;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// No condition in these tests takes as long unless it never comes.
const DEADLINE: Duration = Duration::from_secs(20);

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the condition comes before the deadline")
}

fn data() -> PathBuf {
    PathBuf::from("/data")
}

async fn open(disk: &SimDisk, node: u32, fresh: u8) -> Result<DataDir, IdentityError> {
    DataDir::open(Arc::new(disk.clone()), &data(), NodeId(node), Incarnation([fresh; 16])).await
}

async fn door() -> Door {
    Door::bind("127.0.0.1:0".parse().unwrap(), silent_logger()).await.unwrap()
}

type Founders = BTreeMap<NodeId, String>;

fn options(founders: &Founders, node: u32) -> FoundingOptions {
    let peer_address = founders.get(&NodeId(node)).cloned().unwrap_or("127.0.0.1:1".to_owned());
    FoundingOptions { founders: founders.clone(), client_address: format!("client-{node}:7400"), peer_address }
}

/// One node that may be founding: its disk, and the door that its configuration names.
struct Node {
    number: u32,
    disk: SimDisk,
    door: Door,
}

impl Node {
    async fn new(number: u32) -> Node {
        Node { number, disk: SimDisk::new(), door: door().await }
    }

    /// Founds under incarnation `fresh` if the directory is empty.
    async fn found(&self, founders: &Founders, fresh: u8) -> Result<Genesis, FoundingError> {
        let mut dir = open(&self.disk, self.number, fresh).await?;
        within(found(&self.door, &mut dir, &options(founders, self.number), &silent_logger())).await
    }

    /// The life of its process ends, its door with it; the directory stays, as after a loss of power.
    async fn crash(self) -> Node {
        Node { number: self.number, disk: self.disk.crash(1), door: door().await }
    }
}

fn founders(nodes: &[&Node]) -> Founders {
    nodes.iter().map(|node| (NodeId(node.number), node.door.local_address().to_string())).collect()
}

async fn three() -> (Node, Node, Node) {
    (Node::new(1).await, Node::new(2).await, Node::new(3).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_founders_agree_on_one_genesis_and_keep_it_through_a_loss_of_power() {
    let (one, two, three) = three().await;
    let all = founders(&[&one, &two, &three]);
    let (a, b, c) = tokio::join!(one.found(&all, 0xa), two.found(&all, 0xb), three.found(&all, 0xc));
    let genesis = a.unwrap();
    assert_eq!((&b.unwrap(), &c.unwrap()), (&genesis, &genesis));
    let incarnations: Vec<_> = genesis.founders.values().map(|founder| founder.incarnation.0[0]).collect();
    assert_eq!(incarnations, [0xa, 0xb, 0xc]);
    assert_eq!(genesis.founders[&NodeId(2)].client_address, "client-2:7400");
    assert_eq!(genesis.founders[&NodeId(3)].peer_address, all[&NodeId(3)]);
    // Nobody is asked any more: the other doors are gone.
    drop((two.door, three.door));
    let one = one.crash().await;
    assert_eq!(one.found(&all, 0xff).await.unwrap(), genesis);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_founds_itself_at_once() {
    let one = Node::new(1).await;
    let genesis = one.found(&founders(&[&one]), 0xa).await.unwrap();
    assert_eq!(genesis.founders.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_founds_before_all_founders_are_there() {
    let (one, two, three) = three().await;
    let all = founders(&[&one, &two, &three]);
    let mut early = Box::pin(async { tokio::join!(one.found(&all, 0xa), two.found(&all, 0xb)) });
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut early).await.is_err());
    let ((a, b), c) = tokio::join!(early, three.found(&all, 0xc));
    assert_eq!((a.unwrap(), b.unwrap()), {
        let c = c.unwrap();
        (c.clone(), c)
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_founder_is_refused_and_cannot_found_a_second_history() {
    let (one, two, three) = three().await;
    let all = founders(&[&one, &two, &three]);
    let (a, b, c) = tokio::join!(one.found(&all, 0xa), two.found(&all, 0xb), three.found(&all, 0xc));
    let cluster = a.unwrap().cluster_id;
    assert!(b.is_ok() && c.is_ok());
    // Two of three are wiped, a majority; the one that is left holds the history.
    let (two, three) = (Node { disk: SimDisk::new(), ..two }, Node { disk: SimDisk::new(), ..three });
    let (b, c) = tokio::join!(two.found(&all, 0x1b), three.found(&all, 0x1c));
    for (error, node, known) in [(b.unwrap_err(), 2, "0b0b"), (c.unwrap_err(), 3, "0c0c")] {
        assert!(matches!(error, FoundingError::Wiped { .. }), "{error}");
        let text = error.to_string();
        let parts = [format!("node {node}'s directory is empty"), cluster.to_string(), known.to_owned()];
        assert!(parts.iter().all(|part| text.contains(part)) && text.contains("restore that directory"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_that_crashed_before_it_synced_the_genesis_adopts_it() {
    let (one, two, three) = three().await;
    let all = founders(&[&one, &two, &three]);
    // Node 3 tells its incarnation to the others and dies: nothing but its identity is on its disk.
    let before = {
        let dir = open(&three.disk, 3, 0xc).await.unwrap();
        assert!(dir.genesis().is_none());
        three.disk.fork()
    };
    let (a, b, c) = tokio::join!(one.found(&all, 0xa), two.found(&all, 0xb), three.found(&all, 0xff));
    let genesis = a.unwrap();
    assert!(b.is_ok() && c.is_ok());
    let three = Node { disk: before.crash(2), ..three };
    assert_eq!(three.found(&all, 0xff).await.unwrap(), genesis, "adopted from the others, under its old incarnation");
    assert_eq!(open(&three.disk.crash(3), 3, 0xff).await.unwrap().genesis(), Some(&genesis), "and synced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founders_that_disagree_on_who_they_are_stop_and_name_both_lists() {
    let (one, two, three) = three().await;
    let all = founders(&[&one, &two, &three]);
    let fewer = founders(&[&one, &two]);
    let (a, b) = tokio::join!(one.found(&all, 0xa), two.found(&fewer, 0xb));
    let text = a.unwrap_err().to_string();
    assert!(text.contains("node 2 takes the founders to be [1, 2]") && text.contains("names [1, 2, 3]"), "{text}");
    assert!(matches!(b.unwrap_err(), FoundingError::FoundersDiffer { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_is_wrong_about_this_node_or_an_address_is_refused() {
    let (one, two, three) = three().await;
    let others = founders(&[&two, &three]);
    let error = one.found(&others, 0xa).await.unwrap_err().to_string();
    assert!(error.contains("node 1 is not among the founders") && error.contains("[2, 3]"), "{error}");

    let all = founders(&[&one, &two, &three]);
    let mut wrong = all.clone();
    wrong.insert(NodeId(3), all[&NodeId(2)].clone());
    let error = tokio::select! {
        error = one.found(&wrong, 0xa) => error,
        _ = two.found(&all, 0xb) => panic!("node 3 is not there"),
    };
    let text = error.unwrap_err().to_string();
    assert!(text.contains("is the address of node 3, but node 2 answers there"), "{text}");
}

#[tokio::test]
async fn a_fresh_directory_begins_a_life_that_lasts() {
    let disk = SimDisk::new();
    let first = open(&disk, 2, 0xa).await.unwrap();
    assert_eq!((first.node(), first.incarnation(), first.genesis()), (NodeId(2), Incarnation([0xa; 16]), None));
    let error = open(&disk, 2, 0xb).await.err().unwrap();
    assert!(matches!(error, IdentityError::InUse { .. }) && error.to_string().contains("/data is in use"), "{error}");
    drop(first);
    let again = open(&disk.crash(1), 2, 0xb).await.unwrap();
    assert_eq!(again.incarnation(), Incarnation([0xa; 16]), "a second start is the same life");
}

fn genesis_of_one(byte: u8) -> Genesis {
    let incarnation = Incarnation([byte; 16]);
    let founder = FoundingNode { incarnation, client_address: "a:1".to_owned(), peer_address: "a:2".to_owned() };
    Genesis::new(BTreeMap::from([(NodeId(2), founder)]))
}

#[tokio::test]
async fn a_directory_is_used_by_no_other_node_and_for_no_other_cluster() {
    let disk = SimDisk::new();
    let mut dir = open(&disk, 2, 0xa).await.unwrap();
    dir.record_genesis(genesis_of_one(0xa)).await.unwrap();
    dir.record_genesis(genesis_of_one(0xa)).await.unwrap();
    let error = dir.record_genesis(genesis_of_one(0xb)).await.unwrap_err();
    assert!(matches!(error, IdentityError::OtherCluster { .. }), "{error}");
    drop(dir);
    let text = open(&disk, 1, 0xa).await.err().unwrap().to_string();
    assert!(text.contains("/data is the directory of node 2, and this is node 1"), "{text}");
}

#[tokio::test]
async fn nothing_starts_empty_over_what_it_does_not_know() {
    let disk = SimDisk::new();
    let journal = data().join("journal");
    disk.create_dir_all(&journal).await.unwrap();
    let error = open(&disk, 2, 0xa).await.err().unwrap();
    assert!(matches!(error, IdentityError::NotEmpty { .. }), "{error}");
    assert!(error.to_string().contains("/data holds journal but no IDENTITY"), "{error}");

    // Once there was a journal there must be one.
    let disk = SimDisk::new();
    let mut dir = open(&disk, 2, 0xa).await.unwrap();
    dir.record_genesis(genesis_of_one(0xa)).await.unwrap();
    disk.create_dir_all(&journal).await.unwrap();
    dir.record_journal_created().await.unwrap();
    drop(dir);
    assert!(open(&disk, 2, 0xa).await.unwrap().journal_created());
    disk.remove_dir_all(&journal).await.unwrap();
    let text = open(&disk, 2, 0xa).await.err().unwrap().to_string();
    assert!(text.contains("/data/journal is missing, though node 2 once had it"), "{text}");
}

#[tokio::test]
async fn a_damaged_identity_or_one_of_another_version_is_said_to_be_so() {
    let disk = SimDisk::new();
    drop(open(&disk, 2, 0xa).await.unwrap());
    let path = data().join("IDENTITY");
    assert!(disk.flip(&path, 30, 1));
    let error = open(&disk, 2, 0xa).await.err().unwrap();
    assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("/data/IDENTITY is damaged (its checksum does not match)"), "{error}");

    let body = "balsa identity 9\nwhatever\n";
    let future = format!("{body}crc32c {:08x}\n", crc32c(body));
    disk::replace_file(&disk, &path, future.into()).await.unwrap();
    let text = open(&disk, 2, 0xa).await.err().unwrap().to_string();
    assert!(text.contains("/data has format version 9, this balsa reads version 1"), "{text}");
}

/// CRC-32C, bit by bit, so that the test does not lean on the code it tests.
fn crc32c(text: &str) -> u32 {
    !text.bytes().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// What a directory may say of itself after a crash at any moment of a node's first start.
fn step_of(dir: &DataDir) -> u8 {
    match (dir.incarnation().0[0], dir.genesis(), dir.journal_created()) {
        (0xb, None, false) => 0, // nothing was kept: a new life
        (0xa, None, false) => 1,
        (0xa, Some(genesis), false) if *genesis == genesis_of_one(0xa) => 2,
        (0xa, Some(genesis), true) if *genesis == genesis_of_one(0xa) => 3,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_crash_at_any_moment_of_the_first_start_leaves_a_directory_that_opens_and_never_steps_back() {
    let disk = SimDisk::new();
    disk.record_forks();
    let mut done = Vec::new();
    let mut dir = open(&disk, 2, 0xa).await.unwrap();
    done.push(disk.operations());
    dir.record_genesis(genesis_of_one(0xa)).await.unwrap();
    done.push(disk.operations());
    disk.create_dir_all(&data().join("journal")).await.unwrap();
    dir.record_journal_created().await.unwrap();
    done.push(disk.operations());

    let forks = disk.take_forks();
    assert_eq!(forks.len() as u64, disk.operations());
    for (fork, operations) in forks.iter().zip(1u64..) {
        let promised = done.iter().filter(|through| **through <= operations).count() as u8;
        for seed in 0..8 {
            let lives = [fork.fork().crash_with(&mut |_| Survival::Lost), fork.fork().crash(seed)];
            for life in lives {
                let dir = open(&life, 2, 0xb).await.unwrap_or_else(|error| panic!("at {operations}: {error}"));
                assert!(step_of(&dir) >= promised, "at {operations}: {} of {promised}", step_of(&dir));
            }
        }
    }
}
