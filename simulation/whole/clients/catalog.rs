//! Clients of the catalog: topics come and go, leaders are watched, the state of the cluster is asked for.

use super::super::stage::now_us;
use super::{doors, servers, Client};
use crate::history::{LeaderTold, Watch};
use balsa::client::{self, CatalogChange, ClientOptions, NewTopic};
use balsa::ids::Revision;
use madsim::time::{sleep, timeout};
use rand::Rng;
use std::time::Duration;

/// All watch the same.
const SUBJECT: u64 = 1;

fn shipped(client: &mut Client) -> client::Client {
    let options = ClientOptions {
        timeout: Duration::from_secs(4),
        attempt_timeout: Duration::from_millis(700),
        connect_timeout: Duration::from_secs(1),
        seed: client.rng.gen(),
        ..ClientOptions::default()
    };
    client::Client::connect(servers(&client.shared.options), options).expect("addresses are addresses")
}

/// Topics that come and go, and questions about all of them.
pub async fn topics(mut client: Client) {
    let shipped = shipped(&mut client);
    let mut made: Vec<String> = Vec::new();
    while !client.stopped() {
        client.think().await;
        client.think().await;
        match client.rng.gen_range(0..10) {
            0..2 if client.rng.gen_bool(0.4) => create_and_delete(&mut client, &shipped, &mut made).await,
            0..3 => {
                // Several at once at times: whoever watches has all of them to catch up with.
                for _ in 0..client.rng.gen_range(1..=2) {
                    create(&mut client, &shipped, &mut made).await;
                }
                // Gone before all nodes have made room for it.
                if client.rng.gen_bool(0.3) {
                    delete(&mut client, &shipped, &mut made).await;
                }
            }
            3..5 if !made.is_empty() => {
                let most = if client.rng.gen_bool(0.3) { made.len() } else { 1 };
                for _ in 0..most {
                    delete(&mut client, &shipped, &mut made).await;
                }
            }
            5 if !made.is_empty() => {
                // A record for a topic that may be gone by now: no other client reads it.
                let name = made[client.rng.gen_range(0..made.len())].clone();
                let payload = client.shared.payloads(1);
                client.began("operation.append-to-passing", &[payload]);
                let batch = doors::batch(payload, 1, 8, None);
                let _ = shipped.append(&name, 0, batch, &client::AppendConditions::default()).await;
            }
            6 => {
                client.began("operation.list-topics", &[]);
                let _ = shipped.list_topics().await;
            }
            _ => {
                client.began("operation.status", &[]);
                let local = client.rng.gen_bool(0.5);
                let _ = shipped.status(local).await;
            }
        }
    }
}

async fn create(client: &mut Client, shipped: &client::Client, made: &mut Vec<String>) {
    let (name, new) = draw(client);
    client.began("operation.create-topic", &[]);
    let created = shipped.create_topic(&name, &new).await;
    client.told(&[u64::from(created.is_ok())], || format!("{name}: {:?}", created.map(|topic| topic.id)));
    made.push(name);
}

fn draw(client: &mut Client) -> (String, NewTopic) {
    // At times under the name of one that was deleted.
    let name = format!("passing-{}-{}", client.id, client.rng.gen_range(0..4));
    (name, NewTopic { partitions: Some(client.rng.gen_range(1..=2)), ..NewTopic::default() })
}

/// A topic that is deleted while nodes are about to make its groups.
async fn create_and_delete(client: &mut Client, shipped: &client::Client, made: &mut Vec<String>) {
    let (name, new) = draw(client);
    let late = Duration::from_millis(client.rng.gen_range(0..30));
    client.began("operation.create-topic", &[]);
    client.began("operation.delete-topic", &[]);
    let deleting = async {
        sleep(late).await;
        shipped.delete_topic(&name).await
    };
    let (created, deleted) = futures::join!(shipped.create_topic(&name, &new), deleting);
    let came = [u64::from(created.is_ok()), u64::from(deleted.is_ok())];
    client.told(&came, || format!("{name}: {:?}, {deleted:?}", created.map(|topic| topic.id)));
    if deleted.is_err() {
        made.push(name);
    }
}

/// The topic that was made last.
async fn delete(client: &mut Client, shipped: &client::Client, made: &mut Vec<String>) {
    let Some(name) = made.pop() else { return };
    client.began("operation.delete-topic", &[]);
    let deleted = shipped.delete_topic(&name).await;
    client.told(&[u64::from(deleted.is_ok())], || format!("{name}: {deleted:?}"));
}

/// Watches leaders and deletions, and resumes after the last revision with another watch, through other nodes.
///
/// Some watch without a pause. Others are slow, or go away for a while and have several changes to catch up with when they are back.
pub async fn watch(mut client: Client) {
    let shipped = shipped(&mut client);
    let (rests, slow) = (client.rng.gen_bool(0.6), client.rng.gen_bool(0.2));
    let mut watched = Watch { client: client.id, subject: SUBJECT, after: 0, changes: Vec::new() };
    let mut after = Revision::ZERO;
    while !client.stopped() {
        client.began("operation.watch", &[after.0]);
        let mut watch = shipped.watch_catalog(after);
        let begun = now_us();
        let enough_us = client.rng.gen_range(1_000_000..if rests { 5_000_000 } else { 15_000_000 });
        while !client.stopped() && now_us() - begun < enough_us {
            let next = timeout(Duration::from_millis(500), watch.next()).await;
            let (revision, change) = match next {
                Ok(Ok(told)) => told,
                Ok(Err(error)) => {
                    client.told(&[], || format!("watch: {error}"));
                    after = Revision::ZERO;
                    break;
                }
                Err(_) => continue,
            };
            client.told(&[revision.0], || format!("watch: {revision:?} {change:?}"));
            if after == Revision::ZERO {
                // The present state comes first; from its end on all watchers are told the same.
                if matches!(change, CatalogChange::Synced) {
                    after = revision;
                    let begun = Watch { client: client.id, subject: SUBJECT, after: revision.0, changes: Vec::new() };
                    keep(&client, std::mem::replace(&mut watched, begun));
                }
                continue;
            }
            after = after.max(revision);
            if let CatalogChange::LeaderChanged { group, leader: Some(leader), .. } = &change {
                client.shared.stage.lock().history.leaders.push(LeaderTold {
                    client: client.id,
                    revision: revision.0,
                    group: group.0,
                    term: leader.term.0,
                    node: leader.node.0,
                });
            }
            if let Some(number) = number_of(&change) {
                watched.changes.push((revision.0, number));
            }
            if slow {
                sleep(Duration::from_millis(client.rng.gen_range(0..600))).await;
            }
        }
        if rests && !client.stopped() {
            drop(watch);
            sleep(Duration::from_millis(client.rng.gen_range(200..6_000))).await;
        }
    }
    keep(&client, watched);
}

fn keep(client: &Client, watched: Watch) {
    if !watched.changes.is_empty() {
        client.shared.stage.lock().history.watch(watched);
    }
}

/// A number for a change that every watcher is told, whenever it asks.
fn number_of(change: &CatalogChange) -> Option<u64> {
    match change {
        CatalogChange::LeaderChanged { group, leader: Some(leader), .. } => {
            Some(group.0 << 40 ^ leader.term.0 << 8 ^ u64::from(leader.node.0))
        }
        CatalogChange::TopicDeleted(name) => {
            Some(name.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31) ^ u64::from(byte)))
        }
        _ => None,
    }
}
