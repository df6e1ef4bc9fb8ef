//! What a contained process may not do, and the options that let it.

use anyhow::{Context, Result};
use gantry_test_harness::{TestDaemon, TestResult};

use crate::support::with_busybox;

/// A field of the process's own `/proc/self/status`.
fn status(daemon: &TestDaemon, options: &str, field: &str) -> Result<String> {
    let all = daemon.ok(format!("run --rm {options} busybox cat /proc/self/status"))?;
    let line = all.lines().find(|l| l.starts_with(field)).context(field.to_owned())?;
    Ok(line.split_once(':').map_or("", |(_, v)| v.trim()).to_owned())
}

/// All that this machine has to give: less than the kernel knows where we are contained ourselves.
fn all_capabilities() -> Result<u64> {
    let own = std::fs::read_to_string("/proc/self/status")?;
    let line = own.lines().find_map(|l| l.strip_prefix("CapBnd:")).context("no CapBnd")?;
    Ok(u64::from_str_radix(line.trim(), 16)?)
}

#[test]
fn capabilities_are_the_reference_engines_and_change_as_told() -> TestResult {
    const DEFAULT: u64 = 0x0000_0000_a804_25fb;
    const CHOWN: u64 = 1;
    const SYS_ADMIN: u64 = 1 << 21;
    with_busybox(|daemon| {
        let all = all_capabilities()?;
        let cases = [
            ("", DEFAULT),
            ("--cap-drop ALL", 0),
            ("--cap-drop CHOWN", DEFAULT & !CHOWN),
            ("--cap-drop cap_chown", DEFAULT & !CHOWN),
            ("--cap-add SYS_ADMIN", DEFAULT | SYS_ADMIN),
            ("--cap-add ALL --cap-drop CHOWN", all & !CHOWN),
            ("--cap-drop ALL --cap-add CHOWN", CHOWN),
            ("--privileged", all),
        ];
        for (options, expected) in cases {
            let seen = u64::from_str_radix(&status(daemon, options, "CapEff")?, 16)?;
            assert_eq!(seen, expected, "{options}: {seen:016x}");
            let bound = u64::from_str_radix(&status(daemon, options, "CapBnd")?, 16)?;
            assert_eq!(bound, expected, "{options}: {bound:016x}");
        }
        // Another user than root starts with none in effect.
        assert_eq!(status(daemon, "--user app", "CapEff")?, "0000000000000000");
        assert_eq!(status(daemon, "", "CapInh")?, "0000000000000000");
        let said = daemon.fails("run --rm --cap-add NO_SUCH busybox true")?;
        assert!(said.contains("NO_SUCH"), "{said}");
        Ok(())
    })
}

#[test]
fn system_calls_are_filtered_by_default() -> TestResult {
    with_busybox(|daemon| {
        assert_eq!(status(daemon, "", "Seccomp")?, "2");
        assert_eq!(status(daemon, "--privileged", "Seccomp")?, "0");
        assert_eq!(status(daemon, "--security-opt seccomp=unconfined", "Seccomp")?, "0");
        let unshare = "busybox unshare -m true";
        let denied = daemon.docker(format!("run --rm --cap-drop ALL {unshare}"))?;
        assert_ne!(denied.status, 0, "{denied}");
        daemon.ok(format!("run --rm --cap-add SYS_ADMIN {unshare}"))?;

        let profile = daemon.path("profile.json");
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
        std::fs::write(&profile, text)?;
        let own = format!("--security-opt seccomp={}", profile.display());
        let said = daemon.fails(format!("run --rm {own} busybox mkdir /x"))?;
        assert!(said.contains("Operation not permitted"), "{said}");
        daemon.ok(format!("run --rm {own} busybox touch /x"))?;
        Ok(())
    })
}

#[test]
fn no_new_privileges_is_off_until_asked_for() -> TestResult {
    with_busybox(|daemon| {
        assert_eq!(status(daemon, "", "NoNewPrivs")?, "0");
        assert_eq!(status(daemon, "--security-opt no-new-privileges", "NoNewPrivs")?, "1");
        assert_eq!(status(daemon, "--security-opt no-new-privileges:false", "NoNewPrivs")?, "0");
        let said = daemon.fails("run --rm --security-opt nonsense=1 busybox true")?;
        assert!(said.contains("nonsense"), "{said}");
        Ok(())
    })
}

#[test]
fn parts_of_proc_and_sys_are_out_of_reach() -> TestResult {
    with_busybox(|daemon| {
        for path in ["/proc/kcore", "/proc/timer_list", "/proc/keys"] {
            let bytes = daemon.ok(format!(
                "run --rm busybox sh -c 'cat {path} 2>/dev/null | head -c 1 | wc -c'"
            ))?;
            assert_eq!(bytes, "0", "{path}");
        }
        for path in ["/proc/acpi", "/sys/firmware"] {
            let entries =
                daemon.ok(format!("run --rm busybox sh -c 'ls {path} 2>/dev/null | wc -l'"))?;
            assert_eq!(entries, "0", "{path}");
        }
        let write = "sh -c 'echo x > /proc/sys/kernel/domainname'";
        let said = daemon.fails(format!("run --rm busybox {write}"))?;
        assert!(said.contains("Read-only file system"), "{said}");
        daemon.ok(format!("run --rm --privileged busybox {write}"))?;
        let mounts = daemon.ok("run --rm busybox cat /proc/mounts")?;
        for path in ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"] {
            if std::path::Path::new(path).exists() {
                let line = mounts.lines().find(|l| l.split(' ').nth(1) == Some(path));
                let options = line.and_then(|l| l.split(' ').nth(3)).unwrap_or_default();
                assert!(options.split(',').any(|o| o == "ro"), "{path}: {line:?}");
            }
        }
        let sys = mounts.lines().find(|l| l.contains(" /sys sysfs "));
        assert!(sys.is_some_and(|l| l.contains(" ro,")), "{mounts}");
        Ok(())
    })
}

#[test]
fn descriptors_of_the_daemon_do_not_reach_the_container() -> TestResult {
    with_busybox(|daemon| {
        // `ls` itself has the directory open as 3.
        let open = daemon.ok("run --rm busybox ls /proc/self/fd")?;
        assert_eq!(open.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
        let targets =
            daemon.ok("run --rm busybox sh -c 'ls -l /proc/self/fd; ls -l /proc/1/cwd'")?;
        let place = daemon.path("").display().to_string();
        assert!(!targets.contains(&place), "{targets}");
        Ok(())
    })
}

#[test]
fn devices_are_given_one_by_one() -> TestResult {
    with_busybox(|daemon| {
        let usual = daemon.ok("run --rm busybox ls /dev")?;
        for device in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm"] {
            assert!(usual.split_whitespace().any(|d| d == device), "{device} in {usual}");
        }
        let write = "sh -c 'echo gantry test > /dev/other'";
        daemon.ok(format!("run --rm --device /dev/kmsg:/dev/other busybox {write}"))?;
        let said =
            daemon.fails(format!("run --rm --device /dev/kmsg:/dev/other:r busybox {write}"))?;
        assert!(said.contains("Operation not permitted"), "{said}");
        // Making a node is allowed, using it is not.
        let made = "sh -c 'mknod /x c 1 11 && cat /x'";
        let said = daemon.fails(format!("run --rm busybox {made}"))?;
        assert!(said.contains("Operation not permitted"), "{said}");
        let rule = "--device-cgroup-rule 'c 1:11 rw'";
        let seen = daemon
            .docker(format!("run --rm {rule} busybox sh -c 'mknod /x c 1 11 && echo hi > /x'"))?;
        assert_eq!(seen.status, 0, "{seen}");
        let said = daemon.fails("run --rm --device /dev/no-such-device busybox true")?;
        assert!(said.contains("no-such-device"), "{said}");
        let all = daemon.ok("run --rm --privileged busybox ls /dev")?;
        assert!(all.split_whitespace().any(|d| d == "kmsg"), "{all}");
        Ok(())
    })
}

#[test]
fn the_root_can_be_read_only_with_places_to_write() -> TestResult {
    with_busybox(|daemon| {
        let said = daemon.fails("run --rm --read-only busybox touch /x")?;
        assert!(said.contains("Read-only file system"), "{said}");
        let options = "--read-only --tmpfs /run --tmpfs /small:size=64k,mode=1770,uid=1000";
        daemon.ok(format!("run --rm {options} busybox touch /run/x"))?;
        let seen = daemon.ok(format!("run --rm {options} busybox stat -c '%a %u' /small"))?;
        assert_eq!(seen, "1770 1000");
        let said = daemon.fails(format!(
            "run --rm {options} busybox dd if=/dev/zero of=/small/x bs=1k count=128"
        ))?;
        assert!(said.contains("No space left on device"), "{said}");
        let mount = daemon.ok(format!("run --rm {options} busybox grep ' /run ' /proc/mounts"))?;
        for option in ["nosuid", "nodev", "noexec"] {
            assert!(mount.contains(option), "{option} in {mount}");
        }
        Ok(())
    })
}

#[test]
fn namespaces_can_be_shared() -> TestResult {
    with_busybox(|daemon| {
        crate::support::sleeper(daemon, "first", "--hostname first --shm-size 1m --ipc shareable")?;
        let processes = daemon.ok("run --rm --pid container:first busybox ps")?;
        assert!(processes.contains("sleep 1"), "{processes}");
        let shared = daemon.ok("run --rm --ipc container:first busybox df -k /dev/shm")?;
        assert!(shared.contains(" 1024 "), "{shared}");
        let own = daemon.sandbox().sh("readlink /proc/self/ns/uts /proc/self/ns/pid")?;
        let seen = daemon.ok("run --rm --uts host --pid host busybox \
             sh -c 'readlink /proc/self/ns/uts; readlink /proc/self/ns/pid'")?;
        assert_eq!(seen, own);
        let said = daemon.fails("run --rm --pid container:nosuch busybox true")?;
        assert!(said.contains("nosuch"), "{said}");
        Ok(())
    })
}
