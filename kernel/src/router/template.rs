//! Path templates, and how two of them relate.
//!
//! A template is a list of segments: literals, `{one}` for exactly one segment, and at most one
//! `{rest..}` for one or more of them. Parameters never match an empty segment, so that
//! `/networks/` and `/networks/{id}` are different things.

use std::collections::BTreeMap;
use std::fmt;

/// One piece of a template between two slashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Literal(&'static str),
    One(&'static str),
    Rest(&'static str),
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: &'static str,
    segments: Vec<Segment>,
}

/// Parameters by name.
pub type Params = BTreeMap<&'static str, String>;

/// How the paths of one template relate to those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// No path belongs to both.
    Disjoint,
    /// Every path of the first belongs to the second, and not the other way round.
    Narrower,
    /// Every path of the second belongs to the first, and not the other way round.
    Wider,
    /// The same paths.
    Equal,
    /// Some paths belong to both, and each has some of its own.
    Crossing,
}

impl Template {
    /// Parses `/images/{name..}/json`.
    ///
    /// # Errors
    ///
    /// What is wrong with `text`.
    pub fn parse(text: &'static str) -> Result<Self, String> {
        let path = text.strip_prefix('/').ok_or("must begin with a slash")?;
        let segments = path.split('/').map(Segment::parse).collect::<Result<Vec<_>, _>>()?;
        let mut names = Vec::new();
        for segment in &segments {
            match segment {
                Segment::One(name) | Segment::Rest(name) if names.contains(name) => {
                    return Err(format!("parameter {name} occurs twice"));
                }
                Segment::One(name) | Segment::Rest(name) => names.push(name),
                Segment::Literal(_) => {}
            }
        }
        if segments.iter().filter(|s| matches!(s, Segment::Rest(_))).count() > 1 {
            return Err("only one parameter may span segments".to_owned());
        }
        Ok(Self { text, segments })
    }

    /// As written.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        self.text
    }

    /// The first segment, if it is a literal.
    pub(super) fn first_literal(&self) -> Option<&'static str> {
        match self.segments.first() {
            Some(Segment::Literal(text)) => Some(text),
            _ => None,
        }
    }

    /// The first two segments, as far as they are literals.
    pub(super) fn leading_literals(&self) -> (Option<&'static str>, Option<&'static str>) {
        let literal = |n: usize| match self.segments.get(n) {
            Some(Segment::Literal(text)) => Some(*text),
            _ => None,
        };
        (literal(0), literal(1))
    }

    fn rest(&self) -> Option<usize> {
        self.segments.iter().position(|s| matches!(s, Segment::Rest(_)))
    }

    /// Whether `path` belongs to this template.
    #[must_use]
    pub fn matches(&self, path: &[&str]) -> bool {
        match self.rest() {
            None => {
                self.segments.len() == path.len()
                    && self.segments.iter().zip(path).all(|(s, text)| s.accepts(text))
            }
            Some(at) => {
                let after = self.segments.len() - at - 1;
                path.len() >= self.segments.len()
                    && self.segments[..at].iter().zip(path).all(|(s, text)| s.accepts(text))
                    && path[at..path.len() - after].iter().all(|text| !text.is_empty())
                    && self.segments[at + 1..]
                        .iter()
                        .zip(&path[path.len() - after..])
                        .all(|(s, text)| s.accepts(text))
            }
        }
    }

    /// The parameters of a `path` that [`matches`](Self::matches).
    #[must_use]
    pub fn params(&self, path: &[&str]) -> Params {
        let spanned = (path.len() + 1).saturating_sub(self.segments.len());
        let mut params = Params::new();
        let mut at = 0;
        for segment in &self.segments {
            match segment {
                Segment::Literal(_) => at += 1,
                Segment::One(name) => {
                    params.insert(name, path.get(at).copied().unwrap_or_default().to_owned());
                    at += 1;
                }
                Segment::Rest(name) => {
                    let end = (at + spanned).min(path.len());
                    params.insert(name, path[at.min(end)..end].join("/"));
                    at = end;
                }
            }
        }
        params
    }

    /// How the paths of `self` relate to those of `other`. Exact.
    #[must_use]
    pub fn relation(&self, other: &Self) -> Relation {
        if !self.overlaps(other) {
            return Relation::Disjoint;
        }
        match (self.within(other), other.within(self)) {
            (true, true) => Relation::Equal,
            (true, false) => Relation::Narrower,
            (false, true) => Relation::Wider,
            (false, false) => Relation::Crossing,
        }
    }

    /// The segments with the spanning parameter widened to `span` segments.
    fn spread(&self, span: usize) -> Vec<Segment> {
        let widen = |segment: &Segment| match segment {
            Segment::Rest(name) => vec![Segment::One(name); span],
            other => vec![*other],
        };
        self.segments.iter().flat_map(widen).collect()
    }

    /// Whether every path of `self` is one of `other`.
    ///
    /// It suffices to try one word for each length: a segment that no template spells out stands
    /// for all others, and spans longer than both templates together tell nothing new.
    fn within(&self, other: &Self) -> bool {
        const ANY: &str = "\u{0}";
        self.spans(other).all(|span| {
            let word: Vec<&str> = self
                .spread(span)
                .iter()
                .map(|segment| match segment {
                    Segment::Literal(text) => text,
                    _ => ANY,
                })
                .collect();
            other.matches(&word)
        })
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.spans(other).any(|span| {
            let mine = self.spread(span);
            let theirs = match other.rest() {
                None => other.segments.clone(),
                Some(_) if mine.len() < other.segments.len() => return false,
                Some(_) => other.spread(mine.len() + 1 - other.segments.len()),
            };
            mine.len() == theirs.len() && mine.iter().zip(&theirs).all(|(a, b)| a.meets(b))
        })
    }

    /// The spans of this template's own spanning parameter that are worth trying.
    fn spans(&self, other: &Self) -> std::ops::RangeInclusive<usize> {
        match self.rest() {
            None => 1..=1,
            Some(_) => 1..=self.segments.len() + other.segments.len(),
        }
    }
}

impl Segment {
    fn parse(text: &'static str) -> Result<Self, String> {
        let Some(inner) = text.strip_prefix('{') else {
            return if text.contains(['{', '}']) {
                Err(format!("segment {text:?} mixes literal and parameter"))
            } else {
                Ok(Self::Literal(text))
            };
        };
        let name = inner.strip_suffix('}').ok_or_else(|| format!("unclosed segment {text:?}"))?;
        let (name, segment): (_, fn(&'static str) -> Self) = match name.strip_suffix("..") {
            Some(name) => (name, Self::Rest),
            None => (name, Self::One),
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("bad parameter name in {text:?}"));
        }
        Ok(segment(name))
    }

    /// Whether this one segment, not spanning, accepts `text`.
    fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Literal(literal) => *literal == text,
            Self::One(_) | Self::Rest(_) => !text.is_empty(),
        }
    }

    /// Whether some text is accepted by both.
    fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Literal(a), _) => other.accepts(a),
            (_, Self::Literal(b)) => self.accepts(b),
            _ => true,
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn template(text: &str) -> Template {
        Template::parse(text.to_owned().leak()).unwrap()
    }

    #[test]
    fn templates_relate_as_the_table_says() {
        use Relation::*;
        let cases = [
            ("/containers/{id..}", "/containers/{id}/checkpoints/{c}", Wider),
            ("/images/{n..}/json", "/images/{n..}/history", Disjoint),
            ("/plugins/privileges", "/plugins/{n..}/json", Disjoint),
            ("/images/search", "/images/{n..}", Narrower),
            ("/images/json", "/images/{n..}/json", Disjoint),
            ("/volumes/{name}", "/volumes/{id}", Equal),
            ("/a/{x}/c", "/a/b/{y}", Crossing),
            ("/volumes/prune", "/volumes/{n}", Narrower),
            ("/networks/", "/networks/{id}", Disjoint),
            ("/{a}/{b..}", "/{a..}/{b}", Equal),
            ("/x/{r..}", "/{r..}/y", Crossing),
            ("/{any..}", "/_ping", Wider),
        ];
        for (a, b, expected) in cases {
            assert_eq!(template(a).relation(&template(b)), expected, "{a} {b}");
        }
    }

    #[test]
    fn parameters_span_segments_before_a_literal() {
        let images = template("/images/{name..}/json");
        let path = ["images", "registry:5000", "a", "b", "json"];
        assert!(images.matches(&path));
        assert_eq!(images.params(&path)["name"], "registry:5000/a/b");
        assert!(!images.matches(&["images", "json"]));
        let two = template("/{a}/x/{rest..}");
        assert_eq!(two.params(&["1", "x", "2", "3"])["rest"], "2/3");
        assert_eq!(two.params(&["1", "x", "2", "3"])["a"], "1");
    }

    #[test]
    fn malformed_templates_are_refused() {
        for text in ["a", "/{", "/{}", "/a{b}", "/{a..}/{b..}", "/{a}/{a}", "/{a b}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    /// Every path of up to five segments over the letters; `c` is in no template.
    fn all_paths() -> Vec<Vec<&'static str>> {
        let mut paths = vec![vec![]];
        let mut longest = paths.clone();
        for _ in 0..5 {
            longest = longest
                .iter()
                .flat_map(|path: &Vec<&str>| {
                    ["a", "b", "c", ""].map(|letter| [path.as_slice(), &[letter]].concat())
                })
                .collect();
            paths.extend(longest.iter().cloned());
        }
        paths
    }

    fn any_template() -> impl Strategy<Value = String> {
        let segment = prop_oneof![Just("a"), Just("b"), Just("{one}"), Just("{rest..}"), Just("")];
        proptest::collection::vec(segment, 1..4).prop_map(|segments| {
            let numbered = segments.iter().enumerate().map(|(n, segment)| match *segment {
                "{one}" => format!("/{{one{n}}}"),
                literal => format!("/{literal}"),
            });
            numbered.collect()
        })
    }

    proptest! {
        /// The verdict agrees with looking at every path.
        #[test]
        fn relation_agrees_with_brute_force(a in any_template(), b in any_template()) {
            let (Ok(a), Ok(b)) = (Template::parse(a.leak()), Template::parse(b.leak())) else {
                return Ok(());
            };
            let (mut both, mut only_a, mut only_b) = (false, false, false);
            for path in all_paths() {
                match (a.matches(&path), b.matches(&path)) {
                    (true, true) => both = true,
                    (true, false) => only_a = true,
                    (false, true) => only_b = true,
                    (false, false) => {}
                }
            }
            let expected = match (both, only_a, only_b) {
                (false, ..) => Relation::Disjoint,
                (true, false, false) => Relation::Equal,
                (true, false, true) => Relation::Narrower,
                (true, true, false) => Relation::Wider,
                (true, true, true) => Relation::Crossing,
            };
            prop_assert_eq!(a.relation(&b), expected, "{} {}", a, b);
        }

        /// Every parameter is there, and putting them back gives the path.
        #[test]
        fn parameters_rebuild_the_path(text in any_template()) {
            let Ok(template) = Template::parse(text.leak()) else { return Ok(()) };
            for path in all_paths().iter().filter(|path| template.matches(path)) {
                let params = template.params(path);
                let rebuilt: Vec<&str> = template.segments.iter().map(|s| match s {
                    Segment::Literal(text) => *text,
                    Segment::One(name) | Segment::Rest(name) => params[name].as_str(),
                }).collect();
                prop_assert_eq!(rebuilt.join("/"), path.join("/"));
            }
        }
    }
}
