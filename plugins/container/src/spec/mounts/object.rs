//! The long form: `Mount` objects.

use gantry_sdk::Result;
use gantry_sdk::api::Mount;

use super::{
    DEFAULT_PROPAGATION, MountKind, PROPAGATIONS, WantedMount, bad_mount, tmpfs::options_text,
};
use crate::spec::path::{clean, is_local};

/// Asks whether a path of the host exists.
type Exists<'a> = &'a dyn Fn(&str) -> Result<bool>;

/// Whether a mount makes sense, with a bind's source on the host.
///
/// # Errors
///
/// `InvalidArgument`: `invalid mount config for type …`.
pub fn check_mount(mount: &Mount, exists: Exists<'_>) -> Result<()> {
    parse_mount(mount, exists).map(|_| ())
}

/// Reads a mount.
///
/// # Errors
///
/// As [`check_mount`].
pub fn parse_mount(mount: &Mount, exists: Exists<'_>) -> Result<WantedMount> {
    parse(mount, Some(exists))
}

/// Reads a mount; without `exists` the source need not be there.
pub(super) fn parse(mount: &Mount, exists: Option<Exists<'_>>) -> Result<WantedMount> {
    let bad = |why: String| bad_mount(&mount.kind, why);
    check_options(mount)?;
    if mount.target.is_empty() {
        return Err(bad(missing("Target")));
    }
    check_target(&mount.target).map_err(bad)?;

    let mut wanted = WantedMount {
        destination: clean(&mount.target),
        writable: !mount.read_only,
        object: mount.clone(),
        ..WantedMount::default()
    };
    match mount.kind.as_str() {
        "bind" => bind(mount, exists, &mut wanted),
        "volume" => volume(mount, &mut wanted),
        "tmpfs" => {
            wanted.kind = MountKind::Tmpfs;
            if !mount.source.is_empty() {
                return Err(bad(extra("Source")));
            }
            wanted.tmpfs_options =
                options_text(mount.tmpfs_options.as_ref(), mount.read_only).map_err(bad)?;
            Ok(())
        }
        "image" => image(mount, &mut wanted),
        _ => Err("mount type unknown".into()),
    }
    .map_err(bad)?;
    Ok(wanted)
}

fn missing(field: &str) -> String {
    format!("field {field} must not be empty")
}

fn extra(field: &str) -> String {
    format!("field {field} must not be specified")
}

/// A mount has options of its own type only.
fn check_options(mount: &Mount) -> Result<()> {
    let given = [
        ("bind", "BindOptions", mount.bind_options.is_some()),
        ("volume", "VolumeOptions", mount.volume_options.is_some()),
        ("image", "ImageOptions", mount.image_options.is_some()),
        ("tmpfs", "TmpfsOptions", mount.tmpfs_options.is_some()),
        ("cluster", "ClusterOptions", mount.cluster_options.is_some()),
    ];
    match given.iter().find(|(kind, _, is_given)| *is_given && mount.kind != *kind) {
        Some((_, field, _)) => Err(bad_mount(&mount.kind, extra(field))),
        None => Ok(()),
    }
}

/// Whether something can be mounted at `target`.
pub(super) fn check_target(target: &str) -> Result<(), String> {
    if clean(target) == "/" {
        return Err("invalid specification: destination can't be '/'".into());
    }
    check_absolute(target)
}

fn check_absolute(path: &str) -> Result<(), String> {
    if path.contains('\0') {
        return Err("invalid mount path: a path has no zero bytes".into());
    }
    if path.starts_with('/') {
        return Ok(());
    }
    Err(format!("invalid mount path: '{path}' mount path must be absolute"))
}

fn bind(mount: &Mount, exists: Option<Exists<'_>>, wanted: &mut WantedMount) -> Result<(), String> {
    let options = mount.bind_options.clone().unwrap_or_default();
    if mount.source.is_empty() {
        return Err(missing("Source"));
    }
    if !options.propagation.is_empty() && !PROPAGATIONS.contains(&options.propagation.as_str()) {
        return Err(format!("invalid propagation mode: {}", options.propagation));
    }
    check_absolute(&mount.source)?;
    // The reference says this when the container starts; nothing in between could make it right.
    let (shallow, forced) = (options.read_only_non_recursive, options.read_only_force_recursive);
    let conflict = match (mount.read_only, shallow, forced) {
        (false, true, _) => Some("!ReadOnly && BindOptions.ReadOnlyNonRecursive"),
        (false, false, true) => Some("!ReadOnly && BindOptions.ReadOnlyForceRecursive"),
        (true, true, true) => Some("ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive"),
        _ => None,
    };
    if let Some(conflict) = conflict {
        return Err(format!("mount options conflict: {conflict}"));
    }
    if let Some(exists) = exists
        && !options.create_mountpoint
        && !exists(&mount.source).map_err(|error| error.chain())?
    {
        return Err(format!("bind source path does not exist: {}", mount.source));
    }
    wanted.kind = MountKind::Bind;
    wanted.source = clean(&mount.source);
    wanted.create_source = options.create_mountpoint;
    wanted.propagation = if options.propagation.is_empty() {
        DEFAULT_PROPAGATION.into()
    } else {
        options.propagation
    };
    Ok(())
}

fn volume(mount: &Mount, wanted: &mut WantedMount) -> Result<(), String> {
    let options = mount.volume_options.clone().unwrap_or_default();
    if !options.subpath.is_empty() {
        if mount.source.is_empty() {
            return Err("must not set Subpath when using anonymous volumes".into());
        }
        check_subpath(&options.subpath)?;
    }
    wanted.kind = MountKind::Volume;
    wanted.name.clone_from(&mount.source);
    wanted.copy_up = !options.no_copy;
    wanted.driver = options.driver_config.map(|driver| driver.name).unwrap_or_default();
    Ok(())
}

fn image(mount: &Mount, wanted: &mut WantedMount) -> Result<(), String> {
    if mount.source.is_empty() {
        return Err(missing("Source"));
    }
    if let Some(options) = &mount.image_options
        && !options.subpath.is_empty()
    {
        check_subpath(&options.subpath)?;
    }
    wanted.kind = MountKind::Image;
    wanted.source.clone_from(&mount.source);
    wanted.propagation = DEFAULT_PROPAGATION.into();
    wanted.writable = false;
    Ok(())
}

fn check_subpath(subpath: &str) -> Result<(), String> {
    if is_local(subpath) {
        return Ok(());
    }
    Err("subpath must be a relative path within the volume".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<WantedMount> {
        let mount: Mount = serde_json::from_str(json).unwrap();
        parse_mount(&mount, &|path| Ok(path != "/missing"))
    }

    #[test]
    fn what_is_asked_for_is_understood() {
        let bind = read(
            r#"{"Type":"bind","Source":"/a/","Target":"/x/../y","ReadOnly":true,
                "BindOptions":{"Propagation":"shared"}}"#,
        )
        .unwrap();
        assert_eq!((bind.source.as_str(), bind.destination.as_str()), ("/a", "/y"));
        assert_eq!((bind.propagation.as_str(), bind.writable), ("shared", false));

        let volume = read(
            r#"{"Type":"volume","Source":"v","Target":"/x","VolumeOptions":
                {"NoCopy":true,"Subpath":"a/b","DriverConfig":{"Name":"nfs"}}}"#,
        )
        .unwrap();
        assert_eq!((volume.name.as_str(), volume.driver.as_str()), ("v", "nfs"));
        assert!(!volume.copy_up);

        let tmpfs = read(
            r#"{"Type":"tmpfs","Target":"/x","TmpfsOptions":{"SizeBytes":2097152,"Mode":1023}}"#,
        )
        .unwrap();
        assert_eq!(tmpfs.tmpfs_options, "mode=1777,size=2m");

        let made = r#"{"Type":"bind","Source":"/missing","Target":"/x",
            "BindOptions":{"CreateMountpoint":true}}"#;
        assert!(read(made).unwrap().create_source);
        assert!(!read(r#"{"Type":"image","Source":"busybox","Target":"/x"}"#).unwrap().writable);
    }

    #[test]
    fn mistakes_are_told_as_the_reference_does() {
        let cases = [
            (r#""Type":"bind","Source":"/a""#, "field Target must not be empty"),
            (r#""Type":"bind","Target":"/x""#, "field Source must not be empty"),
            (
                r#""Type":"bind","Source":"/a","Target":"/a/..""#,
                "invalid specification: destination can't be '/'",
            ),
            (
                r#""Type":"bind","Source":"/a","Target":"x""#,
                "invalid mount path: 'x' mount path must be absolute",
            ),
            (
                r#""Type":"bind","Source":"a","Target":"/x""#,
                "invalid mount path: 'a' mount path must be absolute",
            ),
            (
                r#""Type":"bind","Source":"/missing","Target":"/x""#,
                "bind source path does not exist: /missing",
            ),
            (
                r#""Type":"bind","Source":"/a","Target":"/x","BindOptions":{"Propagation":"p"}"#,
                "invalid propagation mode: p",
            ),
            (
                r#""Type":"bind","Source":"/a","Target":"/x","VolumeOptions":{}"#,
                "field VolumeOptions must not be specified",
            ),
            (
                r#""Type":"bind","Source":"/a","Target":"/x",
                   "BindOptions":{"ReadOnlyForceRecursive":true}"#,
                "mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive",
            ),
            (
                r#""Type":"volume","Target":"/x","VolumeOptions":{"Subpath":"a"}"#,
                "must not set Subpath when using anonymous volumes",
            ),
            (
                r#""Type":"volume","Source":"v","Target":"/x","VolumeOptions":{"Subpath":"../a"}"#,
                "subpath must be a relative path within the volume",
            ),
            (r#""Type":"tmpfs","Source":"v","Target":"/x""#, "field Source must not be specified"),
            (
                r#""Type":"tmpfs","Target":"/x","TmpfsOptions":{"Options":[["suid"]]}"#,
                "invalid option: suid",
            ),
            (r#""Type":"npipe","Source":"v","Target":"/x""#, "mount type unknown"),
            (r#""Source":"v","Target":"/x""#, "mount type unknown"),
        ];
        for (fields, expected) in cases {
            let error = read(&format!("{{{fields}}}")).unwrap_err().to_string();
            assert!(error.starts_with("invalid mount config for type \""), "{error}");
            assert!(error.ends_with(&format!("\": {expected}")), "{fields}: {error}");
        }
    }
}
