//! The Log service: each verb finds its partition, then who serves it.

use super::append::ApiErrorAt;
use super::errors::ApiError;
use super::proxy::{passed_on, seen_from_here, Served};
use super::read::Held;
use super::stream::AppendStream;
use super::Doors;
use crate::client::wire;
use futures::stream::BoxStream;
use futures::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl wire::log_server::Log for Doors {
    type AppendStreamStream = Answers<wire::AppendStreamResponse>;
    type ReadStream = Answers<wire::ReadResponse>;

    async fn append(&self, request: Request<wire::AppendRequest>) -> Result<Response<wire::Receipt>, Status> {
        let receipt = self.append_one(request.into_inner()).await;
        receipt.map(Response::new).map_err(|ApiErrorAt { group, error }| self.status(&error, group))
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<wire::AppendStreamRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let answers = AppendStream::start(self.clone(), request.into_inner());
        Ok(Response::new(ReceiverStream::new(answers).flat_map(futures::stream::iter).boxed()))
    }

    async fn read(&self, request: Request<wire::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let asked = request.get_ref();
        let target = self.target(&asked.topic, asked.partition).await.map_err(|error| self.status(&error, None))?;
        let group = Some(target.group());
        match self.served(&target, &request).map_err(|error| self.status(&error, group))? {
            Served::Here => {
                let answers = self.read_here(target, request.into_inner()).await;
                let answers = answers.map_err(|error| self.status(&error, group))?;
                Ok(Response::new(ReceiverStream::new(answers).map(Held::taken).boxed()))
            }
            Served::There(mut client) => {
                let answers = client.read(passed_on(request.into_inner())).await.map_err(seen_from_here)?;
                let answers = answers.into_inner().map(|answer| answer.map_err(seen_from_here));
                Ok(Response::new(answers.boxed()))
            }
        }
    }

    async fn tail(&self, request: Request<wire::TailRequest>) -> Result<Response<wire::TailResponse>, Status> {
        let asked = request.get_ref();
        let target = self.target(&asked.topic, asked.partition).await.map_err(|error| self.status(&error, None))?;
        let group = Some(target.group());
        match self.served(&target, &request).map_err(|error| self.status(&error, group))? {
            Served::Here => {
                let point = self.tail_of(&target, asked.stale).await.map_err(|error| self.status(&error, group))?;
                Ok(Response::new(self.tail_response(&target, point)))
            }
            Served::There(mut client) => client.tail(passed_on(request.into_inner())).await.map_err(seen_from_here),
        }
    }

    async fn offset_for_time(
        &self,
        request: Request<wire::OffsetForTimeRequest>,
    ) -> Result<Response<wire::OffsetForTimeResponse>, Status> {
        let asked = request.get_ref();
        let target = self.target(&asked.topic, asked.partition).await.map_err(|error| self.status(&error, None))?;
        let group = Some(target.group());
        match self.served(&target, &request).map_err(|error| self.status(&error, group))? {
            Served::Here => {
                // The tail first: a record that was acknowledged before the call must be found.
                let found = async {
                    self.tail_of(&target, false).await?;
                    self.offset_for_time_of(&target, asked.time_ms).await
                };
                let offset = found.await.map_err(|error: ApiError| self.status(&error, group))?;
                Ok(Response::new(wire::OffsetForTimeResponse { offset: offset.0 }))
            }
            Served::There(mut client) => {
                client.offset_for_time(passed_on(request.into_inner())).await.map_err(seen_from_here)
            }
        }
    }

    async fn trim(&self, request: Request<wire::TrimRequest>) -> Result<Response<wire::TrimResponse>, Status> {
        let asked = request.into_inner();
        let target = self.target(&asked.topic, asked.partition).await.map_err(|error| self.status(&error, None))?;
        let trimmed = self.trim_at(&target, asked.offset).await;
        trimmed.map(Response::new).map_err(|error| self.status(&error, Some(target.group())))
    }

    async fn raise_fence(&self, request: Request<wire::RaiseFenceRequest>) -> Result<Response<wire::Receipt>, Status> {
        let asked = request.into_inner();
        let target = self.target(&asked.topic, asked.partition).await.map_err(|error| self.status(&error, None))?;
        let raised = self.raise_fence_at(&target, asked.fence).await;
        raised.map(Response::new).map_err(|error| self.status(&error, Some(target.group())))
    }
}
