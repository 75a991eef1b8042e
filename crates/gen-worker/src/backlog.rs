//! Lines of the log between those who write them and stderr, which a thread of its own writes to: nobody who logs waits for whoever
//! reads it, be it a full pipe or a disk that hangs.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use gen_worker_core::{
    metric::{Metric, Readings},
    ports::Measured,
};
use tracing::warn;

/// Bytes of lines that wait, some thousand lines. Beyond it the oldest are dropped: the last ones say why a worker ended.
const KEPT_BYTES: usize = 1 << 20;

/// How long the last words of a process, or of a panic, which may end it, are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);

static DROPPED: Metric = Metric::counter(
    "gen_worker_log_lines_dropped_total",
    "lines",
    &[],
    "Lines of the log that were dropped because stderr takes them more slowly than they come, or not at all.",
);

/// What is counted of the log.
#[cfg(test)]
pub(crate) static METRICS: &[&Metric] = &[&DROPPED];

/// There is one stderr for each process.
pub(crate) static STDERR: Backlog = Backlog::new(KEPT_BYTES);

/// Lines that wait for their writer.
pub(crate) struct Backlog {
    max_bytes: usize,
    lines: Mutex<Lines>,
    /// There is a line.
    some: Condvar,
    /// A line was written, or dropped.
    fewer: Condvar,
}

struct Lines {
    /// Somebody writes them.
    are_written: bool,
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Lines that were taken so far, and those of them that wait no more.
    taken: u64,
    done: u64,
    dropped: u64,
    /// Of the lines that were dropped, those of which the log speaks.
    told: u64,
    /// Somebody has waited in vain since a line was last written.
    is_stuck: bool,
}

impl Backlog {
    const fn new(max_bytes: usize) -> Self {
        let lines = Lines {
            are_written: false,
            waiting: VecDeque::new(),
            bytes: 0,
            taken: 0,
            done: 0,
            dropped: 0,
            told: 0,
            is_stuck: false,
        };
        Self { max_bytes, lines: Mutex::new(lines), some: Condvar::new(), fewer: Condvar::new() }
    }

    /// From now on lines go to stderr, on a thread of their own.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(&'static self) -> io::Result<()> {
        let write = || {
            loop {
                self.write_next(&mut io::stderr());
            }
        };
        thread::Builder::new().name("log".to_owned()).spawn(write)?;
        self.lines().are_written = true;
        Ok(())
    }

    /// Takes a line, with its end. Waits for nothing.
    fn push(&self, line: Vec<u8>) {
        let mut lines = self.lines();
        lines.taken += 1;
        lines.bytes += line.len();
        lines.waiting.push_back(line);
        while lines.bytes > self.max_bytes && lines.drop_oldest() {}
        let is_first = lines.waiting.len() == 1;
        drop(lines);
        if is_first {
            self.some.notify_one();
        }
    }

    /// Whether there is somebody who writes what is pushed.
    pub(crate) fn is_written(&self) -> bool {
        self.lines().are_written
    }

    /// Waits until what was pushed is written, for a second at most, and not at all while somebody before has waited in vain.
    pub(crate) fn flush(&self) {
        self.flush_within(LAST_WORDS);
    }

    fn flush_within(&self, patience: Duration) {
        let lines = self.lines();
        if !lines.are_written || lines.is_stuck {
            return;
        }
        let last = lines.taken;
        let waited = self.fewer.wait_timeout_while(lines, patience, |lines| lines.done < last);
        let (mut lines, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        lines.is_stuck = waited.timed_out();
    }

    /// Writes a line, once there is one. The first that is written after some were dropped is followed by a line that says so.
    fn write_next(&self, out: &mut impl Write) {
        let lines = self.lines();
        let some = self.some.wait_while(lines, |lines| lines.waiting.is_empty());
        let line = some.unwrap_or_else(PoisonError::into_inner).take();
        let written = out.write_all(&line);
        let mut lines = self.lines();
        lines.done += 1;
        lines.is_stuck = false;
        let untold = match written {
            Ok(()) => lines.tell(),
            Err(_) => {
                lines.dropped += 1;
                0
            }
        };
        drop(lines);
        self.fewer.notify_all();
        if untold > 0 {
            warn!(lines = untold, "lines of the log were dropped: stderr takes them too slowly");
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line at a time.
impl Write for &Backlog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line.to_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The oldest line; empty: there is none.
    fn take(&mut self) -> Vec<u8> {
        let line = self.waiting.pop_front().unwrap_or_default();
        self.bytes -= line.len();
        line
    }

    /// How many were dropped since it was last asked.
    fn tell(&mut self) -> u64 {
        self.dropped - std::mem::replace(&mut self.told, self.dropped)
    }

    /// Says whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let is_there = !self.waiting.is_empty();
        if is_there {
            self.take();
            self.done += 1;
            self.dropped += 1;
        }
        is_there
    }
}

/// The lines that were dropped, for those who watch the worker.
pub(crate) struct LogMeter;

impl Measured for LogMeter {
    fn measure(&self, readings: &mut Readings) {
        readings.add(&DROPPED, STDERR.lines().dropped);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Each line waits for a word before it is written.
    struct Reader {
        reads: mpsc::Receiver<()>,
        read: mpsc::Sender<String>,
    }

    impl Write for Reader {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.reads.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.read.send(String::from_utf8_lossy(line).into_owned()).map_err(io::Error::other)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn backlog(max_bytes: usize) -> Backlog {
        let backlog = Backlog::new(max_bytes);
        backlog.lines().are_written = true;
        backlog
    }

    fn push(backlog: &Backlog, lines: impl IntoIterator<Item = u32>) {
        lines.into_iter().for_each(|line| backlog.push(line.to_string().into()));
    }

    #[test]
    fn every_buffer_is_bounded() {
        let backlog = backlog(20);
        push(&backlog, 10..30);
        let lines = backlog.lines();
        assert_eq!((lines.bytes, lines.dropped, lines.taken - lines.done), (20, 10, 10));
        assert_eq!(lines.waiting.front().map(Vec::as_slice), Some(&b"20"[..]), "the oldest went");
        drop(lines);
        backlog.push(vec![b'x'; 21]);
        let lines = backlog.lines();
        assert_eq!((lines.bytes, lines.dropped), (0, 21));
    }

    #[test]
    fn last_words_are_waited_for_and_not_for_ever() {
        let (backlog, (go, reads), (read, heard)) = (backlog(100), mpsc::channel(), mpsc::channel());
        let mut out = Reader { reads, read };
        thread::scope(|scope| {
            scope.spawn(|| (0..3).for_each(|_| backlog.write_next(&mut out)));
            push(&backlog, [1, 2]);
            backlog.flush_within(Duration::ZERO);
            assert!(backlog.lines().is_stuck);
            // Nor does anybody wait again for the same reader.
            backlog.flush_within(Duration::MAX);
            (0..2).for_each(|_| go.send(()).unwrap());
            assert_eq!([(); 2].map(|()| heard.recv().unwrap()), ["1", "2"]);
            while backlog.lines().done < 2 {
                thread::yield_now();
            }
            go.send(()).unwrap();
            push(&backlog, [3]);
            backlog.flush_within(Duration::from_secs(60));
            assert_eq!(heard.try_recv().as_deref(), Ok("3"), "it was waited for");
        });
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_spoken_of_when_it_can_again() {
        let (backlog, (go, reads), (read, _heard)) = (backlog(100), mpsc::channel(), mpsc::channel());
        let mut out = Reader { reads, read };
        push(&backlog, [1, 2, 3]);
        go.send(()).unwrap();
        drop(go);
        (0..3).for_each(|_| backlog.write_next(&mut out));
        let lines = backlog.lines();
        assert_eq!((lines.done, lines.dropped, lines.told), (3, 2, 0));
        drop(lines);
        push(&backlog, [4]);
        backlog.write_next(&mut Vec::new());
        assert_eq!(backlog.lines().told, 2);
    }
}
