//! Sizes as people write them.

/// Reads `50G`, `1.5T`, `512 MiB`, or a number of bytes; units are powers of 1024. `None`: it is no size, or none at all.
#[must_use]
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 6 || (number.contains('.') && fraction.is_empty()) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    // A fraction of a unit: so many of as many parts.
    let parts = 10u64.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u64 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let rest = u64::try_from((u128::from(fraction) << shift) / u128::from(parts)).ok()?;
    whole.checked_mul(1 << shift)?.checked_add(rest).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("50G", 50 << 30),
            ("50 GiB", 50 << 30),
            ("1.5t", 3 << 39),
            ("2040g", 2040 << 30),
            ("512m", 512 << 20),
            ("1048576", 1 << 20),
            ("0.25K", 256),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "G", "50X", "-1G", "1.G", ".5G", "0", "1e3", "99999999999T", "1.2.3G", "0.0000001G"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
