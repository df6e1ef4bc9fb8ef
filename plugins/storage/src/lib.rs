//! The layer store: chains of layers, materialised by a storage driver.
