//! Fills `{setting}`, `{setting.host}` and `{setting.origin}` into text. Pure; the same rules as
//! the host's for a manifest.

use alloc::format;
use alloc::string::{String, ToString};

/// Fills `pattern` from `lookup`. Where a value ends in `/` and what follows begins with one, a
/// single `/` is written: `{base_url}/api` is right with and without a slash at the end.
pub(crate) fn fill(pattern: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern;
    let mut after_value = false;
    while let Some((before, from_name)) = rest.split_once('{') {
        push(&mut out, before, after_value);
        after_value &= before.is_empty();
        let (placeholder, after) =
            from_name.split_once('}').ok_or_else(|| format!("`{pattern}` has a `{{` without its `}}`"))?;
        let (name, view) = placeholder.split_once('.').unwrap_or((placeholder, ""));
        let value = lookup(name)
            .ok_or_else(|| format!("`{pattern}` asks for `{name}`, which is no setting of this provider"))?;
        let value = match view {
            "" => value,
            "host" => host(&value).ok_or_else(|| not_a_url(name, &value))?.to_string(),
            "origin" => origin(&value).ok_or_else(|| not_a_url(name, &value))?,
            other => {
                return Err(format!(
                    "`{pattern}` asks for `.{other}`; a url setting has `.host` and `.origin`"
                ));
            }
        };
        push(&mut out, &value, after_value);
        after_value = true;
        rest = after;
    }
    push(&mut out, rest, after_value);
    Ok(out)
}

fn push(out: &mut String, piece: &str, after_value: bool) {
    match piece.strip_prefix('/') {
        Some(single) if after_value && out.ends_with('/') => out.push_str(single),
        _ => out.push_str(piece),
    }
}

fn not_a_url(name: &str, value: &str) -> String {
    format!("setting `{name}` is `{value}`, which is no http or https URL")
}

/// `scheme` and `host[:port]` of an absolute http or https URL.
fn split(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let rest = rest.strip_prefix("//")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let known = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
    (known && !authority.is_empty() && !authority.contains('@')).then_some((scheme, authority))
}

fn host(url: &str) -> Option<&str> {
    let (_, authority) = split(url)?;
    match authority.rsplit_once(':') {
        // The last colon of `[::1]` is inside the brackets.
        Some((host, port)) if !port.ends_with(']') => Some(host),
        _ => Some(authority),
    }
}

/// `scheme://host[:port]` in lower case, without the port its scheme has anyway.
pub(crate) fn origin(url: &str) -> Option<String> {
    let (scheme, authority) = split(url)?;
    let scheme = scheme.to_ascii_lowercase();
    let authority = authority.to_ascii_lowercase();
    let usual_port = if scheme == "https" { ":443" } else { ":80" };
    let authority = authority.strip_suffix(usual_port).unwrap_or(&authority);
    Some([&scheme, "://", authority].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "base_url" => Some("https://Shop.example:443/app/".into()),
            "local" => Some("http://[::1]:8080".into()),
            "path" => Some("/me".into()),
            _ => None,
        }
    }

    #[test]
    fn settings_fill_placeholders_and_slashes_never_double() {
        let cases = [
            ("plain", Ok("plain")),
            ("{base_url}", Ok("https://Shop.example:443/app/")),
            ("{base_url}/x", Ok("https://Shop.example:443/app/x")),
            ("{base_url.origin}{path}", Ok("https://shop.example/me")),
            ("{base_url}{path}", Ok("https://Shop.example:443/app/me")),
            ("/{path}", Ok("//me")),
            ("{base_url.host}", Ok("Shop.example")),
            ("{local.host}", Ok("[::1]")),
            ("{local.origin}/", Ok("http://[::1]:8080/")),
            ("{nope}", Err("`{nope}` asks for `nope`, which is no setting of this provider")),
            ("{path.host}", Err("setting `path` is `/me`, which is no http or https URL")),
            (
                "{base_url.port}",
                Err("`{base_url.port}` asks for `.port`; a url setting has `.host` and `.origin`"),
            ),
            ("a{b", Err("`a{b` has a `{` without its `}`")),
        ];
        for (pattern, expected) in cases {
            let got = fill(pattern, &lookup);
            assert_eq!(got.as_deref().map_err(String::as_str), expected, "for {pattern}");
        }
    }
}
