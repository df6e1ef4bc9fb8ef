//! Against Debian's `docker-registry`, with TLS and passwords.

use std::process::{Child, Command, Stdio};

use super::*;

struct Registry {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry that only ali may use; none where its programs are missing.
async fn start() -> Option<Registry> {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path())?;
    let users = dir.path().join("users");
    let made = Command::new("htpasswd").args(["-Bbn", "ali", &ali().password]).output();
    let Ok(made) = made else {
        eprintln!("SKIPPED: needs htpasswd (apache2-utils)");
        return None;
    };
    std::fs::write(&users, made.stdout).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\n\
         http:\n  addr: 127.0.0.1:{port}\n  tls:\n    certificate: {}\n    key: {}\n\
         auth:\n  htpasswd:\n    realm: r\n    path: {}\n",
        path("data"),
        path("server.crt"),
        path("server.key"),
        users.display(),
    );
    std::fs::write(dir.path().join("config.yml"), config).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(dir.path().join("config.yml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = child else {
        eprintln!("SKIPPED: needs docker-registry");
        return None;
    };
    let registry = Registry { child, port, dir };
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return Some(registry);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("docker-registry does not listen");
}

#[tokio::test]
async fn push_pull_and_mount_at_a_real_registry() {
    let Some(registry) = start().await else { return };
    let host = format!("127.0.0.1:{}", registry.port);
    let rule = json!({"insecure": false, "ca": registry.dir.path().join("server.crt")});
    let rules = json!({"registries": {host.clone(): rule}});
    let shared = Setup { rules, ..Setup::default() }.shared();
    let open = async |path: &str, access, who: &Credentials| {
        let name = Reference::parse(&format!("{host}/{path}")).unwrap();
        crate::open(&shared, &name, access, who).await.unwrap()
    };
    let bytes = content(5 << 20);
    let digest = digest_of(&bytes);
    let size = bytes.len() as u64;
    let file = registry.dir.path().join("blob");
    std::fs::write(&file, &bytes).unwrap();
    let read = || std::fs::File::open(&file).map_err(|e| Error::io("open", file.display(), e));

    let one = open("team/one", Access::Push, &ali()).await;
    assert!(!one.has_blob(&cx(), &digest).await.unwrap());
    one.push_blob(&cx(), &digest, size, &read, silent()).await.unwrap();
    assert!(one.has_blob(&cx(), &digest).await.unwrap());
    let empty = digest_of(b"");
    let nothing = || std::fs::File::open("/dev/null").map_err(|e| Error::io("open", "null", e));
    one.push_blob(&cx(), &empty, 0, &nothing, silent()).await.unwrap();

    let two = open("team/two", Access::Push, &ali()).await;
    assert!(two.mount_blob(&cx(), &digest, "team/one").await.unwrap());
    assert!(!two.mount_blob(&cx(), &digest_of(b"none"), "team/one").await.unwrap());
    assert!(two.has_blob(&cx(), &digest).await.unwrap());
    two.mount_blob(&cx(), &empty, "team/one").await.unwrap();

    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": empty, "size": 0},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size}],
    })
    .to_string();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    for tag in ["v1", "v2"] {
        let put = two.put_manifest(&cx(), tag, kind, manifest.as_bytes()).await.unwrap();
        assert_eq!(put, digest_of(manifest.as_bytes()));
    }

    let pull = open("team/two", Access::Pull, &ali()).await;
    assert_eq!(pull.tags(&cx()).await.unwrap(), ["v1", "v2"]);
    let found = pull.manifest(&cx(), "v1").await.unwrap();
    assert_eq!((found.bytes.as_slice(), found.media_type.as_str()), (manifest.as_bytes(), kind));
    let probed = pull.probe_manifest(&cx(), "v2").await.unwrap().unwrap();
    assert_eq!(probed.digest, found.digest.to_string());
    assert!(pull.probe_manifest(&cx(), "v3").await.unwrap().is_none());
    assert_eq!(pull.referrers(&cx(), &found.digest, None).await.unwrap(), []);
    let memory = Memory::with(&bytes[..1_000_000]);
    pull.fetch_blob(&cx(), &digest, size, &[], memory.writer(), silent()).await.unwrap();
    assert!(memory.get() == bytes);

    let stranger = open("team/two", Access::Pull, &Credentials::default()).await;
    let error = stranger.manifest(&cx(), "v1").await.unwrap_err();
    assert_eq!(error.kind(), gantry_sdk::ErrorKind::Unauthorized, "{}", error.chain());
}
