//! How often each fault, event trigger and marked branch was seen: what stays at zero is a hole in the net.

use std::collections::BTreeMap;

/// Counters by name: `fault.kill`, `trigger.after-vote`, `branch.<the mark's name>`, `operation.append`.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Coverage {
    counts: BTreeMap<String, u64>,
}

impl Coverage {
    pub fn hit(&mut self, name: &str) {
        self.add(name, 1);
    }

    pub fn add(&mut self, name: &str, count: u64) {
        match self.counts.get_mut(name) {
            Some(counted) => *counted += count,
            None => drop(self.counts.insert(name.to_owned(), count)),
        }
    }

    pub fn merge(&mut self, other: &Coverage) {
        for (name, count) in &other.counts {
            self.add(name, *count);
        }
    }

    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().map(|(name, count)| (name.as_str(), *count))
    }
}
