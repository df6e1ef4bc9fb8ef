//! What is wrong with a configuration: every mistake, with the place it was made.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A command line flag, without its dashes.
    Flag(String),
    /// An environment variable.
    Env(&'static str),
    /// A JSON pointer (RFC 6901) in a configuration file. Empty for the file as a whole.
    File {
        /// The file.
        path: PathBuf,
        /// The pointer, with its leading slash.
        pointer: String,
    },
    /// Nobody wrote it: the built-in default, or a relation between several settings.
    Whole,
}

impl Place {
    /// A place in `path`, found by following `keys`.
    #[must_use]
    pub fn file(path: &Path, keys: &[&str]) -> Self {
        let pointer = keys.iter().fold(String::new(), |pointer, key| {
            pointer + "/" + &key.replace('~', "~0").replace('/', "~1")
        });
        Self::File { path: path.to_owned(), pointer }
    }

    /// The place one step further in, for files; the same place otherwise.
    #[must_use]
    pub fn child(&self, key: &str) -> Self {
        match self {
            Self::File { path, pointer } => {
                let key = key.replace('~', "~0").replace('/', "~1");
                Self::File { path: path.clone(), pointer: format!("{pointer}/{key}") }
            }
            other => other.clone(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::File { path, pointer } if pointer.is_empty() => write!(f, "{}", path.display()),
            Self::File { path, pointer } => write!(f, "{}: {pointer}", path.display()),
            Self::Whole => f.write_str("configuration"),
        }
    }
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it was made.
    pub place: Place,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Every mistake of a configuration, so that it is corrected in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "invalid configuration: {one}"),
            many => {
                write!(f, "invalid configuration, {} mistakes:", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// Collects mistakes while a configuration is read.
#[derive(Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Notes a mistake.
    pub fn add(&mut self, place: &Place, message: impl Into<String>) {
        self.0.push(Problem { place: place.clone(), message: message.into() });
    }

    /// Notes the mistake of `result`, if it is one, and returns the value otherwise.
    pub fn check<T, E: fmt::Display>(&mut self, place: &Place, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(place, error.to_string())).ok()
    }

    /// Ends the collection: `Ok` exactly when nothing was noted.
    ///
    /// # Errors
    ///
    /// All mistakes, in the order of their places.
    pub fn into_result(mut self) -> Result<(), ConfigError> {
        self.0.sort();
        self.0.dedup();
        if self.0.is_empty() { Ok(()) } else { Err(ConfigError(self.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_escapes_what_rfc_6901_says() {
        let place = Place::file(Path::new("/d.json"), &["log-opts", "a/b~c"]);
        assert_eq!(place.to_string(), "/d.json: /log-opts/a~1b~0c");
        assert_eq!(place.child("x").to_string(), "/d.json: /log-opts/a~1b~0c/x");
    }

    #[test]
    fn all_mistakes_are_in_one_message() {
        let mut problems = Problems::default();
        problems.add(&Place::Flag("mtu".into()), "not a number");
        problems.add(&Place::Flag("bip".into()), "not an address");
        let message = problems.into_result().unwrap_err().to_string();
        assert_eq!(
            message,
            "invalid configuration, 2 mistakes:\n  --bip: not an address\n  --mtu: not a number"
        );
    }
}
