//! Seccomp profiles: the default profile and a BPF compiler.
