//! What goes into each line beside the output: labels, environment, tag.

use std::collections::BTreeMap;

use gantry_sdk::kinds::logs::LogTarget;
use gantry_sdk::{Error, Result};

use crate::options::Options;

/// The name under which daemons of this kind present themselves in tags.
const DAEMON: &str = "docker";

/// The `tag` option: text with `{{.Field}}` in it.
///
/// Fields: `ID` and `FullID`, `Name`, `ImageName`, `DaemonName`, `Hostname`. The reference runs a
/// template language here; whatever goes beyond fields is refused by name, when the container is
/// created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id,
    FullId,
    Name,
    ImageName,
    DaemonName,
    Hostname,
}

impl Field {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            ".ID" => Self::Id,
            ".FullID" => Self::FullId,
            ".Name" => Self::Name,
            ".ImageName" => Self::ImageName,
            ".DaemonName" => Self::DaemonName,
            ".Hostname" => Self::Hostname,
            _ => return None,
        })
    }

    fn of(self, target: &LogTarget) -> String {
        match self {
            Self::Id => target.container.chars().take(12).collect(),
            Self::FullId => target.container.clone(),
            Self::Name => target.name.clone(),
            Self::ImageName => target.image.clone(),
            Self::DaemonName => DAEMON.to_owned(),
            Self::Hostname => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }
}

impl Tag {
    /// Takes `text` apart; none if it is empty.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming what is no field.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let Some((inside, after)) = after.split_once("}}") else {
                return Err(Error::invalid(format!("invalid tag {text:.200?}: unclosed action")));
            };
            let field = Field::parse(inside.trim()).ok_or_else(|| {
                Error::invalid(format!(
                    "invalid tag: {{{{{inside:.100}}}}} is not one of .ID, .FullID, .Name, \
                     .ImageName, .DaemonName, .Hostname"
                ))
            })?;
            parts.push(Part::Field(field));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok((!parts.is_empty()).then_some(Self(parts)))
    }

    fn render(&self, target: &LogTarget) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Field(field) => field.of(target),
            })
            .collect()
    }
}

/// The `attrs` object of each line of `target`; none if it would be empty.
///
/// # Errors
///
/// `Internal` if it cannot be encoded.
pub fn attributes(options: &Options, target: &LogTarget) -> Result<Option<String>> {
    let mut attributes = BTreeMap::<&str, String>::new();
    for (name, value) in &target.labels {
        let by_pattern = options.labels_regex.as_ref().is_some_and(|r| r.is_match(name));
        if by_pattern || options.labels.contains(name) {
            attributes.insert(name, value.clone());
        }
    }
    for (name, value) in target.env.iter().filter_map(|entry| entry.split_once('=')) {
        let by_pattern = options.env_regex.as_ref().is_some_and(|r| r.is_match(name));
        if by_pattern || options.env.iter().any(|wanted| wanted == name) {
            attributes.insert(name, value.to_owned());
        }
    }
    if let Some(tag) = options.tag.as_ref().map(|tag| tag.render(target)).filter(|t| !t.is_empty())
    {
        attributes.insert("tag", tag);
    }
    if attributes.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(&attributes)
        .map(Some)
        .map_err(|e| Error::internal("cannot encode log attributes", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::Labels;

    fn target() -> LogTarget {
        LogTarget {
            container: "0123456789abcdef".to_owned(),
            name: "web".to_owned(),
            image: "nginx:1".to_owned(),
            labels: Labels::from([
                ("tier".to_owned(), "front".to_owned()),
                ("x.y".to_owned(), "1".to_owned()),
            ]),
            env: vec!["PATH=/bin".to_owned(), "A=b=c".to_owned(), "ODD".to_owned()],
            ..LogTarget::default()
        }
    }

    #[test]
    fn tags() {
        let render = |text: &str| Tag::parse(text).unwrap().unwrap().render(&target());
        assert_eq!(render("{{.ImageName}}/{{.Name}}/{{ .ID }}"), "nginx:1/web/0123456789ab");
        assert_eq!(render("plain"), "plain");
        assert!(!render("{{.Hostname}}").is_empty());
        assert!(Tag::parse("").unwrap().is_none());
        for bad in ["{{", "{{.ID", "{{json .}}", "{{}}"] {
            assert!(Tag::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_and_environment_by_name_and_pattern() {
        let attrs = |pairs: &[(&str, &str)]| {
            let options =
                pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Labels>();
            attributes(&Options::parse(&options).unwrap(), &target()).unwrap()
        };
        assert_eq!(attrs(&[]), None);
        assert_eq!(attrs(&[("labels", "none")]), None);
        assert_eq!(
            attrs(&[("labels", "tier"), ("env-regex", "^A"), ("tag", "t")]).as_deref(),
            Some(r#"{"A":"b=c","tag":"t","tier":"front"}"#)
        );
        assert_eq!(attrs(&[("labels-regex", r"^x\.")]).as_deref(), Some(r#"{"x.y":"1"}"#));
    }
}
