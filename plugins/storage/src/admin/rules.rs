//! Which storage instance a new container gets.

use gantry_sdk::kinds::layers::Wanted;
use gantry_sdk::reference::AnyReference;
use gantry_sdk::{Error, Result};
use serde::Deserialize;

/// An image's hint.
pub(crate) const LABEL: &str = "io.gantry.storage.driver";
/// The most rules; each is tried for every container that is created.
const LIMIT: usize = 1000;

/// The `config` of the section `layers` of `kernel-plugins`.
///
/// ```json
/// { "allow-image-label": true,
///   "rules": [ { "image": "registry.example/ci/*", "driver": "scratch" },
///              { "runtime": "kata", "driver": "blocks" } ] }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Rules {
    /// Tried in this order; the first that fits decides.
    rules: Vec<Rule>,
    /// Whether an image may name the instance by its label [`LABEL`].
    allow_image_label: bool,
}

/// Fits if everything that it names fits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Rule {
    /// Of the image's name as it is written, shown, or in full; `*` stands for anything, `?` for one
    /// character.
    image: Option<String>,
    /// A runtime instance.
    runtime: Option<String>,
    /// The storage instance.
    driver: String,
}

/// What the rules say about a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice<'a> {
    /// This instance, and no other will do.
    Exactly(&'a str),
    /// This instance if it can be used.
    Hint(&'a str),
}

impl Rules {
    /// Every mistake of the section, as far as it can be seen before the instances are known.
    pub fn check(section: &serde_json::Value) -> Vec<String> {
        gantry_sdk::plugin::mistakes(Self::read(section))
    }

    /// Reads the section; `known` are the names of instances that exist, usable or not.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the mistake.
    pub fn parse(own_config: &serde_json::Value, known: &[String]) -> Result<Self> {
        let rules = Self::read(own_config)?;
        for (at, rule) in rules.rules.iter().enumerate() {
            let driver = &rule.driver;
            if !known.contains(driver) {
                let known = known.join(", ");
                return Err(Error::invalid(format!(
                    "layers: rule {at}: no storage instance is named {driver:?} (there are: {known})"
                )));
            }
        }
        Ok(rules)
    }

    fn read(own_config: &serde_json::Value) -> Result<Self> {
        if own_config.is_null() {
            return Ok(Self::default());
        }
        let rules: Self = serde_json::from_value(own_config.clone())
            .map_err(|e| Error::invalid("invalid configuration of layers").caused_by(e))?;
        if rules.rules.len() > LIMIT {
            return Err(Error::invalid(format!("layers: more than {LIMIT} rules")));
        }
        for (at, rule) in rules.rules.iter().enumerate() {
            if rule.image.is_none() && rule.runtime.is_none() {
                return Err(Error::invalid(format!(
                    "layers: rule {at} names neither an image nor a runtime; for all containers set \
                     storage-driver"
                )));
            }
        }
        Ok(rules)
    }

    /// What is said about a container, the weightiest first. Nothing means the default instance.
    pub(crate) fn choices<'a>(&'a self, wanted: &'a Wanted) -> Vec<Choice<'a>> {
        if let Some(asked) = &wanted.instance {
            return vec![Choice::Exactly(asked)];
        }
        let hint = wanted.labels.get(LABEL).filter(|_| self.allow_image_label);
        let hint = hint.map(|name| Choice::Hint(name));
        let names = names_of(&wanted.image);
        let rule = self.rules.iter().find(|rule| rule.fits(&names, &wanted.runtime));
        hint.into_iter().chain(rule.map(|rule| Choice::Exactly(&rule.driver))).collect()
    }
}

impl Rule {
    fn fits(&self, names: &[String], runtime: &str) -> bool {
        let is_image =
            |pattern: &String| names.iter().any(|name| fits(pattern.as_bytes(), name.as_bytes()));
        self.image.as_ref().is_none_or(is_image)
            && self.runtime.as_ref().is_none_or(|wanted| wanted == runtime)
    }
}

/// Everything an image may be called in a rule: as written, as shown, and in full.
fn names_of(image: &str) -> Vec<String> {
    let mut names = vec![image.to_owned()];
    if let Ok(AnyReference::Named(reference)) = AnyReference::parse(image) {
        let tagged = reference.or_latest();
        names.extend([
            tagged.familiar_name(),
            tagged.familiar(),
            tagged.name(),
            tagged.to_string(),
        ]);
    }
    names
}

/// Whether `text` fits the pattern, all of it. Linear but for the last `*`, which is tried again one
/// further each time.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(letter) if *letter == text[t] => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    (p, t) = (after, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patterns_fit_whole_names() {
        let cases = [
            ("busybox", "busybox", true),
            ("busybox", "busybox:1", false),
            ("busybox*", "busybox:1", true),
            ("*/ci/*:1?", "r.example/ci/a/b:12", true),
            ("*/ci/*:1?", "r.example/ci/a/b:1", false),
            ("*", "", true),
            ("?", "", false),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXbXb", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn the_user_goes_before_the_image_and_the_image_before_the_rules() {
        let known = ["a", "b"].map(str::to_owned);
        let config = json!({ "allow-image-label": true, "rules": [
            { "image": "docker.io/library/busy*", "runtime": "kata", "driver": "a" },
            { "image": "busybox:latest", "driver": "b" },
            { "runtime": "kata", "driver": "a" },
        ] });
        let rules = Rules::parse(&config, &known).unwrap();
        let mut wanted =
            Wanted { image: "busybox".to_owned(), runtime: "runc".to_owned(), ..Wanted::default() };
        assert_eq!(rules.choices(&wanted), [Choice::Exactly("b")]);
        wanted.runtime = "kata".to_owned();
        assert_eq!(rules.choices(&wanted), [Choice::Exactly("a")]);
        wanted.image = "other/image:1".to_owned();
        assert_eq!(rules.choices(&wanted), [Choice::Exactly("a")]);
        wanted.labels.insert(LABEL.to_owned(), "x".to_owned());
        assert_eq!(rules.choices(&wanted), [Choice::Hint("x"), Choice::Exactly("a")]);
        wanted.instance = Some("c".to_owned());
        assert_eq!(rules.choices(&wanted), [Choice::Exactly("c")]);
        wanted.instance = None;
        assert_eq!(Rules::default().choices(&wanted), []);
    }

    #[test]
    fn mistakes_are_named() {
        let known = ["a".to_owned()];
        for (config, part) in [
            (json!({ "rules": [{ "driver": "a" }] }), "rule 0 names neither"),
            (json!({ "rules": [{ "image": "x", "driver": "no" }] }), "there are: a"),
            (json!({ "rule": [] }), "invalid configuration of layers"),
        ] {
            let error = Rules::parse(&config, &known).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
