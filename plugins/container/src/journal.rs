//! What must outlive the daemon at once, before the database has it.
//!
//! A start or an end is told to clients as soon as it is on record in the container's run directory:
//! that survives the daemon, though not the machine. The database follows within
//! [`SAVE_WITHIN`], so that a container that starts, ends and is removed costs two commits, not four.
//! What a client *asks* for (create, stop, rename, remove) is in the database before it is answered.

use std::path::Path;
use std::time::Duration;

use gantry_sdk::Result;
use gantry_sys::path::{Durability, read_file_bounded, replace};

use crate::record::Life;

/// How far the database may be behind.
pub const SAVE_WITHIN: Duration = Duration::from_millis(50);

const FILE: &str = "life";
const MOST_BYTES: usize = 1 << 20;

/// Writes `life` into a run directory. One small file, renamed into place: short enough for an async
/// thread.
///
/// # Errors
///
/// `Internal` or `NoSpace` with the path.
pub fn write(run_dir: &Path, life: &Life) -> Result<()> {
    let path = run_dir.join(FILE);
    let bytes = serde_json::to_vec(life)
        .map_err(|e| gantry_sdk::Error::internal("cannot encode a container's life", e))?;
    replace(&path, &bytes, Durability::Volatile)
        .map_err(|e| gantry_sdk::Error::io("write", path.display(), e.into()))
}

/// Reads it back; none if there is none, or it cannot be understood: the database is then the best
/// that is known.
pub fn read(run_dir: &Path) -> Option<Life> {
    let bytes = read_file_bounded(&run_dir.join(FILE), MOST_BYTES).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = std::env::temp_dir().join(format!("gantry-journal-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(read(&dir), None);
        let life = Life { restarts: 3, active: true, ..Life::default() };
        write(&dir, &life).unwrap();
        assert_eq!(read(&dir), Some(life));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
