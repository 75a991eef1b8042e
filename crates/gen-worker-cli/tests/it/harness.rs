//! Programs that are run to their end, and projects for them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// The command itself.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gen-worker"));
    // What was fetched to build this is enough to build projects.
    command.env("CARGO_NET_OFFLINE", "true");
    command
}

/// The worker of a template, which cargo has built beside the command.
pub(crate) fn template(name: &str) -> Command {
    let examples = Path::new(env!("CARGO_BIN_EXE_gen-worker")).with_file_name("examples");
    let mut command = Command::new(examples.join(format!("template-{name}")));
    command.env("RUST_LOG", "warn");
    command
}

/// The root of the repository.
pub(crate) fn repository() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).unwrap()
}

/// What a program did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) log: String,
}

/// Runs it to its end.
pub(crate) fn done(command: &mut Command) -> Done {
    Done::of(command.output().unwrap())
}

impl Done {
    pub(crate) fn of(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: status.code(), out: text(stdout), log: text(stderr) }
    }

    /// Fails unless it ended so.
    #[track_caller]
    pub(crate) fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

/// Longest wait for a process to end.
const END: Duration = Duration::from_secs(30);

/// Sends it a signal, such as `-INT`.
pub(crate) fn signal(child: &Child, signal: &str) {
    done(Command::new("kill").args([signal, &child.id().to_string()])).ends(0);
}

/// Waits for its end, and kills it if that does not come.
pub(crate) fn ended(child: &mut Child) -> ExitStatus {
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if since.elapsed() > END {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it did not end");
        }
        std::thread::yield_now();
    }
}

/// A folder with a project that `gen-worker new` made, against this checkout.
pub(crate) fn new_project(template: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    // Projects that build into one folder would take each other's binary if they had one name.
    let name = if template == "hello" { "my-worker".to_owned() } else { format!("my-{template}") };
    let new = ["new", &name, "--template", template, "--checkout"];
    done(command().args(new).arg(repository()).current_dir(folder.path())).ends(0);
    let project = fs::canonicalize(folder.path().join(name)).unwrap();
    (folder, project)
}

/// Gives the project the versions that this repository is built from, and the options that it is built with: what cargo
/// has built here need not be built again.
pub(crate) fn share_builds(project: &Path) {
    let repository = repository();
    // Cargo asks for the manifests of all platforms, and what was built here is for one.
    done(Command::new("cargo").args(["fetch", "--quiet", "--locked"]).current_dir(&repository)).ends(0);
    fs::copy(repository.join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
    let manifest = fs::read_to_string(repository.join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    let options = toml::Table::from_iter([("dev".to_owned(), manifest["profile"]["dev"].clone())]);
    let options = toml::Table::from_iter([("profile".to_owned(), toml::Value::Table(options))]);
    let config = project.join(".cargo/config.toml");
    let patch = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{patch}\n{options}")).unwrap();
    // What it does not need goes from its lock file.
    done(cargo(project).args(["metadata", "--format-version=1"])).ends(0);
}

/// Cargo in a project's folder.
pub(crate) fn cargo(project: &Path) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(project).env("CARGO_NET_OFFLINE", "true").env("CARGO_TARGET_DIR", target());
    cargo
}

/// Where this was built.
pub(crate) fn target() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_gen-worker")).ancestors().nth(2);
    built.unwrap().to_owned()
}
