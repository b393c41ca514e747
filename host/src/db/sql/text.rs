//! One statement's text in the other engine's words.

/// A statement for PostgreSQL: `?1` becomes `$1`, `CROSS JOIN` a `JOIN`, `INDEXED BY name` and
/// `NOT INDEXED` go, and what stands in `/*pg … */` comes in. What is quoted stays as it is.
pub fn for_postgres(sql: &str) -> String {
    let mut text = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let taken = match first {
            '\'' => {
                let end = rest[1..].find('\'').map_or(rest.len(), |end| end + 2);
                text.push_str(&rest[..end]);
                end
            }
            '?' if rest[1..].starts_with(|next: char| next.is_ascii_digit()) => {
                text.push('$');
                1
            }
            '/' if rest.starts_with("/*pg ") => {
                let end = rest.find("*/").unwrap_or(rest.len());
                text.push_str(&for_postgres(&rest["/*pg ".len()..end]));
                (end + 2).min(rest.len())
            }
            'I' if rest.starts_with("INDEXED BY ") => {
                let name = &rest["INDEXED BY ".len()..];
                let name = name
                    .find(|next: char| !next.is_ascii_alphanumeric() && next != '_')
                    .unwrap_or(name.len());
                "INDEXED BY ".len() + name
            }
            // SQLite's word for an order of tables that it shall keep.
            'C' if rest.starts_with("CROSS JOIN ") => "CROSS ".len(),
            'N' if rest.starts_with("NOT INDEXED") => "NOT INDEXED".len(),
            other => {
                text.push(other);
                other.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_engine_has_is_the_others_blank() {
        for (sqlite, postgres) in [
            ("SELECT a FROM t WHERE b = ?1 AND c = ?12", "SELECT a FROM t WHERE b = $1 AND c = $12"),
            ("SELECT '?1', 'it''s ?2', ?1", "SELECT '?1', 'it''s ?2', $1"),
            ("SELECT 1 FROM t INDEXED BY t_by_a WHERE a", "SELECT 1 FROM t  WHERE a"),
            ("SELECT 1 FROM t NOT INDEXED", "SELECT 1 FROM t "),
            (
                "SELECT 1 FROM t LIMIT ?1 /*pg FOR UPDATE OF t SKIP LOCKED*/",
                "SELECT 1 FROM t LIMIT $1 FOR UPDATE OF t SKIP LOCKED",
            ),
            ("SELECT 'INDEXED BY x' /* a comment? */", "SELECT 'INDEXED BY x' /* a comment? */"),
            ("SELECT 1 WHERE /*pg a AND */b = ?1", "SELECT 1 WHERE a AND b = $1"),
            ("SELECT 1 FROM a CROSS JOIN b ON b.x = a.x", "SELECT 1 FROM a JOIN b ON b.x = a.x"),
            ("SELECT 'open", "SELECT 'open"),
        ] {
            assert_eq!(for_postgres(sqlite), postgres);
        }
    }
}
