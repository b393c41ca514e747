//! The commands that `docs/writing-a-provider.md` begins with, run as a newcomer runs them: in an
//! empty folder, nothing built before, up to the first report. What they print is
//! `docs/first-provider.txt`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use crate::docs::blocks;
use crate::harness::*;

/// Writes the transcript anew where it is set, in place of comparing.
const WRITE: &str = "KEYWHEEL_WRITE_TRANSCRIPT";

/// The service of the page: `/api/me` says whose token it is, and a renewal swaps it.
struct Forge {
    url: String,
    token: String,
    fresh: String,
}

impl Forge {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let forge = Self { url, token: random_secret(), fresh: random_secret() };
        let (old, fresh) = (forge.token.clone(), forge.fresh.clone());
        // Ends with the test process.
        std::thread::spawn(move || {
            let mut alive = old;
            for stream in listener.incoming().flatten() {
                // A client that hung up is no error of the forge.
                let _ = Self::answer(stream, &mut alive, &fresh);
            }
        });
        forge
    }

    fn answer(mut stream: TcpStream, alive: &mut String, fresh: &str) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut request, mut token, mut length) = (String::new(), String::new(), 0);
        reader.read_line(&mut request)?;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => token = value.trim_start_matches("Bearer ").to_owned(),
                "content-length" => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        reader.take(length).read_to_end(&mut Vec::new())?;
        let known = token == *alive;
        let (status, body) = if known && request.starts_with("GET /api/me ") {
            (200, r#"{"login":"ann"}"#.to_owned())
        } else if known && request.starts_with("POST /api/token/renew ") {
            fresh.clone_into(alive);
            (200, format!(r#"{{"token":"{fresh}","expires_in":2592000}}"#))
        } else {
            (401, r#"{"error":"no such token"}"#.to_owned())
        };
        write!(
            stream,
            "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }
}

/// Runs a line of the page and returns what it printed, both streams in their order.
fn type_in(line: &str, folder: &Path, home: &TestHome) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_keywheel")).parent().expect("a folder").display();
    let path = std::env::var("PATH").expect("a PATH");
    let mut shell = command("bash");
    shell.args(["-c", &format!("set -o pipefail; {{ {line}\n}} 2>&1")]).current_dir(folder);
    shell.env("PATH", format!("{program}:{path}")).env("KEYWHEEL_HOME", home.path());
    // The crates are here since this test was built; what this run has of cargo's is not a newcomer's.
    shell.env("CARGO_NET_OFFLINE", "true").env_remove("CARGO_TARGET_DIR");
    let output = shell.output().expect("bash starts");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{line}\n{said}");
    said
}

/// Without what differs from run to run: the compiler's progress, digests, times.
fn settled(line: &str, said: &str) -> String {
    let is_progress = |line: &&str| {
        let word = line.split_whitespace().next().unwrap_or_default();
        ["Blocking", "Compiling", "Downloading", "Downloaded", "Locking", "Updating", "Adding", "Running"]
            .contains(&word)
    };
    let mut text = String::new();
    for said in said.lines().filter(|said| !line.starts_with("cargo") || !is_progress(said)) {
        let said = said.split("; finished in ").next().unwrap_or(said);
        let said = match said.split_once(" target(s) in ") {
            Some((before, _)) => format!("{before} target(s)"),
            None => said.to_owned(),
        };
        let words: Vec<String> = said
            .split(' ')
            .map(|word| match word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                true => "…".to_owned(),
                false => word.to_owned(),
            })
            .collect();
        text.push_str(words.join(" ").trim_end());
        text.push('\n');
    }
    aligned(text.trim_matches('\n'))
}

/// Tables as a terminal shows them: a pipe gets a tab between two columns.
fn aligned(text: &str) -> String {
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let is_row = |row: &&Vec<&str>| row.len() > 1;
    let width = |place: usize| {
        let cells = rows.iter().filter(is_row).filter_map(|row| row.get(place));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let padded = |row: &Vec<&str>| {
        let cells = row.iter().enumerate().map(|(place, cell)| match row.len() {
            1 => (*cell).to_owned(),
            _ => format!("{cell:<wide$}  ", wide = width(place)),
        });
        cells.collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(padded).collect::<Vec<_>>().join("\n")
}

/// Without the count of calls, which grows with what the kit demands.
fn comparable(transcript: &str) -> String {
    let counted = |line: &str| match line.split_once(" holds in ") {
        Some((what, counts)) => format!("{what} holds in {}", counts.split_once(' ').unwrap_or_default().1),
        None => line.to_owned(),
    };
    transcript.lines().map(counted).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_newcomer_has_a_running_provider_by_the_commands_of_the_page() {
    let page = fs::read_to_string(source("docs/writing-a-provider.md")).expect("the page");
    let (_, section) = page.split_once("\n## From an empty folder").expect("the section");
    let commands: Vec<&str> = blocks(section).first().expect("a block").lines().collect();
    let (forge, home) = (Forge::start(), TestHome::new());
    let _daemon = home.serve();
    // Where cargo builds in this repository, and gone afterwards.
    let place = tempfile::Builder::new().prefix("newcomer-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let place = place.expect("a folder");
    let mut folder = place.path().to_owned();
    let mut transcript = String::new();
    let begin = Instant::now();
    for line in &commands {
        transcript.push_str(&format!("$ {line}\n"));
        if let Some(below) = line.strip_prefix("cd ") {
            folder.push(below);
            continue;
        }
        if line.starts_with("keywheel credential validate ") {
            // The daemon looks by itself at what was added, and whoever types takes a moment.
            home.wait_for_reports("ann", 1);
        }
        // The page's address and secret are nobody's; a forge is at hand here.
        let typed = line.replace("https://forge.example", &forge.url).replace('…', &forge.token);
        let step = Instant::now();
        let said = type_in(&typed, &folder, &home);
        eprintln!("{:6.1} s  {line}", step.elapsed().as_secs_f32());
        assert!(!said.contains(&forge.token), "{line} prints the token");
        let shown = settled(line, &said.replace(&forge.url, "https://forge.example"));
        if !shown.is_empty() {
            transcript.push_str(&format!("{shown}\n"));
        }
        transcript.push('\n');
    }
    let reports = home.wait_for_reports("ann", 1);
    eprintln!("{:6.1} s  from the empty folder to the first report", begin.elapsed().as_secs_f32());
    assert_eq!(reports[0]["status"], "success", "{}", reports[0]);
    assert_eq!(home.json(&["credential", "list"])[0]["identity"], "ann");

    // The lock file that came along was right: cargo added nothing to it.
    let lock = fs::read_to_string(folder.join("Cargo.lock")).expect("the lock file");
    let ours = fs::read_to_string(source("Cargo.lock")).expect("ours");
    for package in lock.split("[[package]]\n").skip(1).filter(|package| package.contains("checksum = ")) {
        let head = package.split("dependencies = ").next().unwrap_or(package).trim_end();
        assert!(ours.contains(head), "not what Keywheel was tested with:\n{package}");
    }

    // A stranger's plugin comes out as small as ours.
    let plugin = folder.join("target/wasm32-wasip2/release/forge_provider.wasm");
    let size = fs::metadata(&plugin).expect("the plugin").len();
    assert!(size < crate::catalogue::ROOM, "{} has {size} bytes", plugin.display());

    // It rotates as well, for real.
    let report = home.json(&["credential", "rotate", "ann"]);
    assert_eq!(report["meta"]["rotated"], true, "{report}");
    let exported = home.run(&["credential", "export", "ann", "--format", "json"]).ok().json();
    assert_eq!(exported["token"]["value"], forge.fresh.as_str());

    let transcript = format!("{}\n", transcript.trim_end());
    let file = source("docs/first-provider.txt");
    if std::env::var_os(WRITE).is_some() {
        fs::write(&file, &transcript).expect("the transcript");
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    let (transcript, written) = (comparable(&transcript), comparable(&written));
    let differs = transcript.lines().zip(written.lines()).find(|(now, then)| now != then);
    assert!(
        transcript == written,
        "docs/first-provider.txt shows something else: {differs:#?}; hint: {WRITE}=1 writes it anew\n{transcript}"
    );
}
