//! Networks: the store behind container endpoints.
