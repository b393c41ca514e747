//! A store that a test has for itself, empty and up to date: a file in a folder that goes with it,
//! or, where `KEYWHEEL_TEST_POSTGRES` names a server, a schema there. So each test that takes its
//! store from here runs on both engines.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::server::Server;
use super::sql::{Connection, params};
use super::{HomeLock, Reader, Store, Writer, WriterThread, connect_for_writing, open_for_writing};
use crate::config::store::StoreConfig;

/// `postgres://USER@HOST:PORT/DATABASE`; its user may make schemas there.
const NAMES_SERVER: &str = "KEYWHEEL_TEST_POSTGRES";

pub fn is_on_postgres() -> bool {
    std::env::var_os(NAMES_SERVER).is_some()
}

pub struct Scratch {
    folder: TempDir,
    store: Store,
}

impl Scratch {
    #[expect(clippy::new_without_default, reason = "a store is made, not a value of nothing")]
    pub fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let store = match std::env::var(NAMES_SERVER) {
            Ok(server) => Store::Server(schema(&server)),
            Err(_) => Store::File(folder.path().join("keywheel.db")),
        };
        Self { folder, store }
    }

    /// For what is about files.
    pub fn on_file() -> Self {
        let folder = TempDir::new().expect("a folder");
        let store = Store::File(folder.path().join("keywheel.db"));
        Self { folder, store }
    }

    pub fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("keywheel.db")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// A connection that writes past the writer, for what no command does.
    pub fn connection(&self) -> Connection {
        connection(&self.store)
    }

    pub fn reader(&self) -> Reader {
        Reader::open(&self.store).expect("it opens")
    }

    pub fn writer(&self) -> (Writer, WriterThread) {
        let lock = HomeLock::acquire(&self.folder.path().join("lock")).expect("nobody has it");
        Writer::start(&self.store, lock).expect("it starts")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Store::Server(config) = &self.store {
            Server::forget(config);
        }
    }
}

/// A connection that writes past the writer.
pub fn connection(store: &Store) -> Connection {
    match store {
        Store::File(path) => open_for_writing(path, None).expect("it opens"),
        Store::Server(config) => {
            connect_for_writing(&Server::named(config).expect("an address")).expect("it opens")
        }
    }
}

/// A store at the server, where there is one.
pub fn at_server() -> Option<StoreConfig> {
    std::env::var(NAMES_SERVER).ok().map(|server| schema(&server))
}

/// A schema of its own at a server, where every connection of the address returned ends up.
fn schema(server: &str) -> StoreConfig {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("scratch_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let config = |url: String| StoreConfig { url, password_file: None, ca_file: None, tls: None };
    let whole = config(server.to_owned());
    let made =
        Connection::Postgres(Server::named(&whole).and_then(|server| server.session()).expect("a server"));
    made.execute_batch(&format!("CREATE SCHEMA {name}")).expect("a schema");
    let joined = if server.contains('?') { '&' } else { '?' };
    config(format!("{server}{joined}options=-csearch_path%3D{name}"))
}

/// A row of a credential and of its monitor, with what else they hold.
pub fn add_rows(db: &Connection, id: &str, service: &str, columns: &str) {
    db.execute(
        "INSERT INTO credentials (credential_id, service, settings_json, private_hosts_json,
             last_generation, rotated_at, created_at) VALUES (?1, ?2, '[]', '[]', 1, 0, 0)",
        params![id, service],
    )
    .expect("a credential");
    db.execute(
        "INSERT INTO cookie_rotation_monitor (cookie_id, service, next_action) VALUES (?1, ?2, 'validate')",
        params![id, service],
    )
    .expect("a monitor row");
    if !columns.is_empty() {
        let sql = format!("UPDATE cookie_rotation_monitor SET {columns} WHERE cookie_id = ?1");
        db.execute(&sql, [id]).expect("columns");
    }
}
