//! Counters for the Prometheus endpoint, and that endpoint.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_sdk::Response;
use gantry_sdk::registry::Registry;
use gantry_sdk::route::Payload;
use http::StatusCode;
use hyper::body::Incoming;

use crate::error;
use crate::graph::Plugins;
use crate::http::conn::{Answer, Connection, Endpoint};

/// Upper bounds of the request time histogram, in microseconds.
const BUCKETS: [u64; 8] = [500, 1_000, 5_000, 10_000, 50_000, 100_000, 1_000_000, 10_000_000];

/// What the kernel counts.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: BTreeMap<(String, u16), u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    micros: u64,
}

impl Metrics {
    /// Counts an answered request.
    pub fn request(&self, method: &http::Method, status: StatusCode, took: Duration) {
        // Only methods the router knows, so that a client cannot invent labels.
        let label = match method.as_str() {
            known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS") => known,
            _ => "other",
        };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.requests.entry((label.to_owned(), status.as_u16())).or_default() += 1;
        counts.count += 1;
        counts.micros = counts.micros.saturating_add(micros);
        for (bound, count) in BUCKETS.iter().zip(&mut counts.buckets) {
            *count += u64::from(micros <= *bound);
        }
    }

    /// The counters in Prometheus' text format.
    fn write(&self, out: &mut String) {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        out.push_str("# TYPE gantry_http_requests_total counter\n");
        for ((method, status), count) in &counts.requests {
            let _ = writeln!(
                out,
                "gantry_http_requests_total{{method=\"{method}\",status=\"{status}\"}} {count}"
            );
        }
        out.push_str("# TYPE gantry_http_request_seconds histogram\n");
        for (bound, count) in BUCKETS.iter().zip(&counts.buckets) {
            let seconds = Duration::from_micros(*bound).as_secs_f64();
            let _ = writeln!(out, "gantry_http_request_seconds_bucket{{le=\"{seconds}\"}} {count}");
        }
        let seconds = Duration::from_micros(counts.micros).as_secs_f64();
        let count = counts.count;
        let _ = writeln!(out, "gantry_http_request_seconds_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "gantry_http_request_seconds_sum {seconds}");
        let _ = writeln!(out, "gantry_http_request_seconds_count {count}");
    }
}

/// Serves `GET /metrics`.
#[derive(Debug)]
pub struct MetricsEndpoint {
    /// The kernel's counters.
    pub metrics: Arc<Metrics>,
    /// For the states of plugins.
    pub plugins: Arc<Plugins>,
    /// For calls to backends.
    pub registry: Arc<Registry>,
}

impl MetricsEndpoint {
    fn text(&self) -> String {
        let mut out = String::with_capacity(4096);
        self.metrics.write(&mut out);
        out.push_str("# TYPE gantry_plugin_ready gauge\n");
        for plugin in self.plugins.snapshot() {
            let (id, ready) = (plugin.id, u8::from(plugin.outcome.is_ready()));
            let _ = writeln!(out, "gantry_plugin_ready{{plugin=\"{id}\"}} {ready}");
        }
        out.push_str("# TYPE gantry_backend_calls_total counter\n");
        out.push_str("# TYPE gantry_backend_faults_total counter\n");
        out.push_str("# TYPE gantry_backend_seconds_total counter\n");
        for stats in self.registry.stats() {
            let backend = label(&stats.backend);
            let seconds = Duration::from_micros(stats.busy_micros).as_secs_f64();
            let _ = writeln!(
                out,
                "gantry_backend_calls_total{{backend=\"{backend}\"}} {}\n\
                 gantry_backend_faults_total{{backend=\"{backend}\"}} {}\n\
                 gantry_backend_seconds_total{{backend=\"{backend}\"}} {seconds}",
                stats.calls, stats.faults,
            );
        }
        out
    }
}

/// A label's value, escaped.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Endpoint for MetricsEndpoint {
    fn call(&self, request: http::Request<Incoming>, _: &Connection) -> Answer {
        let response = match (request.method(), request.uri().path()) {
            (&http::Method::GET, "/metrics") => {
                Response::full(StatusCode::OK, "text/plain; version=0.0.4", self.text())
            }
            _ => error::page_not_found(),
        };
        let mut answer = http::Response::new(match response.payload {
            Payload::Body(body) => body,
            Payload::Hijack(_) => gantry_sdk::route::empty_body(),
        });
        *answer.status_mut() = response.status;
        *answer.headers_mut() = response.headers;
        Box::pin(std::future::ready(Ok(answer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_method_and_status() {
        let metrics = Metrics::default();
        metrics.request(&http::Method::GET, StatusCode::OK, Duration::from_micros(700));
        metrics.request(&http::Method::TRACE, StatusCode::NOT_FOUND, Duration::from_secs(60));
        let mut text = String::new();
        metrics.write(&mut text);
        for line in [
            "gantry_http_requests_total{method=\"GET\",status=\"200\"} 1",
            "gantry_http_requests_total{method=\"other\",status=\"404\"} 1",
            "gantry_http_request_seconds_bucket{le=\"0.001\"} 1",
            "gantry_http_request_seconds_bucket{le=\"+Inf\"} 2",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
