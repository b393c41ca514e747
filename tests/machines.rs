//! Machines of a test's own: network namespaces that reach each other through a router, from which
//! any can be cut off in either direction. What runs on a machine is started by its thread, so it
//! lives in its namespace and nowhere else. Needs root, and says so where it isn't.
//!
//! Clocks: a host's wall clock is set by the shim of `faults` (`Faults::of(&home).set_clock`). A time
//! namespace can't do that: it shifts the monotonic clocks alone, and those by as much for ever,
//! which no host would notice. Stopped and continued hosts: `stop` and `go_on`.

use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::LinkNameSpaceType;

use crate::harness::*;
use crate::postgres_server::Postgres;

/// A router and the machines around it. The namespaces go with the value.
pub struct Network {
    name: String,
    machines: AtomicU32,
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = command("ip").args(arguments).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr))),
    }
}

#[track_caller]
fn must(done: Result<(), String>) {
    done.unwrap_or_else(|error| panic!("{error}"));
}

impl Network {
    /// None where this system lets nobody make networks, and the reason is printed.
    pub fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("kw{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        if let Err(error) = ip(&["netns", "add", &format!("{name}-r")]) {
            eprintln!("SKIPPED: a test of several machines needs root and network namespaces: {error}");
            return None;
        }
        let network = Self { name, machines: AtomicU32::new(0) };
        let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward";
        must(ip(&["netns", "exec", &network.router(), "sh", "-c", forward]));
        Some(network)
    }

    fn router(&self) -> String {
        format!("{}-r", self.name)
    }

    /// Another machine, with an address of its own.
    pub fn machine(&self) -> Machine {
        let number = self.machines.fetch_add(1, Ordering::Relaxed) + 1;
        let (router, space) = (self.router(), format!("{}-{number}", self.name));
        // Names of interfaces are short, and of this router's namespace alone.
        let (here, there) = (format!("to{number}"), format!("eth{number}"));
        let (gateway, address) = (format!("10.77.{number}.1"), format!("10.77.{number}.2"));
        must(ip(&["netns", "add", &space]));
        must(ip(&[
            "-n", &router, "link", "add", &here, "type", "veth", "peer", "name", &there, "netns", &space,
        ]));
        must(ip(&["-n", &router, "address", "add", &format!("{gateway}/24"), "dev", &here]));
        must(ip(&["-n", &router, "link", "set", &here, "up"]));
        must(ip(&["-n", &space, "address", "add", &format!("{address}/24"), "dev", &there]));
        must(ip(&["-n", &space, "link", "set", &there, "up"]));
        must(ip(&["-n", &space, "link", "set", "lo", "up"]));
        must(ip(&["-n", &space, "route", "add", "default", "via", &gateway]));
        Machine::start(space, address)
    }

    /// What one machine sends to another is lost, silently, as behind a broken switch. The other
    /// way is as it was.
    pub fn cut_one_way(&self, from: &Machine, to: &Machine) {
        must(ip(&[
            "-n",
            &self.router(),
            "rule",
            "add",
            "from",
            &from.address,
            "to",
            &to.address,
            "blackhole",
        ]));
    }

    pub fn cut(&self, one: &Machine, other: &Machine) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// A machine reaches nothing and nothing reaches it.
    pub fn isolate(&self, machine: &Machine) {
        must(ip(&["-n", &self.router(), "rule", "add", "from", &machine.address, "blackhole"]));
        must(ip(&["-n", &self.router(), "rule", "add", "to", &machine.address, "blackhole"]));
    }

    /// Everything that was cut is whole again.
    pub fn heal(&self) {
        while ip(&["-n", &self.router(), "rule", "del", "blackhole"]).is_ok() {}
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for number in 1..=self.machines.load(Ordering::Relaxed) {
            let _gone = ip(&["netns", "del", &format!("{}-{number}", self.name)]);
        }
        let _gone = ip(&["netns", "del", &self.router()]);
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// A namespace, and the thread that lives in it until the value goes.
pub struct Machine {
    pub address: String,
    /// Its namespace, for `ip netns`.
    pub space: String,
    work: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Machine {
    fn start(space: String, address: String) -> Self {
        let (work, works) = mpsc::channel::<Work>();
        let (ready, is_ready) = mpsc::channel();
        let named = space.clone();
        let thread = std::thread::spawn(move || {
            let file = std::fs::File::open(format!("/run/netns/{space}")).expect("the namespace");
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&file),
                Some(LinkNameSpaceType::Network),
            )
            .expect("the thread may move");
            ready.send(()).expect("somebody waits");
            works.into_iter().for_each(|work| work());
        });
        is_ready.recv().expect("the thread moved");
        Self { address, space: named, work: Some(work), thread: Some(thread) }
    }

    /// Does something there: what it starts or listens on is there too.
    #[track_caller]
    pub fn run<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, is_done) = mpsc::channel();
        let work: Work = Box::new(move || drop(done.send(what())));
        self.work.as_ref().expect("it lives").send(work).expect("the thread lives");
        is_done.recv().expect("what was done there did not fail")
    }

    /// A server whose socket is everybody's, and whose port is this machine's.
    pub fn postgres(&self, settings: &[&str]) -> Postgres {
        let listen = format!("listen_addresses={}", self.address);
        let settings: Vec<String> =
            std::iter::once(listen).chain(settings.iter().map(|setting| (*setting).to_owned())).collect();
        self.run(move || Postgres::start_with(&settings.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    /// The address of a database of the server here.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://keywheel@{}:5432/{database}", self.address)
    }

    /// A service with sessions, here.
    pub fn service(&self, old: OldSession) -> Service {
        let address = self.address.clone();
        self.run(move || Service::start_at(&address, old))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// Sends a signal to a host's daemon.
fn signal(daemon: &Daemon, signal: rustix::process::Signal) {
    let pid = i32::try_from(daemon.pid()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("it is there");
}

/// Stops a host where it stands, as a machine that hangs or sleeps.
pub fn stop(daemon: &Daemon) {
    signal(daemon, rustix::process::Signal::STOP);
}

pub fn go_on(daemon: &Daemon) {
    signal(daemon, rustix::process::Signal::CONT);
}

/// Whether a connection to an address comes about within a second.
fn reaches(machine: &Machine, address: &str) -> bool {
    let address = address.parse().expect("an address and a port");
    machine.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
}

#[test]
fn machines_of_a_test_can_be_cut_from_the_store_alone_from_a_service_alone_and_from_all() {
    let Some(network) = Network::new() else { return };
    let (store, shop, one, other) =
        (network.machine(), network.machine(), network.machine(), network.machine());
    let server = store.postgres(&[]);
    server.with_database("store");
    let service = shop.service(OldSession::Dies);
    let (at_store, at_shop) = (format!("{}:5432", store.address), service.url.replace("http://", ""));
    let seen = |machine| (reaches(machine, &at_store), reaches(machine, &at_shop));
    assert_eq!(seen(&one), (true, true));

    network.cut(&one, &store);
    assert_eq!((seen(&one), seen(&other)), ((false, true), (true, true)));
    network.heal();
    network.cut(&one, &shop);
    assert_eq!((seen(&one), seen(&other)), ((true, false), (true, true)));
    network.heal();
    network.cut_one_way(&store, &one);
    assert_eq!(seen(&one), (false, true));
    network.isolate(&other);
    assert_eq!(seen(&other), (false, false));
    network.heal();
    assert_eq!((seen(&one), seen(&other)), ((true, true), (true, true)));
    // By its user, from another machine.
    let (mut ask, url) = (command("psql"), store.url("store"));
    ask.env_clear().env("PATH", "/usr/bin:/bin").args(["-XqAtc", "SELECT current_user", &url]);
    let answer = one.run(move || ask.output().expect("psql starts"));
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "keywheel\n", "{answer:?}");
}
