//! The routes: each handler parses, makes one call, shapes the answer.

use std::sync::Arc;

use gantry_sdk::api::ApiVersion;
use gantry_sdk::{Context, Method, RouteDecl, Shape};

use crate::engine::Engine;

pub mod attach;
pub mod commit;
pub mod create;
pub mod exec;
pub mod inspect;
pub mod life;
pub mod list;
pub mod logs;
pub mod prune;
pub mod wait;

const fn get(id: &'static str, template: &'static str) -> RouteDecl {
    RouteDecl::new(id, Method::Get, template)
}

const fn post(id: &'static str, template: &'static str) -> RouteDecl {
    RouteDecl::new(id, Method::Post, template)
}

/// Every route of this plugin.
pub const ROUTES: &[RouteDecl] = &[
    get("list", "/containers/json"),
    get("inspect", "/containers/{name}/json"),
    get("changes", "/containers/{name}/changes"),
    get("export", "/containers/{name}/export").shaped(Shape::Stream),
    get("logs", "/containers/{name}/logs").shaped(Shape::Stream),
    post("commit", "/commit"),
    post("create", "/containers/create"),
    post("start", "/containers/{name}/start"),
    post("stop", "/containers/{name}/stop"),
    post("restart", "/containers/{name}/restart"),
    post("kill", "/containers/{name}/kill"),
    post("wait", "/containers/{name}/wait").shaped(Shape::Stream),
    post("rename", "/containers/{name}/rename"),
    post("resize", "/containers/{name}/resize"),
    post("attach", "/containers/{name}/attach").shaped(Shape::Hijack),
    post("exec-create", "/containers/{name}/exec"),
    post("exec-start", "/exec/{id}/start").shaped(Shape::Hijack),
    post("exec-resize", "/exec/{id}/resize"),
    get("exec-inspect", "/exec/{id}/json"),
    post("prune", "/containers/prune").since(ApiVersion::v1(25)),
    RouteDecl::new("remove", Method::Delete, "/containers/{name}"),
];

/// Binds all of [`ROUTES`].
pub fn bind(cx: &mut Context, engine: &Arc<Engine>) {
    cx.route("list", engine, list::list);
    cx.route("inspect", engine, inspect::inspect);
    cx.route("changes", engine, commit::changes);
    cx.route("export", engine, commit::export);
    cx.route("logs", engine, logs::logs);
    cx.route("commit", engine, commit::commit);
    cx.route("create", engine, create::create);
    cx.route("start", engine, life::start);
    cx.route("stop", engine, life::stop);
    cx.route("restart", engine, life::restart);
    cx.route("kill", engine, life::kill);
    cx.route("wait", engine, wait::wait);
    cx.route("rename", engine, life::rename);
    cx.route("resize", engine, life::resize);
    cx.route("attach", engine, attach::attach);
    cx.route("exec-create", engine, exec::create);
    cx.route("exec-start", engine, exec::start);
    cx.route("exec-resize", engine, exec::resize);
    cx.route("exec-inspect", engine, exec::inspect);
    cx.route("prune", engine, prune::prune);
    cx.route("remove", engine, life::remove);
}
