//! What the journal owes after crashes and rot, over random histories on the simulated disk.
//!
//! A history is a few lives of one journal: rounds over several groups, idle moments, a crash, the next life. Its files
//! are so small (64 KiB and less) that rolls, checkpoints and recycling happen all the time. The disk is copied after every operation
//! that changed it, and each copy crashes in several ways: what is recovered must be a state that the history went
//! through, at least what was reported as durable, at most what was submitted. Then single faults are put below the
//! recorded boundary, and each must be noticed.
//!
//! A failure prints the seed of its history; `BALSA_JOURNAL_SEED=n` runs that one alone,
//! `BALSA_JOURNAL_HISTORIES=n` another number of them. Seeds that once failed run first.

use balsa::disk::sim::{OperationKind, SimDisk, Survival, Unsynced, SECTOR_BYTES};
use balsa::disk::{read_file, Disk};
use balsa::ids::{GroupId, Incarnation, LogIndex, NodeId, Offset, Term};
use balsa::journal::base::Base;
use balsa::journal::format::{Boundary, FrameKind, ROUNDS_START};
use balsa::journal::inspect::{inspect, FileReport};
use balsa::journal::{
    GroupWrite, IdleProgress, Journal, JournalError, JournalIdentity, JournalOptions, Recovered, RecoveredGroup,
};
use bytes::Bytes;
use futures::FutureExt;
use raft::eraftpb::{ConfState, Entry, HardState};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const HISTORIES: u64 = 10_000;

/// Seeds of histories that failed before a mistake was mended.
const ONCE_FAILED: [u64; 0] = [];

/// Larger than any round of these histories, so that each is one round.
const ROUND_BYTES_MAX: u64 = 6 << 10;

const DIR: &str = "/j";

/// The simulated disk answers at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the simulated disk answers at once")
}

/// What the groups hold: the journal's promise in its simplest form.
#[derive(Clone, PartialEq, Debug, Default)]
struct Model {
    groups: BTreeMap<GroupId, RecoveredGroup>,
    removed: BTreeSet<GroupId>,
}

impl Model {
    fn of(recovered: Recovered) -> Model {
        Model { groups: recovered.groups, removed: recovered.removed }
    }

    fn apply(&mut self, write: &GroupWrite) {
        if write.removed {
            self.groups.remove(&write.group);
            self.removed.insert(write.group);
            return;
        }
        let group = self.groups.entry(write.group).or_default();
        if let Some(base) = &write.base {
            let covered = group.entries.iter().find(|entry| entry.index == base.index.0);
            let stays = base.index == group.base.index || covered.is_some_and(|entry| entry.term == base.term.0);
            group.entries.retain(|entry| stays && entry.index > base.index.0);
            group.base = (**base).clone();
        }
        if let Some(first) = write.entries.first() {
            group.entries.retain(|entry| entry.index < first.index);
            group.entries.extend(write.entries.iter().cloned());
        }
        if let Some(hard_state) = &write.hard_state {
            group.hard_state = *hard_state;
        }
    }
}

/// More than a write takes in a round. What fits one round is durable as a whole or not at all.
fn bytes_at_most(write: &GroupWrite) -> u64 {
    let base = write.base.as_ref().map_or(0, |base| 150 + base.encoded_len());
    let entries = write.entries.iter().map(|entry| 60 + entry.data.len() + entry.context.len());
    (200 + base + entries.sum::<usize>()) as u64
}

#[derive(Default, Debug)]
struct Counts {
    histories: u64,
    lives: u64,
    rounds: u64,
    operations: u64,
    crashes: u64,
    tears: u64,
    cuts: u64,
    crashes_in_recovery: u64,
    flips: u64,
    zeroed: u64,
    missing: u64,
    stale: u64,
    /// Disks that were looked at for rot; how many held a recycled file, a checkpoint that a later file completed.
    looked_at: u64,
    recycled: u64,
    checkpointed: u64,
}

/// A copy of the disk, and how much was durable and submitted when it was taken.
struct Moment {
    disk: SimDisk,
    kind: OperationKind,
    acknowledged: usize,
    submitted: usize,
}

struct History {
    rng: StdRng,
    options: JournalOptions,
    disk: SimDisk,
    /// The state after each round, from the founding on. Rounds that a crash took are dropped.
    states: Vec<Model>,
    group_next: u64,
    moments: Vec<Moment>,
}

type Outcome<T> = Result<T, String>;

fn text(error: JournalError) -> String {
    format!("{error}; {:?}", std::error::Error::source(&error).map(ToString::to_string))
}

fn open(disk: &SimDisk, options: JournalOptions) -> Result<(Journal, Model, bool), JournalError> {
    let (journal, recovered) = now(Journal::open(Arc::new(disk.clone()), PathBuf::from(DIR), options))?;
    let cut = recovered.cut.is_some();
    Ok((journal, Model::of(recovered), cut))
}

impl History {
    fn found(seed: u64) -> Outcome<(History, Journal)> {
        let mut rng = StdRng::seed_from_u64(seed);
        let file_bytes =
            if rng.gen_ratio(1, 8) { 64 << 10 } else { [8 << 10, 12 << 10, 16 << 10][rng.gen_range(0..3)] };
        let options = JournalOptions {
            file_bytes,
            first_file_bytes: if rng.gen() { 8 << 10 } else { file_bytes },
            restated_bytes_max: 16 << 10,
            base_move_bytes: 4 << 10,
            base_inline_bytes_max: 128,
            round_bytes_max: ROUND_BYTES_MAX,
            portion_bytes_min: [64, 512, 4_096][rng.gen_range(0..3)],
            step_bytes: [1 << 10, 8 << 10][rng.gen_range(0..2)],
            files_max: rng.gen_range(1..5),
        };
        let disk = SimDisk::new();
        let owner = JournalIdentity { node_id: NodeId(1), incarnation: Incarnation(rng.gen()) };
        let founded = now(Journal::create(Arc::new(disk.clone()), PathBuf::from(DIR), options, owner));
        let journal = founded.map_err(text)?;
        let states = vec![Model::default()];
        let history = History { rng, options, disk, states, group_next: 1, moments: Vec::new() };
        history.record();
        Ok((history, journal))
    }

    fn record(&self) {
        self.disk.record_forks();
        self.disk.record_log();
    }

    /// Takes the copies that were made since the last call.
    fn collect(&mut self, acknowledged: usize, submitted: usize) {
        let kinds = self.disk.take_log().into_iter().map(|operation| operation.kind);
        for (disk, kind) in self.disk.take_forks().into_iter().zip(kinds) {
            self.moments.push(Moment { disk, kind, acknowledged, submitted });
        }
    }

    /// Rounds and idle moments; the disk's copies are kept.
    fn live(&mut self, journal: &mut Journal, counts: &mut Counts) -> Outcome<()> {
        counts.lives += 1;
        for _ in 0..self.rng.gen_range(2..14) {
            if self.rng.gen_ratio(1, 4) {
                for _ in 0..self.rng.gen_range(1..12) {
                    if now(journal.idle()).map_err(text)? == IdleProgress::Done {
                        break;
                    }
                }
                self.collect(self.states.len() - 1, self.states.len() - 1);
                continue;
            }
            let writes = self.draw_round();
            if writes.is_empty() {
                continue; // the first write drawn was too large for one round
            }
            let mut state = self.states[self.states.len() - 1].clone();
            writes.iter().for_each(|write| state.apply(write));
            self.states.push(state);
            now(journal.write_round(writes)).map_err(text)?;
            counts.rounds += 1;
            self.collect(self.states.len() - 2, self.states.len() - 1);
        }
        Ok(())
    }

    fn draw_round(&mut self) -> Vec<GroupWrite> {
        let mut state = self.states[self.states.len() - 1].clone();
        let (mut writes, mut bytes) = (Vec::new(), 0);
        for _ in 0..self.rng.gen_range(1..4) {
            let existing = state.groups.len();
            let write = if existing == 0 || (existing < 5 && self.rng.gen_ratio(1, 3)) {
                self.group_next += 1;
                let base = self.draw_base(1, 1);
                let known = RecoveredGroup { base: base.clone(), ..RecoveredGroup::default() };
                self.draw_write(GroupId(self.group_next), &known, Some(base))
            } else {
                let at = self.rng.gen_range(0..existing);
                let Some((id, group)) = state.groups.iter().nth(at) else { continue };
                if self.rng.gen_ratio(1, 24) {
                    GroupWrite { group: *id, removed: true, ..GroupWrite::default() }
                } else {
                    let base = self.draw_move(group);
                    self.draw_write(*id, group, base)
                }
            };
            bytes += bytes_at_most(&write);
            if bytes > ROUND_BYTES_MAX {
                break;
            }
            state.apply(&write);
            writes.push(write);
        }
        writes
    }

    fn draw_base(&mut self, index: u64, term: u64) -> Base {
        let large = self.rng.gen_ratio(1, 8);
        let state_len = if large { self.rng.gen_range(129..900) } else { self.rng.gen_range(0..40) };
        Base {
            index: LogIndex(index),
            term: Term(term),
            tail: Offset(self.rng.gen_range(0..100)),
            conf_state: ConfState::from((vec![1, 2, 3], vec![])),
            state: Bytes::from(vec![self.rng.gen::<u8>(); state_len]),
            ..Base::default()
        }
    }

    /// A base that moves among the entries; or one that an installed snapshot brings, beyond them or against their
    /// terms.
    fn draw_move(&mut self, group: &RecoveredGroup) -> Option<Base> {
        let last = group.entries.last().map_or(group.base.index.0, |entry| entry.index);
        let drawn = self.rng.gen_range(0..8);
        if drawn == 0 {
            let (index, term) = (last + self.rng.gen_range(1..5), group.hard_state.term + 1);
            return Some(self.draw_base(index, term));
        }
        if drawn > 3 || group.entries.is_empty() {
            return None;
        }
        let covered = &group.entries[self.rng.gen_range(0..group.entries.len())];
        let (index, term) = (covered.index, covered.term + u64::from(drawn == 1));
        Some(self.draw_base(index, term))
    }

    fn draw_write(&mut self, group: GroupId, known: &RecoveredGroup, base: Option<Base>) -> GroupWrite {
        let mut after = Model::default();
        after.groups.insert(group, known.clone());
        let base = base.map(Box::new);
        after.apply(&GroupWrite { group, base: base.clone(), ..GroupWrite::default() });
        let after = &after.groups[&group];
        let next = after.entries.last().map_or(after.base.index.0, |entry| entry.index) + 1;
        let rewinds = self.rng.gen_ratio(1, 5);
        let from = if rewinds { self.rng.gen_range(after.base.index.0 + 1..=next) } else { next };
        let term = after.entries.last().map_or(after.base.term.0, |entry| entry.term) + u64::from(rewinds);
        let count = self.rng.gen_range(0..4);
        let entries = (from..from + count).map(|index| self.draw_entry(index, term)).collect();
        let hard_state = self.rng.gen_ratio(1, 2).then(|| HardState {
            term,
            vote: self.rng.gen_range(0..3),
            commit: self.rng.gen_range(0..from),
        });
        GroupWrite { group, hard_state, entries, base, removed: false }
    }

    fn draw_entry(&mut self, index: u64, term: u64) -> Entry {
        let len = match self.rng.gen_range(0..40) {
            0 => 4_200,
            1 | 2 => 700,
            _ => self.rng.gen_range(0..60),
        };
        let context = if self.rng.gen_ratio(1, 10) { Bytes::from_static(b"context") } else { Bytes::new() };
        let data = Bytes::from(vec![self.rng.gen::<u8>(); len]);
        Entry { entry_type: self.rng.gen_range(0..3), term, index, data, context, sync_log: false }
    }

    /// Opens what a crash left; which state that is.
    fn recover(&self, disk: &SimDisk, moment: &Moment, what: &str) -> Outcome<(Journal, usize, bool)> {
        let (journal, model, cut) = open(disk, self.options).map_err(|error| format!("{what}: {}", text(error)))?;
        let state = (moment.acknowledged..=moment.submitted).rev().find(|state| self.states[*state] == model);
        let Some(state) = state else {
            let range = (moment.acknowledged, moment.submitted);
            let expected = &self.states[moment.acknowledged];
            return Err(format!("{what}: recovered none of the states {range:?}:\n{model:?}\nexpected\n{expected:?}"));
        };
        Ok((journal, state, cut))
    }

    /// Crashes a copy in ways that fit what it did last.
    fn crash_moment(&mut self, moment: &Moment, counts: &mut Counts) -> Outcome<()> {
        counts.operations += 1;
        let mut written = 0;
        let lost = moment.disk.fork().crash_with(&mut |unsynced| {
            if let Unsynced::Write(_, _, len) = unsynced {
                written = len;
            }
            Survival::Lost
        });
        self.recover(&lost, moment, "everything unsynced lost")?;
        counts.crashes += 1;
        if moment.kind == OperationKind::Sync {
            return Ok(());
        }
        let drawn = moment.disk.fork().crash(self.rng.gen());
        self.recover(&drawn, moment, "drawn")?;
        counts.crashes += 1;
        let round_in_flight = moment.acknowledged < moment.submitted;
        if moment.kind != OperationKind::Write || written == 0 || !round_in_flight {
            return Ok(());
        }
        let kept = moment.disk.fork().crash_with(&mut |_| Survival::Kept);
        self.recover(&kept, moment, "everything unsynced kept")?;
        counts.crashes += 1;
        // The round tears at each edge of its sectors, at some byte, and in patterns of sectors.
        let sectors = written.div_ceil(SECTOR_BYTES);
        let mut tears: Vec<Survival> = (1..sectors).map(|edge| Survival::Prefix(edge * SECTOR_BYTES)).collect();
        tears.push(Survival::Prefix(self.rng.gen_range(0..written)));
        tears.push(Survival::Sectors(self.rng.gen()));
        tears.push(Survival::Sectors(!1));
        for tear in tears {
            let torn = moment.disk.fork().crash_with(&mut |_| tear);
            let (_, _, cut) = self.recover(&torn, moment, &format!("{tear:?} of {written} bytes kept"))?;
            counts.cuts += u64::from(cut);
            counts.tears += 1;
        }
        Ok(())
    }

    /// Crashes, recovers, and crashes again after each operation of the recovery.
    fn crash_in_recovery(&mut self, moment: &Moment, counts: &mut Counts) -> Outcome<()> {
        let first = if self.rng.gen() {
            moment.disk.fork().crash(self.rng.gen())
        } else {
            moment.disk.fork().restart() // only the process ended: what is read back may not be on the disk yet
        };
        first.record_forks();
        let (_, state, _) = self.recover(&first, moment, "first crash")?;
        for (at, fork) in first.take_forks().into_iter().enumerate() {
            let again = fork.crash(self.rng.gen());
            self.recover(&again, moment, &format!("second crash, after operation {at} of the recovery"))?;
            counts.crashes_in_recovery += 1;
        }
        // What an opened journal said it holds was told to peers: from here on it is there.
        let settled = Moment { disk: first.fork(), kind: moment.kind, acknowledged: state, submitted: state };
        let lost = settled.disk.fork().crash_with(&mut |_| Survival::Lost);
        self.recover(&lost, &settled, "crash after the recovery")?;
        counts.crashes_in_recovery += 1;
        Ok(())
    }

    fn moment_now(&self) -> Moment {
        let last = self.states.len() - 1;
        Moment { disk: self.disk.fork(), kind: OperationKind::Sync, acknowledged: last, submitted: last }
    }

    fn must_notice(&self, damaged: &SimDisk, what: &str) -> Outcome<()> {
        match open(damaged, self.options) {
            Err(JournalError::Corrupt(_)) => Ok(()),
            Err(other) => Err(format!("{what}: noticed as {}", text(other))),
            Ok((_, model, _)) => {
                let state = self.states.iter().rposition(|state| *state == model);
                Err(format!("{what}: not noticed; opened as state {state:?} of {}", self.states.len() - 1))
            }
        }
    }

    /// Nothing is lost: the last state is there, or the damage is noticed.
    fn may_notice(&self, damaged: &SimDisk, losable: usize, what: &str) -> Outcome<()> {
        match open(damaged, self.options) {
            Err(JournalError::Corrupt(_)) => Ok(()),
            Err(other) => Err(format!("{what}: noticed as {}", text(other))),
            Ok((_, model, _)) if self.states.iter().rev().take(losable + 1).any(|state| *state == model) => Ok(()),
            Ok((_, model, _)) => {
                let state = self.states.iter().rposition(|state| *state == model);
                Err(format!("{what}: opened as state {state:?} of {}", self.states.len() - 1))
            }
        }
    }

    /// Single faults below the recorded boundary.
    fn rot(&mut self, counts: &mut Counts) -> Outcome<()> {
        let sound = self.moment_now();
        let files = Recorded::read(&sound.disk)?;
        counts.looked_at += 1;
        counts.recycled += u64::from(files.named.iter().any(|file| is_recycled(&file.report)));
        counts.checkpointed +=
            u64::from(files.named.iter().any(|file| epoch_of(&file.report) > 1 && is_complete(&file.report)));
        for file in &files.named {
            let path = &file.report.path;
            for _ in 0..3 {
                let position = self.rng.gen_range(0..file.synced);
                let mask = 1 << self.rng.gen_range(0..8);
                let damaged = sound.disk.fork();
                assert!(damaged.flip(path, position, mask));
                let what = format!("bit {mask:#x} at {position} of {}, synced through {}", path.display(), file.synced);
                self.must_notice(&damaged, &what)?;
                counts.flips += 1;
            }
            let damaged = sound.disk.fork();
            assert!(damaged.lose_file(path));
            self.must_notice(&damaged, &format!("{} is missing", path.display()))?;
            counts.missing += 1;
            self.zero(&sound, file, counts)?;
            self.make_stale(&sound, file, counts)?;
            if file.report.end > file.synced {
                let position = self.rng.gen_range(file.synced..file.report.end);
                let damaged = sound.disk.fork();
                assert!(damaged.flip(path, position, 1));
                let what = format!("a flip at {position} of {}, where nothing proves a sync", path.display());
                self.may_notice(&damaged, 1, &what)?;
            }
        }
        self.damage_the_rest(&sound, counts)
    }

    fn zero(&mut self, sound: &Moment, file: &Synced, counts: &mut Counts) -> Outcome<()> {
        let block = [SECTOR_BYTES, 4_096][self.rng.gen_range(0..2)];
        let position = self.rng.gen_range(0..file.synced) / block * block;
        let old = now(read_file(&sound.disk, &file.report.path, u64::MAX)).map_err(|error| error.to_string())?;
        let below = (position + block).min(file.synced);
        if old[position as usize..below as usize].iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        // Zeros over a round and over the only record that it was synced are more than one fault.
        if position + block > file.synced && position >= file.synced_elsewhere {
            return Ok(());
        }
        let damaged = sound.disk.fork();
        assert!(damaged.zero_block(&file.report.path, position, block.min(old.len() as u64 - position)));
        self.must_notice(&damaged, &format!("{block} zeros at {position} of {}", file.report.path.display()))?;
        counts.zeroed += 1;
        Ok(())
    }

    /// Puts an older version of a file in its place.
    fn make_stale(&mut self, sound: &Moment, file: &Synced, counts: &mut Counts) -> Outcome<()> {
        let older = &self.moments[self.rng.gen_range(0..self.moments.len())].disk;
        let path = &file.report.path;
        let (Ok(then), Ok(today)) =
            (now(read_file(older, path, u64::MAX)), now(read_file(&sound.disk, path, u64::MAX)))
        else {
            return Ok(()); // there was no such file yet
        };
        let damaged = sound.disk.fork();
        assert!(damaged.restore_file_from(older, path));
        // An earlier life always shows. An earlier moment of this life shows by what is on record in other files.
        let header_end = ROUNDS_START as usize;
        let proven =
            if then.get(..header_end) == today.get(..header_end) { file.synced_elsewhere } else { file.synced };
        if then.get(..proven as usize) == today.get(..proven as usize) {
            return self.may_notice(&damaged, self.states.len(), "a file as it was, with all that is on record");
        }
        self.must_notice(&damaged, &format!("{} is stale", path.display()))?;
        counts.stale += 1;
        Ok(())
    }

    /// Marks, identity, state files.
    fn damage_the_rest(&mut self, sound: &Moment, counts: &mut Counts) -> Outcome<()> {
        let damaged = sound.disk.fork();
        assert!(damaged.lose_file(&Path::new(DIR).join("marks")));
        self.must_notice(&damaged, "the marks are missing")?;
        counts.missing += 1;
        for name in ["identity-1", "identity-2"] {
            let path = Path::new(DIR).join(name);
            let damaged = sound.disk.fork();
            assert!(damaged.lose_file(&path));
            self.recover(&damaged, sound, "one copy of the identity is missing")?;
            let damaged = sound.disk.fork();
            assert!(damaged.flip(&path, self.rng.gen_range(0..64), 4));
            self.recover(&damaged, sound, "one copy of the identity is rotten")?;
            counts.flips += 1;
        }
        let damaged = sound.disk.fork();
        assert!(damaged.flip(&Path::new(DIR).join("marks"), [0, 4_096][self.rng.gen_range(0..2)] + 10, 1));
        self.recover(&damaged, sound, "one mark is rotten")?;
        let paths = now(sound.disk.list(Path::new(DIR))).map_err(|error| error.to_string())?;
        for path in paths.iter().filter(|path| path.to_string_lossy().contains("state-")) {
            let damaged = sound.disk.fork();
            assert!(damaged.lose_file(path));
            self.may_notice(&damaged, 0, "a state is missing")?;
        }
        Ok(())
    }
}

/// A file that must exist, and through where that is on record.
struct Synced {
    report: FileReport,
    synced: u64,
    /// The same, by what other files say.
    synced_elsewhere: u64,
}

struct Recorded {
    named: Vec<Synced>,
}

impl Recorded {
    fn read(disk: &SimDisk) -> Outcome<Recorded> {
        let inspection = now(inspect(disk, Path::new(DIR))).map_err(text)?;
        let mut reports = Vec::new();
        for path in &inspection.files {
            let report = now(inspection.read_file(disk, path)).map_err(text)?;
            if report.named {
                reports.push(report);
            }
        }
        let outside: Vec<Boundary> =
            inspection.marked.into_iter().chain(inspection.identity.map(|identity| identity.boundary)).collect();
        let by_rounds: Vec<(u64, Boundary)> = reports.iter().flat_map(boundaries_named).collect();
        let named = reports.into_iter().map(|report| {
            let epoch = epoch_of(&report);
            let end_of = |recorded: &mut dyn Iterator<Item = Boundary>| {
                let here = recorded.filter(|boundary| boundary.epoch == epoch).map(|boundary| boundary.position);
                here.max().unwrap_or(ROUNDS_START)
            };
            let all = &mut outside.iter().copied().chain(by_rounds.iter().map(|(_, boundary)| *boundary));
            let others = by_rounds.iter().filter(|(by, _)| *by != epoch).map(|(_, boundary)| *boundary);
            let elsewhere = &mut outside.iter().copied().chain(others);
            Synced { synced: end_of(all), synced_elsewhere: end_of(elsewhere), report }
        });
        Ok(Recorded { named: named.collect() })
    }
}

fn epoch_of(report: &FileReport) -> u64 {
    report.header.map_or(0, |header| header.epoch)
}

fn is_recycled(report: &FileReport) -> bool {
    report.header.is_ok_and(|header| header.epoch > header.slot)
}

fn is_complete(report: &FileReport) -> bool {
    let mut frames = report.rounds.iter().flat_map(|round| &round.frames);
    frames.any(|frame| frame.kind == FrameKind::CheckpointComplete)
}

/// What the rounds of a file name as synced, with the file's epoch.
fn boundaries_named(report: &FileReport) -> impl Iterator<Item = (u64, Boundary)> + '_ {
    let epoch = epoch_of(report);
    report.rounds.iter().map(move |round| (epoch, round.boundary))
}

fn run(seed: u64, counts: &mut Counts) -> Outcome<()> {
    let (mut history, mut journal) = History::found(seed)?;
    for life in 0..history.rng.gen_range(1..4) {
        history.live(&mut journal, counts)?;
        let fresh = std::mem::take(&mut history.moments);
        for (at, moment) in fresh.iter().enumerate() {
            let told = |error| format!("life {life}, moment {at}: {error}");
            history.crash_moment(moment, counts).map_err(told)?;
            // Second crashes start from some moments: each has one of its own after every operation of the recovery.
            if history.rng.gen_ratio(1, 2 * fresh.len() as u32) {
                history.crash_in_recovery(moment, counts).map_err(told)?;
            }
        }
        history.moments = fresh;
        if !history.moments.is_empty() && history.rng.gen_ratio(1, 8) {
            history.rot(counts).map_err(|error| format!("life {life}: {error}"))?;
        }
        journal = next_life(&mut history)?;
    }
    counts.histories += 1;
    Ok(())
}

/// A crash at some moment of this life, or at its end; the history goes on with what that left.
fn next_life(history: &mut History) -> Outcome<Journal> {
    let at = history.rng.gen_range(0..history.moments.len() + 1);
    let end = history.moment_now();
    let moment = if at < history.moments.len() { history.moments.swap_remove(at) } else { end };
    let disk = if history.rng.gen() { moment.disk.restart() } else { moment.disk.crash(history.rng.gen()) };
    let (journal, state, _) = history.recover(&disk, &moment, "the next life")?;
    history.states.truncate(state + 1);
    history.moments.clear();
    history.disk = disk;
    history.record();
    Ok(journal)
}

fn run_all(seeds: impl Iterator<Item = u64>) {
    let mut counts = Counts::default();
    for seed in seeds {
        if let Err(error) = run(seed, &mut counts) {
            panic!("history of seed {seed}: {error}");
        }
    }
    println!("{counts:?}");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Half of the histories, so that two cores share them.
fn seeds(part: u64) -> Box<dyn Iterator<Item = u64>> {
    let histories = number("BALSA_JOURNAL_HISTORIES").unwrap_or(HISTORIES);
    match number("BALSA_JOURNAL_SEED") {
        Some(seed) => Box::new(std::iter::once(seed)),
        None => Box::new(ONCE_FAILED.into_iter().chain(0..histories).filter(move |seed| seed % 2 == part)),
    }
}

#[test]
fn what_was_synced_is_there_and_what_was_never_written_is_not_in_even_histories() {
    run_all(seeds(0));
}

#[test]
fn what_was_synced_is_there_and_what_was_never_written_is_not_in_odd_histories() {
    run_all(seeds(1));
}

/// A founding that crashed is founded again or opens empty; nothing in between.
#[test]
fn a_crash_in_the_founding_is_harmless() {
    let options = JournalOptions { first_file_bytes: 8 << 10, file_bytes: 8 << 10, ..JournalOptions::default() };
    let owner = JournalIdentity { node_id: NodeId(1), incarnation: Incarnation([1; 16]) };
    let disk = SimDisk::new();
    disk.record_forks();
    let found = |disk: &SimDisk| now(Journal::create(Arc::new(disk.clone()), PathBuf::from(DIR), options, owner));
    found(&disk).map_err(text).expect("founded");
    for (at, fork) in disk.take_forks().into_iter().enumerate() {
        for seed in 0..50 {
            let crashed = fork.fork().crash(seed);
            if now(Journal::exists(&crashed, Path::new(DIR))).is_ok_and(|exists| exists) {
                let (_, model, _) =
                    open(&crashed, options).map_err(text).unwrap_or_else(|error| panic!("{at}: {error}"));
                assert_eq!(model, Model::default());
            } else {
                found(&crashed).map_err(text).unwrap_or_else(|error| panic!("operation {at}, seed {seed}: {error}"));
                assert!(open(&crashed, options).is_ok());
            }
        }
    }
}
