//! Content: the blob store and the metadata database, the truth that no driver owns.
//!
//! # Map
//!
//! - [`blobs`]: the blob store; `dirs`: where it keeps what
//! - `ingest`: blobs on their way in; `follow`: reading them meanwhile
//! - `pins`, [`plan`], `collect`: what must stay, and removing the rest
//! - [`settings`], `dropped`: retention policies, and what is remembered of what they dropped
//! - [`governor`]: freeing space when the disk is full; [`handlers`]: asking for it and for reasons
//! - [`metadata`]: records by table and key in one transactional database
//!
//! # Invariants
//!
//! 1. A blob that can be opened has the digest it is named after, and is on disk.
//! 2. A commit that has returned is on disk; one that failed changed nothing.
//! 3. One writer at a time for a digest that is known beforehand.
//! 4. Manifests, configurations and what no registry has are never dropped.
//! 5. Nothing is collected that an owner wants or a lease pins, nor while an owner does not answer.
//!
//! # Not here
//!
//! Which blobs are still needed: their owners know what refers to them.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use gantry_sdk::kinds::blobs::Blobs;
use gantry_sdk::kinds::metadata::Metadata;
use gantry_sdk::plugin::mistakes;
use gantry_sdk::registry::Kind as _;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{
    Context, Descriptor, Init, Method, Phase, Plugin, Provide, Registration, Result, RouteDecl,
};

pub mod blobs;
mod collect;
mod dirs;
mod dropped;
mod follow;
pub mod governor;
pub mod handlers;
mod ingest;
pub mod metadata;
mod pins;
pub mod plan;
pub mod settings;

use blobs::FileBlobs;
use governor::Governor;
use settings::Settings;

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Blobs::NAME, "local"), Provide::new(Metadata::NAME, "local")],
    routes: &[
        RouteDecl::new("governor", Method::Get, "/x/content/governor"),
        RouteDecl::new("collect", Method::Post, "/x/content/collect"),
    ],
    check_section: |section| mistakes(Settings::parse(section)),
    ..Descriptor::new("content", Phase::Content)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(Content::default())) }

#[derive(Default)]
struct Content(OnceLock<(Arc<Governor>, Tasks)>);

#[async_trait]
impl Plugin for Content {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let settings = Settings::parse(&cx.own_config)?;
        let (blobs, database) = (cx.data_dir("blobs")?, cx.data_dir("metadata")?);
        let (root, registry) = (blobs.clone(), cx.registry.clone());
        let (blobs, metadata) = tokio::task::spawn_blocking(move || -> Result<_> {
            Ok((
                FileBlobs::open(&blobs, registry)?.with_retention(settings.retention),
                metadata::Database::open(&database.join("gantry.redb"))?,
            ))
        })
        .await??;
        let blobs = Arc::new(blobs);
        cx.provide::<Blobs>("local", blobs.clone())?;
        cx.provide::<Metadata>("local", Arc::new(metadata))?;

        let (registry, marks) = (cx.registry.clone(), settings.governor);
        let governor =
            Arc::new(Governor { blobs, registry, root, marks, retention: settings.retention });
        cx.route("governor", &governor, handlers::explain);
        cx.route("collect", &governor, handlers::collect);
        let _ = self.0.set((governor, cx.tasks.clone()));
        Ok(Init::Ready)
    }

    /// Only now every owner of content can say what it wants.
    async fn started(&self) -> Result<()> {
        let Some((governor, tasks)) = self.0.get() else { return Ok(()) };
        governor.blobs.owners_complete();
        if let Some(marks) = governor.marks {
            let stop = tasks.stopping().clone();
            tasks.spawn("content-governor", governor.clone().watch(marks, stop));
        }
        Ok(())
    }
}
