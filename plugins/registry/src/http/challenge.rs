//! The `WWW-Authenticate` header. Source: RFC 9110 §11.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// What is read of one answer at most: bytes of headers, challenges, parameters of a challenge.
const MAX_BYTES: usize = 16 * 1024;
const MAX_CHALLENGES: usize = 16;
const MAX_PARAMETERS: usize = 32;

/// A scheme that the server accepts, in lower case, and what it says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// `basic`, `bearer`, …
    pub(crate) scheme: String,
    /// Names in lower case; the first value of each.
    pub(crate) parameters: BTreeMap<String, String>,
}

impl Challenge {
    /// A parameter; empty if the server does not give it.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.parameters.get(name).map_or("", String::as_str)
    }
}

/// The challenges of an answer. What cannot be read is left out, with all that follows it.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut all = Vec::new();
    let mut room = MAX_BYTES;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        let Some(left) = room.checked_sub(text.len()) else { break };
        room = left;
        all.extend(parse(text));
    }
    all.truncate(MAX_CHALLENGES);
    all
}

/// One header: any number of challenges. A word that no `=` follows begins a challenge.
fn parse(header: &str) -> Vec<Challenge> {
    let mut all: Vec<Challenge> = Vec::new();
    let mut rest = Cursor(header);
    while all.len() <= MAX_CHALLENGES {
        rest.skip(" \t,");
        let word = rest.token().to_ascii_lowercase();
        if word.is_empty() {
            break;
        }
        rest.skip(" \t");
        if !rest.eat('=') {
            all.push(Challenge { scheme: word, ..Challenge::default() });
            continue;
        }
        rest.skip(" \t");
        let (Some(value), Some(challenge)) = (rest.value(), all.last_mut()) else { break };
        if challenge.parameters.len() == MAX_PARAMETERS {
            break;
        }
        challenge.parameters.entry(word).or_insert(value);
    }
    all
}

/// What is still to be read.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn skip(&mut self, what: &str) {
        self.0 = self.0.trim_start_matches(|c| what.contains(c));
    }

    fn eat(&mut self, what: char) -> bool {
        self.0.strip_prefix(what).map(|rest| self.0 = rest).is_some()
    }

    /// A token of RFC 9110 §5.6.2; empty if there is none here.
    fn token(&mut self) -> &'a str {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let end = self.0.find(|c| !is_token(c)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at(end);
        self.0 = rest;
        token
    }

    /// A token, or a quoted string of RFC 9110 §5.6.4; none if neither is here.
    fn value(&mut self) -> Option<String> {
        if !self.eat('"') {
            return Some(self.token().to_owned()).filter(|token| !token.is_empty());
        }
        let mut value = String::new();
        let mut escaped = false;
        for (at, c) in self.0.char_indices() {
            match c {
                _ if escaped => {
                    value.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Some(value);
                }
                _ => value.push(c),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(header: &str) -> String {
        let one = |c: Challenge| {
            let parameters: Vec<_> =
                c.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{}({})", c.scheme, parameters.join(";"))
        };
        parse(header).into_iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn challenges_as_servers_write_them() {
        let cases = [
            ("Basic realm=\"Registry Realm\"", "basic(realm=Registry Realm)"),
            (
                "Bearer realm=\"https://a.example/token\",service=\"reg, \\\"x\\\"\",scope=a",
                "bearer(realm=https://a.example/token;scope=a;service=reg, \"x\")",
            ),
            ("BEARER  Realm = \"x\" , SERVICE=y", "bearer(realm=x;service=y)"),
            ("Basic realm=\"a\", Bearer realm=\"b\"", "basic(realm=a) bearer(realm=b)"),
            ("Negotiate, Basic", "negotiate() basic()"),
            ("Basic realm=a, realm=b", "basic(realm=a)"),
        ];
        for (header, expected) in cases {
            assert_eq!(shown(header), expected, "{header}");
        }
    }

    #[test]
    fn hostile_headers_end_early() {
        let cases = [
            ("", ""),
            (",,, ,", ""),
            ("=x", ""),
            ("realm=x", ""),
            ("Bearer realm=", "bearer()"),
            ("Bearer realm=\"", "bearer()"),
            ("Bearer realm=\"x\\", "bearer()"),
            ("Bearer realm=\"x\\\"", "bearer()"),
            ("Bearer realm=\"\"", "bearer(realm=)"),
            ("Bearer realm=x;service=y", "bearer(realm=x)"),
            ("Bearer \u{e9}=x", "bearer()"),
            ("\"Bearer\" realm=x", ""),
            ("Negotiate YWJj==", "negotiate()"),
        ];
        for (header, expected) in cases {
            assert_eq!(shown(header), expected, "{header}");
        }
    }

    #[test]
    fn there_is_an_end_to_everything() {
        let mut headers = HeaderMap::new();
        for _ in 0..100 {
            headers.append(WWW_AUTHENTICATE, "Basic realm=x".parse().unwrap());
        }
        assert_eq!(challenges(&headers).len(), MAX_CHALLENGES);
        let many: String = (0..1000).map(|n| format!("p{n}=x,")).collect();
        assert_eq!(parse(&format!("Bearer {many}"))[0].parameters.len(), MAX_PARAMETERS);
        assert!(parse(&"x ".repeat(1000)).len() <= MAX_CHALLENGES + 1);
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "x".repeat(MAX_BYTES + 1).parse().unwrap());
        assert_eq!(challenges(&headers), []);
    }
}
