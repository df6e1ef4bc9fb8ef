//! Registries: credentials, search, distribution, the daemon's registry configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::is_default;
use crate::image::{OciDescriptor, OciPlatform};

/// Credentials: the body of `POST /auth`, and, base64url, the `X-Registry-Auth` header.
///
/// Its debug form hides the secrets.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthConfig {
    /// User.
    #[serde(skip_serializing_if = "is_default")]
    pub username: String,
    /// Password.
    #[serde(skip_serializing_if = "is_default")]
    pub password: String,
    /// `user:password` in base64.
    #[serde(skip_serializing_if = "is_default")]
    pub auth: String,
    /// Registry.
    #[serde(skip_serializing_if = "is_default")]
    pub serveraddress: String,
    /// Refresh token.
    #[serde(skip_serializing_if = "is_default")]
    pub identitytoken: String,
    /// Bearer token.
    #[serde(skip_serializing_if = "is_default")]
    pub registrytoken: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("serveraddress", &self.serveraddress)
            .finish_non_exhaustive()
    }
}

/// The answer to `POST /auth`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AuthResponse {
    /// Refresh token, if the registry gave one.
    #[serde(skip_serializing_if = "is_default")]
    pub identity_token: String,
    /// For a person to read.
    pub status: String,
}

/// A line of `GET /images/search`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SearchResult {
    /// Stars.
    pub star_count: i64,
    /// Whether it is an official image.
    pub is_official: bool,
    /// Name.
    pub name: String,
    /// Always false; kept for old clients.
    pub is_automated: bool,
    /// Description.
    pub description: String,
}

/// The answer to `GET /distribution/{name}/json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DistributionInspect {
    /// What the name points at.
    pub descriptor: OciDescriptor,
    /// Platforms of the image.
    pub platforms: Vec<OciPlatform>,
}

/// The daemon's registry configuration, in `GET /info`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegistryServiceConfig {
    /// Networks whose registries may speak plain HTTP.
    #[serde(rename = "InsecureRegistryCIDRs")]
    pub insecure_registry_cidrs: Vec<String>,
    /// By registry.
    pub index_configs: BTreeMap<String, IndexInfo>,
    /// Mirrors of the default registry; `null` for none.
    pub mirrors: Option<Vec<String>>,
}

/// One registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IndexInfo {
    /// Name.
    pub name: String,
    /// Mirrors.
    pub mirrors: Vec<String>,
    /// Whether TLS with a valid certificate is required.
    pub secure: bool,
    /// Whether it is the default registry.
    pub official: bool,
}
