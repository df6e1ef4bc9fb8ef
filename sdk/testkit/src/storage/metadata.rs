//! Checks 25–31: what belongs to files besides their content.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{Timespec, Timestamps, XattrFlags};

use super::{Fixture, cx, path_of};
use crate::archive::Tar;

fn owner(path: &Path) -> (u32, u32) {
    let meta = path.symlink_metadata().unwrap();
    (meta.uid(), meta.gid())
}

/// Check 25.
pub async fn owners_of_every_size_are_kept(f: &mut Fixture) {
    let ids = [0u32, 1000, 65534, 1 << 31, u32::MAX - 1];
    let mut tar = Tar::default();
    for id in ids {
        let text = id.to_string();
        let records = [("uid", text.as_bytes()), ("gid", text.as_bytes())];
        tar = tar
            .pax(&records)
            .file(&format!("f{id}"), "")
            .pax(&records)
            .symlink(&format!("l{id}"), "x");
    }
    f.layer("base", None, tar).await;
    let mount = f.writable("key", Some("base")).await;
    for id in ids {
        for name in [format!("f{id}"), format!("l{id}")] {
            assert_eq!(owner(&path_of(&mount).join(&name)), (id, id), "{name}");
        }
    }
    chown(path_of(&mount).join("f0"), Some(7), Some(8)).unwrap();
    drop(mount);
    let archive = f.diff("key", Some("base")).await;
    f.layer_from("again", Some("base"), &archive).await;
    let mount = f.open("again").await;
    assert_eq!(owner(&path_of(&mount).join("f0")), (7, 8), "a change of owner alone is a change");
}

/// Check 26.
pub async fn modes_survive_with_their_special_bits(f: &mut Fixture) {
    let modes = [0o000, 0o400, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o6711];
    let mut tar = Tar::default();
    for mode in modes {
        let set = |h: &mut tar::Header| {
            h.set_mode(mode);
            h.set_uid(1000);
        };
        tar = tar.with(&format!("f{mode:o}"), b'0', set).with(&format!("d{mode:o}"), b'5', set);
        tar = tar.file(&format!("d{mode:o}/inside"), "");
    }
    f.layer("base", None, tar).await;
    let mount = f.open("base").await;
    for mode in modes {
        for kind in ["f", "d"] {
            let path = path_of(&mount).join(format!("{kind}{mode:o}"));
            let found = path.metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!(found, mode, "{kind}{mode:o} is {found:o}");
            assert_eq!(owner(&path).0, 1000);
        }
        let inside = path_of(&mount).join(format!("d{mode:o}/inside"));
        assert_eq!(
            owner(&inside),
            (0, 0),
            "a setgid directory gives nothing to an archive's files"
        );
    }
}

/// Check 27.
pub async fn times_are_kept_to_the_nanosecond(f: &mut Fixture) {
    let times = [
        ("1700000000.123456789", 1_700_000_000, 123_456_789),
        ("-1.5", -2, 500_000_000),
        ("4000000000.25", 4_000_000_000, 250_000_000),
    ];
    let mut tar = Tar::default();
    for (n, (text, ..)) in times.iter().enumerate() {
        let records = [("mtime", text.as_bytes())];
        tar = tar.pax(&records).dir(&format!("d{n}")).pax(&records).file(&format!("d{n}/f"), "x");
        tar = tar.pax(&records).symlink(&format!("d{n}/l"), "f").file(&format!("d{n}/later"), "");
    }
    f.layer("base", None, tar).await;
    let mount = f.open("base").await;
    for (n, (_, seconds, nanos)) in times.iter().enumerate() {
        for name in ["", "/f", "/l"] {
            let meta = path_of(&mount).join(format!("d{n}{name}")).symlink_metadata().unwrap();
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (*seconds, *nanos), "d{n}{name}");
        }
    }
}

/// Check 28.
pub async fn extended_attributes_are_kept(f: &mut Fixture) {
    let v2: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let large = vec![b'v'; 2000];
    let kept: [(&str, &[u8]); 5] = [
        ("user.text", b"value"),
        ("user.empty-not", b"\0\xff\n="),
        ("user.large", &large),
        ("trusted.note", b"root only"),
        ("security.capability", v2),
    ];
    let dropped: [(&str, &[u8]); 2] =
        [("trusted.overlay.redirect", b"/elsewhere"), ("security.selinux", b"label")];
    let named: Vec<(String, &[u8])> =
        kept.iter().chain(&dropped).map(|(n, v)| (format!("SCHILY.xattr.{n}"), *v)).collect();
    let records: Vec<(&str, &[u8])> = named.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    let on_dir = [records[0], records[3]];
    f.layer("base", None, Tar::default().pax(&records).file("f", "x").pax(&on_dir).dir("d")).await;
    let get = |path: &Path, name: &str| {
        let mut value = vec![0; 64 << 10];
        rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok().map(|n| value[..n].to_vec())
    };
    let mount = f.open("base").await;
    for (name, value) in kept {
        assert_eq!(get(&path_of(&mount).join("f"), name).as_deref(), Some(value), "{name}");
    }
    for (name, _) in dropped {
        assert_eq!(get(&path_of(&mount).join("f"), name), None, "{name} was taken from an archive");
    }
    assert_eq!(get(&path_of(&mount).join("d"), "user.text").as_deref(), Some(&b"value"[..]));

    let mount = f.writable("key", Some("base")).await;
    let path = path_of(&mount).join("f");
    rustix::fs::setxattr(&path, "user.later", b"1", XattrFlags::empty()).unwrap();
    rustix::fs::removexattr(&path, "user.text").unwrap();
    drop(mount);
    let archive = f.diff("key", Some("base")).await;
    f.layer_from("again", Some("base"), &archive).await;
    let mount = f.open("again").await;
    let path = path_of(&mount).join("f");
    assert_eq!(get(&path, "user.later").as_deref(), Some(&b"1"[..]));
    assert_eq!(
        (get(&path, "user.text"), get(&path, "security.capability").as_deref()),
        (None, Some(v2))
    );
}

/// An ACL of two named users, as the kernel keeps it. Source: Linux, `posix_acl_xattr.h`.
fn acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 6, 1000),
        (4, 5, u32::MAX),
        (16, 7, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Check 29.
pub async fn access_lists_are_kept(f: &mut Fixture) {
    let acl = acl();
    let names = ["SCHILY.xattr.system.posix_acl_access", "SCHILY.xattr.system.posix_acl_default"];
    let both = [(names[0], acl.as_slice()), (names[1], acl.as_slice())];
    let with_mode = |mode| move |h: &mut tar::Header| h.set_mode(mode);
    let tar = Tar::default().pax(&both).with("d", b'5', with_mode(0o770)).file("d/plain", "");
    let tar = tar.pax(&both[..1]).with("f", b'0', with_mode(0o770)).dir("d/sub");
    f.layer("base", None, tar).await;
    f.layer("top", Some("base"), Tar::default().file("d/later", "")).await;
    let mount = f.open("top").await;
    let get = |name: &str, which: &str| {
        let mut value = vec![0; 1024];
        let path = path_of(&mount).join(name);
        let which = format!("system.posix_acl_{which}");
        rustix::fs::lgetxattr(path, which, value.as_mut_slice()).ok().map(|n| value[..n].to_vec())
    };
    assert_eq!(get("d", "access"), Some(acl.clone()));
    assert_eq!(get("d", "default"), Some(acl.clone()));
    assert_eq!(get("f", "access"), Some(acl));
    for name in ["d/plain", "d/sub", "d/later"] {
        assert_eq!(get(name, "access"), None, "{name} inherited what its archive does not say");
        assert_eq!(get(name, "default"), None, "{name}");
    }
    assert_eq!(path_of(&mount).join("d/later").metadata().unwrap().mode() & 0o7777, 0o644);
}

/// Check 30.
pub async fn devices_and_pipes_are_kept(f: &mut Fixture) {
    let device = |major, minor| {
        move |h: &mut tar::Header| {
            h.set_mode(0o660);
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
        }
    };
    let tar =
        Tar::default().with("null", b'3', device(1, 3)).with("disk", b'4', device(259, 70_000));
    f.layer("base", None, tar.with("pipe", b'6', |h| h.set_mode(0o622))).await;
    let mount = f.open("base").await;
    let meta = |name| path_of(&mount).join(name).symlink_metadata().unwrap();
    assert!(
        meta("null").file_type().is_char_device() && meta("disk").file_type().is_block_device()
    );
    assert_eq!(meta("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(meta("disk").rdev(), rustix::fs::makedev(259, 70_000));
    assert_eq!(meta("disk").mode() & 0o7777, 0o660);
    assert!(meta("pipe").file_type().is_fifo() && meta("pipe").mode() & 0o7777 == 0o622);

    let mount = f.writable("key", Some("base")).await;
    let socket = path_of(&mount).join("socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    fs::write(path_of(&mount).join("x"), "").unwrap();
    drop(mount);
    let archive = f.diff("key", Some("base")).await;
    f.layer_from("again", Some("base"), &archive).await;
    let mount = f.open("again").await;
    assert!(path_of(&mount).join("x").exists() && !path_of(&mount).join("socket").exists());
}

/// Check 31.
pub async fn the_top_directory_keeps_its_attributes(f: &mut Fixture) {
    let top = |mode, uid| {
        move |h: &mut tar::Header| {
            h.set_mode(mode);
            h.set_uid(uid);
        }
    };
    let tar =
        Tar::default().pax(&[("SCHILY.xattr.user.top", b"1")]).with("./", b'5', top(0o1751, 33));
    f.layer("base", None, tar.file("a", "")).await;
    f.layer("top", Some("base"), Tar::default().file("b", "")).await;
    f.layer("changed", Some("top"), Tar::default().with("./", b'5', top(0o700, 0)).file("c", ""))
        .await;
    for (key, mode, uid) in [("base", 0o1751, 33), ("top", 0o1751, 33), ("changed", 0o700, 0)] {
        let mount = f.open(key).await;
        let meta = path_of(&mount).metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (mode, uid), "{key}");
        let child = f.writable(&format!("on {key}"), Some(key)).await;
        let meta = path_of(&child).metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (mode, uid), "on {key}");
    }
    let mount = f.writable("key", Some("base")).await;
    fs::set_permissions(path_of(&mount), fs::Permissions::from_mode(0o711)).unwrap();
    let times = Timespec { tv_sec: 5, tv_nsec: 6 };
    let times = Timestamps { last_access: times, last_modification: times };
    rustix::fs::utimensat(rustix::fs::CWD, path_of(&mount), &times, rustix::fs::AtFlags::empty())
        .unwrap();
    drop(mount);
    f.driver.commit(&cx(), "key", "committed").await.unwrap();
    let mount = f.open("committed").await;
    let meta = path_of(&mount).metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o711, 5, 6));
}
