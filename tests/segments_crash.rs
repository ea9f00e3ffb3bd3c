//! Crashes at every disk operation of random histories, and rot: what the journal's base covers is there byte for byte, or
//! its damage is reported; nothing else is ever served.

mod segments_model;

use balsa::disk::sim::{Fault, FaultEffect, OperationKind, SimDisk};
use balsa::disk::Disk;
use balsa::ids::{LogIndex, Offset};
use balsa::journal::base::Base;
use balsa::segments::{DropJob, Segments, SegmentsError, SegmentsOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use segments_model::{now, small, snapshot_ahead, Model};
use std::io;
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/node/groups/7";

fn open(disk: &SimDisk, options: SegmentsOptions, base: &Base) -> Result<Segments, SegmentsError> {
    now(Segments::open(Arc::new(disk.clone()), DIR.into(), options, base))
}

/// A disk as some operation left it, and what the journal held then.
struct Moment {
    disk: SimDisk,
    recorded: Base,
    /// Everything that was committed, in memory or not, and the log start that was agreed upon.
    model: Arc<Model>,
    agreed_start: Offset,
}

struct History {
    rng: StdRng,
    disk: SimDisk,
    options: SegmentsOptions,
    segments: Segments,
    model: Model,
    /// What the journal recorded, after the sync.
    recorded: Base,
    agreed_start: Offset,
    /// Removals that the driver has not got round to yet.
    drops: Vec<DropJob>,
    moments: Vec<Moment>,
}

impl History {
    fn new(seed: u64) -> History {
        let mut rng = StdRng::seed_from_u64(seed);
        let (disk, options, founding) = (SimDisk::new(), small(&mut rng), Model::founding());
        let segments = open(&disk, options, &founding).expect("a new directory opens");
        disk.record_forks();
        let model = Model::new(founding.clone());
        let (agreed_start, drops, moments) = (Offset(0), Vec::new(), Vec::new());
        History { rng, disk, options, segments, model, recorded: founding, agreed_start, drops, moments }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
            self.keep_moments(&self.model.clone());
            self.record_base();
        }
    }

    /// The disk after each operation since the last call, with what the journal and the log held.
    fn keep_moments(&mut self, model: &Model) {
        let model = Arc::new(model.clone());
        let (recorded, agreed_start) = (self.recorded.clone(), self.agreed_start);
        self.moments.extend(self.disk.take_forks().into_iter().map(|disk| Moment {
            disk,
            recorded: recorded.clone(),
            model: model.clone(),
            agreed_start,
        }));
    }

    fn step(&mut self) {
        match self.rng.gen_range(0..16) {
            0..=6 => self.append(),
            7 | 8 => self.flush(false),
            9..=11 => self.flush(true),
            12 => self.trim(),
            13 => drop(self.drops.pop().map(|job| now(job.run()).expect("removals succeed"))),
            14 => self.model.check(&self.segments, &mut self.rng).expect("nothing is damaged"),
            _ if self.rng.gen_ratio(1, 4) => self.install_snapshot(),
            _ => self.run_out_of_space(),
        }
    }

    fn append(&mut self) {
        for _ in 0..self.rng.gen_range(1..8) {
            if self.segments.wants_roll() && self.rng.gen_bool(0.8) {
                self.segments.roll(self.model.base_at(self.model.last_index()));
            }
            self.segments.append(self.model.commit(&mut self.rng));
        }
    }

    fn flush(&mut self, sync: bool) {
        let Some(job) = self.segments.begin_flush(sync) else { return };
        let goes_on_meanwhile = self.rng.gen_bool(0.3);
        if goes_on_meanwhile {
            self.append();
        }
        let through = self.segments.finish_flush(now(job.run())).expect("the flush succeeds");
        assert!(through <= self.model.last_index());
    }

    /// The journal records what is synced, in a round that is synced too; a moment later the segments are told.
    fn record_base(&mut self) {
        let synced = self.segments.synced_through();
        if synced > self.recorded.index && self.rng.gen_bool(0.5) {
            self.recorded = self.model.base_at(synced);
            self.segments.base_moved(synced);
        }
    }

    fn trim(&mut self) {
        let ahead = self.segments.tail().0 - self.agreed_start.0;
        self.agreed_start = self.agreed_start.plus(self.rng.gen_range(0..=ahead));
        self.drops.extend(self.segments.drop_before(self.agreed_start));
        assert!(self.segments.start_offset() >= self.agreed_start);
    }

    fn install_snapshot(&mut self) {
        let overtaken = self.segments.begin_flush(true);
        let base = snapshot_ahead(&self.model, &mut self.rng);
        self.segments.reset(base.clone());
        if let Some(flush) = overtaken {
            assert!(self.segments.begin_reset().is_none(), "the snapshot waits for the flush");
            let done = now(flush.run());
            self.segments.finish_flush(done).expect("the flush succeeds, and counts for nothing");
        }
        let old = std::mem::replace(&mut self.model, Model::new(base.clone()));
        self.append();
        let job = self.segments.begin_reset().expect("a reset waits");
        let done = now(job.run()).expect("the new segment is written");
        // Crashes until here find the old base; the log of then is what must be there.
        self.keep_moments(&old);
        (self.recorded, self.agreed_start) = (base.clone(), base.tail);
        let job = self.segments.finish_reset(done).expect("the reset was under way");
        self.drops = vec![job];
    }

    /// A flush that finds no room changes nothing: reads go on, and the next flush writes it all.
    fn run_out_of_space(&mut self) {
        let kind = [OperationKind::Write, OperationKind::Create][self.rng.gen_range(0..2)];
        let (skip, effect) = (self.rng.gen_range(0..4), FaultEffect::Fail(io::ErrorKind::StorageFull));
        self.disk.inject(Fault { kind, path_contains: String::new(), skip, effect });
        if let Some(job) = self.segments.begin_flush(self.rng.gen()) {
            match self.segments.finish_flush(now(job.run())) {
                Err(error) => assert!(error.is_no_space() && !error.must_stop(), "{error}"),
                Ok(through) => assert_eq!(through, self.model.last_index()),
            }
        }
        self.disk.clear_faults();
        self.model.check(&self.segments, &mut self.rng).expect("reads go on");
    }
}

/// Opens what a crash left; everything that the base covers must be there. Gives the segments.
fn recover(moment: &Moment, disk: &SimDisk, options: SegmentsOptions, rng: &mut StdRng) -> Segments {
    let mut segments = open(disk, options, &moment.recorded).expect("what was synced opens");
    let kept = moment.model.through(&moment.recorded);
    assert!(
        segments.start_offset() <= moment.agreed_start.max(kept.origin.tail),
        "nothing is trimmed without agreement"
    );
    kept.check(&segments, rng).expect("nothing is damaged");
    _ = segments.drop_before(moment.agreed_start);
    segments
}

/// How many histories crash after every single operation that changes the disk; the later ones crash after a few.
const HISTORIES_IN_FULL: u64 = 60;
const HISTORIES: u64 = 2_000;

/// Every seed is a history; the crashes after its operations each draw what became of the unsynced writes and names.
#[test]
fn what_the_base_covers_survives_a_crash_at_every_disk_operation() {
    let (mut crashes, mut went_on) = (0, 0);
    for seed in 0..HISTORIES {
        let mut history = History::new(seed);
        history.run(24);
        let mut rng = StdRng::seed_from_u64(seed);
        let share = if seed < HISTORIES_IN_FULL { 1.0 } else { 0.05 };
        for (at, moment) in history.moments.iter().enumerate() {
            if !rng.gen_bool(share) {
                continue;
            }
            let after = moment.disk.crash(seed ^ (at as u64) << 32);
            crashes += 1;
            let mut segments = recover(moment, &after, history.options, &mut rng);
            if rng.gen_ratio(1, 8) {
                went_on += 1;
                go_on_and_crash_again(moment, &mut segments, &after, history.options, &mut rng);
            }
        }
    }
    assert!(crashes > 3 * HISTORIES && went_on > 500, "{crashes} crashes, {went_on} went on");
}

/// The journal gives again what lies behind the base; then the power fails once more.
fn go_on_and_crash_again(
    moment: &Moment,
    segments: &mut Segments,
    disk: &SimDisk,
    options: SegmentsOptions,
    rng: &mut StdRng,
) {
    for frame in moment.model.frames_after(moment.recorded.index) {
        if segments.wants_roll() {
            segments.roll(moment.model.base_at(segments.last_index()));
        }
        segments.append(frame.clone());
    }
    if let Some(job) = segments.begin_flush(true) {
        segments.finish_flush(now(job.run())).expect("the flush succeeds");
    }
    moment.model.check(segments, rng).expect("nothing is damaged");
    let recorded = moment.model.base_at(moment.model.last_index());
    let again = open(&disk.crash(rng.gen()), options, &recorded).expect("what was synced opens");
    moment.model.check(&again, rng).expect("nothing is damaged");
}

/// Bits flip, blocks turn to zeros, files vanish: the reads are right or refused, never wrong.
#[test]
fn rot_is_reported_and_never_served() {
    let mut reported = 0;
    for seed in 0..HISTORIES / 8 {
        let mut history = History::new(seed);
        history.run(24);
        history.flush(true);
        history.flush(true);
        let recorded = history.model.base_at(history.segments.synced_through());
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..4 {
            let disk = history.disk.fork();
            damage(&disk, &mut rng);
            let kept = history.model.through(&recorded);
            let outcome = open(&disk, history.options, &recorded).and_then(|segments| kept.check(&segments, &mut rng));
            reported += u64::from(outcome.is_err());
        }
    }
    assert!(reported > HISTORIES / 8, "only {reported} reports");
}

fn damage(disk: &SimDisk, rng: &mut StdRng) {
    let files = now(disk.list(Path::new(DIR))).expect("the directory is there");
    let file = &files[rng.gen_range(0..files.len())];
    let handle = now(disk.open(file, balsa::disk::OpenMode::ReadOnly, balsa::disk::Lane::Bulk)).expect("it is there");
    let len = now(handle.len()).expect("it has a length");
    match rng.gen_range(0..10) {
        0 => assert!(disk.lose_file(file)),
        1 => _ = disk.zero_block(file, rng.gen_range(0..len), rng.gen_range(1..512)),
        _ => {
            let position = rng.gen_range(0..len.min(6_000));
            assert!(disk.flip(file, position, 1 << rng.gen_range(0..8)));
        }
    }
}

/// The seam between "torn" and "rotten": a base that the segments never reached is damage.
#[test]
fn a_base_beyond_what_was_written_is_refused_by_name() {
    let mut history = History::new(3);
    history.append();
    history.flush(true);
    let mut ahead = history.model.base_at(history.model.last_index());
    ahead.index = LogIndex(ahead.index.0 + 1);
    let refused = open(&history.disk.fork(), history.options, &ahead).err().expect("it lacks an entry");
    assert!(matches!(refused, SegmentsError::Corrupt { position, .. } if position > 0), "{refused}");
    let empty = open(&SimDisk::new(), history.options, &ahead).err().expect("there is nothing");
    assert!(matches!(empty, SegmentsError::Missing { .. }), "{empty}");
}
