//! The none log driver.
