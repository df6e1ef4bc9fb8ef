//! Manifests and small blobs: whole, verified.

use std::sync::Arc;

use bytes::Bytes;
use gantry_sdk::api::OciDescriptor;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::registry::{MAX_MANIFEST, RemoteManifest};
use gantry_sdk::{Error, ErrorKind};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{HeaderName, Method};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Remote;
use crate::endpoint::{Ask, Endpoint, refused};
use crate::error::RegistryError;
use crate::http::address::Url;
use crate::http::body::Body;
use crate::http::client::{Answer, Reply};

/// What is understood. Source: OCI image specification, *Media Types*; the distribution project's image manifest,
/// version 2, schema 2.
const ACCEPTED: [&str; 4] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
];
/// What is not, any more.
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a manifest says about itself.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    schema_version: u64,
    media_type: String,
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

fn accept() -> HeaderValue {
    HeaderValue::from_str(&ACCEPTED.join(", ")).unwrap_or(HeaderValue::from_static("*/*"))
}

/// A header's text without parameters.
fn essence(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn whole(reply: Reply, limit: u64) -> Result<Answer, RegistryError> {
    let url = reply.url.clone();
    reply
        .whole(usize::try_from(limit).unwrap_or(usize::MAX))
        .await
        .map_err(|source| RegistryError::no_answer(&Method::GET, &url, source))
}

/// Compares the bytes with what was asked for, and with what the registry says they are.
fn verified(
    url: &Url,
    reference: &str,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<Digest, RegistryError> {
    let digest = digest_of(bytes);
    let said = headers.get(CONTENT_DIGEST).and_then(|v| v.to_str().ok());
    for expected in [Some(reference), said].into_iter().flatten() {
        if expected.starts_with("sha256:") && expected != digest.as_str() {
            let why =
                format!("manifest verification failed for digest {expected:.80}: it has {digest}");
            return Err(RegistryError::nonsense(url, why));
        }
    }
    Ok(digest)
}

/// The media type of a manifest: two parties that read it differently are an attack waiting to happen, so header and
/// content must agree where both say something.
fn media_type(
    name: &str,
    url: &Url,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<String, RegistryError> {
    let header = essence(headers);
    let head: Head = serde_json::from_slice(bytes)
        .map_err(|e| RegistryError::nonsense(url, format!("the manifest is no JSON: {e}")))?;
    if header.starts_with(SCHEMA_1) || head.schema_version == 1 {
        return Err(RegistryError::Local(Error::unsupported(format!(
            "{name} is an image of manifest version 2, schema 1, which is no longer supported: ask its author to \
             push it anew as an OCI image or with schema 2"
        ))));
    }
    let is_known = |text: &str| ACCEPTED.contains(&text);
    match (header.as_str(), head.media_type.as_str()) {
        (one, other) if is_known(one) && is_known(other) && one != other => Err(
            RegistryError::nonsense(url, format!("the manifest is a {other} and comes as a {one}")),
        ),
        (one, "") if is_known(one) => Ok(one.to_owned()),
        (_, other) if is_known(other) => Ok(other.to_owned()),
        (one, _) if is_known(one) => Ok(one.to_owned()),
        // Older OCI tools leave the field out, and some servers know no better than "text/plain".
        _ if head.manifests.is_some() && head.config.is_none() => Ok(ACCEPTED[3].to_owned()),
        _ if head.config.is_some() && head.manifests.is_none() => Ok(ACCEPTED[2].to_owned()),
        (one, other) => {
            let shown = if other.is_empty() { one } else { other };
            let why = format!("unsupported manifest media type {shown:.100?}");
            Err(RegistryError::Local(Error::new(ErrorKind::Unsupported, format!("{name}: {why}"))))
        }
    }
}

impl Remote {
    pub(super) async fn manifest_from(
        &self,
        from: Arc<Endpoint>,
        reference: &str,
    ) -> Result<RemoteManifest, RegistryError> {
        let url = from.url(&self.path(&format!("manifests/{reference}"))).await?;
        let ask = Ask::new(Method::GET, &url, &self.scopes).with(ACCEPT, accept());
        let reply = from.ask(ask).await?;
        if !reply.status.is_success() {
            return Err(refused(reply).await);
        }
        let answer = whole(reply, MAX_MANIFEST).await?;
        let digest = verified(&url, reference, &answer.headers, &answer.body)?;
        let media_type = media_type(&self.name.familiar(), &url, &answer.headers, &answer.body)?;
        Ok(RemoteManifest { media_type, digest, bytes: answer.body.into() })
    }

    pub(super) async fn probe_at(
        &self,
        from: Arc<Endpoint>,
        reference: &str,
    ) -> Result<Option<OciDescriptor>, RegistryError> {
        let url = from.url(&self.path(&format!("manifests/{reference}"))).await?;
        let ask = Ask::new(Method::HEAD, &url, &self.scopes).with(ACCEPT, accept());
        let reply = from.ask(ask).await?;
        if !reply.status.is_success() {
            return Err(refused(reply).await);
        }
        let headers = &reply.headers;
        let text = |name| headers.get(name).and_then(|v: &HeaderValue| v.to_str().ok());
        let digest = text(CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
        let size = text(CONTENT_LENGTH).and_then(|text| text.parse::<i64>().ok());
        let media_type = essence(headers);
        let known = ACCEPTED.contains(&media_type.as_str());
        let described = match (digest, size) {
            (Some(digest), Some(size)) if known && size > 0 => Some((media_type, digest, size)),
            _ => None,
        };
        drop(whole(reply, 0).await?); // there is nothing, and then the connection is free
        let (media_type, digest, size) = match described {
            Some(described) => described,
            // A registry that leaves something out is asked for all of it.
            None => {
                let manifest = self.manifest_from(from, reference).await?;
                let size = i64::try_from(manifest.bytes.len()).unwrap_or(i64::MAX);
                (manifest.media_type, manifest.digest, size)
            }
        };
        if reference.starts_with("sha256:") && reference != digest.as_str() {
            return Err(RegistryError::nonsense(&url, format!("it says it has {digest}")));
        }
        let digest = digest.to_string();
        Ok(Some(OciDescriptor { media_type, digest, size, ..OciDescriptor::default() }))
    }

    pub(super) async fn blob_from(
        &self,
        from: Arc<Endpoint>,
        digest: &Digest,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let url = from.url(&self.path(&format!("blobs/{digest}"))).await?;
        let reply = from.ask(Ask::new(Method::GET, &url, &self.scopes)).await?;
        if !reply.status.is_success() {
            return Err(refused(reply).await);
        }
        let answer = whole(reply, limit).await?;
        let found = digest_of(&answer.body);
        if found != *digest {
            let why = format!("blob verification failed for digest {digest}: it has {found}");
            return Err(RegistryError::nonsense(&url, why));
        }
        Ok(answer.body.into())
    }

    pub(super) async fn blob_at(
        &self,
        from: Arc<Endpoint>,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let url = from.url(&self.path(&format!("blobs/{digest}"))).await?;
        let reply = from.ask(Ask::new(Method::HEAD, &url, &self.scopes)).await?;
        if reply.status.is_success() {
            drop(whole(reply, 0).await?);
            return Ok(());
        }
        Err(refused(reply).await)
    }

    pub(super) async fn put(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, RegistryError> {
        let origin = &self.origin;
        let url = origin.url(&self.path(&format!("manifests/{reference}"))).await?;
        let media_type = HeaderValue::from_str(media_type).map_err(|e| {
            let text = format!("invalid manifest media type {media_type:.100?}");
            RegistryError::Local(Error::invalid(text).caused_by(e))
        })?;
        let mut ask = Ask::new(Method::PUT, &url, &self.scopes).with(CONTENT_TYPE, media_type);
        ask.body = Body::Whole(Bytes::copy_from_slice(bytes));
        let reply = origin.ask(ask).await?;
        if !reply.status.is_success() {
            return Err(refused(reply).await);
        }
        let answer = whole(reply, MAX_MANIFEST).await?;
        verified(&url, reference, &answer.headers, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_of_honest_and_other_registries() {
        let [docker, list, oci, index] = ACCEPTED;
        let cases = [
            (docker, format!(r#"{{"mediaType":"{docker}","schemaVersion":2}}"#), Ok(docker)),
            (oci, r#"{"schemaVersion":2,"config":{}}"#.into(), Ok(oci)),
            ("", format!(r#"{{"mediaType":"{list}"}}"#), Ok(list)),
            ("text/plain", r#"{"config":{}}"#.into(), Ok(oci)),
            ("application/json; charset=utf-8", r#"{"manifests":[]}"#.into(), Ok(index)),
            ("text/plain", r#"{"config":{},"manifests":[]}"#.into(), Err("unsupported")),
            (oci, format!(r#"{{"mediaType":"{index}"}}"#), Err("comes as")),
            (oci, "[".into(), Err("no JSON")),
            (oci, r#"{"schemaVersion":1}"#.into(), Err("no longer supported")),
            (
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                "{}".into(),
                Err("no longer supported"),
            ),
            ("application/x", r#"{"mediaType":"application/y"}"#.into(), Err("application/y")),
        ];
        let url = Url::parse("https://reg.example/v2/").unwrap();
        for (header, body, expected) in cases {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, header.parse().unwrap())]);
            match (media_type("a", &url, &headers, body.as_bytes()), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{body}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (other, _) => panic!("{header} {body}: {other:?}"),
            }
        }
    }
}
