//! A real daemon, the real docker CLI, real images: one file per resource.
