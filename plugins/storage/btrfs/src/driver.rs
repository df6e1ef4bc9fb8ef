//! Layers that are subvolumes.

use gantry_layer_dirs::{Layers, NewLayer, Record, TREE_STEPS, TreeKind, Trees, parse_size};
use gantry_sdk::{Error, Result};

/// The kinds of steps in this driver's plans.
pub const STEPS: &[&str] = TREE_STEPS;

/// The least size of a layer that has one, among the daemon's options.
pub(crate) const MIN_SPACE: &str = "min_space";

/// The driver on one root directory.
pub type Btrfs = Trees<Subvolumes>;

/// Makes snapshots.
#[derive(Debug, Default)]
pub struct Subvolumes;

impl TreeKind for Subvolumes {
    const NAME: &'static str = "btrfs";
    // Nothing is stacked; what bounds it is the time to count a chain.
    const MAX_DEPTH: u32 = 1000;

    fn status(layers: &Layers) -> Vec<(String, String)> {
        vec![("Backing Filesystem".to_owned(), layers.backing_file_system())]
    }

    fn check_size(layers: &Layers, bytes: u64) -> Result<()> {
        let least = layers.options().get(MIN_SPACE).and_then(|text| parse_size(text));
        match least {
            Some(least) if bytes < least => Err(Error::invalid(format!(
                "storage option size: {bytes} bytes are less than btrfs.min_space, {least} bytes"
            ))),
            _ => Ok(()),
        }
    }

    /// As the reference engine has it, `size` is of the whole tree: what comes from the image counts.
    fn fill(layers: &Layers, layer: &NewLayer<'_>, size: Option<u64>) -> Result<()> {
        let parent = layer.parent.map(|parent| layers.open_content(parent)).transpose()?;
        layer.make_subvolume(parent, size)
    }

    fn freeze(layers: &Layers, record: &Record) -> Result<()> {
        layers.freeze_subvolume(record)
    }
}
