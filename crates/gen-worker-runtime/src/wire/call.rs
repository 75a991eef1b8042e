//! The one call that a worker makes. The generated client would take messages that are not encoded yet.

use bytes::BufMut;
use futures_util::Stream;
use tonic::{
    GrpcMethod, Request, Response, Status, Streaming,
    client::Grpc,
    codec::{Codec, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use tonic_prost::{ProstCodec, ProstDecoder};

use super::{Message, v1::WorkerSchedulerMessage};

const SERVICE: &str = "scheduler.SchedulerWorkerService";
const METHOD: &str = "ConnectWorker";
const PATH: &str = "/scheduler.SchedulerWorkerService/ConnectWorker";

/// What the scheduler says.
pub(crate) type Heard = Streaming<WorkerSchedulerMessage>;

/// Calls the scheduler with what the worker has to say. `max_bytes`: of one message, either way.
pub(crate) async fn connect_worker<S>(
    channel: Channel,
    max_bytes: usize,
    mut request: Request<S>,
) -> Result<Response<Heard>, Status>
where
    S: Stream<Item = Message> + Send + 'static,
{
    let mut grpc =
        Grpc::new(channel).max_decoding_message_size(max_bytes).max_encoding_message_size(max_bytes);
    grpc.ready().await.map_err(|error| Status::unknown(format!("the connection is not ready: {error}")))?;
    request.extensions_mut().insert(GrpcMethod::new(SERVICE, METHOD));
    grpc.streaming(request, PathAndQuery::from_static(PATH), StreamCodec).await
}

/// Reads the scheduler's messages, and writes this worker's as they are.
struct StreamCodec;

impl Codec for StreamCodec {
    type Encode = Message;
    type Decode = WorkerSchedulerMessage;
    type Encoder = Copier;
    type Decoder = ProstDecoder<WorkerSchedulerMessage>;

    fn encoder(&mut self) -> Copier {
        Copier
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<WorkerSchedulerMessage, WorkerSchedulerMessage>::default().decoder()
    }
}

struct Copier;

impl Encoder for Copier {
    type Item = Message;
    type Error = Status;

    fn encode(&mut self, message: Message, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(message.as_bytes());
        Ok(())
    }
}
