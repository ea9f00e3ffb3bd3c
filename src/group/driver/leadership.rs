//! When a node gives up leading: its disk is slow or full, it is asked to, or it stops.

use super::handle::CommandError;
use super::Driver;
use crate::group::machine::StateMachine;
use crate::ids::{GroupId, NodeId};
use crate::reached;
use slog::{info, warn};
use tokio::sync::oneshot;

/// Ticks that handing over leadership may take at a planned stop.
const HAND_OVER_TICKS: u64 = 30;

impl<S: StateMachine> Driver<S> {
    /// Gives up, or takes back, the right to lead. A disk whose sync hangs must not go on heartbeating as if all were well.
    pub(super) fn set_retired(&mut self, retired: bool) {
        if self.retired == retired || self.stopping {
            return;
        }
        self.retired = retired;
        if retired {
            reached!("leader retired by a slow disk");
        }
        match retired {
            _ if !self.siblings.is_first() => {} // it tells for all
            true => warn!(self.log, "a sync of the journal takes too long; this node gives up all leadership"),
            false => info!(self.log, "the journal syncs again; this node may lead"),
        }
        for (group, hosted) in &mut self.groups {
            hosted.replica.set_may_lead(!retired);
            self.dirty.insert(*group);
        }
    }

    /// A leader whose own disk is full hands over to a node with room, as long as a majority has some.
    pub(super) fn leave_full_leadership(&mut self) {
        if !self.health.reserve_reached {
            return;
        }
        for (group, hosted) in &mut self.groups {
            let room = hosted.replica.voters().into_iter().find(|voter| !self.full.contains(&voter.node()));
            if let (true, Some(to)) = (hosted.replica.is_leader() && hosted.majority_outside(&self.full), room) {
                reached!("leader on a full disk hands over");
                let _ = hosted.replica.transfer_leader(to.node());
                self.dirty.insert(*group);
            }
        }
    }

    pub(super) fn transfer(&mut self, group: GroupId, to: NodeId) -> Result<(), CommandError> {
        let hosted = self.groups.get_mut(&group).ok_or(CommandError::NotHosted(group))?;
        hosted.replica.transfer_leader(to)?;
        self.dirty.insert(group);
        Ok(())
    }

    pub(super) fn start_hand_over(&mut self, reply: oneshot::Sender<()>) {
        self.stopping = true;
        let until = self.tick + HAND_OVER_TICKS;
        self.handing_over.get_or_insert((until, Vec::new())).1.push(reply);
        for (group, hosted) in &mut self.groups {
            hosted.replica.set_may_lead(false);
            self.dirty.insert(*group);
        }
    }

    pub(super) fn check_hand_over(&mut self) {
        let Some((until, _)) = &self.handing_over else { return };
        let leads = self.groups.values().filter(|hosted| hosted.replica.is_leader()).count();
        if leads > 0 && self.tick < *until {
            return;
        }
        if leads > 0 {
            reached!("stopping while still leading");
            warn!(self.log, "stopping although groups are still led here"; "groups" => leads);
        }
        for reply in self.handing_over.take().into_iter().flat_map(|(_, replies)| replies) {
            let _ = reply.send(());
        }
    }
}
