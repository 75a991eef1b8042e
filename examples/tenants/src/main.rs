//! A worker for many tenants: it is set up and torn down, knows whose a run is, and gives each tenant a share.

mod ledger;
mod limit;
mod tenant;

use std::time::Duration;

use gen_worker::{ActionContext, State, WorkerBuilder, WorkerError, worker_function};

use crate::{ledger::Ledger, limit::PerTenant, tenant::Tenant};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Greeting {
    name: String,
}

#[derive(serde::Serialize, schemars::JsonSchema)]
struct Reply {
    text: String,
    /// How many greetings this tenant has had, this one among them.
    number: u64,
}

#[worker_function]
async fn greet(
    _ctx: ActionContext,
    input: Greeting,
    tenant: Tenant,
    ledger: State<Ledger>,
) -> Result<Reply, WorkerError> {
    Ok(Reply { text: format!("Hello, {}!", input.name), number: ledger.count(&tenant) })
}

/// Three runs a minute for each tenant.
fn configure(worker: WorkerBuilder) -> WorkerBuilder {
    worker.layer(PerTenant::new(3, Duration::from_secs(60)))
}

gen_worker::main!(configure);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gen_worker::testing::TestContext;

    use super::*;

    #[tokio::test]
    async fn greetings_are_counted_by_tenant() {
        let (test, ledger) = (TestContext::new().tenant("acme"), State(Arc::new(Ledger::default())));
        let greet =
            || greet(test.context(), Greeting { name: "Ada".into() }, Tenant("acme".into()), ledger.clone());
        assert_eq!(greet().await.unwrap().number, 1);
        assert_eq!(greet().await.unwrap().number, 2);
    }
}
