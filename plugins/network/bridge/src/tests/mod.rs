//! The driver against the kernel, in private network namespaces: real links, rules and bytes.
//!
//! They need root and `nft`, and skip loudly without.

mod bytes;
mod life;
mod world;
