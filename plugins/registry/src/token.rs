//! Tokens: how to get one, and those that are still good.
//!
//! Source: the distribution project's token authentication and OAuth2 token specifications.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use gantry_sdk::kinds::registry::Credentials;
use http::HeaderValue;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::answer::Refusal;
use crate::http::address::{Url, form};
use crate::http::challenge::Challenge;
use crate::http::client::{Answer, Client, ClientError};
use crate::http::proxy::secret;
use crate::login::LoginError;

/// What token servers know a container engine as.
const CLIENT_ID: &str = "docker";

/// How long a token is good unless its server says otherwise. Source: the token specification.
const LIFETIME: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What is taken off, so that a token does not expire on its way.
const MARGIN: Duration = Duration::from_secs(10);

/// The most tokens kept.
const MAX_TOKENS: usize = 1000;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To see whether credentials are good: there must be some, and an identity token is welcome.
    Login,
    /// To do something.
    Access,
}

/// What a token server gave.
pub(crate) struct Granted {
    /// To be shown to the registry.
    pub(crate) authorization: HeaderValue,
    /// The identity token: a new one, or the one we had.
    pub(crate) identity: String,
    lifetime: Duration,
}

/// What a token server answers. Others than these are of no interest.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<f64>,
}

/// The header for user and password; none if one of them is missing.
pub(crate) fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    if credentials.username.is_empty() || credentials.password.is_empty() {
        return None;
    }
    let pair = BASE64_STANDARD.encode(format!("{}:{}", credentials.username, credentials.password));
    secret(&format!("Basic {pair}"))
}

/// The header for the registry token of `credentials`; none if there is none.
///
/// # Errors
///
/// If it cannot be a header.
pub(crate) fn ready(
    registry: &Url,
    credentials: &Credentials,
) -> Result<Option<HeaderValue>, LoginError> {
    let token = &credentials.registry_token;
    if token.is_empty() {
        return Ok(None);
    }
    bearer(registry, token).map(Some)
}

fn bearer(registry: &Url, token: &str) -> Result<HeaderValue, LoginError> {
    secret(&format!("Bearer {token}")).ok_or_else(|| LoginError::Token {
        url: registry.clone(),
        why: "the token is not printable",
    })
}

/// Gets a token from the server that `challenge` of `registry` names.
///
/// # Errors
///
/// Why there is none.
pub(crate) async fn grant(
    client: &Client,
    registry: &Url,
    challenge: &Challenge,
    credentials: &Credentials,
    scopes: &[String],
    purpose: Purpose,
) -> Result<Granted, LoginError> {
    if let Some(authorization) = ready(registry, credentials)? {
        let identity = credentials.identity_token.clone();
        return Ok(Granted { authorization, identity, lifetime: LONGEST });
    }
    let realm = realm(registry, challenge)?;
    let answer = if credentials.identity_token.is_empty() {
        let basic = basic(credentials);
        if basic.is_none() && purpose == Purpose::Login {
            return Err(LoginError::NoCredentials(registry.clone()));
        }
        let realm = realm.with_query(&question(challenge, credentials, scopes, purpose));
        client.get(&realm, basic.as_ref()).await
    } else {
        client.post(&realm, refresh(challenge, credentials, scopes)).await
    };
    let no_answer = |source: ClientError| LoginError::NoAnswer {
        url: registry.clone(),
        source: Box::new(source),
    };
    read(registry, credentials, &answer.map_err(no_answer)?)
}

/// The token server, which must be as safe as the registry that names it.
fn realm(registry: &Url, challenge: &Challenge) -> Result<Url, LoginError> {
    let realm = Url::parse(challenge.get("realm"))
        .map_err(|source| LoginError::Realm { url: registry.clone(), source })?;
    if registry.tls && !realm.tls {
        return Err(LoginError::Downgrade { url: registry.clone(), realm: Box::new(realm) });
    }
    Ok(realm)
}

/// The query for somebody with a password, or for nobody. Names are in alphabetical order.
fn question<'a>(
    challenge: &'a Challenge,
    credentials: &'a Credentials,
    scopes: &'a [String],
    purpose: Purpose,
) -> Vec<(&'static str, &'a str)> {
    let mut query = Vec::new();
    if !credentials.username.is_empty() {
        query.push(("account", credentials.username.as_str()));
    }
    if purpose == Purpose::Login {
        query.extend([("client_id", CLIENT_ID), ("offline_token", "true")]);
    }
    query.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
    query.extend(service(challenge));
    query
}

/// The form for somebody with an identity token.
fn refresh(challenge: &Challenge, credentials: &Credentials, scopes: &[String]) -> String {
    let scope = scopes.join(" ");
    let mut fields = vec![
        ("client_id", CLIENT_ID),
        ("grant_type", "refresh_token"),
        ("refresh_token", credentials.identity_token.as_str()),
    ];
    if !scope.is_empty() {
        fields.push(("scope", &scope));
    }
    fields.extend(service(challenge));
    form(&fields)
}

fn service(challenge: &Challenge) -> Option<(&'static str, &str)> {
    Some(challenge.get("service")).filter(|name| !name.is_empty()).map(|name| ("service", name))
}

fn read(registry: &Url, credentials: &Credentials, answer: &Answer) -> Result<Granted, LoginError> {
    let wrong = |why| LoginError::Token { url: registry.clone(), why };
    if !(answer.status.is_success() || answer.status.is_redirection()) {
        let refusal = Box::new(Refusal::of(answer));
        return Err(LoginError::Refused { url: registry.clone(), refusal });
    }
    // A parser's message could show a part of a token.
    let token: Token = serde_json::from_slice(&answer.body)
        .map_err(|_| wrong("unable to decode token response"))?;
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let access = filled(token.access_token)
        .or_else(|| filled(token.token))
        .ok_or_else(|| wrong("authorization server did not include a token in the response"))?;
    let lifetime = token
        .expires_in
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(LIFETIME)
        .min(LONGEST);
    Ok(Granted {
        authorization: bearer(registry, &access)?,
        identity: filled(token.refresh_token).unwrap_or_else(|| credentials.identity_token.clone()),
        lifetime,
    })
}

/// What a token was given for, and to whom.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    realm: String,
    service: String,
    scopes: Vec<String>,
    who: [u8; 32],
}

impl Key {
    /// The key of what [`grant`] gives for these; secrets are in it as a hash only.
    pub(crate) fn new(challenge: &Challenge, credentials: &Credentials, scopes: &[String]) -> Self {
        let mut who = Sha256::new();
        for part in [&credentials.username, &credentials.password, &credentials.identity_token] {
            who.update((part.len() as u64).to_le_bytes());
            who.update(part);
        }
        Self {
            realm: challenge.get("realm").to_owned(),
            service: challenge.get("service").to_owned(),
            scopes: scopes.to_vec(),
            who: who.finalize().into(),
        }
    }
}

/// Tokens that are still good.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<Key, (HeaderValue, Instant)>>);

impl Tokens {
    /// The token for `key`.
    pub(crate) fn get(&self, key: &Key) -> Option<HeaderValue> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(key).filter(|(_, until)| Instant::now() < *until).map(|(token, _)| token.clone())
    }

    /// Keeps a token for as long as it is good.
    pub(crate) fn put(&self, key: Key, granted: &Granted) {
        let lifetime = granted.lifetime;
        let until = Instant::now() + lifetime.saturating_sub(MARGIN.min(lifetime / 4));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_TOKENS {
            all.retain(|_, (_, until)| Instant::now() < *until);
        }
        if all.len() >= MAX_TOKENS {
            all.clear();
        }
        all.insert(key, (granted.authorization.clone(), until));
    }

    /// Drops `token` if it is the one for `key`: the registry does not accept it.
    pub(crate) fn reject(&self, key: &Key, token: &HeaderValue) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(key).is_some_and(|(kept, _)| kept == token) {
            all.remove(key);
        }
    }
}
