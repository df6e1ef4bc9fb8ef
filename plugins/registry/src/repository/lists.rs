//! Lists that come in pages: tags and referrers. Source: OCI distribution specification, *Content Discovery*.

use std::collections::HashSet;
use std::sync::Arc;

use gantry_sdk::ErrorKind;
use gantry_sdk::api::OciDescriptor;
use gantry_sdk::id::Digest;
use gantry_sdk::kinds::registry::MAX_MANIFEST;
use http::header::{ACCEPT, HeaderMap, HeaderValue, LINK};
use http::{Method, StatusCode};
use serde::Deserialize;

use super::Remote;
use super::manifest::whole;
use crate::endpoint::{Ask, Endpoint, refused};
use crate::error::RegistryError;
use crate::http::address::Url;
use crate::http::client::Answer;

/// The most pages of a list, and the most entries.
const MAX_PAGES: usize = 1000;
const MAX_TAGS: usize = 200_000;
const MAX_REFERRERS: usize = 10_000;
/// The largest page, in bytes.
const MAX_PAGE: u64 = 8 << 20;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Deserialize, Default)]
#[serde(default)]
struct Tags {
    tags: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Index {
    manifests: Option<Vec<OciDescriptor>>,
}

/// The pages of a list that are still to be read.
struct Pages<'a> {
    from: &'a Endpoint,
    scopes: &'a [String],
    next: Option<Url>,
    seen: HashSet<String>,
}

impl Pages<'_> {
    /// The next page; none after the last. One that is not there is an answer, for the first page.
    async fn next(&mut self, accept: &'static str) -> Result<Option<Answer>, RegistryError> {
        let Some(url) = self.next.take() else { return Ok(None) };
        if self.seen.len() >= MAX_PAGES || !self.seen.insert(url.target.clone()) {
            return Err(RegistryError::nonsense(&url, "its list has no end"));
        }
        let ask =
            Ask::new(Method::GET, &url, self.scopes).with(ACCEPT, HeaderValue::from_static(accept));
        let reply = self.from.ask(ask).await?;
        if !reply.status.is_success() {
            return Err(refused(reply).await);
        }
        let answer = whole(reply, MAX_PAGE).await?;
        self.next = following(&url, &answer.headers)?;
        Ok(Some(answer))
    }
}

/// Where the next page is: at the same server. Source: RFC 8288.
fn following(here: &Url, headers: &HeaderMap) -> Result<Option<Url>, RegistryError> {
    for value in headers.get_all(LINK) {
        let Ok(text) = value.to_str() else { continue };
        for link in text.split(',') {
            let Some((target, parameters)) = link.trim().split_once('>') else { continue };
            let Some(target) = target.strip_prefix('<') else { continue };
            let is_next = parameters.split(';').any(|parameter| {
                let (name, value) = parameter.split_once('=').unwrap_or_default();
                name.trim().eq_ignore_ascii_case("rel")
                    && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
            });
            if !is_next {
                continue;
            }
            // Some servers write a path without its first part, or only a query.
            let next = match target.strip_prefix('?') {
                Some(query) => {
                    let path = here.target.split('?').next().unwrap_or_default();
                    Ok(here.at(format!("{path}?{query}")))
                }
                None => here.join(target),
            };
            return match next {
                Ok(next) if next.has_origin_of(here) => Ok(Some(next)),
                Ok(_) => Err(RegistryError::nonsense(here, "its list goes on at another server")),
                Err(e) => Err(RegistryError::nonsense(here, format!("its list cannot go on: {e}"))),
            };
        }
    }
    Ok(None)
}

fn read<T: serde::de::DeserializeOwned>(url: &Url, answer: &Answer) -> Result<T, RegistryError> {
    serde_json::from_slice(&answer.body)
        .map_err(|e| RegistryError::nonsense(url, format!("the list makes no sense: {e}")))
}

impl Remote {
    async fn pages<'a>(
        &'a self,
        from: &'a Endpoint,
        path: &str,
    ) -> Result<(Pages<'a>, Url), RegistryError> {
        let url = from.url(&self.path(path)).await?;
        let next = Some(url.clone());
        Ok((Pages { from, scopes: &self.scopes, next, seen: HashSet::new() }, url))
    }

    pub(super) async fn tags_of(&self, from: Arc<Endpoint>) -> Result<Vec<String>, RegistryError> {
        let (mut pages, url) = self.pages(&from, "tags/list").await?;
        let mut all = Vec::new();
        while let Some(page) = pages.next("application/json").await? {
            let tags = read::<Tags>(&url, &page)?.tags.unwrap_or_default();
            // What is no tag cannot be asked for.
            all.extend(tags.into_iter().filter(|tag| self.name.at_tag(tag).is_ok()));
            if all.len() > MAX_TAGS {
                return Err(RegistryError::nonsense(&url, format!("more than {MAX_TAGS} tags")));
            }
        }
        Ok(all)
    }

    pub(super) async fn referrers_of(
        &self,
        from: Arc<Endpoint>,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<OciDescriptor>, RegistryError> {
        let (mut pages, mut url) = self.pages(&from, &format!("referrers/{digest}")).await?;
        if let Some(wanted) = artifact_type {
            url = url.with_query(&[("artifactType", wanted)]);
            pages.next = Some(url.clone());
        }
        let mut all = Vec::new();
        loop {
            match pages.next(INDEX).await {
                Ok(None) => return Ok(all),
                Ok(Some(page)) => {
                    all.extend(read::<Index>(&url, &page)?.manifests.unwrap_or_default());
                }
                // Registries without the interface: there is a tag instead, or nothing.
                Err(error) if all.is_empty() && is_unknown(&error) => {
                    return self.referrers_by_tag(from.clone(), digest).await;
                }
                Err(error) => return Err(error),
            }
            if all.len() > MAX_REFERRERS {
                let why = format!("more than {MAX_REFERRERS} referrers");
                return Err(RegistryError::nonsense(&url, why));
            }
        }
    }

    async fn referrers_by_tag(
        &self,
        from: Arc<Endpoint>,
        digest: &Digest,
    ) -> Result<Vec<OciDescriptor>, RegistryError> {
        let tag = format!("sha256-{}", digest.hex());
        let url = from.url(&self.path(&format!("manifests/{tag}"))).await?;
        let ask =
            Ask::new(Method::GET, &url, &self.scopes).with(ACCEPT, HeaderValue::from_static(INDEX));
        let reply = from.ask(ask).await?;
        if reply.status == StatusCode::NOT_FOUND {
            drop(refused(reply).await);
            return Ok(Vec::new());
        }
        if !reply.status.is_success() {
            return Err(refused(reply).await);
        }
        let index: Index = read(&url, &whole(reply, MAX_MANIFEST).await?)?;
        let mut all = index.manifests.unwrap_or_default();
        all.truncate(MAX_REFERRERS);
        Ok(all)
    }
}

/// Whether a registry does not know the interface, or the thing.
fn is_unknown(error: &RegistryError) -> bool {
    match error {
        RegistryError::Refused(refusal) => {
            refusal.kind == ErrorKind::NotFound
                || matches!(refusal.status.as_u16(), 400 | 405 | 501)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_the_next_page() {
        let here = Url::parse("https://reg.example/v2/a/tags/list?n=2").unwrap();
        for (link, expected) in [
            ("</v2/a/tags/list?last=b&n=2>; rel=\"next\"", Ok(Some("/v2/a/tags/list?last=b&n=2"))),
            ("<https://reg.example/x>; rel=next", Ok(Some("/x"))),
            ("<?last=c>; rel=\"next\"", Ok(Some("/v2/a/tags/list?last=c"))),
            ("</x>; rel=\"prev\", </y>; REL=\"next\"; title=z", Ok(Some("/y"))),
            ("</x>; rel=\"prev\"", Ok(None)),
            ("/x; rel=next", Ok(None)),
            ("<https://other.example/x>; rel=next", Err("another server")),
            ("<http://reg.example/x>; rel=next", Err("another server")),
            ("<ftp://reg.example/x>; rel=next", Err("cannot go on")),
        ] {
            let headers = HeaderMap::from_iter([(LINK, link.parse().unwrap())]);
            match (following(&here, &headers), expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found.as_ref().map(|url| url.target.as_str()), expected, "{link}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (other, _) => panic!("{link}: {other:?}"),
            }
        }
    }
}
