//! Asks what the sandbox is worth on this machine, by processes that are confined as a worker
//! or a compiler and then try to get out. The host's side of `worker::probe`.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::worker_process::{Spawned, Spawner, Task};
use crate::limits;
use crate::protocol::{self, Confinement, Kind, Layer, ProbeAnswer, ProbeOrder, Require, Targets};
pub use crate::worker::probe::ATTEMPTS;

/// How long one attempt may take; each is a system call or two.
const ATTEMPT: Duration = Duration::from_secs(5);

/// How an attempt to get out ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The filter of system calls ended the process.
    Killed,
    /// The system said no: the error's name.
    Refused(String),
    /// It got through.
    Succeeded,
    /// Neither: what was seen instead.
    Unclear(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("a probe can't be started")]
    Spawn(#[from] io::Error),
    #[error("{0}")]
    Unfit(String),
}

/// What an escaped guest might reach, open for as long as this lives.
#[derive(Debug)]
pub struct Bait {
    targets: Targets,
    folder: tempfile::TempDir,
    _sockets: (TcpListener, UdpSocket, UnixListener),
}

impl Bait {
    /// # Errors
    /// The system's.
    pub fn lay() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let tcp = TcpListener::bind(("127.0.0.1", 0))?;
        let udp = UdpSocket::bind(("127.0.0.1", 0))?;
        let abstract_name = folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let abstract_socket =
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(abstract_name.as_bytes())?)?;
        let targets = Targets {
            host_pid: i32::try_from(std::process::id()).map_err(io::Error::other)?,
            tcp_port: tcp.local_addr()?.port(),
            udp_port: udp.local_addr()?.port(),
            abstract_name,
            folder: folder.path().display().to_string(),
        };
        Ok(Self { targets, folder, _sockets: (tcp, udp, abstract_socket) })
    }

    /// What is there for an attempt to take away, laid anew before each.
    fn renew(&self) -> io::Result<()> {
        for (name, there) in [
            ("made-by-an-escaped-guest", false),
            ("folder-of-an-escaped-guest", false),
            ("moved-by-an-escaped-guest", false),
            ("folder-to-move", true),
        ] {
            let path = self.folder.path().join(name);
            // Whatever an attempt that got through left there.
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
            if there {
                std::fs::create_dir(&path)?;
            }
        }
        Ok(())
    }
}

/// The layers that a process of this kind gets here.
///
/// # Errors
/// Where no process can be started, or it is unfit for another reason than a missing layer.
pub async fn layers(spawner: &Spawner, kind: Kind) -> Result<Vec<Layer>, ProbeError> {
    let (_, answer) = start(spawner, kind, true, None, Targets::default()).await?;
    match answer {
        ProbeAnswer::Confined(layers) => Ok(layers),
        ProbeAnswer::Unfit(why) => Err(ProbeError::Unfit(why)),
        ProbeAnswer::Returned(_) => Err(ProbeError::Unfit("a probe answered out of turn".into())),
    }
}

/// Lets an escaped guest try one thing: a place in `ATTEMPTS`. Without `filtered` the filter of
/// system calls is left off, to see what the other layers hold.
///
/// # Errors
/// As `layers`.
pub async fn attempt(
    spawner: &Spawner,
    kind: Kind,
    filtered: bool,
    number: usize,
    bait: &Bait,
) -> Result<Outcome, ProbeError> {
    bait.renew()?;
    let number = u32::try_from(number).map_err(io::Error::other)?;
    let (mut probe, answer) = start(spawner, kind, filtered, Some(number), bait.targets.clone()).await?;
    if let ProbeAnswer::Unfit(why) = answer {
        return Err(ProbeError::Unfit(why));
    }
    let ending = tokio::time::timeout(ATTEMPT, async {
        match read(&mut probe.socket).await {
            Ok(Some(ProbeAnswer::Returned(None))) => Ok(Outcome::Succeeded),
            Ok(Some(ProbeAnswer::Returned(Some(error)))) => Ok(Outcome::Refused(name_of(error))),
            Ok(Some(_)) => Ok(Outcome::Unclear("it answered out of turn".into())),
            Ok(None) | Err(_) => probe.child.wait().await.map(ended),
        }
    });
    Ok(ending.await.unwrap_or(Ok(Outcome::Unclear("it never ended".into())))?)
}

async fn start(
    spawner: &Spawner,
    kind: Kind,
    filtered: bool,
    attempt: Option<u32>,
    targets: Targets,
) -> Result<(Spawned, ProbeAnswer), ProbeError> {
    let target = std::fs::File::open("/dev/null")?.into();
    let mut probe = spawner.spawn(Task::Probe { target }).await?;
    let confinement = Confinement { require: Require::Nothing, namespaces: probe.namespaces.clone() };
    let order = ProbeOrder { kind, confinement, filtered, attempt, targets };
    let mut frame = Vec::new();
    protocol::encode(&order, &mut frame).map_err(io::Error::other)?;
    probe.socket.write_all(&frame).await?;
    let answer = tokio::time::timeout(limits::WORKER_READY, read(&mut probe.socket))
        .await
        .map_err(|_| ProbeError::Unfit("a probe didn't get ready in time".into()))??;
    match answer {
        Some(answer) => Ok((probe, answer)),
        None => Err(ProbeError::Unfit(format!(
            "a probe ended while it was confined: {}",
            super::describe_exit(probe.child.wait().await?)
        ))),
    }
}

async fn read(socket: &mut UnixStream) -> io::Result<Option<ProbeAnswer>> {
    let mut head = [0; 4];
    match socket.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = protocol::frame_length(&head).map_err(io::Error::other)?.unwrap_or(0);
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await?;
    protocol::decode(&body).map(Some).map_err(io::Error::other)
}

/// A process that ended without a word: by the filter, or because it became another program.
fn ended(status: ExitStatus) -> Outcome {
    match (status.signal(), status.code()) {
        (Some(libc::SIGSYS), _) => Outcome::Killed,
        (None, Some(0)) => Outcome::Succeeded,
        _ => Outcome::Unclear(super::describe_exit(status)),
    }
}

/// The name that manuals use, or the number.
fn name_of(error: i32) -> String {
    let name = match error {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENOTTY => "ENOTTY",
        libc::EMFILE => "EMFILE",
        libc::ENOSYS => "ENOSYS",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ENOKEY => "ENOKEY",
        other => return format!("error {other}"),
    };
    name.to_owned()
}
