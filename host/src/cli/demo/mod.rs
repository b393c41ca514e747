//! `demo`: a day of Keywheel in seconds. It plays the operator and the service, never the
//! daemon: that is a process of its own, asked over its control socket like by any command.
//! Every step is checked against what the service saw, the database holds and the system shows.

mod daemon;
mod service;
mod stage;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use super::output::Output;
use crate::catalogue;
use crate::config::{Home, write_atomically};
use crate::control::{self, Operation, Outcome};
use crate::credential::now;
use crate::db::queries::{CredentialRow, Reader, ReportFilter, ReportRow};
use crate::protocol::{LayerState, Require};
use crate::registry::{PluginState, PluginStatus};
use crate::report::{Report, Status, parse_iso8601};
use crate::supervisor::WorkerStatus;
use daemon::Daemon;
use service::{CLIENT, COOKIE, LIFE, Service};
use stage::{Lane, Stage};

/// Between two looks at the daemon: fine enough to time a start of a few milliseconds.
const LOOK: Duration = Duration::from_millis(10);
/// Between two looks when nothing is timed any more: a tenth of a second looks live.
const LAZY_LOOK: Duration = Duration::from_millis(100);
/// The daemon answers a question about itself at once.
const ANSWER: Duration = Duration::from_secs(5);
/// What happens at once on an idle machine may take this long on a busy one.
const SOON: Duration = Duration::from_secs(15);
/// The supervisor's promise for a worker that died.
const WORKER_BACK: Duration = Duration::from_secs(1);
/// Two reports of a service that is asked every second: one look may be late by a validation
/// and a rotation, not by more.
const LONGEST_GAP: Duration = Duration::from_millis(2_500);
/// How often a session is to outlive itself.
const LIVES: u32 = 2;
/// How often a credential is validated and rotated.
const EVERY: &str = "1s";
const ROTATE_EVERY: &str = "2s";

const SHOP: usize = 0;
const CALENDAR: usize = 1;
const SERVICES: [&str; 2] = ["http-session", "oauth2-refresh"];
const CREDENTIALS: [&str; 2] = ["shop", "calendar"];
const FILES: [&str; 2] = ["http-session.wasm", "oauth2-refresh.wasm"];

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// End after the first full round; exit code 0 only if every step held
    #[arg(long)]
    once: bool,
    /// Where http-session.wasm and oauth2-refresh.wasm are [default: with the providers that come
    /// with Keywheel]
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    held: bool,
    detail: String,
    ms: u64,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    ok: bool,
    services: usize,
    /// Worker processes at once, and how many were started in all.
    workers: usize,
    worker_starts: u32,
    reports: u32,
    rotations: u32,
    drop_to_first_report_ms: Option<f64>,
    worker_killed_back_ms: Option<f64>,
    service_requests: u64,
    dead_requests: u64,
    token_reuses: u64,
    took_ms: u64,
    steps: &'a [Step],
    /// Its last lines, where a step broke.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    daemon_log: &'a [String],
}

/// What one service's reports came to.
#[derive(Debug, Default)]
struct Tally {
    attempts: u32,
    rotations: u32,
    last_at: Option<u64>,
    longest_gap: u64,
    /// The first report that was no success.
    trouble: Option<String>,
}

type Held<T> = Result<T, String>;

struct Demo {
    stage: Stage,
    service: Service,
    files: [PathBuf; 2],
    // Ends before the folder goes.
    daemon: Option<Daemon>,
    reader: Option<Reader>,
    home: Home,
    folder: Option<TempDir>,
    last_report: i64,
    tallies: [Tally; 2],
    workers: Vec<WorkerStatus>,
    plugins: Vec<PluginStatus>,
    most_workers: usize,
    starts: u32,
    steps: Vec<Step>,
    open_step: Option<(&'static str, Instant)>,
    began: Instant,
    answered: bool,
    log_tail: Vec<String>,
    first_report: Option<Duration>,
    killed_back: Option<Duration>,
}

pub async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let files = find_plugins(arguments.plugins.as_deref())?;
    let mut stop = StopSignals::watch().map_err(Failure::io("signals can't be watched"))?;
    let mut demo = Demo::set_up(files, output).await?;
    demo.stage.say("Keywheel, a day in seconds: two services, two plugins, one daemon.\n");

    let mut ended = tokio::select! {
        ended = demo.opening() => ended,
        () = stop.recv() => Err("stopped before the round was over".into()),
    };
    if ended.is_ok() && !arguments.once {
        demo.stage.say("\nIt goes on until Ctrl-C.");
        ended = tokio::select! {
            ended = demo.go_on() => ended,
            () = stop.recv() => Ok(()),
        };
    }
    if ended.is_ok() {
        ended = demo.closing().await;
    }
    let ok = demo.finish(ended).await;
    demo.conclude(ok, output);
    if ok { Ok(()) } else { Err(Failure::Unhealthy) }
}

/// The first signal ends the show; cleaning up has deadlines of its own.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn watch() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The plugins' files: where the caller says, or where those are that come with Keywheel.
fn find_plugins(named: Option<&Path>) -> Result<[PathBuf; 2], Failure> {
    let folder = match named {
        Some(folder) => folder.to_owned(),
        None => catalogue::folder().map_err(|error| Failure::NotFound(error.to_string()))?,
    };
    let files = FILES.map(|file| folder.join(file));
    match files.iter().all(|file| file.is_file()) {
        true => Ok(files),
        false => Err(Failure::NotFound(format!(
            "no plugins for the demo: {} are not in {}; hint: in the source folder, `make plugins` \
             builds them and `make demo` does it all",
            FILES.join(" and "),
            folder.display()
        ))),
    }
}

impl Demo {
    async fn set_up(files: [PathBuf; 2], output: Output) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("keywheel-demo-")
            .tempdir()
            .map_err(Failure::io("no temporary folder can be made"))?;
        let service = Service::start().await.map_err(Failure::io("the demo's service can't be started"))?;
        let lanes = [(SERVICES[SHOP], "green"), (SERVICES[CALENDAR], "magenta")];
        Ok(Self {
            stage: Stage::open(output, &lanes),
            service,
            files,
            daemon: None,
            reader: None,
            home: Home::locate(Some(folder.path().join("home")))?,
            folder: Some(folder),
            last_report: 0,
            tallies: Default::default(),
            workers: Vec::new(),
            plugins: Vec::new(),
            most_workers: 0,
            starts: 0,
            steps: Vec::new(),
            open_step: None,
            began: Instant::now(),
            answered: false,
            log_tail: Vec::new(),
            first_report: None,
            killed_back: None,
        })
    }

    /// Everything up to the moment where the demo could go on for ever.
    async fn opening(&mut self) -> Held<()> {
        self.begin("a home of its own");
        crate::daemon::make_home(&self.home).map_err(|error| super::with_causes(&error))?;
        self.reader = Some(Reader::open(self.home.database()).map_err(|error| error.to_string())?);
        self.held(self.home.root().display().to_string());

        self.begin("the daemon starts");
        let daemon = Daemon::start(&self.home, &self.folder()?.join("daemon.log"))?;
        let pid = daemon.pid();
        self.daemon = Some(daemon);
        self.until(SOON, "the daemon doesn't answer", |demo| demo.answered.then_some(())).await?;
        self.held(format!("pid {pid}, no plugin yet"));

        let twin = self.keep_the_shop().await?;
        self.keep_the_calendar().await?;

        self.begin("each in a locked process of its own");
        let layers = self
            .until(SOON, "not every worker announced itself", |demo| {
                let mut running = demo.workers.iter().filter(|worker| worker.pid.is_some());
                let (one, other) = (running.next()?, running.next()?);
                Some([one.layers.clone(), other.layers.clone()].concat())
            })
            .await?;
        let missing = Require::AllButNamespaces.unmet(&layers);
        if !missing.is_empty() {
            return Err(format!("a layer of the sandbox is missing: {}", missing.join(", ")));
        }
        let on = layers.iter().filter(|layer| layer.state == LayerState::On);
        let mut names: Vec<_> = on.map(|layer| layer.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        self.held(names.join(", "));

        self.begin("both secrets are rotated");
        self.until(SOON, "no rotation in time", |demo| {
            demo.tallies.iter().all(|tally| tally.rotations > 0).then_some(())
        })
        .await?;
        let seen = self.service.seen();
        self.held(format!(
            "issued by the service: {} cookie, {} tokens",
            seen.session_rotations, seen.token_rotations
        ));

        self.kill_a_worker().await?;
        self.outlive(twin).await
    }

    /// A cookie session: returns its twin, signed in at the same moment and left alone.
    async fn keep_the_shop(&mut self) -> Held<Twin> {
        self.begin("a plugin dropped in while it runs");
        let dropped = Instant::now();
        self.drop_plugin(SHOP).await?;
        self.held(format!("{} active after {}", SERVICES[SHOP], spell(dropped.elapsed())));

        self.begin("a cookie imported from cookies.txt");
        let twin = Twin { session: self.service.sign_in(), signed_in: Instant::now() };
        let (address, session) = (self.service.address, self.service.sign_in());
        let file = self.folder()?.join("cookies.txt");
        // Whole seconds and never late, as browsers write it.
        let end = (now() + LIFE.as_millis() as u64) / 1_000;
        let text = format!(
            "# Netscape HTTP Cookie File\n#HttpOnly_{}\tFALSE\t/\tFALSE\t{end}\t{COOKIE}\t{session}\n",
            address.ip()
        );
        let can_not = |error| format!("{} can't be used: {error}", file.display());
        std::fs::write(&file, text).map_err(can_not)?;
        let settings = [
            format!("base_url=http://{address}"),
            format!("cookie_name={COOKIE}"),
            "validate_path=/me".into(),
            "refresh_path=/refresh".into(),
            "alive_json_pointer=/user".into(),
        ];
        let from = ["--from".to_owned(), file.display().to_string()];
        self.add_credential(SHOP, &settings, &from, "").await?;
        std::fs::remove_file(&file).map_err(can_not)?;
        self.until(SOON, "no first report", |demo| (demo.tallies[SHOP].attempts > 0).then_some(())).await?;
        let first = dropped.elapsed();
        self.first_report = Some(first);
        self.held(format!("first report {} after the drop", spell(first)));
        Ok(twin)
    }

    async fn keep_the_calendar(&mut self) -> Held<()> {
        self.begin("a second plugin, tokens from stdin");
        let dropped = Instant::now();
        self.drop_plugin(CALENDAR).await?;
        let (address, tokens) = (self.service.address, self.service.authorise());
        let settings = [
            format!("token_url=http://{address}/token"),
            format!("validate_url=http://{address}/userinfo"),
            format!("client_id={CLIENT}"),
        ];
        let input = format!(
            "refresh_token={}\naccess_token={}\nclient_secret={}\n",
            tokens.refresh, tokens.access, tokens.client_secret
        );
        self.add_credential(CALENDAR, &settings, &[], &input).await?;
        self.until(SOON, "no first report", |demo| (demo.tallies[CALENDAR].attempts > 0).then_some(()))
            .await?;
        self.held(format!("{}, first report after {}", SERVICES[CALENDAR], spell(dropped.elapsed())));
        Ok(())
    }

    async fn drop_plugin(&mut self, which: usize) -> Held<()> {
        let from = &self.files[which];
        let bytes =
            std::fs::read(from).map_err(|error| format!("{} can't be read: {error}", from.display()))?;
        let to = self.home.plugins().join(FILES[which]);
        write_atomically(&to, &bytes)
            .map_err(|error| format!("{} can't be written: {error}", to.display()))?;
        let state = self
            .until(SOON, "the plugin isn't taken up", |demo| {
                let found = demo.plugins.iter().find(|plugin| plugin.file == FILES[which])?;
                Some((found.state, found.reason.clone()))
            })
            .await?;
        match state {
            (PluginState::Active, _) => Ok(()),
            (_, reason) => Err(reason.unwrap_or_else(|| "the plugin isn't active".into())),
        }
    }

    /// What an operator would type; every secret comes from a file or standard input.
    async fn add_credential(
        &mut self,
        which: usize,
        settings: &[String],
        more: &[String],
        input: &str,
    ) -> Held<()> {
        let private = self.service.address.ip().to_string();
        let mut arguments: Vec<String> =
            ["credential", "add", CREDENTIALS[which], "--service", SERVICES[which]]
                .into_iter()
                .chain(["--allow-private", &private, "--every", EVERY, "--rotate-every", ROTATE_EVERY])
                .map(str::to_owned)
                .collect();
        arguments.extend(settings.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]));
        arguments.extend_from_slice(more);
        daemon::run_command(&self.home, &arguments, input).await
    }

    /// The worst moment: the service has spent the one-time token and its answer is on the way.
    async fn kill_a_worker(&mut self) -> Held<()> {
        self.begin("a worker killed in mid-refresh");
        let mut held = self.service.hold_next_token();
        self.until(SOON, "no refresh to interrupt", |_| held.ready.try_recv().ok()).await?;
        let pid_of = |demo: &Self, which: usize| {
            demo.workers.iter().find(|worker| worker.service == SERVICES[which]).and_then(|worker| worker.pid)
        };
        let bystander = pid_of(self, SHOP);
        let victim = pid_of(self, CALENDAR).ok_or("the worker isn't listed")?;
        let attempt = self
            .credential(CALENDAR)?
            .open_attempt
            .map(|open| open.attempt_number)
            .ok_or("the attempt isn't in the journal")?;
        let (killed, killed_at) = (Instant::now(), now());
        daemon::signal(victim, rustix::process::Signal::KILL)?;
        let back = self
            .until(SOON, "the worker isn't back", |demo| pid_of(demo, CALENDAR).filter(|&pid| pid != victim))
            .await?;
        let after = killed.elapsed();
        self.killed_back = Some(after);
        if after > WORKER_BACK {
            return Err(format!("it took {} to be back", spell(after)));
        }
        self.held(format!("pid {victim} killed, pid {back} back after {}", spell(after)));

        self.begin("what it was fetching is not lost");
        let _ = held.go.send(());
        let report = self
            .until(SOON, "the attempt has no report", |demo| {
                demo.calendar_reports().into_iter().find(|row| row.report.attempt_number == attempt)
            })
            .await?
            .report;
        if report.status != Status::Success || !is_rotation(&report) {
            return Err(report.message.unwrap_or_else(|| "it was not rotated".into()));
        }
        let seen = self.service.seen();
        if seen.reuses > 0 {
            return Err("a refresh token was used twice".into());
        }
        self.held(format!("attempt {attempt}: one report, rotated, no token used twice"));

        self.begin("the other service never noticed");
        self.until(SOON, "no report after the kill", |demo| {
            demo.tallies[SHOP].last_at.filter(|&at| at > killed_at)
        })
        .await?;
        let tally = &self.tallies[SHOP];
        if pid_of(self, SHOP) != bystander {
            return Err("its worker is another one".into());
        }
        if let Some(trouble) = &tally.trouble {
            return Err(trouble.clone());
        }
        let gap = Duration::from_millis(tally.longest_gap);
        if gap > LONGEST_GAP {
            return Err(format!("{} without a report", spell(gap)));
        }
        self.held(format!("{} attempts, all valid, longest gap {:.1} s", tally.attempts, gap.as_secs_f32()));
        Ok(())
    }

    async fn outlive(&mut self, twin: Twin) -> Held<()> {
        self.begin("sessions outlive their own end");
        let lives = LIFE * LIVES;
        self.until(lives + SOON, "time doesn't pass", |_| (twin.signed_in.elapsed() > lives).then_some(()))
            .await?;
        if self.service.is_alive(&twin.session) {
            return Err("the session that was left alone still lives".into());
        }
        self.check_health()?;
        self.held(format!(
            "{} lives of {} s; 0 dead requests; a twin left alone died",
            LIVES,
            LIFE.as_secs(),
        ));
        Ok(())
    }

    fn check_health(&self) -> Held<()> {
        if let Some(trouble) = self.tallies.iter().find_map(|tally| tally.trouble.clone()) {
            return Err(trouble);
        }
        let seen = self.service.seen();
        if seen.dead > 0 || seen.reuses > 0 {
            return Err(format!(
                "the service saw {} dead requests and {} tokens used twice",
                seen.dead, seen.reuses
            ));
        }
        Ok(())
    }

    /// Without `--once`: on and on, until a signal or nobody watches any more.
    async fn go_on(&mut self) -> Held<()> {
        self.begin("goes on and on");
        while !self.stage.is_deserted() {
            self.look().await?;
            self.check_health()?;
            tokio::time::sleep(LAZY_LOOK).await;
        }
        Ok(())
    }

    fn folder(&self) -> Held<&Path> {
        self.folder.as_ref().map(TempDir::path).ok_or_else(|| "the temporary home is gone".into())
    }

    async fn closing(&mut self) -> Held<()> {
        self.begin("no secret on disk");
        let (mark, folder) = (self.service.mark(), self.folder()?.to_owned());
        let search = tokio::task::spawn_blocking(move || search(&folder, mark.as_bytes()));
        let found = search.await.map_err(|error| error.to_string())?;
        let found = found.map_err(|error| format!("the home can't be searched: {error}"))?;
        if let Some(file) = found.hit {
            return Err(format!("a secret is in {}", file.display()));
        }
        self.held(format!(
            "{} files, {:.1} MiB searched",
            found.files,
            found.bytes as f64 / f64::from(1 << 20)
        ));

        self.begin("drained and stopped");
        let workers: Vec<_> = self.workers.iter().filter_map(|worker| worker.pid).collect();
        if let Some(mut daemon) = self.daemon.take() {
            let ended = daemon.stop().await;
            self.log_tail = daemon.last_words();
            ended?;
        }
        if let Some(pid) = workers.iter().find(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
            return Err(format!("worker {pid} is still there"));
        }
        self.read_reports()?;
        let mut attempts = 0;
        for which in [SHOP, CALENDAR] {
            let (row, tally) = (self.credential(which)?, &self.tallies[which]);
            if row.open_attempt.is_some() || row.attempt_number != tally.attempts {
                return Err(format!(
                    "`{}` made {} attempts and has {} reports",
                    row.credential_id, row.attempt_number, tally.attempts
                ));
            }
            attempts += tally.attempts;
        }
        self.held(format!("{attempts} attempts, {attempts} reports, no process left"));
        Ok(())
    }

    fn begin(&mut self, name: &'static str) {
        self.stage.begin(name);
        self.open_step = Some((name, Instant::now()));
    }

    fn held(&mut self, detail: String) {
        if let Some((name, began)) = self.open_step.take() {
            self.stage.held(name, &detail);
            self.steps.push(Step { name, held: true, detail, ms: millis(began.elapsed()) });
        }
    }

    /// Looks at the daemon until `condition` gives something; otherwise `why` is the failure.
    async fn until<T>(
        &mut self,
        within: Duration,
        why: &str,
        mut condition: impl FnMut(&Self) -> Option<T>,
    ) -> Held<T> {
        let deadline = Instant::now() + within;
        loop {
            self.look().await?;
            if let Some(found) = condition(self) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let trouble = self.tallies.iter().find_map(|tally| tally.trouble.as_deref());
                return Err(match trouble {
                    Some(trouble) => format!("{why}: {trouble}"),
                    None => format!("{why} within {} s", within.as_secs()),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&mut self) -> Held<()> {
        if let Some(ended) = self.daemon.as_mut().and_then(Daemon::ended) {
            return Err(format!("the daemon ended ({ended})"));
        }
        let socket = self.home.socket();
        let asked = tokio::time::timeout(ANSWER, control::ask(&socket, &Operation::Status)).await;
        match asked.map_err(|_| "the daemon doesn't answer")? {
            Ok(Some(Ok(Outcome::Status { workers, plugins, .. }))) => {
                self.answered = true;
                let running = workers.iter().filter(|worker| worker.pid.is_some()).count();
                self.most_workers = self.most_workers.max(running);
                self.starts = workers.iter().map(|worker| worker.starts).sum();
                (self.workers, self.plugins) = (workers, plugins);
            }
            // Not listening yet.
            Ok(None) => {}
            Ok(Some(Ok(_))) => return Err("the daemon answered another question".into()),
            Ok(Some(Err(refusal))) => return Err(refusal.to_string()),
            Err(error) => return Err(format!("the daemon can't be asked: {error}")),
        }
        self.read_reports()?;
        self.show_lanes()
    }

    fn read_reports(&mut self) -> Held<()> {
        let Some(reader) = &self.reader else { return Ok(()) };
        let new = ReportFilter { after_id: Some(self.last_report), limit: 1_000, ..ReportFilter::default() };
        for row in reader.reports(&new).map_err(|error| error.to_string())? {
            self.last_report = row.id;
            let Some(which) = CREDENTIALS.iter().position(|id| *id == row.report.cookie_id) else { continue };
            if let Some(line) = self.tallies[which].take(&row) {
                self.stage.event(SERVICES[which], &line);
            }
        }
        Ok(())
    }

    fn show_lanes(&self) -> Held<()> {
        let Some(reader) = &self.reader else { return Ok(()) };
        let mut lanes = [Lane::default(), Lane::default()];
        for (which, lane) in lanes.iter_mut().enumerate() {
            let row = reader.credential(CREDENTIALS[which]).map_err(|error| error.to_string())?;
            let end = row.and_then(|row| row.monitor.expires_at).unwrap_or(0);
            let worker = self.workers.iter().find(|worker| worker.service == SERVICES[which]);
            *lane = Lane {
                attempts: self.tallies[which].attempts,
                rotations: self.tallies[which].rotations,
                left: Duration::from_millis(end.saturating_sub(now())),
                worker: worker.and_then(|worker| worker.pid),
            };
        }
        self.stage.lanes(&lanes);
        Ok(())
    }

    fn credential(&self, which: usize) -> Held<CredentialRow> {
        let reader = self.reader.as_ref().ok_or("there is no database yet")?;
        let row = reader.credential(CREDENTIALS[which]).map_err(|error| error.to_string())?;
        row.ok_or_else(|| format!("no credential `{}`", CREDENTIALS[which]))
    }

    /// The newest reports; none where they can't be read, which ends in the wait's failure.
    fn calendar_reports(&self) -> Vec<ReportRow> {
        let filter =
            ReportFilter { credential_id: Some(CREDENTIALS[CALENDAR].to_owned()), ..ReportFilter::default() };
        self.reader.as_ref().and_then(|reader| reader.reports(&filter).ok()).unwrap_or_default()
    }

    /// Ends what is left and says whether every step held.
    async fn finish(&mut self, ended: Held<()>) -> bool {
        if let Some(mut daemon) = self.daemon.take() {
            // The step that broke is what counts.
            let _ = daemon.stop().await;
            self.log_tail = daemon.last_words();
        }
        self.reader = None;
        let removed = self.folder.take().map_or(Ok(()), TempDir::close);
        let removed = removed.map_err(|error| format!("the temporary home can't be removed: {error}"));
        let Err(why) = ended.and(removed) else {
            self.log_tail.clear();
            return true;
        };
        let (name, began) = self.open_step.take().unwrap_or(("cleaned up", self.began));
        self.stage.broke(name, &why);
        self.steps.push(Step { name, held: false, detail: why, ms: millis(began.elapsed()) });
        false
    }

    fn conclude(self, ok: bool, output: Output) {
        let took = self.began.elapsed();
        self.stage.close();
        let sum = |of: fn(&Tally) -> u32| self.tallies.iter().map(of).sum::<u32>();
        let seen = self.service.seen();
        let summary = Summary {
            ok,
            services: self.tallies.iter().filter(|tally| tally.attempts > 0).count(),
            workers: self.most_workers,
            worker_starts: self.starts,
            reports: sum(|tally| tally.attempts),
            rotations: sum(|tally| tally.rotations),
            drop_to_first_report_ms: self.first_report.map(fine_millis),
            worker_killed_back_ms: self.killed_back.map(fine_millis),
            service_requests: seen.requests,
            dead_requests: seen.dead,
            token_reuses: seen.reuses,
            took_ms: millis(took),
            steps: &self.steps,
            daemon_log: &self.log_tail,
        };
        if output.json {
            output.json_line(&summary, true);
            return;
        }
        if ok {
            self.stage.say(&format!(
                "\nEvery step held: {} reports, {} rotations, {} services, {} requests, {:.1} s. The \
                 temporary home is gone.\n\n{}",
                summary.reports,
                summary.rotations,
                summary.services,
                summary.service_requests,
                took.as_secs_f32(),
                NEXT,
            ));
        } else {
            output.say("\nThe round did not hold. The daemon's last words:");
            for line in &self.log_tail {
                output.say(&format!("  {line}"));
            }
        }
    }
}

/// A session that nobody keeps alive.
struct Twin {
    session: String,
    signed_in: Instant,
}

impl Tally {
    /// Counts a report; a line where it is worth one.
    fn take(&mut self, row: &ReportRow) -> Option<String> {
        let report = &row.report;
        self.attempts += 1;
        let at = parse_iso8601(&report.finished_at);
        if let (Some(last), Some(at)) = (self.last_at, at) {
            self.longest_gap = self.longest_gap.max(at.saturating_sub(last));
        }
        self.last_at = at.or(self.last_at);
        if report.status != Status::Success {
            let message = report.message.as_deref().unwrap_or("no message");
            let line = format!("attempt {}: {} ({message})", report.attempt_number, report.status.as_str());
            self.trouble.get_or_insert_with(|| format!("{} {line}", report.cookie_id));
            return Some(line);
        }
        if is_rotation(report) {
            self.rotations += 1;
            return Some(format!("attempt {}: rotated", report.attempt_number));
        }
        None
    }
}

fn is_rotation(report: &Report) -> bool {
    report.meta.get("rotated").and_then(serde_json::Value::as_bool) == Some(true)
}

#[derive(Debug, Default)]
struct Searched {
    files: usize,
    bytes: u64,
    hit: Option<PathBuf>,
}

/// Looks for the bytes in every file under the folder.
fn search(folder: &Path, bytes: &[u8]) -> std::io::Result<Searched> {
    let mut searched = Searched::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let content = match std::fs::read(entry.path()) {
                    Ok(content) => content,
                    // The daemon is at work: what went since it was listed holds nothing.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                searched.files += 1;
                searched.bytes += content.len() as u64;
                if content.windows(bytes.len()).any(|window| window == bytes) {
                    searched.hit.get_or_insert(entry.path());
                }
            }
        }
    }
    Ok(searched)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds with one digit after the point.
fn fine_millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 10_000.0).round() / 10.0
}

fn spell(span: Duration) -> String {
    format!("{} ms", millis(span))
}

/// The same with a service of the reader's own.
const NEXT: &str = "\
Next, with a site that you are signed in to in Firefox, and a page there that only you see:
  keywheel init --from-browser firefox --domain https://shop.example/account
  keywheel serve &
  keywheel status; keywheel reports tail
Without Firefox: `--from cookies.txt`, or `keywheel init` alone, which asks.
For another kind of login: docs/writing-a-provider.md";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_any_file_below_is_found() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("deep"))?;
        std::fs::write(folder.path().join("clean"), b"nothing here")?;
        let dirty = folder.path().join("deep/dirty");
        std::fs::write(&dirty, b"\0\xff before the mark-7 after")?;
        let found = search(folder.path(), b"mark-7")?;
        assert_eq!((found.files, found.hit), (2, Some(dirty)));
        assert!(search(folder.path(), b"mark-8")?.hit.is_none());
        Ok(())
    }

    #[test]
    fn gaps_rotations_and_the_first_trouble_are_remembered() {
        let row = |at: u64, status, rotated: bool| ReportRow {
            worker_token: None,
            id: 1,
            created_at: String::new(),
            report: Report {
                cookie_id: "shop".into(),
                profile_id: None,
                service: SERVICES[SHOP].into(),
                validate_url: String::new(),
                cookie_keys: Default::default(),
                status,
                message: Some(format!("at {at}")),
                started_at: String::new(),
                finished_at: crate::report::iso8601(at),
                attempt_number: 1,
                meta: [("rotated".to_owned(), rotated.into())].into_iter().collect(),
            },
        };
        let mut tally = Tally::default();
        assert_eq!(tally.take(&row(1_000, Status::Success, false)), None);
        assert!(tally.take(&row(3_500, Status::Success, true)).is_some());
        assert!(tally.take(&row(4_000, Status::Unreachable, false)).is_some());
        assert!(tally.take(&row(5_000, Status::Failed, false)).is_some());
        assert_eq!((tally.attempts, tally.rotations, tally.longest_gap), (4, 1, 2_500));
        assert!(tally.trouble.is_some_and(|trouble| trouble.contains("at 4000")));
    }

    #[test]
    fn without_both_plugins_the_error_says_how_to_get_them() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join(FILES[SHOP]), b"")?;
        let error =
            find_plugins(Some(folder.path())).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("oauth2-refresh.wasm") && error.contains("make plugins"), "{error}");
        std::fs::write(folder.path().join(FILES[CALENDAR]), b"")?;
        assert!(find_plugins(Some(folder.path())).is_ok());
        Ok(())
    }
}
