//! The /events route over the kernel's event bus.
