//! What goes between the store that hosts share and the one of each home. Nothing runs here.

use tempfile::TempDir;

use super::*;
use crate::config::store::Store;
use crate::db::scratch::Scratch;
use crate::db::{HomeLock, WriterThread};
use crate::protocol::Require;

/// A host whose store others share, on either engine.
struct Host {
    registry: Arc<Registry>,
    writer: Writer,
    thread: WriterThread,
    _scratch: Scratch,
    _folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let (folder, scratch) = (TempDir::new().unwrap(), Scratch::new());
        let home = Home::locate(Some(folder.path().join("home"))).unwrap();
        if let Store::Server(config) = scratch.store() {
            fs::create_dir(home.root()).unwrap();
            fs::write(home.config(), format!("[store]\nurl = \"{}\"\n", config.url)).unwrap();
        }
        home.make_folders().unwrap();
        Vault::create(&home.master_key()).unwrap();
        let lock = HomeLock::acquire(&home.lock()).unwrap();
        let (writer, thread) = Writer::start(home.database(), lock).unwrap();
        let mut registry = Registry::new(
            &home,
            Supervisor::new(Path::new("/nonexistent"), Require::All, false).unwrap(),
            Arc::new(Vault::open(&home.master_key()).unwrap()),
            writer.clone(),
            Arc::default(),
            PluginPolicy::Any,
        );
        // Also where the home's own file is the store.
        Arc::get_mut(&mut registry).unwrap().inbox.get_or_insert_default();
        Self { registry, writer, thread, _scratch: scratch, _folder: folder }
    }

    /// A provider's row that names `digest`, and what the store has under it.
    async fn put(&self, digest: &str, bytes: Option<&[u8]>) {
        let manifest = Manifest {
            service: String::from("shop"),
            title: String::from("Shop"),
            version: String::from("1.0.0"),
            validate_url: String::from("https://shop.test/me"),
            keys: Vec::new(),
            origins: Vec::new(),
            settings: Vec::new(),
            methods: Vec::new(),
            validate_interval: 300,
            max_age: None,
            extras: Vec::new(),
        };
        let update = ProviderUpdate {
            manifest,
            plugin_digest: digest.to_owned(),
            permissions_json: String::from("{}"),
            state: state::ACTIVE.into(),
            signer: None,
            file: None,
            only_without_credentials: false,
            bytes: bytes.map(Into::into),
            seen: None,
        };
        self.writer.put_provider(update, None).await.unwrap();
    }

    async fn end(self) {
        let Self { registry, writer, thread, .. } = self;
        drop((registry, writer));
        tokio::task::spawn_blocking(move || thread.join()).await.unwrap();
    }
}

fn digest_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[tokio::test]
async fn a_plugin_is_taken_from_the_store_only_if_it_is_what_its_digest_says() {
    let host = Host::new();
    let stored = |digest: &str| fs::read(host.registry.cache.stored(digest)).ok();
    let good = digest_of(b"good");
    host.put(&good, Some(b"good")).await;
    host.registry.take(&good).unwrap();
    assert_eq!(stored(&good).as_deref(), Some(&b"good"[..]));

    let forged = digest_of(b"what was approved");
    host.put(&forged, Some(b"what somebody put in its place")).await;
    let refused = host.registry.take(&forged).unwrap_err();
    assert!(refused.why.contains("others than its digest says"), "{}", refused.why);
    assert_eq!(stored(&forged), None);

    let gone = digest_of(b"gone");
    host.put(&gone, None).await;
    let refused = host.registry.take(&gone).unwrap_err();
    assert!(refused.why.contains("its bytes are gone; hint: "), "{}", refused.why);
    host.end().await;
}

#[tokio::test]
async fn what_only_one_home_has_is_given_to_the_others_unless_it_is_damaged() {
    let host = Host::new();
    let in_store = |digest: &str| host.registry.reader().unwrap().plugin_bytes(digest).unwrap();
    for (bytes, kept, given) in [(&b"whole"[..], &b"whole"[..], true), (b"damaged", b"d@maged", false)] {
        let digest = digest_of(bytes);
        host.put(&digest, None).await;
        host.registry.cache.keep(&digest, kept).unwrap();
        host.registry.give(&host.registry.known().unwrap()).await.unwrap();
        assert_eq!(in_store(&digest).is_some(), given);
    }
    host.end().await;
}
