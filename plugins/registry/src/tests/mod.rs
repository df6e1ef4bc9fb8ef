//! The client and a server of our own, honest and other.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use gantry_sdk::context::Ctx;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobInfo, BlobWriter};
use gantry_sdk::kinds::registry::{Access, Credentials, Repository, TransferProgress};
use gantry_sdk::reference::Reference;
use gantry_sdk::{ConfigView, Error, Result};
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::http::client::Patience;
use crate::http::proxy::Proxies;
use crate::settings::{Rules, Settings};
use crate::shared::{Pace, Shared};
use crate::site::Sites;

mod login;
mod pull;
mod push;
mod real;
mod routes;
mod rules;
mod server;
mod speed;

pub(crate) use server::{Act, Server, acceptor, challenge, openssl, reply};

/// Short enough for tests, long enough for a busy machine.
const IDLE: Duration = Duration::from_millis(700);

/// What the plugin shares, as configured here.
struct Setup {
    config: Value,
    rules: Value,
    proxies: [String; 3],
    certificates: PathBuf,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: json!({}),
            rules: Value::Null,
            proxies: Default::default(),
            certificates: "/nonexistent".into(),
        }
    }
}

impl Setup {
    fn shared(self) -> Arc<Shared> {
        let Value::Object(config) = self.config else { unreachable!("an object") };
        let proxies = Arc::new(Proxies::parse(&self.proxies).map_err(|_| ()).unwrap());
        let patience = Patience { idle: IDLE, digesting: 10 * IDLE };
        let agent = ::http::HeaderValue::from_static("t");
        Arc::new(Shared {
            settings: ArcSwap::from_pointee(Settings::parse(&ConfigView::new(config)).unwrap()),
            rules: Rules::parse(&self.rules).unwrap(),
            sites: Sites::new(agent, proxies, self.certificates, patience),
            tokens: Arc::default(),
            pace: Pace { first: Duration::from_millis(5), longest: Duration::from_millis(20) },
        })
    }
}

/// A session with `team/app` of the registry at `host`.
async fn session(
    shared: &Arc<Shared>,
    host: &str,
    access: Access,
    credentials: &Credentials,
) -> Result<impl Repository + use<>> {
    let name = Reference::parse(&format!("{host}/team/app")).unwrap();
    crate::open(shared, &name, access, credentials).await
}

fn ali() -> Credentials {
    Credentials {
        username: "ali".into(),
        password: "open-sesame-7".into(),
        ..Credentials::default()
    }
}

fn cx() -> Ctx {
    Ctx::background()
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&sha2::Sha256::digest(bytes).into())
}

/// Bytes that repeat nowhere near.
fn content(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    })
    .take(size)
    .collect()
}

/// A writer into memory; what it has stays there when it is dropped.
#[derive(Clone, Default)]
struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// When to be full.
    room: Option<usize>,
}

impl Memory {
    fn with(bytes: &[u8]) -> Self {
        Self { bytes: Arc::new(Mutex::new(bytes.to_vec())), room: None }
    }

    fn get(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn writer(&self) -> Box<dyn BlobWriter> {
        Box::new(self.clone())
    }
}

impl std::io::Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut all = self.bytes.lock().unwrap();
        if self.room.is_some_and(|room| all.len() + bytes.len() > room) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for Memory {
    fn offset(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn restart(&mut self) -> Result<()> {
        self.bytes.lock().unwrap().clear();
        Ok(())
    }

    fn commit(self: Box<Self>, _: Option<&Digest>) -> Result<BlobInfo> {
        Err(Error::unsupported("nobody commits here"))
    }
}

fn silent() -> TransferProgress {
    Arc::new(|_, _| ())
}

/// Progress that is remembered.
fn heard() -> (TransferProgress, Arc<Mutex<Vec<u64>>>) {
    let all = Arc::new(Mutex::new(Vec::new()));
    let into = all.clone();
    (Arc::new(move |done, _| into.lock().unwrap().push(done)), all)
}

/// The body of request for `range` of `content`, as an honest registry gives it.
fn ranged(request: &str, content: &[u8]) -> Vec<u8> {
    let start = request
        .lines()
        .find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
    let (status, headers, body) = match start {
        None => ("200 OK", String::new(), content),
        Some(start) => {
            let total = content.len();
            let range = format!("Content-Range: bytes {start}-{}/{total}\r\n", total - 1);
            ("206 Partial Content", range, &content[start..])
        }
    };
    let mut all = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len())
        .into_bytes();
    all.extend_from_slice(body);
    all
}

/// A directory with a self-signed `server.crt` and `server.key` for this machine; none without openssl.
fn certificates(dir: &Path) -> Option<()> {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let names = "-addext subjectAltName=IP:127.0.0.1,DNS:reg.invalid,DNS:localhost";
    let make =
        format!("req -x509 {key} -days 2 -subj /CN=r {names} -keyout server.key -out server.crt");
    if openssl(dir, &make) {
        return Some(());
    }
    eprintln!("SKIPPED: needs openssl");
    None
}
