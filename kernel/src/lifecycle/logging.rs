//! Log lines: text for people or JSON for machines, on standard error.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::config::typed::{KernelConfig, LogFormat, LogLevel};

/// Libraries whose debug lines tell about bytes, not about containers.
const NOISY: [&str; 4] = ["hyper", "h2", "rustls", "tokio"];

/// Changes the level of a running daemon.
#[derive(Clone, Debug)]
pub struct LogControl(reload::Handle<Targets, Registry>);

impl LogControl {
    /// Takes over the level of `config`.
    pub fn apply(&self, config: &KernelConfig) {
        let _ = self.0.reload(targets(config)); // fails only when logging is over
    }
}

/// Starts logging as `config` says. `None` if somebody else has set up logging in this process, as
/// tests do.
#[must_use]
pub fn init(config: &KernelConfig) -> Option<LogControl> {
    let (filter, handle) = reload::Layer::new(targets(config));
    let layer = match config.log_format {
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .boxed(),
        LogFormat::Text => tracing_subscriber::fmt::layer()
            .with_ansi(!config.raw_logs && std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()
        .ok()
        .map(|()| LogControl(handle))
}

fn targets(config: &KernelConfig) -> Targets {
    let level = match config.log_level {
        _ if config.debug => LevelFilter::DEBUG.max(level(config.log_level)),
        configured => level(configured),
    };
    let quiet = level.min(LevelFilter::WARN);
    Targets::new().with_default(level).with_targets(NOISY.map(|target| (target, quiet)))
}

const fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    }
}
