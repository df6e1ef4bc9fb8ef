//! Loading, listing, saving, importing.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_with_a_manifest_becomes_an_image_that_survives_a_restart() {
    let world = World::new().await;
    let (base, top) = (layer("base"), layer("top"));
    let config = config(&[&base, &top], "yes");
    let archive = docker_archive(&config, &[&base, &top], &["busybox:latest", "x.io/a:1"]);
    let lines = world.load(&archive, "").await.unwrap();
    assert_eq!(messages(&lines), ["Loaded image: busybox:latest\n", "Loaded image: x.io/a:1\n"]);
    let world = world.restart().await;

    let id = digest(&config);
    let images = world.list("shared-size=1").await.unwrap();
    assert_eq!(images[0]["Id"], json!(id));
    assert_eq!(images[0]["RepoTags"], json!(["busybox:latest", "x.io/a:1"]));
    // Unpacked, as the fake says, and the blobs.
    let size = 2000 + config.len() + base.len() + top.len();
    assert_eq!((&images[0]["Size"], &images[0]["SharedSize"]), (&json!(size), &json!(0)));
    assert_eq!(images[0]["Created"], json!(1_700_000_000));
    let index = world.store.index();
    for name in ["busybox", "docker.io/library/busybox:latest", &id, &id[7..], &id[7..12]] {
        assert_eq!(index.resolve(name, None).unwrap().id.as_str(), id, "{name}");
    }
    let missing = index.resolve("busybox:2", None).unwrap_err();
    assert_eq!(missing.to_string(), "No such image: busybox:2");

    let request = world.request("", &[("name", "busybox")], Vec::new());
    let response = crate::handlers::inspect(world.store.clone(), request).await.unwrap();
    let image: Value = serde_json::from_slice(&collect(response).await).unwrap();
    assert_eq!(image["RootFS"]["Layers"], json!([digest(&base), digest(&top)]));
    assert_eq!(image["GraphDriver"]["Name"], json!("fake"));
    assert_eq!(image["Config"]["Cmd"], json!(["sh"]));
    let request = world.request("", &[("name", "busybox")], Vec::new());
    let response = crate::handlers::history(world.store.clone(), request).await.unwrap();
    let history: Value = serde_json::from_slice(&collect(response).await).unwrap();
    assert_eq!(history[0]["Id"], json!(id));
    assert_eq!((&history[1]["Id"], &history[1]["Size"]), (&json!("<missing>"), &json!(1000)));
}

/// A stream that breaks off makes nothing; a name that is taken over is reported.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_may_bring_an_archive_as_a_stream() {
    use gantry_sdk::kinds::images::{ImageStore, Loaded};
    let world = World::new().await;
    let (base, top) = (layer("base"), layer("top"));
    let (first, second) = (config(&[&base], "1"), config(&[&base, &top], "2"));
    let load = async |archive: Vec<u8>| {
        let source = Box::new(std::io::Cursor::new(archive));
        world.store.load(&Ctx::background(), source, None).await
    };
    let whole = docker_archive(&first, &[&base], &["a:1"]);
    assert!(load(whole[..1000].to_vec()).await.is_err());
    assert_eq!(world.store.index().images().count(), 0);
    let id: Digest = digest(&first).parse().unwrap();
    let tags = vec!["a:1".to_owned()];
    let expected = Loaded { id: id.clone(), tags: tags.clone(), renamed: Vec::new() };
    assert_eq!(load(whole).await.unwrap(), [expected]);
    let loaded = load(docker_archive(&second, &[&base, &top], &["a:1"])).await.unwrap();
    assert_eq!((loaded[0].id.as_str(), &loaded[0].tags), (digest(&second).as_str(), &tags));
    assert_eq!(loaded[0].renamed, [("a:1".to_owned(), id)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_of_layers_and_archives_is_read() {
    let plain = layer("plain");
    let config = config(&[&plain], "x");
    let compressed = [plain.clone(), gzip(&plain), zstd::bulk::compress(&plain, 1).unwrap()];
    for layer in &compressed {
        let archive = docker_archive(&config, &[layer], &["a:1"]);
        for whole in [archive.clone(), gzip(&archive), zstd::bulk::compress(&archive, 1).unwrap()] {
            let world = World::new().await;
            let lines = world.load(&whole, "quiet=0").await.unwrap();
            assert_eq!(messages(&lines), ["Loaded image: a:1\n"]);
            assert_eq!(lines[0]["status"], json!("Loading layer"));
            assert_eq!(lines[0]["id"], json!(&digest(&plain)[7..19]));
            assert_eq!(world.blobs(), 2, "configuration and layer");
        }
    }
}

/// An OCI layout; `lie` changes the layer after its digest was taken.
fn oci_archive(name: Option<(&str, &str)>, lie: bool) -> (Vec<u8>, String) {
    let plain = layer("oci");
    let packed = gzip(&plain);
    let config = config(&[&plain], "oci");
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", &digest(bytes)[7..]);
    let manifest = json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": digest(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": digest(&packed), "size": packed.len()}],
    })
    .to_string();
    let mut descriptor = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(manifest.as_bytes()), "size": manifest.len(),
    });
    if let Some((key, name)) = name {
        descriptor["annotations"] = json!({ key: name });
    }
    let index = json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string();
    let content = if lie { gzip(&layer("other")) } else { packed.clone() };
    let archive = tar(&[
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", index.as_bytes()),
        (&blob(manifest.as_bytes()), manifest.as_bytes()),
        (&blob(&config), &config),
        (&blob(&packed), &content),
    ]);
    (archive, digest(manifest.as_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_is_named_by_its_annotations() {
    let cases = [
        (Some(("io.containerd.image.name", "docker.io/library/a:1")), vec!["a:1"]),
        (Some(("org.opencontainers.image.ref.name", "q.io/b:2")), vec!["q.io/b:2"]),
        (Some(("org.opencontainers.image.ref.name", "latest")), vec![]),
        (None, vec![]),
    ];
    for (annotation, tags) in cases {
        let world = World::new().await;
        let (archive, manifest) = oci_archive(annotation, false);
        let lines = world.load(&archive, "").await.unwrap();
        let images = world.list("").await.unwrap();
        assert_eq!(images[0]["RepoTags"], json!(tags));
        if let Some(tag) = tags.first() {
            let name = tag.split(':').next().unwrap();
            assert_eq!(images[0]["RepoDigests"], json!([format!("{name}@{manifest}")]));
        } else {
            assert!(messages(&lines)[0].starts_with("Loaded image ID: sha256:"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_archives_get_a_configuration() {
    let (base, top) = (layer("base"), layer("top"));
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    let parent = json!({"id": a, "os": "linux", "container_config": {"Cmd": ["base"]}}).to_string();
    let child = json!({"id": b, "parent": a, "os": "linux", "architecture": "amd64",
                       "config": {"Cmd": ["x"]}})
    .to_string();
    let repositories = json!({"old": {"1": b}}).to_string();
    let archive = tar(&[
        (&format!("{a}/json"), parent.as_bytes()),
        (&format!("{a}/layer.tar"), b"->../shared/base.tar"),
        ("shared/base.tar", &base),
        (&format!("{b}/json"), child.as_bytes()),
        (&format!("{b}/layer.tar"), &top),
        ("repositories", repositories.as_bytes()),
    ]);
    let world = World::new().await;
    let lines = world.load(&archive, "").await.unwrap();
    assert_eq!(messages(&lines), ["Loaded image: old:1\n"]);
    let index = world.store.index();
    let entry = index.resolve("old:1", None).unwrap();
    let diff_ids: Vec<String> = entry.record.layers.iter().map(|l| l.diff_id.to_string()).collect();
    assert_eq!(diff_ids, [digest(&base), digest(&top)]);
    assert_eq!(entry.file.config.cmd, ["x"]);
    assert_eq!(entry.file.history[0].created_by, "base");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_are_refused_and_leave_nothing() {
    let good = layer("good");
    let fine = config(&[&good], "x");
    let whole = docker_archive(&fine, &[&good], &["a:1"]);
    let other = layer("other");
    let outside = json!([{"Config": "../../../../etc/passwd", "RepoTags": ["a:1"], "Layers": []}])
        .to_string();
    let a = "a".repeat(64);
    let cycle = json!({"parent": a}).to_string();
    let deep = "[".repeat(100_000);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "does not contain a manifest.json"),
        ("no archive", vec![7; 5000], "invalid archive"),
        ("cut", whole[..1500].to_vec(), "invalid archive"),
        ("cut gzip", gzip(&whole)[..300].to_vec(), "invalid archive"),
        ("null", tar(&[("manifest.json", b"null")]), "manifest cannot be null"),
        ("deep", tar(&[("manifest.json", deep.as_bytes())]), "failed to decode"),
        ("outside", tar(&[("manifest.json", outside.as_bytes())]), "there is no file"),
        ("links", tar(&[("manifest.json", b"->b"), ("b", b"->manifest.json")]), "does not contain"),
        (
            "parents",
            tar(&[
                ("repositories", json!({"x": {"1": a}}).to_string().as_bytes()),
                (&format!("{a}/json"), cycle.as_bytes()),
            ]),
            "invalid archive: layer",
        ),
        ("wrong layer", docker_archive(&fine, &[&other], &["a:1"]), "invalid diffID for layer 0"),
        ("no layer", docker_archive(&fine, &[], &["a:1"]), "layers length mismatch"),
        ("link to nowhere", docker_archive(&fine, &[b"->/x"], &["a:1"]), "there is no layer"),
        ("bad tag", docker_archive(&fine, &[&good], &["A:1"]), "must be lowercase"),
        ("ambiguous", docker_archive(&fine, &[&good], &["sha256:1"]), "refusing to create"),
        ("digest", oci_archive(None, true).0, "has digest"),
    ];
    for (what, archive, message) in cases {
        let world = World::new().await;
        let text = match world.load(&archive, "").await {
            Err(error) => error.chain(),
            Ok(lines) => {
                let last = lines.last().unwrap();
                assert_eq!(last["errorDetail"]["message"], last["error"], "{what}");
                last["error"].as_str().unwrap_or_default().to_owned()
            }
        };
        assert!(text.contains(message), "{what}: {text}");
        assert_eq!(world.list("").await.unwrap(), json!([]), "{what}");
        assert_eq!(world.blobs(), 0, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_members_of_one_name_the_last_counts() {
    let good = layer("good");
    let fine = config(&[&good], "x");
    let manifest = json!([{"Config": "c", "RepoTags": ["a:1"], "Layers": ["l"]}]).to_string();
    let archive = tar(&[
        ("manifest.json", b"null"),
        ("l", b"nonsense"),
        ("c", &fine),
        ("./l", &good),
        ("/manifest.json", manifest.as_bytes()),
    ]);
    let world = World::new().await;
    assert_eq!(messages(&world.load(&archive, "").await.unwrap()), ["Loaded image: a:1\n"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_layers_go_straight_to_the_store() {
    let large = tar(&[("large", &vec![7; 3 << 20])]);
    let config = config(&[&large], "x");
    let world = World::new().await;
    for layer in [large.clone(), gzip(&large)] {
        world.load(&docker_archive(&config, &[&layer], &["a:1"]), "").await.unwrap();
        assert_eq!(world.blobs(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_saved_can_be_loaded_again_with_the_same_digests() {
    let world = World::new().await;
    let (base, one, two) = (layer("base"), layer("one"), layer("two"));
    for (top, tag) in [(&one, "one:1"), (&two, "two:1")] {
        let config = config(&[&base, top], tag);
        world.load(&docker_archive(&config, &[&base, top], &[tag]), "").await.unwrap();
    }
    let name = Some(("io.containerd.image.name", "docker.io/library/oci:1"));
    let (archive, manifest) = oci_archive(name, false);
    world.load(&archive, "").await.unwrap();

    let saved = world.save("names=one&names=two:1&names=oci").await.unwrap();
    let members = read_members(&saved);
    assert!(members.contains_key(&format!("blobs/sha256/{}", &manifest[7..])));
    let index: Value = serde_json::from_slice(&members["index.json"]).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 3);
    let before = world.list("").await.unwrap();

    let other = World::new().await;
    other.load(&saved, "").await.unwrap();
    let names = |images: &Value| {
        let images = images.as_array().unwrap().iter();
        images.map(|i| (i["Id"].clone(), i["RepoTags"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(names(&other.list("").await.unwrap()), names(&before));

    // Without manifest.json it is an OCI layout.
    let layout: Vec<(&str, &[u8])> = members
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "manifest.json" | "repositories"))
        .filter(|(name, _)| !name.ends_with('/'))
        .map(|(name, content)| (name.as_str(), content.as_slice()))
        .collect();
    let third = World::new().await;
    third.load(&tar(&layout), "").await.unwrap();
    assert_eq!(names(&third.list("").await.unwrap()), names(&before));

    let missing = world.save("names=none:1").await.unwrap_err();
    assert_eq!(missing.to_string(), "reference does not exist");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_tree_is_an_image_of_one_layer() {
    let world = World::new().await;
    let query = "fromSrc=-&repo=me/x&tag=2&message=hi&changes=CMD%20run&changes=ENV%20A%3D1";
    let request = world.request(query, &[], gzip(&layer("tree")));
    let response = crate::handlers::create(world.store.clone(), request).await.unwrap();
    let line: Value = serde_json::from_slice(&collect(response).await).unwrap();
    let index = world.store.index();
    let entry = index.resolve("me/x:2", None).unwrap();
    assert_eq!(line["status"], json!(entry.id));
    assert_eq!(entry.file.config.cmd, ["/bin/sh", "-c", "run"]);
    assert_eq!(entry.file.config.env, ["A=1"]);
    assert_eq!(entry.file.comment(), "hi");
    assert_eq!(entry.record.layers[0].diff_id.as_str(), digest(&layer("tree")));
    assert_eq!(world.actions(), ["tag", "import"]);

    for (query, message) in [
        ("fromSrc=-&changes=RUN%20x", "RUN is not a valid change command"),
        ("fromSrc=http://x/y", "importing from an address is not supported"),
    ] {
        let request = world.request(query, &[], layer("tree"));
        let error = crate::handlers::create(world.store.clone(), request).await.unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

/// Copies between archives with another implementation; None if it is not installed.
fn skopeo(from: &str, to: &str) -> Option<bool> {
    let mut copy = std::process::Command::new("skopeo");
    let copy = copy.args(["--insecure-policy", "copy", "-q", from, to]);
    match copy.output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{from} to {to}: {text}");
            Some(true)
        }
        Err(_) => {
            eprintln!("SKIPPED: skopeo is not installed");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_implementation_reads_what_is_saved_and_the_other_way_round() {
    let world = World::new().await;
    let (base, top) = (layer("base"), layer("top"));
    let config = config(&[&base, &top], "x");
    world.load(&docker_archive(&config, &[&gzip(&base), &top], &["a:1"]), "").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("saved"), world.save("names=a:1").await.unwrap()).unwrap();
    for (from, to, file) in [
        ("docker-archive", "docker-archive", "d"),
        ("oci-archive", "oci-archive", "o"),
        ("docker-archive", "oci-archive", "c"),
    ] {
        let to = format!("{to}:{}:docker.io/library/a:1", at(file));
        if skopeo(&format!("{from}:{}", at("saved")), &to).is_none() {
            return;
        }
        let other = World::new().await;
        let lines = other.load(&std::fs::read(at(file)).unwrap(), "").await.unwrap();
        assert_eq!(messages(&lines), ["Loaded image: a:1\n"], "{file}");
        let index = other.store.index();
        let diff_ids = &index.resolve("a:1", None).unwrap().file.rootfs.diff_ids;
        assert_eq!(*diff_ids, [digest(&base), digest(&top)], "{file}");
    }
}
