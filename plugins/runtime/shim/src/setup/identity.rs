//! The last steps: limits, labels, user, capabilities, seccomp, exec.

use super::ProgramEnds;
use crate::status::{Context, Voice, fail};
use gantry_shim_protocol::{Capabilities, Failure, Process, Stage};
use gantry_sys::process::{
    CStringArray, Credentials, drop_bounding_except, dup_onto, exec, exec_fd, load_seccomp,
    mark_cloexec_from, new_session_keyring, reset_signals, set_ambient, set_credentials,
    set_rlimit,
};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::ffi::CString;

/// Where a program without a slash is looked for when its environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The name `docker-init` goes by in process lists.
const INIT_NAME: &str = "/sbin/docker-init";

/// Everything the last steps need.
pub(crate) struct Program<'a> {
    pub(crate) process: &'a Process,
    /// A procfs for writing labels.
    pub(crate) proc: Option<BorrowedFd<'a>>,
    pub(crate) ends: &'a ProgramEnds,
    /// The terminal's slave side.
    pub(crate) terminal: Option<OwnedFd>,
    /// The shim's program, when it is to be process 1.
    pub(crate) init: Option<&'a OwnedFd>,
    /// Name of a new session keyring.
    pub(crate) keyring: Option<&'a str>,
    pub(crate) voice: &'a Voice,
    /// Waits until the program may run.
    pub(crate) wait: &'a dyn Fn(&Voice) -> Result<(), Failure>,
}

/// Becomes the program; returns only a failure.
pub(crate) fn become_program(program: Program<'_>) -> Result<(), Failure> {
    let process = program.process;
    set_labels(&program)?;
    if let Some(name) = program.keyring {
        new_session_keyring(&format!("_ses.{name}"))
            .during(Stage::Identity, || "make a session keyring".to_owned())?;
    }
    for limit in &process.rlimits {
        set_rlimit(limit.resource, limit.soft, limit.hard)
            .during(Stage::Identity, || format!("set limit {}", limit.resource))?;
    }
    rustix::process::umask(Mode::from_raw_mode(process.umask.unwrap_or(0o022) & 0o777));
    let cwd = enter_cwd(process);
    connect(&program)?;
    let argv = CStringArray::new(&process.argv);
    let argv = argv.during(Stage::Exec, || "use an argument with a zero byte".to_owned())?;
    let env = CStringArray::new(&with_home(process));
    let env = env.during(Stage::Exec, || "use an environment with a zero byte".to_owned())?;
    (program.wait)(program.voice)?;

    // Without no_new_privs only CAP_SYS_ADMIN may load a filter, so it comes before the drop.
    if !process.no_new_privs {
        filter(process)?;
    }
    become_user(process)?;
    match cwd {
        // Root on some network file systems is less than the user.
        Err(Errno::ACCESS | Errno::PERM) => enter_cwd(process),
        answer => answer,
    }
    .during(Stage::Cwd, || format!("change to working directory {}", process.cwd))?;
    check_cwd(process)?;
    if process.no_new_privs {
        rustix::thread::set_no_new_privs(true)
            .during(Stage::Identity, || "set no_new_privs".to_owned())?;
        filter(process)?;
    }
    reset_signals();
    match program.init {
        Some(own) => run_init(own, process, &env),
        None => run(process, &argv, &env),
    }
}

fn filter(process: &Process) -> Result<(), Failure> {
    if process.seccomp.is_empty() {
        return Ok(());
    }
    load_seccomp(&process.seccomp, process.seccomp_flags)
        .during(Stage::Identity, || "load the seccomp filter".to_owned())
}

/// Labels take effect at the exec. They are written through a procfs of our own.
fn set_labels(program: &Program<'_>) -> Result<(), Failure> {
    let Some(proc) = program.proc else { return Ok(()) };
    if let Some(profile) = &program.process.apparmor {
        let files = ["thread-self/attr/apparmor/exec", "thread-self/attr/exec"];
        write_label(proc, &files, &format!("exec {profile}"))
            .during(Stage::Identity, || format!("apply AppArmor profile {profile}"))?;
    }
    if let Some(label) = &program.process.selinux {
        write_label(proc, &["thread-self/attr/exec"], label)
            .during(Stage::Identity, || format!("apply SELinux label {label}"))?;
    }
    Ok(())
}

fn write_label(proc: BorrowedFd<'_>, files: &[&str], content: &str) -> Result<(), Errno> {
    let mut answer = Err(Errno::NOENT);
    for file in files {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        answer = rustix::fs::openat(proc, *file, flags, Mode::empty());
        if answer.is_ok() {
            break;
        }
    }
    rustix::io::write(answer?, content.as_bytes()).map(|_| ())
}

/// Enters the working directory, making it when it is missing, as the reference does.
fn enter_cwd(process: &Process) -> Result<(), Errno> {
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    match rustix::process::chdir(cwd) {
        Err(Errno::NOENT) => {}
        answer => return answer,
    }
    std::fs::create_dir_all(cwd)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    rustix::process::chdir(cwd)
}

/// Refuses a working directory outside the root, whatever trick led there (CVE-2024-21626).
fn check_cwd(process: &Process) -> Result<(), Failure> {
    let here = rustix::process::getcwd(Vec::new());
    match here {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        _ => Err(fail(
            Stage::Cwd,
            Errno::NOENT,
            format!("use working directory {}, it is outside the container", process.cwd),
        )),
    }
}

/// The environment, with a `HOME` if it has none: the user's in `/etc/passwd`, else the root.
fn with_home(process: &Process) -> Vec<String> {
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home_of(process.uid).unwrap_or_else(|| "/".to_owned())));
    }
    env
}

/// Read up to this many bytes: the image's file may be anything.
const PASSWD_MAX: u64 = 1 << 20;

fn home_of(uid: u32) -> Option<String> {
    use std::io::Read;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    let is_file =
        |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !rustix::fs::fstat(&file).is_ok_and(is_file) {
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::from(file).take(PASSWD_MAX).read_to_end(&mut text).ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

/// The sixth field of the user's line. Source: passwd(5).
fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let is_user = fields.get(2).is_some_and(|field| field.parse() == Ok(uid));
        fields.get(5).filter(|home| is_user && !home.is_empty()).map(|home| (*home).to_owned())
    })
}

/// Puts the streams in their places.
fn connect(program: &Program<'_>) -> Result<(), Failure> {
    let doing = || "connect the streams".to_owned();
    if let Some(slave) = &program.terminal {
        rustix::process::ioctl_tiocsctty(slave)
            .during(Stage::Terminal, || "take the terminal".to_owned())?;
        for number in 0..3 {
            dup_onto(slave, number).during(Stage::Io, doing)?;
        }
    } else {
        let ends = program.ends;
        for (number, end) in [(0, &ends.stdin), (1, &ends.stdout), (2, &ends.stderr)] {
            give(end, program.process.uid);
            dup_onto(end, number).during(Stage::Io, doing)?;
        }
    }
    mark_cloexec_from(3).during(Stage::Io, || "close files at exec".to_owned())
}

/// Lets the user open `/dev/stdout` and its like again. Not every file system can, and then it is
/// no worse than with a file.
fn give(end: &OwnedFd, uid: u32) {
    let is_pipe = |mode| FileType::from_raw_mode(mode) == FileType::Fifo;
    if rustix::fs::fstat(end).is_ok_and(|stat| is_pipe(stat.st_mode)) {
        let _ = rustix::fs::fchown(end, Some(Uid::from_raw(uid)), None);
    }
}

fn become_user(process: &Process) -> Result<(), Failure> {
    if let Some(capabilities) = process.capabilities {
        drop_bounding_except(capabilities.bounding)
            .during(Stage::Identity, || "drop capabilities from the bounding set".to_owned())?;
        rustix::thread::set_keep_capabilities(true)
            .during(Stage::Identity, || "keep capabilities".to_owned())?;
    }
    let credentials =
        Credentials { uid: process.uid, gid: process.gid, groups: process.groups.clone() };
    set_credentials(&credentials)
        .during(Stage::Identity, || format!("become user {}:{}", process.uid, process.gid))?;
    if let Some(capabilities) = process.capabilities {
        set_capabilities(capabilities)?;
    }
    Ok(())
}

fn set_capabilities(wanted: Capabilities) -> Result<(), Failure> {
    let doing = || "set capabilities".to_owned();
    rustix::thread::set_keep_capabilities(false).during(Stage::Identity, doing)?;
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(wanted.effective),
        permitted: CapabilitySet::from_bits_retain(wanted.permitted),
        inheritable: CapabilitySet::from_bits_retain(wanted.inheritable),
    };
    rustix::thread::set_capabilities(None, sets).during(Stage::Identity, doing)?;
    set_ambient(wanted.ambient).during(Stage::Identity, || "set ambient capabilities".to_owned())
}

/// Runs the program under the tiny init: the shim's own program under another name.
fn run_init(own: &OwnedFd, process: &Process, env: &CStringArray) -> Result<(), Failure> {
    let mut argv = vec![INIT_NAME.to_owned(), "--".to_owned()];
    argv.extend(process.argv.iter().cloned());
    let argv = CStringArray::new(&argv).during(Stage::Exec, || "start init".to_owned())?;
    Err(exec_fd(own, &argv, env)).during(Stage::Exec, || "start init".to_owned())
}

fn run(process: &Process, argv: &CStringArray, env: &CStringArray) -> Result<(), Failure> {
    let Some(name) = process.argv.first() else {
        return Err(fail(Stage::Exec, Errno::INVAL, "run a program without a name"));
    };
    let errno = search(name, &process.env, |path| exec(path, argv, env));
    Err(exec_failure(name, errno))
}

/// Tries `name`, or each place in `PATH`, until an exec succeeds (and nothing returns).
///
/// A place where it may not be run is remembered and reported when there is no better one.
pub(crate) fn search(name: &str, env: &[String], attempt: impl Fn(&CString) -> Errno) -> Errno {
    let try_one = |path: String| CString::new(path).map_or(Errno::INVAL, |path| attempt(&path));
    if name.contains('/') {
        return try_one(name.to_owned());
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    let mut answer = Errno::NOENT;
    for dir in path.unwrap_or(DEFAULT_PATH).split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        match try_one(format!("{dir}/{name}")) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => answer = Errno::ACCESS,
            errno => return errno,
        }
    }
    answer
}

/// The words of the reference for a program that cannot be run; clients look for them.
pub(crate) fn exec_failure(name: &str, errno: Errno) -> Failure {
    let message = match errno {
        Errno::NOENT if !name.contains('/') => {
            format!("exec: {name:?}: executable file not found in $PATH")
        }
        // The file is there, but what it is to be interpreted by is not.
        Errno::NOENT if std::path::Path::new(name).exists() => {
            format!("exec {name}: no such file or directory")
        }
        Errno::NOENT => format!("exec: {name:?}: stat {name}: no such file or directory"),
        Errno::NOTDIR => format!("exec: {name:?}: stat {name}: not a directory"),
        Errno::ACCESS if std::path::Path::new(name).is_dir() => {
            // Clients tell 126 by the last two words.
            format!("exec: {name:?}: is a directory: permission denied")
        }
        Errno::ACCESS => format!("exec: {name:?}: permission denied"),
        Errno::NOEXEC => format!("exec {name}: exec format error"),
        errno => {
            let words = std::io::Error::from(errno).to_string().to_lowercase();
            format!("exec {name}: {}", words.split(" (os error").next().unwrap_or_default())
        }
    };
    Failure { stage: Stage::Exec, errno: errno.raw_os_error(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_like_a_shell_does() {
        let env = |path: &str| vec!["A=b".to_owned(), format!("PATH={path}")];
        let answer = |name: &str, path: &str| {
            let tried = std::cell::RefCell::new(Vec::new());
            let errno = search(name, &env(path), |path| {
                let path = path.to_str().unwrap().to_owned();
                tried.borrow_mut().push(path.clone());
                match path.as_str() {
                    p if p.starts_with("/denied/") => Errno::ACCESS,
                    p if p.starts_with("/broken/") => Errno::NOEXEC,
                    _ => Errno::NOENT,
                }
            });
            (errno, tried.into_inner().join(" "))
        };
        assert_eq!(answer("./x", "/a"), (Errno::NOENT, "./x".to_owned()));
        assert_eq!(answer("x", "/a::/b"), (Errno::NOENT, "/a/x ./x /b/x".to_owned()));
        assert_eq!(answer("x", "/denied:/a"), (Errno::ACCESS, "/denied/x /a/x".to_owned()));
        assert_eq!(answer("x", "/broken:/a"), (Errno::NOEXEC, "/broken/x".to_owned()));
    }

    #[test]
    fn homes_are_looked_up() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:\n";
        for (uid, home) in [(0, Some("/root")), (33, Some("/var/www")), (1, None)] {
            assert_eq!(home_in(passwd, uid).as_deref(), home);
        }
    }

    #[test]
    fn failures_use_the_words_clients_look_for() {
        let message = |name: &str, errno| exec_failure(name, errno).message;
        assert_eq!(
            message("nope", Errno::NOENT),
            "exec: \"nope\": executable file not found in $PATH"
        );
        assert_eq!(
            message("/nope", Errno::NOENT),
            "exec: \"/nope\": stat /nope: no such file or directory"
        );
        assert_eq!(
            message("/proc", Errno::ACCESS),
            "exec: \"/proc\": is a directory: permission denied"
        );
        assert_eq!(message("/x", Errno::ACCESS), "exec: \"/x\": permission denied");
        assert_eq!(message("/x", Errno::NOEXEC), "exec /x: exec format error");
    }
}
