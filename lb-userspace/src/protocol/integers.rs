//! Integers in JSON, which has no more than 53 bits for them in many a reader.

/// Integers that JavaScript and jq would round are strings, and both are read.
pub mod big {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    const EXACT: u64 = 1 << 53;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }

    /// A number, or above 2^53 a string.
    ///
    /// # Errors
    /// As the serializer's.
    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        if *value > EXACT { super::text::serialize(value, to) } else { to.serialize_u64(*value) }
    }

    /// Either form.
    ///
    /// # Errors
    /// For anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        match Either::deserialize(from)? {
            Either::Number(value) => Ok(value),
            Either::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// 64-bit identifiers: always strings, so that nobody meets a change of type.
pub mod text {
    use serde::{Deserializer, Serializer};

    /// A string.
    ///
    /// # Errors
    /// As the serializer's.
    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    /// A string or a number.
    ///
    /// # Errors
    /// For anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        super::big::deserialize(from)
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
