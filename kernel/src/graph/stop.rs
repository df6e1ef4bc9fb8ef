//! Stopping plugins: the start order backwards, each one bounded.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::boot::Running;

/// What is left of every wait once somebody is in a hurry.
const HURRY: Duration = Duration::from_secs(1);
/// How long a plugin's background tasks may take after it has stopped.
const TASKS: Duration = Duration::from_secs(5);

/// Waits for `work` up to `grace` (none: for ever), and no longer than a second more once `hurry`
/// is cancelled. `None` if it did not end.
pub async fn bounded<T>(
    grace: Option<Duration>,
    hurry: &CancellationToken,
    work: impl Future<Output = T>,
) -> Option<T> {
    let end_of_grace = async {
        match grace {
            Some(grace) => tokio::time::sleep(grace).await,
            None => std::future::pending().await,
        }
    };
    let hurried = async {
        hurry.cancelled().await;
        tokio::time::sleep(HURRY).await;
    };
    tokio::select! {
        biased;
        result = work => Some(result),
        () = end_of_grace => None,
        () = hurried => None,
    }
}

/// Stops `running` backwards; returns the ids of those that did not end in time.
pub async fn stop(
    running: Vec<Running>,
    grace: Option<Duration>,
    hurry: &CancellationToken,
) -> Vec<&'static str> {
    let mut late = Vec::new();
    for Running { descriptor, plugin, tasks } in running.into_iter().rev() {
        let id = descriptor.id;
        // A task of its own, so that a panic while stopping does not keep the others from it.
        let stopping = tasks.spawn("stop", async move { plugin.stop().await });
        match bounded(grace, hurry, stopping).await {
            Some(Ok(Ok(()))) => tracing::debug!(plugin = id, "Plugin has stopped."),
            Some(Ok(Err(error))) => {
                tracing::error!(
                    plugin = id,
                    error = error.chain(),
                    "Plugin stopped with an error."
                );
            }
            Some(Err(error)) => {
                tracing::error!(plugin = id, %error, "Plugin panicked while stopping.");
            }
            None => late.push(id),
        }
        let left = bounded(None, hurry, tasks.shut_down(TASKS)).await;
        if let Some(tasks) = left.filter(|tasks| !tasks.is_empty()) {
            tracing::warn!(plugin = id, ?tasks, "Background tasks did not end.");
        }
    }
    if !late.is_empty() {
        tracing::error!(plugins = ?late, "Plugins did not stop in time.");
    }
    late
}
