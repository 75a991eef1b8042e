//! The attributes that make a function a worker function or a realtime handler, and the macro that names one.
//!
//! [`macro@worker_function`] and [`macro@worker_websocket`] are what a tenant writes: the attribute is read (`options`), the signature and its
//! `#[model(…)]` (`parse`, `binding`) are understood or refused with a span and a hint, and what was understood (`model`)
//! is written out again (`expand`) as calls of the facade's hidden module and nothing else. [`function!`] is for those who
//! register functions themselves.

mod binding;
mod expand;
mod model;
mod options;
mod parse;

use proc_macro::TokenStream;

use crate::model::Kind;

/// Makes a free function a function of the worker: typed, with a schema, and registered when the binary is linked.
///
/// ```ignore
/// use gen_worker::{ActionContext, ModelArtifacts, State, WorkerError, worker_function};
///
/// #[worker_function(model_family = "sdxl", requires_gpu = true, max_concurrency = 1)]
/// async fn generate(
///     ctx: ActionContext,
///     input: Prompt,
///     #[model(payload = "model_ref")] unet: ModelArtifacts,
///     palette: State<Palette>,
/// ) -> Result<Picture, WorkerError> {
///     ctx.progress(0.5, "denoising");
///     Ok(Picture::new(input, unet, &palette))
/// }
/// ```
///
/// # Signature
///
/// 1. The context, `ctx: ActionContext`.
/// 2. The payload, by value: any type that derives `serde::Deserialize` and `schemars::JsonSchema`, or
///    `serde_json::Value` to take whatever comes.
/// 3. Any number of extractors. A model says where its reference comes from: `#[model(payload = "field")]` for a field
///    of the payload, `#[model(deployment = "key")]` for the deployment's configuration. `State<T>` takes what the
///    application registered.
///
/// An `async fn` runs as a future. A plain `fn` runs on a thread of its own, which it may block.
///
/// # Return type
///
/// | returns | the caller gets |
/// |---|---|
/// | `Result<T, E>`, `T` deriving `serde::Serialize` and `schemars::JsonSchema` | one value |
/// | `Result<RawOutput, E>` | one file |
/// | `impl Stream<Item = Result<T, WorkerError>>`, or that in a `Result` | each `T` as it comes |
///
/// `E` is `WorkerError` or any error that converts into it. A function that returns a stream never blocks a thread, also
/// when it is a plain `fn`.
///
/// # Keys, all optional
///
/// | key | value | meaning |
/// |---|---|---|
/// | `name` | text, 1 to 256 bytes | the name on the wire; the function's own name if absent |
/// | `model_family` | text | the family of its models, such as `sdxl` |
/// | `model_name` | text | the model it was written for |
/// | `requires_gpu` | `true`, `false` | whether it holds a GPU while it runs |
/// | `max_concurrency` | whole number from 1 | how many of its runs may go on at once; absent: as many as the worker allows |
/// | `min_vram_gb` | number, GiB | device memory without which it cannot run |
/// | `recommended_vram_gb` | number, GiB | device memory with which it runs well |
#[proc_macro_attribute]
pub fn worker_function(attribute: TokenStream, item: TokenStream) -> TokenStream {
    expand::attribute(Kind::Function, attribute.into(), item.into()).into()
}

/// Makes a free `async fn` the handler of realtime sessions, registered when the binary is linked.
///
/// ```ignore
/// use gen_worker::{ActionContext, RealtimeSocket, WorkerError, worker_websocket};
///
/// #[worker_websocket(max_concurrency = 8)]
/// async fn mirror(_ctx: ActionContext, socket: RealtimeSocket) -> Result<(), WorkerError> {
///     while let Some(frame) = socket.recv().await {
///         socket.send(frame).await;
///     }
///     Ok(())
/// }
/// ```
///
/// It takes the context, the session's socket, and extractors as [`macro@worker_function`] does; its models are
/// `#[model(deployment = "key")]`. It returns `Result<(), E>`: the session ends when it returns. The keys are those of
/// [`macro@worker_function`], and names are unique across both.
#[proc_macro_attribute]
pub fn worker_websocket(attribute: TokenStream, item: TokenStream) -> TokenStream {
    expand::attribute(Kind::Websocket, attribute.into(), item.into()).into()
}

/// The function of that path as a value, for a worker that is put together by hand.
///
/// ```ignore
/// let worker = Worker::builder().function(gen_worker::function!(pictures::generate));
/// ```
///
/// The path leads to where the function was written: a `use` of the function alone does not bring along what this macro
/// needs.
#[proc_macro]
pub fn function(path: TokenStream) -> TokenStream {
    expand::function(path.into()).into()
}
