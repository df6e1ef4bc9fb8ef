//! What other plugins ask of this one.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use gantry_sdk::api::ContainersDiskUsage;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::containers::{ContainerBrief, ContainerStore};
use gantry_sdk::kinds::images::{ImageUser, ImageUserSource};
use gantry_sdk::kinds::info::{DiskUsageSource, InfoSource};
use gantry_sdk::kinds::layer_users::{LayerUse, LayerUserSource};
use gantry_sdk::kinds::layers::{ContainerLayer, Hold};
use gantry_sdk::kinds::runtime::Runtimes;
use gantry_sdk::{Ctx, Error, Result};
use serde_json::{Map, Value, json};

use crate::create::storage_options;
use crate::engine::Engine;
use crate::handle::{Message, View};
use crate::handlers::list::sizes;
use crate::show;
use crate::state::State;

/// The container store to others.
#[derive(Debug)]
pub struct Service(pub Arc<Engine>);

#[async_trait]
impl ContainerStore for Service {
    async fn briefs(&self, _: &Ctx) -> Result<Vec<ContainerBrief>> {
        let mut views = self.0.views();
        views.sort_by_key(|v| v.record.created);
        let brief = |view: &Arc<View>| ContainerBrief {
            id: view.record.id.to_string(),
            name: view.record.name.clone(),
            status: view.state.word(),
            volumes: view.record.volumes().map(str::to_owned).collect(),
        };
        Ok(views.iter().filter(|v| !v.removed).map(brief).collect())
    }
}

#[async_trait]
impl ImageUserSource for Service {
    async fn users(&self, _: &Ctx, id: &Digest) -> Result<Vec<ImageUser>> {
        let views = self.0.views();
        let uses = views.iter().filter(|v| !v.removed && v.record.image_id == *id);
        Ok(uses
            .map(|view| ImageUser {
                container: view.record.id.to_string(),
                running: view.state.is_running(),
            })
            .collect())
    }
}

#[async_trait]
impl LayerUserSource for Service {
    async fn users(&self, _: &Ctx) -> Result<Vec<LayerUse>> {
        let mut views = self.0.views();
        views.sort_by_key(|v| v.record.created);
        let layer_use = |view: &Arc<View>| LayerUse {
            container: view.record.id.to_string(),
            name: view.record.name.clone(),
            image: view.record.image.clone(),
            chain: view.record.chain.clone(),
            layer: view.record.layer.clone(),
            options: storage_options(&view.record.host),
            running: matches!(view.state, State::Running { .. } | State::Restarting { .. }),
            started: view.record.life.started,
        };
        Ok(views.iter().filter(|v| !v.removed).map(layer_use).collect())
    }

    async fn hold(&self, _: &Ctx, container: &str) -> Result<Hold> {
        let hold: Hold = Arc::new(());
        self.0.find(container)?.ask(Message::Hold(Arc::downgrade(&hold))).await?;
        Ok(hold)
    }

    async fn moved(&self, _: &Ctx, container: &str, layer: &ContainerLayer) -> Result<()> {
        self.0.find(container)?.ask(Message::Moved { layer: layer.clone() }).await
    }
}

#[async_trait]
impl InfoSource for Service {
    async fn info(&self, _: &Ctx) -> Result<Map<String, Value>> {
        let engine = &self.0;
        let settings = engine.settings();
        let views = engine.views();
        let running = views.iter().filter(|v| v.state.is_running()).count();
        let facts = &engine.facts;
        let can = &facts.controllers;
        let runtimes: Map<String, Value> = engine
            .registry
            .all::<Runtimes>()
            .into_iter()
            .map(|(name, runtime)| (name, json!({ "path": runtime.describe().path })))
            .collect();
        let mut security = Vec::new();
        // What containers get unless they ask for something else.
        if facts.apparmor_profile.is_some() {
            security.push("name=apparmor".to_owned());
        }
        if facts.seccomp {
            let profile = match settings.defaults.seccomp_profile.as_str() {
                "builtin" | "unconfined" => settings.defaults.seccomp_profile.clone(),
                _ => "custom".to_owned(),
            };
            security.push(format!("name=seccomp,profile={profile}"));
        }
        if facts.cgroup_namespaces && facts.cgroup_unified {
            security.push("name=cgroupns".to_owned());
        }
        let info = json!({
            "Containers": views.len(),
            "ContainersRunning": running,
            "ContainersPaused": 0,
            "ContainersStopped": views.len() - running,
            "DefaultRuntime": settings.defaults.runtime,
            "Runtimes": runtimes,
            "LoggingDriver": settings.log_driver,
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": if facts.cgroup_unified { "2" } else { "1" },
            "LiveRestoreEnabled": settings.live_restore,
            "InitBinary": "gantry-shim",
            "SecurityOptions": security,
            "MemoryLimit": can.memory,
            "SwapLimit": can.swap,
            "CpuCfsPeriod": can.cpu_cfs,
            "CpuCfsQuota": can.cpu_cfs,
            "CPUShares": can.cpu_shares,
            "CPUSet": can.cpuset,
            "PidsLimit": can.pids,
            "OomKillDisable": can.oom_kill_disable,
            "IPv4Forwarding": crate::host::forwards_ipv4(),
        });
        match info {
            Value::Object(map) => Ok(map),
            other => {
                Err(Error::new(gantry_sdk::ErrorKind::Internal, format!("{other} is no object")))
            }
        }
    }
}

#[async_trait]
impl DiskUsageSource for Service {
    async fn usage(&self, cx: &Ctx) -> Result<gantry_sdk::api::DiskUsage> {
        let now = SystemTime::now();
        let mut usage = ContainersDiskUsage::default();
        for view in self.0.views() {
            let mut row = show::summary(&view, now);
            // A container that is removed meanwhile has no size.
            if let Ok((own, all)) = sizes(&self.0, cx, &view.record).await {
                (row.size_rw, row.size_root_fs) = (own, all);
            }
            usage.total_count += 1;
            usage.total_size += row.size_rw;
            if view.state.is_running() {
                usage.active_count += 1;
            } else {
                usage.reclaimable += row.size_rw;
            }
            usage.items.push(row);
        }
        Ok(gantry_sdk::api::DiskUsage { container_usage: Some(usage), ..Default::default() })
    }

    fn section(&self) -> &'static str {
        "container"
    }
}
