//! What stays, what goes, and why: decided from what is there and what is wanted, without touching
//! anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, SystemTime};

use gantry_sdk::id::Digest;
use gantry_sdk::kinds::blobs::{BlobInfo, Droppable};
use serde::{Serialize, Serializer};

use crate::dropped::Dropped;
use crate::settings::Retention;

/// What the owners say, all of it together.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    owners: BTreeMap<Digest, BTreeSet<String>>,
    /// Where a blob can be had again, and how many of its owners could do without it.
    offers: HashMap<Digest, (String, usize)>,
}

impl Wishes {
    /// Adds those of `owner`; of what could be dropped, only what `retention` allows counts.
    pub(crate) fn add(
        &mut self,
        owner: &str,
        wanted: Vec<Digest>,
        droppable: Vec<Droppable>,
        retention: Retention,
    ) {
        for digest in wanted {
            self.owners.entry(digest).or_default().insert(owner.to_owned());
        }
        // An owner that names a blob twice means both.
        let mut fitting: HashMap<Digest, (String, bool)> = HashMap::new();
        for it in droppable {
            let fits = match retention {
                Retention::Keep => false,
                Retention::UntilUnpacked => it.unpacked,
                Retention::DropIfRemote => it.remote,
            };
            fitting.entry(it.digest).or_insert((it.source, true)).1 &= fits;
        }
        for (digest, (source, fits)) in fitting {
            if fits {
                self.offers.entry(digest).or_insert((source, 0)).1 += 1;
            }
        }
    }

    fn owners(&self, digest: &Digest) -> Option<Vec<String>> {
        self.owners.get(digest).map(|names| names.iter().cloned().collect())
    }

    /// Where the blob can be had again, if all of its owners could do without it.
    fn offer(&self, digest: &Digest) -> Option<&str> {
        let owners = self.owners.get(digest)?.len();
        self.offers.get(digest).filter(|(_, n)| *n == owners).map(|(source, _)| source.as_str())
    }
}

/// What is on the disk.
#[derive(Debug, Default)]
pub(crate) struct There {
    pub(crate) blobs: Vec<BlobInfo>,
    /// With the time when something was last added.
    pub(crate) partials: Vec<(BlobInfo, SystemTime)>,
    pub(crate) dropped: Vec<Dropped>,
}

/// What an [`Item`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Thing {
    /// A blob.
    Blob,
    /// The beginning of one.
    Partial,
    /// What is remembered of one that was dropped.
    Dropped,
    /// The unpacked layers of an image, by chain id.
    Layers,
}

/// What happens to an [`Item`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It stays.
    Keep,
    /// It goes for good.
    Remove,
    /// It goes, and can come back.
    Drop,
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// These owners want it.
    Wanted(Vec<String>),
    /// Somebody brings or uses it right now.
    Pinned,
    /// Nobody wants it.
    Unwanted,
    /// All that want it can have it again from there.
    Policy(Retention, String),
    /// Nothing was added for so long.
    Old(Duration),
    /// It was dropped, and comes from there when it is needed.
    Away(String),
    /// These containers use it.
    Used(Vec<String>),
    /// Not all of its blobs are here to unpack it from again.
    Irreplaceable,
    /// It can be unpacked again from blobs that are here.
    Unpacked,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wanted(owners) => write!(f, "wanted by {}", owners.join(", ")),
            Self::Pinned => f.write_str("in use by something that runs now"),
            Self::Unwanted => f.write_str("nothing refers to it"),
            Self::Policy(policy, source) => write!(f, "{policy}: comes back from {source}"),
            Self::Old(age) => write!(f, "unfinished and untouched for {}s", age.as_secs()),
            Self::Away(source) => write!(f, "dropped; comes back from {source}"),
            Self::Used(containers) => write!(f, "used by containers {}", containers.join(", ")),
            Self::Irreplaceable => f.write_str("not all of its blobs are here to unpack it again"),
            Self::Unpacked => f.write_str("no container uses it, and its blobs are here"),
        }
    }
}

impl Serialize for Why {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing, what happens to it and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Item {
    /// What it is.
    pub kind: Thing,
    /// Its name.
    pub digest: Digest,
    /// Bytes on disk; of a dropped blob, those it had.
    pub bytes: u64,
    /// What happens to it.
    pub fate: Fate,
    /// Why.
    pub why: Why,
}

/// Decides about everything that is there. `old` is given when the disk is full: partials older than
/// that go first, wanted or not.
pub(crate) fn decide(
    there: There,
    wishes: &Wishes,
    retention: Retention,
    is_pinned: impl Fn(&Digest) -> bool,
    old: Option<Duration>,
) -> Vec<Item> {
    let now = SystemTime::now();
    let mut items = Vec::new();
    let mut partials = there.partials;
    partials.sort_by_key(|(_, touched)| *touched);
    for (BlobInfo { digest, size }, touched) in partials {
        let age = now.duration_since(touched).unwrap_or_default();
        let (fate, why) = match wishes.owners(&digest) {
            _ if is_pinned(&digest) => (Fate::Keep, Why::Pinned),
            _ if old.is_some_and(|old| age >= old) => (Fate::Remove, Why::Old(age)),
            Some(owners) => (Fate::Keep, Why::Wanted(owners)),
            None => (Fate::Remove, Why::Unwanted),
        };
        items.push(Item { kind: Thing::Partial, digest, bytes: size, fate, why });
    }
    let here: BTreeSet<Digest> = there.blobs.iter().map(|info| info.digest.clone()).collect();
    for BlobInfo { digest, size } in there.blobs {
        let (fate, why) = match (wishes.owners(&digest), wishes.offer(&digest)) {
            _ if is_pinned(&digest) => (Fate::Keep, Why::Pinned),
            (None, _) => (Fate::Remove, Why::Unwanted),
            (Some(_), Some(source)) => (Fate::Drop, Why::Policy(retention, source.to_owned())),
            (Some(owners), None) => (Fate::Keep, Why::Wanted(owners)),
        };
        items.push(Item { kind: Thing::Blob, digest, bytes: size, fate, why });
    }
    for Dropped { digest, size, source, .. } in there.dropped {
        let (fate, why) = match wishes.owners(&digest) {
            None => (Fate::Remove, Why::Unwanted),
            Some(_) if here.contains(&digest) => continue, // it came back; the blob says it all
            Some(_) => (Fate::Keep, Why::Away(source)),
        };
        items.push(Item { kind: Thing::Dropped, digest, bytes: size, fate, why });
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::from_sha256(&[n; 32])
    }

    fn offer(n: u8, unpacked: bool, remote: bool) -> Droppable {
        Droppable { digest: digest(n), source: format!("from {n}"), unpacked, remote }
    }

    fn fate_of_a_blob(wishes: &Wishes, retention: Retention) -> (Fate, String) {
        let there =
            There { blobs: vec![BlobInfo { digest: digest(1), size: 5 }], ..There::default() };
        let item = decide(there, wishes, retention, |_| false, None).remove(0);
        (item.fate, item.why.to_string())
    }

    #[test]
    fn a_blob_is_dropped_only_if_all_its_owners_can_do_without() {
        use Retention::{DropIfRemote, Keep, UntilUnpacked};
        let yes = || vec![offer(1, true, true)];
        let cases = [
            ("nobody wants it", vec![], Keep, Fate::Remove, "nothing refers to it"),
            ("kept", vec![yes()], Keep, Fate::Keep, "wanted by a"),
            (
                "offered",
                vec![yes()],
                DropIfRemote,
                Fate::Drop,
                "drop-if-remote: comes back from from 1",
            ),
            ("not offered", vec![vec![]], DropIfRemote, Fate::Keep, "wanted by a"),
            ("one does not", vec![yes(), vec![]], UntilUnpacked, Fate::Keep, "wanted by a, b"),
            (
                "both do",
                vec![yes(), yes()],
                UntilUnpacked,
                Fate::Drop,
                "until-unpacked: comes back from from 1",
            ),
            (
                "not unpacked",
                vec![vec![offer(1, false, true)]],
                UntilUnpacked,
                Fate::Keep,
                "wanted by a",
            ),
            (
                "not remote",
                vec![vec![offer(1, true, false)]],
                DropIfRemote,
                Fate::Keep,
                "wanted by a",
            ),
            (
                "named twice",
                vec![vec![offer(1, true, true), offer(1, true, false)]],
                DropIfRemote,
                Fate::Keep,
                "wanted by a",
            ),
            (
                "another blob's offer",
                vec![vec![offer(2, true, true)]],
                DropIfRemote,
                Fate::Keep,
                "wanted by a",
            ),
        ];
        for (what, owners, retention, fate, why) in cases {
            let mut wishes = Wishes::default();
            for (name, offers) in ["a", "b"].into_iter().zip(owners) {
                wishes.add(name, vec![digest(1)], offers, retention);
            }
            assert_eq!(fate_of_a_blob(&wishes, retention), (fate, why.to_owned()), "{what}");
        }
    }

    #[test]
    fn old_partials_go_first_when_the_disk_is_full_unless_they_are_in_use() {
        let now = SystemTime::now();
        let partial = |n, hours: u64| {
            let info = BlobInfo { digest: digest(n), size: 1 };
            (info, now - Duration::from_secs(hours * 3600))
        };
        let there = || There {
            partials: vec![partial(1, 1), partial(2, 30), partial(3, 40), partial(4, 50)],
            ..There::default()
        };
        let mut wishes = Wishes::default();
        wishes.add("a", vec![digest(1), digest(3), digest(4)], Vec::new(), Retention::Keep);
        let fates = |old| -> Vec<_> {
            decide(there(), &wishes, Retention::Keep, |it| *it == digest(4), old)
                .into_iter()
                .map(|item| (item.digest, item.fate))
                .collect()
        };
        let of =
            |fates: [Fate; 4]| [4, 3, 2, 1].map(digest).into_iter().zip(fates).collect::<Vec<_>>();
        assert_eq!(fates(None), of([Fate::Keep, Fate::Keep, Fate::Remove, Fate::Keep]));
        let day = Some(Duration::from_secs(24 * 3600));
        assert_eq!(fates(day), of([Fate::Keep, Fate::Remove, Fate::Remove, Fate::Keep]));
    }
}
