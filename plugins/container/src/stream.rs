//! Between a client's hijacked connection and a shim's stream.

use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use gantry_sdk::route::HijackedIo;
use gantry_sdk::{Error, Request, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Raw bytes of a terminal, and what clients before 1.42 expect of everything.
pub const RAW: &str = "application/vnd.docker.raw-stream";
/// Frames of 8 bytes head and data.
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

const BUFFER: usize = 64 << 10;
/// How often a client that has ended its input is asked whether it still listens.
const STILL_THERE: Duration = Duration::from_secs(1);

/// The content type of a stream of a process.
pub fn content_type(request: &Request, tty: bool) -> &'static str {
    let frames = !tty && request.version >= gantry_sdk::ApiVersion::v1(42);
    if frames && request.wants_upgrade() { MULTIPLEXED } else { RAW }
}

/// A stream for a shim, and our end of it.
///
/// # Errors
///
/// `Internal` if no descriptors are left.
pub fn pair() -> Result<(StdStream, UnixStream)> {
    let failed = |e| Error::internal("cannot make a socket pair", e);
    let (theirs, ours) = StdStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    Ok((theirs, UnixStream::from_std(ours).map_err(failed)?))
}

/// The keys that end an attachment without ending the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// Reads `ctrl-p,ctrl-q` or single characters; empty is the default, and without a terminal no
    /// key detaches.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` with the reference engine's text.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self(vec![0x10, 0x11]));
        }
        let mut keys = Vec::new();
        for key in text.split(',') {
            keys.push(one_key(key).ok_or_else(|| {
                Error::invalid(format!("Invalid detach keys ({text:.80}) provided"))
            })?);
        }
        Ok(Self(keys))
    }

    /// No key detaches.
    pub const fn none() -> Self {
        Self(Vec::new())
    }
}

/// A character, or `ctrl-` and one of `a`–`z`, `@`, `[`, `\`, `]`, `^`, `_`.
fn one_key(key: &str) -> Option<u8> {
    if let [byte] = key.as_bytes() {
        return Some(*byte);
    }
    match key.strip_prefix("ctrl-")?.as_bytes() {
        [c @ b'a'..=b'z'] => Some(c - b'a' + 1),
        [c @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => Some(c - b'@'),
        _ => None,
    }
}

/// Why copying ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process closed its output, or the client is gone.
    Closed,
    /// The client pressed the detach keys.
    Detached,
}

/// Copies both ways until the process has closed its output. The client's end of file is passed on
/// and does not end the copying; the client's going away does. `settled` is awaited between the last
/// byte and the client's end of file: what a client asks next must be true by then.
pub async fn copy(
    client: HijackedIo,
    shim: UnixStream,
    keys: &DetachKeys,
    stdin: bool,
    settled: impl Future<Output = ()>,
) -> End {
    let (client_in, mut client_out) = tokio::io::split(client);
    let (mut shim_in, shim_out) = shim.into_split();
    let (ended, input_ended) = watch::channel(false);
    let input = async move {
        let end = if stdin {
            copy_input(client_in, shim_out, keys).await
        } else {
            // Nothing is expected from the client but its end.
            drain(client_in).await;
            drop(shim_out);
            Ok(End::Closed)
        };
        ended.send_replace(true);
        end
    };
    let output = async {
        let copied = copy_output(&mut shim_in, &mut client_out, input_ended).await;
        settled.await;
        let _ = client_out.shutdown().await;
        copied
    };
    tokio::pin!(input, output);
    tokio::select! {
        _ = &mut output => End::Closed,
        end = &mut input => match end {
            Ok(End::Detached) => End::Detached,
            // The client's side is closed or broken: what the process still writes goes on.
            _ => {
                let _ = output.await;
                End::Closed
            }
        },
    }
}

async fn drain(mut from: impl AsyncRead + Unpin) {
    let mut buffer = [0; 1024];
    while matches!(from.read(&mut buffer).await, Ok(n) if n > 0) {}
}

/// Until the process has closed its output, or nobody is there to read it.
async fn copy_output(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut input_ended: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let ask = async {
            let _ = input_ended.wait_for(|ended| *ended).await; // an error: it has ended, too
            tokio::time::sleep(STILL_THERE).await;
        };
        let n = tokio::select! {
            n = from.read(&mut buffer) => n?,
            () = ask => {
                // A process that is silent, or was never started, must not keep who has gone: the
                // end of input may be all that is heard of that. Nothing is written, but it fails.
                std::future::poll_fn(|cx| std::pin::Pin::new(&mut *to).poll_write(cx, &[])).await?;
                continue;
            }
        };
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n]).await?;
        to.flush().await?;
    }
}

async fn copy_input(
    mut from: impl AsyncRead + Unpin,
    mut to: tokio::net::unix::OwnedWriteHalf,
    keys: &DetachKeys,
) -> std::io::Result<End> {
    let mut buffer = vec![0; BUFFER];
    let mut seen = 0;
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            to.shutdown().await?;
            return Ok(End::Closed);
        }
        let (pass, detached) = filter(&buffer[..n], &keys.0, &mut seen);
        to.write_all(&pass).await?;
        if detached {
            return Ok(End::Detached);
        }
    }
}

/// What of `input` is passed on, and whether the keys are complete. `seen` keys of an unfinished
/// sequence are held back until it is known what they are.
fn filter<'a>(
    input: &'a [u8],
    keys: &[u8],
    seen: &mut usize,
) -> (std::borrow::Cow<'a, [u8]>, bool) {
    if keys.is_empty() || (*seen == 0 && !input.contains(&keys[0])) {
        return (input.into(), false);
    }
    let mut pass = Vec::with_capacity(input.len() + *seen);
    for byte in input {
        if *byte == keys[*seen] {
            *seen += 1;
            if *seen == keys.len() {
                return (pass.into(), true);
            }
            continue;
        }
        pass.extend_from_slice(&keys[..*seen]);
        *seen = usize::from(*byte == keys[0]);
        if *seen == 0 {
            pass.push(*byte);
        }
    }
    (pass.into(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_across_reads() {
        let keys = DetachKeys::parse("").unwrap().0;
        type Case<'a> = (&'a [&'a [u8]], &'a [u8], bool);
        let cases: [Case<'_>; 4] = [
            (&[b"abc"], b"abc", false),
            (&[b"a\x10", b"\x11"], b"a", true),
            (&[b"a\x10", b"b"], b"a\x10b", false),
            (&[b"\x10\x10\x11"], b"\x10", true),
        ];
        for (reads, passed, detached) in cases {
            let (mut seen, mut got, mut end) = (0, Vec::new(), false);
            for read in reads {
                let (pass, done) = filter(read, &keys, &mut seen);
                got.extend_from_slice(&pass);
                end |= done;
            }
            assert_eq!((got.as_slice(), end), (passed, detached), "{reads:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_is_gone_ends_the_copying_though_the_process_is_silent() {
        for stdin in [false, true] {
            let (mut client, far) = UnixStream::pair().unwrap();
            let (theirs, ours) = pair().unwrap();
            theirs.set_nonblocking(true).unwrap();
            let mut process = UnixStream::from_std(theirs).unwrap();
            let keys = DetachKeys::none();
            let copying = copy(Box::pin(far), ours, &keys, stdin, std::future::ready(()));
            let going = async {
                // The end of its input is not the end of the client.
                client.shutdown().await.unwrap();
                tokio::time::sleep(STILL_THERE * 3 / 2).await;
                process.write_all(b"said").await.unwrap();
                let mut said = [0; 4];
                client.read_exact(&mut said).await.unwrap();
                assert_eq!(&said, b"said");
                drop(client);
            };
            let (end, ()) = tokio::join!(copying, going);
            assert_eq!(end, End::Closed);
            assert!(process.write_all(b"more").await.is_err());
        }
    }

    #[test]
    fn detach_keys_are_read_by_name() {
        assert_eq!(DetachKeys::parse("ctrl-a,x").unwrap().0, [1, b'x']);
        assert!(DetachKeys::parse("ctrl-1").is_err());
        assert!(DetachKeys::parse("control-a").is_err());
    }
}
