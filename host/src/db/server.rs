//! A PostgreSQL server as the store: how it is named, what it must be, and the connections to it
//! that wait for their next use.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::sql::News;
use super::sql::postgres::{OLDEST, Pool, Session};
use super::{DbError, sql};
use crate::config::store::{StoreConfig, Tls};

/// One server, or several that stand in for one another.
pub struct Server {
    pool: Arc<Pool>,
    /// As it is said to people: without a password.
    pub name: String,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Those that this process has asked for: its connections are shared by all who name one.
static KNOWN: LazyLock<Mutex<HashMap<StoreConfig, Arc<Server>>>> = LazyLock::new(Mutex::default);

impl Server {
    /// The server of a configuration.
    ///
    /// # Errors
    /// An address or certificates that can't be used.
    pub fn named(config: &StoreConfig) -> Result<Arc<Self>, DbError> {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = known.get(config) {
            return Ok(Arc::clone(server));
        }
        let server = Arc::new(Self::new(config).map_err(DbError::Misnamed)?);
        known.insert(config.clone(), Arc::clone(&server));
        Ok(server)
    }

    /// Lets go of its connections. The next who names it begins anew.
    #[cfg(test)]
    pub(super) fn forget(config: &StoreConfig) {
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).remove(config);
    }

    fn new(config: &StoreConfig) -> Result<Self, String> {
        let url = config.url.trim();
        let mut parsed: Config = url.parse().map_err(|error: tokio_postgres::Error| {
            let why =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            format!("store.url can't be used: {why}; allowed: postgres://USER@HOST:PORT/DATABASE")
        })?;
        if parsed.get_hosts().is_empty() {
            return Err(String::from("store.url names no host; allowed: postgres://USER@HOST:PORT/DATABASE"));
        }
        if parsed.get_password().is_some() {
            return Err(String::from(
                "store.url has a password in it, and config.toml is no place for one; hint: put it into a file of mode 0600 and name that in store.password_file",
            ));
        }
        let name = name(&parsed);
        if let Some(file) = &config.password_file {
            let text = std::fs::read_to_string(file)
                .map_err(|error| format!("store.password_file {} can't be read: {error}", file.display()))?;
            parsed.password(text.trim_end_matches(['\r', '\n']));
        }
        let near = parsed.get_hosts().iter().all(is_this_machine);
        parsed.ssl_mode(match config.tls {
            Some(Tls::Require) => SslMode::Require,
            Some(Tls::Disable) => SslMode::Disable,
            None if near => SslMode::Disable,
            None => SslMode::Require,
        });
        let tls = tls(config.ca_file.as_deref())?;
        Ok(Self { pool: Arc::new(Pool::new(parsed, tls)), name })
    }

    /// Hears what hosts tell each other, until the connection ends; then it says why.
    pub async fn listen(&self, mut hear: impl FnMut(News) + Send + 'static) -> DbError {
        let known = move |told: &str| News::parse(told).into_iter().for_each(&mut hear);
        let source = sql::Error::Postgres(self.pool.listen(known).await);
        DbError::Server { name: self.name.clone(), source }
    }

    /// A connection that was used before, or a new one; the server is looked at first then.
    ///
    /// # Errors
    /// One that can't be reached, or that can't be the store.
    pub fn session(&self) -> Result<Session, DbError> {
        let failed =
            |source| DbError::Server { name: self.name.clone(), source: sql::Error::Postgres(source) };
        let (session, greeting) = self.pool.session().map_err(failed)?;
        let Some(greeting) = greeting else { return Ok(session) };
        let unfit = |why: String| DbError::Unfit { name: self.name.clone(), why };
        if greeting.version < OLDEST {
            return Err(unfit(format!("it is PostgreSQL {}; allowed: {OLDEST} and newer", greeting.version)));
        }
        if greeting.read_only {
            return Err(unfit(String::from(
                "it can't be written, as a standby can't; hint: name the primary, or all of them with commas in between, and the one that can be written is found",
            )));
        }
        if !greeting.syncs {
            return Err(unfit(String::from(
                "its fsync is off, so that a power cut takes back what it has acknowledged; hint: fsync = on in its postgresql.conf",
            )));
        }
        greeting.clock.follow();
        Ok(session)
    }
}

fn name(config: &Config) -> String {
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .zip(config.get_ports().iter().map(Some).chain(std::iter::repeat(None)))
        .map(|(host, port)| {
            let host = match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string(),
            };
            port.map_or(host.clone(), |port| format!("{host}:{port}"))
        })
        .collect();
    format!("postgres://{}/{}", hosts.join(","), config.get_dbname().unwrap_or_default())
}

/// What travels there leaves no machine.
fn is_this_machine(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

/// Whom a server's certificate must come from: who is named, else who the system trusts.
fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let unusable = |why: &dyn std::fmt::Display| {
                format!("store.ca_file {} can't be used: {why}", path.display())
            };
            let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
            if roots.is_empty() {
                return Err(unusable(&"it holds no certificate; allowed: PEM"));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (_added, _unreadable) = roots.add_parsable_certificates(found.certs);
        }
    }
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
}
