//! From parsed TOML to the types of a template. Owns the places of values and the words of what
//! doesn't fit. There is one deserializer type for everything, so that the reading code of each
//! table is in the plugin once: with the one of the `toml` crate, it is in there many times, and
//! every template of an operator is compiled with it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::fault::{Fault, reason, suggestion, unknown_field};
use crate::place::{AT, Span};

/// What doesn't fit, and where once that is known.
#[derive(Debug)]
pub struct Misfit {
    what: String,
    span: Option<Span>,
}

impl Misfit {
    fn at(mut self, span: &Span) -> Self {
        self.span.get_or_insert_with(|| span.clone());
        self
    }

    pub fn into_fault(self) -> Fault {
        Fault::new(&self.span.unwrap_or_default(), self.what)
    }
}

impl Display for Misfit {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.what)
    }
}

impl core::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: Display>(what: T) -> Self {
        Self { what: what.to_string(), span: None }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self { what: unknown_field(field, expected), span: None }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self {
            what: format!("`{variant}` is not allowed here; {}", suggestion(variant, expected)),
            span: None,
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { what: format!("`{field}` is missing{}", reason(field)), span: None }
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match unexpected {
            de::Unexpected::Map => "a table".into(),
            de::Unexpected::Seq => "a list".into(),
            de::Unexpected::Str(_) => "a text".into(),
            other => other.to_string(),
        };
        Self { what: format!("{found} where {expected} is due"), span: None }
    }
}

/// One place of the file. Everything is read from this one type.
#[derive(Debug, Clone)]
pub enum Read<'a, 'i> {
    Value(&'a DeValue<'i>, Span),
    Table(&'a DeTable<'i>, Span),
    Name(&'a str, Span),
    /// Half of a place, on its way into an `At`.
    Byte(usize),
}

impl Read<'_, '_> {
    fn span(&self) -> Span {
        match self {
            Self::Value(_, span) | Self::Table(_, span) | Self::Name(_, span) => span.clone(),
            Self::Byte(at) => *at..*at,
        }
    }
}

impl<'de> Deserializer<'de> for Read<'_, '_> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        let span = self.span();
        let read = match self {
            Self::Byte(at) => visitor.visit_u64(at as u64),
            Self::Name(name, _) => visitor.visit_str(name),
            Self::Table(table, _) => visitor.visit_map(Table::new(table)),
            Self::Value(value, _) => match value {
                DeValue::String(text) => visitor.visit_str(text),
                DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => visitor.visit_i64(number),
                    Err(_) => Err(de::Error::custom("this number is too large")),
                },
                DeValue::Float(number) => match number.as_str().parse::<f64>() {
                    Ok(number) => visitor.visit_f64(number),
                    Err(_) => Err(de::Error::custom("this is no number")),
                },
                DeValue::Boolean(boolean) => visitor.visit_bool(*boolean),
                DeValue::Datetime(_) => {
                    Err(de::Error::custom("a date is no value here; hint: write it in quotes"))
                }
                DeValue::Array(list) => visitor.visit_seq(List(list.iter())),
                DeValue::Table(table) => visitor.visit_map(Table::new(table)),
            },
        };
        read.map_err(|misfit: Misfit| misfit.at(&span))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        if name != AT {
            return visitor.visit_newtype_struct(self);
        }
        let Span { start, end } = self.span();
        visitor.visit_seq(Placed([Some(Self::Byte(start)), Some(Self::Byte(end)), Some(self)].into_iter()))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let span = self.span();
        match self {
            Self::Table(table, _) | Self::Value(DeValue::Table(table), _) => {
                visitor.visit_map(Table::new(table)).map_err(|misfit: Misfit| misfit.at(&span))
            }
            _ => Err(Misfit { what: "a [table] or { fields } is due here".into(), span: Some(span) }),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        let span = self.span();
        visitor.visit_enum(self).map_err(|misfit: Misfit| misfit.at(&span))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map identifier ignored_any
    }
}

struct Table<'a, 'i> {
    entries: alloc::vec::IntoIter<(&'a Spanned<toml::de::DeString<'i>>, &'a Spanned<DeValue<'i>>)>,
    value: Option<Read<'a, 'i>>,
}

impl<'a, 'i> Table<'a, 'i> {
    /// In the order of the file: of two rotation methods the first is the preferred one, and of
    /// two mistakes the first is told.
    fn new(table: &'a DeTable<'i>) -> Self {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        Self { entries: entries.into_iter(), value: None }
    }
}

impl<'de> MapAccess<'de> for Table<'_, '_> {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        let Some((name, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(Read::Value(value.get_ref(), value.span()));
        seed.deserialize(Read::Name(name.get_ref(), name.span()))
            .map(Some)
            .map_err(|misfit| misfit.at(&name.span()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        match self.value.take() {
            Some(value) => {
                let span = value.span();
                seed.deserialize(value).map_err(|misfit| misfit.at(&span))
            }
            None => Err(de::Error::custom("a value was read twice")),
        }
    }
}

struct List<'a, 'i>(core::slice::Iter<'a, Spanned<DeValue<'i>>>);

impl<'de> SeqAccess<'de> for List<'_, '_> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        self.0.next().map(|value| seed.deserialize(Read::Value(value.get_ref(), value.span()))).transpose()
    }
}

/// Begin, end and the value itself.
struct Placed<'a, 'i>(core::array::IntoIter<Option<Read<'a, 'i>>, 3>);

impl<'de> SeqAccess<'de> for Placed<'_, '_> {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        self.0.next().flatten().map(|value| seed.deserialize(value)).transpose()
    }
}

impl<'de> EnumAccess<'de> for Read<'_, '_> {
    type Error = Misfit;
    type Variant = Lone;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Lone), Misfit> {
        seed.deserialize(self).map(|variant| (variant, Lone))
    }
}

/// The variants of a template are words.
#[derive(Debug)]
pub struct Lone;

impl<'de> VariantAccess<'de> for Lone {
    type Error = Misfit;

    fn unit_variant(self) -> Result<(), Misfit> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Misfit> {
        Err(de::Error::custom("a word is due here"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Misfit> {
        Err(de::Error::custom("a word is due here"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Misfit> {
        Err(de::Error::custom("a word is due here"))
    }
}
