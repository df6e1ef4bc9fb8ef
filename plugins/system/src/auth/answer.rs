//! What registries and token servers say when they refuse.

use gantry_sdk::ErrorKind;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;

use super::challenge;
use super::client::Answer;

/// The most of a server's words that is passed on, in characters.
const MAX_WORDS: usize = 1000;

/// A refusal: what to do about it, and the server's own words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub(crate) struct Refusal {
    /// What a caller can act on.
    pub(crate) kind: ErrorKind,
    /// As the reference engine puts it: `code: message`.
    pub(crate) words: String,
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
            _ => ErrorKind::Unavailable,
        };
        if !status.is_client_error() {
            return Self { kind, words: format!("received unexpected HTTP status: {status}") };
        }
        let words = described(answer).or_else(|| structured(answer)).unwrap_or_else(|| {
            let text = plain(answer).unwrap_or_else(|| status.to_string());
            format!("{}: {text}", code(status))
        });
        Self { kind, words: clean(&words) }
    }
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
    use http::HeaderMap;
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
            (404, ErrorKind::Unavailable),
            (500, ErrorKind::Unavailable),
        ] {
            assert_eq!(words(status, &[], "").0, kind, "{status}");
        }
    }
}
