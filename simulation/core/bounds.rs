//! Nothing grows without bound: what replicas and journals hold is looked at now and then, and held against what their options promise.

use super::world::World;
use balsa::ids::GroupId;
use balsa::limits::{PROPOSALS_WAITING_MAX, READS_WAITING_MAX, REPLICAS_MAX};

/// The largest entry that clients of this world come up with.
const ENTRY_BYTES: u64 = 32 << 10;
/// What comes into a journal while its groups move their bases, at most.
const JOURNAL_SLACK_BYTES: u64 = 256 << 10;
/// Files that a journal may have beyond its own bound: the one that is written, the next, and what starts left that
/// ended half way.
const JOURNAL_FILES_SLACK: usize = 16;

impl World {
    /// The rule `unbounded`.
    pub fn look_at_bounds(&mut self, node: u32) {
        let Some(process) = &self.nodes[node as usize].process else { return };
        let over = process.groups.keys().find_map(|group| self.over_bound(node, *group));
        let over = over.or_else(|| self.journal_over_bound(node));
        if let Some(what) = over {
            self.shared.broke("unbounded", &[node], format!("node {node}: {what}"));
        }
    }

    fn over_bound(&self, node: u32, group: GroupId) -> Option<String> {
        let hosted = self.nodes[node as usize].process.as_ref()?.groups.get(&group)?;
        let (replica, options) = (&hosted.replica, &self.shared.options);
        let held = replica.held();
        let bounds = [
            ("bytes of applied entries", held.applied_bytes as u64, options.log_cache_bytes_max as u64),
            ("reads for followers", held.fetches as u64, REPLICAS_MAX as u64),
            ("messages in flight", held.inflight_messages as u64, options.inflight_messages_max as u64),
            ("bytes not committed", held.uncommitted_bytes, options.uncommitted_bytes_max + ENTRY_BYTES),
            ("bytes of commands queued", held.queued_bytes, options.uncommitted_bytes_max + ENTRY_BYTES),
            ("commands waiting", held.proposals as u64, PROPOSALS_WAITING_MAX as u64),
            ("reads waiting", held.reads as u64, READS_WAITING_MAX as u64),
        ];
        let (what, is, most) = bounds.into_iter().find(|(_, is, most)| is > most)?;
        Some(format!("group {group} has {is} {what}; {most} were promised"))
    }

    fn journal_over_bound(&self, node: u32) -> Option<String> {
        let process = self.nodes[node as usize].process.as_ref()?;
        let options = self.shared.options.journal;
        let (bytes, most) = (process.journal_bytes()?, options.restated_bytes_max + JOURNAL_SLACK_BYTES);
        if bytes > most {
            return Some(format!("{bytes} bytes wait in the journal for bases to move; {most} may"));
        }
        // Starts that fail leave files; they are put away once there is time, and room.
        if !process.is_marked || process.reserve_reached {
            return None;
        }
        let (files, most) = (self.journal_files(node), options.files_max + JOURNAL_FILES_SLACK);
        (files > most).then(|| format!("the journal has {files} files; {most} may be there"))
    }
}
