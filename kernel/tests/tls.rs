//! Mutual TLS. The certificates are made with the `openssl` program; without it the test says so.

#![allow(clippy::unwrap_used, reason = "a failing step fails the test")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{Fake, Node, register, start, within};
use gantry_kernel::http::Limits;
use gantry_sdk::{Context, Descriptor, Init, Method, Phase, Request, Response, RouteDecl};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// `openssl` with `args` in `dir`; false if there is no such program.
fn openssl(dir: &Path, args: &str) -> bool {
    match Command::new("openssl").current_dir(dir).args(args.split(' ')).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(_) => false,
    }
}

/// A CA, a server and a client called alice, as files in `dir`.
fn certificates(dir: &Path) -> bool {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    if !openssl(dir, &format!("req -x509 {key} -days 2 -subj /CN=ca -keyout ca.key -out ca.pem")) {
        return false;
    }
    std::fs::write(dir.join("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    for (name, subject) in [("server", "/CN=localhost"), ("client", "/O=acme/CN=alice")] {
        openssl(dir, &format!("req {key} -subj {subject} -keyout {name}.key -out {name}.csr"));
        openssl(
            dir,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                 -extfile ext -out {name}.pem"
            )
            .replace("  ", " "),
        );
    }
    true
}

async fn node(dir: &Path, port: u16) -> Node {
    const ROUTES: &[RouteDecl] = &[RouteDecl::new("who", Method::Get, "/who")];
    let who = register(Descriptor { routes: ROUTES, ..Descriptor::new("who", Phase::Api) }, || {
        Box::new(Fake(|cx: &mut Context| {
            cx.route("who", &Arc::new(()), |_, request: Request| async move {
                Response::ok(&request.peer.certificate)
            });
            Ok(Init::Ready)
        }))
    });
    let file = json!({
        "hosts": [format!("tcp://127.0.0.1:{port}")],
        "tlsverify": true,
        "tlscacert": dir.join("ca.pem"),
        "tlscert": dir.join("server.pem"),
        "tlskey": dir.join("server.key"),
    });
    start(&[who], file, Limits::default()).await.unwrap()
}

async fn ask(
    dir: &Path,
    port: u16,
    with_certificate: bool,
    alpn: &[u8],
) -> Result<(String, Vec<u8>), std::io::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = if with_certificate {
        let chain = vec![CertificateDer::from_pem_file(dir.join("client.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(dir.join("client.key")).unwrap();
        builder.with_client_auth_cert(chain, key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let chosen = stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
    if alpn == b"h2" {
        return Ok((String::new(), chosen));
    }
    stream.write_all(b"GET /who HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok((answer, chosen))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_clients_with_a_certificate_of_the_ca_are_served() {
    let dir = tempfile::tempdir().unwrap();
    if !certificates(dir.path()) {
        eprintln!("SKIPPED: there is no openssl program to make certificates with");
        return;
    }
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = probe.local_addr().unwrap().port();
    drop(probe);
    let node = node(dir.path(), port).await;

    let (answer, _) = within(5, ask(dir.path(), port, true, b"http/1.1")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("\"alice\""), "{answer}");
    let (_, chosen) = within(5, ask(dir.path(), port, true, b"h2")).await.unwrap();
    assert_eq!(chosen, b"h2");
    let refused = within(5, ask(dir.path(), port, false, b"http/1.1")).await;
    assert!(refused.is_err() || refused.as_ref().is_ok_and(|(a, _)| a.is_empty()), "{refused:?}");

    // Plain HTTP on the same port gets nowhere, and keeps nobody from being served.
    let mut plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    plain.write_all(b"GET /who HTTP/1.1\r\nHost: d\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = within(5, plain.read_to_end(&mut rest)).await;
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    within(5, ask(dir.path(), port, true, b"http/1.1")).await.unwrap();
    node.stop().await;
}
