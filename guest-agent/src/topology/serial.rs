//! A disk's serial, from what each kind of disk shows in sysfs.

/// Vital product data pages as sysfs shows them have four bytes of header (SPC-4 §7.8).
const VPD_HEADER: usize = 4;

/// Page 0x80, unit serial number (SPC-4 §7.8.16): the header, then ASCII.
pub fn of_page_80(page: &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    plain(page.get(VPD_HEADER..VPD_HEADER + length)?)
}

/// Page 0x83, device identification (SPC-4 §7.8.6): the first designator of the addressed unit that
/// is ASCII text. QEMU puts the device's identifier there.
pub fn of_page_83(page: &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let mut rest = page.get(VPD_HEADER..VPD_HEADER + length)?;
    while let [code_set, kind, _, size, tail @ ..] = rest {
        let size = usize::from(*size);
        let designator = tail.get(..size)?;
        let is_ascii = code_set & 0x0f == 2;
        let of_the_unit = kind & 0x30 == 0;
        if is_ascii && of_the_unit {
            // Type 1 begins with the vendor's name, eight bytes (T10 vendor identification).
            let text = if kind & 0x0f == 1 { designator.get(8..)? } else { designator };
            if let Some(serial) = plain(text) {
                return Some(serial);
            }
        }
        rest = &tail[size..];
    }
    None
}

/// Text as sysfs or a page has it: blanks and zeros around it are padding.
pub fn plain(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_80_holds_the_serial_behind_four_bytes() {
        assert_eq!(of_page_80(b"\0\x80\0\x08data-1  ").as_deref(), Some("data-1"));
        assert_eq!(of_page_80(b"\0\x80\0\x09short"), None);
        assert_eq!(of_page_80(b"\0\x80\0\0"), None);
        assert_eq!(of_page_80(b""), None);
    }

    #[test]
    fn page_83_may_begin_with_other_designators() {
        let page = b"\0\x83\0\x16\x01\x03\0\x08abcdefgh\x02\x00\0\x06data-2";
        assert_eq!(of_page_83(page).as_deref(), Some("data-2"));
        let vendor = b"\0\x83\0\x12\x02\x01\0\x0eQEMU    data-3";
        assert_eq!(of_page_83(vendor).as_deref(), Some("data-3"));
        assert_eq!(of_page_83(b"\0\x83\0\x05\x02\x00\0\xffx"), None);
    }
}
