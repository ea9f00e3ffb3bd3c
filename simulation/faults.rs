//! The vocabulary of faults that both worlds share: classes that can be switched on and off, and events that trigger some.

use std::collections::BTreeSet;
use std::fmt;

macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $type { $($(#[$variant_doc])* $variant,)* }

        impl $type {
            pub const ALL: &'static [$type] = &[$($type::$variant,)*];

            pub fn name(self) -> &'static str {
                match self { $($type::$variant => $name,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named! {
    /// A class of faults. A seed switches whole classes off (swarm testing).
    FaultClass {
        // Network.
        /// Single messages are lost (in the whole world: packets, so that links break and connect again).
        Loss = "loss",
        /// Messages take long, at random.
        Delay = "delay",
        /// Messages overtake each other. Core world only: a link keeps order.
        Reorder = "reorder",
        /// Messages arrive twice. Core world only.
        Double = "double",
        /// One direction between two nodes is cut.
        OneWayCut = "one-way-cut",
        /// Some pairs of nodes are cut, the others are not: nobody is alone.
        PartialPartition = "partial-partition",
        /// A link goes up and down quickly.
        Flap = "flap",
        /// A link is slow for a while.
        SlowLink = "slow-link",
        /// The nodes fall into groups: 2/1, 3/2, 2/2/1.
        SplitBrain = "split-brain",
        /// A leader is cut off from its followers, not from clients.
        LeaderFromFollowers = "leader-from-followers",
        /// A node is cut off from clients, not from its peers.
        NodeFromClients = "node-from-clients",
        // Nodes.
        /// A process ends; what it wrote and did not sync survives.
        Kill = "kill",
        /// The power of one node fails: unsynced bytes are lost, kept, torn and reordered.
        PowerLoss = "power-loss",
        /// The power of all fails at once.
        AllAtOnce = "all-at-once",
        /// A node stands still for a while.
        Pause = "pause",
        /// A node comes back with an empty directory; it must be refused, and replaced.
        Wipe = "wipe",
        /// Replicas are added, removed and replaced.
        Membership = "membership",
        /// Leadership is handed over.
        Transfer = "transfer",
        /// A clock jumps.
        ClockStep = "clock-step",
        /// A clock runs fast or slow.
        ClockDrift = "clock-drift",
        // Disks.
        /// A write fails.
        WriteFails = "write-fails",
        /// A sync fails.
        SyncFails = "sync-fails",
        /// A bit rots in a file of a node that is down.
        RotBit = "rot-bit",
        /// A block is zeroed in a file of a node that is down.
        RotBlock = "rot-block",
        /// A file of a node that is down is gone, or an old one is back.
        RotFile = "rot-file",
        /// There is no room left.
        DiskFull = "disk-full",
        /// A disk is slow for a while.
        DiskSlow = "disk-slow",
        /// A disk answers no more.
        DiskHung = "disk-hung",
    }
}

impl FaultClass {
    pub fn from_name(name: &str) -> Option<FaultClass> {
        FaultClass::ALL.iter().copied().find(|one| one.name() == name)
    }
}

named! {
    /// An event that a crash, or another fault, is aimed at.
    Trigger {
        /// A vote was granted: the write that carries it is on its way, or just synced.
        AfterVote = "after-vote",
        /// A round was written and is not synced.
        BetweenWriteAndSync = "between-write-and-sync",
        /// A round was synced, and nobody was answered yet.
        AfterSyncBeforeAnswer = "after-sync-before-answer",
        /// A segment is being sealed.
        SegmentSeal = "segment-seal",
        /// A journal file is being recycled.
        FileRecycling = "file-recycling",
        /// A file takes its final name: a snapshot's, a base's, an identity's.
        Rename = "rename",
        /// A leader appends the first entry of its term.
        FirstEntryOfTerm = "first-entry-of-term",
        /// Leadership is being handed over.
        MidTransfer = "mid-transfer",
        /// A change of configuration is appended and not applied.
        ConfigurationAppended = "configuration-appended",
        /// A snapshot is being installed.
        SnapshotInstall = "snapshot-install",
        /// A base was recorded.
        BaseMoved = "base-moved",
        /// A group was created.
        GroupCreated = "group-created",
        /// An idle journal has recorded through where it is synced.
        JournalIdle = "journal-idle",
        /// A leader has entered a joint configuration, and told it; it has yet to say that it is left.
        JointEntered = "joint-entered",
        /// A leader was elected in a joint configuration that another one entered.
        JointInherited = "joint-inherited",
    }
}

/// Classes that are switched on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FaultSet(pub BTreeSet<FaultClass>);

impl FaultSet {
    pub fn all() -> FaultSet {
        FaultSet(FaultClass::ALL.iter().copied().collect())
    }

    pub fn has(&self, class: FaultClass) -> bool {
        self.0.contains(&class)
    }
}

impl fmt::Display for FaultSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|class| class.name()).collect();
        f.write_str(&names.join(","))
    }
}
