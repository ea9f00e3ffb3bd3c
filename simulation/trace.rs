//! What happened in a run: always as a hash, on demand as text.
//!
//! Text is costly, and a run can be repeated: a sweep keeps the hash alone, and a seed that broke a rule is run again with its
//! text kept. Numbers go into the hash, never the text, so that both runs have the same one.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufWriter, Stdout, Write};

/// How many of a node's last events are kept.
const KEPT_PER_NODE: usize = 200;

/// How much of what happens is kept as text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detail {
    /// Nothing.
    Hash,
    /// Each node's last events.
    Last,
    /// All of it, printed to standard output as it happens, and each node's last events.
    Printed,
}

/// See the module's text.
pub struct Trace {
    detail: Detail,
    hash: u64,
    events: u64,
    last: BTreeMap<u32, VecDeque<(u64, String)>>,
    /// Its buffer is written when the trace is dropped, by a panic too.
    printed: Option<BufWriter<Stdout>>,
}

impl Trace {
    pub fn new(detail: Detail) -> Trace {
        let printed = (detail == Detail::Printed).then(|| BufWriter::new(io::stdout()));
        Trace { detail, hash: 0xcbf2_9ce4_8422_2325, events: 0, last: BTreeMap::new(), printed }
    }

    /// Something happened on a node (0: to the world or a client). `numbers` tell it apart from what could have happened
    /// instead: they alone go into the hash, with time, node and kind. `text` is called only if text is kept.
    pub fn event(
        &mut self,
        now_us: u64,
        node: u32,
        kind: &'static str,
        numbers: &[u64],
        text: impl FnOnce() -> String,
    ) {
        self.mix(now_us);
        self.mix(u64::from(node));
        let (words, rest) = kind.as_bytes().as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        for word in words.iter().chain([&last]) {
            self.mix(u64::from_le_bytes(*word));
        }
        for number in numbers {
            self.mix(*number);
        }
        self.note(now_us, node, kind, text);
    }

    /// Something worth reading and no more, such as a line a node logged: kept as text, and no part of the hash.
    pub fn note(&mut self, now_us: u64, node: u32, kind: &'static str, text: impl FnOnce() -> String) {
        if self.detail == Detail::Hash {
            return;
        }
        self.events += 1;
        let line = line(now_us, node, kind, &text());
        if let Some(printed) = &mut self.printed {
            or_gone(writeln!(printed, "{line}"));
        }
        let last = self.last.entry(node).or_default();
        if last.len() == KEPT_PER_NODE {
            last.pop_front();
        }
        last.push_back((self.events, line));
    }

    fn mix(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash ^= self.hash >> 29;
    }

    /// Whether text is kept.
    pub fn keeps_text(&self) -> bool {
        self.detail != Detail::Hash
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The kept events of these nodes (of all, if none are named), in the order they happened.
    pub fn last_events(&self, nodes: &[u32]) -> Vec<String> {
        let wanted = self.last.iter().filter(|(node, _)| nodes.is_empty() || nodes.contains(node));
        let mut events: Vec<_> = wanted.flat_map(|(_, last)| last).collect();
        events.sort();
        events.into_iter().map(|(_, line)| line.clone()).collect()
    }
}

/// A reader of the log who went away has seen enough.
fn or_gone(written: io::Result<()>) {
    if written.is_err() {
        std::process::exit(0);
    }
}

fn line(now_us: u64, node: u32, kind: &str, text: &str) -> String {
    let (seconds, micros) = (now_us / 1_000_000, now_us % 1_000_000);
    match node {
        0 => format!("{seconds:>4}.{micros:06}  -  {kind:<12} {text}"),
        node => format!("{seconds:>4}.{micros:06}  n{node} {kind:<12} {text}"),
    }
}
