//! docs/api.md: below its marker, it is made from the types, and a test holds it to them.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value};

use super::{
    Access, CheckReport, DecapReport, Detached, Documented, Failure, Request, for_each_request, schema,
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
const MARKER: &str = "<!-- Made from lb-userspace/src/protocol by \
                      `UPDATE_API=1 cargo test -p lb-userspace --lib page`. -->\n";

/// The page is what the types say: a key that is added, removed or renamed changes it.
#[test]
fn the_page_is_made_from_the_types() {
    let page = fs::read_to_string(PAGE).unwrap();
    let (by_hand, _) = page.split_once(MARKER).expect("the marker");
    let wanted = format!("{by_hand}{MARKER}{}", made());
    if std::env::var_os("UPDATE_API").is_some() {
        fs::write(PAGE, &wanted).unwrap();
    } else {
        let differing = page.lines().zip(wanted.lines()).find(|(found, wanted)| found != wanted);
        assert!(
            page == wanted,
            "docs/api.md differs from the types: {differing:?}; make it with UPDATE_API=1"
        );
    }
}

/// A request as the page describes it.
struct Entry {
    command: String,
    method: String,
    path: &'static str,
    access: Access,
    answer: String,
    input: Schema,
}

fn entry<R: Request>(requests: &mut SchemaGenerator, answers: &mut SchemaGenerator) -> Entry {
    let input = schema::inline::<R>(requests);
    Entry {
        command: description(input.as_value()),
        method: R::METHOD.to_string(),
        path: R::PATH,
        access: R::ACCESS,
        answer: type_of(answers.subschema_for::<R::Answer>().as_value()),
        input,
    }
}

fn made() -> String {
    let (mut requests, mut answers) = (schema::of_requests(), schema::of_answers());
    macro_rules! entries {
        ($($request:ident)*) => { [$(entry::<super::$request>(&mut requests, &mut answers)),*] };
    }
    let entries = for_each_request!(entries);
    let mut page =
        String::from("\n## Requests\n\n| command | request | access | answer |\n|---|---|---|---|\n");
    for Entry { command, method, path, access, answer, .. } in &entries {
        let access = match access {
            Access::Read => "read",
            Access::Change => "change",
        };
        row(&mut page, &[command, &format!("`{method} {path}`"), access, answer]);
    }
    let failure = type_of(answers.subschema_for::<Failure>().as_value());
    writeln!(page, "\nA request that fails is answered with {failure}.\n\n## Fields of requests").unwrap();
    for Entry { method, path, input, .. } in &entries {
        let input = input.as_value();
        write!(page, "\n### `{method} {path}`\n\n").unwrap();
        match (input["$ref"].as_str(), input["properties"].as_object()) {
            (Some(_), _) => writeln!(page, "The body is a {}.", type_of(input)).unwrap(),
            (None, Some(fields)) if !fields.is_empty() => properties(&mut page, "field", input),
            _ if method == "GET" => page.push_str("No fields.\n"),
            _ => page.push_str("No fields: the body is empty, or `null`.\n"),
        }
    }
    page.push_str("\n## Commands that ask no daemon\n\n| command | output |\n|---|---|\n");
    command::<CheckReport>(&mut page, &mut answers);
    command::<Detached>(&mut page, &mut answers);
    command::<DecapReport>(&mut page, &mut answers);
    page.push_str("\n## Types\n");
    let mut types: BTreeMap<String, Value> = BTreeMap::new();
    for (name, schema) in requests.take_definitions(true).into_iter().chain(answers.take_definitions(true)) {
        let name = if name.starts_with("List_for_") { "List".to_owned() } else { name };
        types.insert(name, schema);
    }
    for (name, schema) in &mut types {
        if name == "List" {
            schema["properties"]["items"] =
                serde_json::json!({ "type": "array", "description": "The entries." });
        }
        write!(page, "\n### `{name}`\n\n{}.\n\n", description(schema).trim_end_matches('.')).unwrap();
        match schema["oneOf"].as_array() {
            Some(variants) => {
                page.push_str("| value | meaning |\n|---|---|\n");
                for variant in variants {
                    let value = format!("`{}`", variant["const"].as_str().unwrap());
                    row(&mut page, &[&value, &description(variant)]);
                }
            }
            None => properties(&mut page, "key", schema),
        }
    }
    page
}

fn command<T: Documented>(page: &mut String, answers: &mut SchemaGenerator) {
    let described = description(schema::inline::<T>(&mut schema::of_answers()).as_value());
    let command = described.split('`').nth(1).expect("a command in backticks");
    row(page, &[&format!("`{command}`"), &type_of(answers.subschema_for::<T>().as_value())]);
}

/// A table of the fields of a request, or the keys of an answer.
fn properties(page: &mut String, head: &str, schema: &Value) {
    write!(page, "| {head} | type | meaning |\n|---|---|---|\n").unwrap();
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().collect();
    let none = Map::new();
    for (name, property) in schema["properties"].as_object().unwrap_or(&none) {
        let may_be_absent = !required.iter().any(|required| *required == name);
        let kind = type_of(property);
        let kind = match may_be_absent {
            true => format!("{} or absent", kind.trim_end_matches(" or null")),
            false => kind,
        };
        row(page, &[&format!("`{name}`"), &kind, &description(property)]);
    }
}

fn row(page: &mut String, cells: &[&str]) {
    writeln!(page, "| {} |", cells.join(" | ")).unwrap();
}

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ")
}

/// The type of a value, in words, with links to the types of this page.
fn type_of(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.trim_start_matches("#/$defs/");
        let link = |name: &str| format!("[`{name}`](#{})", name.to_lowercase());
        return match name.strip_prefix("List_for_") {
            Some(items) => format!("{} of {}", link("List"), link(items)),
            None => link(name),
        };
    }
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().map(type_of).collect::<Vec<_>>().join(" or ");
    }
    if let Some(kinds) = schema["type"].as_array() {
        return kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or ");
    }
    match schema["type"].as_str() {
        Some("array") if schema.get("items").is_some() => format!("list of {}", type_of(&schema["items"])),
        Some("array") => "list".to_owned(),
        Some(kind) => kind.to_owned(),
        None => panic!("no type: {schema}"),
    }
}
