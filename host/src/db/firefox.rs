//! Reads the cookies of one site out of Firefox's store, as its versions since 2018 write it. It
//! is given a copy of the store, and never opens the one that Firefox uses.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{DbError, connect};
use crate::credential::{CookieAttributes, Millis, Secret};

/// From this version of its schema on Firefox writes the expiry in milliseconds; before, in seconds.
const MILLISECONDS: u32 = 16;

/// What came before has no `originAttributes` or no `sameSite` as they are read here.
const OLDEST: u32 = 9;

/// 9999-12-31T23:59:59Z: past it a number stands for "never".
const LAST: i64 = 253_402_300_799_000;

/// A cookie as Firefox has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirefoxCookie {
    pub attributes: CookieAttributes,
    pub value: Secret,
    pub expires: Option<Millis>,
    /// The container tab it belongs to; 0: none.
    pub container: u32,
    /// It was only ever set over plain HTTP.
    pub plain_http: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum FirefoxError {
    #[error("it is no cookie store of Firefox's: {0}")]
    Foreign(&'static str),
    #[error(
        "its schema is version {found}; allowed: {OLDEST} or newer; hint: start this Firefox once in a newer version, or export cookies.txt"
    )]
    Old { found: u32 },
    #[error(transparent)]
    Open(#[from] DbError),
    #[error("it can't be read")]
    Sqlite(#[from] rusqlite::Error),
}

/// The cookies that a browser would send to a host, or to a host below it.
///
/// # Errors
/// What is no store of Firefox's, or too old a one.
pub fn cookies(store: &Path, host: &str) -> Result<Vec<FirefoxCookie>, FirefoxError> {
    let db = connect(store, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX, None)?;
    let version: u32 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let columns = columns(&db)?;
    let has = |name: &str| columns.iter().any(|column| column == name);
    if !["name", "value", "host", "path", "expiry", "isSecure", "isHttpOnly"].iter().all(|name| has(name)) {
        return Err(FirefoxError::Foreign("it has no table `moz_cookies` with the usual columns"));
    }
    if version < OLDEST || !has("originAttributes") {
        return Err(FirefoxError::Old { found: version });
    }
    let or_null = |name: &'static str| if has(name) { name } else { "NULL" };
    let sql = format!(
        "SELECT name, value, host, path, expiry, isSecure, isHttpOnly, originAttributes, {}, {}
         FROM moz_cookies ORDER BY host, path, name",
        or_null("sameSite"),
        or_null("schemeMap"),
    );
    let mut select = db.prepare(&sql)?;
    let mut rows = select.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (domain, host_only) = match row.get_ref(2)?.as_str().unwrap_or_default() {
            text if text.starts_with('.') => (text[1..].to_ascii_lowercase(), false),
            text => (text.to_ascii_lowercase(), true),
        };
        let attributes: String = row.get(7)?;
        // Of another site's frame, or of a private window: nothing that the site itself would get.
        let Some(container) = container(&attributes) else { continue };
        // The values of other sites are never taken out of the file.
        if !belongs(&domain, host_only, host) {
            continue;
        }
        let expiry: i64 = row.get(4)?;
        let expires = if version >= MILLISECONDS { expiry } else { expiry.saturating_mul(1_000) };
        let same_site: Option<i64> = row.get(8)?;
        let schemes: Option<i64> = row.get(9)?;
        found.push(FirefoxCookie {
            attributes: CookieAttributes {
                name: row.get(0)?,
                domain,
                path: row.get(3)?,
                host_only,
                secure: row.get(5)?,
                http_only: row.get(6)?,
                same_site: same_site.and_then(same_site_word).map(str::to_owned),
            },
            value: Secret::new(row.get::<_, String>(1)?),
            expires: (expires > 0).then(|| expires.min(LAST).unsigned_abs()),
            container,
            plain_http: schemes == Some(1),
        });
    }
    Ok(found)
}

fn columns(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut select = db.prepare("SELECT name FROM pragma_table_info('moz_cookies')")?;
    let names = select.query_map([], |row| row.get(0))?;
    names.collect()
}

/// The container of `^userContextId=2&…`; None: partitioned, or private.
fn container(attributes: &str) -> Option<u32> {
    let mut container = 0;
    for pair in attributes.trim_start_matches('^').split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("userContextId", number)) => container = number.parse().ok()?,
            Some(("geckoViewSessionContextId", _)) => {}
            _ => return None,
        }
    }
    Some(container)
}

const fn same_site_word(number: i64) -> Option<&'static str> {
    match number {
        0 => Some("None"),
        1 => Some("Lax"),
        2 => Some("Strict"),
        // 256: the site said nothing.
        _ => None,
    }
}

/// Whether a cookie is sent to the host, or to one below it.
fn belongs(domain: &str, host_only: bool, host: &str) -> bool {
    let is_below = |below: &str, above: &str| {
        below.strip_suffix(above).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1)
    };
    domain == host || is_below(domain, host) || (!host_only && is_below(host, domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_told_and_partitions_are_left() {
        for (attributes, want) in [
            ("", Some(0)),
            ("^userContextId=3", Some(3)),
            ("^userContextId=3&geckoViewSessionContextId=x", Some(3)),
            ("^partitionKey=%28https%2Cads.example%29", None),
            ("^userContextId=2&partitionKey=%28https%2Cads.example%29", None),
            ("^privateBrowsingId=1", None),
            ("^firstPartyDomain=shop.example", None),
        ] {
            assert_eq!(container(attributes), want, "{attributes}");
        }
    }

    #[test]
    fn a_cookie_belongs_to_the_hosts_that_it_is_sent_to() {
        for (domain, host_only, host, want) in [
            ("shop.example", true, "shop.example", true),
            ("www.shop.example", true, "shop.example", true),
            ("shop.example", false, "www.shop.example", true),
            ("shop.example", true, "www.shop.example", false),
            ("myshop.example", false, "shop.example", false),
            ("example", false, "shop.example", true),
            ("127.0.0.1", true, "127.0.0.1", true),
        ] {
            assert_eq!(belongs(domain, host_only, host), want, "{domain} {host}");
        }
    }

    /// The table as each version of the schema has it, from Firefox's public source.
    fn store(version: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let db = connect(&folder.path().join("cookies.sqlite"), flags, None).unwrap();
        let mut columns = String::from(
            "id INTEGER PRIMARY KEY, originAttributes TEXT NOT NULL DEFAULT '', name TEXT, value TEXT,
             host TEXT, path TEXT, expiry INTEGER, lastAccessed INTEGER, creationTime INTEGER,
             isSecure INTEGER, isHttpOnly INTEGER",
        );
        for (from, until, column) in [
            (0, u32::MAX, "inBrowserElement INTEGER DEFAULT 0"),
            (9, u32::MAX, "sameSite INTEGER DEFAULT 0"),
            (10, 14, "rawSameSite INTEGER DEFAULT 0"),
            (12, u32::MAX, "schemeMap INTEGER DEFAULT 0"),
            (13, u32::MAX, "isPartitionedAttributeSet INTEGER DEFAULT 0"),
            (17, u32::MAX, "updateTime INTEGER"),
        ] {
            if (from..=until).contains(&version) {
                columns.push_str(&format!(", {column}"));
            }
        }
        let expiry: i64 = if version >= 16 { 1_900_000_000_000 } else { 1_900_000_000 };
        db.execute_batch(&format!(
            "CREATE TABLE moz_cookies ({columns},
                 CONSTRAINT moz_uniqueid UNIQUE (name, host, path, originAttributes));
             PRAGMA user_version = {version};
             INSERT INTO moz_cookies (originAttributes, name, value, host, path, expiry, isSecure, isHttpOnly)
             VALUES ('', 'sid', 'one', '.shop.example', '/', {expiry}, 1, 1),
                    ('^userContextId=2', 'sid', 'two', '.shop.example', '/', {expiry}, 1, 1),
                    ('^partitionKey=%28https%2Cnews.example%29', 'sid', 'x', '.shop.example', '/', {expiry}, 1, 1),
                    ('', 'sid', 'foreign', 'other.example', '/', {expiry}, 1, 1);"
        ))
        .unwrap();
        if version >= 9 {
            db.execute_batch("UPDATE moz_cookies SET sameSite = 1").unwrap();
        }
        folder
    }

    #[test]
    fn every_schema_since_2018_is_read_with_its_own_unit_of_time() {
        for version in 9..=17 {
            let folder = store(version);
            let cookies = cookies(&folder.path().join("cookies.sqlite"), "shop.example").unwrap();
            let said: Vec<_> = cookies
                .iter()
                .map(|cookie| (cookie.value.expose(), cookie.container, cookie.expires))
                .collect();
            let expires = Some(1_900_000_000_000);
            assert_eq!(said, [(&b"one"[..], 0, expires), (&b"two"[..], 2, expires)], "{version}");
            let attributes = &cookies[0].attributes;
            assert_eq!((attributes.domain.as_str(), attributes.host_only), ("shop.example", false));
            assert_eq!(attributes.same_site.as_deref(), Some("Lax"), "{version}");
            assert!(attributes.secure && attributes.http_only);
        }
    }

    #[test]
    fn what_is_no_store_or_too_old_a_one_is_refused() {
        let folder = store(4);
        let old = cookies(&folder.path().join("cookies.sqlite"), "shop.example");
        assert!(matches!(old, Err(FirefoxError::Old { found: 4 })), "{old:?}");
        let path = folder.path().join("other.sqlite");
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        connect(&path, flags, None).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        assert!(matches!(cookies(&path, "shop.example"), Err(FirefoxError::Foreign(_))));
        std::fs::write(&path, "no database at all, but long enough to have a header".repeat(90)).unwrap();
        assert!(cookies(&path, "shop.example").is_err());
    }
}
