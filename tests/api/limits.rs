//! Limits, read from the cgroup's files outside and felt inside.

use gantry_test_harness::TestResult;

use crate::support::{cgroup_file, sleeper, unified, with_busybox};

#[test]
fn limits_reach_the_kernel() -> TestResult {
    with_busybox(|daemon| {
        sleeper(
            daemon,
            "limited",
            "--memory 64m --memory-swap 64m --memory-reservation 32m --cpus 0.5 --cpu-shares 512 \
             --cpuset-cpus 0 --pids-limit 33",
        )?;
        let v1_or_v2 = |v1: &'static str, v2: &'static str| if unified() { v2 } else { v1 };
        let cases = [
            ("memory/memory.limit_in_bytes", "memory.max", "67108864", "67108864"),
            ("memory/memory.soft_limit_in_bytes", "memory.low", "33554432", "33554432"),
            ("cpu/cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000"),
            ("cpu/cpu.shares", "cpu.weight", "512", "20"),
            ("cpuset/cpuset.cpus", "cpuset.cpus", "0", "0"),
            ("pids/pids.max", "pids.max", "33", "33"),
        ];
        for (v1, v2, expected_v1, expected_v2) in cases {
            let seen = cgroup_file(daemon, "limited", v1, v2)?;
            assert_eq!(seen, v1_or_v2(expected_v1, expected_v2), "{v1} {v2}");
        }
        let host = &daemon.inspect("limited")?["HostConfig"];
        assert_eq!(host["Memory"], 67_108_864);
        assert_eq!(host["NanoCpus"], 500_000_000);
        assert_eq!((&host["CpuShares"], &host["PidsLimit"]), (&512.into(), &33.into()));
        Ok(())
    })
}

#[test]
fn containers_live_below_the_configured_parent() -> TestResult {
    with_busybox(|daemon| {
        sleeper(daemon, "there", "")?;
        let pid = daemon.inspect("there")?["State"]["Pid"].clone();
        let groups = daemon.sandbox().sh(&format!("cat /proc/{pid}/cgroup"))?;
        let parent = format!("/{}/", daemon.cgroup_parent());
        let outside: Vec<_> =
            groups.lines().filter(|l| !l.contains(&parent) && !l.ends_with(":/")).collect();
        assert!(outside.is_empty(), "{outside:?}");
        assert!(groups.contains(&parent), "{groups}");
        Ok(())
    })
}

#[test]
fn too_much_memory_ends_a_container_and_is_told() -> TestResult {
    with_busybox(|daemon| {
        let output = daemon
            .docker("run --name greedy --memory 8m --memory-swap 8m busybox tail /dev/zero")?;
        assert_eq!(output.status, 137, "{output}");
        let state = &daemon.inspect("greedy")?["State"];
        assert_eq!((&state["OOMKilled"], &state["ExitCode"]), (&true.into(), &137.into()));
        Ok(())
    })
}

#[test]
fn too_many_processes_are_refused() -> TestResult {
    with_busybox(|daemon| {
        let script = "sh -c 'for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; echo started'";
        let output = daemon.docker(format!("run --rm --pids-limit 5 busybox {script}"))?;
        assert!(output.stderr.contains("fork"), "{output}");
        Ok(())
    })
}

#[test]
fn resource_limits_and_kernel_parameters_are_set() -> TestResult {
    with_busybox(|daemon| {
        let limits = daemon.ok("run --rm --ulimit nofile=123:456 --ulimit core=0 busybox \
             sh -c 'ulimit -n; ulimit -Hn; ulimit -c'")?;
        assert_eq!(limits, "123\n456\n0");
        let said = daemon.fails("run --rm --ulimit nofile=9:3 busybox true")?;
        assert!(said.contains("nofile") || said.contains("soft"), "{said}");

        let seen = daemon.ok(
            "run --rm --sysctl net.core.somaxconn=1234 --sysctl kernel.shmmax=65536 busybox \
             cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmax",
        )?;
        assert_eq!(seen, "1234\n65536");
        let said = daemon.fails("run --rm --sysctl vm.swappiness=1 busybox true")?;
        assert!(said.contains("vm.swappiness"), "{said}");
        let said =
            daemon.fails("run --rm --network host --sysctl net.core.somaxconn=1 busybox true")?;
        assert!(said.contains("not allowed"), "{said}");

        let size = |options: &str| {
            daemon.ok(format!("run --rm {options} busybox sh -c 'df -k /dev/shm | tail -1'"))
        };
        assert!(size("")?.contains(" 65536 "), "{}", size("")?);
        assert!(size("--shm-size 32m")?.contains(" 32768 "));
        assert_eq!(
            daemon.ok("run --rm --oom-score-adj 500 busybox cat /proc/self/oom_score_adj")?,
            "500"
        );
        Ok(())
    })
}

#[test]
fn limits_that_make_no_sense_are_refused() -> TestResult {
    with_busybox(|daemon| {
        for (options, part) in [
            ("--memory 1k", "Minimum memory limit allowed is 6MB"),
            ("--memory 64m --memory-swap 32m", "swap"),
            ("--memory-reservation 64m --memory 32m", "reservation"),
            ("--cpus 4096", "CPUs"),
            ("--cpuset-cpus 4095", "4095"),
            ("--cpuset-cpus nonsense", "nonsense"),
            ("--cpus 1 --cpu-quota 1000", "quota"),
            ("--shm-size 0", ""),
            ("--oom-score-adj 2000", "2000"),
        ] {
            let output = daemon.docker(format!("create {options} busybox true"))?;
            if options == "--shm-size 0" {
                // Zero is "the default".
                assert_eq!(output.status, 0, "{output}");
                continue;
            }
            let said = output.failure()?.to_lowercase();
            assert!(said.contains(&part.to_lowercase()), "{options}: {said}");
        }
        Ok(())
    })
}
