//! `runtimes` in the configuration.

use crate::check_config;
use gantry_sdk::ConfigView;
use serde_json::{Value, json};

fn mistakes(runtimes: Value) -> String {
    let Value::Object(values) = json!({"runtimes": runtimes}) else { panic!("it is an object") };
    check_config(&ConfigView::new(values)).join("; ")
}

#[test]
fn every_mistake_is_named() {
    assert_eq!(mistakes(json!({})), "");
    assert_eq!(mistakes(json!({"sh": {"path": "/bin/sh", "runtimeArgs": ["-x"]}})), "");
    for (runtimes, words) in [
        (json!({"runc": {"path": "/bin/sh"}}), "runc is the built-in runtime"),
        (json!({"x": {}}), "runtime x: path is missing"),
        (json!({"x": {"path": "/nowhere/x"}}), "/nowhere/x is not an executable file"),
        (json!({"x": {"runtimeType": "io.containerd.kata.v2"}}), "containerd shims"),
        (json!({"x": {"path": "/bin/sh", "other": 1}}), "unknown field `other`"),
        (json!([]), "runtimes"),
    ] {
        let found = mistakes(runtimes.clone());
        assert!(found.contains(words), "{runtimes}: {found:?}");
    }
}
