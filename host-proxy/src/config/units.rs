//! Sizes and durations as people write them: `10GiB`, `120s`.

use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// What a store must keep free where nothing is said: 1 GiB.
pub(super) fn default_min_free() -> u64 {
    1 << 30
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| D::Error::custom(format!("{text:?} is not a duration; write 90s, 5m or 2h")))
}

pub(super) fn optional_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

pub(super) fn optional_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    bytes(deserializer).map(Some)
}

pub(super) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a number of bytes, or a text such as \"10GiB\"")]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(bytes),
        Size::Text(text) => parse_bytes(&text).ok_or_else(|| {
            D::Error::custom(format!("{text:?} is not a size; write 4096, 500MiB, 10GiB or 2TiB"))
        }),
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn sizes_have_binary_units_or_none() {
        for (text, expected) in [
            ("4096", Some(4096)),
            ("10GiB", Some(10 << 30)),
            ("1 MiB", Some(1 << 20)),
            ("10GB", None),
            ("", None),
            ("GiB", None),
            ("99999999999TiB", None),
        ] {
            assert_eq!(parse_bytes(text), expected, "{text:?}");
        }
    }
}
