//! 64-bit integers in JSON: many parsers are exact only up to 53 bits.

/// Counters. An integer up to 2^53 is a number. A larger one is a string, because JavaScript and jq would round it.
/// Both forms are accepted.
pub mod big {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const EXACT: u64 = 1 << 53;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }

    /// Serializes a number, or a string above 2^53.
    ///
    /// # Errors
    /// The errors of the serializer.
    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        if *value > EXACT { super::text::serialize(value, to) } else { to.serialize_u64(*value) }
    }

    /// Accepts both forms.
    ///
    /// # Errors
    /// If the value is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        match Either::deserialize(from)? {
            Either::Number(value) => Ok(value),
            Either::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }

    /// Stands for the integer in the JSON schema.
    #[cfg(test)]
    pub struct Schema;

    #[cfg(test)]
    impl schemars::JsonSchema for Schema {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "BigInteger".into()
        }

        fn inline_schema() -> bool {
            true
        }

        fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({ "type": ["integer", "string"] })
        }
    }
}

/// 64-bit ids. They are always strings, so that their type never changes.
pub mod text {
    use serde::{Deserializer, Serializer};

    /// Serializes a string.
    ///
    /// # Errors
    /// The errors of the serializer.
    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    /// Accepts a string or a number.
    ///
    /// # Errors
    /// If the value is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        super::big::deserialize(from)
    }

    /// Stands for the integer in the JSON schema.
    #[cfg(test)]
    pub struct Schema;

    #[cfg(test)]
    impl schemars::JsonSchema for Schema {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "TextInteger".into()
        }

        fn inline_schema() -> bool {
            true
        }

        fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
            if generator.contract().is_serialize() {
                return schemars::json_schema!({ "type": "string" });
            }
            schemars::json_schema!({ "type": ["string", "integer"] })
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::protocol::Count;

    #[test]
    fn large_integers_are_strings() {
        let count = Count { packets: 1 << 53, bytes: (1 << 53) + 1 };
        let json = serde_json::to_string(&count).unwrap();
        assert_eq!(json, r#"{"packets":9007199254740992,"bytes":"9007199254740993"}"#);
        assert_eq!(serde_json::from_str::<Count>(&json).unwrap(), count);
    }
}
