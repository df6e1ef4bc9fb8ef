//! Mirrors, blocks, proxies, redirects: who is asked, and who learns what.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use gantry_sdk::ErrorKind;

use super::*;

/// A registry that has `bytes` as every blob, or nothing; it wants to know who asks if `asks`.
async fn registry(bytes: Option<&'static [u8]>, asks: bool) -> Server {
    Server::acting(None, move |_, request| {
        if asks && !request.contains("authorization: basic") {
            return vec![challenge("Basic realm=x").into()];
        }
        vec![match bytes {
            _ if request.starts_with("get /v2/ ") || request.starts_with("get /cache/v2/ ") => {
                Act::from(reply("200 OK", "", "{}"))
            }
            Some(bytes) => Act::Send(ranged(request, bytes)),
            None => reply("404 Not Found", "", "").into(),
        }]
    })
    .await
}

fn mirrored(origin: &str, mirrors: &[String]) -> Value {
    json!({"registries": {origin: {"mirrors": mirrors}}})
}

async fn fetch(shared: &Arc<Shared>, host: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let session = session(shared, host, Access::Pull, &ali()).await?;
    let (memory, size) = (Memory::default(), bytes.len() as u64);
    let digest = digest_of(bytes);
    session.fetch_blob(&cx(), &digest, size, &[], memory.writer(), silent()).await?;
    assert_eq!(session.small_blob(&cx(), &digest, size).await?, bytes);
    Ok(memory.get())
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_last() {
    const BYTES: &[u8] = b"mirrored";
    let empty = registry(None, false).await;
    let full = registry(Some(BYTES), false).await;
    let origin = registry(Some(BYTES), true).await;
    let mirrors = [
        "http://127.0.0.1:1".to_owned(), // nobody there
        format!("http://{}", empty.host()),
        format!("http://{}/cache", full.host()),
    ];
    let rules = mirrored(&origin.host(), &mirrors);
    let shared = Setup { rules, ..Setup::default() }.shared();
    assert_eq!(fetch(&shared, &origin.host(), BYTES).await.unwrap(), BYTES);
    assert!(origin.seen().is_empty());
    assert!(empty.asked()[1].starts_with("get /v2/team/app/blobs/"));
    assert!(full.asked()[1].starts_with("get /cache/v2/team/app/blobs/"));
    for server in [&empty, &full] {
        assert!(!server.seen().join("").contains("authorization"), "{:?}", server.seen());
    }

    let shared =
        Setup { rules: mirrored(&origin.host(), &mirrors[..2]), ..Setup::default() }.shared();
    assert_eq!(fetch(&shared, &origin.host(), BYTES).await.unwrap(), BYTES);
    assert!(origin.seen().last().unwrap().contains("authorization: basic"));
}

#[tokio::test]
async fn a_mirror_that_wants_a_password_gets_none() {
    const BYTES: &[u8] = b"x";
    let mirror = registry(Some(BYTES), true).await;
    let origin = registry(Some(BYTES), true).await;
    let rules = mirrored(&origin.host(), &[format!("http://{}", mirror.host())]);
    let shared = Setup { rules, ..Setup::default() }.shared();
    assert_eq!(fetch(&shared, &origin.host(), BYTES).await.unwrap(), BYTES);
    assert!(!mirror.seen().join("").contains("authorization"));
}

#[tokio::test]
async fn what_the_registry_says_counts() {
    let mirror = registry(None, false).await;
    let origin = Server::start(None, |_, _| reply("403 Forbidden", "", "")).await;
    let rules = mirrored(&origin.host(), &[format!("http://{}", mirror.host())]);
    let shared = Setup { rules, ..Setup::default() }.shared();
    let error = fetch(&shared, &origin.host(), b"x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden);
}

#[tokio::test]
async fn a_mirror_with_half_a_blob_gives_that_half() {
    let bytes: &'static [u8] = content(100_000).leak();
    let mirror = Server::acting(None, move |_, request| {
        if request.starts_with("get /v2/ ") {
            return vec![reply("200 OK", "", "").into()];
        }
        vec![Act::Send(ranged(request, bytes)[..60_000].to_vec()), Act::Close]
    })
    .await;
    let origin = registry(Some(bytes), false).await;
    let rules = mirrored(&origin.host(), &[format!("http://{}", mirror.host())]);
    let shared = Setup { rules, ..Setup::default() }.shared();
    let session = session(&shared, &origin.host(), Access::Pull, &ali()).await.unwrap();
    let memory = Memory::default();
    let (digest, size) = (digest_of(bytes), bytes.len() as u64);
    session.fetch_blob(&cx(), &digest, size, &[], memory.writer(), silent()).await.unwrap();
    assert!(memory.get() == bytes);
    assert!(origin.seen().last().unwrap().contains("range: bytes=59"), "{:?}", origin.seen());
}

#[tokio::test]
async fn the_default_registry_has_the_mirrors_of_the_reference() {
    const BYTES: &[u8] = b"hub";
    let mirror = registry(Some(BYTES), false).await;
    let config = json!({"registry-mirrors": [format!("http://{}", mirror.host())]});
    let shared = Setup { config, ..Setup::default() }.shared();
    assert_eq!(fetch(&shared, "docker.io", BYTES).await.unwrap(), BYTES);
    assert!(mirror.asked()[1].starts_with("get /v2/team/app/blobs/"));
}

#[tokio::test]
async fn blocked_registries_are_not_asked() {
    let server = registry(Some(b"x"), false).await;
    let rules = json!({"registries": {"*": {"blocked": true}, "open.example": {"blocked": false}}});
    let shared = Setup { rules, ..Setup::default() }.shared();
    for access in [Access::Pull, Access::Push] {
        let error = session(&shared, &server.host(), access, &ali()).await.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Forbidden);
        let expected = format!(
            "registry {}/team/app is blocked by the rule \"*\" of the daemon's configuration",
            server.host()
        );
        assert_eq!(error.chain(), expected);
    }
    assert!(session(&shared, "open.example", Access::Pull, &ali()).await.is_ok());
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn blobs_behind_redirects_come_without_credentials() {
    const BYTES: &[u8] = b"elsewhere";
    let store = Server::acting(None, |_, request| vec![Act::Send(ranged(request, BYTES))]).await;
    let port = store.port;
    let server = Server::acting(None, move |_, request| {
        if !request.contains("authorization: basic") {
            return vec![challenge("Basic realm=x").into()];
        }
        let to = format!("Location: http://127.0.0.1:{port}/blob?signature=y\r\n");
        vec![
            if request.starts_with("get /v2/ ") {
                reply("200 OK", "", "")
            } else {
                reply("307 Temporary Redirect", &to, "")
            }
            .into(),
        ]
    })
    .await;
    let shared = Setup::default().shared();
    assert_eq!(fetch(&shared, &server.host(), BYTES).await.unwrap(), BYTES);
    assert_eq!(store.asked()[0], "get /blob?signature=y");
    assert!(!store.seen().join("").contains("authorization"));
}

#[tokio::test]
async fn a_registry_with_tls_cannot_redirect_to_one_without() {
    let dir = tempfile::tempdir().unwrap();
    if certificates(dir.path()).is_none() {
        return;
    }
    let store = registry(Some(b"x"), false).await;
    let port = store.port;
    let server = Server::acting(Some(acceptor(dir.path(), false)), move |_, request| {
        let to = format!("Location: http://127.0.0.1:{port}/\r\n");
        vec![
            if request.starts_with("get /v2/ ") {
                reply("200 OK", "", "")
            } else {
                reply("302 Found", &to, "")
            }
            .into(),
        ]
    })
    .await;
    let shared = Setup::default().shared();
    let error = fetch(&shared, &server.host(), b"x").await.unwrap_err().chain();
    assert!(error.contains("redirects to a server that does not"), "{error}");
    assert!(store.seen().is_empty());
}

#[tokio::test]
async fn trust_is_a_matter_of_rules_and_directories() {
    let dir = tempfile::tempdir().unwrap();
    if certificates(dir.path()).is_none() {
        return;
    }
    const BYTES: &[u8] = b"trusted";
    let server = Server::acting(Some(acceptor(dir.path(), false)), |_, request| {
        vec![Act::Send(ranged(request, BYTES))]
    })
    .await;
    let host = server.host();
    let mine = dir.path().join("certs.d").join(&host);
    std::fs::create_dir_all(&mine).unwrap();
    std::fs::copy(dir.path().join("server.crt"), mine.join("ca.crt")).unwrap();
    let ca = dir.path().join("server.crt");
    let secure = |more: Value| {
        let mut rule = json!({"insecure": false});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"registries": {host.clone(): rule}})
    };
    let none = std::path::PathBuf::from("/nonexistent");
    for (rules, certificates, expected) in [
        (secure(json!({})), none.clone(), false),
        (secure(json!({})), dir.path().join("certs.d"), true),
        (secure(json!({"ca": ca})), none.clone(), true),
        (Value::Null, none, true), // this machine
    ] {
        let shown = format!("{rules} {}", certificates.display());
        let shared = Setup { rules, certificates, ..Setup::default() }.shared();
        let ended = fetch(&shared, &host, BYTES).await;
        assert_eq!(ended.is_ok(), expected, "{shown}: {ended:?}");
    }
}

#[tokio::test]
async fn other_places_of_a_blob_are_asked_by_nobody() {
    const BYTES: &[u8] = b"foreign layer";
    let place = registry(Some(BYTES), false).await;
    let server = registry(None, true).await;
    let shared = Setup::default().shared();
    let session = session(&shared, &server.host(), Access::Pull, &ali()).await.unwrap();
    let urls =
        ["ftp://x/".to_owned(), "http://127.0.0.1:1/".into(), format!("http://{}/l", place.host())];
    let memory = Memory::with(&BYTES[..3]);
    let (digest, size) = (digest_of(BYTES), BYTES.len() as u64);
    session.fetch_blob(&cx(), &digest, size, &urls, memory.writer(), silent()).await.unwrap();
    assert_eq!(memory.get(), BYTES);
    let seen = place.seen();
    assert!(seen[0].starts_with("get /l ") && seen[0].contains("range: bytes=3-"), "{seen:?}");
    assert!(!seen[0].contains("authorization"));

    let writer = Memory::default().writer();
    let ended = session.fetch_blob(&cx(), &digest, size, &urls[..2], writer, silent()).await;
    assert_eq!(ended.map(drop).unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn plain_requests_are_written_to_the_proxy() {
    const BYTES: &[u8] = b"through";
    let proxy = Server::acting(None, |_, request| {
        let line = request.lines().next().unwrap_or_default();
        if line.starts_with("connect ") {
            return vec![reply("403 Forbidden", "", "").into(), Act::Close];
        }
        vec![if line.contains("/v2/ ") {
            reply("200 OK", "", "").into()
        } else {
            Act::Send(ranged(request, BYTES))
        }]
    })
    .await;
    let address = format!("http://me:secret@{}", proxy.host());
    let setup = Setup {
        config: json!({"insecure-registries": ["reg.invalid"]}),
        proxies: [address.clone(), address, String::new()],
        ..Setup::default()
    };
    let error = fetch(&setup.shared(), "reg.invalid", BYTES).await.unwrap_err().chain();
    assert!(
        error.contains("refuses a connection to reg.invalid:443") && !error.contains("secret"),
        "{error}"
    );

    let setup = Setup {
        rules: mirrored("reg.invalid", &["http://mirror.invalid".to_owned()]),
        proxies: [format!("http://me:secret@{}", proxy.host()), String::new(), String::new()],
        ..Setup::default()
    };
    assert_eq!(fetch(&setup.shared(), "reg.invalid", BYTES).await.unwrap(), BYTES);
    let seen = proxy.seen();
    let last = seen.last().unwrap();
    assert!(last.starts_with("get http://mirror.invalid/v2/team/app/blobs/"), "{last}");
    assert!(
        last.contains("host: mirror.invalid\r\n") && last.contains("proxy-authorization: basic")
    );
}

/// A proxy that connects everybody to `port` of this machine, after a look at what they say.
async fn tunnels(port: u16) -> (u16, Arc<Mutex<Vec<String>>>, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let remember = seen.clone();
    #[expect(clippy::disallowed_methods, reason = "aborted by the test")]
    let task = tokio::spawn(async move {
        let mut all = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let remember = remember.clone();
            all.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                remember.lock().unwrap().push(String::from_utf8(head).unwrap());
                stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                let mut there = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
            });
        }
    });
    (here, seen, task)
}

#[tokio::test]
async fn tls_goes_through_a_tunnel() {
    let dir = tempfile::tempdir().unwrap();
    if certificates(dir.path()).is_none() {
        return;
    }
    const BYTES: &[u8] = b"tunnelled";
    let server = Server::acting(Some(acceptor(dir.path(), false)), |_, request| {
        vec![Act::Send(ranged(request, BYTES))]
    })
    .await;
    let (port, seen, task) = tunnels(server.port).await;
    let setup = Setup {
        rules: json!({"registries": {"reg.invalid": {"ca": dir.path().join("server.crt")}}}),
        proxies: [String::new(), format!("me:s%20t@127.0.0.1:{port}"), String::new()],
        ..Setup::default()
    };
    assert_eq!(fetch(&setup.shared(), "reg.invalid", BYTES).await.unwrap(), BYTES);
    let seen = seen.lock().unwrap().clone();
    assert_eq!(
        seen[0],
        "CONNECT reg.invalid:443 HTTP/1.1\r\nHost: reg.invalid:443\r\nProxy-Authorization: Basic bWU6cyB0\r\n\r\n"
    );
    assert_eq!(seen.len(), 1, "the tunnel is used again");
    assert!(!server.seen().join("").contains("proxy-authorization"));
    task.abort();
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_a_registry_token_is_shown() {
    let given = Arc::new(AtomicUsize::new(0));
    let count = given.clone();
    let server = Server::acting(None, move |port, request| {
        if request.starts_with("post /token") && request.contains("refresh_token=known") {
            count.fetch_add(1, SeqCst);
            return vec![reply("200 OK", "", r#"{"access_token":"t","expires_in":300}"#).into()];
        }
        if request.contains("authorization: bearer t\r\n") {
            return vec![Act::Send(ranged(request, b"x"))];
        }
        vec![
            challenge(&format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\""))
                .into(),
        ]
    })
    .await;
    let shared = Setup::default().shared();
    let identity = Credentials { identity_token: "known".into(), ..Credentials::default() };
    let token = Credentials { registry_token: "t".into(), ..Credentials::default() };
    for (who, expected) in [(identity.clone(), 1), (token, 1), (identity, 1)] {
        let session = session(&shared, &server.host(), Access::Pull, &who).await.unwrap();
        assert_eq!(session.small_blob(&cx(), &digest_of(b"x"), 1).await.unwrap(), b"x");
        assert_eq!(given.load(SeqCst), expected);
    }
    let form = "client_id=docker&grant_type=refresh_token&refresh_token=known\
                &scope=repository%3ateam%2fapp%3apull&service=s";
    assert!(server.seen().iter().any(|request| request.ends_with(form)), "{:?}", server.seen());
    let wrong = Credentials { registry_token: "old".into(), ..Credentials::default() };
    let session = session(&shared, &server.host(), Access::Pull, &wrong).await.unwrap();
    let error = session.small_blob(&cx(), &digest_of(b"x"), 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
}
