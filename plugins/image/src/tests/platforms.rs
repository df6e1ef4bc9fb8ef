//! Images for several platforms.

use super::*;
use crate::platform::Platform;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", &digest(bytes)[7..])
}

/// The parts of a layout.
#[derive(Default)]
struct Layout {
    files: BTreeMap<String, Vec<u8>>,
    manifests: Vec<Value>,
}

impl Layout {
    fn add(&mut self, bytes: &[u8]) -> String {
        self.files.insert(blob(bytes), bytes.to_vec());
        digest(bytes)
    }

    /// An image; `content`: whether the archive has its layer.
    fn image(&mut self, architecture: &str, content: bool) -> (String, String) {
        let layer = gzip(&layer(architecture));
        let mut config: Value =
            serde_json::from_slice(&config(&[&super::layer(architecture)], architecture)).unwrap();
        config["architecture"] = json!(architecture);
        let config = config.to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": digest(config.as_bytes()), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                        "digest": digest(&layer), "size": layer.len()}],
        })
        .to_string();
        if content {
            self.add(&layer);
        }
        let id = self.add(config.as_bytes());
        let manifest_digest = self.add(manifest.as_bytes());
        self.manifests.push(json!({
            "mediaType": OCI_MANIFEST, "digest": manifest_digest, "size": manifest.len(),
            "platform": {"os": "linux", "architecture": architecture},
        }));
        (id, manifest_digest)
    }

    /// A statement about a manifest.
    fn statement(&mut self, about: &str) {
        let statement = json!({"_type": "https://in-toto.io/Statement/v0.1"}).to_string();
        let layer = self.add(statement.as_bytes());
        let config = self.add(b"{}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": config, "size": 2},
            "layers": [{"mediaType": "application/vnd.in-toto+json", "digest": layer,
                        "size": statement.len(),
                        "annotations": {"in-toto.io/predicate-type": "https://slsa.dev/x"}}],
        })
        .to_string();
        let digest = self.add(manifest.as_bytes());
        self.manifests.push(json!({
            "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len(),
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {"vnd.docker.reference.type": "attestation-manifest",
                            "vnd.docker.reference.digest": about},
        }));
    }

    /// The archive, and the digest of its index.
    fn finish(mut self, name: &str) -> (Vec<u8>, String) {
        let manifests = std::mem::take(&mut self.manifests);
        let index =
            json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string();
        let target = self.add(index.as_bytes());
        let top = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": OCI_INDEX, "digest": target, "size": index.len(),
            "annotations": {"io.containerd.image.name": name},
        }]});
        self.files.insert("index.json".into(), top.to_string().into_bytes());
        let files: Vec<(&str, &[u8])> =
            self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        (tar(&files), target)
    }
}

fn host() -> String {
    Platform::host().architecture().to_owned()
}

/// An image for the host, s390x and riscv64, the last without its layer, with a statement about the
/// first; the ids of the first two and the digest of the index.
async fn load_multi(world: &World) -> (String, String, String) {
    let mut layout = Layout::default();
    let (other, _) = layout.image("s390x", true);
    let (own, own_manifest) = layout.image(&host(), true);
    layout.image("riscv64", false);
    layout.statement(&own_manifest);
    let (archive, target) = layout.finish("docker.io/library/multi:1");
    let lines = world.load(&archive, "").await.unwrap();
    assert_eq!(messages(&lines), ["Loaded image: multi:1\n"]);
    (own, other, target)
}

fn platform_of(architecture: &str) -> String {
    json!({"os": "linux", "architecture": architecture}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_one_line_that_means_the_hosts_image() {
    let world = World::new().await;
    let (own, other, target) = load_multi(&world).await;
    let world = world.restart().await;
    let images = world.list("manifests=1").await.unwrap();
    assert_eq!(images.as_array().unwrap().len(), 1);
    let image = &images[0];
    assert_eq!((&image["Id"], &image["RepoTags"]), (&json!(own), &json!(["multi:1"])));
    assert_eq!(image["RepoDigests"], json!([format!("multi@{target}")]));
    assert_eq!(image["Descriptor"]["digest"], json!(target));
    assert_eq!(image["Descriptor"]["mediaType"], json!(OCI_INDEX));
    let of = |field: &str| {
        let manifests = image["Manifests"].as_array().unwrap().iter();
        manifests.map(|manifest| manifest[field].clone()).collect::<Vec<_>>()
    };
    assert_eq!(of("Kind"), ["image", "image", "image", "attestation"]);
    assert_eq!(of("Available"), [true, true, false, true]);
    let first = &image["Manifests"][0];
    assert_eq!(first["ImageData"]["Platform"]["architecture"], json!("s390x"));
    // What does not run here is unpacked when it is wanted.
    assert_eq!(first["ImageData"]["Size"]["Unpacked"], json!(0));
    assert_eq!(image["Manifests"][1]["ImageData"]["Size"]["Unpacked"], json!(1000));
    assert_eq!(of("ID")[1], image["Manifests"][3]["AttestationData"]["For"]);

    let index = world.store.index();
    let s390x = Platform::parse("linux/s390x").unwrap();
    let riscv = Platform::parse("linux/riscv64").unwrap();
    for (name, platform, id) in [
        ("multi:1", None, &own),
        (&target[..], None, &own),
        ("multi:1", Some(&s390x), &other),
        (&other[..], None, &other),
    ] {
        assert_eq!(index.resolve(name, platform).unwrap().id.as_str(), id, "{name}");
    }
    let error = index.resolve("multi:1", Some(&riscv)).unwrap_err().to_string();
    assert!(error.contains("does not match the specified platform"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn inspection_knows_platforms() {
    let world = World::new().await;
    let (own, other, target) = load_multi(&world).await;
    let inspect = async |query: String| -> Value {
        let request = world.request(&query, &[("name", "multi:1")], Vec::new());
        let response = crate::handlers::inspect(world.store.clone(), request).await.unwrap();
        serde_json::from_slice(&collect(response).await).unwrap()
    };
    let image = inspect("manifests=1".to_owned()).await;
    assert_eq!((&image["Id"], &image["Descriptor"]["digest"]), (&json!(own), &json!(target)));
    assert_eq!(image["Manifests"].as_array().unwrap().len(), 4);
    let image = inspect(format!("platform={}", platform_of("s390x"))).await;
    assert_eq!((&image["Id"], &image["Architecture"]), (&json!(other), &json!("s390x")));
    assert_eq!(image["Descriptor"]["platform"]["architecture"], json!("s390x"));

    let attestations = async |query: &str| -> Result<Value> {
        let request = world.request(query, &[("name", "multi:1")], Vec::new());
        let response = crate::handlers::attestations(world.store.clone(), request).await?;
        Ok(serde_json::from_slice(&collect(response).await).unwrap())
    };
    let found = attestations("").await.unwrap();
    assert_eq!(found[0]["PredicateType"], json!("https://slsa.dev/x"));
    assert_eq!((found[0].get("Statement"), found.get(1)), (None, None));
    let found = attestations("statement=1&type=https://slsa.dev/x").await.unwrap();
    assert_eq!(found[0]["Statement"]["_type"], json!("https://in-toto.io/Statement/v0.1"));
    assert_eq!(attestations("type=other").await.unwrap(), json!([]));
    let s390x = format!("platform={}", platform_of("s390x"));
    assert_eq!(attestations(&s390x).await.unwrap(), json!([]));
    let missing = attestations(&format!("platform={}", platform_of("mips"))).await;
    assert_eq!(missing.unwrap_err().kind(), gantry_sdk::ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_saved_as_it_was_and_one_platform_without_it() {
    let world = World::new().await;
    let (own, other, target) = load_multi(&world).await;
    let saved = world.save("names=multi:1").await.unwrap();
    let members = read_members(&saved);
    let index: Value = serde_json::from_slice(&members["index.json"]).unwrap();
    assert_eq!(index["manifests"][0]["digest"], json!(target));
    assert!(members.contains_key(&format!("blobs/sha256/{}", &target[7..])));
    let list: Value = serde_json::from_slice(&members["manifest.json"]).unwrap();
    assert_eq!(list[0]["Config"], json!(format!("blobs/sha256/{}", &own[7..])));
    let again = World::new().await;
    again.load(&saved, "").await.unwrap();
    let shown = async |world: &World| world.list("manifests=1").await.unwrap()[0].clone();
    let (before, after) = (shown(&world).await, shown(&again).await);
    for field in ["Id", "RepoDigests", "Descriptor", "Manifests"] {
        assert_eq!(after[field], before[field], "{field}");
    }

    let one = format!("names=multi:1&platform={}", platform_of("s390x"));
    let members = read_members(&world.save(&one).await.unwrap());
    let index: Value = serde_json::from_slice(&members["index.json"]).unwrap();
    assert_eq!(index["manifests"][0]["mediaType"], json!(OCI_MANIFEST));
    let list: Value = serde_json::from_slice(&members["manifest.json"]).unwrap();
    assert_eq!(list[0]["Config"], json!(format!("blobs/sha256/{}", &other[7..])));
    let none = format!("names=multi:1&platform={}", platform_of("riscv64"));
    let error = world.save(&none).await.unwrap_err().to_string();
    assert_eq!(error, "no suitable export target found for platform linux/riscv64");
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_takes_the_platforms_that_are_wanted_and_adds_to_what_is_here() {
    let world = World::new().await;
    let mut layout = Layout::default();
    let (other, _) = layout.image("s390x", true);
    let (own, _) = layout.image(&host(), true);
    let (archive, target) = layout.finish("docker.io/library/multi:1");
    let load = async |architecture: &str| {
        let query = format!("platform={}", platform_of(architecture));
        let lines = world.load(&archive, &query).await.unwrap();
        lines.last().unwrap().clone()
    };
    let failed = load("mips").await;
    assert_eq!(failed["error"], json!("requested platform(s) ([linux/mips]) not found"));
    assert_eq!(world.blobs(), 0);
    load("s390x").await;
    assert_eq!(world.list("").await.unwrap()[0]["Id"], json!(other));
    assert_eq!(load(&host()).await["stream"], json!("Loaded image: multi:1\n"));
    let images = world.list("manifests=1").await.unwrap();
    assert_eq!((&images[0]["Id"], images.get(1)), (&json!(own), None));
    assert_eq!(images[0]["Manifests"][0]["Available"], json!(true));
    assert_eq!(images[0]["RepoDigests"], json!([format!("multi@{target}")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn platforms_are_removed_one_by_one() {
    let world = World::new().await;
    let (_, other, _) = load_multi(&world).await;
    let one =
        |architecture: &str, more: &str| format!("platforms={}{more}", platform_of(architecture));
    let unforced = world.remove("multi:1", &one("s390x", "")).await.unwrap_err();
    assert_eq!(unforced.kind(), gantry_sdk::ErrorKind::InvalidArgument);
    world.use_image(&other, 'c', true);
    let used = world.remove("multi:1", &one("s390x", "&force=1")).await.unwrap_err().to_string();
    assert!(used.contains("is being used by running container"), "{used}");
    world.users.0.lock().unwrap().clear();
    let before = world.blobs();
    let done = world.remove("multi:1", &one("s390x", "&force=1")).await.unwrap();
    assert_eq!(done.len(), 1, "{done:?}");
    assert_eq!(world.blobs(), before - 3, "manifest, configuration, layer");
    let images = world.list("manifests=1").await.unwrap();
    assert_eq!(images[0]["Manifests"][0]["Available"], json!(false));
    let gone = world.remove("multi:1", &one("s390x", "&force=1")).await.unwrap_err();
    assert_eq!(gone.kind(), gantry_sdk::ErrorKind::NotFound);
    // With the last one the name goes too.
    let done = world.remove("multi:1", &one(&host(), "&force=1")).await.unwrap();
    assert!(done.contains(&"Untagged multi:1".to_owned()), "{done:?}");
    assert_eq!((world.list("").await.unwrap(), world.blobs()), (json!([]), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_with_all_its_platforms() {
    let world = World::new().await;
    let (_, other, _) = load_multi(&world).await;
    world.use_image(&other, 'c', false);
    let used = world.remove("multi:1", "").await.unwrap_err().to_string();
    assert!(used.contains("is using its referenced image"), "{used}");
    world.users.0.lock().unwrap().clear();
    world.remove("multi:1", "").await.unwrap();
    assert_eq!((world.list("").await.unwrap(), world.blobs()), (json!([]), 0));
    let world = world.restart().await;
    assert!(world.store.index().targets().next().is_none());

    // A second name of one of the images keeps that one only.
    let (own, ..) = load_multi(&world).await;
    let request = world.request("repo=single", &[("name", &own)], Vec::new());
    crate::handlers::tag(world.store.clone(), request).await.unwrap();
    world.remove("multi:1", "").await.unwrap();
    let images = world.list("manifests=1").await.unwrap();
    assert_eq!((&images[0]["RepoTags"], images.get(1)), (&json!(["single:latest"]), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_indexes_are_refused() {
    let nested = |depth: usize| {
        let mut layout = Layout::default();
        layout.image(&host(), true);
        for _ in 0..depth {
            let manifests = std::mem::take(&mut layout.manifests);
            let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})
                .to_string();
            let inner = layout.add(index.as_bytes());
            let entry = json!({"mediaType": OCI_INDEX, "digest": inner, "size": index.len()});
            // The same one a hundred times: read once.
            layout.manifests = vec![entry; 100];
        }
        layout.finish("a:1").0
    };
    let world = World::new().await;
    world.load(&nested(3), "").await.unwrap();
    assert_eq!(world.list("").await.unwrap()[0]["RepoTags"], json!(["a:1"]));
    let many = || {
        let mut layout = Layout::default();
        let entry = |n: usize| json!({"mediaType": OCI_MANIFEST, "digest": digest(&n.to_le_bytes()), "size": 8});
        layout.manifests = (0..1000).map(entry).collect();
        let index = json!({"schemaVersion": 2, "manifests": layout.manifests}).to_string();
        let inner = layout.add(index.as_bytes());
        layout.manifests = (1000..1100).map(entry).collect();
        layout
            .manifests
            .push(json!({"mediaType": OCI_INDEX, "digest": inner, "size": index.len()}));
        layout.finish("a:1").0
    };
    for (what, archive, message) in
        [("deep", nested(8), "nested too deeply"), ("many", many(), "more than 1024 manifests")]
    {
        let world = World::new().await;
        let error = world.load(&archive, "").await.unwrap_err().chain();
        assert!(error.contains(message), "{what}: {error}");
        assert_eq!(world.blobs(), 0, "{what}");
    }
}
