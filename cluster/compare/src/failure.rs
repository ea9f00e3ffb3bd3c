//! What can go wrong, in words for the person at the terminal.

use std::io;
use std::path::{Path, PathBuf};

/// Why a peer was not measured, or the comparison not made.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The peer is not on this machine, or not in a version that can do this: it is named and skipped.
    #[error("{0}")]
    Absent(String),
    /// A file, a process or a socket of ours failed.
    #[error("cannot {what}")]
    Io { what: String, source: io::Error },
    /// A peer or its client did not do what it should; the text says what, and where to look.
    #[error("{0}")]
    Failed(String),
}

impl Failure {
    /// A failure told by another library.
    pub fn of(doing: &str, error: impl std::fmt::Display) -> Failure {
        Failure::Failed(format!("{doing}: {error}"))
    }

    /// For `map_err` on what the operating system refuses.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
        move |source| Failure::Io { what: what.into(), source }
    }

    /// The text with the causes behind it.
    pub fn told(&self) -> String {
        match self {
            Failure::Io { source, .. } => format!("{self}: {source}"),
            Failure::Absent(_) | Failure::Failed(_) => self.to_string(),
        }
    }
}

/// Writes a small file, such as a peer's configuration.
///
/// # Errors
/// `Io`, with the path.
pub fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(Failure::io(format!("write {}", path.display())))
}

/// Creates a directory and those above it.
///
/// # Errors
/// `Io`, with the path.
pub fn make_dir(path: PathBuf) -> Result<PathBuf, Failure> {
    std::fs::create_dir_all(&path).map_err(Failure::io(format!("create {}", path.display())))?;
    Ok(path)
}
