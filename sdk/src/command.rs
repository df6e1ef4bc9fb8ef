//! Commands of plugins: `gantryd <name> …`, run in a process of its own that talks to the daemon.
//!
//! The kernel names no plugin, so it knows no command either: it finds the first argument that is no
//! flag among the commands that descriptors declare, and works out where the daemon listens the same
//! way the daemon does. A command is a client like any other; what it can do, routes can.

use std::any::Any;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use crate::mounts::MountExecutor;
use crate::registry::Registry;
use crate::route::Method;
use crate::{Error, ErrorKind, Result};

/// The longest head of an answer, in bytes.
const HEAD_LIMIT: u64 = 64 << 10;
/// The longest answer that is read whole, in bytes.
const WHOLE_LIMIT: u64 = 64 << 20;
/// The longest message of a stream, in bytes.
const MESSAGE_LIMIT: u64 = 4 << 20;

/// A command that a plugin adds to the daemon's program.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// The word after the program's name; unique over all plugins.
    pub name: &'static str,
    /// One line for `gantryd --help`.
    pub about: &'static str,
    /// Does it. Gets everything that follows the name, `--help` too.
    pub run: fn(&mut CommandContext) -> ExitCode,
}

/// What a command is given.
pub struct CommandContext {
    /// The arguments after the command's name.
    pub args: Vec<OsString>,
    /// The way to the running daemon.
    pub client: Client,
    /// Plugins without a daemon, for commands that try them.
    pub workbench: Arc<dyn Workbench>,
    /// Standard output.
    pub out: Box<dyn Write + Send>,
    /// Standard error.
    pub err: Box<dyn Write + Send>,
    /// Whether standard output is a terminal, where lines may be drawn anew.
    pub interactive: bool,
}

impl std::fmt::Debug for CommandContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandContext").field("args", &self.args).finish_non_exhaustive()
    }
}

impl CommandContext {
    /// Says what went wrong, and gives the exit code for it.
    pub fn fail(&mut self, error: &Error) -> ExitCode {
        let _ = writeln!(self.err, "error: {}", error.chain()); // nobody may be reading
        ExitCode::from(1)
    }
}

/// Starts plugins apart from the daemon, each time on a data root of their own.
#[async_trait]
pub trait Workbench: Send + Sync {
    /// Starts the plugins that provide `instance` of `kind`, and before them those that they need, with
    /// the defaults of their configuration. They serve no requests. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// `NotFound` if no plugin of this build provides it. That it cannot be used here is what the
    /// registry says when it is asked for it.
    async fn start(&self, kind: &str, instance: &str, data_root: &Path) -> Result<Started>;

    /// What executes their mount plans.
    fn mounts(&self) -> Arc<dyn MountExecutor>;
}

/// Plugins on the workbench.
pub struct Started {
    /// What they provide.
    pub registry: Arc<Registry>,
    /// Their tasks end when this is dropped.
    pub keep: Box<dyn Any + Send + Sync>,
}

impl std::fmt::Debug for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Started").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// Speaks HTTP/1.1 with the daemon over its unix socket, one connection for each request. Blocking.
#[derive(Clone, Debug)]
pub struct Client(std::result::Result<PathBuf, String>);

impl Client {
    /// A client of the daemon that listens at `socket`. Does not connect yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self(Ok(socket.into()))
    }

    /// A client that has nowhere to go, and says `why` when it is used.
    pub fn nowhere(why: impl Into<String>) -> Self {
        Self(Err(why.into()))
    }

    /// Sends a request, with `body` as JSON, and returns its answer once the head of it is here.
    /// `path` is percent-encoded by the caller.
    ///
    /// # Errors
    ///
    /// `Unavailable` if nobody listens; for a status that is no success, the daemon's own message with
    /// the kind of that status.
    pub fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let socket = self.0.as_ref().map_err(|why| Error::unavailable(why.clone()))?;
        let stream = UnixStream::connect(socket).map_err(|e| {
            let at = socket.display();
            Error::unavailable(format!("cannot reach the daemon at {at}")).caused_by(e)
        })?;
        let text = body.map(Value::to_string).unwrap_or_default();
        let mut head =
            format!("{} {path} HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n", name_of(method));
        if body.is_some() {
            head += "Content-Type: application/json\r\n";
        }
        if body.is_some() || !matches!(method, Method::Get | Method::Head) {
            head += &format!("Content-Length: {}\r\n", text.len());
        }
        head += "\r\n";
        (&stream)
            .write_all((head + &text).as_bytes())
            .map_err(|e| Error::io("send to", "the daemon", e))?;
        Answer::read(BufReader::new(stream))
    }

    /// A JSON document.
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send), and for what is no JSON.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.send(Method::Get, path, None)?.json()
    }
}

const fn name_of(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Options => "OPTIONS",
    }
}

/// How the end of an answer's body is known.
#[derive(Debug)]
enum Framing {
    Left(u64),
    /// Bytes left of the present chunk; none before the first and between two.
    Chunks(Option<u64>),
    UntilClosed,
}

/// A successful answer. Reading gives its body as it comes.
#[derive(Debug)]
pub struct Answer {
    /// The status code, 2xx.
    pub status: u16,
    stream: BufReader<UnixStream>,
    framing: Framing,
}

impl Answer {
    fn read(mut stream: BufReader<UnixStream>) -> Result<Self> {
        let bad = || Error::unavailable("what answers at the daemon's socket does not speak HTTP");
        let broken = |e| Error::io("read the answer of", "the daemon", e);
        let mut budget = HEAD_LIMIT;
        let first = head_line(&mut stream, &mut budget).map_err(broken)?;
        let mut words = first.split(' ');
        let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
        let status = words.next().filter(|_| is_http).and_then(|s| s.parse::<u16>().ok());
        let status = status.ok_or_else(bad)?;
        let mut framing = Framing::UntilClosed;
        loop {
            let line = head_line(&mut stream, &mut budget).map_err(broken)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(bad)?;
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
            if name == "transfer-encoding" && value.eq_ignore_ascii_case("chunked") {
                framing = Framing::Chunks(None);
            } else if name == "content-length" && !matches!(framing, Framing::Chunks(_)) {
                framing = Framing::Left(value.parse().map_err(|_| bad())?);
            }
        }
        if matches!(status, 204 | 304) {
            framing = Framing::Left(0);
        }
        let answer = Self { status, stream, framing };
        if (200..300).contains(&status) { Ok(answer) } else { Err(answer.into_error()) }
    }

    fn into_error(self) -> Error {
        let kind = match self.status {
            400 => ErrorKind::InvalidArgument,
            403 => ErrorKind::Forbidden,
            404 => ErrorKind::NotFound,
            409 => ErrorKind::Conflict,
            501 => ErrorKind::Unsupported,
            503 => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        let status = self.status;
        let message = match self.json() {
            Ok(value) => value["message"].as_str().map(str::to_owned),
            Err(_) => None,
        };
        Error::new(kind, message.unwrap_or_else(|| format!("the daemon answered {status}")))
    }

    /// The whole body as JSON.
    ///
    /// # Errors
    ///
    /// `Unavailable` if the answer breaks off, is larger than 64 MiB, or is no JSON.
    pub fn json(self) -> Result<Value> {
        let bad = |e: io::Error| Error::unavailable("cannot read the daemon's answer").caused_by(e);
        let mut text = Vec::new();
        self.take(WHOLE_LIMIT).read_to_end(&mut text).map_err(bad)?;
        serde_json::from_slice(&text).map_err(|e| bad(e.into()))
    }

    /// The body as a stream of JSON documents, one a line, as they come.
    pub fn messages(self) -> Messages {
        Messages(Some(BufReader::new(self)))
    }
}

/// A line of the head without its end; an end of the stream is an error.
fn head_line(stream: &mut impl BufRead, budget: &mut u64) -> io::Result<String> {
    let mut line = Vec::new();
    let read = stream.take(*budget).read_until(b'\n', &mut line)?;
    *budget -= read as u64;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

impl Answer {
    /// Reads the size of the next chunk; 0 is the last one, of which the trailer is read too.
    fn next_chunk(&mut self, is_first: bool) -> io::Result<u64> {
        let mut budget = HEAD_LIMIT;
        if !is_first {
            head_line(&mut self.stream, &mut budget)?;
        }
        let line = head_line(&mut self.stream, &mut budget)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16)
            .map_err(|_| io::Error::other("a chunk without a size"))?;
        if size == 0 {
            while !head_line(&mut self.stream, &mut budget)?.is_empty() {}
        }
        Ok(size)
    }
}

impl Read for Answer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = match self.framing {
            Framing::UntilClosed => return self.stream.read(buf),
            Framing::Left(left) | Framing::Chunks(Some(left)) if left > 0 => left,
            Framing::Left(_) => return Ok(0),
            Framing::Chunks(before) => match self.next_chunk(before.is_none())? {
                0 => {
                    self.framing = Framing::Left(0);
                    return Ok(0);
                }
                size => size,
            },
        };
        let most = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let n = self.stream.read(&mut buf[..most])?;
        if n == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let left = left - n as u64;
        self.framing = match self.framing {
            Framing::Chunks(_) => Framing::Chunks(Some(left)),
            _ => Framing::Left(left),
        };
        Ok(n)
    }
}

/// See [`Answer::messages`]. Ends after the first error.
#[derive(Debug)]
pub struct Messages(Option<BufReader<Answer>>);

impl Iterator for Messages {
    type Item = Result<Value>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let reader = self.0.as_mut()?;
            let mut line = Vec::new();
            let outcome = match reader.take(MESSAGE_LIMIT).read_until(b'\n', &mut line) {
                Ok(0) => {
                    self.0 = None;
                    return None;
                }
                Ok(_) if line.iter().all(u8::is_ascii_whitespace) => continue,
                Ok(_) => serde_json::from_slice(&line).map_err(io::Error::from),
                Err(error) => Err(error),
            };
            if outcome.is_err() {
                self.0 = None;
            }
            return Some(
                outcome
                    .map_err(|e| Error::unavailable("the daemon's answer breaks off").caused_by(e)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Answers one request with `answer`; returns the client and what the request was.
    fn serve(answer: &'static str) -> (tempfile::TempDir, Client, std::thread::JoinHandle<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let (mut budget, mut lines) = (HEAD_LIMIT, String::new());
            let mut body = 0;
            loop {
                let line = head_line(&mut reader, &mut budget).unwrap();
                if let Some(length) = line.strip_prefix("Content-Length: ") {
                    body = length.parse().unwrap();
                }
                if line.is_empty() {
                    break;
                }
                lines += &(line + "\n");
            }
            let mut text = vec![0; body];
            reader.read_exact(&mut text).unwrap();
            lines += std::str::from_utf8(&text).unwrap();
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            lines
        });
        (dir, Client::new(path), server)
    }

    #[test]
    fn answers_are_read_however_they_are_framed() {
        let cases = [
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{\"a\":1}surplus",
            "HTTP/1.1 200 OK\r\n\r\n{\"a\":1}",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4;x=y\r\n\":1}\r\n0\r\nT: r\r\n\r\n",
        ];
        for answer in cases {
            let (_dir, client, server) = serve(answer);
            assert_eq!(client.get("/x").unwrap()["a"], 1, "{answer}");
            assert!(server.join().unwrap().starts_with("GET /x HTTP/1.1\nHost: daemon\n"));
        }
    }

    #[test]
    fn bodies_are_sent_and_streams_end_with_the_reason() {
        let (_dir, client, server) = serve(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"n\":1}\n\r\n9\r\n{\"n\":2}\r\n\r\n",
        );
        let body = serde_json::json!({ "to": "x" });
        let answer = client.send(Method::Post, "/m", Some(&body)).unwrap();
        let messages: Vec<_> = answer.messages().collect();
        assert_eq!(messages.len(), 3, "two, and that it breaks off: {messages:?}");
        assert_eq!(messages[1].as_ref().unwrap()["n"], 2);
        assert_eq!(messages[2].as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
        assert!(server.join().unwrap().ends_with("{\"to\":\"x\"}"));
    }

    #[test]
    fn refusals_are_the_daemons_own_words() {
        let (_dir, client, _server) =
            serve("HTTP/1.1 409 Conflict\r\nContent-Length: 17\r\n\r\n{\"message\":\"no\"}\n");
        let error = client.get("/x").unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Conflict, "no"));
        let (_dir, client, _server) = serve("SSH-2.0-x\r\n");
        assert_eq!(client.get("/x").unwrap_err().kind(), ErrorKind::Unavailable);
        let error = Client::new("/no/such/socket").get("/x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let error = Client::nowhere("only TCP").get("/x").unwrap_err();
        assert_eq!(error.to_string(), "only TCP");
    }
}
