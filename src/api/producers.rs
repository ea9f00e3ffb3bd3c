//! Producer sessions: opened by an entry in the partition's own log, so that every replica knows them.

use super::append::{check_name, ApiErrorAt};
use super::errors::ApiError;
use super::target::Target;
use super::Doors;
use crate::client::wire;
use crate::group::driver::Committed;
use crate::ids::ProducerId;
use crate::limits::{NAMED_SESSION_EXPIRY_MS, SESSION_EXPIRY_MS, SESSION_WINDOW_BATCHES};
use crate::partition::command::opened;
use crate::partition::PartitionCommand;
use crate::segments::verdict::Verdict;
use tonic::{Request, Response, Status};

impl Doors {
    async fn open(&self, request: wire::OpenSessionRequest) -> Result<wire::Session, ApiErrorAt> {
        let target = self.target(&request.topic, request.partition).await?;
        self.open_at(&target, request.name).await.map_err(|error| ApiErrorAt::at(target.group(), error))
    }

    async fn open_at(&self, target: &Target, name: String) -> Result<wire::Session, ApiError> {
        let name = if name.is_empty() { None } else { Some(name) };
        let expires_after_ms = if name.is_some() { NAMED_SESSION_EXPIRY_MS } else { SESSION_EXPIRY_MS };
        if let Some(name) = &name {
            check_name("a session's name", name)?;
        }
        let open = PartitionCommand::OpenSession { name: name.map(Into::into) };
        let (value, extra) = done(target, &self.through_log(target, open).await?)?;
        let (epoch, next_sequence) = opened(extra);
        // Asked through the log as well: the replica that answers may lag behind the one that applied the opening.
        let query = PartitionCommand::QuerySession { producer: ProducerId(value) };
        let (last_tail, records) = done(target, &self.through_log(target, query).await?)?;
        Ok(wire::Session {
            producer_id: value,
            epoch: u32::from(epoch),
            next_sequence,
            window_batches: SESSION_WINDOW_BATCHES as u32,
            expires_after_ms,
            last_tail,
            records,
        })
    }

    async fn through_log(&self, target: &Target, command: PartitionCommand) -> Result<Committed, ApiError> {
        let group = target.group();
        let proposed = self.router.propose(group, command.encode()).await;
        proposed.map_err(|error| self.route_failed(target.to_string(), group, error))
    }
}

fn done(target: &Target, committed: &Committed) -> Result<(u64, u64), ApiError> {
    match committed.verdict {
        Verdict::Done { value, extra } => Ok((value, extra)),
        Verdict::Refused(refusal) => Err(ApiError::Refused { what: target.to_string(), refusal }),
        other => Err(ApiError::Invalid(format!("a session's opening was answered with {other:?}"))),
    }
}

impl Doors {
    async fn close(&self, request: wire::CloseSessionRequest) -> Result<(), ApiErrorAt> {
        let target = self.target(&request.topic, request.partition).await?;
        let close = || async {
            let epoch = u16::try_from(request.epoch)
                .map_err(|_| ApiError::Invalid(format!("epoch {} is no epoch of a session", request.epoch)))?;
            let close = PartitionCommand::CloseSession { producer: ProducerId(request.producer_id), epoch };
            done(&target, &self.through_log(&target, close).await?)
        };
        close().await.map(drop).map_err(|error| ApiErrorAt::at(target.group(), error))
    }
}

#[tonic::async_trait]
impl wire::producers_server::Producers for Doors {
    async fn close_session(
        &self,
        request: Request<wire::CloseSessionRequest>,
    ) -> Result<Response<wire::CloseSessionResponse>, Status> {
        let closed = self.close(request.into_inner()).await;
        closed.map_err(|ApiErrorAt { group, error }| self.status(&error, group))?;
        Ok(Response::new(wire::CloseSessionResponse {}))
    }

    async fn open_session(
        &self,
        request: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<wire::Session>, Status> {
        let opened = self.open(request.into_inner()).await;
        opened.map(Response::new).map_err(|ApiErrorAt { group, error }| self.status(&error, group))
    }
}
