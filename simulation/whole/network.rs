//! Cuts in the network. Several may lie over the same link; it is open again when the last one is mended.
//!
//! A cut loses nothing for good: the simulated network holds back what was sent over it and tries again, later and later, so that the
//! ends have to notice by themselves. New connections over it are refused at once.

use madsim::net::NetSim;
use madsim::task::NodeId;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Directed links, each from one machine to another.
pub type Cut = Vec<(NodeId, NodeId)>;

/// See the module's text.
#[derive(Default)]
pub struct Network {
    /// How many cuts lie over a link.
    cuts: BTreeMap<(NodeId, NodeId), u32>,
}

/// Both directions between each of these and each of those.
pub fn between(these: &[NodeId], those: &[NodeId]) -> Cut {
    let pairs = these.iter().flat_map(|one| those.iter().map(move |other| (*one, *other)));
    pairs.flat_map(|(one, other)| [(one, other), (other, one)]).filter(|(from, to)| from != to).collect()
}

impl Network {
    pub fn cut(&mut self, cut: &Cut) {
        for (from, to) in cut {
            let count = self.cuts.entry((*from, *to)).or_default();
            *count += 1;
            if *count == 1 {
                NetSim::current().clog_link(*from, *to);
            }
        }
    }

    pub fn mend(&mut self, cut: &Cut) {
        for link in cut {
            let Some(count) = self.cuts.get_mut(link) else { continue };
            *count -= 1;
            if *count == 0 {
                self.cuts.remove(link);
                NetSim::current().unclog_link(link.0, link.1);
            }
        }
    }

    pub fn mend_all(&mut self) {
        for (from, to) in std::mem::take(&mut self.cuts).into_keys() {
            NetSim::current().unclog_link(from, to);
        }
    }
}

/// How many packets are lost, and how long the others take.
pub fn set_weather(loss: f64, latency: &RangeInclusive<Duration>) {
    NetSim::current().update_config(|config| {
        config.packet_loss_rate = loss;
        config.send_latency = *latency.start()..*latency.end();
    });
}
