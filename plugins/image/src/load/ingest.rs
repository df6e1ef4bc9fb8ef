//! An archive on its way in: one pass, in which every large member becomes a blob.
//!
//! Members of image archives are named in files that may come last, so nothing can be known about
//! a member when it passes. Small ones are kept in memory, large ones go straight to the blob store
//! and, if they look like layers, at the same time to the layer store, which unpacks them without
//! knowing what they belong to. What turns out to be of no use is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};
use gantry_archive::{ArchiveError, Compression, Kind, Limits, Reader};
use gantry_sdk::id::Digest;
use gantry_sdk::route::RequestBody;
use gantry_sdk::{Error, ErrorKind, Result};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use super::sink::{Coming, Sink, Stored};

/// Members up to this are kept in memory …
const SMALL: u64 = 256 << 10;
/// … as long as all of them together are not more than this.
const SMALL_TOTAL: u64 = 32 << 20;
/// Most members of an archive: an image has a handful for each layer.
const MAX_MEMBERS: u64 = 64 << 10;
/// Most bytes of a member's name.
const MAX_NAME: usize = 1024;
/// Links followed from one name.
const MAX_LINKS: usize = 16;
/// Frames of the request that may wait.
const QUEUE: usize = 8;
/// Bytes read at once.
const PIECE: usize = 256 << 10;
/// Layers whose unpacking may still go on while the next ones are read.
const MAX_COMING: usize = 2;

/// A member.
#[derive(Clone, Debug)]
enum Member {
    Small(Arc<[u8]>),
    Blob(Stored),
    /// The member of that number, which is a blob as soon as its unpacking has ended.
    Coming(u64),
    /// Another member, by its path.
    Link(String),
}

/// An archive that has been read.
#[derive(Debug)]
pub struct Archive {
    members: BTreeMap<String, Member>,
    coming: VecDeque<(String, u64, Coming)>,
    sink: Sink,
}

/// The data of one member as a stream.
struct Data<'a, R>(&'a mut Reader<R>);

impl<R: BufRead> Read for Data<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let piece = self.0.fill().map_err(io_error)?;
        let n = piece.len().min(buf.len());
        buf[..n].copy_from_slice(&piece[..n]);
        self.0.consume(n);
        Ok(n)
    }
}

fn io_error(error: ArchiveError) -> io::Error {
    match error {
        ArchiveError::Read(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

/// What is wrong with an archive, for the client.
pub fn refused(error: ArchiveError) -> Error {
    let full = match &error {
        ArchiveError::Read(source) | ArchiveError::Write(source) => {
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        }
        _ => error.is_no_space(),
    };
    let cut = matches!(&error, ArchiveError::Read(source)
        if matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionAborted));
    let kind = match () {
        () if full => ErrorKind::NoSpace,
        () if cut || error.is_bad_archive() => ErrorKind::InvalidArgument,
        () => ErrorKind::Internal,
    };
    // Decompressors report damage as "other".
    let kind = match (&error, kind) {
        (ArchiveError::Read(source), ErrorKind::Internal) if source.raw_os_error().is_none() => {
            ErrorKind::InvalidArgument
        }
        _ => kind,
    };
    Error::new(kind, "invalid archive").caused_by(error)
}

/// A request's body for a blocking thread: read from the receiver while `pump` feeds it.
#[derive(Debug)]
pub struct BodyReader {
    frames: mpsc::Receiver<Result<Bytes>>,
    current: Bytes,
    /// Set before the last frame's sender goes: a channel that closes without it was broken off.
    complete: Arc<AtomicBool>,
}

impl Read for BodyReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let broken = |why: Error| io::Error::new(io::ErrorKind::ConnectionAborted, why);
        while self.current.is_empty() {
            match self.frames.blocking_recv() {
                Some(Ok(bytes)) => self.current = bytes,
                Some(Err(error)) => return Err(broken(error)),
                None if self.complete.load(Ordering::Acquire) => return Ok(0),
                None => return Err(broken(Error::invalid("the request was broken off"))),
            }
        }
        let n = self.current.len().min(buf.len());
        self.current.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

/// Runs `work` on a blocking thread with the request's body as a stream.
///
/// # Errors
///
/// Those of `work`; a body that breaks off is one of them.
pub async fn with_body<T: Send + 'static>(
    body: RequestBody,
    work: impl FnOnce(BodyReader) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, frames) = mpsc::channel(QUEUE);
    let complete = Arc::<AtomicBool>::default();
    let reader = BodyReader { frames, current: Bytes::new(), complete: complete.clone() };
    let work = tokio::task::spawn_blocking(move || work(reader));
    pump(body, sender, &complete).await;
    work.await?
}

/// Feeds the reader until the body or the reader ends.
async fn pump(mut body: RequestBody, sender: mpsc::Sender<Result<Bytes>>, complete: &AtomicBool) {
    while let Some(frame) = body.frame().await {
        let item = match frame {
            Ok(frame) => match frame.into_data() {
                Ok(data) => Ok(data),
                Err(_trailers) => continue,
            },
            Err(error) => Err(error),
        };
        let failed = item.is_err();
        if sender.send(item).await.is_err() || failed {
            return;
        }
    }
    complete.store(true, Ordering::Release);
}

impl Archive {
    /// Reads an archive, plain or compressed as a whole.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if it is none, is damaged or exceeds a bound; those of the blob store.
    pub fn read(reader: impl Read + Send, sink: Sink) -> Result<Self> {
        let mut archive = Self { members: BTreeMap::new(), coming: VecDeque::new(), sink };
        let mut failed = None;
        let (compression, reader) = gantry_archive::detect(reader).map_err(refused)?;
        // The digest of the whole archive is of no use to anybody.
        let outcome = if compression == Compression::None {
            archive.take_members(BufReader::with_capacity(PIECE, reader), &mut failed)
        } else {
            gantry_archive::decompressed_with(reader, false, |chunks| {
                archive.take_members(chunks, &mut failed)
            })
            .map(drop)
        };
        match (failed, outcome) {
            (Some(error), _) => return Err(error),
            (None, Err(error)) => return Err(refused(error)),
            (None, Ok(())) => {}
        }
        while !archive.coming.is_empty() {
            archive.finish_one()?;
        }
        Ok(archive)
    }

    /// `failed` receives errors that are no archive errors.
    fn take_members(
        &mut self,
        reader: impl BufRead + Send,
        failed: &mut Option<Error>,
    ) -> gantry_archive::Result<()> {
        let limits = Limits { entries: MAX_MEMBERS, ..Limits::default() };
        let mut reader = Reader::new(reader, limits);
        let mut kept = 0;
        while let Some(entry) = reader.next_entry()? {
            if reader.entries() > MAX_MEMBERS {
                return Err(ArchiveError::Limit { limit: MAX_MEMBERS, unit: "members" });
            }
            let Some(name) = clean("", &entry.name).filter(|name| !name.is_empty()) else {
                continue; // the root, and names no list of layers can hold
            };
            let member = match entry.kind {
                // The last of several members of one name counts, as if they were unpacked.
                Kind::File if entry.size <= SMALL && kept + entry.size <= SMALL_TOTAL => {
                    kept += entry.size;
                    Member::Small(reader.read_data(SMALL)?.into())
                }
                Kind::File => match self.large(&name, reader.entries(), Data(&mut reader)) {
                    Ok(member) => member,
                    Err(error) => {
                        let what = "a member cannot be stored";
                        *failed = Some(error);
                        return Err(ArchiveError::Malformed { offset: reader.offset(), what });
                    }
                },
                Kind::Symlink => {
                    let parent = name.rfind('/').map_or("", |slash| &name[..slash]);
                    match clean(parent, &entry.link) {
                        Some(target) => Member::Link(target),
                        None => continue,
                    }
                }
                Kind::Hardlink => match clean("", &entry.link) {
                    Some(target) => Member::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            self.members.insert(name, member);
        }
        Ok(())
    }

    /// Stores a member, the `number`th of the archive, while it is unpacked.
    fn large(&mut self, name: &str, number: u64, data: impl Read + Send) -> Result<Member> {
        while self.coming.len() >= MAX_COMING {
            self.finish_one()?;
        }
        let coming = self.sink.layer(data)?;
        self.coming.push_back((name.to_owned(), number, coming));
        Ok(Member::Coming(number))
    }

    /// Waits for the unpacking that began first.
    fn finish_one(&mut self) -> Result<()> {
        let Some((name, number, coming)) = self.coming.pop_front() else { return Ok(()) };
        let stored = self.sink.finish(coming)?;
        if let Some(member @ Member::Coming(_)) = self.members.get_mut(&name)
            && matches!(member, Member::Coming(n) if *n == number)
        {
            *member = Member::Blob(stored);
        }
        Ok(())
    }

    /// The path of the file that `path` leads to, if there is one.
    fn find(&self, path: &str) -> Option<String> {
        let mut at = clean("", path.as_bytes())?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&at)? {
                Member::Link(target) => at.clone_from(target),
                _ => return Some(at),
            }
        }
        None
    }

    /// Whether there is a file of that name.
    pub fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    /// The content of a small file; None if there is none of that name.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for more than `limit` bytes.
    pub fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(at) = self.find(path) else { return Ok(None) };
        match &self.members[&at] {
            Member::Small(bytes) if bytes.len() as u64 <= limit => Ok(Some(bytes.to_vec())),
            Member::Blob(stored) if stored.bytes <= limit => {
                self.sink.read(&stored.digest, limit).map(Some)
            }
            Member::Coming(_) | Member::Link(_) => Ok(None),
            Member::Small(_) | Member::Blob(_) => Err(Error::invalid(format!(
                "invalid archive: {path:.80} is larger than {limit} bytes"
            ))),
        }
    }

    /// The file as a blob that is a layer; None if there is none of that name.
    ///
    /// # Errors
    ///
    /// Those of [`Sink::known`].
    pub fn blob(&mut self, path: &str) -> Result<Option<Stored>> {
        let Some(at) = self.find(path) else { return Ok(None) };
        let stored = match &self.members[&at] {
            Member::Blob(stored) => self.sink.known(stored.clone())?,
            Member::Small(bytes) => self.sink.stream(&**bytes)?,
            Member::Coming(_) | Member::Link(_) => return Ok(None),
        };
        self.members.insert(at, Member::Blob(stored.clone()));
        Ok(Some(stored))
    }

    /// The file in the blob store as it is, whatever it is: its digest and bytes.
    ///
    /// # Errors
    ///
    /// Those of the blob store.
    pub fn plain_blob(&mut self, path: &str) -> Result<Option<(Digest, u64)>> {
        let Some(at) = self.find(path) else { return Ok(None) };
        match &self.members[&at] {
            Member::Blob(stored) => Ok(Some((stored.digest.clone(), stored.bytes))),
            Member::Small(bytes) => Ok(Some((self.sink.store(bytes, None)?, bytes.len() as u64))),
            Member::Coming(_) | Member::Link(_) => Ok(None),
        }
    }

    /// Where blobs go.
    pub fn sink(&self) -> &Sink {
        &self.sink
    }
}

/// `path`, seen from `base`, without `.`, `..` and slashes too many; `..` stops at the root. None
/// for names that are not text or too long.
fn clean(base: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok().filter(|path| path.len() <= MAX_NAME)?;
    let base = if path.starts_with('/') { "" } else { base };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_within_the_archive() {
        let cases = [
            ("", "./a//b/", "a/b"),
            ("", "/etc/passwd", "etc/passwd"),
            ("", "../../x", "x"),
            ("a/b", "../c/layer.tar", "a/c/layer.tar"),
            ("a", "/c", "c"),
        ];
        for (base, path, expected) in cases {
            assert_eq!(clean(base, path.as_bytes()).unwrap(), expected);
        }
        assert_eq!(clean("", &[0xff]), None);
        assert_eq!(clean("", &[b'a'; MAX_NAME + 1]), None);
    }
}
