//! The merged route table.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use gantry_sdk::route::Handler;
use gantry_sdk::{ApiVersion, Descriptor, Method, RouteDecl, Shape};

use super::template::{Params, Relation, Template};

/// The owner of routes that the kernel serves itself.
pub const KERNEL: &str = "kernel";

/// One route.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The plugin that declares it.
    pub owner: &'static str,
    /// Its declaration.
    pub decl: RouteDecl,
    /// Its template.
    pub template: Template,
}

/// What a route leads to.
pub enum Target {
    /// A handler.
    Handler(Handler),
    /// The plugin is not in service; why.
    Down(String),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Handler(_) => f.write_str("Handler"),
            Self::Down(why) => f.debug_tuple("Down").field(why).finish(),
        }
    }
}

/// Every route of this build. The routes are fixed at start; their targets are set once each.
#[derive(Debug, Default)]
pub struct Router {
    /// Narrower templates before wider ones.
    entries: Vec<Entry>,
    targets: Vec<OnceLock<Target>>,
    /// By method and first literal; routes without one are in every list of their method.
    index: HashMap<(Method, &'static str), Vec<usize>>,
    /// By method: routes that begin with a parameter.
    open: HashMap<Method, Vec<usize>>,
}

/// The route that answers a request.
#[derive(Debug)]
pub struct Found<'a> {
    /// The route.
    pub entry: &'a Entry,
    /// What it leads to; none before its plugin has started.
    pub target: Option<&'a Target>,
    /// The parameters of its template.
    pub params: Params,
}

impl Router {
    /// Merges the routes of `descriptors` and of the kernel itself.
    ///
    /// # Errors
    ///
    /// Every malformed template, every trespass and every pair of routes that would need an order
    /// of registration to be told apart.
    pub fn new(descriptors: &[&Descriptor], own: &[RouteDecl]) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let mut entries = Vec::new();
        let declared = descriptors
            .iter()
            .flat_map(|d| d.routes.iter().map(|decl| (d.id, decl)))
            .chain(own.iter().map(|decl| (KERNEL, decl)));
        for (owner, decl) in declared {
            match Template::parse(decl.template) {
                Ok(template) => {
                    errors.extend(trespass(owner, &template));
                    entries.push(Entry { owner, decl: *decl, template });
                }
                Err(error) => {
                    errors.push(format!("{owner}: route {}: {error}", decl.template));
                }
            }
        }
        errors.extend(repeated_ids(&entries));
        errors.extend(clashes(&entries));
        if errors.is_empty() { Ok(Self::indexed(entries)) } else { Err(errors) }
    }

    fn indexed(mut entries: Vec<Entry>) -> Self {
        // A template contains strictly more others than any narrower one does.
        let contained = |entry: &Entry| {
            entries
                .iter()
                .filter(|other| other.decl.method == entry.decl.method)
                .filter(|other| other.template.relation(&entry.template) == Relation::Narrower)
                .count()
        };
        let mut ranks: Vec<_> =
            entries.iter().map(|e| (contained(e), e.template.as_str())).collect();
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|&n| (ranks[n], entries[n].decl.method, entries[n].decl.since));
        entries = order.iter().map(|&n| entries[n].clone()).collect();
        ranks.clear();

        let mut router = Self::default();
        for (n, entry) in entries.iter().enumerate() {
            match entry.template.first_literal() {
                Some(first) => router.index.entry((entry.decl.method, first)).or_default().push(n),
                None => router.open.entry(entry.decl.method).or_default().push(n),
            }
        }
        router.targets = entries.iter().map(|_| OnceLock::new()).collect();
        router.entries = entries;
        router
    }

    /// All routes, narrower ones first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Leads the routes of `owner` to what `target` says for their id. The first call counts.
    pub fn set_targets(&self, owner: &str, mut target: impl FnMut(&RouteDecl) -> Target) {
        for (entry, slot) in self.entries.iter().zip(&self.targets) {
            if entry.owner == owner {
                let _ = slot.set(target(&entry.decl));
            }
        }
    }

    /// The route for `path`, if any. `HEAD` falls back to `GET`. Of several routes with the same
    /// template the one whose API window holds `version` answers, or else the newest.
    #[must_use]
    pub fn find(&self, method: Method, path: &[&str], version: ApiVersion) -> Option<Found<'_>> {
        let found = self.find_exact(method, path, version);
        match (found, method) {
            (None, Method::Head) => self
                .find_exact(Method::Get, path, version)
                .filter(|found| matches!(found.entry.decl.shape, Shape::Json | Shape::Stream)),
            (found, _) => found,
        }
    }

    fn find_exact(&self, method: Method, path: &[&str], version: ApiVersion) -> Option<Found<'_>> {
        let first = path.first()?;
        let fixed = self.index.get(&(method, *first)).into_iter().flatten();
        let open = self.open.get(&method).into_iter().flatten();
        let mut outside = None;
        for &n in fixed.chain(open) {
            let entry = &self.entries[n];
            if !entry.template.matches(path) {
                continue;
            }
            if entry.holds(version) {
                return Some(self.found(n, path));
            }
            outside = outside.or(Some(n));
        }
        outside.map(|n| self.found(n, path))
    }

    fn found(&self, n: usize, path: &[&str]) -> Found<'_> {
        let entry = &self.entries[n];
        Found { entry, target: self.targets[n].get(), params: entry.template.params(path) }
    }
}

impl Entry {
    /// Whether this route exists in `version`.
    #[must_use]
    pub fn holds(&self, version: ApiVersion) -> bool {
        version >= self.decl.since && self.decl.until.is_none_or(|until| version <= until)
    }

    /// `GET /images/{name..}/json`
    #[must_use]
    pub fn signature(&self) -> String {
        format!("{} {}", method_name(self.decl.method), self.template)
    }

    fn window_meets(&self, other: &Self) -> bool {
        let ends_before = |a: &Self, b: &Self| a.decl.until.is_some_and(|end| end < b.decl.since);
        !ends_before(self, other) && !ends_before(other, self)
    }
}

/// The name of a method on the wire.
#[must_use]
pub const fn method_name(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Options => "OPTIONS",
    }
}

/// Everybody's own paths are beneath `/x/<id>/`.
fn trespass(owner: &str, template: &Template) -> Option<String> {
    match template.leading_literals() {
        (Some("x"), Some(id)) if id == owner => None,
        (Some("x"), _) => {
            Some(format!("{owner}: route {template} is outside /x/{owner}/, its own space"))
        }
        _ => None,
    }
}

fn repeated_ids(entries: &[Entry]) -> Vec<String> {
    let mut seen = BTreeMap::<(&str, &str), usize>::new();
    for entry in entries {
        *seen.entry((entry.owner, entry.decl.id)).or_default() += 1;
    }
    seen.iter()
        .filter(|(_, count)| **count > 1)
        .map(|((owner, id), _)| format!("{owner}: route id {id:?} is used twice"))
        .collect()
}

fn clashes(entries: &[Entry]) -> Vec<String> {
    let mut errors = Vec::new();
    for (n, a) in entries.iter().enumerate() {
        for b in &entries[n + 1..] {
            if a.decl.method != b.decl.method || !a.window_meets(b) {
                continue;
            }
            let what = match a.template.relation(&b.template) {
                Relation::Equal => "serve the same paths",
                Relation::Crossing => "serve some paths in common, and neither is narrower",
                Relation::Disjoint | Relation::Narrower | Relation::Wider => continue,
            };
            // Named in a fixed order, so that the message does not depend on registration.
            let mut pair = [(a.owner, a.signature()), (b.owner, b.signature())];
            pair.sort();
            let [(first, one), (second, two)] = pair;
            errors.push(format!("{one} of {first} and {two} of {second} {what}"));
        }
    }
    errors.sort();
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::Phase;

    fn descriptor(id: &'static str, routes: Vec<RouteDecl>) -> &'static Descriptor {
        Box::leak(Box::new(Descriptor { routes: routes.leak(), ..Descriptor::new(id, Phase::Api) }))
    }

    fn get(id: &'static str, template: &'static str) -> RouteDecl {
        RouteDecl::new(id, Method::Get, template)
    }

    fn found(router: &Router, method: Method, path: &str) -> Option<&'static str> {
        let segments: Vec<&str> = path[1..].split('/').collect();
        let version = crate::version::NEWEST;
        router.find(method, &segments, version).map(|found| found.entry.decl.id)
    }

    #[test]
    fn the_narrower_template_wins_whatever_the_order() {
        let mut routes = vec![
            get("any", "/images/{name..}"),
            get("inspect", "/images/{name..}/json"),
            get("list", "/images/json"),
            get("search", "/images/search"),
            get("networks", "/networks"),
            get("networks-slash", "/networks/"),
            get("network", "/networks/{id}"),
        ];
        for _ in 0..routes.len() {
            routes.rotate_left(1);
            let router = Router::new(&[descriptor("a", routes.clone())], &[]).unwrap();
            for (path, id) in [
                ("/images/json", Some("list")),
                ("/images/search", Some("search")),
                ("/images/a/b/json", Some("inspect")),
                ("/images/json/json", Some("inspect")),
                ("/images/a/b", Some("any")),
                ("/networks/", Some("networks-slash")),
                ("/networks/x", Some("network")),
                ("/networks/x/", None),
                ("/nowhere", None),
            ] {
                assert_eq!(found(&router, Method::Get, path), id, "{path}");
                assert_eq!(found(&router, Method::Head, path), id, "HEAD {path}");
                assert_eq!(found(&router, Method::Post, path), None, "POST {path}");
            }
        }
    }

    #[test]
    fn clashes_name_both_plugins_and_are_reported_together() {
        let one = descriptor("one", vec![get("a", "/volumes/{name}"), get("b", "/a/{x}/c")]);
        let two = descriptor(
            "two",
            vec![get("a", "/volumes/{id}"), get("b", "/a/b/{y}"), get("c", "/x/one/z")],
        );
        let errors = Router::new(&[two, one], &[]).unwrap_err();
        assert_eq!(
            errors,
            [
                "two: route /x/one/z is outside /x/two/, its own space",
                "GET /a/{x}/c of one and GET /a/b/{y} of two serve some paths in common, and \
                 neither is narrower",
                "GET /volumes/{name} of one and GET /volumes/{id} of two serve the same paths",
            ]
        );
    }

    #[test]
    fn api_windows_tell_routes_with_one_template_apart() {
        let old = RouteDecl { until: Some(ApiVersion::v1(40)), ..get("old", "/a") };
        let new = get("new", "/a").since(ApiVersion::v1(41));
        let router = Router::new(&[descriptor("a", vec![new, old])], &[]).unwrap();
        let id =
            |minor| router.find(Method::Get, &["a"], ApiVersion::v1(minor)).unwrap().entry.decl.id;
        assert_eq!((id(30), id(40), id(41)), ("old", "old", "new"));
    }

    #[test]
    fn a_hijack_has_no_head() {
        let attach = get("ws", "/attach/ws").shaped(Shape::Upgrade);
        let router = Router::new(&[descriptor("a", vec![attach])], &[]).unwrap();
        assert_eq!(found(&router, Method::Head, "/attach/ws"), None);
    }
}
