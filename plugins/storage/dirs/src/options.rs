//! Options of storage drivers: the daemon's `storage-opts`, and sizes.

use gantry_sdk::{ConfigView, Error, Labels, Result};
use gantry_sys::mount::{ProjectLimit, limit_directory};
use serde::Deserialize;

use crate::layers::Layers;
use crate::making::NewLayer;

/// The configuration key that all storage drivers share.
pub const STORAGE_OPTS: &str = "storage-opts";

/// The limit of a writable layer, in the daemon's options and in those of a container.
pub const SIZE: &str = "size";

/// Obsolete in the reference engine too, which reads it and does nothing; old files still have it.
const WITHOUT_EFFECT: &str = "override_kernel_check";

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Shared {
    storage_opts: Vec<String>,
}

/// The daemon's options for the driver `name`: those written `name.option=value`, without the prefix.
///
/// # Errors
///
/// `InvalidArgument` for an option that has no value, or is there twice.
pub fn options_of(view: &ConfigView, name: &str) -> Result<Labels> {
    let shared: Shared = view.parse()?;
    let mut options = Labels::new();
    for option in &shared.storage_opts {
        let Some((key, value)) = option.split_once('=') else {
            return Err(Error::invalid(format!("{STORAGE_OPTS}: {option:?} has no value")));
        };
        let key = key.trim().to_ascii_lowercase();
        let Some(own) = key.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) else {
            continue;
        };
        if own == WITHOUT_EFFECT {
            continue;
        }
        if options.insert(own.to_owned(), value.trim().to_owned()).is_some() {
            return Err(Error::invalid(format!("{STORAGE_OPTS}: {key} is given twice")));
        }
    }
    Ok(options)
}

/// Every mistake among the daemon's options for the driver `name`, which takes the sizes `known`.
pub fn check_options(view: &ConfigView, name: &str, known: &[&str]) -> Vec<String> {
    let options = match options_of(view, name) {
        Ok(options) => options,
        Err(error) => return vec![error.chain()],
    };
    check_sizes(&options, known)
        .into_iter()
        .map(|why| format!("{STORAGE_OPTS}: {name}.{why}"))
        .collect()
}

/// What is wrong with options that are all sizes.
pub(crate) fn check_sizes(options: &Labels, known: &[&str]) -> Vec<String> {
    let mistake = |(key, value): (&String, &String)| {
        if !known.contains(&key.as_str()) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Some(format!("{key} is unknown; there is: {known}"));
        }
        parse_size(value).is_none().then(|| format!("{key}: {value:?} is not a size"))
    };
    options.iter().filter_map(mistake).collect()
}

/// Bytes of `10G`, `1.5g`, `512MiB`, `64kb` or `100`: binary units, in either case.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = unit.trim();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let scale = 1u64 << shift;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    // Nine digits are nanounits: more than anybody writes, and exact in 128 bits.
    let fraction = format!("{fraction:0<9}");
    let parts: u64 = fraction.get(..9)?.parse().ok()?;
    let parts = u128::from(parts) * u128::from(scale) / 1_000_000_000;
    whole.checked_mul(scale)?.checked_add(u64::try_from(parts).ok()?)
}

/// The size among a layer's options, none if it is not limited. Other options are unknown.
///
/// # Errors
///
/// `InvalidArgument` naming the option.
pub(crate) fn size_among(options: &Labels, driver: &str) -> Result<Option<u64>> {
    let mut size = None;
    for (name, value) in options {
        if name != SIZE {
            return Err(Error::invalid(format!("unknown storage option {name:?} for {driver}")));
        }
        let bytes = parse_size(value)
            .ok_or_else(|| Error::invalid(format!("storage option size: {value:?} is no size")))?;
        size = (bytes > 0).then_some(bytes);
    }
    Ok(size)
}

impl Layers {
    /// Whether the file system limits directories by project quota.
    pub fn limits_directories(&self) -> bool {
        self.limits
    }

    /// Sees that a layer of a limited size can be made here.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: the file system does not enforce project quotas; says what would help.
    pub fn check_limit(&self, driver: &str) -> Result<()> {
        if self.limits {
            return Ok(());
        }
        let file_system = self.backing_file_system();
        let help = match file_system.as_str() {
            "xfs" => "mount it with the option pquota",
            "extfs" => {
                "give it the features by tune2fs -O project,quota and mount it with the option prjquota"
            }
            _ => "xfs mounted with pquota and ext4 mounted with prjquota do",
        };
        Err(Error::invalid(format!(
            "storage option size is not supported by {driver} on {}: its file system ({file_system}) does not enforce project quotas; {help}",
            self.root.display()
        )))
    }
}

impl NewLayer<'_> {
    /// Limits everything in the layer's directory, overlayfs' scratch included. Comes first.
    ///
    /// # Errors
    ///
    /// What the file system reported.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        let limit = ProjectLimit { bytes, inodes: 0 };
        // Layers have different numbers, so each looks for a free id in a place of its own.
        let hint = u32::try_from(self.record.id & u64::from(u32::MAX)).unwrap_or_default();
        limit_directory(&self.dir, limit, hint)
            .map(drop)
            .map_err(|e| Error::internal(format!("cannot limit layer {}", self.record.key), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("100", Some(100)),
            ("64k", Some(64 << 10)),
            (" 10G ", Some(10 << 30)),
            ("1.5g", Some(3 << 29)),
            ("512MiB", Some(512 << 20)),
            ("2 tb", Some(2 << 40)),
            ("", None),
            ("g", None),
            ("-1", None),
            ("1x", None),
            ("99999999p", None),
            ("1.5.5", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn every_driver_sees_its_own_options() {
        let view = |options: &[&str]| {
            let json = serde_json::json!({ "storage-opts": options, "storage-driver": "x" });
            ConfigView::new(json.as_object().cloned().unwrap_or_default())
        };
        let good = view(&[
            "overlay2.size=10G",
            "btrfs.min_space=1g",
            "Overlay2.X=y",
            "overlay2.override_kernel_check=1",
        ]);
        assert_eq!(options_of(&good, "overlay2").unwrap().len(), 2);
        assert_eq!(options_of(&good, "overlay").unwrap(), Labels::new());
        assert_eq!(check_options(&good, "btrfs", &["min_space"]), [""; 0]);
        let mistakes = check_options(&good, "overlay2", &[SIZE]);
        assert!(mistakes.len() == 1 && mistakes[0].contains("overlay2.x"), "{mistakes:?}");
        for bad in [&["overlay2.size"][..], &["overlay2.size=1", "overlay2.size=2"]] {
            assert!(options_of(&view(bad), "overlay2").is_err(), "{bad:?}");
        }
        assert_eq!(check_options(&view(&["vfs.size=much"]), "vfs", &[SIZE]).len(), 1);
    }
}
