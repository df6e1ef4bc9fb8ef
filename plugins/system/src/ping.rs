//! `/_ping`: whether the daemon answers, and what it can do.

use std::sync::Arc;

use gantry_sdk::{Request, Response, Result};
use http::StatusCode;

use crate::State;

const TEXT: &str = "text/plain; charset=utf-8";

/// `OK`.
pub(crate) async fn get(_: Arc<State>, _: Request) -> Result<Response> {
    Ok(headers(Response::full(StatusCode::OK, TEXT, "OK")))
}

/// No body, and a length of 0: clients rely on it.
pub(crate) async fn head(_: Arc<State>, _: Request) -> Result<Response> {
    let response = Response::full(StatusCode::OK, TEXT, "").header("content-length", "0");
    Ok(headers(response))
}

/// `Builder-Version` names the builder that clients should use: the classic one, until there is
/// another.
fn headers(response: Response) -> Response {
    response
        .header("builder-version", "1")
        .header("cache-control", "no-cache, no-store, must-revalidate")
        .header("pragma", "no-cache")
        .header("swarm", "inactive")
}
