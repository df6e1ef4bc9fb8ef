//! `GET /system/df`.

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_sdk::api::{BuildCacheDiskUsage, DiskUsage as Answer, ObjectKind};
use gantry_sdk::kinds::info::DiskUsage;
use gantry_sdk::{Error, Request, Response, Result};

use crate::State;

const SECTIONS: &[&str] = &["container", "image", "volume", "build-cache"];

/// The sections a client asks for, or all.
pub(crate) async fn usage(state: Arc<State>, request: Request) -> Result<Response> {
    let wanted: BTreeSet<&str> = request.query.all("type").collect();
    if let Some(unknown) = wanted.iter().find(|section| !SECTIONS.contains(section)) {
        return Err(Error::invalid(format!("unknown object type: {unknown:.80}")));
    }
    let is_wanted = |section: &str| wanted.is_empty() || wanted.contains(section);
    let cx = request.ctx();
    let mut answer = Answer::default();
    for (_, source) in state.registry.all::<DiskUsage>() {
        if is_wanted(source.section()) {
            join(&mut answer, source.usage(&cx).await?);
        }
    }
    if is_wanted("build-cache") && answer.build_cache_usage.is_none() {
        answer.build_cache_usage = Some(BuildCacheDiskUsage::default());
    }
    let kind = if request.query.bool("verbose") {
        ObjectKind::DiskUsageVerbose
    } else {
        ObjectKind::DiskUsage
    };
    Response::shaped(kind, request.version, &answer)
}

/// Each source fills its own section.
fn join(answer: &mut Answer, part: Answer) {
    answer.image_usage = part.image_usage.or(answer.image_usage.take());
    answer.container_usage = part.container_usage.or(answer.container_usage.take());
    answer.volume_usage = part.volume_usage.or(answer.volume_usage.take());
    answer.build_cache_usage = part.build_cache_usage.or(answer.build_cache_usage.take());
}
