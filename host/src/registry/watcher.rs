//! Wakes a rescan when the plugin folder changes, on a timer, and once more while a file looks
//! half-written. It never says what changed: a lost or merged event must not matter.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};

use super::Registry;

/// Events of one copy arrive in a burst; the first scan waits this long for its end.
const BURST: Duration = Duration::from_millis(20);
/// A half-written file is looked at again after this.
const HALF_WRITTEN: Duration = Duration::from_millis(200);

/// Rescans until `stop`. The caller has scanned once already.
pub async fn watch(registry: Arc<Registry>, folder: &Path, every: Duration, mut stop: watch::Receiver<bool>) {
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
        tracing::warn!(%error, ?every, "the plugin folder can't be watched, it is looked at on a timer");
    }
    // What was dropped between the caller's scan and this watch made no event.
    woken.notify_one();
    let mut settling = false;
    while !*stop.borrow() {
        tokio::select! {
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
