//! The recorded figures, and which measured one is too far from its own. It measures nothing.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A ratio may be so far below the recorded one: machines differ, and neighbours disturb.
const RATIO_MAY_LOSE: f64 = 0.25;

/// Counts of instructions hardly vary; compilers and the seeds of hash tables make them do so a little.
const COUNT_MAY_GAIN: f64 = 0.10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The more the better.
    Ratio,
    /// The fewer the better.
    Instructions,
}

#[derive(Debug)]
pub struct Figure {
    pub name: &'static str,
    pub kind: Kind,
    /// How it is measured, in a sentence; the file has it beside the figure.
    pub how: &'static str,
}

pub const PIPELINE: Figure = Figure {
    name: "pipeline_ratio",
    kind: Kind::Ratio,
    how: "Fully isolated validate attempts per second to requests per second of bare reqwest at the same loopback service, one request each; median of the ratios of turns.",
};

pub const WRITER: Figure = Figure {
    name: "writer_ratio",
    kind: Kind::Ratio,
    how: "Ends of attempts per second through the writer to inserts per second of the same report rows into the same schema by SQLite alone, in batches as large as the writer's; median of the ratios of turns.",
};

pub const FRESH: Figure = Figure {
    name: "fresh_ratio",
    kind: Kind::Ratio,
    how: "Time of an instantiation alone of a component by wasmtime, with the pool's settings spelled out in the gate, to the time of a fresh instance and one call in it as a worker makes them; median of the ratios of turns.",
};

pub const WRITER_PATH: Figure = Figure {
    name: "writer_instructions",
    kind: Kind::Instructions,
    how: "Instructions for each attempt that the writer claims and ends, 128 to a batch, counted by callgrind on x86-64: the difference of two runs of which one does twice the work.",
};

pub const EXCHANGE_PATH: Figure = Figure {
    name: "exchange_instructions",
    kind: Kind::Instructions,
    how: "Instructions for the frames of one attempt, written and read at both ends, and for its request composed, judged, answered without a network and redacted; counted like writer_instructions.",
};

pub type Recorded = BTreeMap<String, f64>;

/// # Errors
/// In words: what of the file is no record.
pub fn read(text: &str) -> Result<Recorded, String> {
    let file: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let number = |(name, entry): (String, Value)| match entry["recorded"].as_f64() {
        Some(number) if number > 0.0 => Ok((name, number)),
        _ => Err(format!("`{name}` has no number above 0 as `recorded`")),
    };
    file.into_iter().map(number).collect()
}

pub fn write(measured: &[(&Figure, f64)]) -> String {
    let entry = |(figure, value): &(&Figure, f64)| {
        let rounded = match figure.kind {
            Kind::Ratio => (value * 1_000.0).round() / 1_000.0,
            Kind::Instructions => value.round(),
        };
        (figure.name.to_owned(), json!({ "recorded": rounded, "how": figure.how }))
    };
    let file: BTreeMap<String, Value> = measured.iter().map(entry).collect();
    let mut text = serde_json::to_string_pretty(&file).expect("numbers are JSON");
    text.push('\n');
    text
}

/// # Errors
/// In words, where the measured figure is further from the recorded one than allowed.
pub fn compare(figure: &Figure, recorded: &Recorded, found: f64) -> Result<(), String> {
    let name = figure.name;
    let Some(&recorded) = recorded.get(name) else {
        return Err(format!("nothing is recorded for {name}; hint: make bench-record"));
    };
    let (holds, allowed, how_to_look) = match figure.kind {
        Kind::Ratio => {
            let least = recorded * (1.0 - RATIO_MAY_LOSE);
            (found >= least, format!("at least {least:.3}"), "`make bench` measures the parts")
        }
        Kind::Instructions => {
            let most = recorded * (1.0 + COUNT_MAY_GAIN);
            (
                found <= most,
                format!("at most {most:.0}"),
                "callgrind_annotate on callgrind.*.out in bench of the target folder shows the functions",
            )
        }
    };
    // Neither holds for what is no number.
    if holds {
        return Ok(());
    }
    Err(format!(
        "{name} is {}, recorded is {}, allowed: {allowed}; hint: {how_to_look}, docs/performance.md says where time goes, and what shall cost more is recorded with make bench-record",
        figure.shown(found),
        figure.shown(recorded),
    ))
}

impl Figure {
    pub fn shown(&self, value: f64) -> String {
        match self.kind {
            Kind::Ratio => format!("{value:.3}"),
            Kind::Instructions => format!("{value:.0}"),
        }
    }
}
