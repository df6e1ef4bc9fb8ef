//! A registry that misbehaves as it is told: it stalls, cuts, lies, forgets tokens and sends
//! elsewhere, and remembers what it was asked.
//!
//! It serves the pull half of the distribution specification over HTTP, one request a connection,
//! from threads of the test. Its listener belongs to a sandbox's network namespace.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::sandbox::{Sandbox, in_network};

/// The media type of manifests.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of indexes.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of configurations.
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Longest head of a request that is read, in bytes.
const MAX_HEAD: u64 = 64 << 10;

/// What goes wrong with one answer. Offsets count from the start of the whole object.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing is sent for a while from this offset on; then the rest.
    Stall(usize, Duration),
    /// The connection ends at this offset.
    Cut(usize),
    /// The range that was asked for is not looked at: 200 and everything.
    NoRange,
    /// One bit of the byte at this offset is another.
    Flip(usize),
    /// Nothing but a status line and headers, each with its line end.
    Status(&'static str, &'static str),
    /// 307 to the same path at another `host:port`.
    Redirect(String),
    /// All tokens of before are not good any more: 401.
    Expire,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET /v2/…`.
    pub line: String,
    /// The first byte that is wanted.
    pub range: Option<u64>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// When.
    pub at: Instant,
}

#[derive(Default)]
struct State {
    /// By digest or tag: media type and bytes.
    objects: HashMap<String, (String, Vec<u8>)>,
    /// By digest or tag: what is next to go wrong.
    faults: HashMap<String, VecDeque<Fault>>,
    tokens: HashSet<String>,
    issued: usize,
    asked: Vec<Asked>,
}

struct Shared {
    state: Mutex<State>,
    port: u16,
    auth: bool,
    ends: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running registry; it ends when dropped.
pub struct FaultRegistry {
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for FaultRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FaultRegistry").field("port", &self.shared.port).finish_non_exhaustive()
    }
}

impl FaultRegistry {
    /// Listens at `127.0.0.1:port` of `sandbox`. With `auth`, it gives tokens to everybody and
    /// wants to see them.
    ///
    /// # Errors
    ///
    /// If the port is taken.
    pub fn start(sandbox: &Sandbox, port: u16, auth: bool) -> Result<Self> {
        let network = PathBuf::from(format!("/proc/{}/ns/net", sandbox.init()));
        let listener = in_network(&network, || Ok(TcpListener::bind(("127.0.0.1", port))?))?;
        listener.set_nonblocking(true)?;
        let state = Mutex::default();
        let shared = Arc::new(Shared { state, port, auth, ends: AtomicBool::new(false) });
        let served = shared.clone();
        let listener = std::thread::spawn(move || {
            while !served.ends.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                let served = served.clone();
                // A client that is gone is no matter of ours.
                std::thread::spawn(move || served.serve(stream).ok());
            }
        });
        Ok(Self { shared, listener: Some(listener) })
    }

    /// `host:port`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.shared.port)
    }

    /// Has `bytes`, and returns their descriptor.
    pub fn put(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        self.put_as(&digest, media_type, bytes);
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Says that `name`, a tag or a digest, is `bytes`, which need not be true.
    pub fn put_as(&self, name: &str, media_type: &str, bytes: &[u8]) {
        let object = (media_type.to_owned(), bytes.to_vec());
        self.shared.state().objects.insert(name.to_owned(), object);
    }

    /// Has a configuration with these layers' ids, for this machine, and returns its descriptor.
    pub fn put_config(&self, diff_ids: &[String]) -> Value {
        let config = json!({
            "architecture": crate::fixtures::architecture(), "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        self.put(CONFIG, config.to_string().as_bytes())
    }

    /// Has a manifest as `tag`, and returns its descriptor.
    pub fn put_manifest(&self, tag: &str, config: &Value, layers: &[Value]) -> Value {
        self.put_document(
            tag,
            MANIFEST,
            &json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
            }),
        )
    }

    /// Has an index as `tag`, and returns its descriptor.
    pub fn put_index(&self, tag: &str, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.put_document(tag, INDEX, &index)
    }

    fn put_document(&self, tag: &str, media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        self.put_as(tag, media_type, &bytes);
        self.put(media_type, &bytes)
    }

    /// Has the image of an OCI layout's archive as `tag`, and returns its manifest.
    ///
    /// # Errors
    ///
    /// If it is none with one image.
    pub fn put_archive(&self, tag: &str, archive: &[u8]) -> Result<Value> {
        let mut blobs = HashMap::new();
        let mut index = Value::Null;
        for entry in tar::Archive::new(archive).entries()? {
            let mut entry = entry?;
            let path = entry.path()?.display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            if path == "index.json" {
                index = serde_json::from_slice(&bytes)?;
            } else if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                blobs.insert(format!("sha256:{hex}"), bytes);
            }
        }
        let entry = &index["manifests"][0];
        let name = entry["digest"].as_str().context("no image in the archive")?;
        let manifest = blobs.get(name).context("no manifest in the archive")?.clone();
        for (digest, bytes) in blobs {
            let is_manifest = digest == name;
            self.put_as(&digest, if is_manifest { MANIFEST } else { "" }, &bytes);
        }
        self.put_as(tag, MANIFEST, &manifest);
        Ok(serde_json::from_slice(&manifest)?)
    }

    /// Lets `fault` happen at the next request for `name` that has none before it.
    pub fn fault(&self, name: &str, fault: Fault) {
        self.shared.state().faults.entry(name.to_owned()).or_default().push_back(fault);
    }

    /// What it was asked for `name`, a tag or a digest, by GET.
    #[must_use]
    pub fn asked(&self, name: &str) -> Vec<Asked> {
        let state = self.shared.state();
        let wanted = |asked: &&Asked| {
            asked.line.starts_with("GET ") && last(&asked.line).is_some_and(|n| n == name)
        };
        state.asked.iter().filter(wanted).cloned().collect()
    }

    /// Whatever it was asked.
    #[must_use]
    pub fn all_asked(&self) -> Vec<Asked> {
        self.shared.state().asked.clone()
    }
}

impl Drop for FaultRegistry {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(listener) = self.listener.take() {
            listener.join().ok();
        }
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let asked = read_head(&stream)?;
        let mut out = stream;
        self.state().asked.push(asked.clone());
        let path = asked.line.split(' ').nth(1).unwrap_or_default();
        if path.starts_with("/token") {
            return self.give_token(&mut out);
        }
        let Some(name) = last(&asked.line).filter(|n| !n.is_empty() && path != "/v2/") else {
            return if self.may(&asked) {
                head(&mut out, "200 OK", "", 0)
            } else {
                self.challenge(&mut out)
            };
        };
        let is_get = asked.line.starts_with("GET ");
        let fault = is_get.then(|| self.next_fault(name)).flatten();
        if let Some(Fault::Expire) = fault {
            self.state().tokens.clear();
        }
        if !self.may(&asked) {
            return self.challenge(&mut out);
        }
        match fault {
            Some(Fault::Status(status, headers)) => return head(&mut out, status, headers, 0),
            Some(Fault::Redirect(to)) => {
                let header = format!("Location: http://{to}{path}\r\n");
                return head(&mut out, "307 Temporary Redirect", &header, 0);
            }
            _ => {}
        }
        let Some((media_type, bytes)) = self.state().objects.get(name).cloned() else {
            return head(&mut out, "404 Not Found", "", 0);
        };
        // What is said of a digest is said of the content, even where the content is a lie.
        let said = if name.starts_with("sha256:") { name.to_owned() } else { digest(&bytes) };
        let headers = format!("Content-Type: {media_type}\r\nDocker-Content-Digest: {said}\r\n");
        if !is_get {
            return head(&mut out, "200 OK", &headers, bytes.len());
        }
        send(&mut out, &headers, bytes, asked.range, fault)
    }

    fn next_fault(&self, name: &str) -> Option<Fault> {
        self.state().faults.get_mut(name)?.pop_front()
    }

    fn may(&self, asked: &Asked) -> bool {
        let token = asked.authorization.as_deref().and_then(|a| a.strip_prefix("Bearer "));
        !self.auth || token.is_some_and(|token| self.state().tokens.contains(token))
    }

    fn challenge(&self, out: &mut TcpStream) -> Result<()> {
        let port = self.port;
        let header = format!(
            "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",\
             service=\"faults\"\r\n"
        );
        head(out, "401 Unauthorized", &header, 0)
    }

    fn give_token(&self, out: &mut TcpStream) -> Result<()> {
        let token = {
            let mut state = self.state();
            state.issued += 1;
            let token = format!("token-{}", state.issued);
            state.tokens.insert(token.clone());
            token
        };
        let body = json!({"token": token, "expires_in": 300}).to_string();
        head(out, "200 OK", "Content-Type: application/json\r\n", body.len())?;
        Ok(out.write_all(body.as_bytes())?)
    }
}

fn read_head(stream: &TcpStream) -> Result<Asked> {
    let mut reader = BufReader::new(stream.take(MAX_HEAD));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (line, at) = (line.trim().to_owned(), Instant::now());
    let mut asked = Asked { line, range: None, authorization: None, at };
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            return Ok(asked);
        }
        let (name, value) = header.trim().split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let start = value.trim().strip_prefix("bytes=").and_then(|r| r.split('-').next());
                asked.range = start.and_then(|start| start.parse().ok());
            }
            "authorization" => asked.authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
}

fn head(out: &mut TcpStream, status: &str, headers: &str, length: usize) -> Result<()> {
    write!(
        out,
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    Ok(())
}

fn send(
    out: &mut TcpStream,
    headers: &str,
    mut bytes: Vec<u8>,
    range: Option<u64>,
    fault: Option<Fault>,
) -> Result<()> {
    let range = range.filter(|_| !matches!(fault, Some(Fault::NoRange)));
    let start = usize::try_from(range.unwrap_or(0))?;
    if start > 0 && start >= bytes.len() {
        return head(out, "416 Range Not Satisfiable", headers, 0);
    }
    if range.is_some() {
        let (last, size) = (bytes.len() - 1, bytes.len());
        let headers = format!("{headers}Content-Range: bytes {start}-{last}/{size}\r\n");
        head(out, "206 Partial Content", &headers, bytes.len() - start)?;
    } else {
        head(out, "200 OK", headers, bytes.len())?;
    }
    match fault {
        Some(Fault::Stall(at, pause)) => {
            let at = at.clamp(start, bytes.len());
            out.write_all(&bytes[start..at])?;
            out.flush()?;
            std::thread::sleep(pause);
            out.write_all(&bytes[at..])?;
        }
        Some(Fault::Cut(at)) => out.write_all(&bytes[start..at.clamp(start, bytes.len())])?,
        Some(Fault::Flip(at)) => {
            bytes[at] ^= 1;
            out.write_all(&bytes[start..])?;
        }
        _ => out.write_all(&bytes[start..])?,
    }
    Ok(())
}

/// The tag or digest of a request line: the last part of its path.
fn last(line: &str) -> Option<&str> {
    line.split(' ').nth(1)?.split('?').next()?.rsplit('/').next()
}

/// `sha256:` and the SHA-256 in hexadecimal.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
