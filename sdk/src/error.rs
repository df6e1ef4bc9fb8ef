//! The error every fallible call of the SDK returns: a kind a client can act on, and a message.

use std::error::Error as StdError;
use std::fmt;

/// What every fallible SDK call returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller can act on it.
///
/// Deliberately not `#[non_exhaustive]`: a new kind must not compile until the kernel has a status
/// for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The named object does not exist.
    NotFound,
    /// An object of that name exists already.
    Exists,
    /// The request can never succeed as written.
    InvalidArgument,
    /// The object's present state forbids it; a change of state would clear this.
    Conflict,
    /// Somebody else is using the object; trying later may work.
    Busy,
    /// Already as requested. Ends the request early; not a failure.
    NotModified,
    /// Credentials are missing or wrong.
    Unauthorized,
    /// Understood, and not allowed whatever the credentials.
    Forbidden,
    /// This build or this host cannot do it.
    Unsupported,
    /// The device is full, or a quota is reached.
    NoSpace,
    /// A part we depend on is down; trying later may work.
    Unavailable,
    /// The call did not finish in the time its caller gave it.
    Deadline,
    /// A defect, or an unexpected answer from the system.
    Internal,
}

impl ErrorKind {
    /// Whether the fault lies with the called part rather than with the request: only these open a
    /// circuit breaker.
    pub const fn is_infrastructure(self) -> bool {
        matches!(self, Self::Unavailable | Self::Deadline | Self::Internal)
    }
}

/// A kind, a message that names object and action, and what caused it.
///
/// `Display` shows the message only; [`Error::chain`] joins it with its causes, once, at the edge.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` is lower case, without a full stop, and names the object.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Attaches the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An [`ErrorKind::Internal`] error with its cause.
    pub fn internal(
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::new(ErrorKind::Internal, message).caused_by(source)
    }

    /// A file system error: the kind follows the error number, the message names verb and path.
    pub fn io(doing: &str, what: impl fmt::Display, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                ErrorKind::NoSpace
            }
            _ => ErrorKind::Internal,
        };
        Self::new(kind, format!("cannot {doing} {what}")).caused_by(source)
    }

    /// What a caller can act on.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The same error as another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Puts `context` in front of the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The message joined with its causes by `": "`.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = self.source.as_ref().map(|s| s.as_ref() as &dyn StdError);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {
        impl Error {
            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self {
                Self::new(ErrorKind::$kind, message)
            })*
        }
    };
}

constructors! {
    /// See [`ErrorKind::NotFound`].
    not_found => NotFound;
    /// See [`ErrorKind::Exists`].
    exists => Exists;
    /// See [`ErrorKind::InvalidArgument`].
    invalid => InvalidArgument;
    /// See [`ErrorKind::Conflict`].
    conflict => Conflict;
    /// See [`ErrorKind::Busy`].
    busy => Busy;
    /// See [`ErrorKind::Forbidden`].
    forbidden => Forbidden;
    /// See [`ErrorKind::Unsupported`].
    unsupported => Unsupported;
    /// See [`ErrorKind::Unavailable`].
    unavailable => Unavailable;
}

impl Error {
    /// See [`ErrorKind::NotModified`].
    pub fn not_modified() -> Self {
        Self::new(ErrorKind::NotModified, "already as requested")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as &(dyn StdError + 'static))
    }
}

impl From<tokio::task::JoinError> for Error {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::internal("a background task ended early", error)
    }
}
