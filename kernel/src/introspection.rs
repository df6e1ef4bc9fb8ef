//! `/x/kernel/…`: the kernel about itself.

use std::sync::Arc;
use std::time::Duration;

use gantry_sdk::registry::Registry;
use gantry_sdk::route::BoundRoutes;
use gantry_sdk::{Error, Method, Need, Request, Response, Result, RouteDecl};
use http::StatusCode;
use serde_json::{Value, json};

use crate::graph::order::{need_name, satisfies};
use crate::graph::{PluginState, Plugins};
use crate::lifecycle::view::View;
use crate::router::table::{KERNEL, method_name};
use crate::router::{Router, Target};

/// The kernel's own routes.
pub const ROUTES: &[RouteDecl] = &[
    RouteDecl::new("plugins", Method::Get, "/x/kernel/plugins"),
    RouteDecl::new("plugin", Method::Get, "/x/kernel/plugins/{id}"),
    RouteDecl::new("graph", Method::Get, "/x/kernel/graph"),
    RouteDecl::new("order", Method::Get, "/x/kernel/order"),
    RouteDecl::new("routes", Method::Get, "/x/kernel/routes"),
    RouteDecl::new("health", Method::Get, "/x/kernel/health"),
];

/// Answers the kernel's own routes.
#[derive(Debug)]
pub struct Introspection {
    plugins: Arc<Plugins>,
    registry: Arc<Registry>,
    view: Arc<View>,
    routes: Value,
}

impl Introspection {
    /// About these parts.
    #[must_use]
    pub fn new(
        plugins: Arc<Plugins>,
        registry: Arc<Registry>,
        router: &Router,
        view: Arc<View>,
    ) -> Arc<Self> {
        Arc::new(Self { plugins, registry, view, routes: describe_routes(router) })
    }

    /// Leads the kernel's routes here.
    pub fn serve(self: &Arc<Self>, router: &Router) {
        let mut bound = BoundRoutes::default();
        bound.bind("plugins", self, |it, _| async move { it.list() });
        bound.bind("plugin", self, |it, request| async move { it.inspect(&request) });
        bound.bind("graph", self, |it, request| async move { it.graph(&request) });
        bound.bind("order", self, |it, _| async move { it.order() });
        bound.bind("routes", self, |it, _| async move { Response::ok(&it.routes) });
        bound.bind("health", self, |it, _| async move { it.health() });
        router.set_targets(KERNEL, |decl| {
            bound
                .get(decl.id)
                .map_or_else(|| Target::Down("no handler".to_owned()), Target::Handler)
        });
    }

    fn list(&self) -> Result<Response> {
        let plugins: Vec<_> = self.plugins.snapshot().iter().map(|s| self.describe(s)).collect();
        Response::ok(&plugins)
    }

    fn inspect(&self, request: &Request) -> Result<Response> {
        let id = request.param("id");
        let state = self
            .plugins
            .get(id)
            .ok_or_else(|| Error::not_found(format!("no plugin named {id:.80}")))?;
        Response::ok(&self.describe(&state))
    }

    fn describe(&self, state: &PluginState) -> Value {
        let descriptor = state.descriptor;
        let slots = self.registry.slots();
        let instances: Vec<_> = descriptor
            .provides
            .iter()
            .map(|given| {
                let slot = slots
                    .iter()
                    .find(|(kind, name, _)| *kind == given.kind && name == given.instance);
                let down = slot.and_then(|(_, _, down)| down.clone());
                let label = format!("{} {}", given.kind, given.instance);
                let calls = self.registry.stats().into_iter().find(|s| s.backend == label);
                json!({
                    "kind": given.kind, "instance": given.instance,
                    "ready": slot.is_some() && down.is_none(), "reason": down, "calls": calls,
                })
            })
            .collect();
        let config: Vec<_> = descriptor
            .config
            .iter()
            .map(|key| json!({"name": key.name, "reloadable": key.reloadable}))
            .collect();
        json!({
            "id": state.id,
            "version": descriptor.version,
            "carrier": "builtin",
            "phase": descriptor.phase,
            "required": state.required,
            "state": state.outcome.word(),
            "reason": (!state.outcome.is_ready()).then(|| state.outcome.to_string()),
            "init-micros": state.init_time.map(micros),
            "tainted": state.tainted,
            "needs": descriptor.needs.iter().map(need).collect::<Vec<_>>(),
            "instances": instances,
            "config": config,
            "routes": descriptor.routes.len(),
        })
    }

    fn order(&self) -> Result<Response> {
        let order: Vec<_> = self
            .plugins
            .snapshot()
            .iter()
            .map(|state| json!({"id": state.id, "phase": state.descriptor.phase}))
            .collect();
        Response::ok(&order)
    }

    /// Who waits for whom: JSON, or a drawing for graphviz with `?format=dot`.
    fn graph(&self, request: &Request) -> Result<Response> {
        let states = self.plugins.snapshot();
        let edges: Vec<_> = states
            .iter()
            .flat_map(|user| user.descriptor.needs.iter().map(move |need| (user, need)))
            .flat_map(|(user, need)| {
                states
                    .iter()
                    .filter(move |p| p.id != user.id && satisfies(p.descriptor, need))
                    .map(move |provider| (user.id, provider.id, need_name(need)))
            })
            .collect();
        if request.query.str("format") == "dot" {
            let mut dot = String::from("digraph plugins {\n");
            for state in &states {
                dot += &format!(
                    "  {:?} [label=\"{}\\n{}\"]\n",
                    state.id,
                    state.id,
                    state.outcome.word()
                );
            }
            for (from, to, what) in &edges {
                dot += &format!("  {from:?} -> {to:?} [label={what:?}]\n");
            }
            return Ok(Response::full(StatusCode::OK, "text/vnd.graphviz", dot + "}\n"));
        }
        let nodes: Vec<_> = states
            .iter()
            .map(|s| json!({"id": s.id, "phase": s.descriptor.phase, "state": s.outcome.word()}))
            .collect();
        let edges: Vec<_> = edges
            .iter()
            .map(|(from, to, what)| json!({"from": from, "to": to, "need": what}))
            .collect();
        Response::ok(&json!({"nodes": nodes, "edges": edges}))
    }

    /// `ok`; `degraded` with a plugin out of service; `failing` (and 503) if it is a required one.
    fn health(&self) -> Result<Response> {
        let states = self.plugins.snapshot();
        let out: Vec<_> = states.iter().filter(|s| s.outcome.is_fault()).collect();
        let open: Vec<_> = self
            .registry
            .stats()
            .into_iter()
            .filter(|stats| stats.breaker_open)
            .map(|stats| stats.backend)
            .collect();
        let starting = states.iter().any(|s| matches!(s.outcome, crate::graph::Outcome::Pending));
        let failing = starting || out.iter().any(|s| s.required);
        let word = match (failing, out.is_empty() && open.is_empty()) {
            (true, _) => "failing",
            (false, false) => "degraded",
            (false, true) => "ok",
        };
        let status = if failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let body = json!({
            "status": word,
            "warnings": self.plugins.warnings(),
            "breakers-open": open,
            "listeners": gantry_sdk::context::Kernel::listeners(&*self.view),
        });
        Response::json(status, &body)
    }
}

fn need(need: &Need) -> Value {
    let rule = match need {
        Need::Kind(_) => "all-of-kind",
        Need::Instance(..) => "instance",
        Need::Optional(_) => "optional",
    };
    json!({"rule": rule, "what": need_name(need)})
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn describe_routes(router: &Router) -> Value {
    let route = |entry: &crate::router::Entry| {
        json!({
            "method": method_name(entry.decl.method),
            "template": entry.template.as_str(),
            "plugin": entry.owner,
            "since": entry.decl.since.to_string(),
            "until": entry.decl.until.map(|until| until.to_string()),
            "shape": entry.decl.shape,
        })
    };
    router.entries().iter().map(route).collect()
}
