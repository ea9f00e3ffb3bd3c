//! Opens a group's directory and cuts it to the journal's base.
//!
//! What lies at or below the base was synced before the base was recorded: it must be there and good, else opening fails and
//! names what is wrong. What lies above is cut away; the journal holds those entries and they are appended again. Only the
//! segment that holds the base is scanned, from where its index beside it ends; of the sealed ones before it, the summaries are read.

use super::cache::TailCache;
use super::header::{self, read_header, segment_path, SegmentHeader};
use super::index::{self, SparseIndex, Summary};
use super::read::IndexShelf;
use super::trim::remove;
use super::{scan, Segment, Segments, SegmentsError, SegmentsOptions};
use crate::disk::{self, Disk, DiskFile, Lane, OpenMode};
use crate::ids::LogIndex;
use crate::journal::base::Base;
use crate::reached;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A base at or below this index is a group's founding one: nothing was committed before it, so nothing can be missing.
const FOUNDING_INDEX_MAX: LogIndex = LogIndex(1);

/// What opening did to a directory, for the caller's log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenReport {
    /// Files that were removed: wholly above the base, replaced by a snapshot, or left over by a crash.
    pub removed: Vec<PathBuf>,
    /// The segment that was cut, and at which position, if there was anything behind it.
    pub cut: Option<(PathBuf, u64)>,
    /// Index files that were lost or damaged, and built anew by scanning.
    pub rebuilt: Vec<PathBuf>,
}

struct Opening<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    options: SegmentsOptions,
    base: &'a Base,
    /// By first index; those that are kept are taken out.
    files: BTreeMap<LogIndex, PathBuf>,
    report: OpenReport,
}

impl Segments {
    /// Opens the group's directory, cut to `base`: everything behind its index is dropped, to be appended again. Where the
    /// directory holds nothing and the base is a founding one (index 1 at most), the first segment is created.
    ///
    /// # Errors
    /// `Corrupt` and `Missing` if what lies at or below the base is not all there; else by the disk's word.
    pub async fn open(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: SegmentsOptions,
        base: &Base,
    ) -> Result<Segments, SegmentsError> {
        let names = match disk.list(&dir).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            names => names.map_err(|error| SegmentsError::read(&dir, error))?,
        };
        let files = names.iter().filter_map(|path| Some((header::first_index_of(path)?, path.clone()))).collect();
        let mut opening = Opening { disk: &*disk, dir: &dir, options, base, files, report: OpenReport::default() };
        if opening.files.is_empty() {
            if base.index > FOUNDING_INDEX_MAX {
                return Err(SegmentsError::Missing { dir, from: FOUNDING_INDEX_MAX.next(), base: base.index });
            }
            return Segments::create(disk, dir, options, base).await;
        }
        let segments = opening.keep().await?;
        opening.remove_others(&names, &segments).await?;
        let report = opening.report;
        Ok(Segments::assemble(disk, dir, options, base, segments, report))
    }

    /// Creates the first segment of a log that starts with `base`, whatever lies there.
    ///
    /// # Errors
    /// By the disk's word.
    pub async fn create(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: SegmentsOptions,
        base: &Base,
    ) -> Result<Segments, SegmentsError> {
        disk.create_dir_all(&dir).await.map_err(|error| SegmentsError::write(&dir, error))?;
        let path = segment_path(&dir, base.index.next());
        let header = SegmentHeader { group: options.group, starts_log: true, base: base.clone() }.encode();
        let summary = Summary::empty(base, true, header.len() as u64);
        let written = disk::replace_file(&*disk, &path, header).await;
        written.map_err(|error| SegmentsError::write(&path, error))?;
        let segment = Segment::written(path.into(), summary, Some(SparseIndex::default()));
        Ok(Segments::assemble(disk, dir, options, base, VecDeque::from([segment]), OpenReport::default()))
    }

    /// What opening found and did.
    #[must_use]
    pub fn open_report(&self) -> &OpenReport {
        &self.report
    }

    fn assemble(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        options: SegmentsOptions,
        base: &Base,
        segments: VecDeque<Segment>,
        report: OpenReport,
    ) -> Segments {
        let agreed_start = segments[0].summary.base_tail;
        Segments {
            disk,
            dir: dir.into(),
            options,
            segments,
            cache: TailCache::default(),
            shelf: Arc::new(IndexShelf::default()),
            agreed_start,
            written_through: base.index,
            synced_through: base.index,
            recorded_base: base.index,
            appended_bytes: 0,
            synced_bytes: 0,
            // The active segment's name may come from a roll whose directory sync a crash prevented.
            names_unsynced: true,
            flushing: false,
            resetting: None,
            drops: Arc::default(),
            life: 0,
            failed: false,
            report,
        }
    }
}

impl Opening<'_> {
    /// Takes the segments that make up the log through the base, newest first, until one starts it.
    async fn keep(&mut self) -> Result<VecDeque<Segment>, SegmentsError> {
        let mut kept = VecDeque::from([self.active().await?]);
        while !kept[0].summary.starts_log {
            let next = kept[0].summary.clone();
            let Some((first_index, path)) = self.before(next.base_index) else { break };
            let summary = self.sealed(&path, first_index, &next).await?;
            self.files.remove(&first_index);
            kept.push_front(Segment::written(path.into(), summary, None));
        }
        Ok(kept)
    }

    /// The newest file whose first index is at most `index`.
    fn before(&self, index: LogIndex) -> Option<(LogIndex, PathBuf)> {
        self.files.range(..=index).next_back().map(|(first, path)| (*first, path.clone()))
    }

    /// The segment that the base lies in or before: scanned, and cut behind the base.
    async fn active(&mut self) -> Result<Segment, SegmentsError> {
        let next = self.base.index.next();
        let mut refused = None;
        if let Some(path) = self.files.get(&next).cloned() {
            match self.scanned(&path, next).await {
                Ok(segment) => return Ok(self.take_active(next, segment)),
                // A crash can leave a segment that was begun behind the base. If it was a snapshot's, nothing else reaches
                // the base and its damage is what to report.
                Err(error @ SegmentsError::Corrupt { .. }) => {
                    reached!("segment begun behind the base is not whole");
                    refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        let Some((first_index, path)) = self.before(self.base.index) else {
            let missing = SegmentsError::Missing { dir: self.dir.into(), from: next, base: self.base.index };
            return Err(refused.unwrap_or(missing));
        };
        match self.scanned(&path, first_index).await {
            Ok(segment) => Ok(self.take_active(first_index, segment)),
            Err(error) => Err(refused.unwrap_or(error)),
        }
    }

    fn take_active(&mut self, first_index: LogIndex, segment: Segment) -> Segment {
        self.files.remove(&first_index);
        segment
    }

    async fn scanned(&mut self, path: &Path, first_index: LogIndex) -> Result<Segment, SegmentsError> {
        let file = self.open_file(path, OpenMode::Existing).await?;
        let empty = self.summary_from_header(&*file, path, first_index).await?;
        let (mut summary, mut index) = self.index_so_far(&*file, path, empty).await?;
        let indexed = summary.end;
        let (stride, last) = (self.options.index_stride_bytes, self.base.index);
        scan::scan_through(&*file, path, &mut summary, &mut index, stride, last).await?;
        if summary.last_term() != self.base.term {
            return Err(SegmentsError::corrupt(path, summary.end, "the last entry's term is not the base's"));
        }
        self.cut(&*file, path, summary.end).await?;
        Ok(Segment { indexed, ..Segment::written(path.into(), summary, Some(index)) })
    }

    /// What the file beside the active segment tells of its first part, if that is of this segment and not of a later state than the
    /// base; it was written once that part was synced. Without it the scan begins at the beginning. One that tells of what is cut now
    /// goes: what is appended in its place need not have the same lengths, if another version appends it.
    async fn index_so_far(
        &mut self,
        file: &dyn DiskFile,
        path: &Path,
        empty: Summary,
    ) -> Result<(Summary, SparseIndex), SegmentsError> {
        let len = file.len().await.map_err(|error| SegmentsError::read(path, error))?;
        let state = (self.base.index, self.base.term, self.base.tail, self.base.timestamp);
        let fits = |(summary, _): &(Summary, SparseIndex)| {
            let told = (summary.last_index, summary.last_term(), summary.tail, summary.timestamp);
            let is_of_base = told.0 < state.0 || told == state;
            summary.starts_as(&empty) && is_of_base && summary.end <= len
        };
        let index_path = path.with_extension("idx");
        match scan::read_index(self.disk, &index_path).await? {
            Some(found) if fits(&found) => {
                reached!("active segment opened by its index");
                Ok(found)
            }
            Some(_) => {
                reached!("index of what is cut removed");
                remove(self.disk, &index_path).await?;
                self.report.removed.push(index_path);
                Ok((empty, SparseIndex::default()))
            }
            None => Ok((empty, SparseIndex::default())),
        }
    }

    /// The summary of a sealed segment that `next` follows.
    async fn sealed(&mut self, path: &Path, first_index: LogIndex, next: &Summary) -> Result<Summary, SegmentsError> {
        let file = self.open_file(path, OpenMode::Existing).await?;
        let len = file.len().await.map_err(|error| SegmentsError::read(path, error))?;
        let index_path = path.with_extension("idx");
        let fits = |summary: &Summary| {
            let from_to = (summary.first_index(), summary.last_index, summary.last_term());
            from_to == (first_index, next.base_index, next.base_term) && summary.end == len
        };
        if let Some(summary) = scan::read_summary(self.disk, &index_path).await?.filter(fits) {
            return Ok(summary);
        }
        let mut summary = self.summary_from_header(&*file, path, first_index).await?;
        let (stride, mut index) = (self.options.index_stride_bytes, SparseIndex::default());
        scan::scan_through(&*file, path, &mut summary, &mut index, stride, next.base_index).await?;
        if summary.last_term() != next.base_term {
            return Err(SegmentsError::corrupt(path, summary.end, "the last entry's term is not the next segment's"));
        }
        if len > summary.end {
            self.cut(&*file, path, summary.end).await?;
            file.sync().await.map_err(|error| SegmentsError::sync(path, error))?;
        }
        let written = disk::replace_file(self.disk, &index_path, index::encode(&summary, &index)).await;
        written.map_err(|error| SegmentsError::write(&index_path, error))?;
        reached!("segment index rebuilt");
        self.report.rebuilt.push(index_path);
        Ok(summary)
    }

    async fn summary_from_header(
        &self,
        file: &dyn DiskFile,
        path: &Path,
        first_index: LogIndex,
    ) -> Result<Summary, SegmentsError> {
        let (header, frames_at) = read_header(file, path).await?;
        if header.group != self.options.group {
            let (found, wanted) = (header.group, self.options.group);
            return Err(SegmentsError::OtherGroup { file: path.to_path_buf(), found, wanted });
        }
        if header.base.index.next() != first_index {
            return Err(SegmentsError::corrupt(path, 0, "the segment's base is not the one before its name's index"));
        }
        Ok(Summary::empty(&header.base, header.starts_log, frames_at))
    }

    async fn cut(&mut self, file: &dyn DiskFile, path: &Path, end: u64) -> Result<(), SegmentsError> {
        let len = file.len().await.map_err(|error| SegmentsError::read(path, error))?;
        if len > end {
            file.set_len(end).await.map_err(|error| SegmentsError::write(path, error))?;
            self.report.cut = Some((path.to_path_buf(), end));
        }
        Ok(())
    }

    /// Removes what is not part of the log: later and older segments, indexes without a segment, unfinished files.
    async fn remove_others(&mut self, names: &[PathBuf], kept: &VecDeque<Segment>) -> Result<(), SegmentsError> {
        for path in names {
            let part_of_log =
                kept.iter().any(|segment| **path == *segment.path || *path == segment.path.with_extension("idx"));
            if !part_of_log {
                remove(self.disk, path).await?;
                self.report.removed.push(path.clone());
            }
        }
        if self.report.removed.is_empty() {
            return Ok(());
        }
        reached!("segment files beyond the log removed");
        self.disk.sync_dir(self.dir).await.map_err(|error| SegmentsError::sync(self.dir, error))
    }

    async fn open_file(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>, SegmentsError> {
        self.disk.open(path, mode, Lane::Bulk).await.map_err(|error| SegmentsError::read(path, error))
    }
}
