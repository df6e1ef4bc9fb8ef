//! The store: networks by name and id, and the sandbox of every running container.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use gantry_sdk::events::{Event, EventBus};
use gantry_sdk::kinds::ipam::IpamDriver;
use gantry_sdk::kinds::network::{EndpointSpec, Joined, Network, NetworkDriver};
use gantry_sdk::kinds::networks::{
    EndpointStatus, NetworkStore, Sandbox, SandboxSpec, SandboxStatus,
};
use gantry_sdk::registry::Registry;
use gantry_sdk::{Ctx, Error, Result};
use tokio::sync::OnceCell;

use crate::config::Config;
use crate::record::Record;
use crate::sandbox;

/// A network of this daemon.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    /// Set once its driver has made it.
    made: OnceCell<()>,
}

/// What a container holds of the network while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) name: String,
    pub(crate) entry: Arc<Entry>,
    pub(crate) status: SandboxStatus,
    /// None in the host's network and without one.
    pub(crate) endpoint: Option<(EndpointSpec, Joined)>,
}

/// The network store.
pub(crate) struct Store {
    pub(crate) config: Config,
    pub(crate) ipam: Arc<dyn IpamDriver>,
    registry: Arc<Registry>,
    events: EventBus,
    networks: Vec<Arc<Entry>>,
    sandboxes: Mutex<HashMap<String, Held>>,
}

impl Store {
    pub(crate) fn new(
        config: Config,
        ipam: Arc<dyn IpamDriver>,
        registry: Arc<Registry>,
        events: EventBus,
        records: Vec<Record>,
    ) -> Self {
        let mut records = records;
        records.sort_by(|a, b| (&a.created, &a.id).cmp(&(&b.created, &b.id)));
        let entry = |record| Arc::new(Entry { record, made: OnceCell::new() });
        let networks = records.into_iter().map(entry).collect();
        Self { config, ipam, registry, events, networks, sandboxes: Mutex::default() }
    }

    fn sandboxes(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All networks, oldest first.
    pub(crate) fn networks(&self) -> &[Arc<Entry>] {
        &self.networks
    }

    /// By id, by name, or by the beginning of an id that only one has.
    pub(crate) fn find(&self, wanted: &str) -> Result<Arc<Entry>> {
        // What clients send when the user named no network.
        let wanted = if wanted == "default" || wanted.is_empty() { "bridge" } else { wanted };
        let all = || self.networks.iter();
        let exact = all()
            .find(|e| e.record.id.as_str() == wanted)
            .or_else(|| all().find(|e| e.record.name == wanted));
        if let Some(entry) = exact {
            return Ok(entry.clone());
        }
        let mut beginning = all().filter(|e| e.record.id.as_str().starts_with(wanted));
        match (beginning.next(), beginning.next()) {
            (Some(entry), None) => Ok(entry.clone()),
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "network {wanted:.80} is ambiguous ({} matches found on ID prefix)",
                2 + beginning.count()
            ))),
            (None, _) => Err(Error::not_found(format!("network {wanted:.80} not found"))),
        }
    }

    /// The driver of a network.
    pub(crate) fn driver(&self, record: &Record) -> Result<Arc<dyn NetworkDriver>> {
        self.registry.get::<Network>(&record.driver)
    }

    /// Lets the driver make a network, once; a failure is tried again by the next caller.
    pub(crate) async fn ensure_made(&self, cx: &Ctx, entry: &Entry) -> Result<()> {
        let make = || async {
            let driver = self.driver(&entry.record)?;
            driver.create(cx, &entry.record.spec()).await
        };
        match entry.made.get_or_try_init(make).await {
            Ok(()) => Ok(()),
            Err(e) => Err(e.context(format!("network {} cannot be used", entry.record.name))),
        }
    }

    /// Takes a network down that is not wanted in this form any more.
    pub(crate) async fn take_down(&self, cx: &Ctx, record: &Record) {
        let deleted = match self.driver(record) {
            Ok(driver) => driver.delete(cx, &record.spec()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = deleted {
            let (network, error) = (&record.name, error.chain());
            tracing::warn!(network, error, "The network's old form is left over.");
        }
    }

    /// Who is in a network: container, name, place.
    pub(crate) fn members(&self, entry: &Entry) -> Vec<(String, String, EndpointStatus)> {
        let name = &entry.record.name;
        self.sandboxes()
            .iter()
            .filter(|(_, held)| held.entry.record.id == entry.record.id)
            .filter_map(|(container, held)| {
                let status = held.status.networks.get(name)?.clone();
                Some((container.clone(), held.name.clone(), status))
            })
            .collect()
    }

    /// Whether any container is in a network.
    pub(crate) fn is_used(&self, entry: &Entry) -> bool {
        self.sandboxes().values().any(|held| held.entry.record.id == entry.record.id)
    }

    fn report(&self, action: &str, container: &str, record: &Record) {
        self.events.publish(
            Event::now("network", action, record.id.as_str())
                .with("container", container)
                .with("name", record.name.as_str())
                .with("type", record.driver.as_str()),
        );
    }

    /// Undoes what an endpoint holds; every step is tried, the first failure returned.
    pub(crate) async fn disconnect(&self, cx: &Ctx, held: &Held) -> Result<()> {
        let Some((endpoint, joined)) = &held.endpoint else { return Ok(()) };
        let record = &held.entry.record;
        let left = match self.driver(record) {
            Ok(driver) => driver.leave(cx, &record.spec(), endpoint, joined).await,
            Err(error) => Err(error),
        };
        let given_back = sandbox::release_addresses(self, cx, record, endpoint).await;
        left.and(given_back)
    }
}

#[async_trait]
impl NetworkStore for Store {
    async fn resolve(&self, _: &Ctx, network: &str) -> Result<(String, String)> {
        let entry = self.find(network)?;
        Ok((entry.record.id.to_string(), entry.record.name.clone()))
    }

    async fn open(&self, cx: &Ctx, spec: &SandboxSpec) -> Result<Sandbox> {
        // A container has one sandbox: what an interrupted start left goes first.
        self.close(cx, &spec.container).await?;
        let entry = self.find(&spec.network)?;
        self.ensure_made(cx, &entry).await?;
        let (netns, held) = sandbox::open(self, cx, &entry, spec).await?;
        let status = held.status.clone();
        self.sandboxes().insert(spec.container.clone(), held);
        self.report("connect", &spec.container, &entry.record);
        Ok(Sandbox { netns, status })
    }

    async fn close(&self, cx: &Ctx, container: &str) -> Result<()> {
        let Some(held) = self.sandboxes().remove(container) else { return Ok(()) };
        let result = self.disconnect(cx, &held).await;
        self.report("disconnect", container, &held.entry.record);
        result
    }

    async fn recover(&self, cx: &Ctx, live: &[(SandboxSpec, SandboxStatus)]) -> Result<()> {
        let mut failed = None;
        for entry in &self.networks {
            let record = &entry.record;
            let mut endpoints = Vec::new();
            for (spec, status) in live {
                let Some(place) = status.networks.get(&record.name) else { continue };
                let endpoint = sandbox::recover(self, cx, record, spec, status, place).await;
                endpoints.extend(endpoint.clone());
                let held = Held {
                    name: spec.name.clone(),
                    entry: entry.clone(),
                    status: status.clone(),
                    endpoint,
                };
                self.sandboxes().insert(spec.container.clone(), held);
            }
            if record.subnets.is_empty() {
                continue; // nothing on the host to agree with
            }
            let recovered = match self.ensure_made(cx, entry).await {
                Ok(()) => self.driver(record)?.recover(cx, &record.spec(), &endpoints).await,
                Err(error) => Err(error),
            };
            if let Err(error) = recovered {
                let network = &record.name;
                tracing::error!(network, error = error.chain(), "The network is not recovered.");
                failed.get_or_insert(error);
            }
        }
        // Without live containers there is nothing to lose, and the next start tries again.
        match failed {
            Some(error) if !live.is_empty() => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
