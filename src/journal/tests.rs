//! What a journal owes when nothing is damaged. Crashes and rot are `tests/journal_crash.rs`.

use super::base::Base;
use super::inspect::inspect;
use super::{
    spawn, GroupWrite, IdleProgress, Journal, JournalError, JournalIdentity, JournalOptions, JournalReport, Recovered,
};
use crate::disk::real::RealDisk;
use crate::disk::sim::{Fault, FaultEffect, OperationKind, SimDisk, Survival};
use crate::disk::Disk;
use crate::ids::{GroupId, Incarnation, LogIndex, NodeId, Term};
use crate::telemetry::silent_logger;
use bytes::Bytes;
use futures::FutureExt;
use raft::eraftpb::{Entry, HardState};
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

const SMALL: JournalOptions = JournalOptions {
    file_bytes: 64 << 10,
    first_file_bytes: 32 << 10,
    restated_bytes_max: 32 << 10,
    base_move_bytes: 8 << 10,
    base_inline_bytes_max: 1 << 10,
    round_bytes_max: 8 << 10,
    portion_bytes_min: 1 << 10,
    step_bytes: 16 << 10,
    files_max: 4,
};

fn owner() -> JournalIdentity {
    JournalIdentity { node_id: NodeId(1), incarnation: Incarnation([7; 16]) }
}

/// The simulated disk answers at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("the simulated disk answers at once")
}

fn create(disk: &SimDisk) -> Journal {
    now(Journal::create(Arc::new(disk.clone()), PathBuf::from("/j"), SMALL, owner())).expect("created")
}

fn open(disk: &SimDisk) -> (Journal, Recovered) {
    now(Journal::open(Arc::new(disk.clone()), PathBuf::from("/j"), SMALL)).expect("opened")
}

fn base(index: u64) -> Base {
    Base { index: LogIndex(index), term: Term(1), ..Base::default() }
}

fn entry(index: u64, data: impl Into<Bytes>) -> Entry {
    Entry { index, term: 1, data: data.into(), ..Entry::default() }
}

fn first_write(group: u64) -> GroupWrite {
    GroupWrite::of_base(GroupId(group), base(1))
}

fn append(group: u64, index: u64, data: impl Into<Bytes>) -> GroupWrite {
    GroupWrite { group: GroupId(group), entries: vec![entry(index, data)], ..GroupWrite::default() }
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    let hard_state = HardState { term: 3, vote: 9, commit: 2 };
    let context = Entry { context: Bytes::from_static(b"context"), sync_log: true, entry_type: 2, ..entry(3, "data") };
    let write = GroupWrite {
        hard_state: Some(hard_state),
        entries: vec![entry(2, vec![5; 5_000]), context.clone()],
        ..first_write(4)
    };
    now(journal.write_round(vec![write, first_write(5)])).expect("written");
    let (_, recovered) = open(&disk.crash(0));
    let group = &recovered.groups[&GroupId(4)];
    assert_eq!(group.base, base(1));
    assert_eq!(group.hard_state, hard_state);
    assert_eq!(group.entries, [entry(2, vec![5; 5_000]), context]);
    assert_eq!(recovered.groups[&GroupId(5)].entries, []);
    assert_eq!(recovered.cut, None);
}

#[test]
fn a_suffix_is_overwritten_a_base_forgets_and_a_removed_group_stays_removed() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    let entries = (2..10).map(|index| entry(index, "first")).collect();
    now(journal.write_round(vec![GroupWrite { entries, ..first_write(1) }, first_write(2)])).expect("written");
    now(journal.write_round(vec![append(1, 6, "second")])).expect("written");
    let forward = GroupWrite::of_base(GroupId(1), base(4));
    let gone = GroupWrite { group: GroupId(2), removed: true, ..GroupWrite::default() };
    now(journal.write_round(vec![forward, gone])).expect("written");
    let (mut journal, recovered) = open(&disk.restart());
    assert_eq!(recovered.groups[&GroupId(1)].entries, [entry(5, "first"), entry(6, "second")]);
    assert!(recovered.removed.contains(&GroupId(2)));
    let again = now(journal.write_round(vec![first_write(2)]));
    assert!(matches!(again, Err(JournalError::Refused { group: GroupId(2), .. })), "{again:?}");
}

#[test]
fn an_installed_snapshot_voids_entries_that_contradict_it() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    let entries = (2..10).map(|index| entry(index, "old")).collect();
    now(journal.write_round(vec![GroupWrite { entries, ..first_write(1) }])).expect("written");
    let other_term = Base { term: Term(2), ..base(5) };
    let install = GroupWrite::of_base(GroupId(1), other_term.clone());
    now(journal.write_round(vec![install])).expect("written");
    let (_, recovered) = open(&disk.restart());
    assert_eq!(recovered.groups[&GroupId(1)].base, other_term);
    assert_eq!(recovered.groups[&GroupId(1)].entries, []);
}

#[test]
fn files_roll_restate_and_are_recycled_so_that_the_directory_stays_small() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    let large = Base { state: Bytes::from(vec![3; 3_000]), ..base(1) };
    let with_file = GroupWrite::of_base(GroupId(2), large.clone());
    now(journal.write_round(vec![first_write(1), with_file])).expect("written");
    for index in 2..2_000 {
        let forward = (index > 5).then(|| Box::new(base(index - 4)));
        let write = GroupWrite { base: forward, ..append(1, index, vec![index as u8; 700]) };
        now(journal.write_round(vec![write])).expect("written");
    }
    while now(journal.idle()).expect("idle") != IdleProgress::Done {}
    let names = now(disk.list(&PathBuf::from("/j"))).expect("listed");
    let files = names.iter().filter(|path| path.to_string_lossy().contains("journal-")).count();
    assert!(files <= 3, "{names:?}");
    let (_, recovered) = open(&disk.crash(0));
    assert_eq!(recovered.groups[&GroupId(1)].base.index, LogIndex(1_995));
    assert_eq!(recovered.groups[&GroupId(1)].entries.len(), 4);
    assert_eq!(recovered.groups[&GroupId(2)].base, large);
}

#[test]
fn a_group_larger_than_a_file_is_restated_in_a_larger_one() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    now(journal.write_round(vec![first_write(1)])).expect("written");
    for index in 2..200 {
        now(journal.write_round(vec![append(1, index, vec![1; 1_000])])).expect("written");
    }
    while now(journal.idle()).expect("idle") != IdleProgress::Done {}
    assert!(journal.older.is_empty(), "the checkpoint was never completed");
    let (_, recovered) = open(&disk.crash(0));
    assert_eq!(recovered.groups[&GroupId(1)].entries.len(), 198);
}

#[test]
fn a_write_larger_than_a_round_goes_into_several_and_the_commit_never_runs_ahead() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    disk.record_forks();
    let hard_state = Some(HardState { term: 1, vote: 1, commit: 40 });
    let entries = (2..42).map(|index| entry(index, vec![1; 900])).collect();
    now(journal.write_round(vec![GroupWrite { entries, hard_state, ..first_write(1) }])).expect("written");
    for fork in disk.take_forks() {
        let (_, recovered) = open(&fork.crash(1));
        let Some(group) = recovered.groups.get(&GroupId(1)) else { continue };
        let last = group.entries.last().map_or(1, |entry| entry.index);
        assert!(group.hard_state.commit <= last, "commit {} of {last}", group.hard_state.commit);
    }
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.groups[&GroupId(1)].hard_state.commit, 40);
    assert_eq!(recovered.groups[&GroupId(1)].entries.len(), 40);
}

#[test]
fn a_failed_write_or_sync_stops_the_journal_for_good() {
    for kind in [OperationKind::Write, OperationKind::Sync] {
        let disk = SimDisk::new();
        let mut journal = create(&disk);
        now(journal.write_round(vec![first_write(1)])).expect("written");
        let effect = FaultEffect::Fail(io::ErrorKind::Other);
        disk.inject(Fault { kind, path_contains: "journal-".to_owned(), skip: 0, effect });
        let failed = now(journal.write_round(vec![append(1, 2, "x")]));
        assert!(matches!(failed, Err(JournalError::Io { .. })), "{failed:?}");
        let operations = disk.operations();
        let after = now(journal.write_round(vec![append(1, 2, "x")]));
        assert!(matches!(after, Err(JournalError::Stopped { .. })), "{after:?}");
        assert!(matches!(now(journal.idle()), Err(JournalError::Stopped { .. })));
        assert_eq!(disk.operations(), operations, "something was written after the failure");
    }
}

#[test]
fn a_round_read_back_after_its_sync_failed_is_written_again_before_anybody_relies_on_it() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    now(journal.write_round(vec![first_write(1)])).expect("written");
    let effect = FaultEffect::Fail(io::ErrorKind::Other);
    disk.inject(Fault { kind: OperationKind::Sync, path_contains: "journal-".to_owned(), skip: 0, effect });
    assert!(now(journal.write_round(vec![append(1, 2, "in the page cache only")])).is_err());
    let next = disk.restart(); // the process ends, the power does not: the round is read, and no sync reports that it is lost
    let (_, recovered) = open(&next);
    assert_eq!(recovered.groups[&GroupId(1)].entries.len(), 1);
    let (_, recovered) = open(&next.crash_with(&mut |_| Survival::Lost));
    assert_eq!(recovered.groups[&GroupId(1)].entries.len(), 1);
}

#[test]
fn a_clean_stop_leaves_on_record_that_all_is_synced() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    now(journal.write_round(vec![first_write(1)])).expect("written");
    assert_eq!(now(journal.idle_step()).expect("idle"), IdleProgress::More);
    let marked = now(inspect(&disk, &PathBuf::from("/j"))).expect("inspected").marked;
    assert_eq!(marked, Some(journal.boundary));
}

#[test]
fn a_dropped_write_stops_the_journal() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    let effect = FaultEffect::Hang;
    disk.inject(Fault { kind: OperationKind::Sync, path_contains: "journal-".to_owned(), skip: 0, effect });
    assert!(journal.write_round(vec![first_write(1)]).now_or_never().is_none());
    let after = now(journal.write_round(vec![first_write(1)]));
    assert!(matches!(after, Err(JournalError::Stopped { .. })), "{after:?}");
}

#[test]
fn a_full_disk_delays_the_next_file_and_recycling_goes_on() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    disk.set_capacity(Some(300 << 10));
    now(journal.write_round(vec![first_write(1)])).expect("written");
    for index in 2..3_000 {
        let forward = (index > 5).then(|| Box::new(base(index - 4)));
        let write = GroupWrite { base: forward, ..append(1, index, vec![index as u8; 700]) };
        now(journal.write_round(vec![write])).expect("written");
    }
}

#[test]
fn where_there_is_no_room_for_a_larger_file_a_small_one_takes_the_round() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    disk.set_capacity(Some(disk.bytes_used() + (40 << 10)));
    for index in 0..5 {
        let first = GroupWrite { entries: vec![entry(2, vec![0; 7 << 10])], ..first_write(index + 1) };
        now(journal.write_round(vec![first])).expect("a small file has room");
    }
    let sizes = |disk: &SimDisk| {
        let files = disk.files().into_iter().filter(|path| path.to_string_lossy().contains("journal-"));
        files.map(|path| disk.content(&path).expect("it is there").len()).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&disk), [32 << 10, 32 << 10], "nothing is left of the larger one");
    drop(journal);
    disk.set_capacity(None);
    assert_eq!(open(&disk.restart()).1.groups.len(), 5);
}

#[test]
fn starts_that_end_before_their_file_is_named_make_room_for_the_next() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    now(journal.write_round(vec![first_write(1)])).expect("written");
    drop(journal);
    let disk = disk.restart();
    let used = disk.bytes_used();
    for _ in 0..3 {
        // Room for the file, and none for the identity that is to name it.
        disk.set_capacity(Some(used + SMALL.first_file_bytes + 10));
        let opened = now(Journal::open(Arc::new(disk.clone()), PathBuf::from("/j"), SMALL));
        assert!(opened.is_err(), "there is no room");
        assert!(disk.bytes_used() <= used + SMALL.first_file_bytes + 10);
    }
    disk.set_capacity(Some(used + SMALL.first_file_bytes + 1_000));
    assert_eq!(open(&disk).1.groups.len(), 1);
}

#[test]
fn starts_that_find_no_room_leave_nothing_behind() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    now(journal.write_round(vec![first_write(1)])).expect("written");
    drop(journal);
    let disk = disk.restart();
    let before = disk.files();
    disk.set_capacity(Some(disk.bytes_used() + 1_000));
    for _ in 0..3 {
        let opened = now(Journal::open(Arc::new(disk.clone()), PathBuf::from("/j"), SMALL));
        assert!(opened.is_err(), "there is no room");
        assert_eq!(disk.files(), before);
    }
    disk.set_capacity(None);
    assert_eq!(open(&disk).1.groups.len(), 1);
}

#[test]
fn a_missing_journal_is_damage_and_an_existing_one_is_not_overwritten() {
    let disk = SimDisk::new();
    now(disk.create_dir_all(&PathBuf::from("/j"))).expect("created");
    let missing = now(Journal::open(Arc::new(disk.clone()), PathBuf::from("/j"), SMALL)).err();
    assert!(matches!(missing, Some(JournalError::Missing { .. })), "{missing:?}");
    let mut journal = create(&disk);
    now(journal.write_round(vec![first_write(1)])).expect("written");
    for lost in ["identity-1", "identity-2"] {
        let again = now(Journal::create(Arc::new(disk.clone()), PathBuf::from("/j"), SMALL, owner())).err();
        assert!(matches!(again, Some(JournalError::Exists { .. })), "{again:?}");
        assert!(disk.lose_file(&PathBuf::from("/j").join(lost)));
    }
    let again = now(Journal::create(Arc::new(disk), PathBuf::from("/j"), SMALL, owner())).err();
    assert!(matches!(again, Some(JournalError::Exists { .. })), "{again:?}");
}

#[test]
fn bases_are_wanted_from_the_largest_groups_and_the_cap_is_reported_once_each_way() {
    let disk = SimDisk::new();
    let mut journal = create(&disk);
    now(journal.write_round(vec![first_write(1), first_write(2), first_write(3)])).expect("written");
    now(journal.write_round(vec![append(1, 2, vec![0; 100]), append(2, 2, vec![0; 7_500])])).expect("written");
    assert_eq!(journal.wanted_bases(), None);
    now(journal.write_round(vec![append(2, 3, vec![0; 1_000])])).expect("written");
    assert_eq!(journal.wanted_bases(), Some((vec![GroupId(2)], false)));
    now(journal.write_round(vec![append(3, 2, vec![0; 7_000]), append(1, 3, vec![0; 7_000])])).expect("written");
    assert_eq!(journal.wanted_bases(), Some((vec![GroupId(1)], false)), "half the cap is passed");
    now(journal.write_round(vec![append(2, 4, vec![0; 7_000]), append(2, 5, vec![0; 4_000])])).expect("written");
    let (_, over_cap) = journal.wanted_bases().expect("the cap is passed");
    assert!(over_cap);
    assert_eq!(journal.wanted_bases(), None);
    let forward = GroupWrite::of_base(GroupId(2), base(5));
    now(journal.write_round(vec![forward])).expect("written");
    assert_eq!(journal.wanted_bases().map(|(_, over_cap)| over_cap), Some(false));
    assert_eq!(journal.pressure().groups.first().map(|(group, _)| *group), Some(GroupId(1)));
}

#[tokio::test]
async fn the_task_merges_what_waits_and_reports_in_order_on_a_real_disk() {
    let dir = std::env::temp_dir().join(format!("balsa-journal-{}", std::process::id()));
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new().expect("threads"));
    disk.remove_dir_all(&dir).await.expect("removed");
    let journal = Journal::create(disk.clone(), dir.clone(), SMALL, owner()).await.expect("created");
    let Ok([(handle, mut reports)]) = <[_; 1]>::try_from(spawn(journal, 1, silent_logger())) else { panic!() };
    handle.submit(1, vec![first_write(1)]);
    for number in 2..=300 {
        handle.submit(number, vec![append(1, number, vec![number as u8; 600])]);
    }
    drop(handle);
    let mut synced = 0;
    while let Some(report) = reports.recv().await {
        match report {
            JournalReport::Synced { through } => {
                assert!(through > synced);
                synced = through;
            }
            JournalReport::WantBases { groups, .. } => assert!(groups.iter().all(|group| *group == GroupId(1))),
            JournalReport::Failed(error) => panic!("{error}"),
        }
    }
    assert_eq!(synced, 300);
    let (_, recovered) = Journal::open(disk.clone(), dir.clone(), SMALL).await.expect("opened");
    assert_eq!(recovered.groups[&GroupId(1)].entries.len(), 299);
    disk.remove_dir_all(&dir).await.expect("removed");
}

#[tokio::test]
async fn each_handle_is_told_of_its_own_numbers_and_what_all_submit_is_in_the_journal() {
    let dir = std::env::temp_dir().join(format!("balsa-journal-handles-{}", std::process::id()));
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new().expect("threads"));
    disk.remove_dir_all(&dir).await.expect("removed");
    let journal = Journal::create(disk.clone(), dir.clone(), SMALL, owner()).await.expect("created");
    let (mut handles, mut reports): (Vec<_>, Vec<_>) = spawn(journal, 3, silent_logger()).into_iter().unzip();
    let silent = handles.pop();
    // The first one's numbers run far ahead of the second one's.
    handles[0].submit(1_000, vec![first_write(1)]);
    handles[1].submit(1, vec![first_write(2)]);
    for step in 2..=40 {
        handles[0].submit(1_000 + step, vec![append(1, step, vec![1; 600])]);
        if step <= 20 {
            handles[1].submit(step, vec![append(2, step, vec![2; 600])]);
        }
    }
    drop((handles, silent));
    let mut last = Vec::new();
    for reports in &mut reports {
        let mut synced = None;
        while let Some(report) = reports.recv().await {
            if let JournalReport::Synced { through } = report {
                assert!(Some(through) > synced);
                synced = Some(through);
            }
        }
        last.push(synced);
    }
    assert_eq!(last, [Some(1_040), Some(20), None]);
    let (_, recovered) = Journal::open(disk.clone(), dir.clone(), SMALL).await.expect("opened");
    let count = |group| recovered.groups[&GroupId(group)].entries.len();
    assert_eq!((count(1), count(2)), (39, 19));
    disk.remove_dir_all(&dir).await.expect("removed");
}

#[tokio::test]
async fn a_journal_that_is_closed_has_all_of_it_on_record_as_synced_and_writes_nothing_more() {
    let dir = std::env::temp_dir().join(format!("balsa-journal-closed-{}", std::process::id()));
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new().expect("threads"));
    disk.remove_dir_all(&dir).await.expect("removed");
    let journal = Journal::create(disk.clone(), dir.clone(), SMALL, owner()).await.expect("created");
    let Ok([(handle, mut reports)]) = <[_; 1]>::try_from(spawn(journal, 1, silent_logger())) else { panic!() };
    handle.submit(1, vec![first_write(1)]);
    handle.submit(2, vec![append(1, 2, vec![2; 600])]);
    handle.close().await;
    handle.submit(3, vec![append(1, 3, vec![3; 600])]);
    handle.close().await; // nobody is left to answer, which is an answer
    drop(handle);
    let mut synced = 0;
    while let Some(report) = reports.recv().await {
        if let JournalReport::Synced { through } = report {
            synced = through;
        }
    }
    assert_eq!(synced, 2, "what came after the close was neither written nor reported");
    let found = inspect(&*disk, &dir).await.expect("a journal");
    let mut last_round = None;
    for file in &found.files {
        let file = found.read_file(&*disk, file).await.expect("a file of it");
        let epoch = file.header.ok().filter(|_| !file.rounds.is_empty()).map(|header| header.epoch);
        last_round = last_round.max(epoch.map(|epoch| (epoch, file.end)));
    }
    assert_eq!(
        found.marked.map(|marked| (marked.epoch, marked.position)),
        last_round,
        "the mark stands behind the last round"
    );
    disk.remove_dir_all(&dir).await.expect("removed");
}
