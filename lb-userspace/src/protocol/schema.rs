//! JSON schemas of the requests and answers, for tests: docs/api.md is made from them, and smallest requests.

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{Documented, Request};

/// The generator of schemas of answers.
pub fn of_answers() -> SchemaGenerator {
    SchemaSettings::draft2020_12().for_serialize().into_generator()
}

/// The generator of schemas of requests.
pub fn of_requests() -> SchemaGenerator {
    SchemaSettings::draft2020_12().for_deserialize().into_generator()
}

/// The schema of a type by itself, and not a reference to it.
pub fn inline<T: Documented>(generator: &mut SchemaGenerator) -> Schema {
    <T as JsonSchema>::json_schema(generator)
}

/// The smallest request of a type: only the required fields, each with a value that its type takes.
pub fn smallest<R: Request>() -> R {
    let mut generator = of_requests();
    let schema = inline::<R>(&mut generator);
    let value = value(schema.as_value(), &generator.take_definitions(true));
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{} {value}: {error}", R::PATH))
}

fn value(schema: &Value, definitions: &Map<String, Value>) -> Value {
    if let Some(name) = schema["$ref"].as_str() {
        return value(&definitions[name.trim_start_matches("#/$defs/")], definitions);
    }
    if let Some(variants) = schema["oneOf"].as_array() {
        return variants[0]["const"].clone();
    }
    let kind = schema["type"].as_array().map_or(&schema["type"], |kinds| &kinds[0]);
    match kind.as_str() {
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let fields =
                required.map(|name| (name.to_owned(), value(&schema["properties"][name], definitions)));
            Value::Object(fields.collect())
        }
        Some("array") => json!([]),
        Some("string") => json!("7"),
        Some("integer") => json!(1),
        Some("null") => Value::Null,
        _ => panic!("no value for {schema}"),
    }
}
