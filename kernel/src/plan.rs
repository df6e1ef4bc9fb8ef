//! What a build would do: its plugins in order and its routes, worked out without running any.

use std::fmt::{self, Write as _};

use gantry_sdk::{Descriptor, Registration};

use crate::config::{self, Config, Reader};
use crate::graph::{GraphError, order};
use crate::introspection;
use crate::router::Router;
use crate::router::table::method_name;

/// A resolved build.
#[derive(Debug)]
pub struct Plan {
    /// Descriptors in start order.
    pub order: Vec<&'static Descriptor>,
    /// The code behind them.
    pub registrations: Vec<&'static Registration>,
    /// Every route; none leads anywhere yet.
    pub router: Router,
}

/// Everything that is wrong with a set of plugins.
#[derive(Clone, Debug, Default)]
pub struct PlanError {
    /// What keeps them from being ordered.
    pub graph: Vec<GraphError>,
    /// What is wrong with their routes.
    pub routes: Vec<String>,
    /// What is wrong with their commands.
    pub commands: Vec<String>,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the plugins of this build do not fit together:")?;
        self.graph.iter().try_for_each(|error| write!(f, "\n  {error}"))?;
        let more = self.routes.iter().chain(&self.commands);
        more.into_iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for PlanError {}

impl Plan {
    /// Resolves order and routes.
    ///
    /// # Errors
    ///
    /// Everything that is wrong.
    pub fn resolve(registrations: Vec<&'static Registration>) -> Result<Self, PlanError> {
        let descriptors: Vec<_> = registrations.iter().map(|r| r.descriptor).collect();
        let ordered = order(&descriptors);
        let routes = Router::new(&descriptors, introspection::ROUTES);
        let commands = doubled_commands(&descriptors);
        match (ordered, routes) {
            (Ok(order), Ok(router)) if commands.is_empty() => {
                Ok(Self { order, registrations, router })
            }
            (ordered, routes) => Err(PlanError {
                graph: ordered.err().unwrap_or_default(),
                routes: routes.err().unwrap_or_default(),
                commands,
            }),
        }
    }

    /// Who honours each setting.
    fn describe_settings(&self, config: &Config, text: &mut String) {
        text.push_str("\nsettings:\n");
        for key in config.values.keys() {
            let claims: Vec<_> = self
                .order
                .iter()
                .filter(|d| d.config.iter().any(|claim| claim.name == key))
                .map(|d| d.id)
                .collect();
            let readers = match (config::reader(key), claims.as_slice()) {
                (Reader::Nobody, _) => "without effect".to_owned(),
                (Reader::Plugins, []) => "asks for nothing".to_owned(),
                (Reader::Plugins, _) => claims.join(" "),
                (Reader::Kernel, []) => "kernel".to_owned(),
                (Reader::Kernel, _) => format!("kernel {}", claims.join(" ")),
            };
            let _ = writeln!(text, "  {key:<34} {readers}");
        }
    }

    /// The order, the settings and the routes as text, for `--validate`.
    #[must_use]
    pub fn describe(&self, config: &Config) -> String {
        let mut text = String::from("configuration OK\n\nstart order:\n");
        for descriptor in &self.order {
            let settings = config.plugin(descriptor.id);
            let mode = match (settings.enabled, settings.required.unwrap_or(descriptor.required)) {
                (Some(false), _) => "disabled",
                (_, true) => "required",
                (_, false) => "optional",
            };
            let provides: Vec<_> =
                descriptor.provides.iter().map(|p| format!("{}={}", p.kind, p.instance)).collect();
            let line = format!(
                "  {:<9} {:<24} {mode:<9} {}",
                format!("{:?}", descriptor.phase),
                descriptor.id,
                provides.join(" "),
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        self.describe_settings(config, &mut text);
        text.push_str("\nroutes:\n");
        let mut routes: Vec<_> = self.router.entries().iter().collect();
        routes.sort_by_key(|entry| (entry.template.as_str(), entry.decl.method));
        for entry in routes {
            let until = entry.decl.until.map_or(String::new(), |until| until.to_string());
            let _ = writeln!(
                text,
                "  {:<7} {:<44} {}-{until:<5} {}",
                method_name(entry.decl.method),
                entry.template.as_str(),
                entry.decl.since,
                entry.owner,
            );
        }
        for notice in &config.notices {
            let _ = writeln!(text, "\nnote: {notice}");
        }
        text
    }
}

/// Commands that two plugins have, by name.
fn doubled_commands(descriptors: &[&Descriptor]) -> Vec<String> {
    let mut owners = std::collections::BTreeMap::<&str, Vec<&str>>::new();
    for descriptor in descriptors {
        for command in descriptor.commands {
            owners.entry(command.name).or_default().push(descriptor.id);
        }
    }
    let doubled = owners.into_iter().filter(|(_, ids)| ids.len() > 1);
    doubled
        .map(|(name, mut ids)| {
            ids.sort_unstable();
            format!("command {name:?} belongs to {}", ids.join(" and "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::Phase;
    use gantry_sdk::command::Command;

    const COMMANDS: &[Command] =
        &[Command { name: "go", about: "", run: |_| std::process::ExitCode::SUCCESS }];

    #[test]
    fn a_command_belongs_to_one_plugin() {
        let one = Descriptor { commands: COMMANDS, ..Descriptor::new("one", Phase::Host) };
        let two = Descriptor { commands: COMMANDS, ..Descriptor::new("two", Phase::Api) };
        assert_eq!(doubled_commands(&[&one]), Vec::<String>::new());
        assert_eq!(doubled_commands(&[&two, &one]), ["command \"go\" belongs to one and two"]);
    }
}
