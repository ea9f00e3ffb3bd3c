//! The order of things: who is started when, and whose turn it is.
//!
//! Of the clusters at most two run at a time, Balsa's and one peer's, and only one of them is loaded. Both are new for each peer.
//! A failure ends the row it happens in, one at the start the comparison with that peer, and no more.

use crate::command_line::Options;
use crate::failover;
use crate::failure::Failure;
use crate::ground::Ground;
use crate::outcome::{Failover, Outcome, Pairing, Round, Who};
use crate::peers::{self, Balsa, Peer};
use crate::rows::{Row, ROWS};
use crate::table::grouped;

/// Fills in `outcome` as it goes, so that an interrupted run has something to show. When the future is dropped, everything is
/// stopped and removed.
///
/// # Errors
/// Only what makes any comparison impossible: no Balsa, no place for data. What befalls a peer is told in `outcome`.
pub async fn run(options: &Options, outcome: &mut Outcome) -> Result<(), Failure> {
    let dir = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    // First, so that it goes last: what still runs when it is removed would write into it.
    let ground = Ground::new(&dir, options.keep)?;
    let mut balsa = Balsa::new(options);
    outcome.balsa_version = balsa.find()?;
    let mut chosen: Vec<Box<dyn Peer>> =
        peers::all(options).into_iter().filter(|peer| options.wants_peer(peer.key())).collect();
    if options.failover {
        chosen.retain(|peer| peer.elects());
        chosen.insert(0, Box::new(Balsa::new(options)));
    }
    for peer in &mut chosen {
        let result = with_peer(options, &ground, &mut balsa, peer.as_mut(), outcome).await;
        for one in [&mut balsa as &mut dyn Peer, peer.as_mut()] {
            one.stop();
            ground.clear(one.key());
        }
        let title = peer.title().to_string();
        match result {
            Ok(()) => {}
            Err(Failure::Absent(why)) => {
                eprintln!("{title} is skipped: {why}");
                outcome.skipped.push((title, why));
            }
            Err(failure) => {
                eprintln!("all with {title} failed: {}", failure.told());
                outcome.failed.push((format!("all with {title}"), failure.told()));
            }
        }
    }
    Ok(())
}

async fn with_peer(
    options: &Options,
    ground: &Ground,
    balsa: &mut Balsa,
    peer: &mut dyn Peer,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let version = peer.find()?;
    let who = Who { key: peer.key(), title: peer.title(), version, syncs: peer.syncs() };
    if options.failover {
        return kill_leaders(options, ground, peer, who, outcome).await;
    }
    let rows: Vec<&'static Row> =
        ROWS.iter().filter(|row| options.wants_row(row.key) && row.is_for(peer.key())).collect();
    if rows.is_empty() {
        return Ok(());
    }
    eprintln!("{}: starting three nodes, and three of Balsa", who.label());
    peer.start(ground).await?;
    balsa.start(ground).await?;
    for row in rows {
        outcome.pairings.push(Pairing { row, peer: who.clone(), rounds: Vec::new() });
        for number in 0..options.rounds {
            let round = match play(options, row, number, balsa, peer).await {
                Ok(round) => round,
                Err(failure) => {
                    let what = format!("{} with {}", row.key, who.title);
                    eprintln!("  {what} failed: {}", failure.told());
                    outcome.failed.push((what, failure.told()));
                    break;
                }
            };
            let (ours, theirs) = (grouped(round.balsa.records_per_s), grouped(round.peer.records_per_s));
            let of = options.rounds;
            eprintln!("  {} {}/{of}: Balsa {ours}/s, {} {theirs}/s", row.key, number + 1, who.title);
            if let Some(pairing) = outcome.pairings.last_mut() {
                pairing.rounds.push(round);
            }
        }
    }
    Ok(())
}

/// One round. Who begins changes with each, so that neither always follows the other's dirty pages.
async fn play(
    options: &Options,
    row: &Row,
    number: u32,
    balsa: &mut Balsa,
    peer: &mut dyn Peer,
) -> Result<Round, Failure> {
    let timing = options.timing();
    if number.is_multiple_of(2) {
        let balsa = balsa.load(&row.load, timing).await?;
        Ok(Round { balsa, peer: peer.load(&row.load, timing).await? })
    } else {
        let peer = peer.load(&row.load, timing).await?;
        Ok(Round { balsa: balsa.load(&row.load, timing).await?, peer })
    }
}

async fn kill_leaders(
    options: &Options,
    ground: &Ground,
    peer: &mut dyn Peer,
    who: Who,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    outcome.failovers.push(Failover { who: who.clone(), seconds: Vec::new() });
    for number in 0..options.rounds {
        eprintln!("{}: starting three nodes", who.label());
        let took = failover::measure(peer, ground).await?.as_secs_f64();
        peer.stop();
        eprintln!("  kill {}/{}: {took:.2} s", number + 1, options.rounds);
        if let Some(failover) = outcome.failovers.last_mut() {
            failover.seconds.push(took);
        }
    }
    Ok(())
}
