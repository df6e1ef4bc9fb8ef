//! Start order, as a pure function of the descriptors.

use std::collections::BTreeSet;
use std::fmt;

use gantry_sdk::{Descriptor, Need};

/// What makes a set of plugins impossible to order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GraphError {
    /// Two plugins have one id.
    Duplicate(String),
    /// Two plugins provide the same thing.
    Rivals {
        /// Kind and instance.
        what: String,
        /// One of them.
        one: String,
        /// The other.
        other: String,
    },
    /// Nobody provides what a plugin needs.
    Missing {
        /// The plugin.
        who: String,
        /// What it needs.
        wants: String,
    },
    /// What a plugin needs is provided in a later phase.
    Backwards {
        /// The plugin.
        who: String,
        /// The provider.
        wants: String,
        /// What it provides.
        what: String,
    },
    /// Plugins that wait for each other; the first is repeated at the end.
    Cycle(Vec<String>),
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate(id) => write!(f, "two plugins are called {id}"),
            Self::Rivals { what, one, other } => {
                write!(f, "{one} and {other} both provide {what}")
            }
            Self::Missing { who, wants } => {
                write!(f, "{who} needs {wants}, which no plugin provides")
            }
            Self::Backwards { who, wants, what } => {
                write!(f, "{who} needs {what} of {wants}, which starts in a later phase")
            }
            Self::Cycle(path) => write!(f, "plugins wait for each other: {}", path.join(" → ")),
        }
    }
}

/// Orders plugins for start-up: by phase, then providers before users, then by id.
///
/// The order of discovery is whatever the linker produced, so it is never used: the same set of
/// plugins starts in the same order on every machine.
///
/// # Errors
///
/// Everything that is wrong, sorted.
pub fn order(
    descriptors: &[&'static Descriptor],
) -> Result<Vec<&'static Descriptor>, Vec<GraphError>> {
    let mut all = descriptors.to_vec();
    all.sort_by_key(|d| (d.phase, d.id));
    let mut errors = duplicates(&all);
    errors.extend(rivals(&all));
    let waits: Vec<BTreeSet<usize>> =
        (0..all.len()).map(|n| waits_for(&all, n, &mut errors)).collect();
    let (order, stuck) = sort(&waits);
    errors.extend(cycles(&all, &waits, stuck));
    if errors.is_empty() {
        Ok(order.into_iter().map(|n| all[n]).collect())
    } else {
        errors.sort();
        errors.dedup();
        Err(errors)
    }
}

fn duplicates(all: &[&Descriptor]) -> Vec<GraphError> {
    let mut ids: Vec<_> = all.iter().map(|d| d.id).collect();
    ids.sort_unstable();
    ids.windows(2)
        .filter(|pair| pair[0] == pair[1])
        .map(|pair| GraphError::Duplicate(pair[0].to_owned()))
        .collect()
}

fn rivals(all: &[&Descriptor]) -> Vec<GraphError> {
    let mut provided: Vec<_> =
        all.iter().flat_map(|d| d.provides.iter().map(|p| (p.kind, p.instance, d.id))).collect();
    provided.sort_unstable();
    provided
        .windows(2)
        .filter(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1))
        .map(|pair| GraphError::Rivals {
            what: format!("{} {}", pair[0].0, pair[0].1),
            one: pair[0].2.to_owned(),
            other: pair[1].2.to_owned(),
        })
        .collect()
}

/// Whether `provider` gives what `need` asks for.
pub(crate) fn satisfies(provider: &Descriptor, need: &Need) -> bool {
    provider.provides.iter().any(|given| match *need {
        Need::Kind(kind) | Need::Optional(kind) => given.kind == kind,
        Need::Instance(kind, instance) => given.kind == kind && given.instance == instance,
    })
}

/// How messages write a need.
pub(crate) fn need_name(need: &Need) -> String {
    match need {
        Need::Kind(kind) | Need::Optional(kind) => (*kind).to_owned(),
        Need::Instance(kind, instance) => format!("{kind} {instance}"),
    }
}

/// The plugins that the `n`th one waits for, as indices.
fn waits_for(all: &[&Descriptor], n: usize, errors: &mut Vec<GraphError>) -> BTreeSet<usize> {
    let user = all[n];
    let mut waits = BTreeSet::new();
    for need in user.needs {
        let mut found = false;
        for (p, provider) in all.iter().enumerate().filter(|(_, p)| satisfies(p, need)) {
            found = true;
            if provider.phase > user.phase {
                errors.push(GraphError::Backwards {
                    who: user.id.to_owned(),
                    wants: provider.id.to_owned(),
                    what: need_name(need),
                });
            } else if p != n {
                waits.insert(p);
            }
        }
        if !found && !matches!(need, Need::Optional(_)) {
            errors.push(GraphError::Missing { who: user.id.to_owned(), wants: need_name(need) });
        }
    }
    waits
}

/// Takes the first plugin that waits for nobody, again and again. Quadratic, over a few dozen
/// entries, once. Returns the order and those that are stuck.
fn sort(waits: &[BTreeSet<usize>]) -> (Vec<usize>, Vec<usize>) {
    let mut left: Vec<usize> = (0..waits.len()).collect();
    let mut order = Vec::with_capacity(left.len());
    while let Some(at) = left.iter().position(|n| waits[*n].iter().all(|w| order.contains(w))) {
        order.push(left.remove(at));
    }
    (order, left)
}

/// Every plugin that is stuck waits for another one that is: follow that until it repeats, take the
/// circle out, and look again.
fn cycles(
    all: &[&Descriptor],
    waits: &[BTreeSet<usize>],
    mut stuck: Vec<usize>,
) -> Vec<GraphError> {
    let mut cycles = Vec::new();
    while let Some(&start) = stuck.first() {
        let mut path = vec![start];
        let circle = loop {
            let last = path[path.len() - 1];
            let Some(next) = waits[last].iter().copied().find(|w| stuck.contains(w)) else {
                break Vec::new(); // waits for a circle that is reported already
            };
            if let Some(at) = path.iter().position(|n| *n == next) {
                break path.split_off(at);
            }
            path.push(next);
        };
        if circle.is_empty() {
            stuck.retain(|n| !path.contains(n));
            continue;
        }
        stuck.retain(|n| !circle.contains(n));
        // Begins with the smallest id, so that the message is stable.
        let smallest = (0..circle.len()).min_by_key(|n| all[circle[*n]].id).unwrap_or_default();
        let names = circle[smallest..].iter().chain(&circle[..=smallest]);
        cycles.push(GraphError::Cycle(names.map(|n| all[*n].id.to_owned()).collect()));
    }
    cycles
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::{Phase, Provide};

    fn plugin(
        id: &'static str,
        phase: Phase,
        provides: &[(&'static str, &'static str)],
        needs: &'static [Need],
    ) -> &'static Descriptor {
        let provides: Vec<_> =
            provides.iter().map(|(kind, instance)| Provide::new(kind, instance)).collect();
        Box::leak(Box::new(Descriptor {
            provides: provides.leak(),
            needs,
            ..Descriptor::new(id, phase)
        }))
    }

    fn engine() -> Vec<&'static Descriptor> {
        const BLOBS: (&str, &str) = ("blobs", "fs");
        const OVERLAY: (&str, &str) = ("storage", "overlay2");
        const VFS: (&str, &str) = ("storage", "vfs");
        const LAYERS: (&str, &str) = ("layers", "default");
        const IMAGES: (&str, &str) = ("images", "default");
        const EVENTS: (&str, &str) = ("info", "events");
        vec![
            plugin("system", Phase::Api, &[], &[Need::Optional("info")]),
            plugin("events", Phase::Api, &[EVENTS], &[]),
            plugin("storage.vfs", Phase::Storage, &[VFS], &[Need::Kind("blobs")]),
            plugin("storage.overlay2", Phase::Storage, &[OVERLAY], &[Need::Kind("blobs")]),
            plugin("layers", Phase::Storage, &[LAYERS], &[Need::Kind("storage")]),
            plugin("image", Phase::Image, &[IMAGES], &[Need::Instance("layers", "default")]),
            plugin("content", Phase::Content, &[BLOBS], &[]),
            plugin("aaa", Phase::Api, &[], &[Need::Kind("images")]),
        ]
    }

    const ENGINE_ORDER: [&str; 8] = [
        "content",
        "storage.overlay2",
        "storage.vfs",
        "layers",
        "image",
        "aaa",
        "events",
        "system",
    ];

    fn ids(order: &[&Descriptor]) -> Vec<&'static str> {
        order.iter().map(|d| d.id).collect()
    }

    #[test]
    fn a_thousand_shuffles_give_one_order() {
        let mut plugins = engine();
        let mut seed = 42_u64;
        for _ in 0..1000 {
            for n in (1..plugins.len()).rev() {
                // A linear congruential generator (Knuth, MMIX) is shuffled enough.
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                plugins.swap(n, usize::try_from(seed >> 33).unwrap() % (n + 1));
            }
            assert_eq!(ids(&order(&plugins).unwrap()), ENGINE_ORDER);
        }
    }

    #[test]
    fn every_error_is_reported_with_every_culprit() {
        const A: (&str, &str) = ("a", "a");
        const B: (&str, &str) = ("b", "b");
        const C: (&str, &str) = ("c", "c");
        let mut plugins = engine();
        plugins.extend([
            plugin("content", Phase::Host, &[], &[]),
            plugin("needy", Phase::Log, &[], &[Need::Kind("nothing"), Need::Instance("a", "z")]),
            plugin("early", Phase::Host, &[], &[Need::Kind("images")]),
            plugin("ring.a", Phase::Build, &[A], &[Need::Kind("b")]),
            plugin("ring.b", Phase::Build, &[B], &[Need::Kind("c")]),
            plugin("ring.c", Phase::Build, &[C], &[Need::Kind("a")]),
            plugin("tail", Phase::Build, &[], &[Need::Kind("a")]),
            plugin("twin.1", Phase::Cluster, &[("t", "t")], &[]),
            plugin("twin.2", Phase::Cluster, &[("t", "t")], &[]),
        ]);
        let messages: Vec<_> =
            order(&plugins).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            messages,
            [
                "two plugins are called content",
                "twin.1 and twin.2 both provide t t",
                "needy needs a z, which no plugin provides",
                "needy needs nothing, which no plugin provides",
                "early needs images of image, which starts in a later phase",
                "plugins wait for each other: ring.a → ring.b → ring.c → ring.a",
            ]
        );
    }

    #[test]
    fn two_circles_are_two_errors() {
        let plugins = [
            plugin("a", Phase::Api, &[("a", "x")], &[Need::Kind("b")]),
            plugin("b", Phase::Api, &[("b", "x")], &[Need::Kind("a")]),
            plugin("c", Phase::Api, &[("c", "x")], &[Need::Kind("d")]),
            plugin("d", Phase::Api, &[("d", "x")], &[Need::Kind("c")]),
        ];
        assert_eq!(order(&plugins).unwrap_err().len(), 2);
    }

    #[test]
    fn phases_are_kept_and_a_plugin_may_use_its_own_kind() {
        let plugins = [
            plugin("z", Phase::Host, &[("k", "z")], &[Need::Kind("k")]),
            plugin("a", Phase::Api, &[], &[]),
        ];
        assert_eq!(ids(&order(&plugins).unwrap()), ["z", "a"]);
    }
}
