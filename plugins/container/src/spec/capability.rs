//! Capabilities: what `--cap-add`, `--cap-drop` and `--privileged` leave.

use std::str::FromStr as _;

use gantry_sdk::{Error, Result};
use oci_spec::runtime::Capability;

/// What a container gets that asks for nothing. Source: the reference engine.
pub const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// The name with `CAP_`, as profiles and specifications write it.
#[must_use]
pub fn full_name(capability: Capability) -> String {
    format!("CAP_{capability}")
}

/// An entry of `CapAdd` or `CapDrop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    All,
    One(Capability),
}

fn read(list: &[String], available: &[Capability]) -> Result<Vec<Entry>> {
    list.iter()
        .map(|name| {
            let upper = name.to_uppercase();
            if upper == "ALL" {
                return Ok(Entry::All);
            }
            let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
            let Ok(capability) = Capability::from_str(short) else {
                return Err(Error::invalid(format!("unknown capability: \"CAP_{short}\"")));
            };
            if available.contains(&capability) {
                Ok(Entry::One(capability))
            } else {
                Err(Error::invalid(format!(
                    "capability not supported by your kernel or not available in the current \
                     environment: \"CAP_{short}\""
                )))
            }
        })
        .collect()
}

/// Whether the names in both lists are capabilities of this host.
///
/// # Errors
///
/// `InvalidArgument`, naming the list and the first bad entry.
pub fn check(adds: &[String], drops: &[String], available: &[Capability]) -> Result<()> {
    read(adds, available).map_err(|error| error.context("invalid CapAdd"))?;
    read(drops, available).map_err(|error| error.context("invalid CapDrop"))?;
    Ok(())
}

/// The capabilities of a container, each once. Names may lack `CAP_` and be in lower case; adding
/// `ALL` wins over dropping `ALL`.
///
/// # Errors
///
/// `InvalidArgument`: a name that is no capability of this host.
pub fn resolve(
    adds: &[String],
    drops: &[String],
    privileged: bool,
    available: &[Capability],
) -> Result<Vec<Capability>> {
    if privileged {
        return Ok(available.to_vec());
    }
    let (adds, drops) = (read(adds, available)?, read(drops, available)?);
    let kept = |capability: &Capability| !drops.contains(&Entry::One(*capability));
    let added = adds.iter().filter_map(|entry| match entry {
        Entry::One(capability) => Some(*capability),
        Entry::All => None,
    });

    let mut result: Vec<Capability> = if adds.contains(&Entry::All) {
        available.iter().copied().filter(kept).collect()
    } else if drops.contains(&Entry::All) {
        added.collect()
    } else {
        DEFAULT_CAPABILITIES.into_iter().filter(kept).chain(added).collect()
    };
    let mut seen = Vec::with_capacity(result.len());
    result.retain(|capability| {
        let is_new = !seen.contains(capability);
        seen.push(*capability);
        is_new
    });
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(adds: &[&str], drops: &[&str], privileged: bool) -> Result<Vec<String>> {
        let available = [&DEFAULT_CAPABILITIES[..], &[Capability::SysAdmin, Capability::NetAdmin]];
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let list = resolve(&own(adds), &own(drops), privileged, &available.concat())?;
        Ok(list.into_iter().map(full_name).collect())
    }

    #[test]
    fn adding_and_dropping() {
        type Row = (
            &'static [&'static str],
            &'static [&'static str],
            bool,
            usize,
            &'static [&'static str],
            &'static [&'static str],
        );
        // added, dropped, privileged, how many are left, some of them, some that are not
        let cases: [Row; 9] = [
            (&[], &[], false, 14, &["CAP_CHOWN"], &["CAP_SYS_ADMIN"]),
            (&["sys_admin"], &[], false, 15, &["CAP_SYS_ADMIN"], &[]),
            (&["CAP_SYS_ADMIN", "SYS_ADMIN"], &["chown"], false, 14, &[], &["CAP_CHOWN"]),
            (&["ALL"], &[], false, 16, &["CAP_NET_ADMIN"], &[]),
            (&["all"], &["NET_ADMIN"], false, 15, &["CAP_SYS_ADMIN"], &["CAP_NET_ADMIN"]),
            (&["ALL"], &["ALL"], false, 16, &[], &[]),
            (&[], &["ALL"], false, 0, &[], &["CAP_CHOWN"]),
            (&["Cap_Kill"], &["ALL"], false, 1, &["CAP_KILL"], &[]),
            (&[], &["ALL"], true, 16, &["CAP_SYS_ADMIN"], &[]),
        ];
        for (adds, drops, privileged, count, with, without) in cases {
            let list = names(adds, drops, privileged).unwrap();
            assert_eq!(list.len(), count, "{adds:?} {drops:?}");
            assert!(with.iter().all(|cap| list.contains(&(*cap).to_owned())), "{adds:?}");
            assert!(!without.iter().any(|cap| list.contains(&(*cap).to_owned())), "{drops:?}");
        }
    }

    #[test]
    fn unknown_and_unavailable_names() {
        let error = names(&["FLY"], &[], false).unwrap_err().to_string();
        assert_eq!(error, "unknown capability: \"CAP_FLY\"");
        let error = names(&[], &["sys_boot"], false).unwrap_err().to_string();
        assert!(error.ends_with("current environment: \"CAP_SYS_BOOT\""), "{error}");
        let error = check(&["FLY".into()], &[], &[]).unwrap_err().to_string();
        assert_eq!(error, "invalid CapAdd: unknown capability: \"CAP_FLY\"");
    }
}
