//! Who the process is: `--user` and `--group-add`, looked up in the container's own files.

use gantry_sdk::{Error, Result};

/// The highest user or group number. Source: the reference engine; the kernel's is twice that.
const MAX_ID: i64 = (1 << 31) - 1;

/// The largest `/etc/passwd` or `/etc/group` that is read, bytes.
pub const MAX_FILE_BYTES: usize = 16 << 20;

/// A resolved user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Supplementary groups, the group itself first.
    pub groups: Vec<u32>,
    /// Home directory; empty if the user has no entry.
    pub home: String,
}

/// A line of `/etc/passwd`. Fields that are missing or no number read as empty and 0, as the
/// reference does: such files exist. Source: passwd(5).
struct Passwd<'a> {
    name: &'a [u8],
    uid: i64,
    gid: i64,
    home: &'a [u8],
}

/// A line of `/etc/group`. Source: group(5).
struct Group<'a> {
    name: &'a [u8],
    gid: i64,
    members: &'a [u8],
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

fn number(field: &[u8]) -> i64 {
    std::str::from_utf8(field).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn passwd_entries(file: &[u8]) -> impl Iterator<Item = Passwd<'_>> {
    lines(file).map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let mut next = || fields.next().unwrap_or_default();
        let (name, _, uid, gid, _, home) = (next(), next(), next(), next(), next(), next());
        Passwd { name, uid: number(uid), gid: number(gid), home }
    })
}

fn group_entries(file: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(file).filter(|line| line[0] != b'#').map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let mut next = || fields.next().unwrap_or_default();
        let (name, _, gid, members) = (next(), next(), next(), next());
        Group { name, gid: number(gid), members }
    })
}

/// A user or group as written: a number counts as one even if an entry has it as a name.
enum Wanted<'a> {
    Nothing,
    Number(i64),
    Name(&'a str),
}

impl<'a> Wanted<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::Nothing);
        }
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self::Name(text));
        }
        match text.parse::<i64>() {
            Ok(number) if (0..=MAX_ID).contains(&number) => Ok(Self::Number(number)),
            _ => Err(out_of_range()),
        }
    }
}

fn out_of_range() -> Error {
    Error::invalid(format!("uids and gids must be in range 0-{MAX_ID}"))
}

fn id(number: i64) -> Result<u32> {
    u32::try_from(number).ok().filter(|id| i64::from(*id) <= MAX_ID).ok_or_else(out_of_range)
}

/// Resolves `spec`, which is empty, `user`, `uid`, `user:group` or any mixture, and the groups that
/// are added. The files are the container's own; `None` if it has none.
///
/// # Errors
///
/// `InvalidArgument`: a name without an entry, or a number out of range.
pub fn resolve(
    spec: &str,
    group_add: &[String],
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
) -> Result<User> {
    let passwd = bounded("passwd", passwd)?;
    let group = bounded("group", group)?;
    let mut parts = spec.split(':');
    let (user, group_name) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));

    let wanted = Wanted::parse(user)?;
    let wanted_group = Wanted::parse(group_name)?;
    let entry = passwd_entries(passwd).find(|entry| match wanted {
        Wanted::Nothing => entry.uid == 0,
        Wanted::Number(uid) => entry.uid == uid,
        Wanted::Name(name) => entry.name == name.as_bytes(),
    });
    let mut found = User::default();
    let mut name: &[u8] = b"";
    match (&entry, &wanted) {
        (Some(entry), _) => {
            name = entry.name;
            (found.uid, found.gid) = (id(entry.uid)?, id(entry.gid)?);
            found.home = String::from_utf8_lossy(entry.home).into_owned();
        }
        (None, Wanted::Name(name)) => {
            return Err(Error::invalid(format!(
                "unable to find user {name}: no matching entries in passwd file"
            )));
        }
        (None, Wanted::Number(uid)) => found.uid = id(*uid)?,
        (None, Wanted::Nothing) => {}
    }

    let mut supplementary = Vec::new();
    if let Wanted::Nothing = wanted_group {
        let is_member =
            |g: &Group<'_>| g.members.split(|byte| *byte == b',').any(|member| member == name);
        if !name.is_empty() {
            for entry in group_entries(group).filter(is_member) {
                supplementary.push(id(entry.gid)?);
            }
        }
    } else {
        found.gid = find_group(&wanted_group, group)?;
    }

    found.groups.push(found.gid);
    for added in group_add {
        supplementary.push(find_group(&Wanted::parse(added)?, group)?);
    }
    for gid in supplementary {
        if !found.groups.contains(&gid) {
            found.groups.push(gid);
        }
    }
    Ok(found)
}

fn find_group(wanted: &Wanted<'_>, group: &[u8]) -> Result<u32> {
    let (number, name) = match wanted {
        Wanted::Number(gid) => (Some(*gid), ""),
        Wanted::Name(name) => (None, *name),
        Wanted::Nothing => (None, ""),
    };
    let entry = group_entries(group).find(|entry| match number {
        Some(gid) => entry.gid == gid,
        None => entry.name == name.as_bytes(),
    });
    match (entry, number) {
        (Some(entry), _) => id(entry.gid),
        (None, Some(gid)) => id(gid),
        (None, None) => Err(Error::invalid(format!(
            "unable to find group {name}: no matching entries in group file"
        ))),
    }
}

fn bounded<'a>(name: &str, file: Option<&'a [u8]>) -> Result<&'a [u8]> {
    let file = file.unwrap_or_default();
    if file.len() > MAX_FILE_BYTES {
        return Err(Error::invalid(format!("/etc/{name} of the container is too large")));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\n\n  app:x:1000:1001::/home/app:/bin/sh\n\
        1234:x:77:77::/:\nbroken\nbig:x:99999999999:1::/:\n";
    const GROUP: &[u8] = b"root:x:0:root\n# comment:x:5:app\nwheel:x:10:root,app\nweb:x:33:\n\
        app:x:1001:\naudio:x:29:app\n";

    fn user(spec: &str, add: &[&str]) -> Result<User> {
        let add: Vec<_> = add.iter().map(|s| (*s).to_owned()).collect();
        resolve(spec, &add, Some(PASSWD), Some(GROUP))
    }

    #[test]
    fn users_are_found() {
        type Row = (&'static str, &'static [&'static str], u32, u32, &'static [u32], &'static str);
        let cases: [Row; 13] = [
            ("", &[], 0, 0, &[0, 10], "/root"),
            ("root", &[], 0, 0, &[0, 10], "/root"),
            ("app", &[], 1000, 1001, &[1001, 10, 29], "/home/app"),
            ("1000", &[], 1000, 1001, &[1001, 10, 29], "/home/app"),
            ("1000:33", &[], 1000, 33, &[33], "/home/app"),
            ("app:web", &[], 1000, 33, &[33], "/home/app"),
            ("app:4242", &[], 1000, 4242, &[4242], "/home/app"),
            ("5000", &[], 5000, 0, &[0], ""),
            ("5000:6000", &[], 5000, 6000, &[6000], ""),
            ("1234", &[], 1234, 0, &[0], ""),
            (":web", &[], 0, 33, &[33], "/root"),
            ("app", &["web", "7", "wheel"], 1000, 1001, &[1001, 10, 29, 33, 7], "/home/app"),
            ("broken", &[], 0, 0, &[0], ""),
        ];
        for (spec, add, uid, gid, groups, home) in cases {
            let found = user(spec, add).unwrap_or_else(|e| panic!("{spec}: {e}"));
            let expected = User { uid, gid, groups: groups.to_vec(), home: home.into() };
            assert_eq!(found, expected, "{spec} {add:?}");
        }
    }

    #[test]
    fn a_container_without_files() {
        let found = resolve("", &[], None, None).unwrap();
        assert_eq!(found, User { groups: vec![0], ..User::default() });
        assert_eq!(resolve("7:8", &[], None, None).unwrap().groups, [8]);
    }

    #[test]
    fn mistakes_are_told_as_the_reference_does() {
        let cases: [(&str, &[&str], &str); 7] = [
            ("nobody", &[], "unable to find user nobody: no matching entries in passwd file"),
            ("app:nobody", &[], "unable to find group nobody: no matching entries in group file"),
            ("app", &["x"], "unable to find group x: no matching entries in group file"),
            ("-1", &[], "uids and gids must be in range 0-2147483647"),
            ("2147483648", &[], "uids and gids must be in range 0-2147483647"),
            ("0:99999999999999999999", &[], "uids and gids must be in range 0-2147483647"),
            ("big", &[], "uids and gids must be in range 0-2147483647"),
        ];
        for (spec, add, expected) in cases {
            assert_eq!(user(spec, add).unwrap_err().to_string(), expected, "{spec}");
        }
    }
}
