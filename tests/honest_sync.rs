//! An acknowledgement never precedes the sync, seen from outside: three real nodes are traced, every byte that they wrote to their
//! journals and sockets is taken apart, and nothing that promises durability may leave before the promised bytes are synced.
//!
//! What is held against what: rounds and their frames as they were written to the journal, the `fdatasync` calls on it, Raft's
//! messages on the links between the nodes, and the receipts that clients were sent. Where processes can't be traced the test says
//! so and passes.

#[cfg(not(madsim))]
mod support;

#[cfg(not(madsim))]
mod tests {
    use super::support::trace::{self, Call, Moment, Sent};
    use super::support::{wait_for, Cluster};
    use balsa::batch::{BatchBuilder, RecordRef};
    use balsa::client::wire::{self, log_client::LogClient};
    use balsa::client::NewTopic;
    use balsa::ids::TimestampMs;
    use balsa::journal::format::{FrameKind, FRAME_HEADER_LEN, ROUNDS_START, ROUND_HEADER_LEN};
    use balsa::peers::wire::{link_frame::Frame, LinkFrame};
    use bytes::Bytes;
    use prost::Message as _;
    use raft::eraftpb::{Message, MessageType};
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use tonic::transport::Channel;

    const TOPIC: &str = "honest";
    const PARTITIONS: u32 = 4;
    /// One at a time, so that each has rounds of its own.
    const ALONE: u64 = 80;
    /// One at a time, through a node that does not lead.
    const PASSED_ON: u64 = 40;
    /// As many at a time as it says, so that rounds are shared.
    const TOGETHER: u64 = 800;
    const IN_FLIGHT: u64 = 64;
    /// Each record's text begins with this and its number in `TAG_DIGITS` digits.
    const TAG: &str = "honest-record-";
    const TAG_DIGITS: usize = 8;
    /// A group's log begins behind this index.
    const FOUNDING_INDEX: u64 = 1;
    const FOUNDING_TERM: u64 = 1;

    /// Which record a client was promised at which place.
    type Promised = BTreeMap<(u32, u64), u64>;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_that_promises_durability_leaves_before_its_sync() {
        if !trace::can_trace("the test of honest syncs") {
            return;
        }
        let mut cluster = Cluster::laid_out("honest", 3);
        let traces: Vec<_> = (1..=3).map(|id| cluster.scratch.0.join(format!("trace{id}"))).collect();
        for (node, file) in cluster.nodes.iter_mut().zip(&traces) {
            node.wrapped_in = trace::tracing_writes_to(file);
            node.start();
        }
        cluster.wait_until_up().await;
        let promised = append_all(&cluster).await;
        for (node, file) in cluster.nodes.iter_mut().zip(&traces) {
            assert!(node.stop().success(), "node {} stops cleanly", node.id);
            wait_for("the trace's end", || {
                let text = fs::read(file).ok()?;
                text[text.len().saturating_sub(200)..].windows(6).any(|part| part == b"exited").then_some(())
            });
        }
        let records = promised.len() as u64;
        assert_eq!(records, ALONE + PASSED_ON + TOGETHER);

        let nodes: Vec<Traced> =
            cluster.nodes.iter().zip(&traces).map(|(node, file)| Traced::read(node, file)).collect();
        let seen: Vec<Seen> = nodes.iter().map(|node| node.replay(&cluster)).collect();
        for (node, seen) in nodes.iter().zip(&seen) {
            println!("node {}: {seen}", node.id);
            // Nothing of this passes for want of something to look at.
            assert!(seen.rounds < records / 2, "rounds are shared");
            assert_eq!(seen.syncs_without_round, 0, "no sync of a file in use is for nothing");
            assert!(seen.of_many_groups > 0, "one sync served several groups");
            assert_eq!(seen.tags.len() as u64, records, "each record was found in the journal");
        }
        // Each record that came alone had a round of its own on two nodes at least, and one follower's answer.
        let rounds: u64 = seen.iter().map(|seen| seen.rounds).sum();
        assert!(rounds >= 2 * (ALONE + PASSED_ON), "{rounds} rounds");
        let responses: u64 = seen.iter().map(|seen| seen.append_responses).sum();
        assert!(responses >= ALONE + PASSED_ON, "{responses} append responses");
        let votes: u64 = seen.iter().map(|seen| seen.votes_granted).sum();
        assert!(votes > u64::from(PARTITIONS), "{votes} votes: each group, the catalog's too, elected a leader");
        receipts_follow_a_majority(&nodes, &seen, &promised);
    }

    /// Appends all records, and gives what was promised.
    async fn append_all(cluster: &Cluster) -> Promised {
        let new = NewTopic { partitions: Some(PARTITIONS), ..NewTopic::default() };
        cluster.client().create_topic(TOPIC, &new).await.expect("the topic is created");
        let mut doors = Vec::new();
        for node in &cluster.nodes {
            doors.push(LogClient::connect(format!("http://{}", node.client)).await.expect("the node answers"));
        }
        let mut leaders = Vec::new();
        for partition in 0..PARTITIONS {
            leaders.push(cluster.leader_of(TOPIC, partition).await);
        }
        let mut promised = Promised::new();
        let mut keep = |number: u64, receipt: wire::Receipt| {
            assert_eq!(promised.insert((receipt.partition, receipt.offset), number), None);
        };
        let partition_of = |number: u64| (number % u64::from(PARTITIONS)) as u32;
        for number in 0..ALONE + PASSED_ON {
            let partition = partition_of(number);
            let leader = leaders[partition as usize];
            let door = if number < ALONE { leader } else { (leader + 1 + number as usize / 4 % 2) % 3 };
            keep(number, append(doors[door].clone(), partition, number).await);
        }
        let mut under_way = tokio::task::JoinSet::new();
        for lane in 0..IN_FLIGHT {
            let numbers =
                (ALONE + PASSED_ON..ALONE + PASSED_ON + TOGETHER).filter(move |number| number % IN_FLIGHT == lane);
            let (doors, leaders) = (doors.clone(), leaders.clone());
            under_way.spawn(async move {
                let mut receipts = Vec::new();
                for number in numbers {
                    let partition = partition_of(number);
                    let door = doors[leaders[partition as usize]].clone();
                    receipts.push((number, append(door, partition, number).await));
                }
                receipts
            });
        }
        while let Some(receipts) = under_way.join_next().await {
            receipts.expect("the lane ends").into_iter().for_each(|(number, receipt)| keep(number, receipt));
        }
        promised
    }

    async fn append(mut door: LogClient<Channel>, partition: u32, number: u64) -> wire::Receipt {
        let text = format!("{TAG}{number:0TAG_DIGITS$}");
        let mut batch = BatchBuilder::new();
        let record = RecordRef { key: None, value: Some(text.as_bytes()), headers: &[], timestamp: TimestampMs(1) };
        batch.push(record).expect("the record fits");
        let batch = batch.build();
        let request = wire::AppendRequest { topic: TOPIC.into(), partition, batch, ..Default::default() };
        door.append(request).await.expect("the append is acknowledged").into_inner()
    }

    /// One node's trace, taken apart.
    struct Traced {
        id: u32,
        client_port: u16,
        calls: Vec<Call>,
        sent: Vec<Sent>,
    }

    /// What was found in it.
    #[derive(Default)]
    struct Seen {
        rounds: u64,
        syncs_without_round: u64,
        of_many_groups: u64,
        append_responses: u64,
        votes_granted: u64,
        votes_asked: u64,
        other_messages: u64,
        /// When the round that holds a record was synced.
        tags: BTreeMap<u64, Moment>,
        receipts: Vec<(wire::Receipt, Moment)>,
    }

    impl std::fmt::Display for Seen {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(
                f,
                "{} rounds ({} of several groups), each with its sync; {} append responses, {} votes, {} requests for votes and \
                 {} other messages, {} receipts",
                self.rounds,
                self.of_many_groups,
                self.append_responses,
                self.votes_granted,
                self.votes_asked,
                self.other_messages,
                self.receipts.len()
            )
        }
    }

    /// What happened, in the order in which it did.
    enum Step<'a> {
        Written(&'a Call, Round),
        Synced(&'a Call),
        Sent(&'a Sent),
    }

    impl Traced {
        fn read(node: &super::support::Node, file: &std::path::Path) -> Traced {
            let calls = trace::read(file);
            let sent = trace::messages_sent(&calls);
            Traced { id: node.id, client_port: node.client.port(), calls, sent }
        }

        /// Goes through all that the node did, and panics at the first thing that left too early.
        fn replay(&self, cluster: &Cluster) -> Seen {
            let peer_ports: BTreeSet<u16> = cluster.nodes.iter().map(|node| node.peer.port()).collect();
            let mut steps: Vec<(Moment, Step<'_>)> = Vec::new();
            for call in self.calls.iter().filter(|call| call.target.contains("/journal/journal-")) {
                if call.is_sync() {
                    steps.push((call.returned, Step::Synced(call)));
                } else if let Some(round) = Round::in_write(call) {
                    steps.push((call.entered, Step::Written(call, round)));
                }
            }
            steps.extend(self.sent.iter().map(|sent| (sent.at, Step::Sent(sent))));
            steps.sort_by_key(|(moment, _)| *moment);

            let (mut seen, mut journal) = (Seen::default(), Journal::default());
            for (moment, step) in steps {
                let line = moment.line + 1;
                match step {
                    Step::Written(call, round) => {
                        seen.rounds += 1;
                        seen.of_many_groups += u64::from(round.groups().len() > 1);
                        let before = journal.unsynced.replace((call.clone(), round));
                        assert!(
                            before.is_none(),
                            "node {}, line {line}: a round follows one that was not synced",
                            self.id
                        );
                    }
                    Step::Synced(call) => journal.synced(self.id, call, &mut seen),
                    Step::Sent(sent) if peer_ports.contains(&sent.remote_port) => {
                        self.check_link(sent, &journal, &mut seen);
                    }
                    Step::Sent(sent) if sent.local_port == self.client_port => {
                        let receipt = wire::Receipt::decode(sent.message.as_slice()).ok();
                        let receipt = receipt.filter(|receipt| receipt.topic == TOPIC && receipt.hash.len() == 32);
                        seen.receipts.extend(receipt.map(|receipt| (receipt, sent.at)));
                    }
                    Step::Sent(_) => {}
                }
            }
            assert!(journal.unsynced.is_none(), "node {}: the last round was never synced", self.id);
            // A clean stop leaves it on record that all is synced.
            let marks = self.calls.iter().filter(|call| call.target.ends_with("/journal/marks"));
            let marked = marks.filter(|call| call.is_sync() && call.result == 0).map(|call| call.returned).max();
            assert!(marked > journal.last_sync, "node {}: no mark follows the last round", self.id);
            seen
        }

        /// Raft's messages on the link to another node.
        fn check_link(&self, sent: &Sent, journal: &Journal, seen: &mut Seen) {
            // Streams of commands that are passed on, which promise nothing, are of another shape: they can't be read so, or leave
            // the place of the message empty.
            let Ok(LinkFrame { frame: Some(Frame::Batch(batch)) }) = LinkFrame::decode(sent.message.as_slice()) else {
                return;
            };
            for message in batch.messages {
                let Some(raft) = message.message else { return };
                let group = journal.groups.get(&message.group);
                let none = Group::default();
                let (group, number) = (group.unwrap_or(&none), message.group);
                let message = raft;
                let (node, line) = (self.id, sent.at.line + 1);
                let context = || format!("node {node}, line {line} of its trace, group {number}: {message:?}");
                match kind_of(&message) {
                    Kind::AppendResponse => {
                        seen.append_responses += 1;
                        let durable = group.entries.range(..=message.index).count() as u64;
                        assert!(
                            durable + FOUNDING_INDEX >= message.index,
                            "left before its entries were synced: {}",
                            context()
                        );
                    }
                    Kind::Vote => {
                        seen.votes_granted += 1;
                        assert!(
                            group.votes.contains(&(message.term, message.to)),
                            "left before the vote was synced: {}",
                            context()
                        );
                    }
                    Kind::AsksForVote => {
                        seen.votes_asked += 1;
                        assert!(
                            group.votes.contains(&(message.term, message.from)),
                            "left before its own vote was synced: {}",
                            context()
                        );
                    }
                    Kind::Other => seen.other_messages += 1,
                    Kind::PreVote => continue, // tells of a term that nobody is in
                }
                let term = group.votes.iter().map(|(term, _)| *term).max().unwrap_or(0).max(FOUNDING_TERM);
                assert!(message.term <= term, "left before its term was synced: {}", context());
            }
        }
    }

    /// What a message promises.
    enum Kind {
        AppendResponse,
        Vote,
        AsksForVote,
        PreVote,
        Other,
    }

    fn kind_of(message: &Message) -> Kind {
        match MessageType::try_from(message.msg_type).expect("a kind of message") {
            MessageType::MsgAppendResponse if !message.reject => Kind::AppendResponse,
            MessageType::MsgRequestVoteResponse if !message.reject => Kind::Vote,
            MessageType::MsgRequestVote => Kind::AsksForVote,
            MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse => Kind::PreVote,
            _ => Kind::Other,
        }
    }

    /// A round as it was written to the journal.
    struct Round {
        frames: Vec<FrameSeen>,
        tags: Vec<u64>,
    }

    struct FrameSeen {
        kind: u8,
        group: u64,
        index: u64,
        term: u64,
        extra: u64,
    }

    impl Round {
        /// The round in a write to a journal file; `None` for headers and zeros.
        fn in_write(call: &Call) -> Option<Round> {
            // The first round of a new journal goes out with the file's header.
            let header_len = ROUNDS_START.saturating_sub(call.position) as usize;
            let bytes = call.bytes.get(header_len..).filter(|bytes| bytes.starts_with(b"ROND"))?;
            assert!(call.whole && call.result as usize == call.bytes.len(), "a round was not written at once");
            let (body_len, frames) = (number(bytes, 40, 4) as usize, number(bytes, 48, 4));
            let mut at = ROUND_HEADER_LEN;
            let mut seen = Vec::new();
            for _ in 0..frames {
                let payload_len = number(bytes, at + 8, 4) as usize;
                let field = |from: usize| number(bytes, at + from, 8);
                seen.push(FrameSeen {
                    kind: bytes[at + 4],
                    group: field(24),
                    index: field(32),
                    term: field(40),
                    extra: field(48),
                });
                at += FRAME_HEADER_LEN + payload_len;
            }
            assert_eq!(at, ROUND_HEADER_LEN + body_len, "the frames fill the round's body");
            let starts = bytes.windows(TAG.len()).enumerate().filter(|(_, part)| *part == TAG.as_bytes());
            let digits = starts.filter_map(|(at, _)| bytes.get(at + TAG.len()..at + TAG.len() + TAG_DIGITS));
            let tags = digits.filter_map(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).collect();
            Some(Round { frames: seen, tags })
        }

        fn groups(&self) -> BTreeSet<u64> {
            self.frames.iter().map(|frame| frame.group).collect()
        }
    }

    fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
        bytes[at..at + len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// What of one node's journal is synced.
    #[derive(Default)]
    struct Journal {
        unsynced: Option<(Call, Round)>,
        /// The file that rounds are written to.
        in_use: String,
        last_sync: Option<Moment>,
        groups: BTreeMap<u64, Group>,
    }

    #[derive(Default)]
    struct Group {
        entries: BTreeSet<u64>,
        /// Terms, and who was voted for in each.
        votes: BTreeSet<(u64, u64)>,
    }

    impl Journal {
        fn synced(&mut self, node: u32, call: &Call, seen: &mut Seen) {
            let Some((written, round)) = self.unsynced.take() else {
                seen.syncs_without_round += u64::from(self.in_use == call.target);
                return;
            };
            if written.target != call.target {
                self.unsynced = Some((written, round)); // the next file is made ready meanwhile
                return;
            }
            assert!(written.returned < call.entered, "node {node}: the sync began before the write was done");
            assert_eq!((call.name.as_str(), call.result), ("fdatasync", 0));
            self.in_use.clone_from(&call.target);
            self.last_sync = Some(call.returned);
            for frame in &round.frames {
                let group = self.groups.entry(frame.group).or_default();
                if frame.kind == FrameKind::Entry as u8 {
                    group.entries.split_off(&frame.index);
                    group.entries.insert(frame.index);
                } else if frame.kind == FrameKind::HardState as u8 || frame.kind == FrameKind::RestatedHardState as u8 {
                    group.votes.insert((frame.term, frame.extra));
                }
            }
            for tag in round.tags {
                seen.tags.entry(tag).or_insert(call.returned);
            }
        }
    }

    /// No client was told of a record before two of the three nodes had synced it.
    fn receipts_follow_a_majority(nodes: &[Traced], seen: &[Seen], promised: &Promised) {
        let mut told = BTreeSet::new();
        for (node, own) in nodes.iter().zip(seen) {
            for (receipt, at) in &own.receipts {
                let place = (receipt.partition, receipt.offset);
                let number = promised.get(&place).unwrap_or_else(|| panic!("nobody waited for {receipt:?}"));
                let synced =
                    seen.iter().filter(|seen| seen.tags.get(number).is_some_and(|synced| synced.ns <= at.ns)).count();
                assert!(
                    synced >= 2,
                    "node {}, line {} of its trace: record {number} was acknowledged when {synced} of 3 nodes had synced it",
                    node.id,
                    at.line + 1
                );
                assert!(told.insert(place), "{receipt:?} was told twice");
            }
        }
        assert_eq!(told.len(), promised.len(), "each receipt was found on its way out");
    }

    /// A receipt for record 7 that left at 100 ns, of nodes that synced the record at these times.
    fn check_receipt(synced_ns: [Option<u64>; 3]) -> bool {
        let moment = |ns| Moment { line: 0, ns };
        let node = |id| Traced { id, client_port: 0, calls: Vec::new(), sent: Vec::new() };
        let mut seen =
            synced_ns.map(|ns| Seen { tags: ns.map(|ns| (7, moment(ns))).into_iter().collect(), ..Seen::default() });
        let receipt = wire::Receipt { topic: TOPIC.into(), partition: 1, offset: 9, ..Default::default() };
        seen[0].receipts.push((receipt, moment(100)));
        let promised = Promised::from([((1, 9), 7)]);
        let checked =
            std::panic::catch_unwind(|| receipts_follow_a_majority(&[node(1), node(2), node(3)], &seen, &promised));
        checked.is_ok()
    }

    #[test]
    fn a_receipt_before_a_majority_has_synced_does_not_pass() {
        assert!(check_receipt([Some(90), None, Some(99)]));
        assert!(check_receipt([None, Some(90), Some(99)]), "the node that answers need not be among them");
        assert!(!check_receipt([Some(90), None, Some(101)]));
        assert!(!check_receipt([Some(90), None, None]));
        assert!(!check_receipt([None, None, None]));
    }

    #[test]
    fn a_round_is_read_as_it_is_written() {
        let mut round = vec![0; 64];
        round[..4].copy_from_slice(b"ROND");
        let text = format!("{TAG}00000042");
        let mut frame = vec![0; 56];
        frame[4] = FrameKind::Entry as u8;
        frame[8] = text.len() as u8;
        (frame[24], frame[32], frame[40]) = (3, 9, 2);
        round[40] = (frame.len() + text.len()) as u8;
        round[48] = 1;
        let bytes = [round, frame, text.into_bytes()].concat();
        let moment = Moment { line: 0, ns: 0 };
        let call = Call {
            name: "pwrite64".into(),
            target: "/journal/journal-000001".into(),
            result: bytes.len() as i64,
            bytes: Bytes::from(bytes).to_vec(),
            whole: true,
            position: ROUNDS_START,
            entered: moment,
            returned: moment,
        };
        let round = Round::in_write(&call).expect("a round");
        assert_eq!((round.tags, round.frames[0].group, round.frames[0].index), (vec![42], 3, 9));
    }
}
