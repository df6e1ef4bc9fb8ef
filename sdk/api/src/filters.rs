//! The `filters` query parameter of lists, prunes and events.
//!
//! ```text
//! {"label": ["a=b"], "status": ["running"]}
//! {"label": {"a=b": true}}                       the older form, still sent by many clients
//! ```
//!
//! Values of one name are alternatives, names add up; each list says which names it knows
//! ([`Filters::validate`]) and matches by the helper that the reference uses for that name.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::common::StringMap;

/// Most bytes of the parameter.
pub const MAX_BYTES: usize = 64 * 1024;
/// Most values over all names.
pub const MAX_VALUES: usize = 1024;
/// Most bytes a compiled pattern may take.
const MAX_PATTERN_BYTES: usize = 64 * 1024;

/// Why a parameter is refused; the status is 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Not of either form.
    #[error("invalid filter")]
    Malformed,
    /// More than the limits of this module.
    #[error("invalid filter: more than {MAX_VALUES} values or {MAX_BYTES} bytes")]
    TooLarge,
    /// A name the list does not know.
    #[error("invalid filter '{0}'")]
    Unknown(String),
    /// A value the name does not take.
    #[error("invalid filter '{name}={}'", go_list(.values))]
    Value {
        /// The name.
        name: String,
        /// All values given for it.
        values: Vec<String>,
    },
}

/// A list as the reference prints it.
fn go_list(values: &[String]) -> String {
    format!("[{}]", values.join(" "))
}

/// Values by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    fields: BTreeMap<String, BTreeSet<String>>,
}

impl Filters {
    /// Parses the parameter; empty text is no filter.
    ///
    /// # Errors
    ///
    /// [`FilterError::Malformed`], [`FilterError::TooLarge`].
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > MAX_BYTES {
            return Err(FilterError::TooLarge);
        }
        let value: Value = serde_json::from_str(text).map_err(|_| FilterError::Malformed)?;
        let fields = match value {
            Value::Null => serde_json::Map::new(),
            Value::Object(fields) => fields,
            _ => return Err(FilterError::Malformed),
        };
        let mut filters = Self::default();
        for (name, values) in fields {
            filters.fields.insert(name, values_of(values)?);
        }
        if filters.fields.values().map(|v| v.len().max(1)).sum::<usize>() > MAX_VALUES {
            return Err(FilterError::TooLarge);
        }
        Ok(filters)
    }

    /// Whether there is no filter at all.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Whether `name` was given, with or without values.
    pub fn contains(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// The names given, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// The values of `name`, in order.
    pub fn get(&self, name: &str) -> impl Iterator<Item = &str> {
        self.fields.get(name).into_iter().flatten().map(String::as_str)
    }

    /// Adds a value.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.fields.entry(name.into()).or_default().insert(value.into());
    }

    /// Removes a value, and the name with its last value.
    pub fn remove(&mut self, name: &str, value: &str) {
        if let Some(values) = self.fields.get_mut(name) {
            values.remove(value);
            if values.is_empty() {
                self.fields.remove(name);
            }
        }
    }

    /// Checks that only `known` names were given.
    ///
    /// # Errors
    ///
    /// [`FilterError::Unknown`] with the first other name.
    pub fn validate(&self, known: &[&str]) -> Result<(), FilterError> {
        match self.names().find(|name| !known.contains(name)) {
            Some(name) => Err(FilterError::Unknown(name.to_owned())),
            None => Ok(()),
        }
    }

    /// A yes-or-no filter: `1` or `true`, `0` or `false`. None if it was not given.
    ///
    /// # Errors
    ///
    /// Given without one clear value: [`FilterError::Unknown`] without any, else
    /// [`FilterError::Value`].
    pub fn flag(&self, name: &str) -> Result<Option<bool>, FilterError> {
        let Some(values) = self.fields.get(name) else { return Ok(None) };
        let yes = values.contains("1") || values.contains("true");
        let no = values.contains("0") || values.contains("false");
        match (yes, no) {
            (true, false) => Ok(Some(true)),
            (false, true) => Ok(Some(false)),
            _ if values.is_empty() => Err(FilterError::Unknown(name.to_owned())),
            _ => Err(self.bad_value(name)),
        }
    }

    /// The error for a value `name` does not take.
    pub fn bad_value(&self, name: &str) -> FilterError {
        let values = self.get(name).map(str::to_owned).collect();
        FilterError::Value { name: name.to_owned(), values }
    }

    /// One of the values is `source`; or there are none.
    pub fn matches_exactly(&self, name: &str, source: &str) -> bool {
        self.any(name, |value| value == source)
    }

    /// One of the values begins `source`; or there are none.
    pub fn matches_prefix(&self, name: &str, source: &str) -> bool {
        self.any(name, |value| source.starts_with(value))
    }

    /// One of the values is `source` or, as a regular expression, found in it; or there are none.
    ///
    /// Expressions are matched in linear time. One that is none matches nothing.
    pub fn matches_pattern(&self, name: &str, source: &str) -> bool {
        self.any(name, |value| {
            value == source || pattern(value).is_some_and(|p| p.is_match(source))
        })
    }

    /// The values of `name` compiled, for matching a long list; see [`Self::matches_pattern`].
    pub fn patterns(&self, name: &str) -> Patterns {
        Patterns {
            any: self.fields.get(name).is_none_or(BTreeSet::is_empty),
            items: self.get(name).map(|value| (value.to_owned(), pattern(value))).collect(),
        }
    }

    /// One of the values, as a shell pattern (`*`, `?`, `[a-z]`, `\`), is all of `source`; or there
    /// are none. `*` and `?` do not match a slash.
    pub fn matches_glob(&self, name: &str, source: &str) -> bool {
        self.any(name, |value| glob(value, source))
    }

    /// All of the values hold of `labels`: `key` that it is there, `key=value` that it is so.
    pub fn matches_labels(&self, name: &str, labels: &StringMap) -> bool {
        self.get(name).all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|have| have == value),
            None => labels.contains_key(wanted),
        })
    }

    /// None of the values hold of `labels` (the `label!` of prunes): the reference refuses an object
    /// only if all of them hold; without values nothing is refused.
    pub fn excludes_labels(&self, name: &str, labels: &StringMap) -> bool {
        self.get(name).next().is_some() && self.matches_labels(name, labels)
    }

    fn any(&self, name: &str, matches: impl Fn(&str) -> bool) -> bool {
        match self.fields.get(name) {
            Some(values) if !values.is_empty() => values.iter().any(|value| matches(value)),
            _ => true,
        }
    }
}

/// The values of one name, compiled.
#[derive(Clone, Debug)]
pub struct Patterns {
    any: bool,
    items: Vec<(String, Option<regex_lite::Regex>)>,
}

impl Patterns {
    /// As [`Filters::matches_pattern`].
    pub fn matches(&self, source: &str) -> bool {
        self.any
            || self.items.iter().any(|(text, pattern)| {
                text == source || pattern.as_ref().is_some_and(|p| p.is_match(source))
            })
    }
}

fn pattern(text: &str) -> Option<regex_lite::Regex> {
    regex_lite::RegexBuilder::new(text).size_limit(MAX_PATTERN_BYTES).build().ok()
}

fn values_of(value: Value) -> Result<BTreeSet<String>, FilterError> {
    match value {
        Value::Null => Ok(BTreeSet::new()),
        Value::Array(values) => values
            .into_iter()
            .map(|value| match value {
                Value::String(text) => Ok(text),
                _ => Err(FilterError::Malformed),
            })
            .collect(),
        // A value that is `false` counts too: were it dropped, a prune would remove more.
        Value::Object(values) => values
            .into_iter()
            .map(|(text, on)| match on {
                Value::Bool(_) | Value::Null => Ok(text),
                _ => Err(FilterError::Malformed),
            })
            .collect(),
        _ => Err(FilterError::Malformed),
    }
}

/// Whether `source` as a whole is what the shell pattern says. Goes back only to the last `*`, so
/// the time is at most the product of both lengths.
fn glob(pattern: &str, source: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let source: Vec<char> = source.chars().collect();
    let (mut p, mut s) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, s));
            p += 1;
            continue;
        }
        match source.get(s) {
            None if p == pattern.len() => return true,
            Some(&c) => {
                if let Some(next) = one(&pattern, p, c) {
                    (p, s) = (next, s + 1);
                    continue;
                }
            }
            None => {}
        }
        match star {
            Some((after, from)) if source.get(from).is_some_and(|c| *c != '/') => {
                star = Some((after, from + 1));
                (p, s) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

/// Where the pattern goes on if its item at `p` takes `c`.
fn one(pattern: &[char], p: usize, c: char) -> Option<usize> {
    match *pattern.get(p)? {
        '?' => (c != '/').then_some(p + 1),
        '\\' => (*pattern.get(p + 1)? == c).then_some(p + 2),
        '[' => class(pattern, p + 1, c),
        literal => (literal == c).then_some(p + 1),
    }
}

/// As [`one`] for a class, `p` being behind its opening bracket.
fn class(pattern: &[char], mut p: usize, c: char) -> Option<usize> {
    let negated = *pattern.get(p)? == '^';
    p += usize::from(negated);
    let (first, mut found) = (p, false);
    loop {
        let mut low = *pattern.get(p)?;
        if low == ']' && p > first {
            return (found != negated && c != '/').then_some(p + 1);
        }
        if low == '\\' {
            p += 1;
            low = *pattern.get(p)?;
        }
        p += 1;
        let mut high = low;
        if pattern.get(p) == Some(&'-') && pattern.get(p + 1).is_some_and(|next| *next != ']') {
            high = *pattern.get(p + 1)?;
            p += 2;
        }
        found |= (low..=high).contains(&c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(text: &str) -> Filters {
        Filters::parse(text).unwrap()
    }

    #[test]
    fn both_forms_are_read() {
        let new = filters(r#"{"label":["a","b=c"],"name":[]}"#);
        assert_eq!(new.get("label").collect::<Vec<_>>(), ["a", "b=c"]);
        assert!(new.contains("name") && !new.contains("x"));
        assert_eq!(new, filters(r#"{"label":{"b=c":true,"a":true},"name":{}}"#));
        assert!(filters(r#"{"until":{"a":false}}"#).get("until").eq(["a"]));
        assert!(filters("").is_empty() && filters("{}").is_empty() && filters("null").is_empty());
    }

    #[test]
    fn everything_else_is_refused() {
        for text in
            ["{", "[]", "1", r#"{"a":1}"#, r#"{"a":"b"}"#, r#"{"a":[1]}"#, r#"{"a":{"b":1}}"#]
        {
            assert_eq!(Filters::parse(text), Err(FilterError::Malformed), "{text}");
        }
        assert_eq!(Filters::parse(&" ".repeat(MAX_BYTES + 1)), Err(FilterError::TooLarge));
        let many: Vec<String> = (0..=MAX_VALUES).map(|n| format!("\"{n}\"")).collect();
        let many = format!("{{\"a\":[{}]}}", many.join(","));
        assert_eq!(Filters::parse(&many), Err(FilterError::TooLarge));
    }

    #[test]
    fn messages_are_the_reference_ones() {
        let f = filters(r#"{"xyz":["a"],"dangling":["b","a"]}"#);
        assert_eq!(FilterError::Malformed.to_string(), "invalid filter");
        assert_eq!(f.validate(&["dangling"]).unwrap_err().to_string(), "invalid filter 'xyz'");
        assert_eq!(f.flag("dangling").unwrap_err().to_string(), "invalid filter 'dangling=[a b]'");
    }

    #[test]
    fn flags() {
        let cases = [
            (r#"{"f":["true"]}"#, Ok(Some(true))),
            (r#"{"f":["1","true"]}"#, Ok(Some(true))),
            (r#"{"f":["0"]}"#, Ok(Some(false))),
            (r"{}", Ok(None)),
            (r#"{"f":["true","false"]}"#, Err(())),
            (r#"{"f":["yes"]}"#, Err(())),
            (r#"{"f":[]}"#, Err(())),
        ];
        for (text, flag) in cases {
            assert_eq!(filters(text).flag("f").map_err(|_| ()), flag, "{text}");
        }
    }

    #[test]
    fn no_values_match_everything() {
        let f = filters(r#"{"n":[]}"#);
        for name in ["n", "other"] {
            assert!(f.matches_exactly(name, "x") && f.matches_prefix(name, "x"));
            assert!(f.matches_pattern(name, "x") && f.matches_glob(name, "x"));
            assert!(f.patterns(name).matches("x"));
            assert!(f.matches_labels(name, &StringMap::new()));
            assert!(!f.excludes_labels(name, &StringMap::new()));
        }
    }

    #[test]
    fn patterns_are_searched_and_bad_ones_match_only_themselves() {
        let f = filters(r#"{"n":["^/web","(bad"]}"#);
        for (source, matches) in [("/web1", true), ("/my-web", false), ("(bad", true)] {
            assert_eq!(f.matches_pattern("n", source), matches, "{source}");
            assert_eq!(f.patterns("n").matches(source), matches, "{source}");
        }
        let bomb = filters(r#"{"n":["((a{1000}){1000}){1000}"]}"#);
        assert!(!bomb.matches_pattern("n", "aaa"));
    }

    #[test]
    fn labels_add_up() {
        let labels = StringMap::from([("a".into(), "1".into()), ("b".into(), String::new())]);
        let cases = [
            (r#"{"label":["a"]}"#, true),
            (r#"{"label":["a=1","b"]}"#, true),
            (r#"{"label":["a=2"]}"#, false),
            (r#"{"label":["a","c"]}"#, false),
            (r#"{"label":["b="]}"#, true),
        ];
        for (text, matches) in cases {
            assert_eq!(filters(text).matches_labels("label", &labels), matches, "{text}");
        }
    }

    #[test]
    fn globs() {
        let cases = [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "abc", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("a*c", "abbc", true),
            ("a*c*", "acbd", true),
            ("a*bc", "abbd", false),
            ("?", "x", true),
            ("?", "/", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[]a]", "]", true),
            ("[a", "a", false),
            ("\\*", "*", true),
            ("\\", "\\", false),
            ("", "", true),
            ("", "a", false),
            ("a*", "a", true),
        ];
        for (pattern, source, matches) in cases {
            assert_eq!(glob(pattern, source), matches, "{pattern} {source}");
        }
    }

    #[test]
    fn a_long_glob_ends_soon() {
        let pattern = "*a".repeat(500) + "b";
        assert!(!glob(&pattern, &"a".repeat(5000)));
    }
}
