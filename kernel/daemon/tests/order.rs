//! The start order of this build, pinned: a change of it is a change somebody has to mean.

#![allow(clippy::unwrap_used, reason = "a failing step fails the test")]

use gantry_carrier_socket as _;
use gantry_kernel::plan::Plan;

const GOLDEN: &str = include_str!("order.txt");

#[test]
fn a_thousand_shuffles_start_in_the_order_on_file() {
    let mut plugins = gantry_builtin::plugins();
    let mut seed = 7_u64;
    for round in 0..1000 {
        for n in (1..plugins.len()).rev() {
            // A linear congruential generator (Knuth, MMIX) is shuffled enough.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            plugins.swap(n, usize::try_from(seed >> 33).unwrap() % (n + 1));
        }
        // Routes are compared pairwise, so the whole plan is made once only.
        let order = if round == 0 {
            Plan::resolve(plugins.clone()).unwrap_or_else(|error| panic!("{error}")).order
        } else {
            let descriptors: Vec<_> = plugins.iter().map(|plugin| plugin.descriptor).collect();
            gantry_kernel::graph::order(&descriptors).unwrap()
        };
        let text: String = order.iter().map(|d| format!("{:?} {}\n", d.phase, d.id)).collect();
        assert_eq!(text, GOLDEN, "update tests/order.txt if this is meant");
    }
}
