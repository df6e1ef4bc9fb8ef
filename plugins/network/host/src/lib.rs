//! The host network driver.
