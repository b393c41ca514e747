//! `/metrics`: what was counted and how things stand, in Prometheus' text or in OpenMetrics. It
//! names services and never a secret; credentials only where the operator asked for that, and no
//! more of them than bounded. What has to be counted in the database is counted in one pass,
//! which is kept for as long as keeps that work small.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use super::answer::{FIXED, Refused};
use super::server::Peer;
use super::{Shared, api};
use crate::config::metrics::{Access, Metrics as Options};
use crate::control::{Counted, Operation, Outcome, Vitals};
use crate::credential::{Millis, now};
use crate::db::census::{CredentialCensus, STATES, ServiceCensus};
use crate::db::hosts::{HostRow, HostState};
use crate::db::queries::{ReadError, Reader};
use crate::db::writer::Progress;
use crate::limits;
use crate::meter::{ACTIONS, BOUNDS, Meter, OUTCOMES, OfService, Times, VERDICTS};
use crate::token::Scope;

/// A pass over all credentials is good for at least so long, and for so many times what it took:
/// at most a fiftieth of one processor goes there, however often it is scraped.
const KEPT_AT_LEAST: Duration = Duration::from_secs(2);
const KEPT_TIMES: u32 = 50;

/// How far ahead expiries are counted.
const WINDOWS: [&str; 3] = ["1d", "7d", "14d"];

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a scrape reads from, and what it keeps until the next.
pub struct Scraped {
    options: Options,
    access: Access,
    reader: Arc<Mutex<Reader>>,
    meter: Arc<Meter>,
    /// Held while a pass runs, so that one does.
    census: tokio::sync::Mutex<Option<Kept>>,
    /// Answers by route, method and status.
    answers: Mutex<BTreeMap<(String, &'static str, u16), u64>>,
}

/// One pass over the credentials.
#[derive(Debug, Clone)]
struct Kept {
    at: Instant,
    took: Duration,
    services: Arc<Vec<ServiceCensus>>,
    each: Arc<(Vec<CredentialCensus>, bool)>,
}

impl Kept {
    fn is_good(&self, now: Instant) -> bool {
        now.duration_since(self.at) < KEPT_AT_LEAST.max(self.took.saturating_mul(KEPT_TIMES))
    }
}

impl Scraped {
    pub fn new(options: Options, access: Access, reader: Reader, meter: Arc<Meter>) -> Self {
        Self {
            options,
            access,
            reader: Arc::new(Mutex::new(reader)),
            meter,
            census: tokio::sync::Mutex::default(),
            answers: Mutex::default(),
        }
    }

    async fn census(&self) -> Result<Kept, Refused> {
        let mut kept = self.census.lock().await;
        if let Some(good) = kept.as_ref().filter(|kept| kept.is_good(Instant::now())) {
            return Ok(good.clone());
        }
        let per_credential = self.options.per_credential;
        let (at, began) = (Instant::now(), std::time::Instant::now());
        let (services, each) = self
            .read(move |reader| {
                let each = match per_credential {
                    true => reader.each_credential(limits::METRICS_CREDENTIALS)?,
                    false => Default::default(),
                };
                Ok((reader.census(now())?, each))
            })
            .await?;
        let new = Kept { at, took: began.elapsed(), services: Arc::new(services), each: Arc::new(each) };
        *kept = Some(new.clone());
        Ok(new)
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Refused> {
        let reader = Arc::clone(&self.reader);
        let answer = tokio::task::spawn_blocking(move || {
            query(&reader.lock().unwrap_or_else(PoisonError::into_inner))
        });
        answer.await.ok().and_then(Result::ok).ok_or_else(unavailable)
    }
}

fn unavailable() -> Refused {
    let message = "the numbers can't be read now";
    Refused::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message).again_after(5)
}

pub fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
) -> Response {
    let scraped = async {
        match shared.scraped.access {
            Access::Open => shared.gate.no_other_site(&headers)?,
            Access::Token => {
                let bearer = api::admit(&shared, &peer, &headers, Scope::Metrics).await?;
                api::used(&shared, &bearer).await;
            }
        }
        scrape(&shared).await
    };
    match scraped.await {
        Ok(page) => {
            let wants_open = wants_openmetrics(&headers);
            let (kind, body) = if wants_open { (OPENMETRICS, page) } else { (PROMETHEUS, classic(&page)) };
            let mut response = (StatusCode::OK, FIXED, body).into_response();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            response
        }
        Err(refused) => shared.refuse(refused),
    }
}

fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.contains("application/openmetrics-text")
}

/// Counts every answer of the port by its route, which are few; what has none is one of them.
pub async fn counted(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = match request.method().as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        _ => "other",
    };
    let response = next.run(request).await;
    let key = (route.unwrap_or_else(|| "none".into()), method, response.status().as_u16());
    let mut answers = shared.scraped.answers.lock().unwrap_or_else(PoisonError::into_inner);
    *answers.entry(key).or_default() += 1;
    response
}

async fn scrape(shared: &Arc<Shared>) -> Result<String, Refused> {
    let began = std::time::Instant::now();
    let Ok(Outcome::Vitals(vitals)) = (shared.command)(Operation::Vitals).await else {
        return Err(unavailable());
    };
    let scraped = &shared.scraped;
    let census = scraped.census().await?;
    let names: Vec<String> = census.services.iter().map(|service| service.service.clone()).collect();
    let pids: Vec<_> = vitals.workers.iter().map(|worker| worker.pid).collect();
    let (dues, size, external, hosts, memory, process) = scraped
        .read(move |reader| {
            let dues = names.iter().map(|name| reader.first_due(name)).collect::<Result<Vec<_>, _>>()?;
            let external = reader.external_workers(now())?;
            let external = external.into_iter().map(|worker| (worker.service, worker.presence.as_str()));
            let memory: Vec<_> = pids.into_iter().map(|pid| pid.and_then(resident)).collect();
            let hosts = reader.hosts(now())?;
            Ok((dues, reader.size()?, count(external), hosts, memory, Process::look()))
        })
        .await?;
    let page = Page {
        now: now(),
        vitals: *vitals,
        memory,
        census,
        dues,
        size,
        external,
        hosts,
        process,
        counts: scraped.meter.services(),
        progress: shared.writer.progress().borrow().clone(),
        port: shared.port.status().counted,
        waiting: shared.port.status().waiting as u64,
        answers: scraped.answers.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        began,
    };
    // Made by one thread, for a page of ten thousand credentials takes its milliseconds.
    let page = tokio::task::spawn_blocking(move || render(page));
    page.await.ok().flatten().ok_or_else(unavailable)
}

fn count<K: Ord>(of: impl Iterator<Item = K>) -> BTreeMap<K, u64> {
    of.fold(BTreeMap::new(), |mut counts, key| {
        *counts.entry(key).or_default() += 1;
        counts
    })
}

fn render(page: Page) -> Option<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(page));
    let mut text = String::new();
    text::encode(&mut text, &registry).ok().map(|()| text)
}

/// OpenMetrics in the words of the older format, whose counters are named as their samples are.
/// Pure.
fn classic(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut help = "";
    let mut push = |line: &[&str]| {
        line.iter().for_each(|part| text.push_str(part));
        text.push('\n');
    };
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest;
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some(words) = help.strip_prefix(name) {
                push(&["# HELP ", name, suffix, words]);
            }
            push(&["# TYPE ", name, suffix, " ", kind]);
        } else if !line.starts_with('#') {
            push(&[line]);
        }
    }
    text
}

/// Bytes of a process's memory that are its own or shared, as the kernel counts them.
fn resident(pid: u32) -> Option<u64> {
    resident_in(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn resident_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// What the kernel counts processor time in for programs, on every machine that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The daemon's own process, by the names that exporters share.
#[derive(Debug, Default)]
struct Process {
    resident: Option<u64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
    threads: Option<u64>,
    cpu_seconds: Option<f64>,
    /// Since 1970.
    start_seconds: Option<f64>,
}

impl Process {
    fn look() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name is in brackets and may hold anything.
        let fields: Vec<f64> = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest.split(' ').map(|field| field.trim().parse().unwrap_or(0.0)).collect())
            .unwrap_or_default();
        // Numbered as in proc(5), where the state is the third.
        let field = |number: usize| fields.get(number - 3).copied();
        let uptime = std::fs::read_to_string("/proc/uptime").ok();
        let uptime = uptime.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
        Self {
            resident: resident(std::process::id()),
            open_fds: std::fs::read_dir("/proc/self/fd").ok().map(|all| all.count() as u64),
            max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            threads: field(20).map(|threads| threads as u64),
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS_PER_SECOND),
            start_seconds: field(22)
                .zip(uptime)
                .map(|(start, uptime)| now() as f64 / 1_000.0 - (uptime - start / TICKS_PER_SECOND)),
        }
    }
}

/// All that one scrape shows.
struct Page {
    now: Millis,
    vitals: Vitals,
    /// Of each worker of `vitals`.
    memory: Vec<Option<u64>>,
    census: Kept,
    /// Of each service of the census.
    dues: Vec<Option<Millis>>,
    size: (u64, u64),
    external: BTreeMap<(String, &'static str), u64>,
    hosts: Vec<HostRow>,
    process: Process,
    counts: Vec<(String, Arc<OfService>)>,
    progress: Progress,
    port: Counted,
    waiting: u64,
    answers: BTreeMap<(String, &'static str, u16), u64>,
    began: std::time::Instant,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page(…)")
    }
}

type Labels = Vec<(&'static str, String)>;

fn of(service: &str) -> Labels {
    vec![("service", service.to_owned())]
}

fn with(service: &str, name: &'static str, value: &str) -> Labels {
    vec![("service", service.to_owned()), (name, value.to_owned())]
}

/// Writes families one after another.
struct Sheet<'e>(DescriptorEncoder<'e>);

type Written = Result<(), fmt::Error>;

impl Sheet<'_> {
    fn counter(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Written {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in rows {
            family
                .encode_family(&labels)?
                .encode_counter::<Labels, f64, f64>(&value, None::<&Exemplar<_, _>>)?;
        }
        Ok(())
    }

    fn gauge(
        &mut self,
        name: &str,
        unit: Option<&Unit>,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Written {
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in rows {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn times<'t>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, &'t Times)>,
    ) -> Written {
        let mut family = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, times) in rows {
            let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(times.counts()).collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let mut one = family.encode_family(&labels)?;
            one.encode_histogram::<Labels>(times.sum().as_secs_f64(), count, &buckets, None)?;
        }
        Ok(())
    }
}

fn seconds(at: Millis) -> f64 {
    at as f64 / 1_000.0
}

fn flag(on: bool) -> f64 {
    if on { 1.0 } else { 0.0 }
}

fn one(value: f64) -> [(Labels, f64); 1] {
    [(Labels::new(), value)]
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Written {
        let mut sheet = Sheet(encoder);
        self.work(&mut sheet)?;
        self.credentials(&mut sheet)?;
        self.workers(&mut sheet)?;
        self.writer(&mut sheet)?;
        self.port(&mut sheet)?;
        self.process(&mut sheet)
    }
}

impl Page {
    fn work(&self, sheet: &mut Sheet<'_>) -> Written {
        let counts = &self.counts;
        let attempts = counts.iter().flat_map(|(service, counts)| {
            ACTIONS.iter().enumerate().flat_map(move |(action, name)| {
                VERDICTS.iter().enumerate().map(move |(verdict, word)| {
                    let mut labels = with(service, "action", name);
                    labels.push(("verdict", (*word).to_owned()));
                    (labels, counts.attempts(action, verdict) as f64)
                })
            })
        });
        sheet.counter("keywheel_attempts", None, "Attempts that ended, by what was found", attempts)?;
        let times = counts.iter().flat_map(|(service, counts)| {
            ACTIONS
                .iter()
                .enumerate()
                .map(move |(action, name)| (with(service, "action", name), counts.attempt_times(action)))
        });
        sheet.times("keywheel_attempt_duration", "Time from the claim to the report, of attempts", times)?;
        let rotations = counts.iter().map(|(service, counts)| (of(service), counts.rotations() as f64));
        sheet.counter(
            "keywheel_rotations",
            None,
            "New secrets that came into force by a rotation",
            rotations,
        )?;
        let requests = counts.iter().flat_map(|(service, counts)| {
            OUTCOMES.iter().enumerate().map(move |(place, outcome)| {
                (with(service, "outcome", outcome), counts.requests(place) as f64)
            })
        });
        sheet.counter(
            "keywheel_egress_requests",
            None,
            "Requests to services, redirects one by one, by the kind of answer or what was in the way",
            requests,
        )?;
        let times = counts.iter().map(|(service, counts)| (of(service), counts.request_times()));
        sheet.times(
            "keywheel_egress_request_duration",
            "Time to the headers of a service's answer, waiting for a turn included",
            times,
        )
    }

    fn credentials(&self, sheet: &mut Sheet<'_>) -> Written {
        let services = &*self.census.services;
        let states = services.iter().flat_map(|of| {
            let named = STATES.iter().zip(of.states);
            named.map(move |(state, count)| (with(&of.service, "state", state), count as f64))
        });
        sheet.gauge(
            "keywheel_credentials",
            None,
            "Credentials by how they stood at their last report",
            states,
        )?;
        let each = |value: fn(&ServiceCensus) -> u64| {
            services.iter().map(move |one| (of(&one.service), value(one) as f64))
        };
        sheet.gauge(
            "keywheel_credentials_failing",
            None,
            "Credentials whose last attempt did not succeed",
            each(|one| one.failing),
        )?;
        sheet.gauge(
            "keywheel_consecutive_failures_max",
            None,
            "The most failures in a row of a credential",
            each(|one| one.most_failures),
        )?;
        sheet.gauge(
            "keywheel_credentials_scheduled",
            None,
            "Credentials that are looked at by themselves",
            each(|one| one.scheduled),
        )?;
        sheet.gauge(
            "keywheel_credentials_due",
            None,
            "Credentials that are due and not claimed yet",
            each(|one| one.due),
        )?;
        sheet.gauge(
            "keywheel_credentials_expired",
            None,
            "Credentials whose secret is past its end, as far as that is known",
            each(|one| one.expired),
        )?;
        let expiring = services.iter().flat_map(|of| {
            let named = WINDOWS.iter().zip(of.expiring);
            named.map(move |(window, count)| (with(&of.service, "within", window), count as f64))
        });
        sheet.gauge(
            "keywheel_credentials_expiring",
            None,
            "Credentials whose secret ends within the time, those of shorter times included",
            expiring,
        )?;
        let next = services.iter().filter_map(|one| Some((of(&one.service), seconds(one.next_expiry?))));
        sheet.gauge(
            "keywheel_earliest_expiry_timestamp",
            Some(&Unit::Seconds),
            "When the next secret ends",
            next,
        )?;
        let lag = services.iter().zip(&self.dues).map(|(one, due)| {
            // What is paused is due for as long as it likes.
            let is_served = self.vitals.services.contains(&one.service);
            let is_waited_for = is_served && !self.vitals.paused.contains(&one.service);
            let late = due.filter(|_| is_waited_for).map_or(0, |due| self.now.saturating_sub(due));
            (of(&one.service), seconds(late))
        });
        sheet.gauge(
            "keywheel_schedule_lag",
            Some(&Unit::Seconds),
            "How long the credential that is due first has been, of services that aren't paused",
            lag,
        )?;
        let vitals = &self.vitals;
        let served =
            services.iter().map(|one| (of(&one.service), flag(vitals.services.contains(&one.service))));
        sheet.gauge("keywheel_service_served", None, "1 where a plugin serves the service", served)?;
        let paused =
            services.iter().map(|one| (of(&one.service), flag(vitals.paused.contains(&one.service))));
        sheet.gauge(
            "keywheel_service_paused",
            None,
            "1 where nothing of the service is done by itself",
            paused,
        )?;
        let held = services.iter().map(|one| (of(&one.service), flag(vitals.held.contains(&one.service))));
        sheet.gauge("keywheel_service_held", None, "1 where a limit or a 429 holds the service up", held)?;
        sheet.gauge(
            "keywheel_attempts_in_flight",
            None,
            "Attempts that run now",
            one(vitals.in_flight as f64),
        )?;
        sheet.gauge(
            "keywheel_census_age",
            Some(&Unit::Seconds),
            "How long ago credentials were counted for this page",
            one(self.census.at.elapsed().as_secs_f64()),
        )?;
        sheet.gauge(
            "keywheel_census_duration",
            Some(&Unit::Seconds),
            "How long the count took",
            one(self.census.took.as_secs_f64()),
        )?;
        self.each_credential(sheet)
    }

    /// Nothing, unless the operator asked for it.
    fn each_credential(&self, sheet: &mut Sheet<'_>) -> Written {
        let (rows, more) = &*self.census.each;
        if rows.is_empty() {
            return Ok(());
        }
        let labels = |row: &CredentialCensus| with(&row.service, "credential", &row.credential_id);
        sheet.gauge(
            "keywheel_credential_valid",
            None,
            "1 where the credential's last report was a success",
            rows.iter().map(|row| (labels(row), flag(row.is_valid))),
        )?;
        sheet.gauge(
            "keywheel_credential_consecutive_failures",
            None,
            "Failures in a row",
            rows.iter().map(|row| (labels(row), row.failures as f64)),
        )?;
        sheet.gauge(
            "keywheel_credential_last_success_timestamp",
            Some(&Unit::Seconds),
            "When it was last found alive",
            rows.iter().filter_map(|row| Some((labels(row), seconds(row.last_success?)))),
        )?;
        sheet.gauge(
            "keywheel_credential_expiry_timestamp",
            Some(&Unit::Seconds),
            "When its secret ends",
            rows.iter().filter_map(|row| Some((labels(row), seconds(row.expires?)))),
        )?;
        sheet.gauge(
            "keywheel_credentials_left_out",
            None,
            "1 where there are more credentials than may have series of their own",
            one(flag(*more)),
        )
    }

    fn workers(&self, sheet: &mut Sheet<'_>) -> Written {
        let workers = &self.vitals.workers;
        let up = workers.iter().map(|worker| (of(&worker.service), flag(worker.state == "running")));
        sheet.gauge(
            "keywheel_worker_up",
            None,
            "1 where the service's worker runs; idle ones are stopped",
            up,
        )?;
        let parked = workers.iter().map(|worker| (of(&worker.service), flag(worker.state == "parked")));
        sheet.gauge(
            "keywheel_worker_parked",
            None,
            "1 where the worker died too often to be started again",
            parked,
        )?;
        let starts = workers.iter().map(|worker| (of(&worker.service), f64::from(worker.starts)));
        sheet.counter("keywheel_worker_starts", None, "Worker processes started", starts)?;
        let crashes = workers.iter().map(|worker| (of(&worker.service), f64::from(worker.crashes)));
        sheet.counter("keywheel_worker_crashes", None, "Worker processes that died", crashes)?;
        let calls = workers.iter().map(|worker| (of(&worker.service), f64::from(worker.in_flight)));
        sheet.gauge("keywheel_worker_calls", None, "Calls that run in the worker now", calls)?;
        let memory = workers.iter().zip(&self.memory);
        let memory = memory.filter_map(|(worker, bytes)| Some((of(&worker.service), (*bytes)? as f64)));
        sheet.gauge(
            "keywheel_worker_resident_memory",
            Some(&Unit::Bytes),
            "Memory of the worker process",
            memory,
        )?;
        let states = count(self.hosts.iter().map(|host| host.state));
        let hosts = HostState::ALL.map(|state| {
            (vec![("state", state.as_str().to_owned())], states.get(&state).copied().unwrap_or(0) as f64)
        });
        sheet.gauge("keywheel_hosts", None, "Hosts that share the store, by how they are", hosts)?;
        let open = |count: fn(&HostRow) -> u32| {
            let of = move |host: &HostRow| (vec![("host", host.name.clone())], f64::from(count(host)));
            self.hosts.iter().filter(|host| host.state != HostState::Stopped).map(of)
        };
        sheet.gauge(
            "keywheel_host_open_attempts",
            None,
            "Attempts that a host has open, by the journal",
            open(|host| host.open_attempts),
        )?;
        sheet.gauge(
            "keywheel_host_lapsed_attempts",
            None,
            "Of these, attempts whose lease has run out, which another host takes over",
            open(|host| host.lapsed),
        )?;
        let external = self.external.iter();
        let external =
            external.map(|((service, presence), count)| (with(service, "presence", presence), *count as f64));
        sheet.gauge(
            "keywheel_external_workers",
            None,
            "Workers that report over HTTP, by presence",
            external,
        )?;
        let plugins = self.vitals.plugins.iter();
        let plugins = plugins.map(|(state, count)| (vec![("state", state.clone())], *count as f64));
        sheet.gauge("keywheel_plugins", None, "Files of the plugin folder by state", plugins)?;
        sheet.gauge(
            "keywheel_clock_behind",
            Some(&Unit::Seconds),
            "How far the services' clocks are ahead of this host's, where that matters, else 0",
            one(self.vitals.clock_behind.unwrap_or(0) as f64 / 1_000.0),
        )
    }

    fn writer(&self, sheet: &mut Sheet<'_>) -> Written {
        let progress = &self.progress;
        let all = |count: u64| one(count as f64);
        sheet.counter("keywheel_db_commits", None, "Transactions on disk", all(progress.commits))?;
        sheet.counter("keywheel_db_commands", None, "Commands in them", all(progress.commands))?;
        sheet.counter(
            "keywheel_db_failed_tries",
            None,
            "Tries to write that failed; the next may have succeeded",
            all(progress.failed_tries),
        )?;
        let busy = one(progress.busy.as_secs_f64());
        sheet.counter("keywheel_db_busy", Some(&Unit::Seconds), "Time spent in transactions", busy)?;
        sheet.gauge(
            "keywheel_db_write_failing",
            None,
            "1 while the database can't be written and rotations are stopped",
            one(flag(progress.failing.is_some())),
        )?;
        let (file, log) = self.size;
        let sizes = [("main", file), ("log", log)]
            .map(|(part, bytes)| (vec![("part", part.to_owned())], bytes as f64));
        sheet.gauge("keywheel_db_size", Some(&Unit::Bytes), "The database's file and its log", sizes)
    }

    fn port(&self, sheet: &mut Sheet<'_>) -> Written {
        let answers = self.answers.iter().map(|((route, method, status), count)| {
            let labels = vec![
                ("route", route.clone()),
                ("method", (*method).to_owned()),
                ("status", status.to_string()),
            ];
            (labels, *count as f64)
        });
        sheet.counter("keywheel_http_answers", None, "Answers of the HTTP port, by route", answers)?;
        let refused = self.port.refused.iter();
        let refused = refused.map(|(code, count)| (vec![("code", code.clone())], *count as f64));
        sheet.counter(
            "keywheel_http_refusals",
            None,
            "Requests that were refused, by the answer's code",
            refused,
        )?;
        let reports = [("accepted", self.port.accepted), ("duplicate", self.port.duplicates)];
        let reports = reports.map(|(result, count)| (vec![("result", result.to_owned())], count as f64));
        sheet.counter("keywheel_worker_reports", None, "Reports of external workers", reports)?;
        sheet.gauge(
            "keywheel_api_waiting",
            None,
            "Clients that wait for a newer generation",
            one(self.waiting as f64),
        )
    }

    fn process(&self, sheet: &mut Sheet<'_>) -> Written {
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        sheet.gauge("keywheel_build_info", None, "The version that runs", [(version, 1.0)])?;
        let process = &self.process;
        let known = |value: Option<u64>| value.map(|value| (Labels::new(), value as f64));
        sheet.gauge(
            "process_resident_memory",
            Some(&Unit::Bytes),
            "Memory of the daemon",
            known(process.resident),
        )?;
        sheet.gauge("process_open_fds", None, "Open descriptors of the daemon", known(process.open_fds))?;
        sheet.gauge("process_max_fds", None, "As many as it may have", known(process.max_fds))?;
        sheet.gauge("process_threads", None, "Threads of the daemon", known(process.threads))?;
        let cpu = process.cpu_seconds.map(|value| (Labels::new(), value));
        sheet.counter("process_cpu", Some(&Unit::Seconds), "Processor time of the daemon", cpu)?;
        let start = process.start_seconds.map(|value| (Labels::new(), value));
        sheet.gauge("process_start_time", Some(&Unit::Seconds), "When the daemon started", start)?;
        sheet.gauge(
            "keywheel_scrape_duration",
            Some(&Unit::Seconds),
            "How long this page took until here",
            one(self.began.elapsed().as_secs_f64()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_counters_as_their_samples_and_has_no_units() {
        let page = "# HELP a_seconds Time\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\na_seconds_total 1\n# HELP b Things\n# TYPE b gauge\nb{x=\"# TYPE\"} 2\n# EOF\n";
        assert_eq!(
            classic(page),
            "# HELP a_seconds_total Time\n# TYPE a_seconds_total counter\na_seconds_total 1\n# HELP b Things\n# TYPE b gauge\nb{x=\"# TYPE\"} 2\n"
        );
    }

    #[test]
    fn a_count_is_kept_for_fifty_times_what_it_took() {
        let at = Instant::now();
        for (took, after, expected) in
            [(0, 1_999, true), (0, 2_000, false), (100, 4_999, true), (100, 5_000, false)]
        {
            let took = Duration::from_millis(took);
            let kept = Kept { at, took, services: Arc::default(), each: Arc::default() };
            assert_eq!(kept.is_good(at + Duration::from_millis(after)), expected, "{took:?} {after}");
        }
    }

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        for (accept, expected) in [
            (None, false),
            (Some("*/*"), false),
            (Some("text/plain;version=0.0.4;q=0.5"), false),
            (
                Some(
                    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75",
                ),
                true,
            ),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(wants_openmetrics(&headers), expected, "{accept:?}");
        }
    }
}
