//! Appending: one batch, answered once a majority holds it durably and it is applied.

use super::errors::ApiError;
use super::target::Target;
use super::Doors;
use crate::batch;
use crate::client::wire;
use crate::group::driver::Committed;
use crate::ids::{GroupId, Offset};
use crate::limits::NAME_BYTES_MAX;
use crate::partition::{AppendCommand, Fence, PartitionCommand};
use crate::segments::verdict::Verdict;
use bytes::Bytes;

/// What of a receipt the verdict tells.
pub(super) struct Accepted {
    pub offset: Offset,
    pub count: u32,
    pub repeated: bool,
}

/// Takes an acceptance out of a verdict.
pub(super) fn accepted(what: &str, verdict: Verdict) -> Result<Accepted, ApiError> {
    match verdict {
        Verdict::Appended { offset, count } => Ok(Accepted { offset, count, repeated: false }),
        Verdict::Repeated { offset, count } => Ok(Accepted { offset, count, repeated: true }),
        Verdict::Done { value, .. } => Ok(Accepted { offset: Offset(value), count: 0, repeated: false }),
        Verdict::Refused(refusal) => Err(ApiError::Refused { what: what.to_owned(), refusal }),
    }
}

/// Checks a fence that came over the wire.
pub(super) fn fence(fence: wire::Fence) -> Result<Fence, ApiError> {
    check_name("a fence's name", &fence.name)?;
    Ok(Fence { name: fence.name.into(), token: fence.token })
}

/// Checks the name of a fence or a session.
pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::Invalid(format!("{what} is empty")));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(ApiError::TooLarge { what, actual: name.len() as u64, limit: NAME_BYTES_MAX as u64 });
    }
    Ok(())
}

/// Checks an append against its topic and turns it into a command. The only full check a batch gets on the server.
pub(super) fn command(target: &Target, append: wire::AppendRequest) -> Result<Bytes, ApiError> {
    batch::validate(&append.batch, target.topic.batch_bytes_max as usize)?;
    let command = AppendCommand {
        expected_offset: append.expected_offset.map(Offset),
        fence: append.fence.map(fence).transpose()?,
        batch: append.batch,
    };
    Ok(PartitionCommand::Append(command).encode())
}

impl Doors {
    pub(super) async fn append_one(&self, append: wire::AppendRequest) -> Result<wire::Receipt, ApiErrorAt> {
        let _held = self.hold(append.batch.len())?;
        let target = self.target(&append.topic, append.partition).await?;
        let command = command(&target, append).map_err(|error| ApiErrorAt::at(target.group(), error))?;
        self.commit(&target, command).await.map_err(|error| ApiErrorAt::at(target.group(), error))
    }

    pub(super) async fn raise_fence_at(
        &self,
        target: &Target,
        raised: Option<wire::Fence>,
    ) -> Result<wire::Receipt, ApiError> {
        let raised = raised.ok_or_else(|| ApiError::Invalid("the fence is missing".into()))?;
        let command = PartitionCommand::RaiseFence(fence(raised)?).encode();
        self.commit(target, command).await
    }

    pub(super) async fn trim_at(&self, target: &Target, offset: u64) -> Result<wire::TrimResponse, ApiError> {
        let command = PartitionCommand::TrimTo { offset: Offset(offset) }.encode();
        let group = target.group();
        let proposed = self.router.propose(group, command).await;
        let committed = proposed.map_err(|error| self.route_failed(target.to_string(), group, error))?;
        let start = accepted(&target.to_string(), committed.verdict)?.offset.0;
        Ok(wire::TrimResponse { start })
    }

    async fn commit(&self, target: &Target, command: Bytes) -> Result<wire::Receipt, ApiError> {
        let group = target.group();
        let committed = self
            .router
            .propose(group, command)
            .await
            .map_err(|error| self.route_failed(target.to_string(), group, error))?;
        self.receipt(target, &committed)
    }

    fn receipt(&self, target: &Target, committed: &Committed) -> Result<wire::Receipt, ApiError> {
        let accepted = accepted(&target.to_string(), committed.verdict)?;
        Ok(wire::Receipt {
            topic: target.topic.name.to_string(),
            partition: target.partition.number,
            offset: accepted.offset.0,
            count: accepted.count,
            term: committed.term.0,
            hash: Bytes::copy_from_slice(&committed.chain.0),
            timestamp_ms: committed.timestamp.0,
            leader: self.leader(target.group()),
            repeated_append: accepted.repeated,
        })
    }
}

/// An error, and the group whose leader the client should be told of.
pub(super) struct ApiErrorAt {
    pub group: Option<GroupId>,
    pub error: ApiError,
}

impl ApiErrorAt {
    pub fn at(group: GroupId, error: ApiError) -> ApiErrorAt {
        ApiErrorAt { group: Some(group), error }
    }
}

impl From<ApiError> for ApiErrorAt {
    fn from(error: ApiError) -> ApiErrorAt {
        ApiErrorAt { group: None, error }
    }
}
