//! `/x/import/images`: request → one call → response.

use std::sync::Arc;

use gantry_sdk::{Method, Request, Response, Result, RouteDecl, Shape};
use tokio::sync::mpsc;

use crate::run::Importer;

/// Every route of this plugin.
pub const ROUTES: &[RouteDecl] =
    &[RouteDecl::new("images", Method::Post, "/x/import/images").shaped(Shape::Stream)];

/// `200` with a stream of messages; `400`, `404`, `409` before it begins. Ends when the client
/// goes: the images that are here stay.
///
/// # Errors
///
/// Those of [`Importer::import`].
pub async fn images(importer: Arc<Importer>, mut request: Request) -> Result<Response> {
    let import = importer.import(request.json().await?).await?;
    let cancel = import.cancellation();
    let (sender, response) = Response::stream("application/json");
    let (reports, mut messages) = mpsc::channel(64);
    importer.tasks.spawn("import-report", async move {
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
    importer.tasks.spawn("import-images", import.run(reports));
    Ok(response)
}
