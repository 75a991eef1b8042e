//! Functions whose output comes in pieces.
#![deny(warnings)]

use futures_util::{Stream, stream};
use gen_worker::{ActionContext, DeltaStream, State, WorkerError, function, worker_function};
use serde_json::Value;

type Item = Result<String, WorkerError>;

#[worker_function]
fn plain(_ctx: ActionContext, _input: Value) -> impl Stream<Item = Item> {
    stream::iter([Ok("a".to_owned())])
}

#[worker_function]
async fn asynchronous(_ctx: ActionContext, _input: Value) -> impl Stream<Item = Item> + Send {
    stream::iter([Ok("a".to_owned())])
}

#[worker_function]
fn fallible(_ctx: ActionContext, _input: Value) -> Result<impl Stream<Item = Item>, std::fmt::Error> {
    Ok(stream::iter([Ok("a".to_owned())]))
}

#[worker_function]
async fn with_state(
    _ctx: ActionContext,
    _input: Value,
    prefix: State<String>,
) -> Result<impl Stream<Item = Item>, WorkerError> {
    Ok(stream::iter([Ok(prefix.0.to_string())]))
}

#[worker_function]
async fn by_hand(_ctx: ActionContext, _input: Value) -> Result<DeltaStream<String>, WorkerError> {
    Ok(DeltaStream::new(stream::empty()))
}

fn main() {
    for function in [
        function!(plain),
        function!(asynchronous),
        function!(fallible),
        function!(with_state),
        function!(by_hand),
    ] {
        let spec = function.spec();
        assert_eq!(format!("{:?}", spec.output_mode), "Incremental", "{}", spec.name);
        assert_eq!(spec.output_schema["type"], "string");
    }
}
