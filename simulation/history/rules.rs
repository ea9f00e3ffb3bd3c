//! The names of the rules that histories are held against, as `docs/simulation.md` explains them.

/// The recorded history makes sense: no payload number is used for two things. Broken by a fault of the simulator alone.
pub const WELL_FORMED: &str = "well-formed";
/// An acknowledged record is at its offset, in every read, for ever.
pub const ACKNOWLEDGED_STAYS: &str = "acknowledged-stays";
/// What was visible to a read or below a tail stays.
pub const VISIBLE_STAYS: &str = "visible-stays";
/// One payload per offset.
pub const ONE_PAYLOAD: &str = "one-payload";
/// A record is in the log at most once, however often its append was tried.
pub const AT_MOST_ONCE: &str = "at-most-once";
/// Offsets have no gaps.
pub const DENSE: &str = "dense";
/// A batch is there as a whole, in its order, or not at all.
pub const WHOLE_BATCHES: &str = "whole-batches";
/// What was acknowledged or seen before an append was sent has a lower offset; so nothing is seen before it was sent.
pub const REAL_TIME: &str = "real-time";
/// A linearizable tail is not behind an earlier acknowledgement, read or tail.
pub const TAIL_LINEARIZABLE: &str = "tail-linearizable";
/// What definitely failed never appears.
pub const FAILED_NEVER_APPEARS: &str = "failed-never-appears";
/// Nothing appears that nobody sent.
pub const NOTHING_INVENTED: &str = "nothing-invented";
/// An append that named the offset it expects is there, or nowhere.
pub const EXPECTED_OFFSET: &str = "expected-offset";
/// A session's batches lie in its order, without a gap.
pub const SESSION_ORDER: &str = "session-order";
/// Terms never fall from one offset to a higher one.
pub const TERMS_RISE: &str = "terms-rise";
/// When all is healed and at rest, all replicas end at the same offset.
pub const REPLICAS_AGREE: &str = "replicas-agree";
/// A watch never goes back.
pub const WATCH_FORWARD: &str = "watch-forward";
/// A watch skips no revision.
pub const WATCH_COMPLETE: &str = "watch-complete";
/// Watchers are told the same.
pub const WATCH_AGREES: &str = "watch-agrees";
/// A group's leaders in the catalog: terms only rise with the revision, and a term has one leader.
pub const LEADERS_RISE: &str = "leaders-rise";
/// Nothing is appended under a lower token than one the log has seen for that fence.
pub const FENCE_HOLDS: &str = "fence-holds";
/// The log's time never falls from one offset to a higher one, and a record has one.
pub const TIME_RISES: &str = "time-rises";
/// The offset for a time is that of the first record at or after it.
pub const BY_TIME: &str = "by-time";

/// All of them.
pub const ALL: &[&str] = &[
    WELL_FORMED,
    ACKNOWLEDGED_STAYS,
    VISIBLE_STAYS,
    ONE_PAYLOAD,
    AT_MOST_ONCE,
    DENSE,
    WHOLE_BATCHES,
    REAL_TIME,
    TAIL_LINEARIZABLE,
    FAILED_NEVER_APPEARS,
    NOTHING_INVENTED,
    EXPECTED_OFFSET,
    SESSION_ORDER,
    TERMS_RISE,
    REPLICAS_AGREE,
    WATCH_FORWARD,
    WATCH_COMPLETE,
    WATCH_AGREES,
    LEADERS_RISE,
    FENCE_HOLDS,
    TIME_RISES,
    BY_TIME,
];
