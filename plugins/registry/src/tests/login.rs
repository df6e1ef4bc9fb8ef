//! Logins.

use std::path::Path;
use std::sync::Arc;

use gantry_sdk::api::AuthConfig;
use gantry_sdk::kinds::registry::Credentials;
use gantry_sdk::{Error, ErrorKind};
use http::HeaderValue;

use super::{Server, acceptor, challenge, openssl, reply};
use crate::http::address::Url;
use crate::http::client::Client;
use crate::http::tls;
use crate::login::{LoginError, login};

const PASSWORD: &str = "open-sesame-7";
/// `ali:open-sesame-7`
const BASIC: &str = "authorization: basic ywxpom9wzw4tc2vzyw1lltc=";
const EMPTY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

fn url(server: &Server, tls: bool) -> Url {
    Url::new(tls, &server.host(), "/v2/").unwrap()
}

fn client(directory: &Path, insecure: bool) -> Result<Client, tls::TlsError> {
    let config = tls::client(directory, None, insecure)?;
    Ok(Client::new(config, HeaderValue::from_static("t"), Arc::default()))
}

fn told(error: LoginError) -> Error {
    error.into()
}

fn ali() -> AuthConfig {
    AuthConfig { username: "ali".into(), password: PASSWORD.into(), ..AuthConfig::default() }
}

async fn attempt(server: &Server, config: AuthConfig) -> Result<String, LoginError> {
    let client = client(Path::new("/nonexistent"), true).unwrap();
    login(&client, &url(server, false), &Credentials::from(config)).await
}

/// The kind of failure and all that a client is told, which never has the password in it.
async fn failure(server: &Server) -> (ErrorKind, String) {
    let error = told(attempt(server, ali()).await.unwrap_err());
    let text = error.chain();
    assert!(!text.contains(PASSWORD) && !text.contains("YWxp"), "{text}");
    (error.kind(), text)
}

#[tokio::test]
async fn a_registry_that_asks_nobody_accepts_everybody() {
    let server = Server::start(None, |_, _| EMPTY.into()).await;
    assert_eq!(attempt(&server, AuthConfig::default()).await.unwrap(), "");
    assert!(!server.seen()[0].contains("authorization"), "{:?}", server.seen());
}

#[tokio::test]
async fn basic_authentication() {
    let server = Server::start(None, |_, request| {
        if request.contains(BASIC) { EMPTY.into() } else { challenge("Basic realm=\"x\"") }
    })
    .await;
    assert_eq!(attempt(&server, ali()).await.unwrap(), "");
    let old = AuthConfig { auth: "YWxpOm9wZW4tc2VzYW1lLTc=".into(), ..AuthConfig::default() };
    assert_eq!(attempt(&server, old).await.unwrap(), "");

    let wrong = AuthConfig { password: "wrong".into(), ..ali() };
    let error = told(attempt(&server, wrong).await.unwrap_err());
    let text =
        format!("login attempt to {} failed with status: 401 Unauthorized", url(&server, false));
    assert_eq!((error.kind(), error.chain()), (ErrorKind::Unauthorized, text));

    let error = told(attempt(&server, AuthConfig::default()).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.chain().ends_with("no basic auth credentials"), "{}", error.chain());
}

/// A registry and its token server at one address.
fn with_tokens(port: u16, request: &str) -> String {
    let line = request.lines().next().unwrap_or_default();
    let is_known = request.contains(BASIC) || request.contains("refresh_token=known");
    match line.split(' ').nth(1).unwrap_or_default() {
        path if path.starts_with("/token") && is_known => {
            reply("200 OK", "", r#"{"token":"t1","refresh_token":"id-1"}"#)
        }
        path if path.starts_with("/token") => reply(
            "401 Unauthorized",
            "Content-Type: application/json\r\n",
            r#"{"details":"incorrect username or password"}"#,
        ),
        _ if request.contains("authorization: bearer t1") => EMPTY.into(),
        _ => challenge(&format!(
            "Bearer realm=\"http://127.0.0.1:{port}/token?x=y\",service=\"my reg\""
        )),
    }
}

#[tokio::test]
async fn a_token_for_a_password() {
    let server = Server::start(None, with_tokens).await;
    assert_eq!(attempt(&server, ali()).await.unwrap(), "id-1");
    let seen = server.seen();
    assert_eq!(seen.len(), 3, "{seen:?}");
    let asked =
        "get /token?x=y&account=ali&client_id=docker&offline_token=true&service=my+reg http/1.1";
    assert!(seen[1].starts_with(asked), "{}", seen[1]);
    assert!(!seen[2].contains("basic"), "{}", seen[2]);

    let wrong = AuthConfig { password: "wrong".into(), ..ali() };
    let error = told(attempt(&server, wrong).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let text =
        format!("Get \"{}\": unauthorized: incorrect username or password", url(&server, false));
    assert_eq!(error.chain(), text);
}

#[tokio::test]
async fn a_token_for_an_identity_token_and_a_token_as_it_is() {
    let server = Server::start(None, with_tokens).await;
    let known = AuthConfig { identitytoken: "known".into(), ..AuthConfig::default() };
    assert_eq!(attempt(&server, known).await.unwrap(), "id-1");
    let asked = &server.seen()[1];
    assert!(asked.starts_with("post /token?x=y http/1.1"), "{asked}");
    let form = "client_id=docker&grant_type=refresh_token&refresh_token=known&service=my+reg";
    assert!(asked.ends_with(form), "{asked}");

    let ready = AuthConfig { registrytoken: "t1".into(), ..AuthConfig::default() };
    assert_eq!(attempt(&server, ready).await.unwrap(), "");
}

#[tokio::test]
async fn redirects_stay_at_home() {
    let thief = Server::start(None, |_, _| EMPTY.into()).await;
    let port = thief.port;
    let server = Server::start(None, move |_, request| {
        if request.contains(BASIC) {
            let to = format!("Location: http://127.0.0.1:{port}/v2/\r\n");
            reply("307 Temporary Redirect", &to, "")
        } else {
            challenge("Basic realm=x")
        }
    })
    .await;
    let (kind, text) = failure(&server).await;
    assert_eq!(kind, ErrorKind::Unavailable);
    assert!(text.contains("redirects to another server"), "{text}");
    assert_eq!(thief.seen(), [""; 0]);

    let circle = Server::start(None, |_, _| reply("302 Found", "Location: /v2/\r\n", "")).await;
    assert!(failure(&circle).await.1.contains("redirects more than"));
    assert_eq!(circle.seen().len(), 6);

    let moved = Server::start(None, |_, request| {
        if request.starts_with("get /v2/ ") {
            reply("301 Moved Permanently", "Location: /v2/index\r\n", "")
        } else if request.contains(BASIC) {
            EMPTY.into()
        } else {
            challenge("Basic realm=x")
        }
    })
    .await;
    assert_eq!(attempt(&moved, ali()).await.unwrap(), "");
}

#[tokio::test]
async fn answers_that_no_registry_gives() {
    let large = "x".repeat(2 << 20);
    let head = format!("HTTP/1.1 200 OK\r\nX: {large}\r\n\r\n");
    let lines = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(5000));
    let cases = [
        (reply("200 OK", "", &large), "larger than"),
        (
            format!("HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n{large}"),
            "larger",
        ),
        (head, "no proper answer"),
        (lines, "no proper answer"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx".into(), "no proper answer"),
        (String::new(), "no proper answer"),
        ("\x15\x03\x01\0\x02\x02\x46".into(), "no proper answer"),
        (reply("404 Not Found", "", ""), "failed with status: 404 Not Found"),
        (reply("401 Unauthorized", "", ""), "failed with status: 401 Unauthorized"),
        (reply("302 Found", "", ""), "cannot be followed"),
        (challenge("Digest realm=x, Negotiate"), "only \"digest, negotiate\""),
        (challenge("Bearer service=x"), "realm"),
        (challenge("Bearer realm=\"ftp://127.0.0.1/\""), "realm"),
        (challenge("Bearer realm=\"http://a:b@127.0.0.1/\""), "realm"),
        (challenge("Bearer realm=\"http://127.0.0.1:99999/\""), "realm"),
        (challenge("Bearer realm=\"http://127.0.0.1:1/t\""), "cannot connect to 127.0.0.1:1"),
    ];
    for (answer, expected) in cases {
        let shown = format!("{answer:.60?}");
        let server = Server::start(None, move |_, _| answer.clone()).await;
        let (_, text) = failure(&server).await;
        assert!(text.contains(expected), "{shown}: {text}");
    }
}

#[tokio::test]
async fn tokens_that_are_none() {
    for (token, expected) in [
        ("", "unable to decode"),
        ("[1]", "unable to decode"),
        (r#"{"token":7}"#, "unable to decode"),
        ("{}", "did not include a token"),
        (r#"{"token":"","access_token":null}"#, "did not include a token"),
        (r#"{"token":"a\r\nX: y"}"#, "not printable"),
    ] {
        let server = Server::start(None, move |port, request| {
            if request.starts_with("get /token") {
                return reply("200 OK", "", token);
            }
            challenge(&format!("Bearer realm=\"http://127.0.0.1:{port}/token\""))
        })
        .await;
        let (kind, text) = failure(&server).await;
        assert!(kind == ErrorKind::Unavailable && text.contains(expected), "{token}: {text}");
    }
}

/// Directories as an operator fills them: empty, with the authority, with a client's pair as well.
#[tokio::test]
async fn certificates_decide_who_talks_to_whom() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let names = "-addext subjectAltName=IP:127.0.0.1";
    let make =
        format!("req -x509 {key} -days 2 -subj /CN=r {names} -keyout server.key -out server.crt");
    if !openssl(dir, &make) {
        eprintln!("SKIPPED: needs openssl");
        return;
    }
    openssl(dir, &format!("req {key} -subj /CN=me -keyout me.key -out me.csr"));
    std::fs::write(dir.join("ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    openssl(
        dir,
        "x509 -req -in me.csr -CA server.crt -CAkey server.key -CAcreateserial -days 2 \
         -extfile ext -out me.cert",
    );
    for (name, files) in
        [("none", &[][..]), ("ca", &["server.crt"]), ("pair", &["server.crt", "me.cert", "me.key"])]
    {
        std::fs::create_dir(dir.join(name)).unwrap();
        for file in files {
            std::fs::copy(dir.join(file), dir.join(name).join(file)).unwrap();
        }
    }
    for (directory, mutual, insecure, expected) in [
        ("none", false, false, Err("cannot agree on TLS")),
        ("none", false, true, Ok(())),
        ("ca", false, false, Ok(())),
        ("ca", true, false, Err("127.0.0.1")),
        ("pair", true, false, Ok(())),
        ("pair", true, true, Ok(())),
    ] {
        let shown = format!("{directory} mutual {mutual} insecure {insecure}");
        let server = Server::start(Some(acceptor(dir, mutual)), |_, request| {
            if request.contains(BASIC) { EMPTY.into() } else { challenge("Basic realm=x") }
        })
        .await;
        let client = match client(&dir.join(directory), insecure) {
            Ok(client) => client,
            // A machine without certificate authorities.
            Err(tls::TlsError::NoRoots(_)) if directory == "none" => continue,
            Err(error) => panic!("{shown}: {error}"),
        };
        let ended = login(&client, &url(&server, true), &Credentials::from(ali())).await;
        match (ended.map_err(|error| told(error).chain()), expected) {
            (Ok(_), Ok(())) => {}
            (Err(text), Err(part)) if text.contains(part) => {}
            (other, _) => panic!("{shown}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_registry_with_tls_cannot_name_a_token_server_without() {
    let dir = tempfile::tempdir().unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let make = format!("req -x509 {key} -days 2 -subj /CN=r -keyout server.key -out server.crt");
    if !openssl(dir.path(), &make) {
        eprintln!("SKIPPED: needs openssl");
        return;
    }
    let thief = Server::start(None, |_, _| EMPTY.into()).await;
    let port = thief.port;
    let server = Server::start(Some(acceptor(dir.path(), false)), move |_, _| {
        challenge(&format!("Bearer realm=\"http://127.0.0.1:{port}/token\""))
    })
    .await;
    let client = client(Path::new("/nonexistent"), true).unwrap();
    let error = login(&client, &url(&server, true), &Credentials::from(ali())).await.unwrap_err();
    assert!(error.to_string().contains("does not use TLS"), "{error}");
    assert_eq!(thief.seen(), [""; 0]);

    // Not TLS at all: said in words.
    let error = login(&client, &url(&thief, true), &Credentials::from(ali())).await.unwrap_err();
    assert!(error.is_connection(), "{error}");
    let text = told(error).chain();
    assert!(text.ends_with("the server does not speak TLS"), "{text}");
}
