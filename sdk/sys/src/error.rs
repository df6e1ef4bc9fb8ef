//! The error of this crate: what was being done, to what, and what the kernel answered.

use std::io;
use std::path::Path;

/// Error numbers of the kernel.
pub use rustix::io::Errno;

/// A system call, or a short sequence of them, that failed.
///
/// `Display` names the action and the object; the kernel's answer is the `source`. Where the kernel
/// explains itself in words (mount contexts do), the words are part of the message.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {object}{}", note(.detail))]
pub struct Error {
    doing: &'static str,
    object: String,
    detail: Option<String>,
    source: io::Error,
}

/// What most functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn note(detail: &Option<String>) -> String {
    detail.as_ref().map(|words| format!(" ({words})")).unwrap_or_default()
}

impl Error {
    /// Describes a failure; the message reads `cannot {doing} {object}`.
    pub fn new(
        doing: &'static str,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self { doing, object: object.into(), detail: None, source: source.into() }
    }

    /// Describes a failure on a path.
    pub fn at(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::new(doing, path.display().to_string(), source)
    }

    /// Describes input that was refused before any system call; `why` says what is wrong with it.
    pub fn refused(doing: &'static str, object: impl Into<String>, why: &str) -> Self {
        Self::new(doing, object, io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()))
    }

    /// Adds words of the kernel, or of us, to the message. Empty words change nothing.
    #[must_use]
    pub fn with_detail(mut self, words: impl Into<String>) -> Self {
        let words = words.into();
        self.detail = (!words.is_empty()).then_some(words);
        self
    }

    /// The error number the kernel answered, when it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether the kernel answered with this error number.
    pub fn is(&self, errno: Errno) -> bool {
        self.errno() == Some(errno.raw_os_error())
    }

    /// The portable kind of the failure.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::new(error.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_action_object_and_the_kernels_words() {
        let plain = Error::at("open", Path::new("/x"), Errno::NOENT);
        assert_eq!(plain.to_string(), "cannot open /x");
        assert!(plain.is(Errno::NOENT));
        let told = Error::new("mount", "overlay", Errno::INVAL).with_detail("bad option");
        assert_eq!(told.to_string(), "cannot mount overlay (bad option)");
        assert_eq!(io::Error::from(told).kind(), io::ErrorKind::InvalidInput);
    }
}
