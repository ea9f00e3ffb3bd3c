//! `balsa inspect`: looks into the files of a node that is not running, and changes nothing.

use super::exit::Failure;
use super::output::{Format, Out};
use super::Common;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// Look into journal and segment files, offline and read-only
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
#[command(after_help = "\
Exits with 7 if it finds damage, and says at which position of which file.

Examples:
  balsa inspect journal balsa-data/node1/data/journal
  balsa inspect segment balsa-data/node1/data/groups/1 -o json")]
pub(super) struct InspectArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The node's journal: rounds, bases, the synced boundary
    #[command(after_help = "Example:\n  balsa inspect journal balsa-data/node1/data/journal")]
    Journal {
        /// A journal's folder, or one of its files
        path: PathBuf,
    },
    /// One partition's committed log: frames, offsets, the hash chain
    #[command(after_help = "Example:\n  balsa inspect segment balsa-data/node1/data/groups/1")]
    Segment {
        /// A group's folder, or one of its segment files
        path: PathBuf,
    },
}

pub(super) async fn run(common: &Common, args: InspectArgs) -> Result<(), Failure> {
    let (kind, path) = match &args.what {
        What::Journal { path } => (crate::inspect::Kind::Journal, path),
        What::Segment { path } => (crate::inspect::Kind::Segment, path),
    };
    check(path)?;
    let mut out = Out::new();
    let mut printed = Ok(());
    let mut on_line = |line: crate::inspect::Line| {
        if printed.is_ok() {
            printed = match common.output {
                Format::Table => out.line(&line.text),
                Format::Json => out.json(&line.json),
            };
        }
    };
    let damage = crate::inspect::report(kind, path, &mut on_line).await.map_err(Failure::failed)?;
    printed.and_then(|()| out.flush())?;
    match damage {
        None => Ok(()),
        Some(damage) => Err(Failure::corruption(damage)),
    }
}

fn check(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    Err(Failure::not_found(format!("there is no {}", path.display())))
}
