//! What clients see.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_URL_SAFE, Engine as _};
use gantry_sdk::route::{Method, Payload, Peer, Query, Request, Response};
use gantry_sdk::{ApiVersion, ErrorKind};
use http_body_util::BodyExt as _;

use super::*;
use crate::routes::{auth, distribution, search};

fn request(query: &str, params: &[(&'static str, String)], body: &Value) -> Request {
    let body = http_body_util::Full::new(bytes::Bytes::from(body.to_string()));
    Request {
        method: Method::Get,
        path: String::new(),
        params: BTreeMap::from_iter(params.iter().cloned()),
        query: Query::parse(query),
        version: ApiVersion::v1(50),
        headers: ::http::HeaderMap::from_iter([(
            ::http::header::CONTENT_TYPE,
            "application/json".parse().unwrap(),
        )]),
        body: body.map_err(|never| match never {}).boxed_unsync(),
        peer: Peer::default(),
        id: "1".into(),
        gone: tokio_util::sync::CancellationToken::new(),
    }
}

async fn json_of(response: Response) -> Value {
    let Payload::Body(body) = response.payload else { panic!("no body") };
    serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn a_login() {
    let server = Server::start(None, |_, request| {
        if request.contains("authorization: basic") {
            reply("200 OK", "", "{}")
        } else {
            challenge("Basic realm=x")
        }
    })
    .await;
    let shared = Setup::default().shared();
    let mut body = json!({"username": "ali", "password": "x", "serveraddress": server.host()});
    let answer = auth::auth(shared.clone(), request("", &[], &body)).await.unwrap();
    assert_eq!(json_of(answer).await, json!({"Status": "Login Succeeded"}));
    body["serveraddress"] = json!("ftp://x");
    let error = auth::auth(shared, request("", &[], &body)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn what_a_registry_has_under_a_name() {
    let config = r#"{"architecture":"arm64","os":"linux","variant":"v8"}"#;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "c", "digest": digest_of(config.as_bytes()), "size": config.len()},
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {"platform": {"os": "linux", "architecture": "amd64"}},
            {"platform": {"os": "windows", "architecture": "amd64", "os.version": "10"}},
        ],
    })
    .to_string();
    let (one, all) = (manifest.clone(), index.clone());
    let server = Server::acting(None, move |_, request| {
        vec![
            match request.split(' ').nth(1).unwrap_or_default() {
                "/v2/" => reply("200 OK", "", ""),
                "/v2/team/app/manifests/latest" => reply("200 OK", "", &one),
                "/v2/team/app/manifests/all" => reply("200 OK", "", &all),
                path if path.contains("/blobs/") => reply("200 OK", "", config),
                _ => reply(
                    "404 Not Found",
                    "",
                    r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
                ),
            }
            .into(),
        ]
    })
    .await;
    let shared = Setup::default().shared();
    let ask = async |tag: &str| {
        let name = format!("{}/team/app{tag}", server.host());
        distribution::inspect(shared.clone(), request("", &[("name", name)], &json!({}))).await
    };
    let expected = json!({
        "Descriptor": {
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "digest": digest_of(manifest.as_bytes()),
            "size": manifest.len(),
        },
        "Platforms": [{"architecture": "arm64", "os": "linux", "variant": "v8"}],
    });
    assert_eq!(json_of(ask("").await.unwrap()).await, expected);
    let shown = json_of(ask(":all").await.unwrap()).await;
    assert_eq!(shown["Platforms"].as_array().unwrap().len(), 2);
    assert_eq!(shown["Platforms"][1]["os.version"], "10");
    let error = ask(":none").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.chain().as_str()),
        (ErrorKind::NotFound, "manifest unknown: manifest unknown")
    );
    assert_eq!(ask(":-").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_search() {
    let server = Server::acting(None, |_, _| {
        let results = json!({"results": [
            {"name": "team/a", "star_count": 9, "is_official": false, "is_automated": true, "description": "A"},
            {"name": "b", "star_count": 1, "is_official": true},
        ]});
        vec![reply("200 OK", "", &results.to_string()).into()]
    })
    .await;
    let shared = Setup::default().shared();
    let ask = async |query: &str| {
        let query = format!("term={}/team/x+y&{query}", server.host());
        let mut request = request(&query, &[], &json!({}));
        let header = BASE64_URL_SAFE.encode(r#"{"username":"ali","password":"x"}"#);
        request.headers.insert("x-registry-auth", header.parse().unwrap());
        request.headers.insert("x-meta-a", "b".parse().unwrap());
        search::search(shared.clone(), request).await
    };
    let all = json_of(ask("").await.unwrap()).await;
    let first = json!({"name": "team/a", "star_count": 9, "is_official": false, "is_automated": false, "description": "A"});
    assert_eq!((all.as_array().unwrap().len(), &all[0]), (2, &first));
    let few = json_of(ask("limit=7&filters={\"stars\":[\"3\"]}").await.unwrap()).await;
    assert_eq!(few.as_array().unwrap().len(), 1);
    let seen = server.seen();
    assert!(seen[0].starts_with("get /v1/search?q=team%2fx+y&n=25 "), "{}", seen[0]);
    assert!(seen[1].starts_with("get /v1/search?q=team%2fx+y&n=7 "), "{}", seen[1]);
    // No password without TLS to an index that nobody knows.
    assert!(seen[0].contains("x-meta-a: b") && !seen[0].contains("authorization"));
    assert_eq!(
        json_of(ask("filters={\"is-automated\":[\"true\"]}").await.unwrap()).await,
        json!([])
    );
    for (query, part) in [
        ("limit=101", "limit 101 is outside the range of [1, 100]"),
        ("limit=-1", "outside the range"),
        ("limit=x", "limit"),
        ("filters={\"color\":[\"red\"]}", "color"),
        ("filters={\"stars\":[\"x\"]}", "invalid filter 'stars=x'"),
    ] {
        let error = ask(query).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.chain().contains(part), "{}", error.chain());
    }
    let error = search::search(shared.clone(), request("term=http://x/y", &[], &json!({}))).await;
    assert!(error.unwrap_err().chain().contains("should not have a scheme"));
    let gone = request("term=127.0.0.1:1/y", &[], &json!({}));
    assert_eq!(search::search(shared, gone).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}
