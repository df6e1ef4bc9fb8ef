//! `POST /auth`: whether a registry accepts somebody's credentials.

use std::sync::Arc;
use std::time::Duration;

use gantry_sdk::api::{AuthConfig, AuthResponse};
use gantry_sdk::kinds::registry::Credentials;
use gantry_sdk::{Error, ErrorKind, Request, Response, Result};

use crate::http::address::{self, Url};
use crate::login::login;
use crate::settings::DEFAULT;
use crate::shared::Shared;
use crate::site::Scheme;

/// How long a login may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Status 200 with an identity token if the registry gives one; 401 if it does not accept the
/// credentials; 403 if a rule blocks it; 503 if it cannot be asked.
pub(crate) async fn auth(shared: Arc<Shared>, mut request: Request) -> Result<Response> {
    let config: AuthConfig = request.json().await?;
    let server = config.serveraddress.clone();
    let host = if server.is_empty() {
        DEFAULT.to_owned()
    } else {
        address::registry(&server)
            .map_err(|e| Error::invalid("invalid server address").caused_by(e))?
    };
    let work = tokio::time::timeout(PATIENCE, registry(&shared, &host, config.into()));
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
async fn registry(shared: &Shared, host: &str, credentials: Credentials) -> Result<String> {
    let place = shared.origin(host, "").await?;
    let url = |tls| {
        Url::new(tls, &place.authority, "/v2/")
            .map_err(|e| Error::invalid("invalid server address").caused_by(e))
    };
    let may_be_plain = place.scheme == Scheme::Either;
    let site = shared.sites.at(place.clone()).await?;
    match login(&site.client, &url(true)?, &credentials).await {
        Err(error) if may_be_plain && error.is_connection() => {
            tracing::debug!(registry = host, error = %error, "Logging in without TLS.");
            Ok(login(&site.client, &url(false)?, &credentials).await?)
        }
        result => Ok(result?),
    }
}
