//! The null network driver.
