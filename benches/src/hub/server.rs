//! A file server as bare as can be, with a cap on each connection if one is wanted.

use std::{
    io::{BufRead, BufReader, Read},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gen_worker_core::{Algorithm, Hasher};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

/// The content repeats after this many bytes.
const BLOCK: usize = 1 << 20;
/// Longest request head.
const MAX_HEAD: usize = 16 << 10;

struct Shared {
    block: Vec<u8>,
    size: u64,
    sha256: String,
    cap: Option<u64>,
    served: AtomicU64,
}

/// Serves until stdin ends.
#[expect(clippy::print_stdout, reason = "the address is for the one who started it")]
pub(crate) async fn serve(size: u64, cap: Option<u64>) {
    let block: Vec<u8> = (0..BLOCK).map(|n| (n * 31 % 251) as u8).collect();
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for start in (0..size).step_by(BLOCK) {
        hasher.update(&block[..BLOCK.min((size - start) as usize)]);
    }
    let sha256 = hasher.finish().hex();
    let shared = Arc::new(Shared { block, size, sha256, cap, served: AtomicU64::new(0) });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    println!("http://{}", listener.local_addr().expect("it is bound"));
    let mut connections = JoinSet::new();
    let mut end = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("connections can be taken");
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    // One that breaks off has been killed.
                    let _ = answer(stream, &shared).await;
                });
            }
            _ = &mut end => break,
        }
    }
    println!("{}", shared.served.load(Ordering::Relaxed));
}

async fn answer(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let (mut head, mut started) = (Vec::new(), (Instant::now(), 0));
    while stream.read_buf(&mut head).await? > 0 && head.len() < MAX_HEAD {
        let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let request = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
        head.drain(..end + 4);
        let range = request.lines().find_map(|line| asked(line.strip_prefix("range: bytes=")?));
        let range = range.map(|range| range.start..range.end.min(shared.size));
        let (status, of) = match &range {
            Some(range) => {
                let of =
                    format!("content-range: bytes {}-{}/{}\r\n", range.start, range.end - 1, shared.size);
                ("206 Partial Content", of)
            }
            None => ("200 OK", String::new()),
        };
        let range = range.unwrap_or(0..shared.size);
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"1\"\r\nx-cozy-sha256: {}\r\n{of}\r\n",
            range.end - range.start,
            shared.sha256,
        );
        stream.write_all(head.as_bytes()).await?;
        send(&mut stream, shared, range, &mut started).await?;
    }
    Ok(())
}

/// Sends a range; `started` is when the connection began to send, and how much it has sent since.
async fn send(
    stream: &mut TcpStream,
    shared: &Shared,
    range: Range<u64>,
    started: &mut (Instant, u64),
) -> std::io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let from = (at % BLOCK as u64) as usize;
        let most = if shared.cap.is_some() { 64 << 10 } else { BLOCK };
        let length = most.min(BLOCK - from).min((range.end - at) as usize);
        stream.write_all(&shared.block[from..from + length]).await?;
        shared.served.fetch_add(length as u64, Ordering::Relaxed);
        at += length as u64;
        if let Some(cap) = shared.cap {
            started.1 += length as u64;
            let due = started.0 + Duration::from_secs_f64(started.1 as f64 / cap as f64);
            // What was not sent in time is not made up for.
            started.0 += Instant::now().saturating_duration_since(due);
            tokio::time::sleep_until(due).await;
        }
    }
    Ok(())
}

fn asked(range: &str) -> Option<Range<u64>> {
    let (first, last) = range.split_once('-')?;
    Some(first.parse().ok()?..last.trim().parse::<u64>().ok()? + 1)
}

/// A line that a process says.
pub(crate) fn line(from: &mut impl Read) -> String {
    // One byte at a time, so that the next line is left to the next call.
    let mut line = String::new();
    BufReader::with_capacity(1, from).read_line(&mut line).expect("it says a line");
    line.trim().to_owned()
}
