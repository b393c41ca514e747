//! Native code of plugins: made by the compiler process, kept under the plugin's digest and
//! the exact engine that will run it, and believed only with the host's own tag. A file here
//! is never overwritten in place, for a mapped file that changes kills its process.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::Home;
use crate::limits;
use crate::protocol::{self, CompileAnswer, Confinement, Require};
use crate::supervisor::worker_process::{Spawned, Spawner, Task};
use crate::vault::Vault;

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("{0}")]
    Refused(String),
    #[error("the compiler {0}")]
    Compiler(String),
    #[error("the cache can't be used")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    store: PathBuf,
    engine: String,
    /// What each plugin imports, of those that were compiled since the host began.
    imports: Mutex<HashMap<String, Vec<String>>>,
}

impl Cache {
    pub fn new(home: &Home) -> Self {
        Self { folder: home.cache(), store: home.store(), engine: engine_name(), imports: Mutex::default() }
    }

    pub fn native(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{digest}-{}.cwasm", self.engine))
    }

    pub fn stored(&self, digest: &str) -> PathBuf {
        self.store.join(format!("{digest}.wasm"))
    }

    /// Keeps the plugin's bytes under their digest.
    pub fn keep(&self, digest: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.stored(digest);
        if path.exists() {
            return Ok(());
        }
        make_folder(&self.store)?;
        crate::config::write_atomically(&path, bytes)
    }

    /// Native code for a plugin in the store, compiled if it isn't there or isn't ours.
    ///
    /// # Errors
    /// Why the file is no plugin, or what the compiler ran into.
    pub async fn load(
        &self,
        digest: &str,
        vault: &Vault,
        spawner: &Spawner,
        require: Require,
    ) -> Result<File, CacheError> {
        if let Some(file) = self.verified(digest, vault) {
            return Ok(file);
        }
        self.compile(digest, vault, spawner, require).await?;
        self.verified(digest, vault)
            .ok_or_else(|| CacheError::Io(io::Error::other("native code vanished while it was written")))
    }

    /// What a plugin imports; None where its native code was here already.
    pub fn imports(&self, digest: &str) -> Option<Vec<String>> {
        self.imports.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    /// Opens native code and checks its tag on the very descriptor that is handed on.
    pub fn verified(&self, digest: &str, vault: &Vault) -> Option<File> {
        let path = self.native(digest);
        let mut file = File::open(&path).ok()?;
        let mut tag = Vec::new();
        File::open(path.with_extension("tag")).ok()?.take(64).read_to_end(&mut tag).ok()?;
        let bound = self.bound(digest);
        let genuine = vault.verify_tag_reader(Read::chain(bound.as_bytes(), &mut file), &tag).ok()?;
        if !genuine {
            tracing::warn!(path = %path.display(), "native code without our tag, compiling again");
            return None;
        }
        file.rewind().ok()?;
        Some(file)
    }

    /// What the tag covers before the code itself, so that no file passes for another.
    pub fn bound(&self, digest: &str) -> String {
        format!("{digest}/{}/", self.engine)
    }

    async fn compile(
        &self,
        digest: &str,
        vault: &Vault,
        spawner: &Spawner,
        require: Require,
    ) -> Result<(), CacheError> {
        let plugin = OwnedFd::from(self.genuine(digest)?);
        make_folder(&self.folder)?;
        let path = self.native(digest);
        let temporary = self.folder.join(format!(".{digest}-{}.tmp", std::process::id()));
        // A leftover of a crash would make `create_new` fail for ever.
        let _ = fs::remove_file(&temporary);
        let output =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary)?;
        let task = Task::Compiler { plugin, output: output.try_clone()?.into() };
        let result = async {
            let Spawned { mut child, mut socket, namespaces } = spawner.spawn(task).await?;
            let mut order = Vec::new();
            protocol::encode(&Confinement { require, namespaces }, &mut order).map_err(io::Error::other)?;
            let answer = tokio::time::timeout(limits::COMPILE_WALL, async {
                socket.write_all(&order).await?;
                let mut head = [0; 4];
                socket.read_exact(&mut head).await?;
                let length = protocol::frame_length(&head).map_err(io::Error::other)?.unwrap_or(0);
                let mut body = vec![0; length];
                socket.read_exact(&mut body).await?;
                protocol::decode::<CompileAnswer>(&body).map_err(io::Error::other)
            })
            .await;
            match answer {
                Ok(Ok(CompileAnswer::Compiled { imports, .. })) => {
                    let mut known = self.imports.lock().unwrap_or_else(PoisonError::into_inner);
                    known.insert(digest.to_owned(), imports);
                    Ok(())
                }
                Ok(Ok(CompileAnswer::Refused(why))) => Err(CacheError::Refused(why)),
                Ok(Err(_)) => {
                    let status = child.wait().await?;
                    Err(CacheError::Compiler(format!(
                        "died ({status}): the plugin needs more than {} MiB or {} s of processor time to compile, or does worse",
                        limits::COMPILE_ADDRESS_SPACE >> 20,
                        limits::COMPILE_CPU.as_secs()
                    )))
                }
                Err(_) => Err(CacheError::Compiler(format!(
                    "took over {} s and was ended",
                    limits::COMPILE_WALL.as_secs()
                ))),
            }
        }
        .await;
        let finished = result.and_then(|()| {
            output.sync_all()?;
            let tag =
                vault.tag_reader(Read::chain(self.bound(digest).as_bytes(), File::open(&temporary)?))?;
            crate::config::write_atomically(&path.with_extension("tag"), &tag)?;
            fs::rename(&temporary, &path)?;
            File::open(&self.folder)?.sync_all()?;
            Ok(())
        });
        if finished.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        finished
    }

    /// A plugin of the store that is what its name says. One that isn't is removed: where its
    /// file is still in the plugin folder, the next scan brings it back.
    fn genuine(&self, digest: &str) -> io::Result<File> {
        let path = self.stored(digest);
        let mut file = File::open(&path)?;
        let (mut hash, mut chunk) = (Sha256::new(), vec![0; 64 << 10]);
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                length => hash.update(&chunk[..length]),
            }
        }
        if hex::encode(hash.finalize()) != digest {
            let _ = fs::remove_file(&path);
            return Err(io::Error::other(format!("{} was damaged and is removed", path.display())));
        }
        file.rewind()?;
        Ok(file)
    }

    /// Removes native code and plugin bytes that nobody uses any more.
    pub fn prune(&self, used: impl Fn(&str) -> bool) {
        for folder in [&self.folder, &self.store] {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let digest = name.get(..64).unwrap_or_default();
                let ours = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
                if ours && !used(digest) {
                    // It will be made again if it is wanted.
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// Both folders hold nothing that can't be made again, and may go at any time.
fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Names the engine that native code is for: another wasmtime or other settings, another file.
fn engine_name() -> String {
    let Ok(engine) = crate::worker::engine::compiling() else { return "none".into() };
    let mut hasher = std::hash::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Whether a path names a plugin file that may be looked at.
pub fn is_plugin_name(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    [".wasm", ".toml"].iter().any(|kind| name.ends_with(kind)) && !name.starts_with('.')
}
