//! What all sessions share, and where a name leads by the rules.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use gantry_sdk::kinds::registry::{Access, Credentials};
use gantry_sdk::reference::Reference;
use gantry_sdk::{Error, Result};

use crate::endpoint::Endpoint;
use crate::http::address::Url;
use crate::settings::{DEFAULT, DEFAULT_HOST, Rules, Settings, canonical};
use crate::site::{Place, Scheme, Sites};
use crate::token::Tokens;

/// How long to wait between attempts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// After the first failure; twice as long after each further one.
    pub(crate) first: Duration,
    /// The longest.
    pub(crate) longest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), longest: Duration::from_secs(20) }
    }
}

impl Pace {
    /// The wait after `failures` failures in a row: at least as long as the registry asked for, and not quite the same
    /// for everybody.
    pub(crate) fn wait(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let most = doubled.min(self.longest);
        let jittered = most.mul_f64(rand::random::<f64>().mul_add(0.5, 0.5));
        asked.map_or(jittered, |asked| asked.max(jittered))
    }
}

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) settings: ArcSwap<Settings>,
    pub(crate) rules: Rules,
    pub(crate) sites: Sites,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) pace: Pace,
}

impl Shared {
    /// Where the registry `host` is and how far it is trusted; `path` is a repository in it, or empty.
    ///
    /// # Errors
    ///
    /// `Forbidden` if a rule blocks it; `InvalidArgument` if it is no host.
    pub(crate) async fn origin(&self, host: &str, path: &str) -> Result<Place> {
        if let Some((rule, true)) = self.rules.find(host, path, |rule| rule.blocked) {
            let slash = if path.is_empty() { "" } else { "/" };
            return Err(Error::forbidden(format!(
                "registry {host}{slash}{path} is blocked by the rule {rule:?} of the daemon's configuration"
            )));
        }
        let is_default = canonical(host) == DEFAULT;
        let authority = if is_default { DEFAULT_HOST } else { host };
        Url::new(true, authority, "/")
            .map_err(|e| Error::invalid("invalid registry address").caused_by(e))?;
        let insecure = self.is_insecure(host, path, is_default).await;
        let scheme = if insecure { Scheme::Either } else { Scheme::Tls };
        Ok(self.place(authority, host, path, "/".into(), scheme, insecure))
    }

    async fn is_insecure(&self, host: &str, path: &str, is_default: bool) -> bool {
        match self.rules.find(host, path, |rule| rule.insecure) {
            Some((_, insecure)) => insecure,
            None => !is_default && self.settings.load_full().insecure.covers(host).await,
        }
    }

    fn place(
        &self,
        authority: &str,
        host: &str,
        path: &str,
        prefix: String,
        scheme: Scheme,
        insecure: bool,
    ) -> Place {
        let ca = self.rules.find(host, path, |rule| rule.ca.clone()).map(|(_, ca)| ca);
        Place { authority: authority.to_ascii_lowercase(), prefix, scheme, insecure, ca }
    }

    /// The mirrors for a repository, in the order in which they are asked.
    fn mirrors(&self, host: &str, path: &str) -> Vec<Url> {
        match self.rules.find(host, path, |rule| rule.mirrors.as_ref()) {
            Some((_, mirrors)) => mirrors.clone(),
            None if canonical(host) == DEFAULT => self.settings.load().mirrors.clone(),
            None => Vec::new(),
        }
    }

    /// Whom to ask for `name`: its mirrors, which are never shown anybody's credentials, then its registry. Only the
    /// registry itself is written to.
    ///
    /// # Errors
    ///
    /// As [`origin`](Self::origin); `InvalidArgument` if certificates cannot be used.
    pub(crate) async fn endpoints(
        &self,
        name: &Reference,
        access: Access,
        credentials: &Credentials,
    ) -> Result<Vec<Arc<Endpoint>>> {
        let (host, path) = (name.domain(), name.path());
        let origin = self.origin(host, path).await?;
        let mut all = Vec::new();
        let mirrors = match access {
            Access::Pull => self.mirrors(host, path),
            Access::Push => Vec::new(),
        };
        for url in mirrors {
            let insecure = self.is_insecure(&url.authority, path, false).await;
            let scheme = if url.tls { Scheme::Tls } else { Scheme::Plain };
            let at = &url.authority;
            let place = self.place(at, at, path, url.target.clone(), scheme, insecure);
            match self.sites.at(place).await {
                Ok(site) => all.push(self.endpoint(site, &Credentials::default(), true)),
                Err(error) => {
                    tracing::warn!(mirror = %url, error = %error.chain(), "A mirror cannot be used.");
                }
            }
        }
        all.push(self.endpoint(self.sites.at(origin).await?, credentials, false));
        Ok(all)
    }

    fn endpoint(
        &self,
        site: Arc<crate::site::Site>,
        credentials: &Credentials,
        is_mirror: bool,
    ) -> Arc<Endpoint> {
        Arc::new(Endpoint::new(site, credentials.clone(), self.tokens.clone(), is_mirror))
    }
}
