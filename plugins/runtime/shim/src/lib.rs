//! The shim: parent of one container, outlives the daemon.
