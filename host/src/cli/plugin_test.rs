//! `plugin test`: runs a plugin's fixtures in the conformance kit and tells what it found. It
//! needs no home and no daemon.

use std::path::{Path, PathBuf};

use comfy_table::Cell;

use super::Failure;
use super::output::{Output, coloured};
use super::progress::Progress;
use crate::kit::checks::{self, Check, Finding, Report, Weight};
use crate::kit::fixture::{self, FixtureError};
use crate::kit::{Kit, KitError, Options};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The plugin: a .wasm file, or a .toml template
    file: PathBuf,
    /// Where its fixtures are [default: the folder `fixtures` of its project, or beside it]
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Let a warning count as a fault
    #[arg(long)]
    strict: bool,
}

/// What marks the folder of a project.
const PROJECT: [&str; 3] = ["Cargo.toml", "package.json", "pyproject.toml"];

pub async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let Arguments { file, fixtures, strict } = arguments;
    let mut report = look(&file, fixtures).await?;
    if strict {
        report.strictly();
    }
    tell(&file, &report, output);
    if report.held() { Ok(()) } else { Err(Failure::Unhealthy) }
}

/// What the kit finds in a plugin file.
pub async fn look(file: &Path, fixtures: Option<PathBuf>) -> Result<Report, Failure> {
    let _progress = Progress::of("running its fixtures in the sandbox");
    if !file.is_file() {
        let why = format!("{} is no file; hint: build the plugin first", file.display());
        return Err(Failure::NotFound(why));
    }
    let folder = match fixtures {
        Some(named) if !named.is_dir() => {
            return Err(Failure::NotFound(format!("--fixtures {} is no folder", named.display())));
        }
        Some(named) => Some(named),
        None => {
            let file = std::path::absolute(file)
                .map_err(Failure::io(format!("{} can't be found", file.display())))?;
            fixtures_of(&file)
        }
    };
    // All that is wrong with them at once, before anything is compiled.
    let read = match &folder {
        Some(folder) => fixture::read_folder(folder),
        None => Ok(Vec::new()),
    };
    let fixtures = match read {
        Ok(fixtures) => fixtures,
        Err(errors) if matches!(errors.as_slice(), [FixtureError::Empty { .. }]) => Vec::new(),
        Err(errors) => {
            let lines: Vec<_> = errors.iter().map(|error| super::with_causes(error)).collect();
            return Err(Failure::BadInput(lines.join("\n")));
        }
    };
    let mut report = match Kit::open(file, Options::default()).await {
        Ok(kit) => {
            let report = checks::check(&kit, &fixtures).await;
            kit.close().await;
            report?
        }
        Err(KitError::Refused(why)) => Report::refused(&why),
        Err(error) => return Err(error.into()),
    };
    if fixtures.is_empty() && report.service.is_some() {
        report.without_fixtures(&match &folder {
            Some(folder) => format!("{} holds none", folder.display()),
            None => format!("there is no folder `fixtures` in its project or beside {}", file.display()),
        });
    }
    Ok(report)
}

/// The fixtures of a plugin where nobody says: of the nearest project above it, or beside it; in
/// a folder of its own name, where several share the place.
pub fn fixtures_of(file: &Path) -> Option<PathBuf> {
    let is_project = |folder: &&Path| PROJECT.iter().any(|name| folder.join(name).is_file());
    let project = file.ancestors().skip(1).find(is_project);
    let places = project.into_iter().chain(file.parent()).map(|folder| folder.join("fixtures"));
    let own = file.file_stem().unwrap_or_default();
    places.flat_map(|place| [place.join(own), place]).find(|place| place.is_dir())
}

pub fn tell(file: &Path, report: &Report, output: Output) {
    if output.json {
        output.json_line(report, true);
        return;
    }
    let of = |name: &str, found: &Finding| {
        let place = match (&found.fixture, found.exchange) {
            (Some(fixture), Some(exchange)) => format!("{fixture}.toml, exchange {exchange}: "),
            (Some(fixture), None) => format!("{fixture}.toml: "),
            (None, _) => String::new(),
        };
        format!("{name}: {place}{}", found.text)
    };
    for (name, found) in report.faults() {
        output.line(&format!("✗ {}", of(name, found)));
    }
    for (name, found) in report.findings(Weight::Warning) {
        output.line(&format!("! {}", of(name, found)));
    }
    if report.findings(Weight::Fault).chain(report.findings(Weight::Warning)).next().is_some() {
        output.line("");
    }
    output.table(
        &report.checks,
        &["", "check", "what holds", "found"],
        |check| {
            vec![
                Cell::new(mark(check)),
                Cell::new(check.name),
                Cell::new(check.about),
                coloured(&counted(check)),
            ]
        },
        "",
    );
    output.line("");
    for (_, found) in report.findings(Weight::Note) {
        output.line(&format!("  {}", found.text));
    }
    let what = match (&report.service, &report.version) {
        (Some(service), Some(version)) => format!("`{service}` {version}"),
        _ => file.display().to_string(),
    };
    let faults = report.faults().count();
    output.line(&match faults {
        0 => format!("{what} holds in {} calls with {} fixtures", report.calls, report.fixtures),
        1 => format!("{what} has 1 fault"),
        _ => format!("{what} has {faults} faults"),
    });
}

fn mark(check: &Check) -> &'static str {
    match (check.made, check.held()) {
        (false, _) => "–",
        (true, true) => "✓",
        (true, false) => "✗",
    }
}

fn counted(check: &Check) -> String {
    if !check.made {
        return "not looked at".to_owned();
    }
    let of = |weight| check.findings.iter().filter(|found| found.weight == weight).count();
    let words = |count: usize, word: &str| match count {
        0 => None,
        1 => Some(format!("1 {word}")),
        _ => Some(format!("{count} {word}s")),
    };
    let counted = [words(of(Weight::Fault), "fault"), words(of(Weight::Warning), "warning")];
    counted.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixtures_are_those_of_the_nearest_project_or_beside_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let file = at("project/target/wasm32-wasip2/release/forum.wasm");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        assert_eq!(fixtures_of(&file), None);
        std::fs::create_dir_all(at("project/target/wasm32-wasip2/release/fixtures")).unwrap();
        assert_eq!(fixtures_of(&file), Some(at("project/target/wasm32-wasip2/release/fixtures")));
        std::fs::write(at("project/Cargo.toml"), "").unwrap();
        std::fs::create_dir_all(at("project/fixtures")).unwrap();
        assert_eq!(fixtures_of(&file), Some(at("project/fixtures")));
        // Where several plugins share the place, each has a folder of its own.
        std::fs::create_dir_all(at("project/fixtures/forum")).unwrap();
        assert_eq!(fixtures_of(&file), Some(at("project/fixtures/forum")));
    }
}
