//! What a test needs of the machine, and saying so when it is missing.

use std::path::Path;

/// Whether this process may do everything: create namespaces, mount, make cgroups.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether `name` is found in `PATH`.
#[must_use]
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| is_executable(&dir.join(name)))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Returns from the test, printing `SKIPPED` and why, unless every requirement is met.
///
/// Requirements are `root` or the name of a program: `requires!(root, "nft")`.
///
/// With `GANTRY_TESTS_NO_SKIP` in the environment a missing requirement is a failure: the test
/// command sets it, because it has installed everything.
#[macro_export]
macro_rules! requires {
    ($($what:tt),+ $(,)?) => {$(
        if let Some(reason) = $crate::requires!(@missing $what) {
            if std::env::var_os("GANTRY_TESTS_NO_SKIP").is_some() {
                anyhow::bail!("cannot run here: {reason}");
            }
            eprintln!("SKIPPED: {reason}");
            return Ok(());
        }
    )+};
    (@missing root) => {
        (!$crate::requires::is_root()).then(|| "needs root".to_owned())
    };
    (@missing $program:literal) => {
        (!$crate::requires::has_program($program)).then(|| concat!("needs ", $program).to_owned())
    };
}
