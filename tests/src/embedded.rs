//! A worker in the test's own process: for functions, ports and waits that no variable sets.

use std::thread::JoinHandle;

use gen_worker::{Env, RuntimeConfig, Shutdown, WorkerBuilder, WorkerConfig, WorkerFailure};
use gen_worker_testkit::WorkerStream;

/// A worker on a thread of its own.
pub struct Embedded {
    shutdown: Shutdown,
    working: JoinHandle<Result<(), WorkerFailure>>,
}

impl Embedded {
    /// The settings of a worker that dials these schedulers, in this order, and waits little between them.
    ///
    /// # Panics
    /// They are no addresses.
    pub fn settings(addresses: &str) -> RuntimeConfig {
        let env = Env::from_iter([
            ("SCHEDULER_ADDR", addresses.split(',').next().unwrap_or_default()),
            ("SCHEDULER_ADDRS", addresses),
            ("RECONNECT_DELAY", "0.01"),
            ("RECONNECT_JITTER_SECONDS", "0"),
            ("WORKER_CANCEL_GRACE_SECONDS", "0.3"),
        ]);
        WorkerConfig::from_env(&env).expect("the settings are right").runtime
    }

    /// Starts it.
    ///
    /// # Panics
    /// It cannot be built.
    pub fn start(builder: WorkerBuilder) -> Self {
        let worker = builder.build().expect("the worker can be built");
        Self { shutdown: worker.shutdown(), working: std::thread::spawn(move || worker.run()) }
    }

    /// Tells it to leave.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It stopped by itself.
    ///
    /// # Panics
    /// It panicked.
    pub async fn ended(self) -> Result<(), WorkerFailure> {
        tokio::task::spawn_blocking(|| self.working.join().expect("it does not panic"))
            .await
            .expect("nor does this")
    }

    /// Sees it off: it leaves in peace, and its stream with it.
    ///
    /// # Panics
    /// It leaves otherwise.
    pub async fn leave(self, mut stream: WorkerStream) {
        self.shutdown.drain();
        stream.ended().await.expect("in peace");
        stream.end_ok();
        self.ended().await.expect("left as asked");
    }
}
