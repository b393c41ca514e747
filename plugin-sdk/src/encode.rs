//! Encodings of text the plugin knows, the same as the host applies to secrets. Pure; it never
//! sees a secret, those are encoded by the host.
//!
//! ```
//! use keywheel_sdk::encode;
//!
//! assert_eq!(encode::percent("a b/c"), "a%20b%2Fc");
//! assert_eq!(encode::form("a b&c"), "a+b%26c");
//! assert_eq!(encode::base64("user:"), "dXNlcjo=");
//! ```

use alloc::string::String;

const HEX_UPPER: &[u8; 16] = b"0123456789ABCDEF";
const HEX_LOWER: &[u8; 16] = b"0123456789abcdef";
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const BASE64_URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// RFC 3986 percent-encoding of everything but unreserved characters.
pub fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            push_percent(&mut out, byte);
        }
    }
    out
}

/// `application/x-www-form-urlencoded`, as the URL standard writes it.
pub fn form(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte == b' ' {
            out.push('+');
        } else if byte.is_ascii_alphanumeric() || b"*-._".contains(&byte) {
            out.push(char::from(byte));
        } else {
            push_percent(&mut out, byte);
        }
    }
    out
}

/// The inside of a JSON string, without the quotes.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if u32::from(control) < 0x20 => {
                let byte = u32::from(control) as usize;
                out.push_str("\\u00");
                out.push(char::from(HEX_LOWER[byte >> 4]));
                out.push(char::from(HEX_LOWER[byte & 15]));
            }
            other => out.push(other),
        }
    }
    out
}

/// RFC 4648 section 4, with padding.
pub fn base64(text: &str) -> String {
    let mut out = base64_with(text.as_bytes(), BASE64);
    while !out.len().is_multiple_of(4) {
        out.push('=');
    }
    out
}

/// RFC 4648 section 5, without padding.
pub fn base64_url(text: &str) -> String {
    base64_with(text.as_bytes(), BASE64_URL)
}

/// Lower-case hexadecimal.
pub fn hex(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        out.push(char::from(HEX_LOWER[usize::from(byte >> 4)]));
        out.push(char::from(HEX_LOWER[usize::from(byte & 15)]));
    }
    out
}

fn push_percent(out: &mut String, byte: u8) {
    out.push('%');
    out.push(char::from(HEX_UPPER[usize::from(byte >> 4)]));
    out.push(char::from(HEX_UPPER[usize::from(byte & 15)]));
}

fn base64_with(bytes: &[u8], alphabet: &[u8; 64]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = usize::from(group[0]) << 16 | usize::from(group[1]) << 8 | usize::from(group[2]);
        // One byte needs two characters, two need three.
        for position in 0..=chunk.len() {
            out.push(char::from(alphabet[bits >> (18 - 6 * position) & 63]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_writes_what_its_standard_says() {
        type Encode = fn(&str) -> String;
        let cases: [(Encode, &str, &str); 14] = [
            (percent, "a-b._~/ é", "a-b._~%2F%20%C3%A9"),
            (percent, "", ""),
            (form, "a b*~&=+", "a+b*%7E%26%3D%2B"),
            (json, "q\"b\\n\n\u{1}é", "q\\\"b\\\\n\\n\\u0001é"),
            (base64, "", ""),
            (base64, "f", "Zg=="),
            (base64, "fo", "Zm8="),
            (base64, "foo", "Zm9v"),
            (base64, "foob", "Zm9vYg=="),
            (base64, "ÿ?>", "w78/Pg=="),
            (base64_url, "ÿ?>", "w78_Pg"),
            (base64_url, "fooba", "Zm9vYmE"),
            (hex, "\u{1}Az", "01417a"),
            (hex, "", ""),
        ];
        for (encode, input, expected) in cases {
            assert_eq!(encode(input), expected, "of {input:?}");
        }
    }
}
