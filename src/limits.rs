//! Every bound of the system in one place, with the relations between them asserted at compile time.
//!
//! A size, count, depth or rate that comes from outside is held against one of these before memory is taken for it.

/// Largest batch a client may append, in bytes, unless its topic allows less.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Most records one batch may hold.
pub const BATCH_RECORDS_MAX: usize = 100_000;
/// Most headers one record may hold.
pub const RECORD_HEADERS_MAX: usize = 1_000;
/// Largest key of one record, in bytes.
pub const RECORD_KEY_BYTES_MAX: usize = 64 << 10;

/// Largest entry that coalescing builds from several proposals, in bytes. A single command may be larger than this, never
/// larger than `COMMAND_BYTES_MAX`.
pub const ENTRY_COALESCED_BYTES_MAX: usize = 256 << 10;
/// Most commands in one entry.
pub const ENTRY_COMMANDS_MAX: usize = 4_096;
/// Largest command that a state machine is given, in bytes: a batch and its envelope.
pub const COMMAND_BYTES_MAX: usize = BATCH_BYTES_MAX + (64 << 10);
/// Largest entry that the journal, the segments and the peers take, in bytes.
pub const ENTRY_BYTES_MAX: usize = COMMAND_BYTES_MAX + (64 << 10);

/// Bytes of entries a leader sends in one Raft message.
pub const RAFT_MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Append messages in flight to one follower of one group.
pub const RAFT_INFLIGHT_MESSAGES_MAX: usize = 256;
/// Bytes of one group's commands that wait for their turn, or are proposed and not yet committed; beyond this they are refused.
pub const RAFT_UNCOMMITTED_BYTES_MAX: u64 = 32 << 20;
/// Bytes of one group proposed and not yet committed beyond which its commands wait for their turn: whatever is appended to one
/// partition, its share of a journal's round, of a link's window and of a follower's disk stays bounded, and others get by.
pub const RAFT_PIPELINE_BYTES: u64 = 2 << 20;
/// Proposals waiting in one group for their commit; beyond this proposals are refused.
pub const PROPOSALS_WAITING_MAX: usize = 65_536;
/// Reads waiting in one group for their index; beyond this reads are refused.
pub const READS_WAITING_MAX: usize = 16_384;

/// Largest snapshot of a state machine, in bytes. State machines bound what they hold so that they stay below.
pub const SNAPSHOT_BYTES_MAX: usize = 16 << 20;
/// Largest state that a journal's base holds inline, in bytes; larger ones lie in a file of their own.
pub const BASE_INLINE_BYTES_MAX: usize = 16 << 10;

/// Largest message between nodes, in bytes.
pub const PEER_MESSAGE_BYTES_MAX: usize = 24 << 20;
/// Bytes queued towards one peer; beyond this messages are dropped (Raft sends again).
pub const PEER_OUTBOX_BYTES_MAX: usize = 64 << 20;
/// Bytes of one batch of messages that a link puts together while the last one is on its way.
pub const PEER_BATCH_BYTES_MAX: usize = 1 << 20;
/// Batches a link may have on the way before the other side says that it took some.
pub const LINK_WINDOW_BATCHES: usize = 64;
/// Bytes a link may have on the way before the other side says that it took some; one batch may exceed it.
pub const LINK_WINDOW_BYTES: usize = 4 << 20;
/// Bytes of commands passed on to one node and not yet answered; beyond this they are refused.
pub const FORWARD_HELD_BYTES_MAX: usize = APPENDS_HELD_BYTES_MAX / 8;
/// Largest request or answer at the client's door, in bytes.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Bytes of appends one node holds for clients at a time; beyond this they are refused.
pub const APPENDS_HELD_BYTES_MAX: usize = 256 << 20;
/// Appends in flight on one client stream; beyond this the server stops reading the stream.
pub const STREAM_APPENDS_INFLIGHT_MAX: usize = 4_096;
/// Bytes of batches in one answer of a read stream.
pub const READ_RESPONSE_BYTES_MAX: usize = 1 << 20;
/// Bytes of answers to reads one node holds for clients at a time; beyond this readers wait for room, a while.
pub const READS_HELD_BYTES_MAX: usize = 256 << 20;

/// Longest topic name, in bytes.
pub const TOPIC_NAME_BYTES_MAX: usize = 200;
/// Topics in a cluster.
pub const TOPICS_MAX: usize = 10_000;
/// Partitions in a cluster, over all topics.
pub const PARTITIONS_MAX: usize = 20_000;
/// Partitions one topic may have.
pub const TOPIC_PARTITIONS_MAX: usize = 10_000;
/// Replicas one partition may have.
pub const REPLICAS_MAX: usize = 9;
/// Nodes in a cluster.
pub const NODES_MAX: usize = 64;
/// Nodes that vote in group 0; the others learn its log.
pub const METADATA_VOTERS_MAX: usize = 5;
/// Longest host name or address, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 300;
/// Longest name of a software version that a node registers with, in bytes.
pub const VERSION_BYTES_MAX: usize = 64;
/// Catalog changes remembered for watchers that resume.
pub const CATALOG_EVENTS_MAX: usize = 16_384;

/// Producer sessions open in one partition.
pub const SESSIONS_MAX: usize = 1_024;
/// Batches that a producer session remembers, hence how many it may have in flight; a retry of an older one is answered
/// with a typed error.
pub const SESSION_WINDOW_BATCHES: usize = 256;
/// How long, in the log's time, a producer session without a name may stay unused before it is forgotten, in milliseconds. Only
/// the process that opened it can use it: an hour outlasts any retry that still has somebody waiting for it, and frees the places
/// of processes that died.
pub const SESSION_EXPIRY_MS: u64 = 60 * 60 * 1_000;
/// The same for a session with a name, which outlives the process: a week, so that work that broke off on a Friday can be taken up
/// again after the weekend.
pub const NAMED_SESSION_EXPIRY_MS: u64 = 7 * 24 * SESSION_EXPIRY_MS;
/// Fences one partition may hold; they are never evicted.
pub const FENCES_MAX: usize = 1_024;
/// Longest name of a fence or of a producer's session, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// Journal files are prepared in multiples of this, in bytes, once the node has grown out of its first one.
pub const JOURNAL_FILE_BYTES: u64 = 64 << 20;
/// Size of the first journal files, in bytes: small, so that a new node is ready at once.
pub const JOURNAL_FIRST_FILE_BYTES: u64 = 8 << 20;
/// Bytes of entries the journal may hold that are not yet safe in segments; beyond this appends wait.
pub const JOURNAL_RESTATED_BYTES_MAX: u64 = 48 << 20;
/// Unsynced bytes of one group's segments that are worth a sync and a new base.
pub const BASE_MOVE_BYTES: u64 = 4 << 20;

/// Size at which a segment is sealed, in bytes.
pub const SEGMENT_BYTES: u64 = 128 << 20;
/// Bytes of a segment between two entries of its sparse index.
pub const SEGMENT_INDEX_STRIDE_BYTES: u64 = 16 << 10;
/// Bytes of a group's newest frames kept in memory for readers and followers.
pub const TAIL_CACHE_BYTES: usize = 2 << 20;
/// The same for all groups of a node: with many of them each has less.
pub const TAIL_CACHES_BYTES: usize = 128 << 20;

const _: () = assert!(BATCH_BYTES_MAX < COMMAND_BYTES_MAX && COMMAND_BYTES_MAX < ENTRY_BYTES_MAX);
const _: () = assert!(ENTRY_COALESCED_BYTES_MAX <= ENTRY_BYTES_MAX);
// raft refuses every proposal of a group whose uncommitted bound lies below the size of one message.
const _: () = assert!(RAFT_UNCOMMITTED_BYTES_MAX > RAFT_MESSAGE_BYTES_MAX);
const _: () = assert!(RAFT_UNCOMMITTED_BYTES_MAX > RAFT_PIPELINE_BYTES + ENTRY_BYTES_MAX as u64);
const _: () = assert!(SNAPSHOT_BYTES_MAX < PEER_MESSAGE_BYTES_MAX);
const _: () = assert!(PEER_BATCH_BYTES_MAX + COMMAND_BYTES_MAX < PEER_MESSAGE_BYTES_MAX);
const _: () = assert!(COMMAND_BYTES_MAX < FORWARD_HELD_BYTES_MAX && LINK_WINDOW_BATCHES >= 4);
const _: () = assert!(RAFT_MESSAGE_BYTES_MAX as usize + ENTRY_BYTES_MAX < PEER_MESSAGE_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX + (1 << 20) <= REQUEST_BYTES_MAX);
const _: () = assert!(READ_RESPONSE_BYTES_MAX + BATCH_BYTES_MAX <= READS_HELD_BYTES_MAX / 64);
const _: () = assert!((ENTRY_BYTES_MAX as u64) * 2 < JOURNAL_FIRST_FILE_BYTES);
const _: () = assert!(JOURNAL_RESTATED_BYTES_MAX < JOURNAL_FILE_BYTES);
const _: () = assert!((ENTRY_BYTES_MAX as u64) < SEGMENT_BYTES);
