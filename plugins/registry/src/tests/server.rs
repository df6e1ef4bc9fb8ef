//! A server that answers as told and remembers what it was asked.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What is read of a client that speaks TLS to a server without.
const TLS: &str = "\u{16}";

/// A step of an answer.
pub(crate) enum Act {
    /// Bytes.
    Send(Vec<u8>),
    /// Nothing for a while.
    Wait(Duration),
    /// The connection ends; without it, another request may follow.
    Close,
}

impl From<String> for Act {
    fn from(text: String) -> Self {
        Self::Send(text.into_bytes())
    }
}

/// A server on this machine; ends when dropped.
pub(crate) struct Server {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Answers every request, given in lower case, with one text and a closed connection.
    pub(crate) async fn start(
        tls: Option<TlsAcceptor>,
        script: impl Fn(u16, &str) -> String + Send + Sync + 'static,
    ) -> Self {
        Self::acting(tls, move |port, request| vec![script(port, request).into(), Act::Close]).await
    }

    /// Answers as `script` says.
    pub(crate) async fn acting(
        tls: Option<TlsAcceptor>,
        script: impl Fn(u16, &str) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let (remember, count) = (seen.clone(), connections.clone());
        let script = Arc::new(script);
        #[expect(clippy::disallowed_methods, reason = "ends with the server")]
        let task = tokio::spawn(async move {
            let mut all = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, script) = (tls.clone(), script.clone());
                let (remember, count) = (remember.clone(), count.clone());
                all.spawn(async move {
                    let answer = |request: &str| {
                        remember.lock().unwrap().push(request.to_owned());
                        script(port, request)
                    };
                    match &tls {
                        None => serve(stream, &count, answer).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, &count, answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, seen, connections, task }
    }

    /// What was asked: heads and bodies, in lower case.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// The first lines of what was asked, without the version.
    pub(crate) fn asked(&self) -> Vec<String> {
        let line = |text: &String| {
            let line = text.lines().next().unwrap_or_default();
            line.trim_end_matches(" http/1.1").to_owned()
        };
        self.seen().iter().map(line).collect()
    }

    /// How many connections had a request.
    pub(crate) fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }

    /// Host and port.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    count: &Mutex<usize>,
    answer: impl Fn(&str) -> Vec<Act>,
) {
    let mut is_first = true;
    while let Some(request) = read(&mut stream).await {
        if request == TLS {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            return;
        }
        if std::mem::take(&mut is_first) {
            *count.lock().unwrap() += 1;
        }
        for act in answer(&request) {
            match act {
                // A client that has read enough may be gone.
                Act::Send(bytes) => {
                    if stream.write_all(&bytes).await.is_err() {
                        return;
                    }
                    let _ = stream.flush().await;
                }
                Act::Wait(time) => tokio::time::sleep(time).await,
                Act::Close => {
                    let _ = stream.shutdown().await;
                    return;
                }
            }
        }
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut request = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        if request.first() == Some(&0x16) {
            return Some(TLS.to_owned()); // which would wait for an answer
        }
        let end = request.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
            if request.len() - end - 4 >= length.map_or(0, |l| l.parse().unwrap()) {
                return Some(String::from_utf8_lossy(&request).to_lowercase());
            }
        }
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => request.extend_from_slice(&buffer[..count]),
            Ok(_) | Err(_) => return None,
        }
    }
}

pub(crate) fn reply(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

pub(crate) fn challenge(text: &str) -> String {
    let header = format!("WWW-Authenticate: {text}\r\n");
    reply("401 Unauthorized", &header, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
}

/// `openssl` with `args` in `dir`; false if there is no such program.
pub(crate) fn openssl(dir: &Path, args: &str) -> bool {
    let output =
        std::process::Command::new("openssl").current_dir(dir).args(args.split(' ')).output();
    output.is_ok_and(|output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        true
    })
}

/// A server that shows the self-signed `server.crt`, and asks for a certificate that `server.crt`
/// has signed if `mutual`.
pub(crate) fn acceptor(dir: &Path, mutual: bool) -> TlsAcceptor {
    let chain: Vec<_> = CertificateDer::pem_file_iter(dir.join("server.crt"))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if mutual {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(chain[0].clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
}
