//! Paths as text, changed without a look at any file system.

/// The shortest text for the same path: no `.`, no double or trailing slash, and `..` resolved as
/// if there were no links. Empty becomes `.`.
#[must_use]
pub fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if is_absolute => {}
                _ => parts.push(".."),
            },
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (is_absolute, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".into(),
        (false, false) => joined,
    }
}

/// Whether a relative path stays below where it starts, read as text.
#[must_use]
pub fn is_local(path: &str) -> bool {
    if path.is_empty() || path.starts_with('/') {
        return false;
    }
    let cleaned = clean(path);
    cleaned != ".." && !cleaned.starts_with("../")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        let cases = [
            ("", "."),
            ("/", "/"),
            ("//a//b/", "/a/b"),
            ("/a/./b/..", "/a"),
            ("/../../x", "/x"),
            ("a/../..", ".."),
            ("../a/..", ".."),
            ("./a", "a"),
        ];
        for (path, expected) in cases {
            assert_eq!(clean(path), expected, "{path}");
        }
    }

    #[test]
    fn local_paths() {
        let cases = [("a", true), ("a/../b", true), (".", true), ("", false), ("/a", false)];
        for (path, expected) in cases.into_iter().chain([("..", false), ("a/../../b", false)]) {
            assert_eq!(is_local(path), expected, "{path}");
        }
    }
}
