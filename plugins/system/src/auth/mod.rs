//! `POST /auth`: whether a registry accepts somebody's credentials.
//!
//! # Map
//!
//! - [`address`], [`challenge`], [`answer`]: what clients and servers write, read with suspicion
//! - [`insecure`], [`tls`]: whom to trust, and how far
//! - [`client`]: HTTP within bounds
//! - [`login`]: one attempt
//!
//! # Invariants
//!
//! 1. Credentials go to the registry they were given for and to the token server it names; no
//!    redirect takes them elsewhere, and a registry with TLS cannot send them over a connection
//!    without.
//! 2. A refusal ends the login: the same credentials are not tried again without TLS.
//! 3. Nothing that is secret is in an error or in the log.
//!
//! # Not here
//!
//! Proxies. Pulling and pushing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_sdk::api::{AuthConfig, AuthResponse};
use gantry_sdk::{Error, ErrorKind, Request, Response, Result};
use http::HeaderValue;

use crate::State;
use address::Url;
use client::Client;
use insecure::Insecure;
use login::{Credentials, LoginError};

pub(crate) mod address;
pub(crate) mod answer;
pub(crate) mod challenge;
pub(crate) mod client;
pub(crate) mod insecure;
pub(crate) mod login;
pub(crate) mod tls;

/// The registry meant when a client names none, under the names it goes by.
const DEFAULT: [&str; 2] = ["index.docker.io", "docker.io"];
/// Where that registry is.
const DEFAULT_HOST: &str = "registry-1.docker.io";

/// How long a login may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Status 200 with an identity token if the registry gives one; 401 if it does not accept the
/// credentials; 503 if it cannot be asked.
pub(crate) async fn auth(state: Arc<State>, mut request: Request) -> Result<Response> {
    let config: AuthConfig = request.json().await?;
    let server = config.serveraddress.clone();
    let host = if server.is_empty() {
        DEFAULT[0].to_owned()
    } else {
        address::registry(&server)
            .map_err(|e| Error::invalid("invalid server address").caused_by(e))?
    };
    let value = state.kernel.config(insecure::KEY);
    let insecure = Insecure::parse(value.as_ref()).map_err(|e| Error::invalid(e.join("; ")))?;
    let agent = format!("gantry/{}", state.host.version);
    let work = registry(&host, &insecure, &agent, Credentials::from(config));
    let work = tokio::time::timeout(PATIENCE, work);
    let Some(ended) = request.gone.run_until_cancelled(work).await else {
        return Err(Error::new(ErrorKind::Deadline, format!("nobody waits for login to {host}")));
    };
    let identity_token = ended.unwrap_or_else(|_| {
        let text = format!("login to {host} was not over after {} s", PATIENCE.as_secs());
        Err(Error::new(ErrorKind::Deadline, text))
    })?;
    Response::ok(&AuthResponse { identity_token, status: "Login Succeeded".into() })
}

/// Logs in to the registry `host`: with TLS, and if it may be insecure and speaks none, without.
async fn registry(
    host: &str,
    insecure: &Insecure,
    agent: &str,
    credentials: Credentials,
) -> Result<String> {
    let is_default = DEFAULT.iter().any(|name| name.eq_ignore_ascii_case(host));
    let host = if is_default { DEFAULT_HOST } else { host };
    let is_insecure = !is_default && insecure.covers(host).await;
    let directory = Path::new(tls::CERTIFICATES).join(host);
    let client = client(directory, is_insecure, agent).await?;
    let url = |tls| {
        Url::new(tls, host, "/v2/")
            .map_err(|e| Error::invalid("invalid server address").caused_by(e))
    };
    match login::login(&client, &url(true)?, &credentials).await {
        Err(error) if is_insecure && error.is_connection() => {
            tracing::debug!(registry = host, error = %told(error), "Logging in without TLS.");
            login::login(&client, &url(false)?, &credentials).await.map_err(told)
        }
        result => result.map_err(told),
    }
}

async fn client(directory: PathBuf, insecure: bool, agent: &str) -> Result<Client> {
    let agent = HeaderValue::from_str(agent)
        .map_err(|e| Error::internal("cannot name ourselves to a registry", e))?;
    let config = tokio::task::spawn_blocking(move || tls::client(&directory, insecure))
        .await?
        .map_err(|e| Error::invalid("cannot log in").caused_by(e))?;
    Ok(Client::new(config, agent))
}

fn told(error: LoginError) -> Error {
    let kind = error.kind();
    // The message of an SDK error is that of the outermost; its causes follow by themselves.
    let text = error.to_string();
    match error {
        LoginError::NoAnswer { source, .. } => Error::new(kind, text).caused_by(source),
        LoginError::Realm { source, .. } => Error::new(kind, text).caused_by(source),
        _ => Error::new(kind, text),
    }
}

#[cfg(test)]
mod tests;
