//! Programs that were compiled before.
//!
//! Most containers of a machine have the same profile and capabilities. The key is the whole
//! question, text included: two profiles never meet through a hash.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    Error, compile,
    default::default_profile,
    filter::Filter,
    profile::{Host, Profile},
};

/// How many programs are kept.
const ENTRIES: usize = 16;

/// Where a profile comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The default profile.
    Default,
    /// Text in the form of [`Profile::from_json`].
    Json(Arc<str>),
}

/// A filter and its program.
#[derive(Debug)]
pub struct Compiled {
    /// The rules, for a runtime that compiles them itself.
    pub filter: Filter,
    /// An array of `struct sock_filter`.
    pub program: Vec<u8>,
    /// The bits for seccomp(2)'s `flags`.
    pub load_flags: u32,
}

#[derive(Debug, PartialEq, Eq)]
struct Key {
    source: Source,
    capabilities: Vec<String>,
    host: Host,
}

/// The programs compiled last, most recently used first.
#[derive(Debug, Default)]
pub struct Cache {
    entries: Mutex<Vec<(Key, Arc<Compiled>)>>,
}

impl Cache {
    /// The program for a container with the bounding set `capabilities` (with `CAP_`) on `host`;
    /// `None` if the profile switches filtering off.
    ///
    /// `host.arch` must be the architecture of this program's kernel. Compiling takes about a
    /// millisecond; a known question takes a microsecond.
    ///
    /// # Errors
    ///
    /// Those of [`Profile::from_json`] and [`compile()`].
    pub fn get<S: AsRef<str>>(
        &self,
        source: &Source,
        capabilities: &[S],
        host: Host,
    ) -> Result<Option<Arc<Compiled>>, Error> {
        let mut names: Vec<String> =
            capabilities.iter().map(|cap| cap.as_ref().to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        let key = Key { source: source.clone(), capabilities: names, host };
        if let Some(found) = self.find(&key) {
            return Ok(Some(found));
        }

        let profile = match source {
            Source::Default => default_profile(),
            Source::Json(text) => Profile::from_json(text)?,
        };
        let Some(filter) = profile.resolve(&key.capabilities, &host) else { return Ok(None) };
        let options = compile::Options { native: host.arch, ..compile::Options::default() };
        let program = compile::compile_with(&filter, &options)?;
        let compiled = Arc::new(Compiled { load_flags: filter.load_flags(), filter, program });
        self.keep(key, compiled.clone());
        Ok(Some(compiled))
    }

    fn find(&self, key: &Key) -> Option<Arc<Compiled>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let index = entries.iter().position(|(known, _)| known == key)?;
        entries[..=index].rotate_right(1);
        Some(entries[0].1.clone())
    }

    fn keep(&self, key: Key, compiled: Arc<Compiled>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.truncate(ENTRIES - 1);
        entries.insert(0, (key, compiled));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{arch::Arch, profile::KernelVersion};

    const HOST: Host =
        Host { arch: Arch::X86_64, kernel: KernelVersion { version: 6, revision: 1 } };

    #[test]
    fn the_same_question_is_compiled_once() {
        let cache = Cache::default();
        let ask = |caps: &[&str]| cache.get(&Source::Default, caps, HOST).unwrap().unwrap();
        let first = ask(&["CAP_KILL", "CAP_CHOWN"]);
        assert!(Arc::ptr_eq(&first, &ask(&["CAP_CHOWN", "CAP_KILL", "CAP_KILL"])));
        assert!(!Arc::ptr_eq(&first, &ask(&["CAP_CHOWN"])));
        assert_eq!(first.load_flags, 4);
    }

    #[test]
    fn the_least_used_program_goes() {
        let cache = Cache::default();
        let ask = |cap: &str| cache.get(&Source::Default, &[cap], HOST).unwrap().unwrap();
        let first = ask("CAP_0");
        for n in 1..ENTRIES {
            ask(&format!("CAP_{n}"));
            assert!(Arc::ptr_eq(&first, &ask("CAP_0")), "{n}");
        }
        ask("CAP_NEW");
        assert!(Arc::ptr_eq(&first, &ask("CAP_0")));
        assert_eq!(cache.entries.lock().unwrap().len(), ENTRIES);
    }

    #[test]
    fn a_bad_profile_is_not_kept() {
        let cache = Cache::default();
        assert!(cache.get::<&str>(&Source::Json("{".into()), &[], HOST).is_err());
        assert!(cache.get::<&str>(&Source::Json("{}".into()), &[], HOST).unwrap().is_none());
        assert!(cache.entries.lock().unwrap().is_empty());
    }
}
