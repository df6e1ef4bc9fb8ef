//! Connections: direct or through a proxy, with or without TLS.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::address::Url;
use super::client::ClientError;
use super::proxy::{Proxies, Proxy};

/// Until a connection is there, TLS and proxy included.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// Head start of one address of a name over the next. Source: RFC 8305 §5.
const HEAD_START: Duration = Duration::from_millis(250);
/// The most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 16;
/// The largest answer of a proxy to `CONNECT`, in bytes.
const MAX_PROXY_HEAD: usize = 16 << 10;

/// A connection of any kind.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Makes connections.
pub(crate) struct Connector {
    tls: TlsConnector,
    proxies: Arc<Proxies>,
}

impl Connector {
    pub(crate) fn new(tls: ClientConfig, proxies: Arc<Proxies>) -> Self {
        Self { tls: TlsConnector::from(Arc::new(tls)), proxies }
    }

    /// The proxy that requests to `url` are written to in absolute form; those with TLS go through a tunnel instead.
    pub(crate) fn forwarder(&self, url: &Url) -> Option<&Proxy> {
        self.proxies.of(url).filter(|_| !url.tls)
    }

    /// A connection over which requests to `url` can be sent.
    ///
    /// # Errors
    ///
    /// Why there is none; see [`ClientError::is_connection`].
    pub(crate) async fn connect(&self, url: &Url) -> Result<Box<dyn Io>, ClientError> {
        in_time(url, async {
            let stream = match self.proxies.of(url) {
                None => Box::new(tcp(url).await?) as Box<dyn Io>,
                Some(proxy) => {
                    let mut stream = Box::new(tcp(&proxy.url).await?) as Box<dyn Io>;
                    if proxy.url.tls {
                        stream = self.encrypt(&proxy.url, stream).await?;
                    }
                    if url.tls {
                        tunnel(url, proxy, &mut stream).await?;
                    }
                    stream
                }
            };
            if url.tls { self.encrypt(url, stream).await } else { Ok(stream) }
        })
        .await
    }

    async fn encrypt(&self, url: &Url, stream: Box<dyn Io>) -> Result<Box<dyn Io>, ClientError> {
        let failed = |error| ClientError::Tls(url.authority.clone(), error);
        let name = ServerName::try_from(url.host.trim_end_matches('.').to_owned())
            .map_err(|error| failed(std::io::Error::other(error)))?;
        let stream =
            self.tls.connect(name, stream).await.map_err(|error| failed(in_words(error)))?;
        Ok(Box::new(stream))
    }
}

async fn in_time<T>(
    url: &Url,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(CONNECT, work).await.unwrap_or_else(|_| Err(ClientError::Slow(url.authority.clone())))
}

/// What is wrong with TLS, in the words that operators know from the reference engine.
fn in_words(error: std::io::Error) -> std::io::Error {
    use rustls::{CertificateError as Wrong, Error as Tls};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    let text = match inner {
        Some(Tls::InvalidMessage(_)) => "the server does not speak TLS".to_owned(),
        Some(Tls::InvalidCertificate(wrong)) => {
            let why = match wrong {
                Wrong::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
                // Its own authority, which nobody here trusts.
                Wrong::Other(why) if why.to_string().contains("CaUsedAsEndEntity") => {
                    "certificate signed by unknown authority".to_owned()
                }
                Wrong::Expired | Wrong::ExpiredContext { .. } => {
                    "certificate has expired or is not yet valid".to_owned()
                }
                Wrong::NotValidForNameContext { expected, presented } => format!(
                    "certificate is valid for {}, not {}",
                    presented.join(", "),
                    expected.to_str()
                ),
                other => other.to_string(),
            };
            format!("tls: failed to verify certificate: x509: {why}")
        }
        _ => return error,
    };
    std::io::Error::new(error.kind(), text)
}

/// The first address of the host that answers; each has a head start over the next, unless it fails.
async fn tcp(url: &Url) -> Result<TcpStream, ClientError> {
    let failed = |error| ClientError::Connect(url.authority.clone(), error);
    let found = tokio::net::lookup_host((url.host.as_str(), url.port)).await.map_err(failed)?;
    let mut waiting = alternating(found.take(MAX_ADDRESSES).collect()).into_iter();
    let mut attempts = FuturesUnordered::new();
    attempts.extend(waiting.next().map(TcpStream::connect));
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    while !attempts.is_empty() {
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true); // slower without, not wrong
                    return Ok(stream);
                }
                Err(error) => {
                    last = error;
                    attempts.extend(waiting.next().map(TcpStream::connect));
                }
            },
            () = tokio::time::sleep(HEAD_START), if waiting.len() > 0 => {
                attempts.extend(waiting.next().map(TcpStream::connect));
            }
        }
    }
    Err(failed(last))
}

/// The two families in turn, beginning with that of the first. Source: RFC 8305 §4.
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut second = second.into_iter();
    let mut all: Vec<_> =
        first.into_iter().flat_map(|a| [Some(a), second.next()]).flatten().collect();
    all.extend(second);
    all
}

/// Asks a proxy for a tunnel to `url`. Source: RFC 9110 §9.3.6.
async fn tunnel(url: &Url, proxy: &Proxy, stream: &mut Box<dyn Io>) -> Result<(), ClientError> {
    let broken = |why: &str| ClientError::Proxy(proxy.url.authority.clone(), why.to_owned());
    let lost = |error: std::io::Error| broken(&error.to_string());
    let target = if url.host.contains(':') {
        format!("[{}]:{}", url.host, url.port)
    } else {
        format!("{}:{}", url.host, url.port)
    };
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(value) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_PROXY_HEAD {
            return Err(broken("its answer is too large"));
        }
        // Nothing may be read beyond the head, and it is short.
        head.push(stream.read_u8().await.map_err(lost)?);
    }
    let line = String::from_utf8_lossy(&head);
    let line = line.lines().next().unwrap_or_default();
    let mut words = line.split(' ');
    let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
    let status = words.next().unwrap_or_default();
    if is_http && status.len() == 3 && status.starts_with('2') {
        return Ok(());
    }
    let shown: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
    Err(broken(&format!("it refuses a connection to {target}: {shown}")))
}
