//! Stderr, shown to the reports of runs that fail on its way.

use std::io::{self, Stderr, Write};

/// Where log lines go.
pub(crate) fn stderr() -> Shown {
    Shown(io::stderr())
}

/// Writes each line as a whole, as the log does.
pub(crate) struct Shown(Stderr);

impl Write for Shown {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line)?;
        Ok(line.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        gen_worker_runtime::keep_line(line);
        self.0.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
