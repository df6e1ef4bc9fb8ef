//! Which events a client wants.

use std::time::{SystemTime, UNIX_EPOCH};

use gantry_sdk::api::version::{sees_event, shape_event};
use gantry_sdk::api::{EventActor, EventMessage, Filters};
use gantry_sdk::events::Event;
use gantry_sdk::{ApiVersion, Error, Request, Result};

const FILTERS: &[&str] = &[
    "builder",
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];
/// Object types whose name or id can be filtered for, by the filter of the same name.
const OBJECTS: &[&str] = &[
    "builder",
    "config",
    "container",
    "daemon",
    "network",
    "node",
    "plugin",
    "secret",
    "service",
    "volume",
];

/// The query of `/events`.
#[derive(Clone, Debug)]
pub struct Wanted {
    filters: Filters,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    version: ApiVersion,
}

impl Wanted {
    /// Reads the query.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` naming the parameter.
    pub fn parse(request: &Request) -> Result<Self> {
        let filters = request.filters(FILTERS)?;
        let time = |name| {
            let text = request.query.get(name).filter(|text| !text.is_empty());
            text.map(|text| gantry_sdk::time::query(name, text)).transpose()
        };
        let (since, until) = (time("since")?, time("until")?);
        if let (Some(since), Some(until)) = (since, until)
            && since > until
        {
            return Err(Error::invalid("`since` time cannot be after `until` time"));
        }
        Ok(Self { filters, since, until, version: request.version })
    }

    /// When no more events are wanted.
    pub const fn until(&self) -> Option<SystemTime> {
        self.until
    }

    /// Whether past events are wanted.
    pub const fn wants_past(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }

    /// The event as this client sees it, if it wants it.
    pub fn select(&self, event: &Event) -> Option<EventMessage> {
        let in_time = self.since.is_none_or(|at| event.at >= at)
            && self.until.is_none_or(|at| event.at <= at);
        if !in_time || !self.matches(event) {
            return None;
        }
        let mut message = message(event);
        if !sees_event(self.version, &message) {
            return None;
        }
        shape_event(self.version, &mut message);
        Some(message)
    }

    fn matches(&self, event: &Event) -> bool {
        let filters = &self.filters;
        // `exec_create: sh` is an `exec_create`.
        let verb = event.action.split(':').next().unwrap_or_default();
        let event_matches = filters.matches_exactly("event", &event.action)
            || filters.matches_exactly("event", verb);
        event_matches
            && filters.matches_exactly("type", event.kind)
            && filters.matches_exactly("scope", "local")
            && filters.matches_labels("label", &event.attributes)
            && OBJECTS.iter().all(|object| self.matches_object(event, object))
            && self.matches_image(event)
    }

    fn matches_object(&self, event: &Event, object: &str) -> bool {
        if !self.filters.contains(object) {
            return true;
        }
        let name = event.attributes.get("name").map_or("", String::as_str);
        event.kind == object
            && (self.filters.matches_prefix(object, &event.id)
                || self.filters.matches_exactly(object, name))
    }

    /// By id or name of the image, with or without tag; of a container, by its image.
    fn matches_image(&self, event: &Event) -> bool {
        if !self.filters.contains("image") {
            return true;
        }
        let attribute = if event.kind == "image" { "name" } else { "image" };
        let name = event.attributes.get(attribute).map_or("", String::as_str);
        let id = if event.kind == "image" { event.id.as_str() } else { "" };
        [id, name, without_tag(name)]
            .into_iter()
            .filter(|text| !text.is_empty())
            .any(|text| self.filters.matches_exactly("image", text))
    }
}

fn without_tag(reference: &str) -> &str {
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => reference,
    }
}

/// The event in the newest form.
fn message(event: &Event) -> EventMessage {
    let since = event.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    EventMessage {
        kind: event.kind.into(),
        action: event.action.clone(),
        actor: EventActor { id: event.id.clone(), attributes: event.attributes.clone() },
        scope: "local".into(),
        time: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        time_nano: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        ..EventMessage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(filters: &str) -> Wanted {
        Wanted {
            filters: Filters::parse(filters).unwrap(),
            since: None,
            until: None,
            version: ApiVersion::v1(50),
        }
    }

    #[test]
    fn filters_select_events() {
        let event = Event::now("container", "exec_create: sh", "abc")
            .with("name", "web")
            .with("image", "busybox:latest");
        let cases = [
            ("{}", true),
            (r#"{"type":["container"]}"#, true),
            (r#"{"type":["image"]}"#, false),
            (r#"{"event":["exec_create"]}"#, true),
            (r#"{"event":["die"]}"#, false),
            (r#"{"container":["web"]}"#, true),
            (r#"{"container":["other"]}"#, false),
            (r#"{"image":["busybox"]}"#, true),
            (r#"{"image":["alpine"]}"#, false),
            (r#"{"volume":["v"]}"#, false),
        ];
        for (filters, expected) in cases {
            assert_eq!(wanted(filters).select(&event).is_some(), expected, "{filters}");
        }
    }
}
