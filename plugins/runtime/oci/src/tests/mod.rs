//! Real containers. They need root and skip loudly without; their groups are below
//! `gantry-test-<pid>` and are removed.

mod bench;
mod config;
mod confine;
mod external;
mod fixture;
mod life;
mod oracle;
mod streams;
