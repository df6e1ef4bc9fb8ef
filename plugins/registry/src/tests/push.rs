//! Uploads: at once, in pieces, not at all.

use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;

/// A file with `bytes`, opened anew each time.
fn file(
    bytes: &[u8],
) -> (tempfile::NamedTempFile, impl Fn() -> Result<File> + Send + Sync + use<>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let path = file.path().to_owned();
    (file, move || File::open(&path).map_err(|e| Error::io("open", path.display(), e)))
}

async fn push(server: &Server, bytes: &[u8]) -> Result<()> {
    let shared = Setup::default().shared();
    let session = session(&shared, &server.host(), Access::Push, &ali()).await?;
    let (_kept, open) = file(bytes);
    let (progress, told) = heard();
    let size = bytes.len() as u64;
    session.push_blob(&cx(), &digest_of(bytes), size, &open, progress).await?;
    assert_eq!(told.lock().unwrap().last(), Some(&size));
    Ok(())
}

fn body(request: &str) -> &str {
    request.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// Text, so that the server remembers it as it was.
fn text(size: usize) -> Vec<u8> {
    content(size).into_iter().map(|byte| b'a' + byte % 26).collect()
}

#[tokio::test]
async fn at_once_where_the_registry_takes_it() {
    let server = Server::acting(None, |_, request| {
        let upload = "Location: /v2/team/app/blobs/uploads/1?_state=x\r\n";
        vec![
            match request.split(' ').next().unwrap_or_default() {
                "post" => reply("202 Accepted", upload, ""),
                "put" => reply("201 Created", "", ""),
                _ => reply("200 OK", "", "{}"),
            }
            .into(),
        ]
    })
    .await;
    for size in [0, 1, 1_500_000] {
        push(&server, &text(size)).await.unwrap();
    }
    let bytes = text(1_500_000);
    let seen = server.seen();
    let put = seen.last().unwrap();
    let digest = digest_of(&bytes).to_string().replace(':', "%3a");
    assert!(
        put.starts_with(&format!("put /v2/team/app/blobs/uploads/1?_state=x&digest={digest} "))
    );
    assert!(put.contains("content-length: 1500000\r\n") && body(put).as_bytes() == bytes);
    assert!(!put.contains("transfer-encoding"));
}

#[tokio::test]
async fn in_pieces_where_a_proxy_refuses_large_bodies() {
    let bytes = text(40 << 20);
    let number = AtomicUsize::new(0);
    let server = Server::acting(None, move |_, request| {
        let length = request.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |text| text.parse().unwrap());
        let turn = number.fetch_add(1, SeqCst);
        let next = format!("Location: /v2/team/app/blobs/uploads/{turn}\r\n");
        if length > 20 << 20 {
            return vec![reply("413 Request Entity Too Large", "", "").into(), Act::Close];
        }
        vec![
            match request.split(' ').next().unwrap_or_default() {
                "post" | "patch" => reply("202 Accepted", &next, ""),
                "put" => reply("201 Created", "", ""),
                _ => reply("200 OK", "", "{}"),
            }
            .into(),
        ]
    })
    .await;
    push(&server, &bytes).await.unwrap();
    let seen = server.seen();
    let patches: Vec<_> = seen.iter().filter(|request| request.starts_with("patch")).collect();
    let sent: String = patches.iter().map(|request| body(request)).collect();
    assert!(sent.as_bytes() == bytes);
    let piece = 16 << 20;
    assert!(patches[0].contains(&format!("content-range: 0-{}\r\n", piece - 1)));
    assert!(patches[2].contains(&format!("content-range: {}-{}\r\n", 2 * piece, (40 << 20) - 1)));
}

#[tokio::test]
async fn hang_ups_and_busy_registries_are_tried_again() {
    let turn = AtomicUsize::new(0);
    let server = Server::acting(None, move |_, request| {
        let upload = "Location: /v2/team/app/blobs/uploads/1\r\n";
        match request.split(' ').next().unwrap_or_default() {
            "post" => vec![reply("202 Accepted", upload, "").into()],
            "put" => match turn.fetch_add(1, SeqCst) {
                0 => vec![reply("503 Service Unavailable", "Retry-After: 0\r\n", "").into()],
                1 => vec![Act::Close],
                _ => vec![reply("201 Created", "", "").into()],
            },
            "patch" => vec![reply("202 Accepted", upload, "").into()],
            _ => vec![reply("200 OK", "", "{}").into()],
        }
    })
    .await;
    push(&server, &text(1000)).await.unwrap();

    let server = Server::start(None, |_, request| match request.split(' ').next() {
        Some("post") => {
            reply("403 Forbidden", "", r#"{"errors":[{"code":"DENIED","message":"no"}]}"#)
        }
        _ => reply("200 OK", "", "{}"),
    })
    .await;
    assert_eq!(push(&server, b"x").await.unwrap_err().chain(), "denied: no");
}

#[tokio::test]
async fn credentials_do_not_go_where_an_upload_is_sent() {
    let store = Server::acting(None, |_, _| vec![reply("201 Created", "", "").into()]).await;
    let port = store.port;
    let server = Server::acting(None, move |_, request| {
        if !request.contains("authorization: basic") {
            return vec![challenge("Basic realm=x").into()];
        }
        vec![reply("202 Accepted", &format!("Location: http://127.0.0.1:{port}/up\r\n"), "").into()]
    })
    .await;
    push(&server, b"content").await.unwrap();
    let seen = store.seen();
    assert!(seen.len() == 1 && !seen[0].contains("authorization"), "{seen:?}");

    let nowhere = Server::start(None, |_, _| reply("202 Accepted", "", "")).await;
    assert!(push(&nowhere, b"x").await.unwrap_err().chain().contains("no location"));
}

#[tokio::test]
async fn mounts_are_taken_or_left() {
    let server = Server::acting(None, |port, request| {
        if request.starts_with("get /token") {
            return vec![reply("200 OK", "", r#"{"token":"t"}"#).into()];
        }
        if !request.contains("bearer t") {
            let text = format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\"");
            return vec![challenge(&text).into()];
        }
        vec![
            match request.lines().next().unwrap_or_default() {
                line if line.starts_with("delete") => reply("204 No Content", "", ""),
                line if line.contains("from=has%2fit") => reply("201 Created", "", ""),
                line if line.contains("from=secret") => reply("403 Forbidden", "", ""),
                _ => reply("202 Accepted", "Location: /v2/team/app/blobs/uploads/9\r\n", ""),
            }
            .into(),
        ]
    })
    .await;
    let shared = Setup::default().shared();
    let session = session(&shared, &server.host(), Access::Push, &ali()).await.unwrap();
    for (from, expected) in [("has/it", true), ("has/nothing", false), ("secret", false)] {
        let mounted = session.mount_blob(&cx(), &digest_of(b"x"), from).await.unwrap();
        assert_eq!(mounted, expected, "{from}");
    }
    let asked = server.asked();
    let scopes = "scope=repository%3ateam%2fapp%3apull%2cpush&scope=repository%3ahas%2fit%3apull";
    assert!(asked.iter().any(|line| line.contains(scopes)), "{asked:?}");
    assert!(asked.iter().any(|line| line == "delete /v2/team/app/blobs/uploads/9"), "{asked:?}");
}

#[tokio::test]
async fn manifests_are_put_and_their_digest_is_compared() {
    let said = digest_of(b"{}");
    let server = Server::acting(None, move |_, request| {
        let digest = format!("Docker-Content-Digest: {said}\r\n");
        vec![
            if request.starts_with("put") {
                reply("201 Created", &digest, "")
            } else {
                reply("200 OK", "", "{}")
            }
            .into(),
        ]
    })
    .await;
    let shared = Setup::default().shared();
    let session = session(&shared, &server.host(), Access::Push, &ali()).await.unwrap();
    let kind = "application/vnd.oci.image.index.v1+json";
    let digest = session.put_manifest(&cx(), "v1", kind, b"{}").await.unwrap();
    assert_eq!(digest, digest_of(b"{}"));
    let seen = server.seen();
    let put = seen.last().unwrap();
    assert!(put.starts_with("put /v2/team/app/manifests/v1 ") && put.contains(kind));
    let error = session.put_manifest(&cx(), "v1", kind, b"{ }").await.unwrap_err();
    assert!(error.chain().contains("verification failed"), "{}", error.chain());
}
