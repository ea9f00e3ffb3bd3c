//! The open journal: writes rounds, marks, and portions of the checkpoint.
//!
//! One owner, one write in flight. Whatever fails stops the journal for good, and so does a call whose future was
//! dropped before it was done: then nobody knows what the disk holds. Files come and go in `upkeep`.

use super::base::Base;
use super::error::JournalError;
use super::files::{salt_of, FileEntry, Filled, Identity, JournalIdentity, Marks};
use super::format::{
    sector_up, Boundary, FrameDraft, FrameKind, RoundBuilder, RoundPlace, BASE_VOIDS_ENTRIES, ROUND_HEADER_LEN, SECTOR,
};
use super::frames::{base_draft, entry_draft, hard_state_draft};
use super::groups::{Groups, Pressure, StoredBase};
use super::restating::{Allowance, Checkpoint, Progress};
use super::split::{encoded_len_max, split};
use super::states::{write_state, StateFiles};
use super::upkeep::Job;
use super::{GroupWrite, JournalOptions};
use crate::disk::{Disk, DiskFile};
use crate::ids::GroupId;
use crate::{planted, reached};
use bytes::{Bytes, BytesMut};
use std::path::PathBuf;
use std::sync::Arc;

/// A portion of the checkpoint is at most so many times as large as the live part that it rides on, unless both are small: under a
/// heavy load over many groups a file would be full before its checkpoint is complete, and those before it could not go.
const PORTION_TO_LIVE_MAX: u64 = 4;

/// Whether an idle journal has more to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdleProgress {
    /// Call again.
    More,
    /// A file is being prepared, or an old one put away; await [`Journal::background`], which may be dropped and called
    /// again at any time.
    Background,
    /// There is nothing to do until the next round.
    Done,
}

/// A file that must exist, open.
#[derive(Clone)]
pub(super) struct OpenFile {
    pub(super) entry: FileEntry,
    pub(super) handle: Arc<dyn DiskFile>,
}

/// The node's journal, open for writing.
pub struct Journal {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) options: JournalOptions,
    pub(super) identity: Identity,
    pub(super) epoch_next: u64,
    pub(super) slot_next: u64,
    /// The file that rounds go to.
    pub(super) file: OpenFile,
    /// Where in it the next round goes.
    pub(super) position: u64,
    pub(super) checkpoint: Checkpoint,
    /// Files before it that replay still needs. Invariant: ascending epochs.
    pub(super) older: Vec<OpenFile>,
    /// The file that comes next: the identity names it.
    pub(super) next: Option<OpenFile>,
    /// A file that could come next: filled, but not named yet.
    pub(super) spare: Option<Filled>,
    pub(super) job: Option<Job>,
    /// The disk was too full to prepare a file; tried again when files come or go.
    pub(super) fill_refused: bool,
    pub(super) unneeded: Vec<PathBuf>,
    pub(super) sequence_next: u64,
    /// Through where all is synced.
    pub(super) boundary: Boundary,
    pub(super) marks: Marks,
    /// A live round was written since the last mark.
    pub(super) mark_due: bool,
    pub(super) groups: Groups,
    pub(super) states: StateFiles,
    pub(super) buffer: BytesMut,
    /// Why nothing is written any more.
    pub(super) stopped: Option<String>,
}

impl Journal {
    /// Whose journal it is.
    #[must_use]
    pub fn owner(&self) -> JournalIdentity {
        self.identity.owner
    }

    /// Writes what all groups want, in one round unless it is too large for one. Durable once this returns.
    ///
    /// # Errors
    /// What the disk said, or what is wrong with a write. The round *may have happened*; the journal writes nothing any
    /// more.
    pub async fn write_round(&mut self, writes: Vec<GroupWrite>) -> Result<(), JournalError> {
        self.begin()?;
        let result = self.write_rounds(writes).await;
        self.settle(result)
    }

    /// One bounded step of what can wait: the mark, a portion of the checkpoint. Never to be dropped before it is done.
    ///
    /// # Errors
    /// As [`Journal::write_round`].
    pub async fn idle_step(&mut self) -> Result<IdleProgress, JournalError> {
        self.begin()?;
        let result = self.step().await;
        self.settle(result)
    }

    /// Waits for what goes on beside the rounds. May be dropped and called again.
    ///
    /// # Errors
    /// As [`Journal::write_round`].
    pub async fn background(&mut self) -> Result<(), JournalError> {
        self.refuse_if_stopped()?;
        let result = self.await_job().await;
        if let Err(error) = &result {
            self.stop(error);
        }
        result
    }

    /// One step of what can wait, preparations included.
    ///
    /// # Errors
    /// As [`Journal::write_round`].
    pub async fn idle(&mut self) -> Result<IdleProgress, JournalError> {
        match self.idle_step().await? {
            IdleProgress::Background => {
                self.background().await?;
                Ok(IdleProgress::More)
            }
            other => Ok(other),
        }
    }

    /// How much waits for bases to move, and whose.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.groups.pressure()
    }

    /// Whom to ask for a new base, and whether the cap is passed; `None` when there is nothing new to say.
    pub fn wanted_bases(&mut self) -> Option<(Vec<GroupId>, bool)> {
        self.groups.wanted_bases(&self.options)
    }

    fn refuse_if_stopped(&self) -> Result<(), JournalError> {
        match &self.stopped {
            Some(reason) => Err(JournalError::Stopped { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Every operation counts as failed until it is done: its future may be dropped half way.
    fn begin(&mut self) -> Result<(), JournalError> {
        self.refuse_if_stopped()?;
        self.stopped = Some("a write was abandoned before it was done".to_owned());
        Ok(())
    }

    fn settle<T>(&mut self, result: Result<T, JournalError>) -> Result<T, JournalError> {
        match &result {
            Ok(_) => self.stopped = None,
            Err(error) => self.stop(error),
        }
        result
    }

    fn stop(&mut self, error: &JournalError) {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        self.stopped = Some(format!("{error}{cause}"));
    }

    async fn write_rounds(&mut self, writes: Vec<GroupWrite>) -> Result<(), JournalError> {
        for round in split(writes, self.options.round_bytes_max) {
            self.write_live(round).await?;
        }
        self.advance_job()
    }

    async fn write_live(&mut self, writes: Vec<GroupWrite>) -> Result<(), JournalError> {
        let bases = self.store_states(&writes).await?;
        let live: u64 = writes.iter().map(encoded_len_max).sum();
        let span = sector_up(ROUND_HEADER_LEN as u64 + live) + 2 * SECTOR;
        while self.room() < span {
            self.roll(span).await?;
        }
        let mut round = self.new_round();
        let mut superseded = Vec::new();
        for (write, base) in writes.iter().zip(bases) {
            superseded.extend(self.put_write(write, base, &mut round)?);
        }
        self.put_portion(span, &mut round);
        self.finish_round(round).await?;
        superseded.into_iter().for_each(|id| self.states.supersede(id));
        self.mark_due = true;
        Ok(())
    }

    /// Puts large states into files of their own, synced, before a frame may refer to them.
    async fn store_states(&mut self, writes: &[GroupWrite]) -> Result<Vec<Option<StoredBase>>, JournalError> {
        let mut bases = Vec::with_capacity(writes.len());
        let mut named = false;
        for write in writes {
            let Some(base) = &write.base else {
                bases.push(None);
                continue;
            };
            if base.state.len() <= self.options.base_inline_bytes_max {
                bases.push(Some(StoredBase { base: (**base).clone(), file: None }));
                continue;
            }
            reached!("state of a base put into a file of its own");
            let id = self.states.take_id();
            let file = write_state(&*self.disk, &self.dir, id, write.group, &base.state).await?;
            named = true;
            bases.push(Some(StoredBase { base: Base { state: Bytes::new(), ..(**base).clone() }, file: Some(file) }));
        }
        if named {
            self.disk.sync_dir(&self.dir).await.map_err(JournalError::io("sync", self.dir.clone()))?;
        }
        Ok(bases)
    }

    fn new_round(&mut self) -> RoundBuilder {
        let place = RoundPlace {
            salt: salt_of(self.identity.owner, self.file.entry.epoch),
            epoch: self.file.entry.epoch,
            position: self.position,
            sequence: self.sequence_next,
            boundary: self.boundary,
        };
        RoundBuilder::new(place, std::mem::take(&mut self.buffer))
    }

    /// Applies one write and puts its frames into the round; the state file that it makes superfluous, if any.
    fn put_write(
        &mut self,
        write: &GroupWrite,
        base: Option<StoredBase>,
        round: &mut RoundBuilder,
    ) -> Result<Option<u64>, JournalError> {
        let id = write.group;
        if let Some(file) = base.as_ref().and_then(|base| base.file) {
            self.states.refer(file.id, self.file.entry.epoch);
        }
        let outcome = self.groups.apply(write, base.clone());
        let outcome = outcome.map_err(|reason| JournalError::Refused { group: id, reason })?;
        if write.removed {
            round.push(&FrameDraft::bare(FrameKind::Removed, id));
            return Ok(outcome.superseded);
        }
        if let Some(base) = &base {
            let flags = if outcome.base_voids_entries { BASE_VOIDS_ENTRIES } else { 0 };
            round.push(&base_draft(FrameKind::Base, id, base, flags));
        }
        for entry in &write.entries {
            round.push(&entry_draft(FrameKind::Entry, id, entry));
        }
        if let Some(hard_state) = &write.hard_state {
            round.push(&hard_state_draft(FrameKind::HardState, id, hard_state));
            if outcome.promise_changed {
                round.push_copy(hard_state_draft(FrameKind::HardStateCopy, id, hard_state));
            }
        }
        Ok(outcome.superseded)
    }

    /// Puts the next portion of the checkpoint into a round whose live part takes `live` bytes: so much that the
    /// checkpoint is complete by the time about half of the room beyond it is used up.
    fn put_portion(&mut self, live: u64, round: &mut RoundBuilder) {
        if self.checkpoint.progress != Progress::Running {
            return;
        }
        let room = self.room();
        let remaining = self.checkpoint.remaining(&self.groups);
        let Some(slack) = room.checked_sub(live + remaining + 4 * SECTOR).filter(|slack| *slack > 0) else {
            reached!("checkpoint abandoned for want of room");
            self.checkpoint.progress = Progress::Abandoned;
            return;
        };
        let share = live.saturating_mul(2).saturating_mul(remaining) / slack;
        let most = self.options.round_bytes_max.max(PORTION_TO_LIVE_MAX * live);
        let budget = share.clamp(self.options.portion_bytes_min, most);
        let allowance = Allowance { budget, round_max: room.min(u64::from(u32::MAX)) };
        self.checkpoint.restate(&self.groups, &mut self.states, self.file.entry.epoch, round, allowance);
    }

    /// Writes a round and syncs it: one trip to the disk.
    async fn finish_round(&mut self, round: RoundBuilder) -> Result<(), JournalError> {
        let (parts, span, buffer) = round.finish();
        self.buffer = buffer;
        assert!(span <= self.room(), "a round of {span} bytes does not fit the {} that are left", self.room());
        let mut written = self.file.handle.write_and_sync(self.position, parts).await;
        if planted!("sync-retried-after-failure") && written.is_err() {
            written = self.file.handle.sync().await;
        }
        written.map_err(JournalError::io("write and sync", self.file.entry.path(&self.dir)))?;
        self.position += span;
        self.sequence_next += 1;
        self.boundary = Boundary { epoch: self.file.entry.epoch, position: self.position };
        Ok(())
    }

    fn room(&self) -> u64 {
        self.file.entry.bytes - self.position
    }

    async fn step(&mut self) -> Result<IdleProgress, JournalError> {
        if self.mark_due && !planted!("boundary-not-recorded") {
            self.marks.write(self.boundary).await?;
            self.mark_due = false;
            return Ok(IdleProgress::More);
        }
        if self.checkpoint.progress == Progress::Running {
            let mut round = self.new_round();
            self.put_idle_portion(&mut round);
            if round.frames() > 0 {
                self.finish_round(round).await?;
            }
            return Ok(IdleProgress::More);
        }
        if self.marks.recorded != self.boundary && !planted!("boundary-not-recorded") {
            self.marks.write(self.boundary).await?;
            return Ok(IdleProgress::More);
        }
        if self.has_room_further_on() {
            reached!("journal rolled to redo an abandoned checkpoint");
            self.roll(0).await?;
            return Ok(IdleProgress::More);
        }
        self.advance_job()?;
        Ok(match self.job {
            Some(_) => IdleProgress::Background,
            None if self.has_room_further_on() => IdleProgress::More,
            None => IdleProgress::Done,
        })
    }

    fn put_idle_portion(&mut self, round: &mut RoundBuilder) {
        let room = self.room();
        if room < self.checkpoint.remaining(&self.groups) + 4 * SECTOR {
            self.checkpoint.progress = Progress::Abandoned;
            return;
        }
        let allowance = Allowance { budget: self.options.step_bytes, round_max: room.min(u64::from(u32::MAX)) };
        self.checkpoint.restate(&self.groups, &mut self.states, self.file.entry.epoch, round, allowance);
        if round.frames() == 0 {
            self.checkpoint.progress = Progress::Abandoned;
        }
    }
}
