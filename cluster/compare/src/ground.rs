//! What everybody stands on: one directory on one disk, free ports on loopback, and the programs themselves.
//!
//! Invariant: whatever is made here is gone when the `Ground` is dropped.

use crate::failure::{make_dir, Failure};
use std::env;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process;

/// File systems in memory, where a sync costs nothing and a comparison of durable logs means nothing.
const IN_MEMORY: &[(i64, &str)] = &[(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];

/// The directory of one run.
#[derive(Debug)]
pub struct Ground {
    dir: PathBuf,
    keep_logs: bool,
}

impl Ground {
    /// A new directory below `below`.
    ///
    /// # Errors
    /// `Io`; `Failed` if `below` is a file system in memory.
    pub fn new(below: &Path, keep_logs: bool) -> Result<Ground, Failure> {
        let below = fs::canonicalize(below).map_err(Failure::io(format!("find the directory {}", below.display())))?;
        let kind = rustix::fs::statfs(&below).map_err(|error| Failure::of("statfs", error))?.f_type;
        if let Some((_, name)) = IN_MEMORY.iter().find(|(magic, _)| *magic == kind as i64) {
            let below = below.display();
            return Err(Failure::Failed(format!(
                "{below} is a {name}, where a sync costs nothing; name a directory on a disk with --dir"
            )));
        }
        let dir = make_dir(below.join(format!("balsa-compare-{}", process::id())))?;
        Ok(Ground { dir, keep_logs })
    }

    /// An empty directory for one cluster; what an earlier one of that name left is removed.
    ///
    /// # Errors
    /// `Io`.
    pub fn cluster(&self, name: &str) -> Result<PathBuf, Failure> {
        let dir = self.dir.join(name);
        let _ = fs::remove_dir_all(&dir);
        make_dir(dir)
    }

    /// Removes a cluster's directory: its data would fill the disk beside the next one's.
    pub fn clear(&self, name: &str) {
        if !self.keep_logs {
            let _ = fs::remove_dir_all(self.dir.join(name));
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if self.keep_logs {
            eprintln!("data and logs are kept in {}", self.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// So many ports of 127.0.0.1 that nobody listens on, all different.
///
/// # Errors
/// `Io`.
pub fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    let held: Result<Vec<TcpListener>, _> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let held = held.map_err(Failure::io("find free ports on 127.0.0.1"))?;
    let ports = held.iter().map(|listener| listener.local_addr().map(|address| address.port()));
    ports.collect::<Result<_, _>>().map_err(Failure::io("read a port's number"))
}

/// The address of a port on loopback.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The program `given`, or the first of `names` that is on PATH or is an absolute path that exists.
///
/// # Errors
/// `Absent`, with what to install.
pub fn find_program(given: Option<&Path>, names: &[&str], install: &str) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        let found = on_path(path).ok_or_else(|| Failure::Absent(format!("there is no {}", path.display())));
        return found;
    }
    let found = names.iter().find_map(|name| on_path(Path::new(name)));
    found.ok_or_else(|| Failure::Absent(format!("{} is not installed: {install}", names[0])))
}

fn on_path(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return fs::canonicalize(name).ok();
    }
    // Debian puts servers into directories that are not on everybody's PATH.
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_different() {
        let ports = free_ports(9).expect("loopback has ports");
        let mut distinct = ports.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 9);
        TcpListener::bind(local(ports[0])).expect("the port is free again");
    }

    #[test]
    fn a_missing_program_is_named_with_what_to_install() {
        let error = find_program(None, &["no-such-server"], "apt-get install no-such-package").unwrap_err();
        assert_eq!(error.told(), "no-such-server is not installed: apt-get install no-such-package");
        assert!(matches!(error, Failure::Absent(_)));
    }
}
