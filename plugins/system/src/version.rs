//! `GET /version`.

use std::sync::Arc;

use gantry_sdk::api::{ComponentVersion, ObjectKind, PlatformInfo, StringMap, VersionResponse};
use gantry_sdk::{ApiVersion, Request, Response, Result};

use crate::{State, host};

/// The daemon in one component, as the reference engine lists itself first.
pub(crate) async fn version(state: Arc<State>, request: Request) -> Result<Response> {
    let facts = &state.host;
    let kernel = host::kernel_release();
    let api = ApiVersion::MAX.to_string();
    let oldest = facts.min_api.to_string();
    let arch = host::go_architecture();
    let details = StringMap::from([
        ("ApiVersion".to_owned(), api.clone()),
        ("Arch".to_owned(), arch.to_owned()),
        ("Experimental".to_owned(), facts.experimental.to_string()),
        ("GitCommit".to_owned(), facts.revision.to_owned()),
        ("KernelVersion".to_owned(), kernel.clone()),
        ("MinAPIVersion".to_owned(), oldest.clone()),
        ("Os".to_owned(), "linux".to_owned()),
    ]);
    let answer = VersionResponse {
        platform: PlatformInfo { name: "Gantry".into() },
        components: vec![ComponentVersion {
            name: "Engine".into(),
            version: facts.version.into(),
            details,
        }],
        version: facts.version.into(),
        api_version: api,
        min_api_version: oldest,
        git_commit: facts.revision.into(),
        os: "linux".into(),
        arch: arch.into(),
        kernel_version: kernel,
        experimental: facts.experimental,
        ..VersionResponse::default()
    };
    Response::shaped(ObjectKind::Version, request.version, &answer)
}
