//! Real NATS servers with JetStream, as processes: one, or a cluster.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::FaultProxy;

/// A cluster on loopback has a leader in about 2 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a server is asked whether it has caught up.
const ASKED_EVERY: Duration = Duration::from_millis(50);

/// What a server logs when it takes clients.
const READY: &str = "Server is ready";

/// Where nobody listens: servers that tell each other of it dial the routes they were given, and no others.
const NOWHERE: &str = "127.0.0.1:1";

/// NATS servers on loopback that form one cluster, each with a folder of its own. The processes end when this is dropped.
#[derive(Debug)]
pub struct NatsServers {
    program: PathBuf,
    ports: Vec<Ports>,
    /// By who dials whom; empty: they dial each other as they are.
    networks: Vec<Vec<FaultProxy>>,
    running: Vec<Option<Running>>,
    settings: String,
    directory: TempDir,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    cluster: u16,
    monitor: u16,
}

#[derive(Debug)]
struct Running {
    process: Child,
    _log: JoinSet<()>,
}

impl NatsServers {
    /// The program that tests use: what `NATS_SERVER_PATH` names, or what `cargo xtask nats` put in place.
    pub fn program() -> PathBuf {
        #[expect(
            clippy::disallowed_methods,
            reason = "where the test run found the server, no setting of ours"
        )]
        let told = std::env::var_os("NATS_SERVER_PATH");
        told.map_or_else(
            || concat!(env!("CARGO_MANIFEST_DIR"), "/../../.nats/nats-server").into(),
            PathBuf::from,
        )
    }

    /// Starts `count` servers of `program`, which is `nats-server`, mostly [the one of tests](Self::program).
    ///
    /// # Panics
    /// One cannot be started, or takes no clients within a minute.
    pub async fn start(program: impl AsRef<Path>, count: usize) -> Self {
        Self::prepare(program, count, "").all_started().await
    }

    /// The same, with more settings in the form of a server's configuration file, such as users and certificates.
    ///
    /// # Panics
    /// One cannot be started, or takes no clients within a minute.
    pub async fn start_with(program: impl AsRef<Path>, count: usize, settings: &str) -> Self {
        Self::prepare(program, count, settings).all_started().await
    }

    /// The same, with a network between every two servers that fails when told to: [`cut_off`](Self::cut_off).
    ///
    /// # Panics
    /// One cannot be started, or takes no clients within a minute.
    pub async fn start_apart(program: impl AsRef<Path>, count: usize) -> Self {
        let mut servers = Self::prepare(program, count, "");
        for _ in 0..count {
            let mut dialled = Vec::new();
            for to in &servers.ports {
                dialled.push(FaultProxy::start(SocketAddr::from(([127, 0, 0, 1], to.cluster))).await);
            }
            servers.networks.push(dialled);
        }
        servers.all_started().await
    }

    fn prepare(program: impl AsRef<Path>, count: usize, settings: &str) -> Self {
        let bound: Vec<_> =
            (0..3 * count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
        let ports = bound.chunks(3).map(|of_one| Ports {
            client: port(&of_one[0]),
            cluster: port(&of_one[1]),
            monitor: port(&of_one[2]),
        });
        Self {
            program: program.as_ref().to_owned(),
            ports: ports.collect(),
            networks: Vec::new(),
            running: (0..count).map(|_| None).collect(),
            settings: settings.to_owned(),
            directory: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    async fn all_started(mut self) -> Self {
        for index in 0..self.ports.len() {
            self.restart(index).await;
        }
        self
    }

    /// Where clients connect, one URL for each server.
    pub fn urls(&self) -> Vec<String> {
        self.addrs().iter().map(|addr| format!("nats://{addr}")).collect()
    }

    /// Where clients connect, one address for each server.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.ports.iter().map(|ports| SocketAddr::from(([127, 0, 0, 1], ports.client))).collect()
    }

    /// Ends a server at once, as SIGKILL does. It keeps what it has on disk.
    ///
    /// # Panics
    /// It is not running.
    pub async fn kill(&mut self, index: usize) {
        let mut running = self.running[index].take().expect("the server is running");
        running.process.kill().await.expect("the server is running");
    }

    /// Cuts a server off from the others; clients still reach it. `silent`: nobody is told, else connections are reset.
    ///
    /// # Panics
    /// They were not started [apart](Self::start_apart).
    pub fn cut_off(&self, index: usize, silent: bool) {
        for network in self.networks_of(index) {
            if silent {
                network.pause();
            } else {
                network.refuse(true);
                network.drop_all();
            }
        }
    }

    /// Ends what [`cut_off`](Self::cut_off) began.
    ///
    /// # Panics
    /// They were not started [apart](Self::start_apart).
    pub fn join_again(&self, index: usize) {
        for network in self.networks_of(index) {
            // What was swallowed is lost: a connection that lost something is of no use.
            network.drop_all();
            network.refuse(false);
            network.resume();
        }
    }

    fn networks_of(&self, index: usize) -> impl Iterator<Item = &FaultProxy> {
        assert!(!self.networks.is_empty(), "there are networks between servers that were started apart");
        let from_others = self.networks.iter().map(move |dialled| &dialled[index]);
        from_others.chain(&self.networks[index])
    }

    /// What a server says of itself at a path of its monitoring address, such as `/connz?auth=true`: an HTTP answer, head and all.
    ///
    /// # Errors
    /// It is not running, or the answer broke off.
    pub async fn monitor(&self, index: usize, path: &str) -> io::Result<String> {
        let addr = SocketAddr::from(([127, 0, 0, 1], self.ports[index].monitor));
        let mut connection = TcpStream::connect(addr).await?;
        connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Waits until a server has all that it keeps as the others have it.
    ///
    /// # Panics
    /// It has not within a minute.
    pub async fn caught_up(&self, index: usize) {
        let mut answer = String::new();
        let healthy = async {
            loop {
                answer = self.monitor(index, "/healthz").await.unwrap_or_else(|error| error.to_string());
                if answer.starts_with("HTTP/1.0 200") {
                    return;
                }
                sleep(ASKED_EVERY).await;
            }
        };
        let caught_up = timeout(PATIENCE, healthy).await.is_ok();
        assert!(caught_up, "the NATS server {index} has not caught up with the others: {answer}");
    }

    /// Starts a server anew on what it has on disk, and waits until it takes clients.
    ///
    /// # Panics
    /// It cannot be started, or takes no clients within a minute.
    pub async fn restart(&mut self, index: usize) {
        let mut process = self.command(index).spawn().unwrap_or_else(|error| {
            panic!("{}: {error}: run `cargo xtask nats`", self.program.display());
        });
        let mut lines = BufReader::new(process.stderr.take().expect("stderr is piped")).lines();
        let mut said = String::new();
        let ready = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains(READY) {
                    return true;
                }
                said.push_str(&line);
                said.push('\n');
            }
            false
        };
        let ready = timeout(PATIENCE, ready).await.unwrap_or(false);
        assert!(ready, "the NATS server takes no clients; it logged\n{said}");
        // A full pipe would stop it.
        let mut log = JoinSet::new();
        log.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        self.running[index] = Some(Running { process, _log: log });
    }

    fn command(&self, index: usize) -> Command {
        let Ports { client, cluster, monitor } = self.ports[index];
        let settings = self.directory.path().join("settings.conf");
        std::fs::write(&settings, &self.settings).expect("the folder can be written");
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(settings)
            .args(["--addr", "127.0.0.1", "--port", &client.to_string()])
            .args(["--http_port", &monitor.to_string(), "--no_advertise=true"])
            .args(["--name", &format!("n{index}"), "--jetstream", "--store_dir"])
            .arg(self.directory.path().join(index.to_string()));
        if self.ports.len() > 1 {
            command
                .args(["--cluster_name", "test", "--cluster", &format!("nats://127.0.0.1:{cluster}")])
                .args(["--routes", &self.routes(index).join(",")]);
        }
        if !self.networks.is_empty() {
            command.args(["--cluster_advertise", NOWHERE]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Where a server finds the others, and itself, which it leaves alone.
    fn routes(&self, index: usize) -> Vec<String> {
        let route = |port: u16| format!("nats-route://127.0.0.1:{port}");
        match self.networks.get(index) {
            None => self.ports.iter().map(|ports| route(ports.cluster)).collect(),
            Some(dialled) => {
                let others = dialled.iter().enumerate().filter(|(to, _)| *to != index);
                others.map(|(_, network)| route(network.addr().port())).collect()
            }
        }
    }
}
