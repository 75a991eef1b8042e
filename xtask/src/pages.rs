//! `pages`: runs the shell commands of the pages, as somebody who reads them would.
//!
//! A fence of `sh` is a script: it runs in a copy of the examples, with an empty home, and must end well. What stands behind `sh` says
//! more:
//!
//! - `stays=2`: the first two lines are typed into terminals of their own and stay; the rest is tried until they are up.
//! - `needs="docker"`: it is not run, because of that.
//!
//! A comment that begins with `{` is what the line before it prints. Programs are the ones that were built here: `cargo run` starts
//! what is there, and the orchestrator's ports are free ones.

use std::fs;
use std::net::TcpListener;
use std::os::unix::{fs::PermissionsExt, process::CommandExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use tempfile::TempDir;

use crate::ort;
use crate::run::{self, Doing, Done, command, root};

/// What one snippet may take. The longest enlarges a picture without optimisation.
const LIMIT: Duration = Duration::from_secs(120);

/// How long those that stay may take until the rest works.
const UP: Duration = Duration::from_secs(30);

/// How long those that stay may take to leave.
const LEAVE: Duration = Duration::from_secs(15);

#[derive(Default, ClapArgs)]
pub(crate) struct Args {
    /// Takes the programs in target/debug as they are
    #[arg(long)]
    no_build: bool,
    /// Only pages whose path holds this
    filter: Option<String>,
}

pub(crate) fn run(args: &Args) -> Done {
    if !args.no_build {
        // As the tests are built, so that what they built is not built again.
        run::run(&mut command("cargo", &["build", "--workspace", "--locked", "--bins", "--tests"]))?;
    }
    let library = ort::library()?;
    let (mut ran, mut left) = (0, Vec::new());
    for (page, text) in pages()? {
        if args.filter.as_ref().is_some_and(|filter| !page.contains(filter.as_str())) {
            continue;
        }
        let snippets = snippets(&text).map_err(|problem| format!("{page}:{problem}"))?;
        let mut desk = None;
        for snippet in snippets {
            let place = format!("{page}:{}", snippet.line);
            match &snippet.needs {
                Some(needs) => left.push(format!("{place}: needs {needs}")),
                None => {
                    let desk = match &mut desk {
                        Some(desk) => desk,
                        none => none.insert(Desk::set(&library)?),
                    };
                    println!("{place}");
                    desk.try_out(&snippet).map_err(|problem| format!("{place}: {problem}"))?;
                    ran += 1;
                }
            }
        }
    }
    println!("{ran} snippets ran, {} did not:", left.len());
    left.iter().for_each(|one| println!("  {one}"));
    Ok(())
}

/// Every page of the repository, by its path; templates aside.
fn pages() -> Done<Vec<(String, String)>> {
    let list = run::output(&mut command(
        "git",
        &["ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    ))?;
    let read = |path: &str| Ok((path.to_owned(), fs::read_to_string(root().join(path)).doing(path)?));
    // A template's page is one once a project is made of it.
    list.lines().filter(|path| !path.contains("/templates/")).map(read).collect()
}

/// A fence of `sh`.
#[derive(Debug, PartialEq)]
struct Snippet {
    line: usize,
    lines: Vec<String>,
    stays: usize,
    needs: Option<String>,
}

/// The snippets of a page, in order.
fn snippets(page: &str) -> Done<Vec<Snippet>> {
    let (mut all, mut open) = (Vec::new(), None::<Option<Snippet>>);
    for (at, text) in page.lines().enumerate() {
        let fence = text.trim_start().strip_prefix("```");
        open = match (open, fence) {
            (None, Some(info)) => Some(snippet(at + 1, info.trim())?),
            (Some(snippet), Some(_)) => {
                all.extend(snippet);
                None
            }
            (Some(Some(mut snippet)), None) => {
                snippet.lines.push(text.to_owned());
                Some(Some(snippet))
            }
            (open, None) => open,
        };
    }
    Ok(all)
}

/// What a fence's first line says; `None`: it is no shell's.
fn snippet(line: usize, info: &str) -> Done<Option<Snippet>> {
    let (language, more) = info.split_once(' ').unwrap_or((info, ""));
    if matches!(language, "bash" | "shell" | "console") {
        return Err(format!("{line}: write `sh` in the place of `{language}`"));
    }
    if language != "sh" {
        return Ok(None);
    }
    let mut snippet = Snippet { line, lines: Vec::new(), stays: 0, needs: None };
    let needs = more.strip_prefix("needs=\"").and_then(|more| more.strip_suffix('"'));
    match (needs, more.strip_prefix("stays=").and_then(|count| count.parse().ok())) {
        (Some(needs), _) => snippet.needs = Some(needs.to_owned()),
        (_, Some(count)) => snippet.stays = count,
        _ if more.is_empty() => {}
        _ => return Err(format!("{line}: `{more}` is neither `stays=…` nor `needs=\"…\"`")),
    }
    Ok(Some(snippet))
}

/// What the snippet says that it prints.
fn promised(snippet: &Snippet) -> impl Iterator<Item = &str> {
    let comments =
        snippet.lines.iter().filter_map(|line| line.split_once(" # ").map(|(_, comment)| comment.trim()));
    comments.filter(|comment| comment.starts_with('{'))
}

/// Where the reader of one page sits: a copy of the examples, an empty home, and the programs that were built.
struct Desk {
    folder: TempDir,
    library: PathBuf,
    ports: [u16; 2],
}

impl Desk {
    fn set(library: &Path) -> Done<Self> {
        let folder = tempfile::tempdir().doing("a temporary folder")?;
        let desk = Self { folder, library: library.to_owned(), ports: [free_port()?, free_port()?] };
        for name in ["bin", "home", "repo"] {
            fs::create_dir(desk.path(name)).doing(name)?;
        }
        let examples = desk.path("repo").join("examples");
        run::output(command("cp", &["-R", "examples"]).arg(examples))?;
        let built = root().join("target/debug");
        let client = format!("http://127.0.0.1:{}", desk.ports[1]);
        for (name, script) in [("cargo", CARGO), ("gen-worker", COMMAND)] {
            let script = script.replace("BUILT", &built.display().to_string()).replace("URL", &client);
            desk.program(name, &script)?;
        }
        fs::write(desk.path("cwd"), desk.path("repo").display().to_string()).doing("the folder")?;
        Ok(desk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn program(&self, name: &str, script: &str) -> Done {
        let path = self.path("bin").join(name);
        fs::write(&path, script).doing(name)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).doing(name)
    }

    fn try_out(&self, snippet: &Snippet) -> Done {
        let (stay, rest) = snippet.lines.split_at(snippet.stays.min(snippet.lines.len()));
        let stay = stay.iter().map(|line| self.start(line)).collect::<Done<Vec<_>>>()?;
        let since = Instant::now();
        let said = loop {
            match self.start(&rest.join("\n"))?.end(LIMIT) {
                Ok(said) => break said,
                Err(_) if !stay.is_empty() && since.elapsed() < UP => sleep(Duration::from_millis(300)),
                Err(problem) => {
                    let also: Vec<String> = stay.into_iter().map(Terminal::leave).collect();
                    return Err(format!("{problem}\n{}", also.join("\n")));
                }
            }
        };
        stay.into_iter().for_each(|terminal| drop(terminal.leave()));
        match promised(snippet).find(|line| !said.lines().any(|other| other == *line)) {
            None => Ok(()),
            Some(line) => Err(format!("it says that this is printed: {line}\nit printed: {said}")),
        }
    }

    /// A shell with these lines.
    fn start(&self, lines: &str) -> Done<Terminal> {
        let [grpc, http] = self.ports;
        let local = |port: u16| format!("localhost:{port}");
        let lines = lines.replace(&local(8080), &local(grpc)).replace(&local(8081), &local(http));
        let at = fs::read_to_string(self.path("cwd")).doing("the folder")?;
        let at = at.trim_end();
        let keep = format!("trap 'pwd > {}' EXIT\n", self.path("cwd").display());
        let keep = if lines.contains("cd ") { keep.as_str() } else { "" };
        let log = tempfile::tempfile().doing("a temporary file")?;
        let path = format!("{}:{}", self.path("bin").display(), system_path());
        let mut shell = Command::new("bash");
        shell
            .args(["-eu", "-o", "pipefail", "-c", &format!("{keep}{lines}")])
            .current_dir(at)
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.path("home"))
            .env("ORT_DYLIB_PATH", &self.library)
            .env("ORCHESTRATOR_GRPC_ADDR", format!("127.0.0.1:{grpc}"))
            .env("ORCHESTRATOR_HTTP_ADDR", format!("127.0.0.1:{http}"))
            .env("WORKER_MODEL_CACHE_DIR", self.path("home").join("models"))
            .env("WORKER_RUN_DIR", self.path("home").join("runs"))
            .env("RECONNECT_DELAY", "0.2")
            .stdin(Stdio::null())
            .stdout(log.try_clone().doing("its output")?)
            .stderr(log.try_clone().doing("its output")?)
            .process_group(0);
        let child = shell.spawn().doing("bash")?;
        Ok(Terminal { child, log })
    }
}

/// A shell that runs, with all that it started.
struct Terminal {
    child: Child,
    log: fs::File,
}

impl Terminal {
    /// What it printed; it ends well and in time.
    fn end(mut self, limit: Duration) -> Done<String> {
        let ended = self.ends_within(limit);
        let status = self.child.try_wait().doing("bash")?;
        self.signal("-KILL");
        let said = self.said();
        match status {
            Some(status) if status.success() => Ok(said),
            Some(status) => Err(format!("{status}\n{said}")),
            None => Err(format!("not done within {limit:?} ({ended})\n{said}")),
        }
    }

    /// What it printed until it was told to leave.
    fn leave(mut self) -> String {
        self.signal("-TERM");
        self.ends_within(LEAVE);
        self.signal("-KILL");
        let _ = self.child.wait();
        self.said()
    }

    fn ends_within(&mut self, limit: Duration) -> bool {
        let since = Instant::now();
        while since.elapsed() < limit {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            sleep(Duration::from_millis(20));
        }
        false
    }

    /// To all that it started.
    fn signal(&self, signal: &str) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args([signal, "--", &group]).stderr(Stdio::null()).status();
    }

    fn said(&mut self) -> String {
        use std::io::{Read, Seek};

        let mut said = String::new();
        let _ = self.log.rewind().and_then(|()| self.log.read_to_string(&mut said));
        said
    }
}

fn free_port() -> Done<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).doing("a free port")?;
    Ok(listener.local_addr().doing("a free port")?.port())
}

fn system_path() -> String {
    #[expect(clippy::disallowed_methods, reason = "a chore has no settings of its own")]
    std::env::var("PATH").unwrap_or_default()
}

/// `cargo run -p PACKAGE [--bin NAME] [--] WORD…` starts what was built; all else is for the real cargo, at the repository.
const CARGO: &str = r#"#!/usr/bin/env bash
set -eu
if [ "${1-}" = run ]; then
    shift; name=
    while [ $# -gt 0 ]; do
        case "$1" in
            -p) [ -n "$name" ] || name="$2"; shift 2 ;;
            --bin) name="$2"; shift 2 ;;
            --) shift; break ;;
            *) break ;;
        esac
    done
    case "$name" in
        gen-worker-cli) exec gen-worker "$@" ;;
        checkpoints-traffic) set -- --url "URL" "$@" ;;
        conformance | upscale) name="$name-worker" ;;
    esac
    exec "BUILT/$name" "$@"
fi
echo "these pages run nothing of cargo's but \`cargo run\`: $*" >&2
exit 1
"#;

const COMMAND: &str = r#"#!/usr/bin/env bash
set -eu
case "${1-}" in
    invoke | runs | cancel | workers) verb="$1"; shift; exec "BUILT/gen-worker" "$verb" --url "URL" "$@" ;;
esac
exec "BUILT/gen-worker" "$@"
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snippets_are_found_with_what_is_said_of_them() {
        let page = "a\n```sh\nx\ny\n```\n```rust\nz\n```\n```sh stays=1\no\ni  # {\"r\":1}\n```\n```sh needs=\"a GPU\"\nn\n```\n";
        let found = snippets(page).unwrap();
        let shown: Vec<_> = found.iter().map(|one| (one.line, one.lines.len(), one.stays)).collect();
        assert_eq!(shown, [(2, 2, 0), (9, 2, 1), (13, 1, 0)]);
        assert_eq!(found[2].needs.as_deref(), Some("a GPU"));
        assert_eq!(promised(&found[1]).collect::<Vec<_>>(), ["{\"r\":1}"]);
    }

    #[test]
    fn what_is_said_of_a_snippet_is_understood_or_refused() {
        assert!(snippets("```sh later\n```\n").unwrap_err().contains("`later`"));
        assert!(snippets("\n```bash\n```\n").unwrap_err().starts_with("2: write `sh`"));
    }

    #[test]
    fn a_command_that_fails_and_a_promise_that_is_not_kept_are_noticed() {
        let desk = Desk::set(Path::new("/no/library")).unwrap();
        let run = |text: &str| desk.try_out(&snippets(text).unwrap()[0]);
        run("```sh\necho '{\"r\":1}'  # {\"r\":1}\n```").unwrap();
        assert!(run("```sh\necho 2 # {\"r\":1}\n```").unwrap_err().contains("it printed: 2"));
        assert!(run("```sh\nfalse\necho 1\n```").is_err());
        run("```sh\ncd examples\n```").unwrap();
        run("```sh\nls hello\n```").unwrap();
        run("```sh stays=1\nwhile [ ! -e up ]; do touch up; done; sleep 60\nls up\n```").unwrap();
    }
}
