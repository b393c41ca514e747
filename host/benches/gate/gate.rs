//! The gate of CI: a short form of the benches that compares two things measured side by side,
//! and counts the instructions of the two hottest paths. Absolute times decide nothing here.
//!
//! Without an argument it prints what it finds. `--check` fails where a figure is too far from
//! the recorded one, after looking twice more at a ratio; `--record` writes down what it found.
//! `--recorded FILE` names another file of figures. `--instructions writer|exchange --rounds N`
//! is the work that it counts, as it starts it under callgrind.

#![expect(clippy::print_stdout, reason = "what is measured is the output")]

mod paths;
mod ratios;
mod recorded;
#[path = "../stage/mod.rs"]
mod stage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use recorded::{EXCHANGE_PATH, Figure, Recorded, WRITER_PATH};

/// A ratio that fails is measured so often again: a neighbour that wakes up is no regression.
const AGAIN: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Print,
    Check,
    Record,
}

struct Arguments {
    wish: Wish,
    file: PathBuf,
    work: Option<(String, usize)>,
}

fn arguments() -> Result<Arguments, String> {
    let mut all = std::env::args().skip(1);
    let mut file = None;
    let (mut wish, mut path, mut rounds) = (Wish::Print, None, 1);
    while let Some(argument) = all.next() {
        let mut value = || all.next().ok_or_else(|| format!("{argument} wants a value"));
        match argument.as_str() {
            // cargo says so to every bench.
            "--bench" => {}
            "--check" => wish = Wish::Check,
            "--record" => wish = Wish::Record,
            "--recorded" => file = Some(PathBuf::from(value()?)),
            "--instructions" => path = Some(value()?),
            "--rounds" => rounds = value()?.parse().map_err(|_| "--rounds wants a number")?,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    if wish == Wish::Record && file.is_none() && cfg!(debug_assertions) {
        return Err("an unoptimised build has no figures worth keeping; hint: make bench-record".into());
    }
    if wish == Wish::Record && !cfg!(target_arch = "x86_64") {
        return Err("figures are recorded on x86-64, for counts of instructions are".into());
    }
    let file = file.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded.json"));
    Ok(Arguments { wish, file, work: path.map(|path| (path, rounds)) })
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    if let Some((path, rounds)) = &arguments.work {
        return paths::work(path, *rounds);
    }
    let recorded = match arguments.wish {
        Wish::Check => read(&arguments.file)?,
        Wish::Print | Wish::Record => Recorded::new(),
    };
    let mut gate = Gate { wish: arguments.wish, recorded, measured: vec![], failures: vec![] };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(ratios::measure(&mut gate));
    drop(runtime);
    gate.count(&WRITER_PATH, "writer", paths::WRITER_ROUNDS)?;
    gate.count(&EXCHANGE_PATH, "exchange", paths::EXCHANGE_ROUNDS)?;

    if gate.wish == Wish::Record {
        std::fs::write(&arguments.file, recorded::write(&gate.measured))
            .map_err(|error| format!("{}: {error}", arguments.file.display()))?;
        println!("recorded in {}", arguments.file.display());
    }
    if gate.failures.is_empty() { Ok(()) } else { Err(gate.failures.join("\n")) }
}

fn read(file: &Path) -> Result<Recorded, String> {
    let why = |error: String| format!("{}: {error}; hint: make bench-record writes it anew", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| why(error.to_string()))?;
    recorded::read(&text).map_err(why)
}

/// What was found so far, and what of it fails.
pub struct Gate {
    wish: Wish,
    recorded: Recorded,
    measured: Vec<(&'static Figure, f64)>,
    failures: Vec<String>,
}

impl Gate {
    /// One ratio: the median over turns, each a ratio of two things done one after the other.
    pub async fn ratio(&mut self, figure: &'static Figure, mut turns: impl AsyncFnMut() -> Vec<f64>) {
        for again in 0..=AGAIN {
            let ratios = turns().await;
            let shown: Vec<String> = ratios.iter().map(|ratio| figure.shown(*ratio)).collect();
            let found = stage::median(ratios);
            println!("{:>24} {:>9}   turns: {}", figure.name, figure.shown(found), shown.join(" "));
            match self.judge(figure, found) {
                // Where nothing is recorded, another look finds nothing either.
                Err(why) if again < AGAIN && self.recorded.contains_key(figure.name) => {
                    println!("{why}\nmeasured again, lest it was a neighbour");
                }
                Err(why) => self.failures.push(why),
                Ok(()) => {
                    self.measured.push((figure, found));
                    return;
                }
            }
            if !self.recorded.contains_key(figure.name) {
                return;
            }
        }
    }

    fn count(&mut self, figure: &'static Figure, path: &str, rounds: usize) -> Result<(), String> {
        if !cfg!(target_arch = "x86_64") {
            println!("{:>24} left out: it is recorded on x86-64", figure.name);
            return Ok(());
        }
        let found = match paths::count(path, rounds) {
            Ok(found) => found,
            Err(why) if self.wish == Wish::Print => {
                println!("{:>24} left out: {why}", figure.name);
                return Ok(());
            }
            Err(why) => return Err(why),
        };
        println!("{:>24} {:>9}", figure.name, figure.shown(found));
        match self.judge(figure, found) {
            Ok(()) => self.measured.push((figure, found)),
            Err(why) => self.failures.push(why),
        }
        Ok(())
    }

    fn judge(&self, figure: &Figure, found: f64) -> Result<(), String> {
        match self.wish {
            Wish::Check => recorded::compare(figure, &self.recorded, found),
            Wish::Print | Wish::Record => Ok(()),
        }
    }
}
