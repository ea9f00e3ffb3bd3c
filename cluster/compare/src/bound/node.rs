//! One process of the bound: the first, which clients talk to, or one of the two that follow it.
//!
//! Threads and blocking calls throughout: there is nothing here to be clever about. A node never recovers and is not meant to; it
//! ends when what it needs is gone.

use super::inbox::Inbox;
use super::shared::{Shared, HEAD};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of each node's file; it is overwritten from its start when it is full.
const FILE_BYTES: usize = 64 << 20;
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Runs a follower: takes rounds from one connection, answers each when it is synced. Returns when the first node is gone.
///
/// # Errors
/// The disk's or the socket's.
pub fn follow(listener: &TcpListener, file: &Path) -> io::Result<()> {
    let mut disk = ZeroedFile::create(file)?;
    let (mut first, _) = listener.accept()?;
    first.set_nodelay(true)?;
    let mut inbox = Inbox::default();
    while inbox.fill(&first)? {
        // All rounds that are here by now cost one sync.
        let (mut last, mut from) = (0, 0);
        while let Some((round, bytes)) = whole_round(&inbox.bytes()[from..]) {
            disk.write(&inbox.bytes()[from + HEAD..from + HEAD + bytes])?;
            (last, from) = (round, from + HEAD + bytes);
        }
        if from > 0 {
            disk.sync()?;
            first.write_all(&last.to_le_bytes())?;
            inbox.used(from);
        }
    }
    Ok(())
}

/// Runs the first node for clients over plain TCP. Returns when it fails.
///
/// # Errors
/// Those of `run_rounds`.
pub fn lead(listener: TcpListener, followers: [SocketAddr; 2], file: &Path) -> io::Result<()> {
    let shared = Arc::new(Shared::default());
    let doors = shared.clone();
    thread::spawn(move || take_clients(&doors, &listener));
    run_rounds(&shared, followers, file)
}

/// Makes rounds of what clients ask for, however it came, and has them acknowledged at two of three syncs. Returns when it
/// fails.
///
/// # Errors
/// The disk's or a follower's socket's; the one of connecting if a follower is not there.
pub(super) fn run_rounds(shared: &Arc<Shared>, followers: [SocketAddr; 2], file: &Path) -> io::Result<()> {
    let mut disk = ZeroedFile::create(file)?;
    let mut links = Vec::new();
    for (number, address) in followers.into_iter().enumerate() {
        let link = connect(address)?;
        let (shared, answers) = (shared.clone(), link.try_clone()?);
        thread::spawn(move || take_syncs(&shared, number + 1, answers));
        links.push(link);
    }
    let mut message = Vec::new();
    for round in 1.. {
        let requests = shared.next_requests(&mut message);
        message[..8].copy_from_slice(&u64::to_le_bytes(round));
        let bytes = (message.len() - HEAD) as u32;
        message[8..HEAD].copy_from_slice(&bytes.to_le_bytes());
        shared.begin(round, requests);
        for link in &mut links {
            link.write_all(&message)?;
        }
        disk.write(&message[HEAD..])?;
        disk.sync()?;
        shared.synced(0, round);
    }
    Ok(())
}

fn take_syncs(shared: &Shared, node: usize, mut answers: TcpStream) {
    let mut round = [0; 8];
    while answers.read_exact(&mut round).is_ok() {
        shared.synced(node, u64::from_le_bytes(round));
    }
}

fn take_clients(shared: &Arc<Shared>, listener: &TcpListener) {
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        let shared = shared.clone();
        thread::spawn(move || {
            let _ = take_requests(&shared, client);
        });
    }
}

fn take_requests(shared: &Shared, client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut answers = client.try_clone()?;
    let number = shared.join(move |count| {
        // A client that is gone has nobody to tell; its reader, below, takes it off the list.
        let _ = answers.write_all(&count.to_le_bytes());
    });
    let ended = pass_requests_on(shared, number, &client);
    shared.leave(number);
    ended
}

fn pass_requests_on(shared: &Shared, number: usize, client: &TcpStream) -> io::Result<()> {
    let mut inbox = Inbox::default();
    while inbox.fill(client)? {
        let (whole, count) = whole_requests(inbox.bytes());
        if count > 0 {
            shared.add_requests(number, count, |pending| pending.extend_from_slice(&inbox.bytes()[..whole]));
            inbox.used(whole);
        }
    }
    Ok(())
}

/// Bytes and number of the requests that are complete.
fn whole_requests(taken: &[u8]) -> (usize, u32) {
    let (mut from, mut count) = (0, 0);
    while let Some(bytes) = u32_at(taken, from) {
        let end = from + 4 + bytes as usize;
        if end > taken.len() {
            break;
        }
        (from, count) = (end, count + 1);
    }
    (from, count)
}

/// Number and bytes of the round at the start, if all of it is here.
fn whole_round(taken: &[u8]) -> Option<(u64, usize)> {
    let round = u64::from_le_bytes(taken.get(..8)?.try_into().ok()?);
    let bytes = u32_at(taken, 8)? as usize;
    (taken.len() >= HEAD + bytes).then_some((round, bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let deadline = Instant::now() + CONNECT_PATIENCE;
    loop {
        match TcpStream::connect(address) {
            Ok(link) => {
                link.set_nodelay(true)?;
                return Ok(link);
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A file whose blocks are all written before the first round: overwriting them changes no metadata, which halves a sync.
struct ZeroedFile {
    file: File,
    position: usize,
}

impl ZeroedFile {
    fn create(path: &Path) -> io::Result<ZeroedFile> {
        let mut file = File::create(path)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..FILE_BYTES >> 20 {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        Ok(ZeroedFile { file, position: 0 })
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = FILE_BYTES - self.position;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.file.write_all_at(now, self.position as u64)?;
            self.position = (self.position + now.len()) % FILE_BYTES;
            bytes = later;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_request_waits_for_its_other_half() {
        let mut bytes = Vec::new();
        for payload in [&b"one"[..], b"three"] {
            bytes.extend((payload.len() as u32).to_le_bytes());
            bytes.extend(payload);
        }
        assert_eq!(whole_requests(&bytes), (16, 2));
        assert_eq!(whole_requests(&bytes[..15]), (7, 1));
        assert_eq!(whole_requests(&bytes[..3]), (0, 0));
    }

    #[test]
    fn half_a_round_waits_for_its_other_half() {
        let mut bytes = 9_u64.to_le_bytes().to_vec();
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend(b"ok");
        assert_eq!(whole_round(&bytes), Some((9, 2)));
        assert_eq!(whole_round(&bytes[..13]), None);
    }
}
