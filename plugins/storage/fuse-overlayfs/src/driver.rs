//! Layers that are stacked by a program.

use gantry_layer_dirs::{Layers, StackKind, Stacks, Top};
use gantry_sdk::mounts::{Place, Step};

/// The kinds of steps in this driver's plans.
pub const STEPS: &[&str] = &["bind", "fuse-overlay"];

/// The driver on one root directory.
pub type FuseOverlayfs = Stacks<Served>;

/// Stacks layers with fuse-overlayfs.
#[derive(Debug, Default)]
pub struct Served;

impl StackKind for Served {
    const NAME: &'static str = "fuse-overlayfs";
    const STEPS: &'static [&'static str] = STEPS;
    // Replaced directories have a file `.wh..wh..opq`.
    const NATIVE_DIFF: bool = false;
    const ID_MAPS: bool = false;
    const VOLATILE: bool = false;

    fn status(layers: &Layers) -> Vec<(String, String)> {
        let row = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            row("Backing Filesystem", &layers.backing_file_system()),
            row("Native Overlay Diff", "false"),
        ]
    }

    fn stack(lowers: Vec<Place>, top: Option<Top>) -> Step {
        let (upper, work) = match top {
            Some(top) => (Some(top.upper), Some(top.work)),
            None => (None, None),
        };
        Step::FuseOverlay { lowers, upper, work }
    }
}
