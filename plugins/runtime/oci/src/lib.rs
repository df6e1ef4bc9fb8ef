//! The OCI runtime: compiles specs, starts and re-finds shims.
