//! Lines of the log on their way to stderr: without what looks like a credential, and shown to the reports of runs that fail.

use std::io::{self, Write};

use gen_worker_core::hide_credentials;

use crate::backlog::{Backlog, STDERR};

/// Where log lines go.
pub(crate) fn stderr() -> Lines<&'static Backlog> {
    Lines(&STDERR)
}

/// Stderr for a process that waits for nobody who reads it. The lines that came last are written before this is dropped, if they
/// are taken within a second.
pub struct Stderr(());

impl Stderr {
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> io::Result<Self> {
        STDERR.start()?;
        Ok(Self(()))
    }

    /// Takes a line with each write.
    pub fn line() -> impl Write {
        stderr()
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        STDERR.flush();
    }
}

/// Takes each line as a whole, as the log writes it.
pub(crate) struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line)?;
        Ok(line.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let line = String::from_utf8_lossy(line);
        let line = hide_credentials(&line);
        gen_worker_runtime::keep_line(line.as_bytes());
        self.0.write_all(line.as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use tracing::{error, subscriber::with_default};
    use tracing_subscriber::fmt;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn say() {
        error!(url = "https://u:hunter2@h/x?X-Amz-Signature=hunter2&a=1", "with Bearer hunter2.hunter2");
        error!("password=hunter2\" and {:?}", "api_key=hunter2");
    }

    #[test]
    fn what_looks_like_a_credential_leaves_no_process() {
        let log = Shared::default();
        let (one, other) = (log.clone(), log.clone());
        with_default(fmt().json().with_writer(move || Lines(one.clone())).finish(), say);
        let json = String::from_utf8(log.0.lock().unwrap().drain(..).collect()).unwrap();
        let lines: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["fields"]["url"], "https://u:<redacted>@h/x?X-Amz-Signature=<redacted>&a=1");
        with_default(fmt().with_writer(move || Lines(other.clone())).finish(), say);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        for log in [json, text] {
            assert!(log.contains("<redacted>") && !log.contains("hunter2"), "{log}");
        }
    }
}
