//! The first hour of somebody who is signed in to a site: one command from a browser's profile to
//! a session that is kept alive, with the real Firefox and the real Django site.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::Value;

use crate::docs::blocks;
use crate::harness::*;

/// Hands a browser the cookies of a sign-in; a cookie belongs to a host, whatever the port.
struct SignIn {
    url: String,
    session: Arc<Mutex<String>>,
}

impl SignIn {
    fn start(session: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let session = Arc::new(Mutex::new(session.to_owned()));
        let of_thread = Arc::clone(&session);
        // Ends with the test process.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().expect("a second descriptor"));
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    line.clear();
                }
                let session = of_thread.lock().expect("nobody panicked").clone();
                let year = "Path=/; Max-Age=31536000";
                // A browser that went away is no error of the site.
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: 5\r\n\
                     Set-Cookie: sessionid={session}; {year}; HttpOnly; SameSite=Lax\r\n\
                     Set-Cookie: csrftoken=not-the-session; {year}\r\nSet-Cookie: _ga=1; {year}\r\n\r\nhello"
                );
            }
        });
        Self { url, session }
    }

    /// Another session for the next visit.
    fn changes_to(&self, session: &str) {
        session.clone_into(&mut self.session.lock().expect("nobody panicked"));
    }
}

/// Firefox as whoever has this home runs it.
fn firefox(home: &TestHome, arguments: &[&str]) -> Command {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| set_up("firefox"));
    let mut browser = command("firefox-esr");
    browser.arg("--headless").args(arguments);
    browser.env_clear().env("HOME", home.outside()).env("PATH", std::env::var_os("PATH").expect("a PATH"));
    browser.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    browser
}

/// A browser that stays open, with all of its processes.
struct Open(Child);

impl Open {
    fn start(home: &TestHome, url: &str) -> Self {
        let mut browser = firefox(home, &[url]);
        Self(browser.process_group(0).spawn().expect("it starts"))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        // Gone already, or about to be.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Runs a line as whoever has this home types it.
fn in_shell(home: &TestHome, line: &str) -> Output {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_keywheel")).parent().expect("a folder").display();
    let path = std::env::var("PATH").expect("a PATH");
    let mut shell = command("bash");
    shell.args(["-c", line]).env_clear().env("HOME", home.outside()).env("KEYWHEEL_HOME", home.path());
    let output = shell.env("PATH", format!("{program}:{path}")).stdin(Stdio::null()).output().expect("bash");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Output { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn issue(site: &Peer, user: &str) -> String {
    let issued = http("POST", &site.url(&format!("/test/issue/?user={user}")), &[]).json();
    issued["cookie"]["value"].as_str().expect("a session").to_owned()
}

#[test]
fn one_command_takes_a_session_from_firefox_to_being_kept_alive() {
    let (home, site) = (TestHome::without_init(), Peer::django(600));
    let session = issue(&site, "ann");
    let sign_in = SignIn::start(&session);
    let picture = home.outside().join("page.png");
    let visit = firefox(&home, &["--screenshot", picture.to_str().expect("UTF-8"), &sign_in.url]).status();
    assert!(visit.expect("Firefox runs").success());

    // What the README says to type, with this site in the shop's place and any free port.
    let page = fs::read_to_string(source("README.md")).expect("the page");
    let (_, section) = page.split_once("\n## First real use\n").expect("the section");
    let commands: Vec<String> = blocks(section)[0]
        .lines()
        .map(|line| {
            line.replace("https://shop.example", &site.url("")).replace("--http ", "--http 127.0.0.1:0 ")
        })
        .collect();
    let typed = |beginning: &str| {
        let line = commands.iter().find(|line| line.starts_with(beginning));
        line.unwrap_or_else(|| panic!("the README has no line that begins with {beginning}")).as_str()
    };
    let made = in_shell(&home, typed("keywheel init")).ok();
    assert!(made.stdout.starts_with("added `ann` to `http-session`: valid"), "{made:?}");
    assert!(made.stderr.contains("taken to be `sessionid`"), "{made:?}");
    for said in [
        "  next look   once a daemon runs: `keywheel serve`\n",
        "  rotation    before it expires",
        "  use it      keywheel credential export ann --format header --url http://127.0.0.1:",
        "  keywheel plugin install http-session\n  keywheel credential add ann --service http-session --from-browser firefox:",
        "--set cookie_name=sessionid --set validate_path=/account/ --set login_path=/login/\n  keywheel credential validate ann\n",
    ] {
        assert!(made.stdout.contains(said), "{}\nlacks {said}", made.stdout);
    }
    assert!(
        !made.stdout.contains(&session) && !made.stderr.contains(&session),
        "it is nowhere on the screen"
    );
    let config = fs::read_to_string(home.path().join("config.toml")).expect("the configuration");
    assert!(config.contains("\n[http]\n") && config.contains("\nlisten = \"127.0.0.1:0\"\n"), "{config}");
    typed("keywheel serve &");
    let daemon = home.serve();
    home.wait_for_reports("ann", 1);
    let status = in_shell(&home, typed("keywheel status")).ok();
    assert!(status.stdout.starts_with("Everything is fine: 1 credential, next look "), "{status:?}");
    let list = in_shell(&home, typed("keywheel credential list")).ok();
    assert!(list.stdout.lines().any(|line| line.starts_with("ann\thttp-session\tsuccess\t")), "{list:?}");
    let account = in_shell(&home, typed("curl ")).ok();
    assert_eq!(account.json()["user"], "ann", "the secret opens the page");
    in_shell(&home, typed("keywheel dashboard")).ok();
    assert!(daemon.stop().success());
    assert!(made.stderr.contains("a visitor without a session is sent to /login/"), "{made:?}");

    // The commands that it printed do the same in another home, while the browser is open.
    let other = TestHome::new();
    let fresh = issue(&site, "ben");
    sign_in.changes_to(&fresh);
    let _open = Open::start(&home, &sign_in.url);
    let line = made.stdout.lines().find(|line| line.contains("credential add ann")).expect("the command");
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    let add = || {
        // Firefox is where its user is.
        let output = other.command(&words).env("HOME", home.outside()).stdin(Stdio::null()).output();
        let output = output.expect("it ends");
        let exported = || other.run(&["credential", "export", "ann", "--format", "json"]).ok().json();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let value = exported()["session"]["value"].as_str().expect("text").to_owned();
        other.run(&["credential", "remove", "ann"]).ok();
        value
    };
    let daemon = other.serve();
    wait_until(SOON, "Firefox has written what it was given", || (add() == fresh).then_some(()));
    let again = other.command(&[&words[..], &["--json"]].concat()).env("HOME", home.outside()).output();
    let again: Value = serde_json::from_slice(&again.expect("it ends").stdout).expect("JSON");
    assert_eq!((&again["verdict"], &again["nextAction"]), (&"valid".into(), &"validate".into()), "{again}");
    assert_eq!(other.json(&["status"])["fine"], true);
    assert!(daemon.stop().success());
}

#[test]
fn what_would_not_be_kept_alive_is_not_kept() {
    let (home, site) = (TestHome::new(), Peer::django(600));
    let file = home.outside().join("cookies.txt");
    let save = |session: &str| {
        let line = format!("127.0.0.1\tFALSE\t/\tFALSE\t4102444800\tsessionid\t{session}\n");
        fs::write(&file, line).expect("a file");
    };
    let from = file.to_str().expect("UTF-8");
    let add = |page: &str, more: &[&str]| {
        let url = site.url(page);
        home.run(&[&["credential", "add", "ann", "--from", from, "--domain", &url], more].concat())
    };
    save(&random_secret());
    let dead = add("/account/", &[]);
    assert_eq!(dead.code(), 1, "{dead:?}");
    assert!(dead.stderr.contains("it is dead already"), "{dead:?}");
    save(&issue(&site, "ann"));
    // Anybody may see the statistics.
    let public = add("/stats/", &[]);
    assert_eq!(public.code(), 65, "{public:?}");
    assert!(public.stderr.contains("the same with a made-up session"), "{public:?}");
    let no_page = add("", &[]);
    assert_eq!(no_page.code(), 65, "{no_page:?}");
    assert!(
        no_page.stderr.contains("only a signed-in visitor see") && no_page.stderr.contains("/account"),
        "{no_page:?}"
    );
    assert_eq!(home.json(&["credential", "list"]), Value::Array(vec![]), "nothing half-done");

    let kept = add("/account/", &[]).ok();
    assert!(kept.stdout.starts_with("added `ann` to `http-session`: valid"), "{kept:?}");
    // Where nobody is, the question is told as an error, and what is missing by name.
    for (arguments, code, said) in [
        (&["init", "--domain", "shop.example"][..], 2, "--from-browser firefox"),
        (&["credential", "add", "x", "--from-browser", "chrome", "--domain", "shop.example"], 2, "keyring"),
        (
            &["credential", "add", "x", "--from-browser", "firefox", "--domain", "shop.example"],
            3,
            "no profile of Firefox",
        ),
        (&["credential", "add", "x", "--from", "/nowhere", "--domain", "ftp://x"], 65, "another scheme"),
    ] {
        let refused = home.run(arguments);
        assert_eq!(refused.code(), code, "{arguments:?}: {refused:?}");
        assert!(refused.stderr.contains(said), "{arguments:?}: {}", refused.stderr);
    }
    // The provider is found by what it is made for, and takes what it is made for.
    let foreign = home.run_with_input(&["credential", "add", "x", "--domain", "gitlab.com"], "session=x");
    assert_eq!(foreign.code(), 3, "{foreign:?}");
    assert!(foreign.stderr.contains("`gitlab`"), "{foreign:?}");
}

/// Answers the questions of `init` on a terminal.
#[test]
fn init_asks_on_a_terminal_and_says_how_to_do_without_questions() {
    let (home, site) = (TestHome::without_init(), Peer::django(600));
    let file = home.outside().join("cookies.txt");
    let session = issue(&site, "ann");
    let line = format!("127.0.0.1\tFALSE\t/\tFALSE\t4102444800\tsessionid\t{session}\n");
    fs::write(&file, line).expect("a file");
    let program = env!("CARGO_BIN_EXE_keywheel");
    let mut script = command("script");
    let inside = format!("stty cols 100 rows 40; {program} init");
    script.args(["--quiet", "--return", "--echo", "never", "--command", &inside, "/dev/null"]);
    script.env_clear().env("HOME", home.outside()).env("KEYWHEEL_HOME", home.path()).env("TERM", "xterm");
    script.env("PATH", std::env::var_os("PATH").expect("a PATH"));
    let log = home.outside().join("terminal.log");
    let shown = fs::File::create(&log).expect("a file");
    let mut child = script.stdin(Stdio::piped()).stdout(shown).stderr(Stdio::null()).spawn().expect("script");
    let mut keys = child.stdin.take().expect("piped");
    let account = site.url("/account/");
    for (question, answer) in [
        ("Open a port on 127.0.0.1:7878", "n".to_owned()),
        // Firefox has no profile here, so the file is the first choice.
        ("What shall be kept alive first?", "\r".to_owned()),
        ("The file", format!("{}\r", file.display())),
        ("The URL of a page", format!("{account}\r")),
        ("What to call it", "\r".to_owned()),
    ] {
        wait_until(SOON, &format!("it asks: {question}"), || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains(question)).then_some(())
        });
        keys.write_all(answer.as_bytes()).expect("it reads");
    }
    let status = wait_until(SOON, "init ends", || child.try_wait().expect("a child"));
    let text = fs::read_to_string(&log).expect("what was shown");
    assert!(status.success(), "{text}");
    assert!(text.contains("added `127.0.0.1` to `http-session`: valid"), "{text}");
    assert!(text.contains("The same without questions: keywheel init --yes --from "), "{text}");
    assert!(!text.contains(&session), "{text}");
    let config = fs::read_to_string(home.path().join("config.toml")).expect("the configuration");
    assert!(config.contains("\n#[http]\n"), "no port was wanted");
    assert_eq!(home.json(&["credential", "list"])[0]["credentialId"], "127.0.0.1");
}
