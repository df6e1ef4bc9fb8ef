//! One attempt to log in to one registry: ask, be challenged, show credentials.
//!
//! Source: the distribution project's token authentication and OAuth2 token specifications.

use gantry_sdk::kinds::registry::Credentials;
use gantry_sdk::{Error, ErrorKind};
use http::{HeaderValue, StatusCode};

use crate::answer::Refusal;
use crate::http::address::{AddressError, Url};
use crate::http::challenge::challenges;
use crate::http::client::{Answer, Client, ClientError};
use crate::token::{self, Purpose};

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
        refusal: Box<Refusal>,
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
            // The token server is not there; that says nothing of what was asked for.
            Self::Refused { refusal, .. } if refusal.kind == ErrorKind::NotFound => {
                ErrorKind::Unavailable
            }
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

    /// Whether another attempt may end better.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer { source, .. } => source.is_transient(),
            Self::Refused { refusal, .. } => refusal.is_transient,
            Self::Status { .. }
            | Self::NoCredentials(_)
            | Self::Scheme { .. }
            | Self::Realm { .. }
            | Self::Downgrade { .. }
            | Self::Token { .. } => false,
        }
    }
}

impl From<LoginError> for Error {
    /// The message of an SDK error is that of the outermost; its causes follow by themselves.
    fn from(error: LoginError) -> Self {
        let kind = error.kind();
        let text = error.to_string();
        match error {
            LoginError::NoAnswer { source, .. } => Self::new(kind, text).caused_by(source),
            LoginError::Realm { source, .. } => Self::new(kind, text).caused_by(source),
            _ => Self::new(kind, text),
        }
    }
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
    let attempt = Attempt { client, url };
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
        let granted =
            token::grant(client, url, challenge, credentials, &[], Purpose::Login).await?;
        (granted.authorization, granted.identity)
    } else if of("basic").is_some() {
        let basic =
            token::basic(credentials).ok_or_else(|| LoginError::NoCredentials(url.clone()))?;
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
}

impl Attempt<'_> {
    async fn ask(&self, authorization: Option<&HeaderValue>) -> Result<Answer, LoginError> {
        let no_answer =
            |source| LoginError::NoAnswer { url: self.url.clone(), source: Box::new(source) };
        self.client.get(self.url, authorization).await.map_err(no_answer)
    }

    fn refused_with(&self, status: StatusCode) -> LoginError {
        LoginError::Status { url: self.url.clone(), status }
    }
}
