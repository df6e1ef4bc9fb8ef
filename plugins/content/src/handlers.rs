//! The `/x/content` routes: request → one call → response.

use std::sync::Arc;

use gantry_sdk::kinds::blobs::BlobStore;
use gantry_sdk::{Request, Response, Result};
use serde_json::json;

use crate::governor::Governor;

/// `GET /x/content/governor`
///
/// `200` with an [`Explanation`](crate::governor::Explanation): for everything why it is kept, or
/// would go if the disk were full. `503` while an owner of content does not answer.
pub async fn explain(governor: Arc<Governor>, req: Request) -> Result<Response> {
    Response::ok(&governor.explain(&req.ctx()).await?)
}

/// `POST /x/content/collect`
///
/// `200` with what was removed; with `dry-run=1` nothing is, and there is for everything what would
/// happen to it and why. `503` while an owner of content does not answer.
pub async fn collect(governor: Arc<Governor>, req: Request) -> Result<Response> {
    let cx = req.ctx();
    if req.query.bool("dry-run") {
        return Response::ok(&json!({ "items": governor.blobs.explain(&cx, None).await? }));
    }
    let collected = governor.blobs.collect(&cx).await?;
    Response::ok(&json!({ "blobs": collected.blobs, "bytes": collected.bytes }))
}
