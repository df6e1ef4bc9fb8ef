//! Talking to registries: manifests and blobs of repositories elsewhere.
//!
//! Source: the OCI distribution specification. Rules for single registries (mirrors, TLS, proxies, blocks) are the
//! provider's business: who asks here says only what is wanted.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use gantry_api::image::OciDescriptor;
use gantry_api::registry::AuthConfig;

use crate::context::Ctx;
use crate::id::Digest;
use crate::kinds::blobs::BlobWriter;
use crate::reference::Reference;
use crate::{Error, Result, kind};

/// The largest `X-Registry-Auth` header that is read, in bytes.
const MAX_HEADER: usize = 64 << 10;

/// Base64 with or without padding: clients send both.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);

/// Who asks a registry. The default is nobody in particular. Its debug form hides the secrets.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User; empty for none.
    pub username: String,
    /// Password; empty for none.
    pub password: String,
    /// A refresh token, got at an earlier login instead of a password.
    pub identity_token: String,
    /// A bearer token, shown to the registry as it is.
    pub registry_token: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl From<AuthConfig> for Credentials {
    /// `auth` is the old way to give user and password, and counts where they are missing.
    fn from(config: AuthConfig) -> Self {
        let mut own = Self {
            username: config.username,
            password: config.password,
            identity_token: config.identitytoken,
            registry_token: config.registrytoken,
        };
        if own.username.is_empty() && own.password.is_empty() && !config.auth.is_empty() {
            let decoded = STANDARD.decode(config.auth.trim()).unwrap_or_default();
            let decoded = String::from_utf8(decoded).unwrap_or_default();
            if let Some((user, password)) = decoded.split_once(':') {
                own.username = user.to_owned();
                // Some clients pad with zero bytes.
                own.password = password.trim_end_matches('\0').to_owned();
            }
        }
        own
    }
}

impl Credentials {
    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads an `X-Registry-Auth` header: the base64 form, of either alphabet and with or without padding, of an
    /// [`AuthConfig`]. None, an empty one and one that encodes nothing mean nobody in particular.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` with the reference engine's texts. It ignores the error where it pulls, pushes and searches:
    /// `unwrap_or_default` there.
    pub fn from_header(header: Option<&str>) -> Result<Self> {
        let text = header.unwrap_or_default().trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > MAX_HEADER {
            return Err(Error::invalid("invalid X-Registry-Auth header: it is too large"));
        }
        let decoded = URL_SAFE.decode(text).or_else(|_| STANDARD.decode(text)).map_err(|_| {
            Error::invalid(
                "invalid X-Registry-Auth header: must be a valid base64url-encoded string",
            )
        })?;
        if decoded.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        // A parser's message could show a part of a secret.
        let config: AuthConfig = gantry_api::json::from_slice(&decoded)
            .map_err(|_| Error::invalid("invalid X-Registry-Auth header: must be valid JSON"))?;
        Ok(Self::from(config))
    }
}

/// What is wanted of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
}

/// A manifest as a registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteManifest {
    /// As the registry says, or as the manifest itself does where the registry says nothing.
    pub media_type: String,
    /// Of the bytes.
    pub digest: Digest,
    /// At most [`MAX_MANIFEST`].
    pub bytes: Vec<u8>,
}

/// The largest manifest, in bytes. Source: OCI distribution specification, *Pushing Manifests*.
pub const MAX_MANIFEST: u64 = 4 << 20;

/// Told how many bytes of a blob are there, and of how many. Called often: it must be quick and must not wait.
pub type TransferProgress = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// Gives the content of a blob anew, from its start, for every attempt. Blocking.
pub type OpenBlob<'a> = &'a (dyn Fn() -> Result<File> + Send + Sync);

/// How many transfers may run at once, as configured now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferLimits {
    /// Layers of one pull.
    pub max_concurrent_downloads: usize,
    /// Layers of one push.
    pub max_concurrent_uploads: usize,
    /// Attempts at one blob.
    pub max_download_attempts: u32,
}

kind! {
    /// Registries elsewhere.
    pub trait RegistryClient: Registries = "registries" (1, 0), budget None => {
        /// A session with the registry of `name`, its mirrors and rules applied. Asks nobody yet.
        ///
        /// # Errors
        ///
        /// `Forbidden` if a rule blocks the registry, `InvalidArgument` if its certificates cannot be used.
        async fn repository(&self, cx: &Ctx, name: &Reference, access: Access, credentials: &Credentials) -> Result<Arc<dyn Repository>>;

        plain {
            /// The configured limits, for those who start transfers.
            fn limits(&self) -> TransferLimits;
        }
    }
}

/// A session with one repository. Every call may be repeated, and is cancelled by dropping its future.
///
/// # Errors
///
/// Of every call: `Unauthorized` and `Forbidden` as the registry says; `NotFound` if it does not have what was asked
/// for; `Unavailable` if it, or all of its mirrors and it, cannot be asked or give answers that make no sense.
#[async_trait]
pub trait Repository: Send + Sync {
    /// The manifest of a tag or of a digest (`sha256:…`). Its bytes have that digest.
    async fn manifest(&self, cx: &Ctx, reference: &str) -> Result<RemoteManifest>;

    /// What a tag or digest names, without its content; none if there is none.
    async fn probe_manifest(&self, cx: &Ctx, reference: &str) -> Result<Option<OciDescriptor>>;

    /// All tags, in the registry's order; the number is bounded.
    async fn tags(&self, cx: &Ctx) -> Result<Vec<String>>;

    /// A small blob (a configuration) whole and verified, at most `limit` bytes.
    async fn small_blob(&self, cx: &Ctx, digest: &Digest, limit: u64) -> Result<Vec<u8>>;

    /// Downloads a blob into `writer` from its offset to `size`, with as many attempts as configured. The writer works
    /// on a blocking thread. `urls` are more places for it, asked without credentials. The caller commits, which
    /// compares the digest; fewer or more bytes than `size` are an error here.
    async fn fetch_blob(
        &self,
        cx: &Ctx,
        digest: &Digest,
        size: u64,
        urls: &[String],
        writer: Box<dyn BlobWriter>,
        progress: TransferProgress,
    ) -> Result<Box<dyn BlobWriter>>;

    /// Whether the registry has a blob.
    async fn has_blob(&self, cx: &Ctx, digest: &Digest) -> Result<bool>;

    /// Asks for a blob of the repository `from` (its path) of the same registry; false if the registry would not.
    async fn mount_blob(&self, cx: &Ctx, digest: &Digest, from: &str) -> Result<bool>;

    /// Uploads a blob of `size` bytes.
    async fn push_blob(
        &self,
        cx: &Ctx,
        digest: &Digest,
        size: u64,
        open: OpenBlob<'_>,
        progress: TransferProgress,
    ) -> Result<()>;

    /// Uploads a manifest under a tag or its digest.
    async fn put_manifest(
        &self,
        cx: &Ctx,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest>;

    /// The manifests that refer to `digest`, those of `artifact_type` only if one is given.
    async fn referrers(
        &self,
        cx: &Ctx,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<OciDescriptor>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_as_clients_write_them() {
        let ali = r#"{"username":"ali","password":"p?>~"}"#;
        let padded = base64::prelude::BASE64_URL_SAFE.encode(ali);
        let standard = base64::prelude::BASE64_STANDARD.encode(ali);
        for header in
            [padded.as_str(), padded.trim_end_matches('='), &standard, &format!(" {padded}")]
        {
            let read = Credentials::from_header(Some(header)).unwrap();
            assert_eq!(
                (read.username.as_str(), read.password.as_str()),
                ("ali", "p?>~"),
                "{header}"
            );
        }
        for nobody in [None, Some(""), Some(" "), Some("e30="), Some("e30")] {
            assert!(Credentials::from_header(nobody).unwrap().is_empty(), "{nobody:?}");
        }
        let old = base64::prelude::BASE64_URL_SAFE.encode(r#"{"auth":"YWxpOnB3AAA="}"#);
        assert_eq!(Credentials::from_header(Some(&old)).unwrap().password, "pw");
    }

    #[test]
    fn headers_that_are_none_say_nothing_of_their_content() {
        let long = "A".repeat(MAX_HEADER + 1);
        let broken = base64::prelude::BASE64_URL_SAFE.encode(r#"{"password":"hunter2""#);
        for header in ["!", "bm8", &broken, &long] {
            let error = Credentials::from_header(Some(header)).unwrap_err();
            assert!(error.to_string().starts_with("invalid X-Registry-Auth header: "), "{error}");
            assert!(!error.chain().contains("hunter2"));
        }
        assert!(
            !format!("{:?}", Credentials { password: "x9".into(), ..Credentials::default() })
                .contains("x9")
        );
    }
}
