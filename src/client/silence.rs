//! A leader that does not answer an append that can't be repeated: is it slow, or does another lead by now?
//!
//! A process that hangs keeps its connections; only keep-alives would find out, seconds later. The other nodes have elected another
//! leader long before. So after a silence they are asked who leads; if it is another one, of a later term, the answer may still
//! come but nobody should wait for it: the append *may have happened*, and what comes next goes to the new leader.
//!
//! Of all appends that wait for one topic's leaders, one asks; the others look at what it learned. A thousand that wait for a leader
//! that is merely slow would otherwise be a load of their own.

use super::catalog::topics;
use super::wire;
use super::Client;
use std::time::Duration;

/// Others are asked so often while the silence lasts.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// So long they have to answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

impl Client {
    /// Completes once another server says that not `leader` leads the partition, but one of a later term.
    pub(super) async fn superseded(&self, leader: &str, topic: &str, partition: u32) {
        let connections = &self.shared.connections;
        tokio::time::sleep(self.shared.options.attempt_timeout).await;
        loop {
            if connections.takes_turn_to_ask(topic, ASK_EVERY) {
                self.ask_all_but(leader, topic).await;
            }
            if connections.leader_of(topic, partition).is_some_and(|now| now != leader) {
                return;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Asks the servers but `leader` who leads the topic's partitions, and remembers what they say. One that does not answer may be
    /// asked other things all the same.
    async fn ask_all_but(&self, leader: &str, topic: &str) {
        let others = self.shared.connections.servers().into_iter().filter(|server| server != leader);
        for server in others {
            let call = |channel| async move {
                topics(channel).describe_topic(wire::DescribeTopicRequest { name: topic.to_owned() }).await
            };
            if let Ok(answer) = self.attempt(&server, ASK_TIMEOUT, &call, std::future::pending()).await {
                let _ = self.remembered(answer); // routes move forward in term alone
            }
        }
    }
}
