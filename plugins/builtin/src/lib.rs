//! The built-in plugins: the only file that names them.
