//! The plugins in this build. The only file that names them.
//!
//! A crate that nothing mentions can be left out by the linker together with its registration, and
//! the daemon would start without it and without a word. Mentioning it here keeps it; the test below
//! notices if that ever stops being enough.

use gantry_container as _;
use gantry_content as _;
use gantry_events as _;
use gantry_image as _;
use gantry_import as _;
use gantry_ipam as _;
use gantry_kit as _;
use gantry_log_json_file as _;
use gantry_log_none as _;
use gantry_network as _;
use gantry_network_bridge as _;
use gantry_network_host as _;
use gantry_network_null as _;
use gantry_registry as _;
use gantry_runtime_oci as _;
use gantry_storage as _;
use gantry_storage_btrfs as _;
use gantry_storage_erofs as _;
use gantry_storage_fuse_overlayfs as _;
use gantry_storage_overlay2 as _;
use gantry_storage_vfs as _;
use gantry_system as _;
use gantry_volume as _;
use gantry_volume_local as _;

use gantry_sdk::Registration;

/// The ids of all built-in plugins, sorted.
pub const IDS: &[&str] = &[
    "container",
    "content",
    "events",
    "image",
    "import",
    "ipam.default",
    "kit",
    "layers",
    "log.json-file",
    "log.none",
    "network",
    "network.bridge",
    "network.host",
    "network.null",
    "registry",
    "runtime.oci",
    "storage.btrfs",
    "storage.erofs",
    "storage.fuse-overlayfs",
    "storage.overlay2",
    "storage.vfs",
    "system",
    "volume.local",
    "volumes",
];

/// All built-in plugins, in no particular order: the kernel sorts.
#[must_use]
pub fn plugins() -> Vec<&'static Registration> {
    inventory::iter::<Registration>.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_plugin_is_linked() {
        let mut ids: Vec<_> = plugins().iter().map(|plugin| plugin.descriptor.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, IDS);
    }
}
