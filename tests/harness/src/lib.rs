//! The daemon under test, the images it is tested with, and the check that it leaks nothing.
//!
//! A test is a closure over a [`TestDaemon`]:
//!
//! ```no_run
//! use gantry_test_harness::{TestResult, daemon_test};
//!
//! fn a_container_reports_its_exit_code() -> TestResult {
//!     daemon_test(|daemon| {
//!         daemon.load_busybox()?;
//!         assert_eq!(daemon.docker("run --rm busybox sh -c 'exit 7'")?.status, 7);
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # Map
//!
//! - [`daemon`]: start, kill, restart and stop a `gantryd` of one's own
//! - [`sandbox`]: the network, mount and pid namespaces it lives in
//! - [`leaks`]: what there was before, what is left after
//! - [`http`]: requests byte by byte, for what the docker CLI never sends
//! - [`command`]: processes with a deadline
//! - [`fault_registry`]: a registry that misbehaves
//! - [`fixtures`]: images made from Debian packages
//! - [`registry`]: Debian's registry
//! - [`mod@requires`]: skipping, in a loud voice
//!
//! # Invariants
//!
//! 1. Whatever way a test process ends, its daemon, shims and containers end with it: they live in
//!    a pid namespace whose first process waits for the end of a pipe that the test holds.
//! 2. Nothing of the machine is changed: links and rules are made in an own network namespace,
//!    mounts in an own mount namespace, cgroups below a directory with the test's name.
//! 3. Every wait has a deadline.

pub mod command;
pub mod daemon;
pub mod fault_registry;
pub mod fixtures;
pub mod http;
pub mod leaks;
pub mod registry;
pub mod requires;
pub mod sandbox;

pub use command::Output;
pub use daemon::{Setup, TestDaemon, daemon_test, daemon_test_with};
pub use fault_registry::{Fault, FaultRegistry};
pub use http::Response;
pub use registry::{Registry, RegistrySetup};
pub use sandbox::Sandbox;

/// What tests return: an error is printed with its chain and fails the test.
pub type TestResult = anyhow::Result<()>;

/// Asks `probe` until it says yes, or `seconds` have passed.
///
/// # Errors
///
/// When time is up, with `what` and the last answer's error.
pub fn wait_until(
    what: &str,
    seconds: u64,
    mut probe: impl FnMut() -> anyhow::Result<bool>,
) -> TestResult {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    loop {
        let answer = probe();
        if matches!(answer, Ok(true)) {
            return Ok(());
        }
        if std::time::Instant::now() > deadline {
            let reason = answer.err().map(|e| format!(": {e:#}")).unwrap_or_default();
            anyhow::bail!("not within {seconds} s: {what}{reason}");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
