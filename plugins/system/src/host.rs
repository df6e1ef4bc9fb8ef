//! Facts about the machine, read when they are asked for.

use std::fs;

/// `uname -r`.
pub fn kernel_release() -> String {
    text("/proc/sys/kernel/osrelease")
}

/// `uname -n`.
pub fn hostname() -> String {
    text("/proc/sys/kernel/hostname")
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The machine as Go programs call it, as clients of the API expect.
pub const fn go_architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        std::env::consts::ARCH
    }
}

/// Name and version of the distribution. Source: os-release(5).
pub fn distribution() -> (String, String) {
    let file = fs::read_to_string("/etc/os-release")
        .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    let value = |key: &str| {
        file.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches(['"', '\'']).to_owned())
    };
    let name = value("PRETTY_NAME").unwrap_or_else(|| "Linux".into());
    (name, value("VERSION_ID").unwrap_or_default())
}

/// Bytes of memory.
pub fn memory() -> i64 {
    let file = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = file.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<i64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Open descriptors of this process.
pub fn open_files() -> i64 {
    let count = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Processors that this process may use.
pub fn processors() -> i64 {
    std::thread::available_parallelism().map_or(1, |n| i64::try_from(n.get()).unwrap_or(i64::MAX))
}
