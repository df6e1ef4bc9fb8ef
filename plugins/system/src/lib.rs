//! System routes: _ping, version, info, df, auth.
