//! A registry and somebody who asks it: requests with the right authorization.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use gantry_sdk::kinds::registry::Credentials;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, StatusCode};

use crate::answer::Refusal;
use crate::error::RegistryError;
use crate::http::address::Url;
use crate::http::body::Body;
use crate::http::challenge::{Challenge, challenges};
use crate::http::client::{Call, ClientError, MAX_BODY, Reply};
use crate::login::LoginError;
use crate::site::Site;
use crate::token::{self, Key, Purpose, Tokens};

/// What is asked of a registry.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a Url,
    pub(crate) headers: HeaderMap,
    /// What a token must be good for.
    pub(crate) scopes: &'a [String],
    pub(crate) body: Body,
}

impl<'a> Ask<'a> {
    /// A request without body or headers.
    pub(crate) fn new(method: Method, url: &'a Url, scopes: &'a [String]) -> Self {
        let body = Body::Whole(Bytes::new());
        Self { method, url, headers: HeaderMap::new(), scopes, body }
    }

    /// The same request with one more header.
    #[must_use]
    pub(crate) fn with(mut self, name: http::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// A registry as one client may use it.
pub(crate) struct Endpoint {
    site: Arc<Site>,
    credentials: Credentials,
    tokens: Arc<Tokens>,
    /// How the registry wants to be asked, if it has said so since the first contact.
    learned: Mutex<Option<Arc<Vec<Challenge>>>>,
    /// One asks for a token at a time, the others then have it.
    renewing: tokio::sync::Mutex<()>,
    /// Whether others are asked before it.
    pub(crate) is_mirror: bool,
    /// Whether it could not be reached, so that a mirror is not tried again by the same session.
    pub(crate) is_down: AtomicBool,
}

/// What is shown to a registry.
struct Shown {
    value: HeaderValue,
    /// Of a token that could be renewed.
    key: Option<Key>,
}

impl Endpoint {
    pub(crate) fn new(
        site: Arc<Site>,
        credentials: Credentials,
        tokens: Arc<Tokens>,
        is_mirror: bool,
    ) -> Self {
        Self {
            site,
            credentials,
            tokens,
            learned: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
            is_mirror,
            is_down: AtomicBool::new(false),
        }
    }

    /// The address of `path`, which is below `/v2/`.
    ///
    /// # Errors
    ///
    /// If the registry cannot be asked where it is.
    pub(crate) async fn url(&self, path: &str) -> Result<Url, RegistryError> {
        let base = &self.site.contact().await?.base;
        Ok(base.at(format!("{}{path}", base.target)))
    }

    /// One request. Redirects of reading ones are followed; a token that is not accepted is renewed once.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is "unauthorized"; every other answer is returned.
    pub(crate) async fn ask(&self, ask: Ask<'_>) -> Result<Reply, RegistryError> {
        let contact = self.site.contact().await?;
        let is_home = ask.url.has_origin_of(&contact.base);
        let known = self.learned().clone().unwrap_or_else(|| contact.challenges.clone());
        let shown = if is_home {
            self.authorization(&contact.base, &known, ask.scopes).await?
        } else {
            None
        };
        let Ask { method, url, headers, scopes, body } = ask;
        let spare = body.again();
        let reply = self.send(&method, url, &headers, shown.as_ref(), body).await?;
        let is_challenge =
            reply.status == StatusCode::UNAUTHORIZED && reply.url.has_origin_of(&contact.base);
        if !is_challenge || !is_home {
            return Ok(reply);
        }
        let answer = reply.whole(MAX_BODY).await.map_err(no_answer(&method, url))?;
        let all = Arc::new(challenges(&answer.headers));
        *self.learned() = Some(all.clone());
        let had_token = shown.as_ref().is_some_and(|shown| shown.key.is_some());
        if let Some(Shown { value, key: Some(key) }) = &shown {
            self.tokens.reject(key, value);
        }
        let mut refusal = Refusal::of(&answer);
        let Some(body) = spare else {
            refusal.is_transient |= had_token; // there will be another one
            return Err(RegistryError::Refused(refusal));
        };
        let renewed = self.authorization(&contact.base, &all, scopes).await?;
        let is_new = renewed
            .as_ref()
            .is_some_and(|new| shown.as_ref().is_none_or(|old| old.value != new.value));
        if !is_new {
            let wants_basic = all.iter().any(|challenge| challenge.scheme == "basic");
            if renewed.is_none() && wants_basic {
                return Err(LoginError::NoCredentials(contact.base.clone()).into());
            }
            return Err(RegistryError::Refused(refusal));
        }
        let reply = self.send(&method, url, &headers, renewed.as_ref(), body).await?;
        if reply.status != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        Err(refused(reply).await)
    }

    async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        shown: Option<&Shown>,
        body: Body,
    ) -> Result<Reply, RegistryError> {
        let call = Call {
            headers: headers.clone(),
            authorization: shown.map(|shown| &shown.value),
            ..Call::new(method.clone(), url)
        };
        let client = &self.site.client;
        let reply = match *method {
            Method::GET | Method::HEAD => client.follow(&call).await,
            _ => client.send(&call, body).await,
        };
        reply.map_err(no_answer(method, url))
    }

    async fn authorization(
        &self,
        base: &Url,
        challenges: &[Challenge],
        scopes: &[String],
    ) -> Result<Option<Shown>, RegistryError> {
        let plain = |value| Shown { value, key: None };
        if let Some(value) = token::ready(base, &self.credentials)? {
            return Ok(Some(plain(value)));
        }
        let of = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        if let Some(challenge) = of("bearer") {
            return self.token(base, challenge, scopes).await.map(Some);
        }
        if of("basic").is_some() || challenges.is_empty() {
            let needed = !challenges.is_empty();
            return Ok(token::basic(&self.credentials).filter(|_| needed).map(plain));
        }
        let schemes: Vec<_> = challenges.iter().map(|c| c.scheme.as_str()).collect();
        Err(LoginError::Scheme { url: base.clone(), schemes: schemes.join(", ") }.into())
    }

    async fn token(
        &self,
        base: &Url,
        challenge: &Challenge,
        scopes: &[String],
    ) -> Result<Shown, RegistryError> {
        let key = Key::new(challenge, &self.credentials, scopes);
        if let Some(value) = self.tokens.get(&key) {
            return Ok(Shown { value, key: Some(key) });
        }
        let _alone = self.renewing.lock().await;
        if let Some(value) = self.tokens.get(&key) {
            return Ok(Shown { value, key: Some(key) });
        }
        let client = &self.site.client;
        let granted =
            token::grant(client, base, challenge, &self.credentials, scopes, Purpose::Access)
                .await?;
        self.tokens.put(key.clone(), &granted);
        Ok(Shown { value: granted.authorization, key: Some(key) })
    }

    fn learned(&self) -> std::sync::MutexGuard<'_, Option<Arc<Vec<Challenge>>>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_answer(method: &Method, url: &Url) -> impl FnOnce(ClientError) -> RegistryError {
    move |source| RegistryError::no_answer(method, url, source)
}

/// Why `reply`, which is no success, is none.
pub(crate) async fn refused(reply: Reply) -> RegistryError {
    let url = reply.url.clone();
    match reply.whole(MAX_BODY).await {
        Ok(answer) => RegistryError::Refused(Refusal::of(&answer)),
        Err(source) => RegistryError::no_answer(&Method::GET, &url, source),
    }
}
