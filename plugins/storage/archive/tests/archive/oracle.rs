//! The same layers by another unpacker of OCI images.

use std::path::Path;
use std::process::Command;

use gantry_archive::Whiteouts;
use gantry_testkit::archive::Tar;
use gantry_testkit::tree::{assert_same, snapshot};

use crate::common::{Place, is_root};

/// Stores `data` in an image layout; returns digest and size.
fn blob(layout: &Path, data: &[u8]) -> (String, usize) {
    let mut hasher = gantry_archive::Hasher::default();
    hasher.update(data);
    let (digest, _) = hasher.finish();
    let dir = layout.join("blobs/sha256");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(digest.trim_start_matches("sha256:")), data).unwrap();
    (digest, data.len())
}

/// Writes an OCI image layout with one image, `latest`. Source: OCI image specification.
fn write_layout(layout: &Path, layers: &[Vec<u8>]) {
    let stored: Vec<_> = layers.iter().map(|layer| blob(layout, layer)).collect();
    let quoted: Vec<_> = stored.iter().map(|(digest, _)| format!("{digest:?}")).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        quoted.join(",")
    );
    let describe = |media: &str, (digest, size): &(String, usize)| {
        let media = format!("application/vnd.oci.image.{media}");
        format!(r#"{{"mediaType":"{media}","digest":"{digest}","size":{size}"#)
    };
    let layers: Vec<_> = stored.iter().map(|l| describe("layer.v1.tar", l) + "}").collect();
    let config = describe("config.v1+json", &blob(layout, config.as_bytes())) + "}";
    let manifest =
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","));
    let manifest = describe("manifest.v1+json", &blob(layout, manifest.as_bytes()));
    let name = r#""annotations":{"org.opencontainers.image.ref.name":"latest"}"#;
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{manifest},{name}}}]}}"#);
    std::fs::write(layout.join("index.json"), index).unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn root_umoci_unpacks_layers_to_the_same_tree() {
    if !is_root() {
        return;
    }
    if Command::new("umoci").arg("--version").output().is_err() {
        eprintln!("skipped: umoci is not installed");
        return;
    }
    let odd = |h: &mut gantry_testkit::archive::Header| {
        h.set_mode(0o2755);
        h.set_uid(1000);
    };
    let layers = [
        Tar::default()
            .dir("./")
            .dir("usr")
            .dir("usr/lib")
            .file("usr/lib/a", "a")
            .file("usr/lib/b", "b")
            .symlink("lib", "usr/lib")
            .dir("opt")
            .file("opt/1", "1")
            .dir("opt/sub")
            .file("opt/sub/2", "2")
            .with("odd", b'5', odd),
        Tar::default()
            .dir("usr")
            .dir("usr/lib")
            .file("usr/lib/.wh.a", "")
            .hardlink("hard", "usr/lib/b"),
        Tar::default().dir("opt").file("opt/.wh..wh..opq", "").file("opt/new", "new"),
        Tar::default()
            .file(".wh.odd", "")
            .dir("x")
            .file("x/y", "y")
            .symlink("usr/lib/up", "../../x"),
        Tar::default().symlink("x", "opt").dir("./"),
    ]
    .map(Tar::end);
    let place = Place::new();
    let layout = place.dir.path().join("layout");
    std::fs::create_dir(&layout).unwrap();
    write_layout(&layout, &layers);
    let bundle = place.dir.path().join("bundle");
    let image = format!("{}:latest", layout.display());
    let output = Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for layer in &layers {
        place.extract(layer, Whiteouts::Remove).unwrap();
    }
    let theirs = snapshot(&bundle.join("rootfs")).unwrap();
    assert_same(&theirs, &snapshot(&place.root()).unwrap(), "umoci and ours");
}
