//! A small file system in memory, and something to fill it with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own under a directory; gone with all that is on it when dropped.
pub struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    /// Mounts one on `dir`, which is made.
    ///
    /// # Errors
    /// If this is not permitted here, with the reason.
    pub fn mount(dir: &Path, bytes: u64) -> Result<SmallDisk, String> {
        fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(SmallDisk { dir: dir.to_owned() }),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Fills it until `bytes` are free, or less. To be repeated where others give space back meanwhile.
    pub fn fill_up_to(&self, bytes: u64) {
        let file = File::options().append(true).create(true).open(self.ballast()).expect("the ballast");
        let (len, more) = (file.metadata().expect("its length").len(), self.free_bytes().saturating_sub(bytes));
        if more > 0 {
            // Somebody else may have taken the last of it since we looked.
            let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), len, more);
        }
    }

    /// Makes room again.
    pub fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("the ballast");
    }

    pub fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.dir).expect("the file system");
        stat.f_bavail * stat.f_frsize
    }

    fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that still ends may have files open.
        let _ = Command::new("umount").arg("-l").arg(&self.dir).output();
    }
}
