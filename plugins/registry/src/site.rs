//! Registries by address: how to trust and reach each, and what it said when it was first asked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_sdk::{Error, Result};
use http::header::HeaderValue;
use http::{Method, StatusCode};
use tokio::sync::OnceCell;

use crate::error::RegistryError;
use crate::http::address::Url;
use crate::http::challenge::{Challenge, challenges};
use crate::http::client::{Client, Patience};
use crate::http::proxy::Proxies;
use crate::http::tls;

/// How long what is known of a registry is believed: certificates may be put down meanwhile.
const MAX_AGE: Duration = Duration::from_secs(60);
/// The most registries known at once.
const MAX_SITES: usize = 256;

/// How to speak to a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    /// With TLS.
    Tls,
    /// Without.
    Plain,
    /// With TLS if it can, without if not.
    Either,
}

/// Where a registry is and how far it is trusted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// Host and, where written, port.
    pub(crate) authority: String,
    /// Before `/v2/`; begins and ends with a slash.
    pub(crate) prefix: String,
    /// With or without TLS.
    pub(crate) scheme: Scheme,
    /// Whether every certificate will do.
    pub(crate) insecure: bool,
    /// One more file of certificates to trust.
    pub(crate) ca: Option<PathBuf>,
}

/// What a registry says about itself.
#[derive(Debug)]
pub(crate) struct Contact {
    /// Its `/v2/`.
    pub(crate) base: Url,
    /// How it wants to be asked.
    pub(crate) challenges: Arc<Vec<Challenge>>,
}

/// One registry.
pub(crate) struct Site {
    /// Talks to it.
    pub(crate) client: Client,
    place: Place,
    contact: OnceCell<Contact>,
}

impl Site {
    /// What it says about itself; asked once.
    ///
    /// # Errors
    ///
    /// If it cannot be asked.
    pub(crate) async fn contact(&self) -> Result<&Contact, RegistryError> {
        self.contact
            .get_or_try_init(|| async {
                match self.place.scheme {
                    Scheme::Tls => self.ping(true).await,
                    Scheme::Plain => self.ping(false).await,
                    Scheme::Either => match self.ping(true).await {
                        Err(error) if error.is_connection() => self.ping(false).await,
                        result => result,
                    },
                }
            })
            .await
    }

    async fn ping(&self, tls: bool) -> Result<Contact, RegistryError> {
        let Place { authority, prefix, .. } = &self.place;
        let base = Url::new(tls, authority, &format!("{prefix}v2/")).map_err(|e| {
            RegistryError::Local(Error::invalid("invalid registry address").caused_by(e))
        })?;
        let no_answer = |source| RegistryError::no_answer(&Method::GET, &base, source);
        let answer = self.client.get(&base, None).await.map_err(no_answer)?;
        // Whatever else it says, what is asked for later has its own answer.
        let challenges = match answer.status {
            StatusCode::UNAUTHORIZED => challenges(&answer.headers),
            _ => Vec::new(),
        };
        Ok(Contact { base, challenges: Arc::new(challenges) })
    }
}

/// The registries known.
pub(crate) struct Sites {
    agent: HeaderValue,
    proxies: Arc<Proxies>,
    certificates: PathBuf,
    patience: Patience,
    known: Mutex<HashMap<Place, (Instant, Arc<Site>)>>,
}

impl Sites {
    /// None yet. Certificates of each are below `certificates`.
    pub(crate) fn new(
        agent: HeaderValue,
        proxies: Arc<Proxies>,
        certificates: PathBuf,
        patience: Patience,
    ) -> Self {
        Self { agent, proxies, certificates, patience, known: Mutex::default() }
    }

    /// The registry at `place`.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` if its certificates cannot be used.
    pub(crate) async fn at(&self, place: Place) -> Result<Arc<Site>> {
        // One that could not be asked may be trusted otherwise now.
        if let Some((since, site)) = self.known().get(&place)
            && since.elapsed() < MAX_AGE
            && site.contact.initialized()
        {
            return Ok(site.clone());
        }
        let directory = self.certificates.join(&place.authority);
        let client = self.client(&directory, place.ca.clone(), place.insecure).await?;
        let site = Arc::new(Site { client, place: place.clone(), contact: OnceCell::new() });
        let mut known = self.known();
        known.retain(|_, (since, _)| since.elapsed() < MAX_AGE);
        if known.len() >= MAX_SITES {
            known.clear();
        }
        known.insert(place, (Instant::now(), site.clone()));
        Ok(site)
    }

    /// Forgets everything: rules have changed.
    pub(crate) fn forget(&self) {
        self.known().clear();
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<Place, (Instant, Arc<Site>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(
        &self,
        directory: &Path,
        ca: Option<PathBuf>,
        insecure: bool,
    ) -> Result<Client> {
        let directory = directory.to_owned();
        let config =
            tokio::task::spawn_blocking(move || tls::client(&directory, ca.as_deref(), insecure))
                .await?
                .map_err(|e| {
                    Error::invalid("cannot use the certificates for a registry").caused_by(e)
                })?;
        let client = Client::new(config, self.agent.clone(), self.proxies.clone());
        Ok(client.patient(self.patience))
    }
}
