//! Layers that are whole copies.

use std::os::fd::AsFd;

use gantry_archive::ArchiveError;
use gantry_layer_dirs::{Layers, NewLayer, Record, TREE_STEPS, TreeKind, Trees};
use gantry_sdk::{Error, ErrorKind, Result};

/// The kinds of steps in this driver's plans.
pub const STEPS: &[&str] = TREE_STEPS;

/// The driver on one root directory.
pub type Vfs = Trees<Copies>;

/// Copies every file, sharing blocks where the file system can.
#[derive(Debug, Default)]
pub struct Copies;

impl TreeKind for Copies {
    const NAME: &'static str = "vfs";
    // Nothing limits the depth but patience; a bound there must be.
    const MAX_DEPTH: u32 = 1000;

    fn status(layers: &Layers) -> Vec<(String, String)> {
        vec![("Backing Filesystem".to_owned(), layers.backing_file_system())]
    }

    fn check_size(layers: &Layers, _: u64) -> Result<()> {
        layers.check_limit(Self::NAME)
    }

    fn fill(layers: &Layers, layer: &NewLayer<'_>, size: Option<u64>) -> Result<()> {
        size.map_or(Ok(()), |bytes| layer.limit(bytes))?;
        layer.make_content()?;
        let Some(parent) = layer.parent else { return Ok(()) };
        let from = layers.open_content(parent)?;
        let to = layers.open_content(layer.record)?;
        gantry_archive::copy_tree(from.as_fd(), to.as_fd())
            .map_err(|error| copying(&parent.key, error))
    }

    fn freeze(_: &Layers, _: &Record) -> Result<()> {
        Ok(())
    }
}

fn copying(key: &str, error: ArchiveError) -> Error {
    let kind = if error.is_no_space() { ErrorKind::NoSpace } else { ErrorKind::Internal };
    Error::new(kind, format!("cannot copy layer {key}")).caused_by(error)
}
