//! A store on loopback that forgets what it is sent: as fast as a server of HTTP can be, and as little of S3 as it takes.

use std::io;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// How much is read at once.
const CHUNK_BYTES: usize = 256 << 10;

pub(crate) struct Sink {
    /// Host and port.
    pub(crate) addr: String,
    _serving: JoinSet<()>,
}

impl Sink {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let addr = listener.local_addr().expect("a bound listener has an address").to_string();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                // It ends when the client hangs up.
                connections.spawn(async { drop(serve(connection).await) });
            }
        });
        Self { addr, _serving: serving }
    }
}

/// What matters of a request's head.
#[derive(Default)]
struct Head {
    line: String,
    length: usize,
    waits: bool,
}

async fn serve(connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut connection = BufReader::with_capacity(CHUNK_BYTES, connection);
    loop {
        let head = read_head(&mut connection).await?;
        if head.waits {
            connection.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut left = head.length;
        while left > 0 {
            let here = connection.fill_buf().await?.len().min(left);
            if here == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            connection.consume(here);
            left -= here;
        }
        let body = answer(&head.line);
        let answer =
            format!("HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        connection.get_mut().write_all(answer.as_bytes()).await?;
    }
}

async fn read_head(connection: &mut BufReader<TcpStream>) -> io::Result<Head> {
    let mut head = Head::default();
    if connection.read_line(&mut head.line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).await?;
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(": ") {
            Some(("content-length", length)) => head.length = length.parse().unwrap_or(0),
            Some(("expect", _)) => head.waits = true,
            Some(_) => {}
            None => return Ok(head),
        }
    }
}

fn answer(line: &str) -> &'static str {
    match line {
        line if !line.starts_with("POST") => "",
        line if line.contains("uploads=") => "<R><UploadId>1</UploadId></R>",
        _ => "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>",
    }
}

/// Puts a body over an open connection, as raw as it gets, and waits for the answer.
pub(crate) async fn put(
    connection: &mut TcpStream,
    (host, path): (&str, &str),
    length: u64,
    mut body: impl tokio::io::AsyncRead + Unpin,
) -> io::Result<()> {
    let head = format!("PUT {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
    connection.write_all(head.as_bytes()).await?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match body.read(&mut chunk).await? {
            0 => break,
            read => connection.write_all(&chunk[..read]).await?,
        }
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if connection.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    match answer.starts_with(b"HTTP/1.1 200") {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())),
    }
}
