//! The only code that touches files.
//!
//! One trait, two worlds: [`real`] performs what it is told on threads of its own, off the event loop; [`sim`] keeps
//! live and durable bytes apart and injects faults from a seed. Nothing here knows what a journal or a segment is, and
//! nothing here retries: a failed write or sync is the caller's to act on (a journal's failure ends the node).
//!
//! Durability is never implied: bytes are durable once [`DiskFile::sync`] returned, names (creations, renames,
//! removals) once [`Disk::sync_dir`] of their directory returned.

use bytes::Bytes;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

#[cfg(not(madsim))]
pub mod real;
pub mod sim;
#[cfg(all(test, not(madsim)))]
mod tests;

/// A future that a trait object can return.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Which thread of the real disk serves a file, and how. The journal never waits behind anybody's cold read.
///
/// Nobody reads a journal but a start of the node, so its files go past the page cache where the file system allows it: their bytes
/// cost neither a second copy nor memory that readers of segments could use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// The journal's writes and syncs; past the page cache.
    Journal,
    /// Files that are being prepared for the journal; past the page cache, on the threads of everything else.
    Fill,
    /// Everything else.
    Bulk,
}

/// What to do when the file is there or isn't.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// It must exist; reads and writes.
    Existing,
    /// It must not exist yet; reads and writes.
    CreateNew,
    /// It must exist; only reads.
    ReadOnly,
}

/// A file system as one node sees it. Paths are used as they come.
///
/// The futures may be dropped before they are done: what was asked for happens all the same, or not at all; only its
/// outcome is lost. Callers await what they ask for, and that alone bounds how much is under way.
pub trait Disk: Send + Sync + 'static {
    /// Opens or creates a file. A created file's name is durable only after [`Disk::sync_dir`].
    fn open(&self, path: &Path, mode: OpenMode, lane: Lane) -> BoxFuture<io::Result<Arc<dyn DiskFile>>>;
    /// Creates a directory and those above it; one that exists is fine. Syncs every parent it added a name to.
    fn create_dir_all(&self, path: &Path) -> BoxFuture<io::Result<()>>;
    /// What a directory holds, sorted: the path that was asked for, joined with each name.
    fn list(&self, dir: &Path) -> BoxFuture<io::Result<Vec<PathBuf>>>;
    /// Renames within a file system, replacing what stood under the new name.
    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<io::Result<()>>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> BoxFuture<io::Result<()>>;
    /// Removes a directory and all in it; one that is not there is fine.
    fn remove_dir_all(&self, path: &Path) -> BoxFuture<io::Result<()>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> BoxFuture<io::Result<()>>;
    /// Bytes that can still be written in the file system that holds `path`.
    fn free_bytes(&self, path: &Path) -> BoxFuture<io::Result<u64>>;
    /// Takes an exclusive lock on a file, creating it; held until the guard is dropped or the process ends. Fails with
    /// `WouldBlock` while another process holds it.
    fn lock(&self, path: &Path) -> BoxFuture<io::Result<Box<dyn LockGuard>>>;
}

/// Holds a lock on a file for as long as it lives.
pub trait LockGuard: Send + Sync {}

/// An open file. All positions are absolute; there is no cursor.
#[allow(clippy::len_without_is_empty)] // an empty file means nothing to anybody here
pub trait DiskFile: Send + Sync + 'static {
    /// Size in bytes.
    fn len(&self) -> BoxFuture<io::Result<u64>>;
    /// Reads up to `len` bytes from `position`; fewer only at the end of the file.
    fn read_at(&self, position: u64, len: usize) -> BoxFuture<io::Result<Bytes>>;
    /// Writes `parts` one after another from `position`, extending the file if it must.
    fn write_at(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<io::Result<()>>;
    /// Makes all that was written durable (`fdatasync`, on macOS `F_FULLFSYNC`).
    fn sync(&self) -> BoxFuture<io::Result<()>>;
    /// Writes, then syncs, in one trip to the disk's thread.
    fn write_and_sync(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<io::Result<()>>;
    /// Cuts or extends the file to `len` bytes; what is added reads as zeros.
    fn set_len(&self, len: u64) -> BoxFuture<io::Result<()>>;
    /// Writes zeros over `[position, position + len)`, so that later writes there change no metadata.
    fn fill_zero(&self, position: u64, len: u64) -> BoxFuture<io::Result<()>>;
    /// Takes room for `[position, position + len)`, which reads as zeros: later writes there don't fail for want of it where the
    /// file system keeps its word. Unlike with [`DiskFile::fill_zero`] they may change metadata, and where the file system can,
    /// no zeros are written.
    fn allocate(&self, position: u64, len: u64) -> BoxFuture<io::Result<()>>;
}

/// Reads a whole file that is at most `bytes_max` long.
///
/// # Errors
/// Those of the disk, and `InvalidData` if the file is longer.
pub async fn read_file(disk: &dyn Disk, path: &Path, bytes_max: u64) -> io::Result<Bytes> {
    let file = disk.open(path, OpenMode::ReadOnly, Lane::Bulk).await?;
    let len = file.len().await?;
    if len > bytes_max {
        let reason = format!("{} is {len} bytes; at most {bytes_max} are expected", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    file.read_at(0, len as usize).await
}

/// Replaces a small file so that after a crash either the old or the new content is there, whole: writes a neighbour,
/// syncs it, renames it over the old one and syncs the directory.
///
/// # Errors
/// Those of the disk. The old content may or may not have been replaced.
pub async fn replace_file(disk: &dyn Disk, path: &Path, content: Bytes) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let neighbour = path.with_extension("new");
    match disk.remove(&neighbour).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.open(&neighbour, OpenMode::CreateNew, Lane::Bulk).await?;
    file.write_and_sync(0, vec![content]).await?;
    drop(file);
    disk.rename(&neighbour, path).await?;
    if crate::planted!("directory-not-synced") {
        return Ok(());
    }
    disk.sync_dir(dir).await
}
