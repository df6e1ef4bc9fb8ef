//! Large blobs, from wherever they are to a writer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use gantry_sdk::Result;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::BlobWriter;
use gantry_sdk::kinds::registry::TransferProgress;
use http::header::{CONTENT_RANGE, HeaderValue, RANGE};
use http::{Method, StatusCode};

use super::Remote;
use super::pump::{Pump, Stopped, without_reason};
use crate::endpoint::{Ask, Endpoint, refused};
use crate::error::RegistryError;
use crate::http::address::Url;
use crate::http::client::{Call, Reply};
use crate::site::{Place, Scheme};

/// An attempt that brings this much is none of those that are counted: a bad line is no reason to give up.
const PROGRESS: u64 = 1 << 20;
/// The most other places of a blob that are tried, and attempts at each.
const MAX_URLS: usize = 8;
const URL_ATTEMPTS: u32 = 2;

/// Where a blob may be.
enum Source {
    Registry(Arc<Endpoint>),
    /// A place that the manifest names.
    Elsewhere(Url),
}

/// Why an attempt ended.
enum Ended {
    /// The source failed.
    Source(RegistryError),
    /// The writer did.
    Writer,
}

impl From<RegistryError> for Ended {
    fn from(error: RegistryError) -> Self {
        Self::Source(error)
    }
}

impl From<Stopped> for Ended {
    fn from(_: Stopped) -> Self {
        Self::Writer
    }
}

impl Remote {
    pub(super) async fn download(
        &self,
        digest: &Digest,
        size: u64,
        urls: &[String],
        writer: Box<dyn BlobWriter>,
        progress: TransferProgress,
    ) -> Result<Box<dyn BlobWriter>> {
        let mut pump = Pump::start(writer, size, progress);
        if pump.offset() > size && pump.restart().await.is_err() {
            return pump.finish().await.and_then(|_| Err(without_reason()));
        }
        let mut failed = None;
        for (source, attempts) in self.places(urls) {
            if pump.offset() == size {
                break;
            }
            match self.from(&source, attempts, digest, size, &mut pump).await {
                Ok(()) => {
                    failed = None;
                    break;
                }
                // Dropping the writer is its thread's work; it is done before anybody hears of the error.
                Err(Ended::Writer) => {
                    return pump.finish().await.and_then(|_| Err(without_reason()));
                }
                Err(Ended::Source(error)) => {
                    if let Source::Registry(mirror) = &source
                        && mirror.is_mirror
                    {
                        self.fell(mirror, &error);
                    }
                    // What the registry says counts for more than what the others say.
                    if failed.is_none() || !matches!(source, Source::Elsewhere(_)) {
                        failed = Some(error);
                    }
                }
            }
        }
        let writer = pump.finish().await?;
        match failed {
            None => Ok(writer),
            Some(error) => Err(error.into()),
        }
    }

    /// Where to look, and how often.
    fn places(&self, urls: &[String]) -> Vec<(Source, u32)> {
        let registries = self.sources.iter().filter(|s| !(s.is_mirror && s.is_down.load(Relaxed)));
        let registries = registries.map(|source| {
            let attempts = if source.is_mirror { 1 } else { self.attempts() };
            (Source::Registry(source.clone()), attempts)
        });
        let elsewhere = urls.iter().filter_map(|url| Url::parse(url).ok()).take(MAX_URLS);
        registries.chain(elsewhere.map(|url| (Source::Elsewhere(url), URL_ATTEMPTS))).collect()
    }

    /// All attempts at one source.
    async fn from(
        &self,
        source: &Source,
        attempts: u32,
        digest: &Digest,
        size: u64,
        pump: &mut Pump,
    ) -> Result<(), Ended> {
        let mut failures = 0;
        let mut furthest = pump.offset();
        loop {
            let ended = self.attempt(source, digest, size, pump).await;
            // What came before a failure is kept for the next attempt.
            pump.flush().await?;
            let error = match ended {
                Ok(()) => return Ok(()),
                Err(Ended::Source(error)) => error,
                Err(Ended::Writer) => return Err(Ended::Writer),
            };
            if pump.offset() >= furthest + PROGRESS {
                failures = 0;
            }
            furthest = furthest.max(pump.offset());
            failures += 1;
            if !error.is_transient() || failures >= attempts {
                return Err(error.into());
            }
            let wait = self.shared.pace.wait(failures, error.retry_after());
            tracing::debug!(%digest, error = %error, ?wait, "A download broke off, trying again.");
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(
        &self,
        source: &Source,
        digest: &Digest,
        size: u64,
        pump: &mut Pump,
    ) -> Result<(), Ended> {
        let range = match pump.offset() {
            0 => None,
            offset => HeaderValue::from_str(&format!("bytes={offset}-")).ok(),
        };
        let mut reply = match source {
            Source::Registry(from) => {
                let url = from.url(&self.path(&format!("blobs/{digest}"))).await?;
                let mut ask = Ask::new(Method::GET, &url, &self.scopes);
                ask.headers.extend(range.map(|range| (RANGE, range)));
                from.ask(ask).await?
            }
            Source::Elsewhere(url) => self.elsewhere(url, range).await?,
        };
        let expected = match reply.status {
            StatusCode::OK => {
                if pump.offset() > 0 {
                    pump.restart().await?;
                }
                size
            }
            StatusCode::PARTIAL_CONTENT if begins_at(&reply, pump.offset()) => size - pump.offset(),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                pump.restart().await?;
                return Err(RegistryError::Range(reply.url.clone()).into());
            }
            _ => return Err(refused(reply).await.into()),
        };
        if let Some(length) = reply.length().filter(|length| *length != expected) {
            let why = format!("it has {length} bytes where {expected} are expected");
            return Err(RegistryError::nonsense(&reply.url, why).into());
        }
        self.copy(&mut reply, size, pump).await
    }

    async fn copy(&self, reply: &mut Reply, size: u64, pump: &mut Pump) -> Result<(), Ended> {
        loop {
            let next = reply.next().await;
            let no_answer = |source| RegistryError::no_answer(&Method::GET, &reply.url, source);
            let Some(bytes) = next.map_err(no_answer)? else { break };
            if pump.offset() + bytes.len() as u64 > size {
                let why = format!("more than {size} bytes came");
                return Err(RegistryError::nonsense(&reply.url, why).into());
            }
            pump.write(bytes).await?;
        }
        if pump.offset() < size {
            let (url, got) = (reply.url.clone(), pump.offset());
            return Err(RegistryError::Cut { url, got, size }.into());
        }
        Ok(())
    }

    /// A place that the manifest names is asked by nobody in particular, with the trust that its host deserves.
    async fn elsewhere(
        &self,
        url: &Url,
        range: Option<HeaderValue>,
    ) -> Result<Reply, RegistryError> {
        let place = self.shared.origin(&url.authority, "").await.map_err(RegistryError::Local)?;
        let scheme = if url.tls { Scheme::Tls } else { Scheme::Plain };
        let place = Place { authority: url.authority.clone(), scheme, ..place };
        let site = self.shared.sites.at(place).await.map_err(RegistryError::Local)?;
        let mut call = Call::new(Method::GET, url);
        call.headers.extend(range.map(|range| (RANGE, range)));
        let reply = site.client.follow(&call).await;
        reply.map_err(|source| RegistryError::no_answer(&Method::GET, url, source))
    }
}

/// Whether a part of a blob begins where we want to go on.
fn begins_at(reply: &Reply, offset: u64) -> bool {
    let text = reply.headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let range = text.strip_prefix("bytes ").unwrap_or_default();
    range.split('-').next().and_then(|start| start.trim().parse().ok()) == Some(offset)
}
