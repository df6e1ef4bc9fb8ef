//! Why a registry did not do what was asked.

use std::time::Duration;

use gantry_sdk::{Error, ErrorKind};
use http::Method;

use crate::answer::Refusal;
use crate::http::address::Url;
use crate::http::client::ClientError;
use crate::login::LoginError;

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// There is no answer.
    #[error("{} \"{url}\"", verb(.method))]
    NoAnswer {
        /// What was asked.
        method: Method,
        /// Of whom.
        url: Url,
        /// Why.
        #[source]
        source: Box<ClientError>,
    },
    /// The answer is no.
    #[error("{0}")]
    Refused(Refusal),
    /// There is no token.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The answer makes no sense.
    #[error("{url}: {why}")]
    Nonsense {
        /// Whose.
        url: Url,
        /// What is wrong.
        why: String,
    },
    /// The body ended early.
    #[error("{url}: it ends after {got} of {size} bytes")]
    Cut {
        /// Whose.
        url: Url,
        /// Bytes that came.
        got: u64,
        /// Bytes that there should be.
        size: u64,
    },
    /// A registry took a range for impossible that it had offered.
    #[error("{0} cannot go on where the download ended")]
    Range(Url),
    /// Not the registry's fault.
    #[error("{0}")]
    Local(Error),
}

/// As the reference engine's language writes a method before a URL.
fn verb(method: &Method) -> String {
    let text = method.as_str().to_ascii_lowercase();
    let (first, rest) = text.split_at(1);
    format!("{}{rest}", first.to_ascii_uppercase())
}

impl RegistryError {
    /// No answer to a request of `url`.
    pub(crate) fn no_answer(method: &Method, url: &Url, source: ClientError) -> Self {
        Self::NoAnswer { method: method.clone(), url: url.clone(), source: Box::new(source) }
    }

    /// An answer of `url` that makes no sense.
    pub(crate) fn nonsense(url: &Url, why: impl Into<String>) -> Self {
        Self::Nonsense { url: url.clone(), why: why.into() }
    }

    /// Whether another attempt may end better.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer { source, .. } => source.is_transient(),
            Self::Refused(refusal) => refusal.is_transient,
            Self::Login(error) => error.is_transient(),
            Self::Cut { .. } | Self::Range(_) => true,
            Self::Nonsense { .. } | Self::Local(_) => false,
        }
    }

    /// Whether nobody could be talked to.
    pub(crate) fn is_connection(&self) -> bool {
        match self {
            Self::NoAnswer { source, .. } => source.is_connection(),
            Self::Login(error) => error.is_connection(),
            Self::Refused(_)
            | Self::Nonsense { .. }
            | Self::Cut { .. }
            | Self::Range(_)
            | Self::Local(_) => false,
        }
    }

    /// Whether the conversation broke off.
    pub(crate) fn is_broken(&self) -> bool {
        match self {
            Self::NoAnswer { source, .. } => matches!(**source, ClientError::Broken(..)),
            _ => false,
        }
    }

    /// How long the registry asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refusal) => refusal.retry_after,
            Self::Login(LoginError::Refused { refusal, .. }) => refusal.retry_after,
            _ => None,
        }
    }

    /// What a caller can act on.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(refusal) => refusal.kind,
            Self::Login(error) => error.kind(),
            Self::Local(error) => error.kind(),
            Self::NoAnswer { .. } | Self::Nonsense { .. } | Self::Cut { .. } | Self::Range(_) => {
                ErrorKind::Unavailable
            }
        }
    }
}

impl From<RegistryError> for Error {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Local(error) => error,
            RegistryError::Login(error) => error.into(),
            RegistryError::NoAnswer { method, url, source } => {
                let text = format!("{} \"{url}\"", verb(&method));
                Self::new(ErrorKind::Unavailable, text).caused_by(source)
            }
            _ => Self::new(error.kind(), error.to_string()),
        }
    }
}
