//! The language of LVM's metadata: `name = value` and `name { … }`, values being numbers, texts in quotes, and
//! lists of them in brackets; `#` begins a remark (lvm2 `libdm/libdm-config.c`).

/// A part in braces.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Section {
    entries: Vec<(String, Entry)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Entry {
    Section(Section),
    Values(Vec<Value>),
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(u64),
}

/// Sections in sections: deeper than lvm ever goes.
const DEEPEST: usize = 8;

impl Section {
    fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|(key, _)| key == name).map(|(_, entry)| entry)
    }

    fn values(&self, name: &str) -> &[Value] {
        match self.get(name) {
            Some(Entry::Values(values)) => values,
            _ => &[],
        }
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        match self.get(name)? {
            Entry::Section(section) => Some(section),
            Entry::Values(_) => None,
        }
    }

    pub(super) fn sections(&self) -> Vec<(&str, &Section)> {
        self.entries
            .iter()
            .filter_map(|(name, entry)| match entry {
                Entry::Section(section) => Some((name.as_str(), section)),
                Entry::Values(_) => None,
            })
            .collect()
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.values(name) {
            [Value::Number(number)] => Some(*number),
            _ => None,
        }
    }

    pub(super) fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        self.values(name).iter().filter_map(|value| match value {
            Value::Text(text) => Some(text.as_str()),
            Value::Number(_) => None,
        })
    }

    /// Of a list such as `["pv0", 0, "pv1", 25]`.
    pub(super) fn pairs(&self, name: &str) -> impl Iterator<Item = (&str, u64)> {
        self.values(name).chunks_exact(2).filter_map(|pair| match pair {
            [Value::Text(text), Value::Number(number)] => Some((text.as_str(), *number)),
            _ => None,
        })
    }
}

/// The volume group in a text: its name and what is in it. `None` if it is no such text.
pub(super) fn parse(text: &str) -> Option<(String, Section)> {
    let mut rest = text.trim_end_matches('\0');
    let all = section(&mut rest, DEEPEST)?;
    if !rest.is_empty() {
        return None;
    }
    all.entries.into_iter().find_map(|(name, entry)| match entry {
        Entry::Section(section) => Some((name, section)),
        Entry::Values(_) => None,
    })
}

/// Up to the closing brace, or the end.
fn section(rest: &mut &str, depth: usize) -> Option<Section> {
    let depth = depth.checked_sub(1)?;
    let mut section = Section::default();
    loop {
        skip(rest);
        if rest.is_empty() || rest.starts_with('}') {
            return Some(section);
        }
        let name = word(rest)?.to_owned();
        skip(rest);
        let entry = if take(rest, '{') {
            let inner = self::section(rest, depth)?;
            take(rest, '}').then_some(Entry::Section(inner))?
        } else if take(rest, '=') {
            Entry::Values(values(rest)?)
        } else {
            return None;
        };
        section.entries.push((name, entry));
    }
}

fn values(rest: &mut &str) -> Option<Vec<Value>> {
    skip(rest);
    if !take(rest, '[') {
        return Some(vec![value(rest)?]);
    }
    let mut values = Vec::new();
    loop {
        skip(rest);
        if take(rest, ']') {
            return Some(values);
        }
        values.push(value(rest)?);
        skip(rest);
        take(rest, ',');
    }
}

fn value(rest: &mut &str) -> Option<Value> {
    if !take(rest, '"') {
        return Some(Value::Number(word(rest)?.parse().ok()?));
    }
    let mut text = String::new();
    let mut escaped = false;
    for (at, c) in rest.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            '"' if !escaped => {
                *rest = &rest[at + 1..];
                return Some(Value::Text(text));
            }
            _ => {
                escaped = false;
                text.push(c);
            }
        }
    }
    None
}

fn word<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let ends = |c: char| c.is_whitespace() || "={}[],\"#".contains(c);
    let (word, after) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
    *rest = after;
    (!word.is_empty()).then_some(word)
}

fn take(rest: &mut &str, c: char) -> bool {
    let taken = rest.strip_prefix(c);
    *rest = taken.unwrap_or(rest);
    taken.is_some()
}

/// Blanks and remarks.
fn skip(rest: &mut &str) {
    loop {
        *rest = rest.trim_start();
        match rest.strip_prefix('#') {
            Some(remark) => *rest = remark.find('\n').map_or("", |end| &remark[end..]),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_lvm_writes_is_read() {
        let (name, group) = parse(
            "vg0 {\nid = \"a\"\nseqno = 7\nstatus = [\"RESIZEABLE\", \"READ\"]\n# a remark\nflags = []\n\
             lv { segment1 {\n type = \"striped\"\nstripes = [\n\"pv0\", 0,\n\"pv1\", 25\n]\n} } }\n\
             # Generated\ncontents = \"Text Format Volume Group\"\ndescription = \"it \\\"is\\\"\"\n\0",
        )
        .unwrap();
        assert_eq!((name.as_str(), group.number("seqno")), ("vg0", Some(7)));
        assert_eq!(group.texts("status").collect::<Vec<_>>(), ["RESIZEABLE", "READ"]);
        let segment = group.section("lv").unwrap().section("segment1").unwrap();
        assert_eq!(segment.pairs("stripes").collect::<Vec<_>>(), [("pv0", 0), ("pv1", 25)]);
    }

    #[test]
    fn what_is_no_such_text_is_refused() {
        let nested = "a {".repeat(100);
        for text in ["", "a = ", "a {", "a = [1, 2", "a = \"x", "}", "= 1", "a { b }", &nested] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z0-9 ={}\\[\\],\"\\\\#\n\u{e4}]{0,200}") {
            let _ = parse(&text);
        }
    }
}
