//! Programs of filters that were compiled before: most containers share one.

use std::sync::{Arc, Mutex, PoisonError};

use crate::compile::Program;
use gantry_sdk::{Error, Result};
use oci_spec::runtime::LinuxSeccomp;

/// How many are kept.
const ENTRIES: usize = 16;

/// The programs compiled last, most recently used first. The whole filter is the key.
#[derive(Debug, Default)]
pub(crate) struct Programs(Mutex<Vec<(LinuxSeccomp, Arc<Program>)>>);

impl Programs {
    /// The program for `filter`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a filter that cannot be compiled.
    pub(crate) fn get(&self, filter: &LinuxSeccomp) -> Result<Arc<Program>> {
        {
            let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(at) = entries.iter().position(|(known, _)| known == filter) {
                let found = entries.remove(at);
                let program = found.1.clone();
                entries.insert(0, found);
                return Ok(program);
            }
        }
        let refuse = |error: String| Error::invalid(format!("bad seccomp filter: {error}"));
        let value = serde_json::to_value(filter).map_err(|error| refuse(error.to_string()))?;
        let rules: gantry_seccomp::Filter =
            serde_json::from_value(value).map_err(|error| refuse(error.to_string()))?;
        let code = gantry_seccomp::compile(&rules).map_err(|error| refuse(error.to_string()))?;
        let program = Arc::new(Program { code, flags: rules.load_flags() });
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.truncate(ENTRIES - 1);
        entries.insert(0, (filter.clone(), program.clone()));
        Ok(program)
    }
}
