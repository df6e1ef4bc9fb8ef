//! `GET /images/search`: asks an index server. Source: the first version of the registry interface, `GET /v1/search`.

use std::sync::Arc;

use gantry_sdk::api::{Filters, SearchResult};
use gantry_sdk::kinds::registry::Credentials;
use gantry_sdk::{Error, ErrorKind, Request, Response, Result};
use http::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use serde::Deserialize;

use crate::http::address::Url;
use crate::http::challenge::challenges;
use crate::http::client::{Answer, Call, Client, ClientError};
use crate::settings::{DEFAULT, canonical};
use crate::shared::Shared;
use crate::site::{Place, Scheme};
use crate::token::{self, Purpose};

/// Where the default registry is searched.
const INDEX_HOST: &str = "index.docker.io";
const FILTERS: [&str; 3] = ["is-automated", "is-official", "stars"];
const DEFAULT_LIMIT: i64 = 25;
const MAX_RESULTS: usize = 4 << 20;
/// What a token must be good for.
const SCOPE: &str = "registry:catalog:search";

#[derive(Deserialize, Default)]
#[serde(default)]
struct Results {
    results: Option<Vec<SearchResult>>,
}

/// Status 200 with results; 400 for a bad term, limit or filter; 500 if the index gives none.
pub(crate) async fn search(shared: Arc<Shared>, request: Request) -> Result<Response> {
    let limit = request.query.number::<i64>("limit")?.unwrap_or(0);
    let filters = request.filters(&FILTERS)?;
    let wanted = Wanted::of(&filters)?;
    let term = request.query.str("term");
    if term.contains("://") {
        return Err(Error::invalid(format!(
            "invalid repository name: repository name ({term:.300}) should not have a scheme"
        )));
    }
    if wanted.nothing {
        return Response::ok(&Vec::<SearchResult>::new());
    }
    let limit = if limit == 0 { DEFAULT_LIMIT } else { limit };
    if !(1..=100).contains(&limit) {
        return Err(Error::invalid(format!("limit {limit} is outside the range of [1, 100]")));
    }
    let credentials =
        Credentials::from_header(request.header("x-registry-auth")).unwrap_or_default();
    let headers = forwarded(&request.headers);
    let work = ask(&shared, term, limit, headers, &credentials);
    let found = request.gone.run_until_cancelled(work).await.unwrap_or_else(|| {
        Err(Error::new(ErrorKind::Deadline, "nobody waits for the results of a search"))
    })?;
    let shown: Vec<_> = found.into_iter().filter(|result| wanted.has(result)).collect();
    Response::ok(&shown)
}

/// What the filters let through.
struct Wanted {
    official: Option<bool>,
    stars: i64,
    nothing: bool,
}

impl Wanted {
    fn of(filters: &Filters) -> Result<Self> {
        let flag = |name| filters.flag(name).map_err(|e| Error::invalid(e.to_string()));
        let mut stars = 0;
        for text in filters.get("stars") {
            let number: i64 = text
                .parse()
                .map_err(|_| Error::invalid(format!("invalid filter 'stars={text:.80}'")))?;
            stars = stars.max(number);
        }
        // Nothing is marked so any more.
        let nothing = flag("is-automated")?.unwrap_or(false);
        Ok(Self { official: flag("is-official")?, stars, nothing })
    }

    fn has(&self, result: &SearchResult) -> bool {
        self.official.is_none_or(|official| official == result.is_official)
            && result.star_count >= self.stars
    }
}

/// The headers that clients may send through us.
fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let is_meta = |name: &HeaderName| name.as_str().starts_with("x-meta-");
    headers.iter().filter(|(name, _)| is_meta(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// The index and the term for it.
fn split(term: &str) -> (&str, &str) {
    match term.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => (DEFAULT, term),
    }
}

async fn ask(
    shared: &Shared,
    term: &str,
    limit: i64,
    headers: HeaderMap,
    credentials: &Credentials,
) -> Result<Vec<SearchResult>> {
    let (host, term) = split(term);
    let place = shared.origin(host, "").await?;
    let is_default = canonical(host) == DEFAULT;
    let authority = if is_default { INDEX_HOST.to_owned() } else { place.authority.clone() };
    let term = if is_default { term.strip_prefix("library/").unwrap_or(term) } else { term };
    let may_be_plain = place.scheme == Scheme::Either;
    let site = shared.sites.at(Place { authority: authority.clone(), ..place }).await?;
    let query = [("q", term), ("n", &limit.to_string())];
    let index = Index { client: &site.client, headers, credentials, is_default };
    let url = |tls| {
        Url::new(tls, &authority, "/v1/search")
            .map(|url| url.with_query(&query))
            .map_err(|e| Error::invalid("invalid registry endpoint").caused_by(e))
    };
    let answer = match index.ask(&url(true)?).await {
        Err(Failed::NoAnswer(error)) if may_be_plain && error.is_connection() => {
            index.ask(&url(false)?).await
        }
        result => result,
    };
    read(&answer.map_err(|failed| failed.told(&authority))?)
}

/// Why the index cannot be asked.
enum Failed {
    NoAnswer(ClientError),
    Other(Error),
}

impl Failed {
    fn told(self, authority: &str) -> Error {
        match self {
            Self::Other(error) => error,
            // The reference engine takes an index that is not there for a bad name, but for its own.
            Self::NoAnswer(error) if error.is_connection() && authority != INDEX_HOST => {
                Error::invalid(format!("invalid registry endpoint https://{authority}/v1/"))
                    .caused_by(error)
            }
            Self::NoAnswer(error) => Error::internal("cannot search", error),
        }
    }
}

struct Index<'a> {
    client: &'a Client,
    headers: HeaderMap,
    credentials: &'a Credentials,
    is_default: bool,
}

impl Index<'_> {
    /// Asks with a token if there is an identity token, with user and password else.
    async fn ask(&self, url: &Url) -> Result<Answer, Failed> {
        let has_identity =
            !self.credentials.identity_token.is_empty() && !self.credentials.username.is_empty();
        if !has_identity {
            // Standalone indexes other than the default one get passwords over TLS only.
            let basic = token::basic(self.credentials).filter(|_| self.is_default || url.tls);
            return self.get(url, basic.as_ref()).await;
        }
        let answer = self.get(url, None).await?;
        let all = challenges(&answer.headers);
        let bearer = all.iter().find(|challenge| challenge.scheme == "bearer");
        let Some(challenge) = bearer.filter(|_| answer.status == StatusCode::UNAUTHORIZED) else {
            return Ok(answer);
        };
        let scopes = [SCOPE.to_owned()];
        let granted =
            token::grant(self.client, url, challenge, self.credentials, &scopes, Purpose::Access)
                .await
                .map_err(|e| Failed::Other(e.into()))?;
        self.get(url, Some(&granted.authorization)).await
    }

    async fn get(&self, url: &Url, authorization: Option<&HeaderValue>) -> Result<Answer, Failed> {
        let mut headers = self.headers.clone();
        headers.insert("x-docker-token", HeaderValue::from_static("true"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let call = Call { headers, authorization, ..Call::new(Method::GET, url) };
        let reply = self.client.follow(&call).await.map_err(Failed::NoAnswer)?;
        reply.whole(MAX_RESULTS).await.map_err(Failed::NoAnswer)
    }
}

fn read(answer: &Answer) -> Result<Vec<SearchResult>> {
    if answer.status != StatusCode::OK {
        let text = format!("unexpected status code {}", answer.status.as_u16());
        return Err(Error::new(ErrorKind::Internal, text));
    }
    let results: Results = serde_json::from_slice(&answer.body)
        .map_err(|e| Error::internal("error decoding registry search results", e))?;
    let mut all = results.results.unwrap_or_default();
    // What servers say about it is not to be trusted.
    all.iter_mut().for_each(|result| result.is_automated = false);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_name_an_index_or_none() {
        for (term, expected) in [
            ("busybox", ("docker.io", "busybox")),
            ("team/app", ("docker.io", "team/app")),
            ("reg.example/team/app", ("reg.example", "team/app")),
            ("reg:5000/app", ("reg:5000", "app")),
            ("localhost/app", ("localhost", "app")),
            ("", ("docker.io", "")),
        ] {
            assert_eq!(split(term), expected, "{term}");
        }
    }

    #[test]
    fn filters() {
        let wanted = |text| Wanted::of(&Filters::parse(text).unwrap());
        let result = |stars, official| SearchResult {
            star_count: stars,
            is_official: official,
            ..SearchResult::default()
        };
        let some = wanted(r#"{"stars":["3","5"],"is-official":["true"]}"#).unwrap();
        assert!(some.has(&result(5, true)) && !some.has(&result(4, true)));
        assert!(!some.has(&result(9, false)));
        assert!(wanted("").unwrap().has(&result(0, false)));
        assert!(wanted(r#"{"is-automated":["1"]}"#).unwrap().nothing);
        assert!(wanted(r#"{"stars":["many"]}"#).is_err());
        assert!(wanted(r#"{"is-official":["maybe"]}"#).is_err());
    }

    #[test]
    fn null_results_are_none() {
        let answer = |status, body: &'static str| Answer {
            status,
            headers: HeaderMap::new(),
            body: body.into(),
        };
        assert_eq!(read(&answer(StatusCode::OK, r#"{"results":null}"#)).unwrap(), []);
        let one = r#"{"results":[{"name":"a","star_count":1,"is_automated":true}]}"#;
        assert!(!read(&answer(StatusCode::OK, one)).unwrap()[0].is_automated);
        let error = read(&answer(StatusCode::BAD_GATEWAY, "")).unwrap_err();
        assert_eq!(error.to_string(), "unexpected status code 502");
        assert!(read(&answer(StatusCode::OK, "<html>")).is_err());
    }
}
