//! Decoding of request bodies by the rules that clients of the reference daemon rely on.
//!
//! | in the body | result |
//! |---|---|
//! | unknown field | ignored |
//! | field missing | the type's default (types of this crate are `serde(default)`) |
//! | `null` for any type | the type's default |
//! | field name in other letter case | the field; the exact name wins if both are there |
//! | value of a wrong type, number out of range | error that names the whole path of the field |
//! | fixed-size list too short, too long | filled with defaults, cut |
//!
//! Letter case is folded for ASCII only. A body is parsed into a tree first: callers bound its size,
//! the parser bounds its depth (128).

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde_json::Value;

/// Why a body is not what it should be. Its text is fit for the client; the status is 400.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError {
    reason: String,
    /// Innermost name first.
    path: Vec<String>,
}

impl DecodeError {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), path: Vec::new() }
    }

    fn wrong_type(value: &Value, wanted: &str) -> Self {
        let got = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(n) => format!("number {n}"),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        Self::new(format!("cannot unmarshal {got} into a value of type {wanted}"))
    }

    fn inside(mut self, name: impl Into<String>) -> Self {
        self.path.push(name.into());
        self
    }

    /// The field, as `HostConfig.Mounts.0.Type`; empty when the body as a whole is at fault.
    pub fn field(&self) -> String {
        let names: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        names.join(".")
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "invalid JSON: field {}: {}", self.field(), self.reason)
        }
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::new(text.to_string())
    }

    fn invalid_value(got: Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self::new(format!("cannot unmarshal {got} into a value of type {wanted}"))
    }
}

/// Decodes a body.
///
/// # Errors
///
/// An empty body, bad syntax, something after the value, or a value of a wrong type.
pub fn from_slice<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    let value = parse(body)?;
    from_value(&value)
}

/// Decodes a body that may be empty, which gives the default.
///
/// # Errors
///
/// As [`from_slice`].
pub fn from_slice_or_default<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, DecodeError> {
    if body.is_empty() { Ok(T::default()) } else { from_slice(body) }
}

/// Decodes a parsed value.
///
/// # Errors
///
/// A value of a wrong type.
pub fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, DecodeError> {
    T::deserialize(Lenient(value)).map_err(|error| match error {
        DecodeError { reason, path } if path.is_empty() && !reason.starts_with(PREFIX) => {
            DecodeError { reason: format!("{PREFIX}{reason}"), path }
        }
        error => error,
    })
}

const PREFIX: &str = "invalid JSON: ";

/// Parses a body into a tree.
///
/// # Errors
///
/// As [`from_slice`], types aside.
pub fn parse(body: &[u8]) -> Result<Value, DecodeError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(DecodeError::new("invalid JSON: got EOF while reading request body"));
    }
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let value = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(DecodeError::new(format!("{PREFIX}{error}"))),
        None => return Err(DecodeError::new("invalid JSON: got EOF while reading request body")),
    };
    match body.get(values.byte_offset()..) {
        Some(rest) if !rest.iter().all(u8::is_ascii_whitespace) => {
            Err(DecodeError::new("unexpected content after JSON"))
        }
        _ => Ok(value),
    }
}

/// A value read by the rules of this module.
struct Lenient<'a>(&'a Value);

/// An integer of the asked type, or an error that says what was there.
macro_rules! integers {
    ($($method:ident $visit:ident $type:ty, $name:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            let number = match self.0 {
                Value::Null => Some(0),
                Value::Number(n) => n
                    .as_i64()
                    .and_then(|n| <$type>::try_from(n).ok())
                    .or_else(|| n.as_u64().and_then(|n| <$type>::try_from(n).ok())),
                _ => None,
            };
            match number {
                Some(number) => visitor.$visit(number),
                None => Err(DecodeError::wrong_type(self.0, $name)),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Lenient<'de> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::String(s) => visitor.visit_borrowed_str(s),
            Value::Array(items) => visitor.visit_seq(Items { items, next: 0, pad: 0 }),
            Value::Object(_) => self.deserialize_map(visitor),
            Value::Number(n) => match (n.as_u64(), n.as_i64(), n.as_f64()) {
                (Some(n), _, _) => visitor.visit_u64(n),
                (_, Some(n), _) => visitor.visit_i64(n),
                (_, _, Some(n)) => visitor.visit_f64(n),
                _ => Err(DecodeError::wrong_type(self.0, "number")),
            },
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Null => visitor.visit_bool(false),
            Value::Bool(b) => visitor.visit_bool(*b),
            other => Err(DecodeError::wrong_type(other, "bool")),
        }
    }

    integers! {
        deserialize_i8 visit_i8 i8, "int8";
        deserialize_i16 visit_i16 i16, "int16";
        deserialize_i32 visit_i32 i32, "int32";
        deserialize_i64 visit_i64 i64, "int64";
        deserialize_u8 visit_u8 u8, "uint8";
        deserialize_u16 visit_u16 u16, "uint16";
        deserialize_u32 visit_u32 u32, "uint32";
        deserialize_u64 visit_u64 u64, "uint64";
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Null => visitor.visit_f64(0.0),
            Value::Number(n) => visitor.visit_f64(n.as_f64().unwrap_or_default()),
            other => Err(DecodeError::wrong_type(other, "float64")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Null => visitor.visit_borrowed_str(""),
            Value::String(s) => visitor.visit_borrowed_str(s),
            other => Err(DecodeError::wrong_type(other, "string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Null => visitor.visit_seq(Items { items: &[], next: 0, pad: 0 }),
            Value::Array(items) => visitor.visit_seq(Items { items, next: 0, pad: 0 }),
            other => Err(DecodeError::wrong_type(other, "list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::Null => visitor.visit_seq(Items { items: &[], next: 0, pad: len }),
            Value::Array(items) => {
                let items = items.get(..len).unwrap_or(items);
                visitor.visit_seq(Items { items, next: 0, pad: len })
            }
            other => Err(DecodeError::wrong_type(other, "list")),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let fields = match self.0 {
            Value::Null => Vec::new(),
            Value::Object(map) => map.iter().map(|(k, v)| (k.as_str(), v)).collect(),
            other => return Err(DecodeError::wrong_type(other, "object")),
        };
        visitor.visit_map(Fields { fields: fields.into_iter(), value: None })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let fields = match self.0 {
            Value::Null => Vec::new(),
            Value::Object(map) => known_fields(map, known),
            other => return Err(DecodeError::wrong_type(other, "object")),
        };
        visitor.visit_map(Fields { fields: fields.into_iter(), value: None })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.0 {
            Value::String(s) => {
                let name: StrDeserializer<'_, DecodeError> = s.as_str().into_deserializer();
                visitor.visit_enum(name)
            }
            other => Err(DecodeError::wrong_type(other, "string")),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! { i128 u128 char bytes byte_buf unit unit_struct identifier }
}

/// The fields that `known` lists, each once, under their listed names.
fn known_fields<'a>(
    map: &'a serde_json::Map<String, Value>,
    known: &'static [&'static str],
) -> Vec<(&'a str, &'a Value)> {
    let mut found = Vec::with_capacity(known.len().min(map.len()));
    for &name in known {
        let value = map
            .get(name)
            .or_else(|| map.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v));
        if let Some(value) = value {
            found.push((name, value));
        }
    }
    found
}

struct Items<'a> {
    items: &'a [Value],
    next: usize,
    /// With fewer items than this, the rest are `null`.
    pad: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let index = self.next;
        let item = match self.items.get(index) {
            Some(item) => item,
            None if index < self.pad => &Value::Null,
            None => return Ok(None),
        };
        self.next += 1;
        seed.deserialize(Lenient(item)).map(Some).map_err(|e| e.inside(index.to_string()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len().saturating_sub(self.next))
    }
}

struct Fields<'a> {
    fields: std::vec::IntoIter<(&'a str, &'a Value)>,
    value: Option<(&'a str, &'a Value)>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        self.value = self.fields.next();
        let Some((name, _)) = self.value else { return Ok(None) };
        let name: de::value::BorrowedStrDeserializer<'de, DecodeError> =
            de::value::BorrowedStrDeserializer::new(name);
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let Some((name, value)) = self.value.take() else {
            return Err(DecodeError::new("value without a name"));
        };
        seed.deserialize(Lenient(value)).map_err(|e| e.inside(name))
    }
}

/// For `deserialize_with`: a list of text, or one text for a list of one. `None` for `null`.
///
/// # Errors
///
/// Anything else.
pub(crate) fn text_or_list<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    struct TextOrList;

    impl<'de> Visitor<'de> for TextOrList {
        type Value = Option<Vec<String>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("string or list of strings")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(Some(vec![text.to_owned()]))
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(text) = seq.next_element::<String>()? {
                list.push(text);
            }
            Ok(Some(list))
        }
    }

    deserializer.deserialize_any(TextOrList)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Sample {
        name: String,
        count: i64,
        small: u16,
        on: bool,
        list: Option<Vec<String>>,
        size: [u64; 2],
        map: BTreeMap<String, i64>,
        inner: Option<Box<Sample>>,
        #[serde(deserialize_with = "text_or_list")]
        words: Option<Vec<String>>,
    }

    fn decode(body: &str) -> Result<Sample, String> {
        from_slice(body.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn null_is_the_default_of_every_type() {
        let body = r#"{"Name":null,"Count":null,"Small":null,"On":null,"List":null,"Size":null,
            "Map":null,"Inner":null,"Words":null}"#;
        assert_eq!(decode(body), Ok(Sample::default()));
        assert_eq!(decode("null"), Ok(Sample::default()));
    }

    #[test]
    fn names_are_found_in_any_case_and_the_exact_one_wins() {
        assert_eq!(decode(r#"{"naME":"a"}"#).unwrap().name, "a");
        assert_eq!(decode(r#"{"name":"a","Name":"b","NAME":"c"}"#).unwrap().name, "b");
        assert_eq!(decode(r#"{"Map":{"a":1,"A":2}}"#).unwrap().map.len(), 2);
    }

    #[test]
    fn unknown_fields_are_ignored_whatever_they_hold() {
        assert_eq!(decode(r#"{"X":[1,{"y":null}],"Name":"n"}"#).unwrap().name, "n");
    }

    #[test]
    fn errors_name_the_field() {
        let cases = [
            (r#"{"Count":"1"}"#, "field Count: cannot unmarshal string into a value of type int64"),
            (r#"{"Count":1.5}"#, "field Count: cannot unmarshal number 1.5 into"),
            (r#"{"Small":70000}"#, "field Small: cannot unmarshal number 70000 into"),
            (r#"{"Small":-1}"#, "field Small: cannot unmarshal number -1 into"),
            (r#"{"On":1}"#, "field On: cannot unmarshal number 1 into a value of type bool"),
            (r#"{"Inner":{"List":["a",2]}}"#, "field Inner.List.1: cannot unmarshal number 2"),
            (r#"{"Map":{"k":true}}"#, "field Map.k: cannot unmarshal bool"),
            (r#"{"Map":[]}"#, "field Map: cannot unmarshal array into a value of type object"),
            (r#"{"Words":3}"#, "field Words: "),
        ];
        for (body, text) in cases {
            let error = decode(body).unwrap_err();
            assert!(error.starts_with("invalid JSON: ") && error.contains(text), "{body}: {error}");
        }
        assert_eq!(
            decode("[]").unwrap_err(),
            "invalid JSON: cannot unmarshal array into a value of type object"
        );
    }

    #[test]
    fn bodies_that_are_not_one_value() {
        assert_eq!(decode("").unwrap_err(), "invalid JSON: got EOF while reading request body");
        assert_eq!(decode(" \n").unwrap_err(), "invalid JSON: got EOF while reading request body");
        assert_eq!(decode("{} {}").unwrap_err(), "unexpected content after JSON");
        assert_eq!(decode("{}x").unwrap_err(), "unexpected content after JSON");
        assert!(decode("{").unwrap_err().starts_with("invalid JSON: "));
        assert!(decode(&"[".repeat(100_000)).unwrap_err().starts_with("invalid JSON: "));
        assert_eq!(decode("{}\n"), Ok(Sample::default()));
        assert_eq!(from_slice_or_default::<Sample>(b""), Ok(Sample::default()));
    }

    #[test]
    fn fixed_lists_are_filled_and_cut() {
        assert_eq!(decode(r#"{"Size":[1]}"#).unwrap().size, [1, 0]);
        assert_eq!(decode(r#"{"Size":[1,2,3]}"#).unwrap().size, [1, 2]);
    }

    #[test]
    fn text_stands_for_a_list_of_one() {
        assert_eq!(decode(r#"{"Words":"a b"}"#).unwrap().words, Some(vec!["a b".into()]));
        assert_eq!(decode(r#"{"Words":["a","b"]}"#).unwrap().words.unwrap().len(), 2);
        assert_eq!(decode(r#"{"Words":[]}"#).unwrap().words, Some(vec![]));
    }
}
