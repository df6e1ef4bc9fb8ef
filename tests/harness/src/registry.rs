//! Debian's `docker-registry` in a sandbox: a real registry to log in to, pull from and push to.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::command;
use crate::sandbox::{Sandbox, in_network};
use crate::{TestResult, wait_until};

/// The user that a registry with [`RegistrySetup::auth`] lets in.
pub const USER: &str = "ali";
/// His password.
pub const PASSWORD: &str = "open-sesame-7";

/// [`USER`] and [`PASSWORD`] as `htpasswd -B` writes them, at bcrypt's lowest cost.
const HTPASSWD: &str = "ali:$2b$04$smDB6kqA/MHlSkgoBnECLOj/cMZiJHb8pXSR128gHGZrNPVCS3tla\n";

/// How to start a registry, where the defaults do not do.
#[derive(Clone, Debug)]
pub struct RegistrySetup {
    /// The port, on every address of the sandbox.
    pub port: u16,
    /// Whether it asks for [`USER`] and [`PASSWORD`].
    pub auth: bool,
    /// Certificate and key, both PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Where it keeps content; otherwise in its memory.
    pub root: Option<PathBuf>,
    /// The registry it is a cache of.
    pub mirror_of: Option<String>,
}

impl Default for RegistrySetup {
    fn default() -> Self {
        Self { port: 5000, auth: false, tls: None, root: None, mirror_of: None }
    }
}

/// A running registry. It ends with the sandbox at the latest.
#[derive(Debug)]
pub struct Registry {
    nsenter: Child,
    pid_file: PathBuf,
    port: u16,
}

impl Registry {
    /// Starts it in `sandbox`, with its files in `directory`.
    ///
    /// # Errors
    ///
    /// If it does not listen after 20 s.
    pub fn start(sandbox: &Sandbox, directory: &Path, setup: &RegistrySetup) -> Result<Self> {
        let port = setup.port;
        let file = |name: &str| directory.join(format!("registry-{port}.{name}"));
        let mut http = json!({"addr": format!(":{port}"), "secret": "x"});
        if let Some((certificate, key)) = &setup.tls {
            http["tls"] = json!({"certificate": certificate, "key": key});
        }
        let mut storage = match &setup.root {
            None => json!({"inmemory": {}}),
            Some(root) => json!({"filesystem": {"rootdirectory": root}}),
        };
        storage["delete"] = json!({"enabled": true});
        // JSON is YAML.
        let mut config = json!({
            "version": "0.1", "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": storage, "http": http,
        });
        if setup.auth {
            std::fs::write(file("htpasswd"), HTPASSWD)?;
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": file("htpasswd")}});
        }
        if let Some(remote) = &setup.mirror_of {
            config["proxy"] = json!({"remoteurl": remote});
        }
        std::fs::write(file("yml"), config.to_string())?;
        let pid_file = file("pid");
        let script = format!(
            "echo $$ > {}; exec docker-registry serve {}",
            pid_file.display(),
            file("yml").display()
        );
        let mut sh = sandbox.command("sh");
        sh.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let nsenter = sh.spawn()?;
        let network = PathBuf::from(format!("/proc/{}/ns/net", sandbox.init()));
        wait_until("the registry listens", 20, || {
            in_network(&network, || Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()))
        })?;
        Ok(Self { nsenter, pid_file, port })
    }

    /// `host:port` on the sandbox's loopback.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends it, so that a leak check does not find it.
    ///
    /// # Errors
    ///
    /// If it does not end.
    pub fn stop(mut self, sandbox: &Sandbox) -> TestResult {
        sandbox.sh(&format!("kill -9 $(cat {})", self.pid_file.display()))?;
        command::wait(&mut self.nsenter, Duration::from_secs(10))?.context("it does not end")?;
        Ok(())
    }
}

/// A certificate for `name` (`IP:10.0.0.1`, `DNS:reg.example`) that vouches for itself, as
/// `<stem>.crt` and `<stem>.key` in `directory`.
///
/// # Errors
///
/// What `openssl` reported.
pub fn certificate(
    sandbox: &Sandbox,
    directory: &Path,
    stem: &str,
    name: &str,
) -> Result<(PathBuf, PathBuf)> {
    let file = |end: &str| directory.join(format!("{stem}.{end}"));
    let (crt, key) = (file("crt"), file("key"));
    sandbox.sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
         -subj /CN=registry -addext subjectAltName={name} -keyout {} -out {} 2>/dev/null",
        key.display(),
        crt.display()
    ))?;
    ensure!(crt.exists(), "openssl made no certificate");
    Ok((crt, key))
}
