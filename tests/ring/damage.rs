//! Damage to the files of a node that is down, class by class and way by way, and what must come of it.

use crate::support::journal_files;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::Rng;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes that are zeroed at a time: a block of most file systems.
const BLOCK: usize = 4_096;
/// A journal file's rounds begin behind its header block.
const ROUNDS_START: u64 = 4_096;

/// What kind of file it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    Journal,
    Marks,
    JournalIdentity,
    JournalIdentities,
    State,
    NodeIdentity,
    Lock,
    SealedSegment,
    ActiveSegment,
    Index,
}

impl Class {
    pub const ALL: [Class; 10] = [
        Class::Journal,
        Class::SealedSegment,
        Class::NodeIdentity,
        Class::Index,
        Class::JournalIdentities,
        Class::State,
        Class::ActiveSegment,
        Class::Marks,
        Class::JournalIdentity,
        Class::Lock,
    ];
}

/// What is done to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    Flip,
    Zero,
    Cut,
    Missing,
    /// A copy from earlier is put in its place.
    Stale,
}

/// What a start with the damage may come to. Serving wrong data never is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// Only a refusal.
    Refusal,
    /// Only to serve all of the log.
    Service,
    /// To serve; reads that meet the damage may fail and name it. Or a refusal.
    Either,
}

/// One damage, with what it takes to undo it.
pub struct Damage {
    pub class: Class,
    pub way: Way,
    pub files: Vec<PathBuf>,
    pub allowed: Allowed,
    kept: Vec<(PathBuf, PathBuf)>,
}

/// Draws a damage of a class to a stopped node's directory, and does it. `None` if there is no file of the class, or the draw changes
/// nothing. `earlier` holds copies from before the last of what the node wrote.
pub fn strike(dir: &Path, class: Class, random: &mut StdRng, backups: &Path, earlier: &Path) -> Option<Damage> {
    let candidates = files_of(dir, class);
    let stale = |path: &Path| earlier.join(path.strip_prefix(dir).unwrap_or(path));
    let files = match class {
        Class::JournalIdentities => candidates,
        _ => vec![candidates.choose(random)?.clone()],
    };
    let mut ways = match class {
        Class::Lock => vec![Way::Missing],
        _ => vec![Way::Flip, Way::Zero, Way::Cut, Way::Missing],
    };
    if files.iter().all(|file| stale(file).exists()) {
        ways.push(Way::Stale);
    }
    let way = *ways.choose(random)?;
    let ends: Vec<(PathBuf, u64)> = if class == Class::Journal { journal_files_with_rounds(dir) } else { Vec::new() };
    // What lies before the agreed start of the log is nobody's loss.
    let may_be_trimmed = class == Class::SealedSegment && is_oldest(&files[0]);
    let mut kept = Vec::new();
    let mut hurts = false;
    for (number, file) in files.iter().enumerate() {
        let backup = backups.join(format!("damaged-{number}"));
        fs::copy(file, &backup).expect("a copy");
        kept.push((file.clone(), backup));
        let end = ends.iter().find(|(path, _)| path == file).map(|(_, end)| *end);
        hurts |= apply(file, way, end, &stale(file), random)?;
    }
    let allowed = if hurts && !may_be_trimmed { allowed(class, way) } else { Allowed::Either };
    Some(Damage { class, way, files, allowed, kept })
}

/// Whether a segment is the first of its group.
fn is_oldest(segment: &Path) -> bool {
    segments_of(segment.parent().expect("a folder")).first().is_some_and(|first| first == segment)
}

/// Does it. Gives whether anything changed that the node must notice; `None` if nothing changed at all.
fn apply(file: &Path, way: Way, end: Option<u64>, stale: &Path, random: &mut StdRng) -> Option<bool> {
    if way == Way::Missing {
        fs::remove_file(file).expect("the file goes");
        return Some(true);
    }
    let whole = fs::read(file).expect("the file");
    // Behind the last round of a journal file nothing is promised.
    let end = end.unwrap_or(whole.len() as u64).min(whole.len() as u64) as usize;
    if end == 0 {
        return None;
    }
    let mut bytes = whole.clone();
    match way {
        Way::Flip => {
            let at = random.gen_range(0..end);
            bytes[at] ^= 1 << random.gen_range(0..8);
        }
        Way::Zero => {
            let at = random.gen_range(0..end) / BLOCK * BLOCK;
            let until = (at + BLOCK).min(bytes.len());
            bytes[at..until].fill(0);
        }
        Way::Cut => bytes.truncate(random.gen_range(0..end)),
        Way::Stale => bytes = fs::read(stale).expect("the stale copy"),
        Way::Missing => {}
    }
    fs::write(file, &bytes).expect("the damaged file");
    let changed = bytes.get(..end) != Some(&whole[..end]);
    (bytes != whole).then_some(changed)
}

fn allowed(class: Class, way: Way) -> Allowed {
    match (class, way) {
        // Below the recorded boundary nothing goes unnoticed; a node that stopped cleanly has recorded all of it.
        (Class::Journal | Class::JournalIdentities | Class::NodeIdentity, _) => Allowed::Refusal,
        (Class::SealedSegment, Way::Missing | Way::Cut) => Allowed::Refusal,
        (Class::Index | Class::Lock | Class::JournalIdentity, _) => Allowed::Service,
        (Class::SealedSegment | Class::ActiveSegment | Class::Marks | Class::State, _) => Allowed::Either,
    }
}

impl Damage {
    /// Whether a refusal with this code and text is a good one: damage, or the absence of what must be there, with its name.
    pub fn is_named_by(&self, code: i32, text: &str) -> bool {
        let of_its_kind = code == 7 || (code == 1 && self.class == Class::NodeIdentity);
        let named = self.files.iter().any(|file| {
            let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
            let folder = file.parent().expect("a folder");
            text.contains(name) || text.contains(&folder.display().to_string()) || names_group(folder, text)
        });
        of_its_kind && named
    }

    /// Puts the file back where a node that ran with the damage has not gone on from it; of a segment that it has gone on in, the bytes.
    pub fn mend(&self, served: bool) {
        let gone_on = matches!(self.class, Class::Journal | Class::Marks | Class::ActiveSegment | Class::Lock)
            || matches!(self.class, Class::JournalIdentity | Class::JournalIdentities | Class::Index | Class::State);
        for (file, backup) in &self.kept {
            if !served || !gone_on {
                fs::copy(backup, file).expect("the file comes back");
            } else if self.class == Class::ActiveSegment {
                put_frames_back(file, backup);
            }
        }
    }
}

/// Undoes what rotted in the part that a start takes from the index: nobody else would. What lay behind it the node has written again, the
/// same frames in the same places. A segment that was dropped meanwhile stays away.
fn put_frames_back(segment: &Path, backup: &Path) {
    let whole = fs::read(backup).expect("the copy");
    let end = whole.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if let Ok(file) = File::options().write(true).open(segment) {
        file.write_all_at(&whole[..end], 0).expect("the bytes come back");
    }
}

/// `.../groups/7` and "group 7".
fn names_group(folder: &Path, text: &str) -> bool {
    let group = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    folder.parent().is_some_and(|parent| parent.ends_with("groups")) && text.contains(&format!("group {group} "))
}

/// The files of a class that are there.
pub fn files_of(dir: &Path, class: Class) -> Vec<PathBuf> {
    let journal = dir.join("journal");
    let groups: Vec<Vec<PathBuf>> = listed(&dir.join("groups")).iter().map(|group| segments_of(group)).collect();
    let files = match class {
        Class::Journal => journal_files_with_rounds(dir).into_iter().map(|(path, _)| path).collect(),
        Class::Marks => vec![journal.join("marks")],
        Class::JournalIdentity => vec![journal.join("identity-1")],
        Class::JournalIdentities => vec![journal.join("identity-1"), journal.join("identity-2")],
        Class::State => starting_with(&journal, "state-"),
        Class::NodeIdentity => vec![dir.join("IDENTITY")],
        Class::Lock => vec![dir.join("LOCK")],
        Class::SealedSegment => {
            groups.iter().filter_map(|segments| segments.split_last()).flat_map(|(_, sealed)| sealed).cloned().collect()
        }
        Class::ActiveSegment => groups.iter().filter_map(|segments| segments.last().cloned()).collect(),
        Class::Index => groups.concat().iter().map(|segment| segment.with_extension("idx")).collect(),
    };
    files.into_iter().filter(|file| file.exists()).collect()
}

/// The segments of a group's folder, oldest first; the last is the active one.
fn segments_of(group: &Path) -> Vec<PathBuf> {
    listed(group).into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "seg")).collect()
}

/// Journal files in use that hold rounds, each with the position where they end.
fn journal_files_with_rounds(dir: &Path) -> Vec<(PathBuf, u64)> {
    journal_files(dir).into_iter().filter(|(_, end)| *end > ROUNDS_START).collect()
}

/// Files of a folder whose names begin so, in order.
pub fn starting_with(dir: &Path, beginning: &str) -> Vec<PathBuf> {
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(beginning))
    };
    listed(dir).into_iter().filter(named).collect()
}

pub fn listed(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    let mut paths: Vec<PathBuf> = entries.unwrap_or_default();
    paths.sort();
    paths
}

/// Copies what a stale copy may be wanted of.
pub fn keep_copies(dir: &Path, earlier: &Path) {
    let _ = fs::remove_dir_all(earlier);
    for class in [Class::Journal, Class::ActiveSegment, Class::Marks] {
        for file in files_of(dir, class) {
            let copy = earlier.join(file.strip_prefix(dir).expect("a file of the node"));
            fs::create_dir_all(copy.parent().expect("a folder")).expect("the folder");
            fs::copy(&file, copy).expect("a copy");
        }
    }
}
