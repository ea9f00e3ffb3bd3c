//! Random histories of a partition: replicas agree, nothing panics, and no record is ever there twice.

use super::command::{AppendCommand, Fence, PartitionCommand};
use super::tests::{append, batch, commands, Story, EXPIRY_MS, NAMED_EXPIRY_MS};
use super::Partition;
use crate::group::machine::{Place, StateMachine};
use crate::ids::{LogIndex, Offset, ProducerId, Term, TimestampMs};
use crate::segments::verdict::{Refusal, Verdict};
use bytes::Bytes;
use rand::{rngs::StdRng, seq::SliceRandom, Rng, SeedableRng};

/// A command that may be right, nearly right, or nothing of the kind.
fn any_command(rng: &mut StdRng, opened: &[(u64, u16)]) -> Bytes {
    let fence =
        |rng: &mut StdRng| Fence { name: format!("f{}", rng.gen_range(0..4)).into(), token: rng.gen_range(0..6) };
    let session = |rng: &mut StdRng| opened.choose(rng).copied().unwrap_or((rng.gen(), 0));
    let command = match rng.gen_range(0..20) {
        0..=9 => {
            let (id, epoch) = session(rng);
            let epoch = epoch.saturating_sub(rng.gen_range(0..2));
            let producer = rng.gen_bool(0.8).then(|| (id, epoch, rng.gen_range(0..30)));
            let mut append = append(producer, rng.gen_range(1..4));
            append.expected_offset = rng.gen_bool(0.2).then(|| Offset(rng.gen_range(0..20)));
            append.fence = rng.gen_bool(0.2).then(|| fence(rng));
            PartitionCommand::Append(append)
        }
        10..=12 => PartitionCommand::OpenSession {
            name: rng.gen_bool(0.7).then(|| format!("s{}", rng.gen_range(0..3)).into()),
        },
        13 => {
            let (id, epoch) = session(rng);
            PartitionCommand::CloseSession { producer: ProducerId(id), epoch }
        }
        14 => PartitionCommand::QuerySession { producer: ProducerId(session(rng).0) },
        15 => PartitionCommand::RaiseFence(fence(rng)),
        16 => PartitionCommand::TrimTo { offset: Offset(rng.gen_range(0..20)) },
        17 => return (0..rng.gen_range(0..90)).map(|_| rng.gen()).collect::<Vec<u8>>().into(),
        _ => {
            let mut bytes = commands().choose(rng).expect("there are some").encode().to_vec();
            for _ in 0..rng.gen_range(1..4) {
                let at = rng.gen_range(0..bytes.len());
                bytes[at] = rng.gen();
            }
            bytes.truncate(rng.gen_range(0..=bytes.len()));
            return bytes.into();
        }
    };
    command.encode()
}

#[test]
fn a_replica_restored_at_any_step_goes_on_like_one_that_never_stopped() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut steady = Story::new().partition;
        let mut restored = steady.clone();
        let mut opened: Vec<(u64, u16)> = Vec::new();
        let mut time = 0;
        for step in 0..150u64 {
            time += rng.gen_range(0..EXPIRY_MS / 4);
            if rng.gen_bool(0.01) {
                time += NAMED_EXPIRY_MS;
            }
            let place = Place { index: LogIndex(2 + step / 3), term: Term(1), timestamp: TimestampMs(time) };
            let command = any_command(&mut rng, &opened);
            let applied = steady.apply(place, &command);
            assert_eq!(restored.apply(place, &command), applied, "seed {seed} step {step}");
            if let (Some(2), Verdict::Done { value, extra }) = (command.first(), applied.verdict) {
                opened.push((value, super::command::opened(extra).0));
            }
            let snapshot = restored.snapshot();
            assert_eq!(snapshot, steady.snapshot(), "seed {seed} step {step}");
            assert_eq!(restored.digest(), steady.digest());
            restored = Partition::restore(&snapshot).expect("a snapshot is restored");
            assert_eq!(restored, steady, "seed {seed} step {step}");
        }
    }
}

#[test]
fn a_damaged_snapshot_is_refused_or_is_another_states_snapshot() {
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut story = Story::new();
        let mut opened = Vec::new();
        for _ in 0..60 {
            let command = any_command(&mut rng, &opened);
            if let (Some(2), Verdict::Done { value, extra }) = (command.first(), story.apply(&command)) {
                opened.push((value, super::command::opened(extra).0));
            }
        }
        let snapshot = story.partition.snapshot();
        for _ in 0..300 {
            let mut bytes = snapshot.to_vec();
            let at = rng.gen_range(0..bytes.len());
            bytes[at] = rng.gen();
            let bytes = Bytes::from(bytes);
            let Ok(mut partition) = Partition::restore(&bytes) else { continue };
            assert_eq!(partition.snapshot(), bytes, "seed {seed}: a second form of the same state, at {at}");
            for _ in 0..5 {
                let place = Place { index: LogIndex(900), term: Term(1), timestamp: TimestampMs(rng.gen()) };
                partition.apply(place, &any_command(&mut rng, &opened));
            }
        }
    }
}

/// A producer's batch: the numbers of its records, which are also their payload.
#[derive(Clone, Copy, Debug)]
struct Piece {
    first: u64,
    count: u32,
    /// Where its producer was told that it lies.
    acknowledged: Option<Offset>,
}

/// An append on its way.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    producer: usize,
    piece: usize,
    id: u64,
    epoch: u16,
}

/// A client with a named session that has records to append, in order, and may be started again at any moment.
struct Client {
    id: u64,
    epoch: u16,
    pieces: Vec<Piece>,
    /// Pieces sent so far in this life.
    sent: usize,
}

const IN_FLIGHT_MAX: usize = 12;

struct Trial {
    rng: StdRng,
    story: Story,
    clients: Vec<Client>,
    network: Vec<Attempt>,
    /// What lies at each offset: the producer and its record's number.
    log: Vec<(usize, u64)>,
    /// How often a batch was repeated, came past a gap, or of an earlier epoch.
    odd: [u32; 3],
}

impl Trial {
    fn new(seed: u64) -> Trial {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut story = Story::new();
        let clients = (0..3)
            .map(|number| {
                let (id, epoch, _) = story.open(Some(&format!("client {number}")));
                let mut first = 0;
                let mut piece = || {
                    let count = rng.gen_range(1..6);
                    first += u64::from(count);
                    Piece { first: first - u64::from(count), count, acknowledged: None }
                };
                Client { id, epoch, pieces: (0..40).map(|_| piece()).collect(), sent: 0 }
            })
            .collect();
        Trial { rng, story, clients, network: Vec::new(), log: Vec::new(), odd: [0; 3] }
    }

    fn send(&mut self, producer: usize, piece: usize) {
        let Client { id, epoch, .. } = self.clients[producer];
        self.network.push(Attempt { producer, piece, id, epoch });
    }

    /// One arrival at the log; its answer may be lost.
    fn deliver(&mut self, attempt: Attempt, answered: bool) {
        let Attempt { producer, piece: number, id, epoch } = attempt;
        let piece = self.clients[producer].pieces[number];
        let guess = self.rng.gen_bool(0.1).then(|| Offset(self.rng.gen_range(0..200)));
        let batch = batch(Some((id, epoch, piece.first as u32)), piece.count);
        let append = AppendCommand { expected_offset: guess, fence: None, batch };
        let offset = match self.story.run(PartitionCommand::Append(append)) {
            Verdict::Appended { offset, count } => {
                assert_eq!((offset.0, count), (self.log.len() as u64, piece.count));
                self.log.extend((0..u64::from(count)).map(|record| (producer, piece.first + record)));
                offset
            }
            Verdict::Repeated { offset, count } => {
                assert_eq!(count, piece.count);
                self.odd[0] += 1;
                offset
            }
            Verdict::Refused(Refusal::SequenceGap { .. }) => return self.odd[1] += 1,
            Verdict::Refused(Refusal::SessionEpochOld { .. }) => return self.odd[2] += 1,
            Verdict::Refused(Refusal::WrongExpectedOffset { .. }) => return,
            other => panic!("{attempt:?}: {other:?}"),
        };
        assert_eq!(self.log[offset.0 as usize], (producer, piece.first), "the receipt names the record's place");
        if answered {
            let known = &mut self.clients[producer].pieces[number].acknowledged;
            assert!(known.is_none_or(|known| known == offset), "two receipts, two places");
            *known = Some(offset);
        }
    }

    /// The client is started again: it knows its input and its session's name, and no receipts.
    fn restart(&mut self, producer: usize) {
        let (id, epoch, next) = self.story.open(Some(&format!("client {producer}")));
        let appended = self.log.iter().filter(|(of, _)| *of == producer).count() as u64;
        assert_eq!(u64::from(next), appended, "the session tells how far it came");
        let client = &mut self.clients[producer];
        (client.id, client.epoch) = (id, epoch);
        client.sent = client.pieces.partition_point(|piece| piece.first < appended);
        let goes_on = client.pieces.get(client.sent).is_none_or(|piece| piece.first == appended);
        assert!(goes_on, "it goes on where a batch ends");
    }

    fn unacknowledged(&self, producer: usize) -> Vec<usize> {
        let client = &self.clients[producer];
        (0..client.sent).filter(|piece| client.pieces[*piece].acknowledged.is_none()).collect()
    }

    fn step(&mut self) {
        let producer = self.rng.gen_range(0..self.clients.len());
        self.story.wait(self.rng.gen_range(0..3));
        match self.rng.gen_range(0..100) {
            0..=24 => {
                let client = &mut self.clients[producer];
                let next = client.sent;
                let in_flight = client.pieces[..next].iter().filter(|piece| piece.acknowledged.is_none()).count();
                if next < client.pieces.len() && in_flight < IN_FLIGHT_MAX {
                    client.sent += 1;
                    self.send(producer, next);
                }
            }
            25..=44 => {
                let waiting = self.unacknowledged(producer);
                if let Some(piece) = waiting.choose(&mut self.rng) {
                    self.send(producer, *piece);
                }
            }
            45..=47 => self.restart(producer),
            48..=55 if !self.network.is_empty() => {
                let lost = self.rng.gen_range(0..self.network.len());
                self.network.swap_remove(lost);
            }
            _ if !self.network.is_empty() => {
                let at = self.rng.gen_range(0..self.network.len());
                let attempt = self.network[at];
                if self.rng.gen_bool(0.7) {
                    self.network.swap_remove(at);
                }
                let answered = self.rng.gen_bool(0.6);
                self.deliver(attempt, answered);
            }
            _ => {}
        }
    }

    /// The weather clears: every client sends what it has no receipt for, in order, until all is acknowledged.
    fn finish(&mut self) {
        for producer in 0..self.clients.len() {
            for piece in 0..self.clients[producer].pieces.len() {
                let Client { id, epoch, .. } = self.clients[producer];
                while self.clients[producer].pieces[piece].acknowledged.is_none() {
                    self.deliver(Attempt { producer, piece, id, epoch }, true);
                }
            }
        }
    }
}

#[test]
fn each_record_is_appended_exactly_once_and_in_its_producers_order() {
    let mut odd = [0; 3];
    for seed in 0..300 {
        let mut trial = Trial::new(seed);
        for _ in 0..600 {
            trial.step();
        }
        trial.finish();
        (0..odd.len()).for_each(|at| odd[at] += trial.odd[at]);
        for (producer, client) in trial.clients.iter().enumerate() {
            let records: Vec<u64> =
                trial.log.iter().filter(|(of, _)| *of == producer).map(|(_, record)| *record).collect();
            let all = client.pieces.last().map_or(0, |piece| piece.first + u64::from(piece.count));
            assert_eq!(records, (0..all).collect::<Vec<u64>>(), "seed {seed}, producer {producer}");
        }
        assert_eq!(trial.story.partition.tail().0, trial.log.len() as u64);
    }
    assert!(odd.iter().all(|times| *times > 1_000), "the odd branches are rarely taken: {odd:?}");
}

#[test]
fn a_forgotten_session_never_doubles_a_record() {
    for seed in 0..100 {
        let mut trial = Trial::new(seed);
        for _ in 0..200 {
            trial.step();
        }
        let before = trial.log.len() as u64;
        trial.story.wait(NAMED_EXPIRY_MS);
        for attempt in std::mem::take(&mut trial.network) {
            let piece = trial.clients[attempt.producer].pieces[attempt.piece];
            let verdict = trial.story.append(Some((attempt.id, attempt.epoch, piece.first as u32)), piece.count);
            assert_eq!(verdict, Verdict::Refused(Refusal::SessionUnknown { producer: attempt.id }), "seed {seed}");
        }
        trial.story.open(None);
        assert_eq!(trial.story.partition.tail().0, before);
    }
}
