//! One attempt to log in to one registry: ask, be challenged, show credentials.
//!
//! Source: the distribution project's token authentication and OAuth2 token specifications.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gantry_sdk::ErrorKind;
use gantry_sdk::api::AuthConfig;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;

use super::address::{AddressError, Url, form};
use super::answer::Refusal;
use super::challenge::{Challenge, challenges};
use super::client::{Answer, Client, ClientError};

/// What token servers know a container engine as.
const CLIENT_ID: &str = "docker";

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoginError {
    /// There is no answer.
    #[error("Get \"{url}\"")]
    NoAnswer {
        /// The registry.
        url: Url,
        /// Why.
        #[source]
        source: Box<ClientError>,
    },
    /// The registry does not let us in.
    #[error("login attempt to {url} failed with status: {status}")]
    Status {
        /// The registry.
        url: Url,
        /// What it answered.
        status: StatusCode,
    },
    /// The token server gives no token.
    #[error("Get \"{url}\": {refusal}")]
    Refused {
        /// The registry.
        url: Url,
        /// What the token server said.
        refusal: Refusal,
    },
    /// The client sent none that would do.
    #[error("Get \"{0}\": no basic auth credentials")]
    NoCredentials(Url),
    /// The registry wants something else.
    #[error(
        "Get \"{url}\": the registry accepts neither basic nor bearer authentication, \
         only {schemes:.200?}"
    )]
    Scheme {
        /// The registry.
        url: Url,
        /// What it accepts.
        schemes: String,
    },
    /// The registry names a token server that cannot be.
    #[error("Get \"{url}\": invalid token auth challenge realm")]
    Realm {
        /// The registry.
        url: Url,
        /// Why.
        #[source]
        source: AddressError,
    },
    /// The registry names a token server less safe than itself.
    #[error(
        "Get \"{url}\": the token server {realm} does not use TLS and the registry does: \
         it does not get the credentials"
    )]
    Downgrade {
        /// The registry.
        url: Url,
        /// The token server.
        realm: Box<Url>,
    },
    /// The token server's answer makes no sense.
    #[error("Get \"{url}\": {why}")]
    Token {
        /// The registry.
        url: Url,
        /// What is wrong.
        why: &'static str,
    },
}

impl LoginError {
    /// What the client is told.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::NoCredentials(_) | Self::Status { status: StatusCode::UNAUTHORIZED, .. } => {
                ErrorKind::Unauthorized
            }
            Self::Status { status: StatusCode::FORBIDDEN, .. } => ErrorKind::Forbidden,
            Self::Refused { refusal, .. } => refusal.kind,
            Self::Scheme { .. } => ErrorKind::Unsupported,
            Self::NoAnswer { .. }
            | Self::Status { .. }
            | Self::Realm { .. }
            | Self::Downgrade { .. }
            | Self::Token { .. } => ErrorKind::Unavailable,
        }
    }

    /// Whether the registry could not even be talked to, so that another way may be tried.
    pub(crate) fn is_connection(&self) -> bool {
        matches!(self, Self::NoAnswer { source, .. } if source.is_connection())
    }
}

/// What the client wants checked. Has no debug form.
#[derive(Default)]
pub(crate) struct Credentials {
    user: String,
    password: String,
    /// Got at an earlier login instead of a password.
    identity_token: String,
    /// Shown to the registry as it is.
    registry_token: String,
}

impl From<AuthConfig> for Credentials {
    /// `auth` is the old way to give user and password, and counts where they are missing.
    fn from(config: AuthConfig) -> Self {
        let mut own = Self {
            user: config.username,
            password: config.password,
            identity_token: config.identitytoken,
            registry_token: config.registrytoken,
        };
        if own.user.is_empty() && own.password.is_empty() && !config.auth.is_empty() {
            let decoded = BASE64_STANDARD.decode(config.auth.trim()).unwrap_or_default();
            let decoded = String::from_utf8(decoded).unwrap_or_default();
            if let Some((user, password)) = decoded.split_once(':') {
                own.user = user.to_owned();
                // Some clients pad with zero bytes.
                own.password = password.trim_end_matches('\0').to_owned();
            }
        }
        own
    }
}

impl Credentials {
    fn basic(&self) -> Option<HeaderValue> {
        if self.user.is_empty() || self.password.is_empty() {
            return None;
        }
        let pair = BASE64_STANDARD.encode(format!("{}:{}", self.user, self.password));
        secret(&format!("Basic {pair}"))
    }
}

/// A header value that is kept out of debug output; none if it is no header value.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Shows `credentials` to the registry at `url`, its `/v2/`. Returns the identity token: the one it
/// gave, or the one we had.
///
/// # Errors
///
/// Why it is no login.
pub(crate) async fn login(
    client: &Client,
    url: &Url,
    credentials: &Credentials,
) -> Result<String, LoginError> {
    let attempt = Attempt { client, url, credentials };
    let answer = attempt.ask(None).await?;
    if answer.status == StatusCode::OK {
        return Ok(credentials.identity_token.clone()); // it does not care who we are
    }
    if answer.status != StatusCode::UNAUTHORIZED {
        return Err(attempt.refused_with(answer.status));
    }
    let all = challenges(&answer.headers);
    let of = |scheme: &str| all.iter().find(|challenge| challenge.scheme == scheme);
    let (authorization, identity) = if let Some(challenge) = of("bearer") {
        attempt.bearer(challenge).await?
    } else if of("basic").is_some() {
        let basic = credentials.basic().ok_or_else(|| LoginError::NoCredentials(url.clone()))?;
        (basic, credentials.identity_token.clone())
    } else if all.is_empty() {
        return Err(attempt.refused_with(answer.status));
    } else {
        let schemes: Vec<_> = all.iter().map(|c| c.scheme.as_str()).collect();
        return Err(LoginError::Scheme { url: url.clone(), schemes: schemes.join(", ") });
    };
    let answer = attempt.ask(Some(&authorization)).await?;
    if answer.status != StatusCode::OK {
        return Err(attempt.refused_with(answer.status));
    }
    Ok(identity)
}

struct Attempt<'a> {
    client: &'a Client,
    url: &'a Url,
    credentials: &'a Credentials,
}

/// What a token server answers. Others than these are of no interest to a login.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
}

impl Attempt<'_> {
    async fn ask(&self, authorization: Option<&HeaderValue>) -> Result<Answer, LoginError> {
        self.client.get(self.url, authorization).await.map_err(|source| self.no_answer(source))
    }

    fn no_answer(&self, source: ClientError) -> LoginError {
        LoginError::NoAnswer { url: self.url.clone(), source: Box::new(source) }
    }

    fn refused_with(&self, status: StatusCode) -> LoginError {
        LoginError::Status { url: self.url.clone(), status }
    }

    /// Gets a token: what to show to the registry, and the identity token.
    async fn bearer(&self, challenge: &Challenge) -> Result<(HeaderValue, String), LoginError> {
        let credentials = self.credentials;
        let wrong = |why| LoginError::Token { url: self.url.clone(), why };
        let shown = |token: &str| {
            secret(&format!("Bearer {token}")).ok_or_else(|| wrong("the token is not printable"))
        };
        if !credentials.registry_token.is_empty() {
            return Ok((shown(&credentials.registry_token)?, credentials.identity_token.clone()));
        }
        let answer = if credentials.identity_token.is_empty() {
            self.by_password(challenge).await?
        } else {
            self.by_identity(challenge).await?
        };
        if !(answer.status.is_success() || answer.status.is_redirection()) {
            let refusal = Refusal::of(&answer);
            return Err(LoginError::Refused { url: self.url.clone(), refusal });
        }
        // A parser's message could show a part of a token.
        let token: Token = serde_json::from_slice(&answer.body)
            .map_err(|_| wrong("unable to decode token response"))?;
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let access = filled(&token.access_token)
            .or_else(|| filled(&token.token))
            .ok_or_else(|| wrong("authorization server did not include a token in the response"))?;
        let identity =
            filled(&token.refresh_token).unwrap_or_else(|| credentials.identity_token.clone());
        Ok((shown(&access)?, identity))
    }

    async fn by_password(&self, challenge: &Challenge) -> Result<Answer, LoginError> {
        let user = self.credentials.user.as_str();
        let basic =
            self.credentials.basic().ok_or_else(|| LoginError::NoCredentials(self.url.clone()))?;
        let mut query =
            vec![("account", user), ("client_id", CLIENT_ID), ("offline_token", "true")];
        query.extend(service(challenge));
        let realm = self.realm(challenge)?.with_query(&query);
        self.client.get(&realm, Some(&basic)).await.map_err(|source| self.no_answer(source))
    }

    async fn by_identity(&self, challenge: &Challenge) -> Result<Answer, LoginError> {
        let mut fields = vec![
            ("client_id", CLIENT_ID),
            ("grant_type", "refresh_token"),
            ("refresh_token", self.credentials.identity_token.as_str()),
        ];
        fields.extend(service(challenge));
        let realm = self.realm(challenge)?;
        self.client.post(&realm, form(&fields)).await.map_err(|source| self.no_answer(source))
    }

    /// The token server, which must be as safe as the registry that names it.
    fn realm(&self, challenge: &Challenge) -> Result<Url, LoginError> {
        let realm = Url::parse(challenge.get("realm"))
            .map_err(|source| LoginError::Realm { url: self.url.clone(), source })?;
        if self.url.tls && !realm.tls {
            return Err(LoginError::Downgrade { url: self.url.clone(), realm: Box::new(realm) });
        }
        Ok(realm)
    }
}

fn service(challenge: &Challenge) -> Option<(&'static str, &str)> {
    Some(challenge.get("service")).filter(|name| !name.is_empty()).map(|name| ("service", name))
}
