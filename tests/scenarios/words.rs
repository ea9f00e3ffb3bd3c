//! Messages, roles and outcomes in the words of the scenarios. An entry is written index/term.

use balsa::group::effects::{Answer, Fetch};
use balsa::group::entry;
use balsa::group::replica::Role;
use balsa::group::sleep;
use balsa::ids::ReplicaId;
use balsa::segments::verdict::Verdict;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType,
};

/// A replica by its node; later generations are marked.
pub fn replica(id: u64) -> String {
    let id = ReplicaId(id);
    if id.generation() == 1 {
        id.node().to_string()
    } else {
        id.to_string()
    }
}

pub fn replicas(ids: &[u64]) -> String {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.into_iter().map(replica).collect::<Vec<_>>().join(" ")
}

pub fn role(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

pub fn conf(conf: &ConfState) -> String {
    let mut text = format!("voters {}", replicas(&conf.voters));
    let others =
        [("learners", &conf.learners), ("outgoing", &conf.voters_outgoing), ("then learners", &conf.learners_next)];
    for (name, ids) in others {
        if !ids.is_empty() {
            text += &format!(", {name} {}", replicas(ids));
        }
    }
    text
}

pub fn entry(entry: &Entry) -> String {
    format!("{}/{}{}", entry.index, entry.term, content(entry))
}

fn content(entry: &Entry) -> String {
    if entry.entry_type() != EntryType::EntryNormal {
        let change = <ConfChangeV2 as prost::Message>::decode(entry.data.clone()).expect("a change decodes");
        let steps: Vec<String> = change.changes.iter().map(step).collect();
        return if steps.is_empty() { "{leave joint}".to_owned() } else { format!("{{{}}}", steps.join(", ")) };
    }
    if entry.data.is_empty() {
        return String::new();
    }
    let commands = entry::decode(&entry.data).expect("a payload decodes").commands;
    let texts: Vec<_> = commands.iter().map(|command| String::from_utf8_lossy(&command.bytes).into_owned()).collect();
    format!("({})", texts.iter().map(|text| short(text)).collect::<Vec<_>>().join(" "))
}

/// Long commands are shown by their length.
pub fn short(text: &str) -> String {
    if text.len() > 48 {
        format!("{}..{} bytes", &text[..4], text.len())
    } else {
        text.to_owned()
    }
}

fn step(change: &ConfChangeSingle) -> String {
    let verb = match change.change_type() {
        ConfChangeType::AddNode => "vote",
        ConfChangeType::AddLearnerNode => "learn",
        ConfChangeType::RemoveNode => "remove",
    };
    format!("{verb} {}", replica(change.node_id))
}

pub fn message(message: &Message) -> String {
    let (from, to) = (replica(message.from), replica(message.to));
    let kind = message.msg_type();
    let term = if message.term == 0 { String::new() } else { format!(" t{}", message.term) };
    format!("{from}->{to}{term} {}", body(kind, message))
}

fn body(kind: MessageType, message: &Message) -> String {
    use MessageType as M;
    let Message { index, log_term, commit, reject, reject_hint, .. } = message;
    let granted = if *reject { "refused" } else { "granted" };
    let read = match () {
        () if sleep::asks_to_sleep(message) => ", sleep",
        () if message.context.is_empty() => "",
        () => ", read",
    };
    match kind {
        M::MsgRequestPreVote => format!("pre-vote? log ends {index}/{log_term}"),
        M::MsgRequestVote if message.context.is_empty() => format!("vote? log ends {index}/{log_term}"),
        M::MsgRequestVote => format!("vote? log ends {index}/{log_term}, transfer"),
        M::MsgRequestPreVoteResponse => format!("pre-vote {granted}"),
        M::MsgRequestVoteResponse => format!("vote {granted}"),
        M::MsgAppend => {
            let entries: Vec<String> = message.entries.iter().map(entry).collect();
            format!("append after {index}/{log_term} [{}] commit {commit}", entries.join(" "))
        }
        M::MsgAppendResponse if *reject => format!("append refused after {index}, try {reject_hint}/{log_term}"),
        M::MsgAppendResponse => format!("appended through {index}"),
        M::MsgHeartbeat => format!("heartbeat commit {commit}{read}"),
        M::MsgHeartbeatResponse => format!("heartbeat seen{read}"),
        M::MsgSnapshot => {
            format!("snapshot {}/{}", snapshot_index(message), message.get_snapshot().get_metadata().term)
        }
        M::MsgTimeoutNow => "campaign now".to_owned(),
        M::MsgReadIndex => "read?".to_owned(),
        M::MsgReadIndexResp => format!("read at {index}"),
        other => format!("{other:?}"),
    }
}

fn snapshot_index(message: &Message) -> u64 {
    message.get_snapshot().get_metadata().index
}

pub fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Applied { index, term, verdict, .. } => match verdict {
            Verdict::Appended { offset, .. } => format!("appended at {offset} as {index}/{term}"),
            Verdict::Done { .. } => format!("done as {index}/{term}"),
            Verdict::Refused(refusal) => format!("refused as {index}/{term}: {refusal:?}"),
            other => format!("{other:?}"),
        },
        Answer::ReadAt { index, tail } => format!("read at index {index}, tail {tail}"),
        Answer::Failed(error) => {
            let happened = if error.may_have_happened() { "may have happened" } else { "did not happen" };
            format!("{happened}: {}", plain(error))
        }
    }
}

/// The text of an error, with replicas of the first generation named by their node alone.
pub fn plain(error: &impl std::fmt::Display) -> String {
    (1..=9).fold(error.to_string(), |text, node| text.replace(&format!("{node}.1"), &node.to_string()))
}

pub fn fetch(fetch: &Fetch) -> String {
    match fetch {
        Fetch::Entries { lo, hi, .. } => format!("wants entries [{lo}, {hi}) from its segments"),
        Fetch::Base => "wants the oldest base from its segments".to_owned(),
    }
}
