//! Scripted peers and faults, for tests of the worker and of what tenants write.
//!
//! A tenant's test needs a [`TestContext`]. Tests of a whole worker put it between peers on loopback: a [`FakeScheduler`]
//! hands the test each stream that a worker opens, a [`FakeHub`] serves models, a [`FakeFileApi`] keeps files, and a
//! [`FaultProxy`] is the network that fails between them; [`SeaweedFs`] is a real S3-compatible store, [`NatsServers`] are real NATS servers. A tenant's own model manager is
//! held to [`check_model_manager`]. Each owns its tasks and ends them when it is dropped. A peer
//! that waits in vain for the worker fails the test by panicking.
//!
//! ```
//! use gen_worker_core::{ActionContext, WorkerError};
//! use gen_worker_testkit::TestContext;
//!
//! async fn shout(ctx: ActionContext, text: String) -> Result<String, WorkerError> {
//!     ctx.check_canceled()?;
//!     ctx.progress(1.0, "shouting");
//!     Ok(text.to_uppercase())
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let test = TestContext::new().tenant("acme");
//! assert_eq!(shout(test.context(), "hi".to_owned()).await.unwrap(), "HI");
//! assert_eq!(test.payloads("job.progress")[0]["stage"], "shouting");
//! # });
//! ```

mod context;
mod files;
mod http;
mod hub;
mod nats;
mod proxy;
mod scheduler;
mod seaweed;

pub use gen_worker_core::testing::{FakeLease, FakeModels, check_model_manager};

pub use crate::{
    context::TestContext,
    files::FakeFileApi,
    http::{Fault, RecordedRequest},
    hub::{FakeHub, Held},
    nats::NatsServers,
    proxy::FaultProxy,
    scheduler::{FakeScheduler, WorkerStream},
    seaweed::SeaweedFs,
};
