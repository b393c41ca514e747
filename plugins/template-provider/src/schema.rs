//! The JSON Schema for editors, from the same types that read a template. Native only: no plugin
//! needs it. Owns what serde's attributes don't tell schemars.

use std::borrow::Cow;

use keywheel_sdk::serde_json::Value;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::place::{At, Entries};
use crate::template::{
    Duration, Node, Number, Scalar, Source, SourceTable, Statuses, Template, Test, TestTable,
};

/// The schema as it is published.
pub fn template() -> Value {
    let mut schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<Template>().to_value();
    without_null(&mut schema);
    schema
}

/// TOML has no null: what may be left out is left out.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Array(entries) => entries.iter_mut().for_each(without_null),
        Value::Object(fields) => {
            if let Some(Value::Array(kinds)) = fields.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [lone] = kinds.as_slice() {
                    fields["type"] = lone.clone();
                }
            }
            if let Some(Value::Array(any)) = fields.get_mut("anyOf") {
                any.retain(|one| one["type"] != "null");
                if let [Value::Object(lone)] = any.as_slice() {
                    let lone = lone.clone();
                    fields.remove("anyOf");
                    fields.extend(lone);
                }
            }
            fields.remove("default");
            for (word, below) in fields.iter_mut() {
                match below {
                    // Names of ours stand here, not words of JSON Schema.
                    Value::Object(named) if matches!(word.as_str(), "properties" | "definitions") => {
                        named.values_mut().for_each(without_null);
                    }
                    other => without_null(other),
                }
            }
        }
        _ => {}
    }
}

macro_rules! named {
    ($name:literal) => {
        fn schema_name() -> Cow<'static, str> {
            $name.into()
        }
    };
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

impl<T: JsonSchema> JsonSchema for Entries<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Entries_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": generator.subschema_for::<T>() })
    }
}

impl JsonSchema for Duration {
    named!("Duration");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^0*[1-9][0-9]*[smhd]$" })
    }
}

impl JsonSchema for Scalar {
    named!("Scalar");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"] })
    }
}

impl JsonSchema for Number {
    named!("Number");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number" })
    }
}

impl JsonSchema for Statuses {
    named!("Statuses");

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 100, "maximum": 599 },
                { "type": "string", "pattern": "^[1-5][0-9]{2}-[1-5][0-9]{2}$" },
            ]
        });
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
    }
}

impl JsonSchema for Test {
    named!("Test");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [generator.subschema_for::<Scalar>(), generator.subschema_for::<TestTable>()]
        })
    }
}

impl JsonSchema for Source {
    named!("Source");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "type": "string", "pattern": "^/" }, generator.subschema_for::<SourceTable>()]
        })
    }
}

impl JsonSchema for Node {
    named!("Node");

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let node = generator.subschema_for::<Node>();
        json_schema!({
            "anyOf": [
                { "type": ["string", "number", "boolean"] },
                { "type": "array", "items": node },
                { "type": "object", "additionalProperties": node },
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use keywheel_sdk::serde_json::{self, Value, json};
    use toml::de::{DeTable, DeValue};

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    #[test]
    fn the_published_schema_is_the_one_of_these_types() {
        let file = root().join("docs/template.schema.json");
        let now = super::template();
        if std::env::var_os("KEYWHEEL_WRITE_SCHEMA").is_some() {
            let text = serde_json::to_string_pretty(&now).expect("a schema is JSON") + "\n";
            fs::write(&file, text).expect("the schema can be written");
        }
        let published: Value =
            serde_json::from_str(&fs::read_to_string(&file).unwrap_or_default()).unwrap_or_default();
        assert!(
            published == now,
            "docs/template.schema.json is stale; hint: KEYWHEEL_WRITE_SCHEMA=1 cargo test -p template-provider schema"
        );
    }

    fn to_json(value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::from(text.as_ref()),
            DeValue::Integer(number) => {
                Value::from(i64::from_str_radix(number.as_str(), number.radix()).unwrap())
            }
            DeValue::Float(number) => Value::from(number.as_str().parse::<f64>().unwrap()),
            DeValue::Boolean(boolean) => Value::from(*boolean),
            DeValue::Datetime(date) => Value::from(date.to_string()),
            DeValue::Array(list) => list.iter().map(|value| to_json(value.get_ref())).collect(),
            DeValue::Table(table) => table_to_json(table),
        }
    }

    fn table_to_json(table: &DeTable<'_>) -> Value {
        let fields = table.iter().map(|(name, value)| (name.get_ref().to_string(), to_json(value.get_ref())));
        Value::Object(fields.collect())
    }

    /// As much of JSON Schema as ours uses; None where the value fits. A word that isn't known
    /// here fails, so that nothing of the schema goes unchecked.
    fn misfit(schema: &Value, root: &Value, value: &Value, at: &str) -> Option<String> {
        let Value::Object(rules) = schema else { return None };
        rules.iter().find_map(|(rule, wants)| match rule.as_str() {
            "$schema" | "title" | "description" | "definitions" | "pattern" | "format" => None,
            "$ref" => {
                let pointer = wants.as_str()?.strip_prefix('#')?;
                misfit(root.pointer(pointer).expect("a definition"), root, value, at)
            }
            "anyOf" | "oneOf" => {
                let misfits: Vec<_> =
                    wants.as_array()?.iter().map(|one| misfit(one, root, value, at)).collect();
                misfits.iter().all(Option::is_some).then(|| format!("{at}: {misfits:?}"))
            }
            "allOf" => wants.as_array()?.iter().find_map(|one| misfit(one, root, value, at)),
            "type" => {
                let is = |kind: &str| match kind {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "number" => value.is_number(),
                    "integer" => value.is_i64(),
                    other => panic!("the type {other}"),
                };
                let fits = match wants {
                    Value::String(kind) => is(kind),
                    kinds => kinds.as_array()?.iter().any(|kind| is(kind.as_str().unwrap())),
                };
                (!fits).then(|| format!("{at}: {value} is no {wants}"))
            }
            "enum" => {
                (!wants.as_array()?.contains(value)).then(|| format!("{at}: {value} is not of {wants}"))
            }
            "const" => (wants != value).then(|| format!("{at}: {value} is not {wants}")),
            "required" => {
                let lacks =
                    wants.as_array()?.iter().find(|name| value.get(name.as_str().unwrap()).is_none())?;
                value.is_object().then(|| format!("{at}: no {lacks}"))
            }
            "minimum" => (value.as_f64()? < wants.as_f64()?).then(|| format!("{at}: below {wants}")),
            "maximum" => (value.as_f64()? > wants.as_f64()?).then(|| format!("{at}: above {wants}")),
            "minItems" => {
                (value.as_array()?.len() < wants.as_u64()? as usize).then(|| format!("{at}: too few"))
            }
            "items" => value
                .as_array()?
                .iter()
                .enumerate()
                .find_map(|(index, entry)| misfit(wants, root, entry, &format!("{at}/{index}"))),
            "properties" => wants
                .as_object()?
                .iter()
                .find_map(|(name, wants)| misfit(wants, root, value.get(name)?, &format!("{at}/{name}"))),
            "additionalProperties" => {
                let known =
                    |name: &String| rules.get("properties").is_some_and(|known| known.get(name).is_some());
                value.as_object()?.iter().filter(|(name, _)| !known(name)).find_map(|(name, entry)| {
                    match wants {
                        Value::Bool(false) => Some(format!("{at}: no field {name}")),
                        wants => misfit(wants, root, entry, &format!("{at}/{name}")),
                    }
                })
            }
            other => panic!("the schema says `{other}`, which is not known here"),
        })
    }

    fn judged(text: &str) -> Option<String> {
        let table = DeTable::parse(text).expect("TOML");
        let schema = super::template();
        misfit(&schema, &schema, &table_to_json(table.get_ref()), "")
    }

    #[test]
    fn the_schema_takes_every_template_that_comes_along_and_those_of_the_tests() {
        let shipped: Vec<_> = fs::read_dir(root().join("plugins/template-provider/providers"))
            .map(|folder| folder.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default();
        for path in shipped {
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(judged(&text), None, "{}", path.display());
        }
        assert_eq!(judged(crate::tests::LINEAR), None);
        assert_eq!(judged(crate::tests::SESSION), None);
        assert_eq!(judged(&crate::tests::example()), None);
    }

    #[test]
    fn the_schema_refuses_what_the_reader_refuses() {
        let whole = crate::tests::LINEAR;
        for (from, to) in [
            ("[validate]\n", "[validat]\n"),
            ("title =", "titel ="),
            ("every =", "evry ="),
            ("every = \"1h\"", "every = 60"),
            ("optional = true", "optional = 1"),
            ("optional = true", "value = \"x\""),
            ("kind = \"url\"", "kind = \"uri\""),
            ("status = 200", "status = 2000"),
            ("status = 200", "status = []"),
            ("{ present = true }", "{ presnt = true }"),
            ("class = \"grace\"", "class = \"gracious\""),
            ("class = \"grace\"\n", ""),
            ("status = 200", "status = 200\nmessage = \"x\""),
            ("method = \"POST\"", "method = \"post\""),
            ("identity = \"/data/viewer/id\"", "identity = { text = \"x\" }"),
        ] {
            assert!(whole.contains(from), "{from}");
            let text = whole.replacen(from, to, 1);
            assert!(crate::fault::read(&text).is_err(), "the reader takes {to}");
            assert!(judged(&text).is_some(), "the schema takes {to}");
        }
    }

    #[test]
    fn the_schema_says_in_words_what_each_field_is() {
        let schema = super::template();
        let mut silent = Vec::new();
        for (name, table) in schema["definitions"].as_object().unwrap() {
            for (field, says) in table["properties"].as_object().into_iter().flatten() {
                let shared = ["name", "contains"].contains(&field.as_str());
                if says.get("description").is_none() && !shared {
                    silent.push(format!("{name}.{field}"));
                }
            }
        }
        assert_eq!(json!(silent), json!([]));
    }
}
