//! The disk of the machine: `std::fs` on threads of its own, off the event loop.
//!
//! Duty: do what is asked, once, and report what came of it. One thread serves [`Lane::Journal`], one [`Lane::Fill`] and two
//! [`Lane::Bulk`], so that the journal's sync never waits behind a cold read, nor its next file behind the syncs of segments. It refuses to retry: an interrupted call
//! and a short write are carried on, but a failed write or sync is reported and never repeated. After a failed sync
//! Linux marks the pages clean, so that a second sync would report a success that never was (Rebello et al. 2020).
//!
//! Journal files are written past the page cache (`O_DIRECT`) where the file system and the disk take that. The kernel then moves whole
//! blocks of aligned memory only: a round is copied into such memory once, and whatever does not begin and end at a block goes through
//! the page cache, which the kernel keeps in step. Durable is what was synced, either way.
//!
//! The queues in front of the threads are not bounded: whoever asks awaits the answer, so there are never more jobs
//! than callers, and those bound themselves. The threads end when the last handle on the disk or one of its files is
//! gone.

use super::{BoxFuture, Disk, DiskFile, Lane, LockGuard, OpenMode};
use bytes::Bytes;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use tokio::sync::oneshot;

const JOURNAL_THREADS: usize = 1;
const FILL_THREADS: usize = 1;
const BULK_THREADS: usize = 2;

/// Parts given to the kernel in one call; POSIX promises at least 16, Linux and macOS take 1,024.
const PARTS_PER_CALL: usize = 1_024;

const ZEROS_LEN: usize = 256 << 10;
#[repr(align(4096))]
struct Zeros([u8; ZEROS_LEN]);
static ZEROS: Zeros = Zeros([0; ZEROS_LEN]);

/// What positions and lengths past the page cache are multiples of: the journal's own unit.
const BLOCK: usize = 512;
/// What memory that the disk itself reads begins at a multiple of.
const MEMORY_ALIGN: usize = 4_096;
/// Larger writes go through the page cache: the memory for them would be held for good.
const DIRECT_BYTES_MAX: usize = 8 << 20;

type Job = Box<dyn FnOnce() + Send>;

/// The disk of the machine.
#[derive(Clone)]
pub struct RealDisk {
    journal: Arc<Threads>,
    fill: Arc<Threads>,
    bulk: Arc<Threads>,
    /// Memory in which writes past the page cache are put together.
    aligned: Arc<Mutex<Vec<u8>>>,
}

impl RealDisk {
    /// Starts the disk's threads.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn new() -> io::Result<RealDisk> {
        let journal = Arc::new(Threads::start("disk-journal", JOURNAL_THREADS)?);
        let fill = Arc::new(Threads::start("disk-fill", FILL_THREADS)?);
        let bulk = Arc::new(Threads::start("disk-bulk", BULK_THREADS)?);
        Ok(RealDisk { journal, fill, bulk, aligned: Arc::default() })
    }

    fn lane(&self, lane: Lane) -> &Arc<Threads> {
        match lane {
            Lane::Journal => &self.journal,
            Lane::Fill => &self.fill,
            Lane::Bulk => &self.bulk,
        }
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode, lane: Lane) -> BoxFuture<io::Result<Arc<dyn DiskFile>>> {
        let (path, threads, aligned) = (path.to_owned(), self.lane(lane).clone(), self.aligned.clone());
        self.lane(lane).run(move || {
            let mut options = OpenOptions::new();
            match mode {
                OpenMode::Existing => options.read(true).write(true),
                OpenMode::CreateNew => options.read(true).write(true).create_new(true),
                OpenMode::ReadOnly => options.read(true),
            };
            let file = options.open(&path)?;
            let past_cache = matches!(lane, Lane::Journal | Lane::Fill) && mode != OpenMode::ReadOnly;
            let direct = if past_cache { open_direct(&path) } else { None };
            let opened = Opened { file, direct, direct_refused: AtomicBool::new(false), aligned };
            Ok(Arc::new(RealFile { opened: Arc::new(opened), threads }) as Arc<dyn DiskFile>)
        })
    }

    fn create_dir_all(&self, path: &Path) -> BoxFuture<io::Result<()>> {
        let path = path.to_owned();
        self.bulk.run(move || create_dir_all_synced(&path))
    }

    fn list(&self, dir: &Path) -> BoxFuture<io::Result<Vec<PathBuf>>> {
        let dir = dir.to_owned();
        self.bulk.run(move || {
            let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
            paths.sort();
            Ok(paths)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> BoxFuture<io::Result<()>> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.bulk.run(move || fs::rename(from, to))
    }

    fn remove(&self, path: &Path) -> BoxFuture<io::Result<()>> {
        let path = path.to_owned();
        self.bulk.run(move || fs::remove_file(path))
    }

    fn remove_dir_all(&self, path: &Path) -> BoxFuture<io::Result<()>> {
        let path = path.to_owned();
        self.bulk.run(move || match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
    }

    fn sync_dir(&self, dir: &Path) -> BoxFuture<io::Result<()>> {
        let dir = dir.to_owned();
        self.bulk.run(move || sync_dir(&dir))
    }

    fn free_bytes(&self, path: &Path) -> BoxFuture<io::Result<u64>> {
        let path = path.to_owned();
        self.bulk.run(move || {
            let stat = rustix::fs::statvfs(&path)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        })
    }

    fn lock(&self, path: &Path) -> BoxFuture<io::Result<Box<dyn LockGuard>>> {
        let path = path.to_owned();
        self.bulk.run(move || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
            match file.try_lock() {
                Ok(()) => Ok(Box::new(RealLock { _file: file }) as Box<dyn LockGuard>),
                Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
                Err(TryLockError::Error(error)) => Err(error),
            }
        })
    }
}

/// Holds the lock by holding the file open.
struct RealLock {
    _file: File,
}

impl LockGuard for RealLock {}

/// An open file and the threads that serve it.
struct RealFile {
    opened: Arc<Opened>,
    threads: Arc<Threads>,
}

/// A file, and the same one past the page cache if it is to be written so and the file system takes it.
struct Opened {
    file: File,
    direct: Option<File>,
    /// The disk has larger blocks than ours, or the file system does not serve what it opened.
    direct_refused: AtomicBool,
    aligned: Arc<Mutex<Vec<u8>>>,
}

impl RealFile {
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Opened) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<io::Result<T>> {
        let opened = self.opened.clone();
        self.threads.run(move || work(&opened))
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> BoxFuture<io::Result<u64>> {
        self.run(|opened| Ok(opened.file.metadata()?.len()))
    }

    fn read_at(&self, position: u64, len: usize) -> BoxFuture<io::Result<Bytes>> {
        self.run(move |opened| read_full(&opened.file, position, len))
    }

    fn write_at(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<io::Result<()>> {
        self.run(move |opened| opened.write(position, &parts))
    }

    fn sync(&self) -> BoxFuture<io::Result<()>> {
        self.run(|opened| opened.file.sync_data())
    }

    fn write_and_sync(&self, position: u64, parts: Vec<Bytes>) -> BoxFuture<io::Result<()>> {
        self.run(move |opened| {
            opened.write(position, &parts)?;
            opened.file.sync_data()
        })
    }

    fn set_len(&self, len: u64) -> BoxFuture<io::Result<()>> {
        self.run(move |opened| opened.file.set_len(len))
    }

    fn fill_zero(&self, position: u64, len: u64) -> BoxFuture<io::Result<()>> {
        self.run(move |opened| opened.fill_zero(position, len))
    }

    fn allocate(&self, position: u64, len: u64) -> BoxFuture<io::Result<()>> {
        self.run(move |opened| {
            // What lies there already would stay as it is.
            let beyond = opened.file.metadata()?.len() <= position;
            if beyond && reserve(&opened.file, position, len)? {
                return Ok(());
            }
            opened.fill_zero(position, len)
        })
    }
}

impl Opened {
    fn write(&self, position: u64, parts: &[Bytes]) -> io::Result<()> {
        let len = parts.iter().map(Bytes::len).sum::<usize>();
        if len > DIRECT_BYTES_MAX || self.direct_for(position, len).is_none() {
            return write_parts(&self.file, position, parts);
        }
        let mut memory = self.aligned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if memory.len() < len + MEMORY_ALIGN {
            *memory = vec![0; len.next_power_of_two() + MEMORY_ALIGN];
        }
        let begin = memory.as_ptr().align_offset(MEMORY_ALIGN);
        let whole = &mut memory[begin..begin + len];
        let mut at = 0;
        for part in parts {
            whole[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.write_aligned(position, whole)
    }

    fn fill_zero(&self, position: u64, len: u64) -> io::Result<()> {
        let end = position + len;
        let mut at = position;
        while at < end {
            let piece = (end - at).min(ZEROS_LEN as u64) as usize;
            self.write_aligned(at, &ZEROS.0[..piece])?;
            at += piece as u64;
        }
        Ok(())
    }

    /// Writes aligned memory, past the page cache if that can be.
    fn write_aligned(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(direct) = self.direct_for(position, bytes.len()) {
            match direct.write_all_at(bytes, position) {
                // Not a failure of the disk: it was not asked. The same bytes go to the same place through the page cache.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.direct_refused.store(true, Ordering::Relaxed);
                }
                written => return written,
            }
        }
        self.file.write_all_at(bytes, position)
    }

    fn direct_for(&self, position: u64, len: usize) -> Option<&File> {
        let fits = len > 0 && position.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK);
        self.direct.as_ref().filter(|_| fits && !self.direct_refused.load(Ordering::Relaxed))
    }
}

/// The file past the page cache, if the file system knows such a thing.
#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> Option<File> {
    None
}

/// Has the file system set room aside; false if it can't.
#[cfg(target_os = "linux")]
fn reserve(file: &File, position: u64, len: u64) -> io::Result<bool> {
    use rustix::io::Errno;
    loop {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), position, len) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(error.into()),
            Err(_) => return Ok(false), // not known here, or not allowed
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_file: &File, _position: u64, _len: u64) -> io::Result<bool> {
    Ok(false)
}

/// Reads `len` bytes, or as many as there are before the end of the file.
fn read_full(file: &File, position: u64, len: usize) -> io::Result<Bytes> {
    // A length that comes from a damaged file must not take memory that the file can't fill.
    let there = file.metadata()?.len().saturating_sub(position);
    let mut bytes = vec![0; (len as u64).min(there) as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], position + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes.into())
}

/// Writes the parts one after another, in one system call where the kernel takes them all at once.
fn write_parts(file: &File, position: u64, parts: &[Bytes]) -> io::Result<()> {
    if let [single] = parts {
        return file.write_all_at(single, position);
    }
    let mut at = position;
    for parts in parts.chunks(PARTS_PER_CALL) {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0); // drops leading parts that are empty
        while !rest.is_empty() {
            match rustix::io::pwritev(file, rest, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    at += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

/// Creates a directory and those above it, and syncs each parent that got a name.
fn create_dir_all_synced(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("."));
    create_dir_all_synced(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    sync_dir(parent)
}

/// Threads that take jobs from one queue.
struct Threads {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Threads {
    fn start(name: &str, count: usize) -> io::Result<Threads> {
        let queue = Arc::new(Queue::default());
        let threads = Threads { queue: queue.clone() };
        for _ in 0..count {
            let queue = queue.clone();
            std::thread::Builder::new().name(name.to_owned()).spawn(move || queue.serve())?;
        }
        Ok(threads)
    }

    /// Queues `work` at once; the future only waits for its outcome.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<io::Result<T>> {
        let (done, outcome) = oneshot::channel();
        self.queue.push(Box::new(move || {
            let _ = done.send(work()); // nobody waits any more: the outcome is lost, as the trait says
        }));
        Box::pin(async move { outcome.await.unwrap_or_else(|_| Err(io::Error::other("the disk's thread is gone"))) })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        self.lock().jobs.push_back(job);
        self.changed.notify_one();
    }

    /// Runs jobs until the queue is closed and empty.
    fn serve(&self) {
        loop {
            let mut state = self.lock();
            let job = loop {
                if let Some(job) = state.jobs.pop_front() {
                    break job;
                }
                if state.closed {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            };
            drop(state);
            job();
        }
    }
}
