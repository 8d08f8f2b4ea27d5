//! Rate limits of sessions: `"1000/s"`, `"200/s burst 400"`.

use std::collections::BTreeMap;

use toml::de::DeValue;

use super::read::{Wrong, described};

/// Packets per second, and the burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 1 to 1,000,000.
    pub per_second: u32,
    /// 1 to 1,000,000.
    pub burst: u32,
}

/// No client sends more than a million packets per second in a session.
const MOST: u32 = 1_000_000;

const EXAMPLE: &str = "rate = { \"0\" = \"1000/s\", \"3\" = \"200/s burst 400\" }";

/// The rates of a service, by class.
pub(super) fn rates(path: &str, value: &DeValue<'_>) -> Result<BTreeMap<u8, Rate>, Wrong> {
    let wrong = |message: String, hint: String| Err(Wrong { message, hint });
    let hint = || format!("write it as in `{EXAMPLE}`");
    let Some(table) = value.as_table() else {
        return wrong(format!("`{path}` is {}, not a table by class", described(value)), hint());
    };
    let mut rates = BTreeMap::new();
    for (class, rate) in table {
        let (class, rate) = (class.get_ref().as_ref(), rate.get_ref());
        // One way to write a class: `03` and `3` would be two keys.
        let Some(number) = class.parse().ok().filter(|number: &u8| number.to_string() == class) else {
            return wrong(format!("`{path}`: {class:?} is not a class"), "a class is 0 to 255".to_owned());
        };
        let Some(read) = rate.as_str().and_then(Rate::parse) else {
            let message = format!("`{path}`: {} is not a rate", described(rate));
            return wrong(message, format!("{}: 1 to {MOST} packets a second, as many at once", hint()));
        };
        rates.insert(number, read);
    }
    if rates.is_empty() {
        return wrong(format!("`{path}` names no class"), format!("remove the line, or {}", hint()));
    }
    Ok(rates)
}

impl Rate {
    /// Parses the form of the configuration. Without a burst, the burst is the rate of one second.
    fn parse(text: &str) -> Option<Self> {
        let (rate, burst) = match *text.split_whitespace().collect::<Vec<_>>() {
            [rate] => (rate, None),
            [rate, "burst", burst] => (rate, Some(burst)),
            _ => return None,
        };
        let number = |text: &str| text.parse().ok().filter(|number| (1..=MOST).contains(number));
        let per_second = number(rate.strip_suffix("/s")?)?;
        Some(Self { per_second, burst: burst.map_or(Some(per_second), number)? })
    }
}
