//! A new configuration for a running daemon: all of it, or nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use gantry_sdk::Descriptor;
use gantry_sdk::events::{Event, EventBus};
use serde_json::Value;

use super::logging::LogControl;
use super::view::View;
use crate::config::reload::{Changes, changes, is_reloadable, merged};
use crate::config::{Config, ConfigError, Environment, Flags};
use crate::graph::boot::Running;

/// How long a plugin may think about a new configuration.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The new configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A plugin does not accept it.
    #[error("plugin {plugin} refuses the new configuration: {why}")]
    Refused {
        /// The plugin.
        plugin: &'static str,
        /// What it says.
        why: String,
    },
}

/// What a reload needs to know of the daemon.
#[derive(Debug)]
pub struct Reloader<'a> {
    /// The command line, which stays as it was.
    pub flags: &'a Flags,
    /// The environment, likewise.
    pub environment: &'a Environment,
    /// All plugins of this build.
    pub descriptors: &'a [&'static Descriptor],
    /// Those in service.
    pub running: &'a [Running],
    /// Where the configuration in force is.
    pub view: &'a View,
    /// Changes the log level, if logging is ours.
    pub log: Option<&'a LogControl>,
    /// Where the reload is reported.
    pub events: &'a EventBus,
    /// The daemon's identity, for the event.
    pub id: &'a str,
}

impl Reloader<'_> {
    /// Reads the file again and brings into force what can be.
    ///
    /// Plugins are asked first, all of those that a change concerns; only when every one has agreed
    /// do the changes take effect.
    ///
    /// # Errors
    ///
    /// Why nothing changed.
    pub async fn reload(&self) -> Result<Changes, ReloadError> {
        let old = self.view.config_now();
        let new = Config::load(self.flags, self.environment, self.descriptors)?;
        let changes = changes(&old, &new, self.descriptors);
        let next = merged(&old, &new, &changes);
        let agreed = self.ask(&next, &changes.now).await?;
        for apply in agreed {
            apply();
        }
        if let Some(log) = self.log {
            log.apply(&next.kernel);
        }
        let event = self.event(&next);
        self.view.set_config(next);
        self.events.publish(event);
        Ok(changes)
    }

    async fn ask(
        &self,
        next: &Config,
        changed: &BTreeSet<String>,
    ) -> Result<Vec<Box<dyn FnOnce() + Send>>, ReloadError> {
        let mut agreed = Vec::new();
        for Running { descriptor, plugin, .. } in self.running {
            if !descriptor.config.iter().any(|key| changed.contains(key.name)) {
                continue;
            }
            let view = next.view(descriptor);
            let answer = tokio::time::timeout(DEADLINE, plugin.reload(&view)).await;
            let refused = |why| ReloadError::Refused { plugin: descriptor.id, why };
            match answer {
                Ok(Ok(apply)) => agreed.push(apply),
                Ok(Err(error)) => return Err(refused(error.chain())),
                Err(_) => return Err(refused(format!("no answer within {DEADLINE:?}"))),
            }
        }
        Ok(agreed)
    }

    /// The reference engine reports every value that can be reloaded, changed or not. Others stay
    /// out: log options and proxies may hold secrets.
    fn event(&self, next: &Config) -> Event {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let event = Event::now("daemon", "reload", self.id).with("name", name.trim());
        next.values.iter().filter(|(key, _)| is_reloadable(key, self.descriptors)).fold(
            event,
            |event, (key, value)| {
                let text = match value {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                event.with(key, text)
            },
        )
    }
}
