//! Values as both command lines read them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use crate::text::{LabelKey, LabelValue, Labels, TextError};
use crate::{ErrorCode, WireError};

/// A label as users write it: `KEY=VALUE`.
pub fn label(text: &str) -> Result<(LabelKey, LabelValue), String> {
    let (key, value) = text.split_once('=').ok_or("write a label as KEY=VALUE")?;
    let key = key.parse().map_err(|error: TextError| error.to_string())?;
    let value = value.parse().map_err(|error: TextError| error.to_string())?;
    Ok((key, value))
}

/// Labels as they were given, the last of a key counting.
pub fn labels(given: Vec<(LabelKey, LabelValue)>) -> Result<Labels, WireError> {
    let map: BTreeMap<_, _> = given.into_iter().collect();
    Labels::try_from(map).map_err(|error| WireError::new(ErrorCode::BadRequest, error.to_string()))
}

/// A duration as users write it: `10s`, `5m`, `7d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    // Days are always 24 hours here: what is measured is time, not the calendar.
    let span: jiff::Span =
        text.parse().map_err(|_| format!("{text:?} is not a duration; write 10s, 5m or 7d"))?;
    let total = span
        .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
        .map_err(|error| format!("{text:?}: {error}"))?;
    Duration::try_from(total).map_err(|_| format!("{text:?} is negative"))
}

/// Whether a command line asks for JSON, also one that can't be understood.
pub fn wants_json(arguments: impl IntoIterator<Item = OsString>) -> bool {
    arguments.into_iter().take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// What clap says of a wrong command line, as what happened and what to do: its first paragraph, and
/// the others (a tip, the usage, `--help`), each on one line.
pub fn usage_error(told: &str) -> (String, String) {
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (what, then) = told.split_once("\n\n").unwrap_or((told, ""));
    (one_line(what.trim_start_matches("error: ")), one_line(then))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86400)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert!(duration("10").is_err());
        assert!(duration("-1s").is_err());
    }

    #[test]
    fn json_is_asked_for_before_the_options_end() {
        let wants = |line: &str| wants_json(line.split(' ').map(OsString::from));
        assert!(wants("hostsnap create --nonsense --json"));
        assert!(!wants("hostsnap create -- --json"));
        assert!(!wants("hostsnap create --jsonx"));
    }

    #[test]
    fn a_usage_error_is_what_happened_and_then_what_to_do() {
        let told = "error: the following required arguments were not provided:\n  <SNAPSHOT>\n\n\
                    Usage: hostsnap show <SNAPSHOT>\n\nFor more information, try '--help'.\n";
        let (what, then) = usage_error(told);
        assert_eq!(what, "the following required arguments were not provided: <SNAPSHOT>");
        assert_eq!(then, "Usage: hostsnap show <SNAPSHOT> For more information, try '--help'.");
    }

    #[test]
    fn labels_are_keys_with_values() {
        let (key, value) = label("why=the upgrade=2").unwrap();
        assert_eq!((key.as_str(), value.as_str()), ("why", "the upgrade=2"));
        assert!(label("why").is_err());
        assert!(label("a b=c").is_err());
    }
}
