//! What registries and token servers say when they refuse.

use std::time::{Duration, SystemTime};

use gantry_sdk::ErrorKind;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use crate::http::challenge;
use crate::http::client::Answer;

/// The most of a server's words that is passed on, in characters.
const MAX_WORDS: usize = 1000;

/// The longest that a server may ask us to wait; it is asked again then.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A refusal: what to do about it, and the server's own words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub(crate) struct Refusal {
    /// What a caller can act on.
    pub(crate) kind: ErrorKind,
    /// As the reference engine puts it: `code: message`.
    pub(crate) words: String,
    /// As it came.
    pub(crate) status: StatusCode,
    /// Whether the same request may be granted later.
    pub(crate) is_transient: bool,
    /// How long the server asks to be left alone.
    pub(crate) retry_after: Option<Duration>,
}

/// The forms that errors come in: the registry API's, and one of a token server.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Body {
    errors: Vec<Item>,
    details: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Item {
    code: Option<String>,
    message: Option<String>,
}

impl Refusal {
    /// Why `answer`, which is no success, is none.
    pub(crate) fn of(answer: &Answer) -> Self {
        let status = answer.status;
        let kind = match status {
            StatusCode::UNAUTHORIZED => ErrorKind::Unauthorized,
            StatusCode::FORBIDDEN => ErrorKind::Forbidden,
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            _ => ErrorKind::Unavailable,
        };
        let is_transient = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
            || matches!(status.as_u16(), 408 | 429);
        let retry_after = retry_after(&answer.headers, SystemTime::now());
        let refusal = |words| Self { kind, words, status, is_transient, retry_after };
        if !status.is_client_error() {
            return refusal(format!("received unexpected HTTP status: {status}"));
        }
        let words = described(answer).or_else(|| structured(answer)).unwrap_or_else(|| {
            let text = plain(answer).unwrap_or_else(|| status.to_string());
            format!("{}: {text}", code(status))
        });
        refusal(clean(&words))
    }
}

/// `Retry-After`: seconds, or a date. Source: RFC 9110 §10.2.3.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => http_date(text)?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(MAX_WAIT))
}

/// A date of the preferred form, `Sun, 06 Nov 1994 08:49:37 GMT`. Source: RFC 9110 §5.6.7.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.strip_suffix(" GMT")?.split_once(", ")?;
    let mut parts = rest.split(' ');
    let (day, month, year, time) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let rfc3339 = format!("{year}-{month:02}-{day}T{time}Z");
    gantry_sdk::time::parse(&rfc3339, SystemTime::UNIX_EPOCH)
}

/// The registry API's word for a status, where the body has none.
fn code(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "unauthorized",
        403 => "denied",
        429 => "toomanyrequests",
        _ => "unknown",
    }
}

/// What the bearer challenge of the answer says. Source: RFC 6750 §3.
fn described(answer: &Answer) -> Option<String> {
    let all = challenge::challenges(&answer.headers);
    let bearer = all.iter().find(|c| c.scheme == "bearer")?;
    let code = match bearer.get("error") {
        "invalid_token" => "unauthorized",
        "insufficient_scope" => "denied",
        _ => return None,
    };
    let description = bearer.get("error_description");
    (!description.is_empty()).then(|| format!("{code}: {description}"))
}

/// A JSON body in one of the known forms.
fn structured(answer: &Answer) -> Option<String> {
    let body: Body = serde_json::from_slice(&answer.body).ok()?;
    if let Some(details) = body.details.filter(|details| !details.is_empty()) {
        return Some(format!("{}: {details}", code(answer.status)));
    }
    let one = |item: &Item| {
        let code = item.code.as_deref().unwrap_or("unknown").to_lowercase().replace('_', " ");
        match item.message.as_deref() {
            None | Some("") => code,
            Some(message) => format!("{code}: {message}"),
        }
    };
    let all: Vec<_> = body.errors.iter().map(one).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// A body in words; not a page for a browser, and no JSON that nobody understood.
fn plain(answer: &Answer) -> Option<String> {
    let kind = answer.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let is_words = kind.is_empty() || kind.to_ascii_lowercase().starts_with("text/plain");
    let text = String::from_utf8_lossy(&answer.body);
    let text = text.trim();
    (is_words && !text.is_empty()).then(|| text.to_owned())
}

/// Foreign text, fit for a terminal and a log: one line, of bounded length.
fn clean(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MAX_WORDS).collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::WWW_AUTHENTICATE;

    fn words(status: u16, headers: &[(http::HeaderName, &str)], body: &str) -> (ErrorKind, String) {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let status = StatusCode::from_u16(status).unwrap();
        let refusal = Refusal::of(&Answer { status, headers, body: body.to_owned().into() });
        (refusal.kind, refusal.words)
    }

    #[test]
    fn the_servers_words_come_through() {
        let json = (CONTENT_TYPE, "application/json");
        let html = (CONTENT_TYPE, "text/html; charset=utf-8");
        let bearer = "Bearer error=\"invalid_token\",error_description=\"too old\"";
        let cases: [(u16, &[_], &str, &str); 11] = [
            (
                401,
                std::slice::from_ref(&json),
                r#"{"details":"incorrect username or password"}"#,
                "unauthorized: incorrect username or password",
            ),
            (
                401,
                std::slice::from_ref(&json),
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"no","detail":null}]}"#,
                "unauthorized: no",
            ),
            (403, &[], r#"{"errors":[{"code":"A_B"},{"message":"x"}]}"#, "a b; unknown: x"),
            (401, &[], "go\u{1b}[2J\naway\r\n", "unauthorized: go [2J away"),
            (401, &[html], "<html>", "unauthorized: 401 Unauthorized"),
            (401, std::slice::from_ref(&json), "{", "unauthorized: 401 Unauthorized"),
            (401, std::slice::from_ref(&json), r#"{"errors":7}"#, "unauthorized: 401 Unauthorized"),
            (401, &[(WWW_AUTHENTICATE, bearer)], "", "unauthorized: too old"),
            (429, &[], "slow down", "toomanyrequests: slow down"),
            (404, &[], "", "unknown: 404 Not Found"),
            (502, &[], "x", "received unexpected HTTP status: 502 Bad Gateway"),
        ];
        for (status, headers, body, expected) in cases {
            assert_eq!(words(status, headers, body).1, expected, "{status} {body}");
        }
        assert_eq!(words(400, &[], &"x".repeat(100_000)).1.len(), MAX_WORDS);
    }

    #[test]
    fn the_kind_follows_the_status() {
        for (status, kind) in [
            (401, ErrorKind::Unauthorized),
            (403, ErrorKind::Forbidden),
            (404, ErrorKind::NotFound),
            (500, ErrorKind::Unavailable),
        ] {
            assert_eq!(words(status, &[], "").0, kind, "{status}");
        }
    }

    #[test]
    fn waits_are_read_and_capped() {
        let now = http_date("Sun, 06 Nov 1994 08:49:30 GMT").unwrap();
        for (text, expected) in [
            ("7", Some(7)),
            ("0", Some(0)),
            ("86400", Some(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1993 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 2994 08:49:37 GMT", Some(60)),
            ("-1", None),
            ("soon", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
            ("99999999999999999999999", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{text}");
        }
    }
}
