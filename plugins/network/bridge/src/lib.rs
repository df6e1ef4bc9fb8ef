//! The bridge network driver: links, addresses, firewall, ports, names.
