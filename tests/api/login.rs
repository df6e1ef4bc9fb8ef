//! `docker login`: the daemon asks the registry.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use gantry_test_harness::registry::{PASSWORD, USER, certificate};
use gantry_test_harness::sandbox::in_network;
use gantry_test_harness::{
    Output, Registry, RegistrySetup, Setup, TestDaemon, TestResult, command, daemon_test,
    daemon_test_with, requires, wait_until,
};
use nix::sys::signal::Signal;
use serde_json::json;

/// An address of the sandbox that is none of loopback's.
const ADDRESS: &str = "10.77.0.1";

/// Debian's registry in the daemon's namespaces, on every address, with TLS if `tls` is given.
fn start(daemon: &TestDaemon, tls: Option<(PathBuf, PathBuf)>) -> Result<Registry> {
    let setup = RegistrySetup { auth: true, tls, ..RegistrySetup::default() };
    Registry::start(daemon.sandbox(), &daemon.path(""), &setup)
}

fn network(daemon: &TestDaemon) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", daemon.sandbox().init()))
}

fn login(daemon: &TestDaemon, password: &str, server: &str) -> Result<Output> {
    daemon.docker(["login", "--username", USER, "--password", password, server])
}

/// What the daemon has logged, which has no password in it.
fn no_secret_in_the_log(daemon: &TestDaemon) -> TestResult {
    let log = std::fs::read_to_string(daemon.path("daemon.log"))?;
    assert!(!log.contains(PASSWORD), "{log}");
    Ok(())
}

#[test]
fn a_registry_on_this_machine_checks_the_password() -> TestResult {
    requires!("docker-registry");
    daemon_test_with(Setup::arguments("--debug"), |daemon| {
        let registry = start(daemon, None)?;
        for server in ["127.0.0.1:5000", "http://127.0.0.1:5000/v2/"] {
            let said = login(daemon, PASSWORD, server)?.success()?;
            assert!(said.contains("Login Succeeded"), "{server}: {said}");
        }
        // The credentials were stored, so they are checked without being given.
        assert!(daemon.ok("login 127.0.0.1:5000")?.contains("Login Succeeded"));

        let said = login(daemon, "wrong", "127.0.0.1:5000")?.failure()?;
        let expected =
            "login attempt to http://127.0.0.1:5000/v2/ failed with status: 401 Unauthorized";
        assert!(said.contains(expected), "{said}");
        let body =
            json!({"username": USER, "password": "wrong", "serveraddress": "localhost:5000"});
        let answer = daemon.http("POST", "/auth", body.to_string().as_bytes())?;
        assert_eq!(answer.status, 401, "{}", answer.text());

        let body =
            json!({"username": USER, "password": PASSWORD, "serveraddress": "127.0.0.1:5000"});
        let answer = daemon.http("POST", "/v1.41/auth", body.to_string().as_bytes())?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()?, json!({"Status": "Login Succeeded"}));
        registry.stop(daemon.sandbox())?;

        let said = login(daemon, PASSWORD, "127.0.0.1:5000")?.failure()?;
        assert!(said.contains("cannot connect to 127.0.0.1:5000"), "{said}");
        no_secret_in_the_log(daemon)
    })
}

#[test]
fn a_registry_elsewhere_needs_tls_unless_the_configuration_says_otherwise() -> TestResult {
    requires!("docker-registry");
    daemon_test(|daemon| {
        daemon.sandbox().sh(&format!("ip address add {ADDRESS}/32 dev lo"))?;
        let registry = start(daemon, None)?;
        let server = format!("{ADDRESS}:5000");
        let said = login(daemon, PASSWORD, &server)?.failure()?;
        assert!(said.contains("cannot agree on TLS"), "{said}");

        let config = json!({"insecure-registries": [server]});
        std::fs::write(daemon.path("daemon.json"), config.to_string())?;
        daemon.signal(Signal::SIGHUP)?;
        wait_until("the new configuration counts", 10, || {
            Ok(login(daemon, PASSWORD, &server)?.status == 0)
        })?;
        registry.stop(daemon.sandbox())?;
        daemon.sandbox().sh(&format!("ip address del {ADDRESS}/32 dev lo"))?;
        Ok(())
    })
}

#[test]
fn certificates_of_an_operator_are_trusted() -> TestResult {
    requires!("docker-registry", "openssl");
    daemon_test(|daemon| {
        let directory = daemon.path("");
        let docker = daemon.path("etc");
        daemon.sandbox().sh(&format!("ip address add {ADDRESS}/32 dev lo"))?;
        let tls = certificate(daemon.sandbox(), &directory, "r", &format!("IP:{ADDRESS}"))?;
        let registry = start(daemon, Some(tls))?;
        let server = format!("{ADDRESS}:5000");
        let said = login(daemon, PASSWORD, &server)?.failure()?;
        assert!(said.contains("certificate"), "{said}");

        // `/etc` with more in it, for this sandbox only.
        let (etc, directory) = (docker.display(), directory.display());
        daemon.sandbox().sh(&format!(
            "mkdir {etc}; mount -t tmpfs tmpfs {etc}; mkdir -p {etc}/work; \
             mkdir -p {etc}/upper/docker/certs.d/{server}; \
             cp {directory}/r.crt {etc}/upper/docker/certs.d/{server}/ca.crt; \
             mount -t overlay overlay -o lowerdir=/etc,upperdir={etc}/upper,workdir={etc}/work /etc"
        ))?;
        let ended = login(daemon, PASSWORD, &server);
        daemon.sandbox().sh(&format!("umount /etc; umount {etc}"))?;
        assert!(ended?.success()?.contains("Login Succeeded"));
        registry.stop(daemon.sandbox())?;
        daemon.sandbox().sh(&format!("ip address del {ADDRESS}/32 dev lo"))?;
        Ok(())
    })
}

/// A registry with a token server, until it is dropped.
struct TokenRegistry {
    port: u16,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl TokenRegistry {
    fn start(daemon: &TestDaemon) -> Result<Self> {
        let listener = in_network(&network(daemon), || Ok(TcpListener::bind(("127.0.0.1", 0))?))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let done = Arc::new(AtomicBool::new(false));
        let is_done = done.clone();
        let thread = std::thread::spawn(move || {
            while !is_done.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => converse(stream, port)?,
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
            Ok(())
        });
        Ok(Self { port, done, thread: Some(thread) })
    }

    fn finish(mut self) -> TestResult {
        self.done.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it runs")?;
        thread.join().map_err(|_| anyhow!("the token server panicked"))?
    }
}

impl Drop for TokenRegistry {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// One request and its answer.
fn converse(mut stream: TcpStream, port: u16) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = vec![0; 16 * 1024];
    let length = stream.read(&mut request)?;
    // TLS is tried first.
    if request.first() == Some(&0x16) {
        stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")?;
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&request[..length]).into_owned();
    if text.starts_with("POST") && text.ends_with("\r\n\r\n") {
        let length = stream.read(&mut request)?;
        text += &String::from_utf8_lossy(&request[..length]);
    }
    Ok(stream.write_all(answer(port, &text)?.as_bytes())?)
}

fn answer(port: u16, request: &str) -> Result<String> {
    let target = request.split(' ').nth(1).unwrap_or_default();
    let is_allowed = request.to_lowercase().contains("authorization: bearer good");
    let (status, header, body) = match target {
        "/v2/" if is_allowed => ("200 OK", String::new(), "{}"),
        "/v2/" => {
            let realm = format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\"");
            ("401 Unauthorized", format!("WWW-Authenticate: {realm}\r\n"), "{}")
        }
        "/token" if request.contains("refresh_token=identity-1") => {
            ("200 OK", String::new(), r#"{"access_token":"good"}"#)
        }
        _ if target.starts_with("/token?") && target.contains("account=ali") => {
            ("200 OK", String::new(), r#"{"token":"good","refresh_token":"identity-1"}"#)
        }
        _ if target.starts_with("/token") => (
            "401 Unauthorized",
            "Content-Type: application/json\r\n".to_owned(),
            r#"{"details":"incorrect username or password"}"#,
        ),
        _ => bail!("unexpected request: {request}"),
    };
    let length = body.len();
    Ok(format!("HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\n\r\n{body}"))
}

#[test]
fn a_token_server_gives_an_identity_token_and_takes_it() -> TestResult {
    daemon_test(|daemon| {
        let server = TokenRegistry::start(daemon)?;
        let address = format!("127.0.0.1:{}", server.port);
        assert!(login(daemon, PASSWORD, &address)?.success()?.contains("Login Succeeded"));
        let stored = std::fs::read_to_string(daemon.path("docker/config.json"))?;
        let stored: serde_json::Value = serde_json::from_str(&stored)?;
        assert_eq!(stored["auths"][&address]["identitytoken"], "identity-1");

        let body = json!({"identitytoken": "identity-1", "serveraddress": address});
        let reply = daemon.http("POST", "/auth", body.to_string().as_bytes())?;
        let expected = json!({"Status": "Login Succeeded", "IdentityToken": "identity-1"});
        assert_eq!((reply.status, reply.json()?), (200, expected));

        let said = daemon.docker(["login", "-u", "eve", "-p", "x", &address])?.failure()?;
        assert!(said.contains("unauthorized: incorrect username or password"), "{said}");
        server.finish()
    })
}

#[test]
fn addresses_that_cannot_be() -> TestResult {
    daemon_test(|daemon| {
        for server in ["ftp://reg.example", "..", "a b", "https://eve:secret@reg.example", "x:0"] {
            let body = json!({"username": "u", "password": "p", "serveraddress": server});
            let answer = daemon.http("POST", "/auth", body.to_string().as_bytes())?;
            assert_eq!(answer.status, 400, "{server}: {}", answer.text());
            let message = answer.message();
            assert!(message.contains("invalid server address"), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
        let refused =
            refused_configuration(daemon, json!({"insecure-registries": ["a/b", "x:0"]}))?;
        for part in ["insecure-registries", "\"a/b\"", "\"x:0\""] {
            assert!(refused.contains(part), "{refused}");
        }
        Ok(())
    })
}

/// What the daemon says to a configuration that it must not accept.
fn refused_configuration(daemon: &TestDaemon, config: serde_json::Value) -> Result<String> {
    let file = daemon.path("bad.json");
    std::fs::write(&file, config.to_string())?;
    let arguments =
        ["--validate".to_owned(), "--config-file".to_owned(), file.display().to_string()];
    command::run(daemon.daemon_command(&arguments)?, b"", command::DEADLINE)?.failure()
}
