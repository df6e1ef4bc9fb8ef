//! What each version changed in what clients ask for.
