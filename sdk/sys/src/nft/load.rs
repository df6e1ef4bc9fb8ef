//! Loading rules as text, by the `nft` program.

use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long `nft` may take; it normally needs 5 ms.
const PATIENCE: Duration = Duration::from_secs(20);

/// What of its complaint is kept, in bytes.
const COMPLAINT: u64 = 4096;

/// Rules could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The program is not installed.
    #[error("cannot set up the firewall: the program nft is not installed (package nftables)")]
    Missing,
    /// The program could not be run.
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    /// It took too long and was ended.
    #[error("cannot set up the firewall: nft did not finish within {} s", PATIENCE.as_secs())]
    Late,
    /// It refused the rules.
    #[error("cannot set up the firewall: nft ended with {status}: {complaint}")]
    Refused {
        /// How it ended.
        status: ExitStatus,
        /// The beginning of what it printed.
        complaint: String,
    },
}

/// Loads `rules` (at most 32 KiB), all or nothing, in the calling thread's network namespace.
/// Blocking.
///
/// # Errors
///
/// See [`LoadError`].
///
/// Source: nft(8), `-f -`.
pub fn load(rules: &str) -> Result<(), LoadError> {
    let mut child = start()?;
    if let Some(mut input) = child.stdin.take() {
        // If it ended early the write fails; its own words below say more than EPIPE.
        let _ = input.write_all(rules.as_bytes());
    }
    let status = wait(&mut child)?;
    if status.success() {
        return Ok(());
    }
    let mut complaint = Vec::new();
    if let Some(errors) = child.stderr.take() {
        let _ = errors.take(COMPLAINT).read_to_end(&mut complaint);
    }
    let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
    Err(LoadError::Refused { status, complaint })
}

fn start() -> Result<Child, LoadError> {
    for program in ["nft", "/usr/sbin/nft", "/sbin/nft"] {
        let started = Command::new(program)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        match started {
            Ok(child) => return Ok(child),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(LoadError::Run(error)),
        }
    }
    Err(LoadError::Missing)
}

fn wait(child: &mut Child) -> Result<ExitStatus, LoadError> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().map_err(LoadError::Run)? {
            return Ok(status);
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(LoadError::Late);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
