//! `GET /distribution/{name}/json`: what a registry has under a name.

use std::sync::Arc;

use gantry_sdk::api::{DistributionInspect, OciDescriptor, OciPlatform};
use gantry_sdk::context::Ctx;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::registry::{Access, Credentials, RemoteManifest, Repository};
use gantry_sdk::reference::AnyReference;
use gantry_sdk::{Error, ErrorKind, Request, Response, Result};
use serde::Deserialize;

use crate::open;
use crate::shared::Shared;

/// The largest image configuration that is read, in bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// The parts of a manifest, or of an index, that tell platforms.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Manifest {
    manifests: Option<Vec<OciDescriptor>>,
    config: Option<OciDescriptor>,
}

/// Status 200 with descriptor and platforms; 401 and 403 as the registry says; 404 if it has no such
/// thing; 400 for a bad name.
pub(crate) async fn inspect(shared: Arc<Shared>, request: Request) -> Result<Response> {
    let name = match AnyReference::parse(request.param("name"))? {
        AnyReference::Named(name) => name.or_latest(),
        AnyReference::Digest(_) => {
            let text = "no manifest found for full image ID";
            return Err(Error::new(ErrorKind::Internal, text));
        }
    };
    // As the reference engine: who sends something odd is nobody in particular.
    let credentials =
        Credentials::from_header(request.header("x-registry-auth")).unwrap_or_default();
    let cx = request.ctx();
    let work = async {
        let repository = open(&shared, &name, Access::Pull, &credentials).await?;
        let wanted = name.digest().or(name.tag()).unwrap_or_default();
        let manifest = repository.manifest(&cx, wanted).await?;
        let platforms = platforms(&cx, &repository, &manifest).await;
        let size = i64::try_from(manifest.bytes.len()).unwrap_or(i64::MAX);
        let RemoteManifest { media_type, digest, .. } = manifest;
        let digest = digest.to_string();
        let descriptor = OciDescriptor { media_type, digest, size, ..OciDescriptor::default() };
        Response::ok(&DistributionInspect { descriptor, platforms })
    };
    request.gone.run_until_cancelled(work).await.unwrap_or_else(|| {
        Err(Error::new(ErrorKind::Deadline, format!("nobody waits for {}", name.familiar())))
    })
}

/// Those of an index, or the one of an image; none for anything else.
async fn platforms(
    cx: &Ctx,
    repository: &impl Repository,
    manifest: &RemoteManifest,
) -> Vec<OciPlatform> {
    let Ok(parts) = serde_json::from_slice::<Manifest>(&manifest.bytes) else { return Vec::new() };
    if let Some(manifests) = parts.manifests {
        return manifests.into_iter().map(|one| one.platform.unwrap_or_default()).collect();
    }
    let config = parts.config.and_then(|config| config.digest.parse::<Digest>().ok());
    let Some(digest) = config else { return Vec::new() };
    let Ok(config) = repository.small_blob(cx, &digest, MAX_CONFIG).await else {
        return Vec::new();
    };
    let platform: OciPlatform = serde_json::from_slice(&config).unwrap_or_default();
    let is_known = !(platform.os.is_empty() && platform.architecture.is_empty());
    is_known.then_some(platform).into_iter().collect()
}
