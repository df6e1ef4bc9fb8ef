//! Layers that are stacked by the kernel.

use gantry_layer_dirs::{Layers, StackKind, Stacks, Top};
use gantry_sdk::mounts::{OverlayFlags, Place, Step};

/// The kinds of steps in this driver's plans.
pub const STEPS: &[&str] = &["bind", "overlay"];

/// The driver on one root directory.
pub type Overlay2 = Stacks<Overlays>;

/// Stacks layers with overlayfs.
///
/// Renamed directories are copied and changed files are copied whole, whatever the kernel's defaults
/// are: a layer then says all that it changes, and means the same on every machine.
#[derive(Debug, Default)]
pub struct Overlays;

impl StackKind for Overlays {
    const NAME: &'static str = "overlay2";
    const STEPS: &'static [&'static str] = STEPS;
    const NATIVE_DIFF: bool = true;
    const ID_MAPS: bool = true;
    const VOLATILE: bool = true;

    fn status(layers: &Layers) -> Vec<(String, String)> {
        let row = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let has_types = layers.tells_types().unwrap_or(false);
        vec![
            row("Backing Filesystem", &layers.backing_file_system()),
            row("Supports d_type", if has_types { "true" } else { "false" }),
            row("Using metacopy", "false"),
            row("Native Overlay Diff", "true"),
            row("userxattr", "false"),
        ]
    }

    fn stack(lowers: Vec<Place>, top: Option<Top>) -> Step {
        let volatile = top.as_ref().is_some_and(|top| top.volatile);
        let flags = OverlayFlags { volatile, ..OverlayFlags::default() };
        let (upper, work) = match top {
            Some(top) => (Some(Place::Path(top.upper)), Some(Place::Path(top.work))),
            None => (None, None),
        };
        Step::Overlay { lowers, upper, work, flags }
    }
}
