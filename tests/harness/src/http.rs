//! Requests written byte by byte: for what the docker CLI never sends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// How long to wait for the next byte of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most an answer's head may hold, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// An answer, taken apart.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The words after the status code.
    pub reason: String,
    /// Header names, as sent, with their values.
    pub headers: Vec<(String, String)>,
    /// The body, with any chunking removed.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of the first header called `name`, in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The body as JSON.
    ///
    /// # Errors
    ///
    /// If it is not JSON; the message shows it.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON: {} {:?}", self.status, self.text()))
    }

    /// The body as text, lossily decoded.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `message` of an error answer, or the empty string.
    #[must_use]
    pub fn message(&self) -> String {
        let value = serde_json::from_slice::<Value>(&self.body).unwrap_or_default();
        value["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// A request, for [`send`].
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query, as they go on the wire.
    pub path: &'a str,
    /// More headers than `Host`, `Connection` and `Content-Length`.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
}

impl Request<'_> {
    fn to_bytes(&self, connection: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: docker\r\n", self.method, self.path);
        head += &format!("Connection: {connection}\r\n");
        for (name, value) in self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let chunked = self.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("transfer-encoding"));
        if !chunked && (!self.body.is_empty() || !matches!(self.method, "GET" | "HEAD")) {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body);
        bytes
    }
}

/// Sends `request` to the daemon listening at `socket` and reads the whole answer.
///
/// # Errors
///
/// If there is no connection, no byte for 30 s, or what comes is not HTTP.
pub fn send(socket: &Path, request: &Request<'_>) -> Result<Response> {
    let bytes = raw(socket, &request.to_bytes("close"))?;
    parse(&bytes, request.method == "HEAD")
        .with_context(|| format!("{} {}", request.method, request.path))
}

/// Sends `bytes` and returns everything that comes back until the daemon closes.
///
/// # Errors
///
/// If there is no connection, or no byte for 30 s.
pub fn raw(socket: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = connect(socket)?;
    // The daemon may answer and close before it has read everything.
    let written = stream.write_all(bytes);
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) if !all.is_empty() && error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => {
            written.context("cannot send the request")?;
            return Err(error).context("no answer");
        }
    }
    Ok(all)
}

/// Sends `request` and returns the head of the answer with the connection, positioned after it: for
/// streams without an end, and for hijacked connections when `upgrade` is set.
///
/// # Errors
///
/// As [`send`].
pub fn open(socket: &Path, request: &Request<'_>, upgrade: bool) -> Result<(Response, UnixStream)> {
    let mut stream = connect(socket)?;
    let mut headers = request.headers.to_vec();
    if upgrade {
        headers.push(("Upgrade", "tcp"));
    }
    let request = Request { headers: &headers, ..request.clone() };
    let connection = if upgrade { "Upgrade" } else { "close" };
    stream.write_all(&request.to_bytes(connection))?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("no answer")?;
        head.push(byte[0]);
        ensure!(head.len() < MAX_HEAD, "the head of the answer has no end");
    }
    Ok((parse_head(&head)?.0, stream))
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn parse_head(bytes: &[u8]) -> Result<(Response, usize)> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").context("no end of headers")?;
    let head = std::str::from_utf8(&bytes[..end])?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let mut parts = first.splitn(3, ' ');
    ensure!(parts.next().is_some_and(|v| v.starts_with("HTTP/1.")), "not HTTP: {first}");
    let status = parts.next().unwrap_or_default().parse().context("no status")?;
    let reason = parts.next().unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').context("a header without a colon")?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok((Response { status, reason, headers, body: Vec::new() }, end + 4))
}

/// Takes an answer apart. `bodiless` for answers to `HEAD`.
///
/// # Errors
///
/// If it is not HTTP/1, or shorter than it says.
pub fn parse(bytes: &[u8], bodiless: bool) -> Result<Response> {
    let (mut response, start) = parse_head(bytes)?;
    let rest = &bytes[start..];
    let chunked = response.header("Transfer-Encoding").is_some_and(|v| v.contains("chunked"));
    response.body = if bodiless {
        ensure!(rest.is_empty(), "an answer to HEAD with a body");
        Vec::new()
    } else if chunked {
        dechunk(rest)?
    } else if let Some(length) = response.header("Content-Length") {
        let length = length.parse::<usize>()?;
        ensure!(rest.len() == length, "{} bytes of body, {length} announced", rest.len());
        rest.to_vec()
    } else {
        rest.to_vec()
    };
    Ok(response)
}

fn dechunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end =
            rest.windows(2).position(|w| w == b"\r\n").context("the last chunk is missing")?;
        let size = std::str::from_utf8(&rest[..end])?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Ok(body);
        }
        ensure!(rest.len() >= size + 2, "a chunk is cut short");
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

/// Takes Docker's multiplexed stream apart: (stream number, bytes) as they came.
///
/// # Errors
///
/// If a frame is cut short or has an unknown stream number.
pub fn demultiplex(mut bytes: &[u8]) -> Result<Vec<(u8, Vec<u8>)>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        ensure!(bytes.len() >= 8, "a frame header is cut short");
        let [stream, 0, 0, 0, a, b, c, d] = bytes[..8] else {
            anyhow::bail!("not a frame header: {:?}", &bytes[..8]);
        };
        ensure!(stream <= 3, "no such stream: {stream}");
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d]))?;
        ensure!(bytes.len() >= 8 + length, "a frame is cut short");
        frames.push((stream, bytes[8..8 + length].to_vec()));
        bytes = &bytes[8 + length..];
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let answer = b"HTTP/1.1 404 Not Found\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n\
            5\r\n{\"mes\r\n9;x=y\r\nsage\":\"no\r\n2\r\n\"}\r\n0\r\n\r\n";
        let response = parse(answer, false).unwrap();
        assert_eq!((response.status, response.message().as_str()), (404, "no"));
        assert_eq!(response.header("a"), Some("b"));
        assert!(parse(&answer[..answer.len() - 7], false).is_err(), "no last chunk");
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", false).is_err());
    }

    #[test]
    fn frames_are_taken_apart() {
        let frames = demultiplex(b"\x01\0\0\0\0\0\0\x02hi\x02\0\0\0\0\0\0\0").unwrap();
        assert_eq!(frames, [(1, b"hi".to_vec()), (2, Vec::new())]);
        assert!(demultiplex(b"\x01\0\0\0\0\0\0\x02h").is_err());
        assert!(demultiplex(b"hello, world").is_err());
    }
}
