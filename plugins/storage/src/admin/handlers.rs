//! `/x/layers/…`: request → one call → response.

use std::sync::Arc;

use gantry_sdk::{Context, Method, Request, Response, Result, RouteDecl, Shape};
use tokio_util::sync::CancellationToken;

use super::{Admin, Reports};

/// Every route of this plugin.
pub(crate) const ROUTES: &[RouteDecl] = &[
    RouteDecl::new("instances", Method::Get, "/x/layers/instances"),
    RouteDecl::new("migrate", Method::Post, "/x/layers/migrate").shaped(Shape::Stream),
    RouteDecl::new("verify", Method::Post, "/x/layers/verify").shaped(Shape::Stream),
    RouteDecl::new("drop", Method::Post, "/x/layers/drop"),
];

pub(crate) fn bind(cx: &mut Context, admin: &Arc<Admin>) {
    cx.route("instances", admin, instances);
    cx.route("migrate", admin, migrate);
    cx.route("verify", admin, verify);
    cx.route("drop", admin, drop_layers);
}

/// `200` with every instance; `size=1` also counts what containers wrote.
async fn instances(admin: Arc<Admin>, request: Request) -> Result<Response> {
    Response::ok(&admin.report(&request.ctx(), request.query.bool("size")).await?)
}

/// `200` with a stream of messages; `400`, `404`, `409` before it begins. Ends when the client goes:
/// what is under way is undone, what is done stays.
async fn migrate(admin: Arc<Admin>, mut request: Request) -> Result<Response> {
    let wanted = request.json().await?;
    let migration = admin.migration(&request.ctx(), wanted).await?;
    let (response, reports) = stream(&admin, "migrate-report", migration.cancellation());
    admin.store.tasks.spawn("migrate-layers", async move { migration.run(&reports).await });
    Ok(response)
}

/// `200` with a stream of messages; `400`, `409` before it begins.
async fn verify(admin: Arc<Admin>, mut request: Request) -> Result<Response> {
    let verification = admin.verification(request.json().await?)?;
    let (response, reports) = stream(&admin, "verify-report", verification.cancellation());
    admin.store.tasks.spawn("verify-layers", async move { verification.run(&reports).await });
    Ok(response)
}

/// `200` with what was dropped; `400`, and `409` listing the references.
async fn drop_layers(admin: Arc<Admin>, mut request: Request) -> Result<Response> {
    let wanted = request.json().await?;
    Response::ok(&admin.drop_layers(&request.ctx(), &wanted).await?)
}

/// A response that carries reports; `cancel` is cancelled when the client goes.
fn stream(admin: &Admin, task: &'static str, cancel: CancellationToken) -> (Response, Reports) {
    let (sender, response) = Response::stream("application/json");
    let (reports, mut messages) = Reports::channel();
    admin.store.tasks.spawn(task, async move {
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) if sender.json(&message).await => {}
                    Some(_) => break,
                    None => return,
                },
                () = sender.closed() => break,
            }
        }
        cancel.cancel();
    });
    (response, reports)
}
