//! The `/events` route over the kernel's event bus.
//!
//! # Map
//!
//! - [`query`]: which events a client wants
//! - [`stream`]: past events, then live ones, in the client's content type
//!
//! # Not here
//!
//! The bus itself: it is the kernel's, so that every plugin can report without needing this one.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::events::EventBus;
use gantry_sdk::tasks::Tasks;
use gantry_sdk::{
    Context, Descriptor, Init, Method, Phase, Plugin, Registration, Request, Response, Result,
    RouteDecl, Shape,
};

pub mod query;
pub mod stream;

const ROUTES: &[RouteDecl] =
    &[RouteDecl::new("events", Method::Get, "/events").shaped(Shape::Stream)];

static DESCRIPTOR: Descriptor =
    Descriptor { routes: ROUTES, ..Descriptor::new("events", Phase::Api) };

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(Events)) }

struct Events;

/// What the handler needs.
struct State {
    bus: EventBus,
    tasks: Tasks,
}

#[async_trait]
impl Plugin for Events {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        let state = Arc::new(State { bus: cx.events.clone(), tasks: cx.tasks.clone() });
        cx.route("events", &state, events);
        Ok(Init::Ready)
    }
}

/// `GET /events`: `200` at once, then events until `until`, or until the client goes away.
async fn events(state: Arc<State>, request: Request) -> Result<Response> {
    let wanted = query::Wanted::parse(&request)?;
    let format = stream::Format::negotiate(&request);
    let (body, response) = Response::stream(format.content_type());
    let (past, live) = state.bus.subscribe();
    let stopping = state.tasks.stopping().clone();
    state.tasks.spawn("events", async move {
        tokio::select! {
            () = stream::run(&wanted, format, past, live, &body) => {}
            () = body.closed() => {}
            () = stopping.cancelled() => {}
        }
    });
    Ok(response)
}
