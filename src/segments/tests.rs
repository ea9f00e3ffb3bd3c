//! The stories of single segments: bytes, caches, flushes that fail. Random histories and crashes are in
//! `tests/segments_crash.rs`.

use super::inspect::{inspect, Ending, FrameReport, IndexStatus, SegmentReport};
use super::*;
use crate::batch::{BatchBuilder, RecordRef};
use crate::disk::sim::{Fault, FaultEffect, OperationKind, SimDisk};
use crate::disk::{Lane, OpenMode};
use crate::segments::verdict::Refusal;
use futures::FutureExt;
use std::future::Future;
use std::io;
use std::path::PathBuf;

const DIR: &str = "/g";

fn now<T>(job: impl Future<Output = T>) -> T {
    job.now_or_never().expect("the simulated disk answers at once")
}

fn founding() -> Base {
    Base { index: LogIndex(1), term: Term(1), state: Bytes::from_static(b"state"), ..Base::default() }
}

fn options() -> SegmentsOptions {
    SegmentsOptions { segment_bytes: 1_000, index_stride_bytes: 100, ..SegmentsOptions::of(GroupId(3)) }
}

fn open_with(disk: &SimDisk, options: SegmentsOptions, base: &Base) -> Segments {
    now(Segments::open(Arc::new(disk.clone()), DIR.into(), options, base)).expect("it opens")
}

fn flush(segments: &mut Segments, sync: bool) -> Result<LogIndex, SegmentsError> {
    let job = segments.begin_flush(sync).expect("there is something to write");
    segments.finish_flush(now(job.run()))
}

fn batch_of(value: &[u8]) -> Bytes {
    let mut builder = BatchBuilder::new();
    builder.push(RecordRef { value: Some(value), ..RecordRef::default() }).expect("it is small");
    builder.build()
}

/// An entry whose data is five bytes of envelope and a batch of one record, appended at `offset`.
fn one_record(index: u64, offset: u64) -> Frame {
    let data = [&[0; 5][..], &batch_of(b"a record")].concat();
    Frame {
        index: LogIndex(index),
        term: Term(1),
        kind: EntryKind::Commands,
        timestamp: TimestampMs(index * 10),
        chain: Digest([index as u8; 32]),
        items: vec![Item { verdict: Verdict::Appended { offset: Offset(offset), count: 1 }, batch_at: Some(5) }],
        data: data.into(),
    }
}

/// The base at the end of a log of such entries.
fn base_at(segments: &Segments) -> Base {
    let (index, tail) = (segments.last_index(), segments.tail());
    Base { index, tail, timestamp: TimestampMs(index.0 * 10), ..founding() }
}

fn segment(first_index: u64) -> PathBuf {
    header::segment_path(Path::new(DIR), LogIndex(first_index))
}

fn report(disk: &SimDisk, path: &Path) -> (SegmentReport, Vec<FrameReport>) {
    let mut frames = Vec::new();
    let report = now(inspect(disk, path, |frame| frames.push(frame.clone()))).expect("the disk reads");
    (report, frames)
}

#[test]
fn a_frame_has_the_golden_bytes() {
    let mut entry = one_record(2, 7);
    entry.data = Bytes::from_static(b"no");
    entry.items = vec![Item { verdict: Verdict::Refused(Refusal::NotFound), batch_at: None }];
    let (bytes, view) = frame::encode(&entry);
    let expected: Vec<u8> = [
        &b"bfrm"[..],
        &bytes[4..8],  // checksum of the header, held below
        &[1, 0, 0, 0], // commands
        &[1, 0, 0, 0], // one item
        &[2, 0, 0, 0], // two bytes of data
        &crc32c::crc32c(b"no").to_le_bytes(),
        &[2, 0, 0, 0, 0, 0, 0, 0],  // index
        &[1, 0, 0, 0, 0, 0, 0, 0],  // term
        &[20, 0, 0, 0, 0, 0, 0, 0], // timestamp
        &[2; 32],                   // chain
        &[26, 0, 0, 0, 0, 0, 0, 0], // not found
        &[0; 16],
        &[0xff; 4], // no batch
        b"no",
    ]
    .concat();
    assert_eq!(bytes, expected);
    assert_eq!(bytes[4..8], crc32c::crc32c(&bytes[8..108]).to_le_bytes());
    assert_eq!((view.len(), view.items().next()), (bytes.len(), Some(entry.items[0])));
    for at in 0..bytes.len() {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 4;
        let parsed = frame::parse(&flipped.into());
        assert!(!matches!(parsed, frame::Parsed::Frame(_)), "a flip at {at} goes unseen");
    }
}

#[test]
fn a_batch_lies_stamped_for_readers_and_comes_back_bare_for_raft() {
    let disk = SimDisk::new();
    let mut segments = open_with(&disk, SegmentsOptions { tail_cache_bytes: 0, ..options() }, &founding());
    let sent = one_record(2, 0);
    segments.append(sent.clone());
    segments.append(one_record(3, 1));
    for round in ["cached", "cold"] {
        let batches = match segments.locate(Offset(1), 1_000) {
            Located::Cached(batches) => batches,
            Located::Cold(job) => now(job.run()).expect("it is there"),
            _ => panic!("{round}: the offset is there"),
        };
        let header = crate::batch::BatchHeader::decode(&batches[0].batch).expect("it is whole");
        assert_eq!((header.base_offset, header.leader_epoch, batches.len()), (1, 1, 1), "{round}");
        let entries = match segments.entries(LogIndex(2), LogIndex(4), 1_000) {
            LocatedEntries::Cached(entries) => entries,
            LocatedEntries::Cold(job) => now(job.run()).expect("they are there"),
            LocatedEntries::Compacted { .. } => panic!("{round}: nothing was trimmed"),
        };
        assert_eq!((entries.len(), &entries[0].data), (2, &sent.data), "{round}");
        if round == "cached" {
            assert_eq!(flush(&mut segments, true).expect("there is room"), LogIndex(3));
            assert!(matches!(segments.locate(Offset(0), 1), Located::Cold(_)), "the cache holds nothing now");
        }
    }
}

#[test]
fn reads_near_the_tail_share_the_one_copy() {
    let mut segments = open_with(&SimDisk::new(), options(), &founding());
    segments.append(one_record(2, 0));
    let at = || match segments.locate(Offset(0), 1_000) {
        Located::Cached(batches) => batches[0].batch.as_ptr(),
        _ => panic!("it is cached"),
    };
    assert_eq!(at(), at());
}

#[test]
fn no_room_is_a_refusal_that_passes() {
    let disk = SimDisk::new();
    let mut segments = open_with(&disk, options(), &founding());
    disk.set_capacity(Some(500));
    segments.append(one_record(2, 0));
    let refused = flush(&mut segments, true).expect_err("there is no room");
    assert!(refused.is_no_space() && !refused.must_stop(), "{refused}");
    assert!(matches!(segments.locate(Offset(0), 1), Located::Cached(_)), "reads go on");
    assert!(segments.unsynced_bytes() > 0);
    disk.set_capacity(None);
    assert_eq!(flush(&mut segments, true).expect("there is room again"), LogIndex(2));
    assert_eq!(segments.unsynced_bytes(), 0);
}

#[test]
fn a_file_that_lies_where_a_segment_begins_is_written_anew() {
    let disk = SimDisk::new();
    let mut segments = open_with(&disk, options(), &founding());
    let mut index = 2;
    while segments.segments.len() < 2 {
        segments.append(one_record(index, index - 2));
        if segments.wants_roll() {
            segments.roll(base_at(&segments));
        }
        index += 1;
    }
    segments.append(one_record(index, index - 2));
    let path = segments.active().path.clone();
    let left = now(disk.open(&path, OpenMode::CreateNew, Lane::Bulk)).expect("a file");
    now(left.write_at(0, vec![vec![0xee; 300].into()])).expect("bytes of another attempt");
    assert_eq!(flush(&mut segments, true).expect("it is written anew"), LogIndex(index));
    let base = base_at(&segments);
    drop(segments);
    let mut segments = open_with(&disk, options(), &base);
    assert_eq!(segments.last_index(), LogIndex(index));
    segments.append(one_record(index + 1, index - 1));
    assert_eq!(flush(&mut segments, true).expect("the log goes on"), LogIndex(index + 1));
}

#[test]
fn a_failed_sync_is_never_followed_by_another_flush() {
    let disk = SimDisk::new();
    let mut segments = open_with(&disk, options(), &founding());
    let effect = FaultEffect::Fail(io::ErrorKind::StorageFull);
    disk.inject(Fault { kind: OperationKind::Sync, path_contains: "seg".into(), skip: 0, effect });
    segments.append(one_record(2, 0));
    let failed = flush(&mut segments, true).expect_err("the sync fails");
    assert!(failed.must_stop() && matches!(failed, SegmentsError::SyncFailed { .. }), "{failed}");
    assert!(segments.begin_flush(true).is_none());
    assert_eq!(segments.synced_through(), LogIndex(1));
}

/// Seen in the simulator: a flush made a segment anew that a snapshot had dropped meanwhile. It was never dropped again, and lost its
/// unsynced end with the power; once the segment that started the log was trimmed, it was taken for a part of the log.
#[test]
fn a_snapshot_waits_for_the_flush_that_it_overtakes() {
    let disk = SimDisk::new();
    let mut segments = open_with(&disk, options(), &founding());
    let mut index = 2;
    while !segments.wants_roll() {
        segments.append(one_record(index, index - 2));
        index += 1;
    }
    segments.roll(base_at(&segments));
    segments.append(one_record(index, index - 2));
    let flushing = segments.begin_flush(true).expect("there is something to write");
    let snapshot =
        Base { index: LogIndex(index + 9), tail: Offset(index + 7), timestamp: TimestampMs(index * 20), ..founding() };
    segments.reset(snapshot.clone());
    assert!(segments.begin_reset().is_none(), "the flush is under way");
    let overtaken = segments.finish_flush(now(flushing.run()));
    assert_eq!(overtaken.expect("it counts for nothing"), snapshot.index);
    let reset = segments.begin_reset().expect("the flush has ended");
    let done = now(reset.run()).expect("there is room");
    now(segments.finish_reset(done).expect("old files go").run()).expect("they go");
    let names = now(disk.list(Path::new(DIR))).expect("it is there");
    assert_eq!(names, [segment(snapshot.index.next().0)]);
}

#[test]
fn opening_reads_the_summaries_of_sealed_segments_and_rebuilds_a_lost_one() {
    let disk = SimDisk::new();
    let mut segments = open_with(&disk, options(), &founding());
    for index in 2..20 {
        if segments.wants_roll() {
            segments.roll(base_at(&segments));
        }
        segments.append(one_record(index, index - 2));
    }
    let base = Base { index: flush(&mut segments, true).expect("there is room"), tail: Offset(18), ..founding() };
    let next_life = disk.restart();
    let reopened = open_with(&next_life, options(), &base);
    assert!(reopened.segments.len() > 3);
    assert_eq!(reopened.open_report().rebuilt, Vec::<PathBuf>::new());
    assert_eq!(report(&next_life, &segment(2)).0.index, IndexStatus::Good);

    let lost = segment(2).with_extension("idx");
    assert!(next_life.lose_file(&lost));
    assert_eq!(open_with(&next_life, options(), &base).open_report().rebuilt, [lost]);
    assert_eq!(report(&next_life, &segment(2)).0.index, IndexStatus::Good);

    // An index that went bad after opening is not believed either.
    assert!(next_life.flip(&segment(2).with_extension("idx"), 150, 1));
    let Located::Cold(read) = reopened.locate(Offset(3), 1) else { panic!("it is not cached") };
    assert_eq!(now(read.run()).expect("it is found by scanning")[0].base_offset, Offset(3));
}

#[test]
fn opening_scans_the_active_segment_from_where_its_index_ends() {
    let disk = SimDisk::new();
    let options = SegmentsOptions { segment_bytes: 1 << 20, tail_cache_bytes: 0, ..options() };
    let mut segments = open_with(&disk, options, &founding());
    (2..60).for_each(|index| segments.append(one_record(index, index - 2)));
    flush(&mut segments, true).expect("there is room");
    let indexed = base_at(&segments);
    (60..70).for_each(|index| segments.append(one_record(index, index - 2)));
    flush(&mut segments, true).expect("there is room");
    let base = base_at(&segments);
    let (found, frames) = report(&disk, &segment(2));
    assert_eq!(
        (found.frames, found.index),
        (68, IndexStatus::SoFar),
        "the second flush was too small for another index"
    );

    // Opening believes it: what rots before its end is found by whoever reads it, as in a sealed segment.
    let disk = disk.restart();
    assert!(disk.flip(&segment(2), frames[3].position + 100, 1));
    let mut reopened = open_with(&disk, options, &base);
    assert_eq!((reopened.last_index(), reopened.tail()), (base.index, base.tail));
    let Located::Cold(read) = reopened.locate(Offset(67), 1) else { panic!("it is not cached") };
    assert_eq!(now(read.run()).expect("it is whole")[0].base_offset, Offset(67));
    let Located::Cold(read) = reopened.locate(Offset(3), 1) else { panic!("it is not cached") };
    assert!(now(read.run()).expect_err("it is rotten").is_corruption());
    reopened.append(one_record(70, 68));
    flush(&mut reopened, true).expect("there is room");

    // One that is torn, or tells of more than the base, is not believed: the scan meets the rot.
    let refused = |base: &Base, disk: SimDisk| {
        let opened = now(Segments::open(Arc::new(disk), DIR.into(), options, base));
        assert!(opened.err().expect("it is rotten").is_corruption());
    };
    let earlier = Base { index: LogIndex(40), tail: Offset(39), ..indexed };
    refused(&earlier, disk.restart());
    assert!(disk.flip(&segment(2).with_extension("idx"), 150, 1));
    refused(&base, disk.restart());
}

#[test]
fn inspection_names_damage_and_goes_on_behind_it() {
    let disk = SimDisk::new();
    let mut segments = open_with(&disk, SegmentsOptions { segment_bytes: 1 << 20, ..options() }, &founding());
    (2..6).for_each(|index| segments.append(one_record(index, index - 2)));
    flush(&mut segments, true).expect("there is room");
    let (whole, frames) = report(&disk, &segment(2));
    assert_eq!((whole.frames, whole.last_index, whole.tail), (4, Some(LogIndex(5)), Offset(4)));
    assert_eq!((whole.damage.len(), whole.index), (0, IndexStatus::Absent));
    assert!(matches!(whole.ending, Ending::Zeros { .. }));
    assert_eq!(whole.header.expect("it is whole").group, GroupId(3));

    assert!(disk.flip(&segment(2), frames[1].position + 100, 1));
    let (damaged, _) = report(&disk, &segment(2));
    assert_eq!((damaged.frames, damaged.last_index), (3, Some(LogIndex(5))));
    assert_eq!(damaged.damage[0].position, frames[1].position);
    assert!(damaged.damage[1].what.contains("entry 4 of term 1 does not follow entry 2"), "{:?}", damaged.damage);

    assert!(disk.flip(&segment(2), 3, 1));
    assert!(report(&disk, &segment(2)).0.header.is_err());
}

/// The same on real files: sealed and active segments, cold reads, a next life.
#[cfg(not(madsim))]
#[tokio::test]
async fn real_files_hold_what_was_flushed() {
    let dir = std::env::temp_dir().join(format!("balsa-segments-{}", std::process::id()));
    let disk: Arc<dyn Disk> = Arc::new(crate::disk::real::RealDisk::new().expect("threads"));
    disk.remove_dir_all(&dir).await.expect("it can go");
    let options = SegmentsOptions { tail_cache_bytes: 0, ..options() };
    let opened = Segments::open(disk.clone(), dir.clone(), options, &founding()).await;
    let mut segments = opened.expect("a new directory opens");
    for index in 2..50 {
        segments.append(one_record(index, index - 2));
        if segments.wants_roll() {
            segments.roll(Base { index: segments.last_index(), tail: segments.tail(), ..founding() });
        }
        if index % 7 == 0 {
            let job = segments.begin_flush(index % 2 == 0).expect("there is something to write");
            segments.finish_flush(job.run().await).expect("there is room");
        }
    }
    let job = segments.begin_flush(true).expect("there is something to write");
    let base = Base { index: segments.finish_flush(job.run().await).expect("there is room"), ..founding() };
    segments.base_moved(base.index);
    if let Some(job) = segments.drop_before(Offset(20)) {
        job.run().await.expect("the files can go");
    }
    let next_life = Segments::open(disk.clone(), dir.clone(), options, &base).await.expect("it opens again");
    assert_eq!((next_life.last_index(), next_life.tail()), (LogIndex(49), Offset(48)));
    assert!((1..=20).contains(&next_life.start_offset().0), "{}", next_life.start_offset());
    for offset in 20..48 {
        let Located::Cold(read) = next_life.locate(Offset(offset), 1) else { panic!("nothing is cached") };
        assert_eq!(read.run().await.expect("it is there")[0].base_offset, Offset(offset));
    }
    disk.remove_dir_all(&dir).await.expect("it can go");
}
