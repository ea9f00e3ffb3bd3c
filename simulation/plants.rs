//! The planted bugs: what each does, and which real one it is modelled on.
//!
//! Each stands in the production code as `planted!("its-name")`, at the place where such a bug would stand; what would sit inside the
//! raft crate is done to it from `src/group/tampering.rs`. A test in `tests/tidy.rs` holds this list and the code together.
//!
//! One bug of the kind has no place of its own: Balsa's replicas apply an entry in the turn in which Raft hands it out, so that nothing lies
//! between "committed" and "applied" but the disk; `campaign-with-unapplied-change` opens that gap first.

use crate::run::World;

/// A bug that can be switched on.
pub struct Plant {
    /// As in the code.
    pub name: &'static str,
    /// What goes wrong.
    pub what: &'static str,
    /// Whom it happened to, or who warned of it.
    pub incident: &'static str,
    /// In which worlds it can be found.
    pub worlds: &'static [World],
}

const BOTH: &[World] = &[World::Core, World::Whole];
const CORE: &[World] = &[World::Core];
const WHOLE: &[World] = &[World::Whole];

/// All of them: journal and segments, consensus, state machines, the node around them.
pub const PLANTS: &[Plant] = &[
    // Journal
    Plant {
        name: "sync-retried-after-failure",
        what: "a round whose write and sync failed is synced again, and counts as durable if that succeeds",
        incident: "PostgreSQL, fsyncgate, 2018; Rebello et al., ATC 2020: what failed is clean to the kernel afterwards",
        worlds: BOTH,
    },
    Plant {
        name: "directory-not-synced",
        what: "a small file is replaced by a rename that is not synced: after a power failure the old one is back",
        incident: "Pillai et al., OSDI 2014: most of the systems examined forgot it somewhere",
        worlds: BOTH,
    },
    Plant {
        name: "boundary-not-recorded",
        what: "an idle journal does not record through where it is synced: rot in the last round passes for a torn tail",
        incident: "Alagappan et al., FAST 2018: without a record of its own the last entry's rot can't be told from a crash",
        worlds: BOTH,
    },
    Plant {
        name: "rot-in-last-round-cut-as-torn",
        what: "the recorded boundary is not held against what is read: a rotten last round is cut, though it was acknowledged",
        incident: "ZooKeeper, etcd and others in Alagappan et al., FAST 2018; the reason for TigerBeetle's redundant headers",
        worlds: BOTH,
    },
    Plant {
        name: "rot-taken-for-the-end",
        what: "a rotten round in the middle ends the journal: all behind it is cut in silence",
        incident: "Alagappan et al., FAST 2018: LogCabin and ZooKeeper truncated at any bad checksum; NATS 2.12.1, nats-server #7549",
        worlds: BOTH,
    },
    Plant {
        name: "recycled-frames-taken-for-new",
        what: "headers do not commit to the life of their file: rounds of a recycled file's earlier life pass for new ones",
        incident: "RocksDB, recycled write-ahead logs against its recovery modes, 2018 and later",
        worlds: BOTH,
    },
    Plant {
        name: "torn-batch-replayed",
        what: "a payload's checksum is not held against it: the part of a torn round that made it is replayed",
        incident: "LevelDB, torn log records replayed where checksums are not verified: Pillai et al., OSDI 2014",
        worlds: BOTH,
    },
    Plant {
        name: "appending-behind-a-cut",
        what: "a last round that may lie in the page cache alone counts as synced, and the journal goes on behind it",
        incident: "PostgreSQL and LMDB in Rebello et al., ATC 2020: after a failed sync and a restart they read what was never written",
        worlds: BOTH,
    },
    Plant {
        name: "hard-state-lost-at-creation",
        what: "term and vote of a group that has not moved its first base are lost in a restart",
        incident: "CockroachDB: applying a split must keep the vote that the new replica has cast before it, 2016",
        worlds: BOTH,
    },
    Plant {
        name: "restatement-older-than-vote",
        what: "a checkpoint restates a group's hard state without the vote that a live frame before it holds",
        incident: "the hazard of every fuzzy checkpoint (Mohan et al., ARIES, 1992); TiKV's raft-engine guards its log rewrite against it",
        worlds: BOTH,
    },
    Plant {
        name: "files-recycled-before-checkpoint",
        what: "older journal files leave before the newest one restates every group",
        incident: "the rule that PostgreSQL's and InnoDB's logs keep: nothing is recycled before the checkpoint is on disk",
        worlds: BOTH,
    },
    Plant {
        name: "unreadable-snapshot-taken-for-none",
        what: "a state file that is damaged or gone makes its group start empty",
        incident: "ZooKeeper, ZOOKEEPER-2325: with all snapshots unreadable a server starts from nothing, 2015",
        worlds: BOTH,
    },
    // Segments
    Plant {
        name: "base-recorded-before-segments-synced",
        what: "the journal forgets entries that the segments hold in the page cache only",
        incident: "the order that Kafka's recovery-point checkpoint has to keep; Pillai et al., OSDI 2014",
        worlds: BOTH,
    },
    Plant {
        name: "new-segment-name-not-synced",
        what: "a new segment's name is not synced before the base that relies on it",
        incident: "Kafka, KAFKA-3968: a new log segment was synced and its directory was not, mended 2021",
        worlds: BOTH,
    },
    Plant {
        name: "sealed-segment-not-synced",
        what: "a segment is sealed, and no later sync covers it",
        incident: "Pillai et al., OSDI 2014: files that are synced while they are written, but not as they are left",
        worlds: BOTH,
    },
    Plant {
        name: "snapshot-overtakes-a-flush",
        what: "a snapshot's old segments are dropped while a flush into them is under way, which makes some of them anew",
        incident: "our own simulator, at seeds 2127, 3956 and 6711; Apache Kafka, KAFKA-15391 and KAFKA-15572, 2023: a flush beside the removal of its files, first forgiven, then made to wait",
        worlds: CORE,
    },
    Plant {
        name: "off-by-one-after-install",
        what: "after a snapshot the first entry behind it counts as written, and never is",
        incident: "dqlite's raft, canonical/raft #149: the start index behind a snapshot was off, 2020",
        worlds: BOTH,
    },
    Plant {
        name: "snapshot-installed-and-log-kept",
        what: "the log that a snapshot replaces stays, in memory and, where it contradicts the snapshot, in the journal",
        incident: "Ongaro 2014, 5.3: the follower discards its log; hashicorp/raft #545 cleared stale entries in 2023",
        worlds: BOTH,
    },
    // Votes and terms
    Plant {
        name: "vote-not-persisted",
        what: "the hard state goes to disk without the vote",
        incident: "Ongaro 2014, 3.8: a server that forgets its vote may give two in a term",
        worlds: BOTH,
    },
    Plant {
        name: "term-and-vote-in-two-writes",
        what: "a new term is written first, the vote in it with a later write",
        incident: "hashicorp/raft keeps term, voted term and candidate under keys of their own, written one by one",
        worlds: BOTH,
    },
    Plant {
        name: "vote-before-sync",
        what: "a vote is sent while it is on its way to the disk",
        incident: "Ongaro 2014, 3.8; the order that etcd's raft asks of each Ready",
        worlds: BOTH,
    },
    Plant {
        name: "append-response-before-sync",
        what: "entries are acknowledged to the leader before they are synced",
        incident: "NATS 2.12.1 under Jepsen, 2025, nats-server #7564: acknowledged writes were synced minutes later",
        worlds: BOTH,
    },
    Plant {
        name: "message-before-vote-synced",
        what: "a candidate asks for votes before its own is synced: after a crash it can vote for another in that term",
        incident: "raft-rs, asynchronous Ready, 2020: what is not a leader's must wait for the disk",
        worlds: BOTH,
    },
    Plant {
        name: "vote-without-up-to-date-check",
        what: "votes are given to whoever asks first, however short its log",
        incident: "Ongaro 2014, 3.6.1; Kafka's unclean leader election, off by default since KIP-106",
        worlds: BOTH,
    },
    Plant {
        name: "timer-reset-by-refused-vote",
        what: "asking for a vote resets the election timer even where it is refused: a hopeless candidate keeps a good one down",
        incident: "Gjengset, Students' Guide to Raft, 2016: livelocks",
        worlds: BOTH,
    },
    Plant {
        name: "no-pre-vote",
        what: "a node that was cut off raises its term and brings down a leader that all others hear",
        incident: "Ongaro 2014, 9.6; Cloudflare's outage of November 2020",
        worlds: BOTH,
    },
    Plant {
        name: "no-check-quorum",
        what: "a leader that hears nobody leads on: those who still hear it elect no other",
        incident: "Howard and Abraham, 2020, on Cloudflare's outage: Raft without it is not live under partial partitions",
        worlds: BOTH,
    },
    // The log and its commit
    Plant {
        name: "prior-term-committed-by-counting",
        what: "a leader commits entries of earlier terms because a majority holds them",
        incident: "Ongaro and Ousterhout 2014, 5.4.2, figure 8",
        worlds: BOTH,
    },
    Plant {
        name: "uncommitted-records-visible",
        what: "a leader applies, acknowledges and serves what its own disk alone holds",
        incident: "MongoDB under Jepsen, 2015: dirty reads of writes that were rolled back",
        worlds: BOTH,
    },
    Plant {
        name: "overwritten-suffix-kept-in-cache",
        what: "entries that a new leader overwrites stay in the cache that Raft reads from",
        incident: "the rule that the entry caches of TiKV and CockroachDB keep: an append cuts off what it replaces",
        worlds: BOTH,
    },
    Plant {
        name: "truncation-into-the-committed",
        what: "an append cuts off all behind its entries, so that a late one takes acknowledged entries with it",
        incident: "Gjengset, Students' Guide to Raft, 2016: truncating where nothing conflicts takes back promises",
        worlds: BOTH,
    },
    Plant {
        name: "commit-beyond-last-index",
        what: "heartbeats tell the leader's commit whatever their receiver holds, and it believes them",
        incident: "etcd, tocommit out of range: #3519 of 2015, #15699 of 2023 and others",
        worlds: BOTH,
    },
    Plant {
        name: "commit-beyond-the-matched",
        what: "a follower takes the leader's commit for its own log as far as that goes, matched or not",
        incident: "Gjengset, Students' Guide to Raft, 2016: the minimum is with the last new entry, not with the last one",
        worlds: BOTH,
    },
    Plant {
        name: "commit-index-regressing",
        what: "after a restart the commit lies below what was applied",
        incident: "etcd and raft-rs, applied out of range at start, where a snapshot ran ahead of the hard state",
        worlds: BOTH,
    },
    Plant {
        name: "applied-index-ahead-of-data",
        what: "a base names an index whose entry its state does not hold: after a restart it is never applied",
        incident: "etcd 3.5.0 to 3.5.2, 2022, #13766 and its post mortem: the consistent index was saved ahead of the data",
        worlds: BOTH,
    },
    Plant {
        name: "applied-index-behind-data",
        what: "a base names an index below what its state holds: after a restart an entry is applied twice",
        incident: "etcd, 2020, #11651: with authentication on, entries were applied again after a restart",
        worlds: BOTH,
    },
    Plant {
        name: "group-asleep-with-unmatched-voter",
        what: "a leader sends its group to sleep while a voter lacks entries, and that voter sleeps too",
        incident: "CockroachDB's quiescence and TiKV's hibernating regions, which must not leave a lagging replica behind",
        worlds: BOTH,
    },
    Plant {
        name: "append-merged-behind-a-rejection",
        what: "entries are added to an empty append that a rejection has overtaken: it names an entry before them that is not",
        incident: "raft-rs 0.7 with `batch_append`: found by our own simulator, whole seed 401880",
        worlds: BOTH,
    },
    // Membership
    Plant {
        name: "change-before-term-commit",
        what: "a leader proposes a change of membership before it has committed anything in its term",
        incident: "Ongaro, raft-dev, July 2015: the bug in single-server changes",
        worlds: CORE,
    },
    Plant {
        name: "campaign-with-unapplied-change",
        what: "a replica campaigns while its log is not durable, and so with changes that are committed and not applied",
        incident: "etcd #7280 of 2017 and #12133 of 2020",
        worlds: BOTH,
    },
    Plant {
        name: "removal-left-out-of-base",
        what: "a base keeps the members that were removed: after a restart or a snapshot they are members again",
        incident: "etcd, zombie members: #13196 of 2021, #20967 of 2025",
        worlds: CORE,
    },
    Plant {
        name: "removed-replica-returning",
        what: "tombstones are not looked at: a group that was removed is hosted again, without a memory of its votes",
        incident: "the reason for the replica tombstones of CockroachDB and TiKV",
        worlds: WHOLE,
    },
    // Reads
    Plant {
        name: "read-index-before-term-commit",
        what: "a new leader answers reads at a commit that may be older than its predecessor's",
        incident: "Ongaro 2014, 6.4, step 1",
        worlds: BOTH,
    },
    Plant {
        name: "read-index-context-reused",
        what: "reads are asked for under contexts that were used before: an answer to an earlier one passes for the later one's",
        incident: "raft-rs knows reads by their context alone; seen here with a deposed leader",
        worlds: BOTH,
    },
    Plant {
        name: "deposed-leader-answers-locally",
        what: "who takes itself for the leader answers reads without asking a majority",
        incident: "etcd and Consul under Jepsen, 2014",
        worlds: BOTH,
    },
    Plant {
        name: "read-answered-before-applied",
        what: "a confirmed read is answered before this replica has applied as far",
        incident: "Ongaro 2014, 6.4, step 3",
        worlds: BOTH,
    },
    Plant {
        name: "tail-answered-from-own-view",
        what: "a linearizable tail is answered from what this node has applied",
        incident: "Consul's default reads under Jepsen, 2014",
        worlds: WHOLE,
    },
    // Answers
    Plant {
        name: "superseded-acknowledged",
        what: "whoever waits for an index is answered when it is applied, whichever term's entry that is",
        incident: "Gjengset, Students' Guide to Raft, 2016: the term must be compared too",
        worlds: BOTH,
    },
    Plant {
        name: "lost-leadership-told-as-refusal",
        what: "a command whose leader lost its leadership is answered as if it had not happened",
        incident: "CockroachDB, 2016: the reason for its AmbiguousResultError",
        worlds: BOTH,
    },
    Plant {
        name: "forwarded-append-acknowledged-by-deposed",
        what: "a command that another node passed on is acknowledged by a leader that lost its leadership meanwhile",
        incident: "Elasticsearch under Jepsen, 2014: writes acknowledged by a primary that was one no more",
        worlds: WHOLE,
    },
    Plant {
        name: "command-forwarded-twice",
        what: "a command passed on over a lane that broke is passed on again",
        incident: "jetcd under Jepsen, 2024: requests that may have happened were sent again",
        worlds: WHOLE,
    },
    // Sessions and other state
    Plant {
        name: "dedup-table-left-out-of-snapshot",
        what: "sessions are not part of the state that is saved and sent",
        incident: "Ongaro 2014, 6.3: sessions belong to the state machine; Redpanda under Jepsen, 2022: idempotent producers doubled records",
        worlds: BOTH,
    },
    Plant {
        name: "dedup-table-only-in-leaders-memory",
        what: "only the leader remembers which batches of a session it has appended",
        incident: "Redpanda under Jepsen, 2022: what a producer had sent was forgotten with the leader",
        worlds: BOTH,
    },
    Plant {
        name: "forgotten-session-taken-for-new",
        what: "a batch of a session that is not open is appended: a late retry doubles its records",
        incident: "Kafka, KIP-360, on UNKNOWN_PRODUCER_ID",
        worlds: BOTH,
    },
    Plant {
        name: "session-expiry-by-local-clock",
        what: "the state machine takes each node's own clock for the log's time",
        incident: "Ongaro 2014, 6.3: servers must agree on when a session expires",
        worlds: BOTH,
    },
    Plant {
        name: "log-time-follows-any-clock",
        what: "a leader stamps whatever its clock says, however far that is from the others' and from its own ticks",
        incident: "Kafka, KIP-937: timestamps from the future hold up retention",
        worlds: BOTH,
    },
    Plant {
        name: "sequence-gap-admitted",
        what: "a session appends a batch although one before it is missing",
        incident: "Kafka, KIP-98: the reason for OutOfOrderSequence",
        worlds: WHOLE,
    },
    Plant {
        name: "leader-report-goes-back",
        what: "the catalog takes a report of an older leader over that of a newer one",
        incident: "Kafka, KIP-320: stale leader epochs; Kubernetes #59848: watchers that go back in time",
        worlds: WHOLE,
    },
    Plant {
        name: "watch-skips-a-revision",
        what: "a watcher that is behind by several changes is not told of the first",
        incident: "etcd, #15220 of 2023: progress that ran ahead of events, found by its robustness tests",
        worlds: WHOLE,
    },
    // The node
    Plant {
        name: "sync-of-another-loop-taken-for-own",
        what: "a round that carries what several loops of a node submitted is reported to each of them with the highest number of all",
        incident: "ours to get wrong: numbers of several writers over one log",
        worlds: WHOLE,
    },
    Plant {
        name: "segments-dropped-before-base-moved",
        what: "files are trimmed by a log start that no durable base holds yet: after a crash they are missing",
        incident: "the order that Kafka's log-start-offset checkpoint has to keep (KIP-107)",
        worlds: WHOLE,
    },
    Plant {
        name: "trim-waits-for-appends",
        what: "what was trimmed stays on disk until enough is appended for a base to move: on a full disk for ever",
        incident: "ours, found on a full disk: a trim that was agreed on and made no room",
        worlds: CORE,
    },
    Plant {
        name: "hung-disk-leader-goes-on",
        what: "a leader whose sync hangs heartbeats on, and nobody takes its place",
        incident: "Huang et al., Gray Failure, HotOS 2017; CockroachDB's stalled disks that kept their leases",
        worlds: WHOLE,
    },
    Plant {
        name: "wiped-founder-votes-again",
        what: "a founder whose directory was wiped takes the genesis over and votes under its old number, with an empty log",
        incident: "Kafka, KIP-853: why each directory has an id of its own; etcd members that re-join over lost data",
        worlds: WHOLE,
    },
];
