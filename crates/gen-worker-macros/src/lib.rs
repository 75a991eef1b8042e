//! The attributes that make a function a worker function or a realtime handler, and the macro that names one.
//!
//! [`macro@worker_function`] and [`macro@worker_websocket`] are what a tenant writes: the attribute is read (`options`), the signature and its
//! `#[model(…)]` (`parse`, `binding`) are understood or refused with a span and a hint, and what was understood (`model`)
//! is written out again (`expand`) as calls of the facade's hidden module and nothing else. [`function!`] is for those who
//! register functions themselves. [`macro@worker_setup`] and [`macro@worker_teardown`] (`hook`) are for what is done once.
//!
//! ```
//! use gen_worker::{ActionContext, WorkerError, worker_function};
//!
//! #[worker_function(name = "echo", max_concurrency = 4)]
//! fn give_back(_ctx: ActionContext, input: serde_json::Value) -> Result<serde_json::Value, WorkerError> {
//!     Ok(input)
//! }
//!
//! assert_eq!(gen_worker::function!(give_back).spec().name.as_str(), "echo");
//! ```

mod binding;
mod expand;
mod hook;
mod model;
mod options;
mod parse;

use proc_macro::TokenStream;

use crate::{hook::Hook, model::Kind};

/// Makes a free function a function of the worker: typed, with a schema, and registered when the binary is linked.
///
/// ```
/// use gen_worker::{ActionContext, ModelArtifacts, State, WorkerError, worker_function};
///
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Prompt { model_ref: String }
/// # #[derive(serde::Serialize, schemars::JsonSchema)]
/// # struct Picture { model: String }
/// # struct Palette;
/// # impl Picture { fn new(_: Prompt, model: ModelArtifacts, _: &Palette) -> Self { Self { model: model.model_id().to_owned() } } }
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
/// ```
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

/// Runs a free `fn` or `async fn` once, before the worker's first run. What it returns is the `State<T>` that functions take.
///
/// ```
/// use gen_worker::{ActionContext, State, WorkerError, worker_function, worker_setup};
///
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Class { number: usize }
/// struct Labels {
///     names: Vec<String>,
/// }
///
/// #[worker_setup]
/// fn labels() -> Result<Labels, WorkerError> {
///     let text = std::fs::read_to_string("labels.txt")?;
///     Ok(Labels { names: text.lines().map(str::to_owned).collect() })
/// }
///
/// #[worker_function]
/// async fn label(_ctx: ActionContext, input: Class, labels: State<Labels>) -> Result<String, WorkerError> {
///     labels.names.get(input.number).cloned().ok_or_else(|| WorkerError::validation("there is no such class"))
/// }
/// ```
///
/// Set-ups run at the same time, while the worker connects, an `async fn` as a future and a plain `fn` on a thread of its own.
/// Until all are done every function is advertised as loading, and a run that comes waits within its deadline. An error, a panic
/// or more than `WORKER_SETUP_TIMEOUT_SECONDS` ends the worker with exit code 9 and a sentence that names the function.
///
/// It takes no parameters, and returns `Result<T, E>` with a `T: Send + Sync`, `()` for no state, and an `E` that is
/// `WorkerError` or converts into it. Two set-ups of one type are refused at start.
#[proc_macro_attribute]
pub fn worker_setup(attribute: TokenStream, item: TokenStream) -> TokenStream {
    hook::attribute(Hook::SetUp, attribute.into(), item.into()).into()
}

/// Runs a free `fn` or `async fn` once, after the worker's last run.
///
/// ```
/// use gen_worker::{State, WorkerError, worker_teardown};
///
/// # struct Database;
/// # impl Database { async fn close(&self) -> Result<(), WorkerError> { Ok(()) } }
/// #[worker_teardown]
/// async fn close(database: State<Database>) -> Result<(), WorkerError> {
///     database.close().await
/// }
/// ```
///
/// Tear-downs run at the same time, when every run has ended and its result was handed over, also after SIGTERM, after `run` and
/// when the worker ends by itself, for `WORKER_TEARDOWN_TIMEOUT_SECONDS` at most. An error or a panic costs a line in the log.
///
/// It takes what set-ups made, up to four parameters `State<T>`, and is left out where one of them was not made. It returns
/// `Result<(), E>`.
#[proc_macro_attribute]
pub fn worker_teardown(attribute: TokenStream, item: TokenStream) -> TokenStream {
    hook::attribute(Hook::TearDown, attribute.into(), item.into()).into()
}

/// The function of that path as a value, for a worker that is put together by hand.
///
/// ```
/// mod pictures {
///     use gen_worker::{ActionContext, WorkerError, worker_function};
///
///     #[worker_function]
///     pub async fn generate(_ctx: ActionContext, input: serde_json::Value) -> Result<serde_json::Value, WorkerError> {
///         Ok(input)
///     }
/// }
///
/// let function = gen_worker::function!(pictures::generate);
/// assert_eq!(function.spec().name.as_str(), "generate");
/// ```
///
/// The path leads to where the function was written: a `use` of the function alone does not bring along what this macro
/// needs.
#[proc_macro]
pub fn function(path: TokenStream) -> TokenStream {
    expand::function(path.into()).into()
}
