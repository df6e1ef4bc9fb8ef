//! Large blobs, from a file to a registry. Source: OCI distribution specification, *Pushing Blobs*.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use gantry_sdk::Error;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::registry::{OpenBlob, TransferProgress};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION};
use http::{HeaderName, Method, StatusCode};

use super::Remote;
use super::manifest::whole;
use crate::endpoint::{Ask, refused};
use crate::error::RegistryError;
use crate::http::address::{Url, form};
use crate::http::body::{Body, FileBody};
use crate::http::client::{MAX_BODY, Reply};

/// A piece of an upload that must be in pieces, and the smallest one tried, in bytes.
const PIECE: u64 = 16 << 20;
const LEAST: u64 = 1 << 20;
/// The largest piece that a registry may demand.
const MOST: u64 = 1 << 30;
const MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
/// Uploads whole that may break off before pieces are tried: some proxies say no by hanging up.
const HANG_UPS: u32 = 2;

/// An upload that a registry has agreed to.
struct Upload {
    location: Url,
    least: u64,
}

impl Remote {
    pub(super) async fn upload(
        &self,
        digest: &Digest,
        size: u64,
        open: OpenBlob<'_>,
        progress: TransferProgress,
    ) -> Result<(), RegistryError> {
        let attempts = self.attempts();
        let mut failures = 0;
        loop {
            progress(0, size);
            let piece = self.piece.load(Relaxed);
            let result = if piece == 0 {
                self.at_once(digest, size, open, &progress).await
            } else {
                self.in_pieces(digest, size, piece, open, &progress).await
            };
            let Err(error) = result else { return Ok(()) };
            failures += 1;
            let hung_up = error.is_broken() && failures >= HANG_UPS;
            if let Some(smaller) = smaller(&error, piece, hung_up) {
                tracing::debug!(%digest, error = %error, smaller, "Uploading in smaller pieces.");
                self.piece.store(smaller, Relaxed);
                continue;
            }
            if !error.is_transient() || failures >= attempts {
                return Err(error);
            }
            let wait = self.shared.pace.wait(failures, error.retry_after());
            tracing::debug!(%digest, error = %error, ?wait, "An upload broke off, trying again.");
            tokio::time::sleep(wait).await;
        }
    }

    /// One `POST`, one `PUT`.
    async fn at_once(
        &self,
        digest: &Digest,
        size: u64,
        open: OpenBlob<'_>,
        progress: &TransferProgress,
    ) -> Result<(), RegistryError> {
        let upload = self.begin().await?;
        let url = upload.location.with_query(&[("digest", digest.as_str())]);
        let file = open().map_err(RegistryError::Local)?;
        let mut ask = Ask::new(Method::PUT, &url, &self.scopes);
        ask.body = body(file, 0, size, size, progress);
        self.done(ask.with(CONTENT_TYPE, octets())).await
    }

    /// One `POST`, a `PATCH` for each piece, one `PUT`.
    async fn in_pieces(
        &self,
        digest: &Digest,
        size: u64,
        piece: u64,
        open: OpenBlob<'_>,
        progress: &TransferProgress,
    ) -> Result<(), RegistryError> {
        let upload = self.begin().await?;
        let piece = piece.max(upload.least);
        let file = open().map_err(RegistryError::Local)?;
        let mut at = upload.location;
        let mut offset = 0;
        while offset < size {
            let length = piece.min(size - offset);
            // A clone shares the position, and each piece is read to its end before the next begins.
            let part = file
                .try_clone()
                .map_err(|e| RegistryError::Local(Error::io("read", "a blob", e)))?;
            let mut ask = Ask::new(Method::PATCH, &at, &self.scopes)
                .with(CONTENT_TYPE, octets())
                .with(CONTENT_LENGTH, HeaderValue::from(length));
            let range = format!("{offset}-{}", offset + length - 1);
            ask.headers.extend(HeaderValue::from_str(&range).ok().map(|v| (CONTENT_RANGE, v)));
            ask.body = body(part, offset, length, size, progress);
            let reply = self.origin.ask(ask).await?;
            if !reply.status.is_success() {
                return Err(refused(reply).await);
            }
            at = location(&at, &reply)?;
            drop(whole(reply, MAX_BODY as u64).await?);
            offset += length;
        }
        let url = at.with_query(&[("digest", digest.as_str())]);
        self.done(Ask::new(Method::PUT, &url, &self.scopes)).await
    }

    async fn begin(&self) -> Result<Upload, RegistryError> {
        let url = self.origin.url(&self.path("blobs/uploads/")).await?;
        let ask = Ask::new(Method::POST, &url, &self.scopes);
        let reply = self.origin.ask(ask.with(CONTENT_LENGTH, HeaderValue::from(0))).await?;
        if !reply.status.is_success() {
            return Err(refused(reply).await);
        }
        let least = reply.headers.get(MIN_LENGTH).and_then(|v| v.to_str().ok());
        let least = least.and_then(|text| text.trim().parse().ok()).unwrap_or(0).min(MOST);
        let location = location(&url, &reply)?;
        drop(whole(reply, MAX_BODY as u64).await?);
        Ok(Upload { location, least })
    }

    async fn done(&self, ask: Ask<'_>) -> Result<(), RegistryError> {
        let reply = self.origin.ask(ask).await?;
        if !reply.status.is_success() {
            return Err(refused(reply).await);
        }
        whole(reply, MAX_BODY as u64).await.map(drop)
    }

    /// Whether the registry has taken a blob over from the repository `from`.
    pub(super) async fn mount(&self, digest: &Digest, from: &str) -> Result<bool, RegistryError> {
        let query = form(&[("mount", digest.as_str()), ("from", from)]);
        let url = self.origin.url(&self.path(&format!("blobs/uploads/?{query}"))).await?;
        let mut scopes = self.scopes.clone();
        scopes.push(format!("repository:{from}:pull"));
        let ask = Ask::new(Method::POST, &url, &scopes);
        let reply = match self.origin.ask(ask.with(CONTENT_LENGTH, HeaderValue::from(0))).await {
            Ok(reply) => reply,
            Err(error) if error.is_transient() => return Err(error),
            Err(RegistryError::Refused(_) | RegistryError::Login(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        match reply.status {
            StatusCode::CREATED => {
                drop(whole(reply, MAX_BODY as u64).await?);
                return Ok(true);
            }
            // It would rather have the bytes; the upload that it began is ended, if it lets us.
            StatusCode::ACCEPTED => {
                let begun = location(&url, &reply);
                drop(whole(reply, MAX_BODY as u64).await?);
                if let Ok(begun) = begun {
                    let _ = self.done(Ask::new(Method::DELETE, &begun, &self.scopes)).await;
                }
            }
            _ => {
                let error = refused(reply).await;
                if error.is_transient() {
                    return Err(error);
                }
            }
        }
        Ok(false)
    }
}

fn octets() -> HeaderValue {
    HeaderValue::from_static("application/octet-stream")
}

/// The next `length` bytes of `file`, which begin at `offset` of `size`.
fn body(
    file: std::fs::File,
    offset: u64,
    length: u64,
    size: u64,
    progress: &TransferProgress,
) -> Body {
    let progress = progress.clone();
    let sent = Arc::new(AtomicU64::new(offset));
    Body::File(FileBody::new(file, length, move |more| {
        progress(sent.fetch_add(more, Relaxed) + more, size);
    }))
}

/// Where an upload goes on. A registry behind a proxy that ends TLS often names itself without.
fn location(from: &Url, reply: &Reply) -> Result<Url, RegistryError> {
    let text = reply.headers.get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let next = from
        .join(text)
        .map_err(|e| RegistryError::nonsense(from, format!("its upload has no location: {e}")))?;
    if !from.tls || next.tls {
        return Ok(next);
    }
    if next.host.eq_ignore_ascii_case(&from.host) {
        return Ok(from.at(next.target));
    }
    Err(RegistryError::nonsense(from, "it uses TLS and wants the upload at a server that does not"))
}

/// The size of pieces to try next, if this failure may be about the size.
fn smaller(error: &RegistryError, piece: u64, hung_up: bool) -> Option<u64> {
    let status = match error {
        RegistryError::Refused(refusal) => refusal.status.as_u16(),
        _ => 0,
    };
    match (piece, status) {
        (0, 405 | 411 | 413 | 416) => Some(PIECE),
        (0, _) if hung_up => Some(PIECE),
        (piece, 413) if piece > LEAST => Some((piece / 4).max(LEAST)),
        _ => None,
    }
}
