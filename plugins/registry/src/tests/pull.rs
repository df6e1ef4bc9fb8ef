//! Downloads from registries that stall, cut, lie and forget.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use gantry_sdk::kinds::registry::TransferLimits;
use gantry_sdk::{Error, ErrorKind};

use super::*;

const LARGE: usize = 3 << 20;

/// A registry with one blob; `script` is asked for it.
async fn with_blob(script: impl Fn(usize, &str) -> Vec<Act> + Send + Sync + 'static) -> Server {
    let turn = AtomicUsize::new(0);
    Server::acting(None, move |_, request| match request {
        ping if ping.starts_with("get /v2/ ") => vec![reply("200 OK", "", "{}").into()],
        request => script(turn.fetch_add(1, SeqCst), request),
    })
    .await
}

async fn fetch(server: &Server, bytes: &[u8], memory: &Memory) -> Result<(), Error> {
    let shared = Setup::default().shared();
    fetch_by(&shared, server, bytes, memory, silent()).await
}

async fn fetch_by(
    shared: &Arc<Shared>,
    server: &Server,
    bytes: &[u8],
    memory: &Memory,
    progress: TransferProgress,
) -> Result<(), Error> {
    let session = session(shared, &server.host(), Access::Pull, &Credentials::default()).await?;
    let (digest, size) = (digest_of(bytes), bytes.len() as u64);
    session.fetch_blob(&cx(), &digest, size, &[], memory.writer(), progress).await.map(drop)
}

#[tokio::test]
async fn a_blob_comes_whole_and_progress_is_told() {
    let bytes = content(LARGE);
    let served = bytes.clone();
    let server = with_blob(move |_, request| vec![Act::Send(ranged(request, &served))]).await;
    let memory = Memory::default();
    let (progress, told) = heard();
    fetch_by(&Setup::default().shared(), &server, &bytes, &memory, progress).await.unwrap();
    assert!(memory.get() == bytes);
    let told = told.lock().unwrap().clone();
    assert!(told.is_sorted() && told.first() == Some(&0) && told.last() == Some(&(LARGE as u64)));
    let asked = server.asked();
    assert_eq!(asked[1], format!("get /v2/team/app/blobs/{}", digest_of(&bytes)));
}

#[tokio::test]
async fn what_is_here_is_not_fetched_again() {
    let bytes = content(LARGE);
    let served = bytes.clone();
    let server = with_blob(move |_, request| vec![Act::Send(ranged(request, &served))]).await;
    let memory = Memory::with(&bytes[..LARGE / 2]);
    fetch(&server, &bytes, &memory).await.unwrap();
    assert!(memory.get() == bytes);
    assert!(server.seen()[1].contains(&format!("range: bytes={}-", LARGE / 2)));

    let before = server.seen().len();
    fetch(&server, &bytes, &Memory::with(&bytes)).await.unwrap();
    assert_eq!(server.seen().len(), before);
}

#[tokio::test]
async fn a_cut_at_99_percent_goes_on_from_there() {
    let bytes = content(LARGE);
    let served = bytes.clone();
    let server = with_blob(move |turn, request| {
        let mut all = ranged(request, &served);
        if turn == 0 {
            all.truncate(all.len() - LARGE / 100);
        }
        vec![Act::Send(all), Act::Close]
    })
    .await;
    let memory = Memory::default();
    fetch(&server, &bytes, &memory).await.unwrap();
    assert!(memory.get() == bytes);
    let seen = server.seen();
    assert_eq!(seen.len(), 3, "{:?}", server.asked());
    let start = LARGE - LARGE / 100;
    assert!(seen[2].contains(&format!("range: bytes={start}-\r")), "{}", seen[2]);
}

#[tokio::test]
async fn a_bad_line_is_no_reason_to_give_up_and_no_progress_is() {
    let bytes = content(9 << 20);
    let served = bytes.clone();
    // Each attempt brings a little more than a mebibyte: more attempts than are allowed.
    let server = with_blob(move |_, request| {
        let mut all = ranged(request, &served);
        all.truncate((1 << 20) + 4096);
        vec![Act::Send(all), Act::Close]
    })
    .await;
    let memory = Memory::default();
    fetch(&server, &bytes, &memory).await.unwrap();
    assert!(memory.get() == bytes && server.seen().len() > 8);

    let served = bytes.clone();
    let server = with_blob(move |_, request| {
        let mut all = ranged(request, &served);
        all.truncate(10_000);
        vec![Act::Send(all), Act::Close]
    })
    .await;
    let memory = Memory::default();
    let error = fetch(&server, &bytes, &memory).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert_eq!(server.seen().len(), 1 + 5);
    let kept = memory.get();
    assert!(kept.len() > 40_000 && bytes.starts_with(&kept), "{}", kept.len());
}

#[tokio::test]
async fn a_stall_ends_an_attempt() {
    let bytes = content(LARGE);
    let served = bytes.clone();
    let server = with_blob(move |turn, request| {
        let mut all = ranged(request, &served);
        if turn > 0 {
            return vec![Act::Send(all)];
        }
        all.truncate(LARGE / 3);
        vec![Act::Send(all), Act::Wait(60 * IDLE)]
    })
    .await;
    let memory = Memory::default();
    let begun = Instant::now();
    fetch(&server, &bytes, &memory).await.unwrap();
    assert!(memory.get() == bytes && begun.elapsed() < 20 * IDLE);
    assert!(server.seen()[2].contains("range: bytes="));
}

#[tokio::test]
async fn a_server_without_ranges_starts_over() {
    let bytes = content(LARGE);
    for answer in ["whole", "elsewhere", "refused"] {
        let served = bytes.clone();
        let server = with_blob(move |turn, request| {
            let whole = ranged("", &served);
            match (answer, request.contains("range:") && turn == 0) {
                ("elsewhere", true) => vec![Act::Send(ranged("range: bytes=7-", &served))],
                ("refused", true) => vec![reply("416 Range Not Satisfiable", "", "").into()],
                _ => vec![Act::Send(whole)],
            }
        })
        .await;
        let memory = Memory::with(&[7; 1000]); // whatever it is, it does not stay
        fetch(&server, &bytes, &memory).await.unwrap();
        assert!(memory.get() == bytes, "{answer}");
    }
}

#[tokio::test]
async fn sizes_that_are_lies_are_told_and_nothing_beyond_is_taken() {
    let bytes = content(100_000);
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = |size: usize| {
        [format!("{size:x}\r\n").as_bytes(), &content(size), b"\r\n0\r\n\r\n"].concat()
    };
    let cases = [
        (ranged("", &content(100_001)), "100001 bytes where 100000 are expected"),
        (ranged("", &content(99_999)), "99999 bytes where 100000 are expected"),
        ([chunked.as_bytes(), &body(100_001)].concat(), "more than 100000 bytes came"),
        ([chunked.as_bytes(), &body(99_999)].concat(), "ends after 99999 of 100000 bytes"),
    ];
    for (answer, expected) in cases {
        let server = with_blob(move |turn, _| {
            // What has been taken already cannot be had again.
            if turn == 0 { vec![Act::Send(answer.clone())] } else { vec![Act::Close] }
        })
        .await;
        let memory = Memory::default();
        let config = json!({"max-download-attempts": 1});
        let shared = Setup { config, ..Setup::default() };
        let error =
            fetch_by(&shared.shared(), &server, &bytes, &memory, silent()).await.unwrap_err();
        assert!(error.chain().contains(expected), "{expected}: {}", error.chain());
        assert!(memory.get().len() <= bytes.len());
    }
}

#[tokio::test]
async fn a_registry_that_is_busy_is_left_alone_for_as_long_as_it_asks() {
    let bytes = content(1000);
    let served = bytes.clone();
    let server = with_blob(move |turn, request| match turn {
        0 => vec![reply("429 Too Many Requests", "Retry-After: 1\r\n", "slow").into()],
        1 => vec![reply("503 Service Unavailable", "", "").into()],
        _ => vec![Act::Send(ranged(request, &served))],
    })
    .await;
    let begun = Instant::now();
    let memory = Memory::default();
    fetch(&server, &bytes, &memory).await.unwrap();
    assert!(memory.get() == bytes && begun.elapsed().as_millis() >= 1000);

    let server =
        with_blob(|_, _| vec![reply("429 Too Many Requests", "", "slow down").into()]).await;
    let error = fetch(&server, &bytes, &Memory::default()).await.unwrap_err();
    assert_eq!(error.chain(), "toomanyrequests: slow down");
    assert_eq!(server.seen().len(), 1 + 5);
}

#[tokio::test]
async fn a_refusal_is_final() {
    let bytes = content(10);
    for (status, kind) in
        [("404 Not Found", ErrorKind::NotFound), ("403 Forbidden", ErrorKind::Forbidden)]
    {
        let body = r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#;
        let server = with_blob(move |_, _| vec![reply(status, "", body).into()]).await;
        let error = fetch(&server, &bytes, &Memory::default()).await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!(error.chain(), "blob unknown: blob unknown to registry");
        assert_eq!(server.seen().len(), 2);
    }
}

#[tokio::test]
async fn a_writer_that_is_full_says_so() {
    let bytes = content(LARGE);
    let served = bytes.clone();
    let server = with_blob(move |_, request| vec![Act::Send(ranged(request, &served))]).await;
    let memory = Memory { room: Some(LARGE / 2), ..Memory::default() };
    let error = fetch(&server, &bytes, &memory).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{}", error.chain());
    assert_eq!(server.seen().len(), 2, "a full disk is not the registry's fault");
}

#[tokio::test]
async fn whoever_drops_the_download_ends_it() {
    let bytes = content(LARGE);
    let served = bytes.clone();
    let server = with_blob(move |_, request| {
        let mut all = ranged(request, &served);
        all.truncate(LARGE / 2);
        vec![Act::Send(all), Act::Wait(60 * IDLE)]
    })
    .await;
    let memory = Memory::default();
    let work = fetch(&server, &bytes, &memory);
    assert!(tokio::time::timeout(IDLE / 2, work).await.is_err());
    while Arc::strong_count(&memory.bytes) > 1 {
        tokio::task::yield_now().await; // the writer is dropped on its thread
    }
    assert!(bytes.starts_with(&memory.get()));
}

/// A registry whose tokens are good for as many requests as `uses` says.
async fn with_short_tokens(served: Vec<u8>, uses: usize) -> Server {
    let given = AtomicUsize::new(0);
    let left = AtomicUsize::new(0);
    Server::acting(None, move |port, request| {
        if request.starts_with("get /token") {
            let number = given.fetch_add(1, SeqCst) + 1;
            left.store(uses, SeqCst);
            return vec![reply("200 OK", "", &format!(r#"{{"token":"t{number}"}}"#)).into()];
        }
        let current = format!("authorization: bearer t{}\r\n", given.load(SeqCst));
        let spent = |left: usize| left.checked_sub(1);
        if !request.contains(&current) || left.fetch_update(SeqCst, SeqCst, spent).is_err() {
            let text = format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\"");
            return vec![challenge(&text).into()];
        }
        let mut all = ranged(request, &served);
        all.truncate((1 << 20) + 512);
        vec![Act::Send(all), Act::Close]
    })
    .await
}

#[tokio::test]
async fn tokens_that_expire_mid_pull_are_renewed() {
    let bytes = content(LARGE);
    let server = with_short_tokens(bytes.clone(), 1).await;
    let shared = Setup::default().shared();
    let session = session(&shared, &server.host(), Access::Pull, &ali()).await.unwrap();
    let memory = Memory::default();
    let (digest, size) = (digest_of(&bytes), bytes.len() as u64);
    session.fetch_blob(&cx(), &digest, size, &[], memory.writer(), silent()).await.unwrap();
    assert!(memory.get() == bytes);
    let tokens: Vec<_> =
        server.seen().into_iter().filter(|r| r.starts_with("get /token")).collect();
    assert!(tokens.len() >= 3, "{:?}", server.asked());
    let asked = "get /token?account=ali&scope=repository%3ateam%2fapp%3apull&service=s http/1.1";
    assert!(tokens[0].starts_with(asked), "{}", tokens[0]);
    assert!(tokens[0].contains("authorization: basic"));
}

#[tokio::test]
async fn tokens_are_kept_between_sessions_and_not_between_people() {
    let bytes = content(100);
    let server = with_short_tokens(bytes.clone(), 1000).await;
    let shared = Setup::default().shared();
    let digest = digest_of(&bytes);
    let tokens = || server.asked().iter().filter(|line| line.starts_with("get /token")).count();
    for (who, expected) in [(ali(), 1), (ali(), 1), (Credentials::default(), 2)] {
        let session = session(&shared, &server.host(), Access::Pull, &who).await.unwrap();
        assert_eq!(session.small_blob(&cx(), &digest, 100).await.unwrap(), bytes);
        assert_eq!(tokens(), expected);
    }
    let last = server.seen().into_iter().rfind(|r| r.starts_with("get /token")).unwrap();
    assert!(!last.contains("authorization") && !last.contains("account"), "{last}");
}

#[tokio::test]
async fn connections_are_kept_and_replaced_when_they_are_closed() {
    let bytes = content(1000);
    let (digest, served) = (digest_of(&bytes), bytes.clone());
    let server = with_blob(move |turn, request| {
        let mut acts = vec![Act::Send(ranged(request, &served))];
        if turn == 4 {
            acts.push(Act::Close);
        }
        acts
    })
    .await;
    let shared = Setup::default().shared();
    let session = session(&shared, &server.host(), Access::Pull, &ali()).await.unwrap();
    for _ in 0..8 {
        assert_eq!(session.small_blob(&cx(), &digest, 1000).await.unwrap(), bytes);
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn manifests_are_what_was_asked_for() {
    let manifest =
        r#"{"schemaversion":2,"mediatype":"","config":{}}"#.replace("mediatype", "mediaType");
    let digest = digest_of(manifest.as_bytes());
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let headers = format!("Content-Type: {oci}\r\n");
    let lie = format!("{headers}Docker-Content-Digest: {}\r\n", digest_of(b"x"));
    let large = "x".repeat((4 << 20) + 1);
    let served = manifest.clone();
    let server = with_blob(move |_, request| {
        let line = request.lines().next().unwrap_or_default().to_owned();
        if line.starts_with("head") {
            let described =
                format!("{headers}Docker-Content-Digest: {}\r\n", digest_of(served.as_bytes()));
            let whole = reply(
                "200 OK",
                if line.contains("/bare ") { &headers } else { &described },
                &served,
            );
            let head = whole.split("\r\n\r\n").next().unwrap_or_default();
            let missing = reply("404 Not Found", "", "");
            return vec![
                if line.contains("/none ") { missing } else { format!("{head}\r\n\r\n") }.into(),
            ];
        }
        vec![
            match line.split(' ').nth(1).unwrap_or_default() {
                path if path.ends_with("/lie") => reply("200 OK", &lie, &served),
                path if path.ends_with("/large") => reply("200 OK", &headers, &large),
                path if path.ends_with("/none") => reply("404 Not Found", "", ""),
                _ => reply("200 OK", &headers, &served),
            }
            .into(),
        ]
    })
    .await;
    let shared = Setup::default().shared();
    let session = session(&shared, &server.host(), Access::Pull, &ali()).await.unwrap();
    for reference in ["latest", digest.as_str()] {
        let found = session.manifest(&cx(), reference).await.unwrap();
        assert_eq!((found.digest, found.media_type.as_str()), (digest.clone(), oci));
        assert_eq!(found.bytes, manifest.as_bytes());
    }
    for (reference, part) in [
        ("lie", "verification failed"),
        (digest_of(b"other").as_str(), "verification failed"),
        ("large", "larger than 4194304 bytes"),
        ("none", "404"),
    ] {
        let error = session.manifest(&cx(), reference).await.unwrap_err();
        assert!(error.chain().contains(part), "{reference}: {}", error.chain());
    }
    for (reference, expected) in [("latest", true), ("bare", true), ("none", false)] {
        let found = session.probe_manifest(&cx(), reference).await.unwrap();
        assert_eq!(found.is_some(), expected, "{reference}");
        let found = found.map(|found| (found.digest, found.size));
        assert!(found.is_none_or(|found| found == (digest.to_string(), manifest.len() as i64)));
    }
    assert!(session.has_blob(&cx(), &digest).await.unwrap());
}

#[tokio::test]
async fn tags_come_in_pages_and_lists_have_an_end() {
    let server = with_blob(|_, request| {
        let page = |next: &str, body: &str| {
            let link = if next.is_empty() {
                String::new()
            } else {
                format!("Link: <{next}>; rel=\"next\"\r\n")
            };
            vec![reply("200 OK", &link, body).into()]
        };
        match request.split(' ').nth(1).unwrap_or_default() {
            "/v2/team/app/tags/list" => {
                page("/v2/team/app/tags/list?last=b", r#"{"tags":["a","b"]}"#)
            }
            "/v2/team/app/tags/list?last=b" => page("", r#"{"tags":["c","../d"]}"#),
            "/v2/team/loop/tags/list" => page("/v2/team/loop/tags/list", r#"{"tags":["a"]}"#),
            path => page(&format!("{path}x"), "{}"),
        }
    })
    .await;
    let shared = Setup::default().shared();
    let of = |name: &str| Reference::parse(&format!("{}/{name}", server.host())).unwrap();
    let open = async |name: &str| {
        let nobody = Credentials::default();
        crate::open(&shared, &of(name), Access::Pull, &nobody).await.unwrap().tags(&cx()).await
    };
    assert_eq!(open("team/app").await.unwrap(), ["a", "b", "c"]);
    for name in ["team/loop", "team/endless"] {
        let error = open(name).await.unwrap_err().chain();
        assert!(error.contains("no end"), "{error}");
    }
    assert!(server.seen().len() < 1100);
}

#[tokio::test]
async fn referrers_with_and_without_the_interface() {
    let (subject, old) = (digest_of(b"subject"), digest_of(b"old"));
    let index = |kinds: &[&str]| {
        let all: Vec<_> = kinds
            .iter()
            .map(|kind| json!({"mediaType": "m", "digest": digest_of(kind.as_bytes()), "size": 1, "artifactType": kind}))
            .collect();
        json!({"schemaVersion": 2, "manifests": all}).to_string()
    };
    let (new, tagged) = (index(&["sbom", "signature"]), index(&["sbom"]));
    let (known, fallback) = (subject.clone(), old.clone());
    let server = with_blob(move |_, request| {
        let path = request.split(' ').nth(1).unwrap_or_default();
        vec![
            if path.starts_with(&format!("/v2/team/app/referrers/{known}")) {
                reply("200 OK", "", &new)
            } else if path.ends_with(&format!("/manifests/sha256-{}", fallback.hex())) {
                reply("200 OK", "", &tagged)
            } else {
                reply("404 Not Found", "", "")
            }
            .into(),
        ]
    })
    .await;
    let shared = Setup::default().shared();
    let session = session(&shared, &server.host(), Access::Pull, &ali()).await.unwrap();
    for (digest, kind, expected) in [
        (&subject, None, 2),
        (&subject, Some("sbom"), 1),
        (&old, None, 1),
        (&old, Some("signature"), 0),
        (&digest_of(b"nothing"), None, 0),
    ] {
        assert_eq!(session.referrers(&cx(), digest, kind).await.unwrap().len(), expected);
    }
    assert!(server.asked().iter().any(|line| line.ends_with("?artifacttype=sbom")));
}

#[tokio::test]
async fn limits_are_those_configured_now() {
    let setup = Setup { config: json!({"max-concurrent-downloads": 7}), ..Setup::default() };
    let client = crate::Registry(setup.shared());
    let TransferLimits { max_concurrent_downloads, .. } =
        gantry_sdk::kinds::registry::RegistryClient::limits(&client);
    assert_eq!(max_concurrent_downloads, 7);
}
