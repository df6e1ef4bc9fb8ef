//! Error kinds as HTTP answers: the only file that knows both.

use gantry_sdk::route::error_body;
use gantry_sdk::{Error, ErrorKind, Response};
use http::StatusCode;

/// The status of an error kind.
#[must_use]
pub const fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::Exists | ErrorKind::Conflict | ErrorKind::Busy => StatusCode::CONFLICT,
        ErrorKind::NotModified => StatusCode::NOT_MODIFIED,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        // A part that does not answer in time is as unavailable as one that is down.
        ErrorKind::Unavailable | ErrorKind::Deadline => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::NoSpace | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The answer for `error`: `{"message": …}` with its whole chain, or an empty 304.
#[must_use]
pub fn respond(error: &Error) -> Response {
    let status = status(error.kind());
    match status {
        StatusCode::NOT_MODIFIED => Response::empty(status),
        _ => Response::json(status, &error_body(error)).unwrap_or_else(|_| Response::empty(status)),
    }
}

/// `{"message": …}` with `status`, for what is no error of a plugin.
#[must_use]
pub fn message(status: StatusCode, text: &str) -> Response {
    let body = gantry_api::ErrorResponse { message: text.to_owned() };
    Response::json(status, &body).unwrap_or_else(|_| Response::empty(status))
}

/// The answer for a path or method that does not exist: always the same one, never 405.
#[must_use]
pub fn page_not_found() -> Response {
    message(StatusCode::NOT_FOUND, "page not found")
}
