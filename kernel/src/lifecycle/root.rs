//! One daemon per data root: the lock, the pid file, and the identity that stays with the data.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gantry_sdk::id::ContainerId;

/// Why the daemon cannot have its data root.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A file or directory.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon.
    #[error("another daemon uses the data root {}", .0.display())]
    InUse(PathBuf),
    /// A pid file of a process that exists.
    #[error("process with PID {pid} is still running (from {})", .path.display())]
    Running {
        /// The process.
        pid: u32,
        /// The pid file.
        path: PathBuf,
    },
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootError {
    let path = path.to_owned();
    move |source| RootError::Io { doing, path, source }
}

/// The data root and exec root, locked for this process until dropped. The kernel releases the lock
/// when the process ends, however it ends.
#[derive(Debug)]
pub struct RootLock {
    _lock: File,
}

impl RootLock {
    /// Makes both directories and takes the lock.
    ///
    /// # Errors
    ///
    /// [`RootError::InUse`] if another daemon has it.
    pub fn take(data_root: &Path, exec_root: &Path) -> Result<Self, RootError> {
        for path in [data_root, exec_root] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o710)
                .create(path)
                .map_err(io("create", path))?;
        }
        let path = data_root.join("daemon.lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(RootError::InUse(data_root.to_owned())),
            Err(TryLockError::Error(error)) => Err(io("lock", &path)(error)),
        }
    }
}

/// The daemon's identity: a UUID kept in `<data root>/engine-id`, made once.
///
/// # Errors
///
/// If it can neither be read nor written.
pub fn engine_id(data_root: &Path) -> Result<String, RootError> {
    let path = data_root.join("engine-id");
    match std::fs::read_to_string(&path) {
        Ok(text) if is_id(text.trim()) => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("read", &path)(error)),
    }
    let id = random_uuid();
    replace(&path, &id)?;
    Ok(id)
}

fn is_id(text: &str) -> bool {
    (8..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b':'))
}

/// A random (version 4) UUID. Source: RFC 9562 §5.4.
fn random_uuid() -> String {
    let digits = ContainerId::random();
    let hex = digits.as_str();
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

/// Writes beside, then renames: the file is old or new, never half.
fn replace(path: &Path, text: &str) -> Result<(), RootError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(io("write", path))
}

/// A pid file, removed when dropped.
#[derive(Debug)]
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes this process' id to `path`.
    ///
    /// # Errors
    ///
    /// [`RootError::Running`] if it names a process that exists.
    pub fn write(path: &Path) -> Result<Self, RootError> {
        let own = std::process::id();
        if let Ok(text) = std::fs::read_to_string(path)
            && let Ok(pid) = text.trim().parse::<u32>()
            && pid != own
            && Path::new("/proc").join(pid.to_string()).exists()
        {
            return Err(RootError::Running { pid, path: path.to_owned() });
        }
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(io("create", directory))?;
        }
        replace(path, &own.to_string())?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // somebody else may have removed it
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_root_has_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let (data, exec) = (dir.path().join("data"), dir.path().join("exec"));
        let first = RootLock::take(&data, &exec).unwrap();
        assert!(matches!(RootLock::take(&data, &exec), Err(RootError::InUse(_))));
        drop(first);
        RootLock::take(&data, &exec).unwrap();
    }

    #[test]
    fn the_identity_stays() {
        let dir = tempfile::tempdir().unwrap();
        let id = engine_id(dir.path()).unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(engine_id(dir.path()).unwrap(), id);
        std::fs::write(dir.path().join("engine-id"), "?").unwrap();
        assert_ne!(engine_id(dir.path()).unwrap(), id);
    }

    #[test]
    fn a_pid_file_of_a_living_process_is_respected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/docker.pid");
        drop(PidFile::write(&path).unwrap());
        assert!(!path.exists());
        std::fs::write(&path, "1").unwrap();
        assert!(matches!(PidFile::write(&path), Err(RootError::Running { pid: 1, .. })));
        std::fs::write(&path, "4194305").unwrap(); // above the largest pid Linux gives out
        PidFile::write(&path).unwrap();
    }
}
