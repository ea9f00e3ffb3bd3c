//! What keeps the journal supplied with files: rolls, preparations, recycling.
//!
//! One job at a time goes on beside the rounds, on the disk's other threads. Busy rounds let it go on as far as it can
//! without waiting; idle moments wait for it. A round that finds the next file unprepared makes
//! one at once: up to twice as large as the present file, or a small one where there is no room for that.

use super::core::{Journal, OpenFile};
use super::error::JournalError;
use super::files::{begin_life, file_path, fill_file, Filled, Identity};
use super::format::{sector_up, ROUNDS_START};
use super::restating::{Checkpoint, Progress};
use super::states::state_path;
use crate::disk::BoxFuture;
use crate::{planted, reached};
use futures::FutureExt;
use std::io;

/// A file is filled in steps so much larger than those of idle moments: no round waits for one, and busy rounds look
/// after the next step only once each.
const FILL_STEPS: u64 = 8;

/// What goes on beside the rounds; one at a time.
pub(super) enum Job {
    /// A file is being filled.
    Fill(u64, BoxFuture<Result<Filled, JournalError>>),
    /// The identity is being replaced: a filled file joins, or old ones leave, or both.
    Identity(BoxFuture<Result<(Identity, Option<OpenFile>), JournalError>>),
    /// Files that nothing needs are being removed.
    Remove(BoxFuture<Result<(), JournalError>>),
}

/// What a job came to.
enum JobDone {
    Filled(u64, Result<Filled, JournalError>),
    Named(Result<(Identity, Option<OpenFile>), JournalError>),
    Removed(Result<(), JournalError>),
}

impl Job {
    async fn run(&mut self) -> JobDone {
        match self {
            Job::Fill(slot, future) => JobDone::Filled(*slot, future.await),
            Job::Identity(future) => JobDone::Named(future.await),
            Job::Remove(future) => JobDone::Removed(future.await),
        }
    }
}

impl Journal {
    /// Whether the present file had no room for its checkpoint, and the next one has or the one after it.
    pub(super) fn has_room_further_on(&self) -> bool {
        let wanted = self.checkpoint_file_bytes();
        let next = self.next.as_ref().map(|next| next.entry.bytes);
        let spare = self.spare.as_ref().map(|spare| spare.bytes).filter(|_| next.is_some());
        self.checkpoint.progress == Progress::Abandoned && next.max(spare) >= Some(wanted)
    }

    /// Bytes of a file that holds a checkpoint of what there is now, and as much of live rounds while it is completed.
    pub(super) fn checkpoint_file_bytes(&self) -> u64 {
        sector_up(ROUNDS_START + 2 * self.groups.restated_bytes() + self.options.round_bytes_max)
    }

    /// Bytes of the files that are prepared: multiples of one size, so that those that have served serve again.
    fn prepared_file_bytes(&self) -> u64 {
        sector_up(self.checkpoint_file_bytes().next_multiple_of(self.options.file_bytes))
    }

    /// Goes on in the next file. If none is ready, one up to twice as large as the present file, or a small one where there is no
    /// room for that, is made at once, of `span` bytes of rounds at least.
    pub(super) async fn roll(&mut self, span: u64) -> Result<(), JournalError> {
        if matches!(self.job, Some(Job::Identity(_))) {
            self.await_job().await?; // there must be one writer of the identity
        }
        let next = match self.next.take() {
            Some(next) => next,
            None => self.make_next_at_once(span).await?,
        };
        self.older.push(std::mem::replace(&mut self.file, next));
        self.position = ROUNDS_START;
        self.checkpoint = Checkpoint::new(Progress::Running);
        self.fill_refused = false;
        Ok(())
    }

    async fn make_next_at_once(&mut self, span: u64) -> Result<OpenFile, JournalError> {
        let wanted = ROUNDS_START + span;
        let filled = match self.spare.take_if(|spare| spare.bytes >= wanted) {
            Some(spare) => spare,
            None => {
                reached!("journal file made while a write waited");
                self.fill_at_once(wanted).await?
            }
        };
        match self.name_files(Some(filled), false).await? {
            (identity, Some(next)) => {
                self.identity = identity;
                Ok(next)
            }
            (_, None) => unreachable!("a filled file was given"),
        }
    }

    /// Twice as large as the present file, until one holds a checkpoint: smaller ones would pile up, by gigabytes under load over many groups. Where
    /// there is no room for that, as small as it may be.
    async fn fill_at_once(&mut self, wanted: u64) -> Result<Filled, JournalError> {
        let small = sector_up(self.options.first_file_bytes.max(wanted));
        let grown = sector_up((2 * self.file.entry.bytes).min(self.prepared_file_bytes()));
        if grown > small {
            let slot = self.take_slot();
            match fill_file(self.disk.clone(), self.dir.clone(), slot, grown, grown).await {
                Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                    reached!("no room for a larger journal file");
                    let path = file_path(&self.dir, slot);
                    self.disk.remove(&path).await.map_err(JournalError::io("remove", path))?;
                }
                filled => return filled,
            }
        }
        let slot = self.take_slot();
        fill_file(self.disk.clone(), self.dir.clone(), slot, small, small).await
    }

    fn take_slot(&mut self) -> u64 {
        self.slot_next += 1;
        self.slot_next - 1
    }

    /// Begins to replace the identity: `joins` is named from then on, and with `drops` the files before the present one
    /// no longer.
    fn name_files(
        &mut self,
        joins: Option<Filled>,
        drops: bool,
    ) -> BoxFuture<Result<(Identity, Option<OpenFile>), JournalError>> {
        let mut identity = self.identity.clone();
        identity.generation += 1;
        identity.boundary = self.boundary;
        if drops {
            identity.files.retain(|file| file.epoch >= self.file.entry.epoch);
        }
        let epoch = self.epoch_next;
        self.epoch_next += u64::from(joins.is_some());
        let (disk, dir) = (self.disk.clone(), self.dir.clone());
        Box::pin(async move {
            let mut next = None;
            if let Some(filled) = joins {
                let entry = begin_life(&dir, &filled, identity.owner, epoch, Vec::new()).await?;
                identity.files.push(entry);
                next = Some(OpenFile { entry, handle: filled.handle });
            }
            identity.write(&*disk, &dir).await?;
            Ok((identity, next))
        })
    }

    /// Lets the job go on as far as it can without waiting, and begins the next one.
    pub(super) fn advance_job(&mut self) -> Result<(), JournalError> {
        loop {
            let Some(job) = &mut self.job else {
                self.job = self.next_job();
                if self.job.is_none() {
                    return Ok(());
                }
                continue;
            };
            let Some(done) = job.run().now_or_never() else { return Ok(()) };
            self.finish_job(done)?;
        }
    }

    pub(super) async fn await_job(&mut self) -> Result<(), JournalError> {
        let Some(job) = &mut self.job else { return Ok(()) };
        let done = job.run().await;
        self.finish_job(done)
    }

    fn next_job(&mut self) -> Option<Job> {
        let restated = match self.checkpoint.progress {
            Progress::Complete => true,
            Progress::Running => planted!("files-recycled-before-checkpoint"),
            Progress::Abandoned => false,
        };
        let drops = restated && !self.older.is_empty();
        let joins = if self.next.is_none() { self.spare.take() } else { None };
        if drops || joins.is_some() {
            return Some(Job::Identity(self.name_files(joins, drops)));
        }
        if !self.unneeded.is_empty() {
            let (disk, paths) = (self.disk.clone(), std::mem::take(&mut self.unneeded));
            return Some(Job::Remove(Box::pin(async move {
                for path in paths {
                    match disk.remove(&path).await {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        removed => removed.map_err(JournalError::io("remove", path))?,
                    }
                }
                Ok(())
            })));
        }
        let bytes = self.prepared_file_bytes();
        let abandoned = self.checkpoint.progress == Progress::Abandoned;
        let recycles = !abandoned && self.older.iter().any(|file| file.entry.bytes >= bytes);
        let next_serves = self.next.as_ref().is_some_and(|next| !abandoned || next.entry.bytes >= bytes);
        let spare_serves = self.spare.as_ref().is_some_and(|spare| spare.bytes >= bytes);
        if next_serves || spare_serves || recycles || self.fill_refused {
            return None;
        }
        self.unneeded.extend(self.spare.take().map(|spare| file_path(&self.dir, spare.slot)));
        let slot = self.take_slot();
        let filled = fill_file(self.disk.clone(), self.dir.clone(), slot, bytes, FILL_STEPS * self.options.step_bytes);
        Some(Job::Fill(slot, Box::pin(filled)))
    }

    fn finish_job(&mut self, done: JobDone) -> Result<(), JournalError> {
        self.job = None;
        match done {
            JobDone::Filled(_, Ok(filled)) => self.spare = Some(filled),
            JobDone::Filled(slot, Err(JournalError::Io { source, .. }))
                if source.kind() == io::ErrorKind::StorageFull =>
            {
                // Nothing was promised to lie there. A roll tries again, and recycled files need no room.
                reached!("no room to prepare a journal file");
                self.fill_refused = true;
                self.unneeded.push(file_path(&self.dir, slot));
            }
            JobDone::Filled(_, Err(error)) => return Err(error),
            JobDone::Named(result) => {
                let (identity, next) = result?;
                self.identity = identity;
                if next.is_some() {
                    self.next = next;
                }
                self.put_away_older();
            }
            JobDone::Removed(result) => result?,
        }
        Ok(())
    }

    /// Recycles or removes the files that the identity no longer names, and the state files only they refer to.
    fn put_away_older(&mut self) {
        let Some(first) = self.identity.files.first().map(|file| file.epoch) else { return };
        let wanted = self.options.file_bytes.max(self.checkpoint_file_bytes());
        let kept = self.older.split_off(self.older.partition_point(|file| file.entry.epoch < first));
        for file in std::mem::replace(&mut self.older, kept) {
            if self.spare.is_none() && file.entry.bytes >= wanted {
                reached!("journal file recycled");
                self.spare = Some(Filled { slot: file.entry.slot, bytes: file.entry.bytes, handle: file.handle });
            } else {
                self.unneeded.push(file.entry.path(&self.dir));
            }
        }
        self.fill_refused = false;
        let states = self.states.take_unneeded(first);
        self.unneeded.extend(states.into_iter().map(|id| state_path(&self.dir, id)));
    }
}
