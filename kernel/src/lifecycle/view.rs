//! What plugins may ask the kernel.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use gantry_sdk::context::Kernel;
use gantry_sdk::tasks::Tasks;
use serde_json::Value;

use crate::config::Config;
use crate::graph::Plugins;

/// The kernel as plugins see it.
#[derive(Debug)]
pub struct View {
    config: ArcSwap<Config>,
    plugins: Arc<Plugins>,
    tasks: Mutex<Vec<(String, Tasks)>>,
}

impl View {
    /// A view of a daemon that is starting.
    #[must_use]
    pub fn new(config: Config, plugins: Arc<Plugins>) -> Self {
        Self { config: ArcSwap::from_pointee(config), plugins, tasks: Mutex::default() }
    }

    /// The configuration in force.
    #[must_use]
    pub fn config_now(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Brings another configuration into force.
    pub fn set_config(&self, config: Config) {
        self.config.store(Arc::new(config));
    }

    /// Adds an owner of background tasks.
    pub fn watch_tasks(&self, owner: &str, tasks: Tasks) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push((owner.to_owned(), tasks));
    }
}

impl Kernel for View {
    fn debug(&self) -> bool {
        self.config.load().kernel.debug
    }

    fn warnings(&self) -> Vec<String> {
        self.plugins.warnings()
    }

    fn labels(&self) -> Vec<String> {
        self.config.load().kernel.labels.clone()
    }

    fn listeners(&self) -> Vec<String> {
        self.config.load().kernel.hosts.iter().map(ToString::to_string).collect()
    }

    fn tasks(&self) -> Vec<(String, Vec<&'static str>)> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().map(|(owner, tasks)| (owner.clone(), tasks.running())).collect()
    }

    fn config(&self, key: &str) -> Option<Value> {
        self.config.load().values.get(key).cloned()
    }
}
