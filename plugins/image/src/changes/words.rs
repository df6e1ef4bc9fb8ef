//! Lines, words, quotes and variables of Dockerfile instructions.

use gantry_sdk::{Error, Result};

/// Most bytes a value may grow to when variables are replaced.
const MAX_VALUE: usize = 1 << 20;

/// Instructions: comments and empty lines gone, lines that end with a backslash joined.
pub(super) fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut current: Option<String> = None;
    for line in text.lines() {
        if line.trim_start().starts_with('#') {
            continue;
        }
        if current.is_some() && line.trim().is_empty() {
            continue; // empty lines do not end a continued one
        }
        let trimmed = line.trim_end();
        let (part, goes_on) = match trimmed.strip_suffix('\\') {
            Some(part) => (part, true),
            None => (trimmed, false),
        };
        let joined = current.take().unwrap_or_default() + part;
        if goes_on {
            current = Some(joined);
        } else if !joined.trim().is_empty() {
            lines.push(joined.trim().to_owned());
        }
    }
    lines.extend(current.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()));
    lines
}

/// The JSON form of an argument list.
pub(super) fn exec_form(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// Words at white space that is neither quoted nor escaped; quotes and escapes stay.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            // In single quotes a backslash is a character like any other.
            (None | Some('"'), '\\') => {
                word.push(c);
                word.extend(chars.next());
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// `key=value …`, or `key value` in the older form; variables in values are those of `env`.
pub(super) fn name_values(
    instruction: &str,
    text: &str,
    env: &[String],
) -> Result<Vec<(String, String)>> {
    let words = words(text);
    if !words.first().is_some_and(|first| first.contains('=')) {
        let pair = text.split_once(char::is_whitespace);
        let (key, value) =
            pair.ok_or_else(|| Error::invalid(format!("{instruction} must have two arguments")))?;
        return Ok(vec![(expand(key, env)?, expand(value.trim(), env)?)]);
    }
    let pair = |word: &String| {
        let (key, value) = word.split_once('=').ok_or_else(|| {
            Error::invalid(format!(
                "Syntax error - can't find = in {word:.80?}. Must be of the form: name=value"
            ))
        })?;
        let key = expand(key, env)?;
        if key.is_empty() {
            return Err(Error::invalid(format!("{instruction} names can not be blank")));
        }
        Ok((key, expand(value, env)?))
    };
    words.iter().map(pair).collect()
}

/// Removes quotes and escapes and replaces `$name`, `${name}`, `${name:-word}`, `${name:+word}`.
pub(super) fn expand(text: &str, env: &[String]) -> Result<String> {
    let mut out = String::new();
    let mut quote = None;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (Some('"'), '\\') if !rest.starts_with(['"', '$', '\\']) => out.push('\\'),
            (None | Some('"'), '\\') => {
                let escaped = rest.chars().next();
                out.extend(escaped);
                rest = &rest[escaped.map_or(0, char::len_utf8)..];
            }
            (None | Some('"'), '$') => rest = variable(rest, env, &mut out)?,
            _ => out.push(c),
        }
        if out.len() > MAX_VALUE {
            return Err(Error::invalid(format!("a value is longer than {MAX_VALUE} bytes")));
        }
    }
    match quote {
        Some('"') => Err(Error::invalid(
            "unexpected end of statement while looking for matching double-quote",
        )),
        Some(_) => Err(Error::invalid(
            "unexpected end of statement while looking for matching single-quote",
        )),
        None => Ok(out),
    }
}

/// Replaces the variable at the start of `rest` (behind the `$`); returns what follows.
fn variable<'a>(rest: &'a str, env: &[String], out: &mut String) -> Result<&'a str> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let Some(braced) = rest.strip_prefix('{') else {
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        if end == 0 {
            out.push('$');
        }
        out.push_str(value_of(&rest[..end], env).unwrap_or_default());
        return Ok(&rest[end..]);
    };
    let unclosed = || Error::invalid("syntax error: missing '}'");
    let (inside, behind) = braced.split_once('}').ok_or_else(unclosed)?;
    let end = inside.find(|c| !is_name(c)).unwrap_or(inside.len());
    let value = value_of(&inside[..end], env).filter(|value| !value.is_empty());
    match &inside[end..] {
        "" => out.push_str(value.unwrap_or_default()),
        modifier if modifier.starts_with(":-") => out.push_str(value.unwrap_or(&modifier[2..])),
        modifier if modifier.starts_with(":+") => {
            out.push_str(value.map_or("", |_| &modifier[2..]));
        }
        modifier => {
            return Err(Error::invalid(format!(
                "unsupported modifier ({modifier:.20}) in substitution"
            )));
        }
    }
    Ok(behind)
}

fn value_of<'a>(name: &str, env: &'a [String]) -> Option<&'a str> {
    env.iter().find_map(|line| line.split_once('=').filter(|(key, _)| *key == name)).map(|(_, v)| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_quotes_and_escapes() {
        let env = ["A=1".to_owned(), "E=".to_owned()];
        let cases = [
            ("$A-${A}", "1-1"),
            ("${B:-x}${E:-y}${A:+z}", "xyz"),
            (r"\$A '$A' a\ b", "$A $A a b"),
            (r#""q \"$A\"""#, r#"q "1""#),
            ("$", "$"),
            ("a$ b", "a$ b"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, &env).unwrap(), expected, "{text}");
        }
        assert!(expand("${A", &env).is_err());
        assert!(expand("${A?x}", &env).is_err());
    }

    #[test]
    fn words_keep_quoted_space() {
        assert_eq!(words(r#"a="b c" d\ e 'f g'"#), [r#"a="b c""#, r"d\ e", "'f g'"]);
    }

    #[test]
    fn lines_go_on_after_a_backslash() {
        let text = "# no\nENV A=1 \\\n  # inside\n\n  B=2\n\nUSER x";
        assert_eq!(logical_lines(text), ["ENV A=1   B=2", "USER x"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,80}") {
            let mut config = gantry_api::image::ImageConfig::default();
            let _ = crate::changes::apply(&mut config, &[text.clone(), format!("ENV A={text}")]);
        }
    }
}
