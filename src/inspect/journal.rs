//! A journal's folder, or one of its files: rounds, frames, what is proven to be synced, and what contradicts that.

use super::Report;
use crate::disk::Disk;
use crate::ids::GroupId;
use crate::journal::format::{Boundary, FrameKind};
use crate::journal::inspect::{inspect, FileReport, FileStatus, FrameReport, Inspection, RoundReport};
use crate::telemetry::chain;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;

pub(super) async fn report(disk: &dyn Disk, path: &Path, report: &mut Report<'_>) -> Result<(), String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (dir, only) = if path.is_dir() { (path, None) } else { (folder, Some(path)) };
    let journal = inspect(disk, dir).await.map_err(|error| chain(&error))?;
    if journal.files.is_empty() && journal.identity.is_none() {
        return Err(format!(
            "{} holds no journal; name the folder `journal` of a node's data directory",
            dir.display()
        ));
    }
    head(&journal, dir, report);
    // What later files prove about earlier ones.
    let mut proven: BTreeMap<u64, Boundary> = BTreeMap::new();
    let mut ends = Vec::new();
    for file in &journal.files {
        let found = journal.read_file(disk, file).await.map_err(|error| chain(&error))?;
        for boundary in found.rounds.iter().map(|round| round.boundary) {
            let known = proven.entry(boundary.epoch).or_insert(boundary);
            *known = (*known).max(boundary);
        }
        if only.is_none_or(|only| only.file_name() == file.file_name()) {
            file_lines(&found, must_be_whole(&journal, dir, file), report);
        }
        if let Ok(header) = &found.header {
            ends.push((found.path.clone(), header.epoch, found.named, found.end));
        }
    }
    for (file, epoch, named, end) in ends {
        if let Some(synced) = proven.get(&epoch).filter(|synced| named && synced.position > end) {
            report.damage(&file, end, &format!("rounds through position {} were synced", synced.position));
        }
    }
    missing_files(&journal, dir, report);
    Ok(())
}

fn head(journal: &Inspection, dir: &Path, report: &mut Report<'_>) {
    let Some(identity) = &journal.identity else {
        return report.damage(&dir.join("identity-1"), 0, "neither copy of the journal's identity is whole");
    };
    let owner = identity.owner;
    let boundary = journal.marked.into_iter().chain([identity.boundary]).max().unwrap_or_default();
    let text = format!(
        "journal of node {}, incarnation {}: {} files in use, synced at least through epoch {} position {}",
        owner.node_id,
        owner.incarnation,
        identity.files.len(),
        boundary.epoch,
        boundary.position
    );
    let json = json!({
        "what": "journal", "node": owner.node_id.0, "incarnation": owner.incarnation.to_string(),
        "files": identity.files.len(), "synced": place(boundary),
    });
    report.line(text, json);
}

/// Whether the identity names this file, in whichever life.
fn must_be_whole(journal: &Inspection, dir: &Path, file: &Path) -> bool {
    let named = journal.identity.iter().flat_map(|identity| &identity.files);
    named.into_iter().any(|entry| entry.path(dir).file_name() == file.file_name())
}

fn file_lines(found: &FileReport, must_be_whole: bool, report: &mut Report<'_>) {
    let name = found.path.display().to_string();
    let header = match &found.header {
        Ok(header) => header,
        Err(reason) if must_be_whole => return report.damage(&found.path, 0, reason),
        Err(_) => {
            let json = json!({"what": "file", "file": name, "in_use": false});
            return report.line(format!("{name}: set aside, never used"), json);
        }
    };
    if must_be_whole && !found.named {
        report.damage(&found.path, 0, "it holds another life of the file than the journal uses");
    }
    let in_use = if found.named { "in use" } else { "not in use" };
    let (rounds, end) = (found.rounds.len(), found.end);
    let ends = match &found.status {
        FileStatus::Whole => "nothing behind them".to_string(),
        FileStatus::Torn { sequence, reason } => format!("behind them round {sequence}, not whole: {reason}"),
        FileStatus::Damaged { .. } => "damaged behind them".to_string(),
        FileStatus::Unreadable => "unreadable".to_string(),
    };
    let epoch = header.epoch;
    report.line(
        format!("{name}: epoch {epoch}, {in_use}, {} bytes; {rounds} rounds through position {end}, {ends}", header.bytes),
        json!({
            "what": "file", "file": name, "epoch": epoch, "in_use": found.named, "bytes": header.bytes, "rounds": rounds,
            "end": end, "torn": matches!(found.status, FileStatus::Torn { .. }),
        }),
    );
    for round in &found.rounds {
        round_lines(round, report);
    }
    if let (FileStatus::Damaged { reason, synced }, true) = (&found.status, found.named) {
        let what = format!("{reason}; rounds through position {} were synced", synced.position);
        report.damage(&found.path, found.end, &what);
    }
}

fn round_lines(round: &RoundReport, report: &mut Report<'_>) {
    let RoundReport { position, sequence, bytes, boundary, frames } = round;
    let count = frames.len();
    report.line(
        format!(
            "  {position:>10}  round {sequence}: {bytes} bytes, {count} frames; synced through epoch {} position {}",
            boundary.epoch, boundary.position
        ),
        json!({"what": "round", "position": position, "sequence": sequence, "bytes": bytes, "synced": place(*boundary)}),
    );
    frames.iter().for_each(|frame| report.line(frame_text(frame), frame_json(frame)));
}

fn frame_text(frame: &FrameReport) -> String {
    let FrameReport { position, group, index, term, payload_bytes, .. } = frame;
    let kind = kind_text(frame.kind);
    let what = match frame.vote {
        Some(vote) => format!("term {term} vote {vote} commit {index}"),
        None => format!("index {index} term {term}, {payload_bytes} bytes"),
    };
    format!("  {position:>10}    {kind:<20} group {group}  {what}")
}

fn frame_json(frame: &FrameReport) -> Value {
    let GroupId(group) = frame.group;
    json!({
        "what": "frame", "position": frame.position, "kind": kind_text(frame.kind), "group": group, "index": frame.index,
        "term": frame.term, "vote": frame.vote, "bytes": frame.payload_bytes,
    })
}

fn kind_text(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Base => "base",
        FrameKind::Entry => "entry",
        FrameKind::HardState => "hard state",
        FrameKind::Removed => "removed",
        FrameKind::HardStateCopy => "hard state, copy",
        FrameKind::RestatedBase => "restated base",
        FrameKind::RestatedEntry => "restated entry",
        FrameKind::RestatedHardState => "restated hard state",
        FrameKind::RestatedTombstones => "restated tombstones",
        FrameKind::CheckpointComplete => "checkpoint complete",
    }
}

fn place(boundary: Boundary) -> Value {
    json!({"epoch": boundary.epoch, "position": boundary.position})
}

/// Files that the identity names and that are not there in that life.
fn missing_files(journal: &Inspection, dir: &Path, report: &mut Report<'_>) {
    let Some(identity) = &journal.identity else { return };
    for entry in &identity.files {
        let file = entry.path(dir);
        if !journal.files.iter().any(|known| known.file_name() == file.file_name()) {
            report.damage(&file, 0, "the file is missing");
        }
    }
}
