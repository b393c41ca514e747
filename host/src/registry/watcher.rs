//! Wakes a rescan when the plugin folder changes, on a timer, and once more while a file looks
//! half-written. It never says what changed: a lost or merged event must not matter.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};

use super::Registry;
use crate::config::Live;

/// Events of one copy arrive in a burst; the first scan waits this long for its end.
const BURST: Duration = Duration::from_millis(20);
/// A half-written file is looked at again after this.
const HALF_WRITTEN: Duration = Duration::from_millis(200);

/// Rescans until `stop`, as often as the configuration in force says. The caller has scanned once
/// already.
pub async fn watch(registry: Arc<Registry>, folder: &Path, config: &Live, mut stop: watch::Receiver<bool>) {
    let mut changes = config.changes();
    let woken = Arc::new(Notify::new());
    let waker = Arc::clone(&woken);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading a plugin is an event too, and would wake the next scan for ever.
        if event.is_ok_and(|event| event.kind.is_access()) {
            return;
        }
        waker.notify_one();
    })
    .and_then(|mut watcher| watcher.watch(folder, RecursiveMode::NonRecursive).map(|()| watcher));
    if let Err(error) = &watcher {
        tracing::warn!(%error, every = ?config.get().rescan(), "the plugin folder can't be watched, it is looked at on a timer");
    }
    // What came between the caller's scan and the watch made no event.
    woken.notify_one();
    let mut settling = false;
    while !*stop.borrow() {
        let every = config.get().rescan();
        tokio::select! {
            // Another interval, perhaps; a look more harms nothing.
            Ok(()) = changes.changed() => {}
            () = woken.notified() => tokio::time::sleep(BURST).await,
            () = tokio::time::sleep(if settling { HALF_WRITTEN } else { every }) => {}
            _ = stop.changed() => break,
        }
        match registry.rescan().await {
            Ok(half_written) => settling = half_written,
            Err(error) => tracing::error!(%error, "the plugin folder can't be scanned"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;
    use crate::config::{Config, Home, PluginPolicy};
    use crate::db::HomeLock;
    use crate::db::writer::Writer;
    use crate::limits;
    use crate::supervisor::Supervisor;
    use crate::vault::Vault;

    #[tokio::test]
    async fn a_file_that_came_between_the_first_scan_and_the_watch_is_seen() -> Result<(), Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let home = Home::locate(Some(folder.path().join("home")))?;
        home.make_folders()?;
        Vault::create(&home.master_key())?;
        let (writer, thread) = Writer::start(home.database(), HomeLock::acquire(&home.lock())?)?;
        let registry = Registry::new(
            &home,
            // Nothing is started: a file of this size is refused unread.
            Supervisor::new(Path::new("/nonexistent"), crate::protocol::Require::All, false)?,
            Arc::new(Vault::open(&home.master_key())?),
            writer,
            Arc::default(),
            PluginPolicy::Any,
        );
        registry.rescan().await?;
        let file = File::create(home.plugins().join("huge.wasm"))?;
        file.set_len(limits::PLUGIN_BYTES + 1)?;
        // Old enough that its error is shown at once.
        file.set_modified(SystemTime::now() - Duration::from_secs(60))?;

        let (stop, stopped) = watch::channel(false);
        let plugins = home.plugins();
        let config = Live::new(Config { rescan_seconds: 3_600, ..Config::default() });
        let watching = super::watch(Arc::clone(&registry), &plugins, &config, stopped);
        let seen = async {
            while registry.status().is_empty() {
                tokio::task::yield_now().await;
            }
            stop.send(true)
        };
        let (seen, ()) =
            tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(seen, watching) }).await?;
        seen?;
        assert_eq!(registry.status()[0].file, "huge.wasm");
        drop(registry);
        tokio::task::spawn_blocking(move || thread.join()).await?;
        Ok(())
    }
}
