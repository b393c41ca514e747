//! What a person sees of the demo: steps checked off, and a lane for each service whose bar is
//! the time its secret has left. On a terminal it moves; elsewhere it is plain lines; with
//! `--json` it is silent. It shows what it is told and decides nothing.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::service::LIFE;
use crate::cli::output::{Output, colours};

/// Frames a second: a bar that shrinks smoothly, and nothing a slow terminal would choke on.
const HZ: u8 = 15;
const FRAME: Duration = Duration::from_millis(66);

/// One service, as it stands.
#[derive(Debug, Clone, Default)]
pub struct Lane {
    pub attempts: u32,
    pub rotations: u32,
    pub left: Duration,
    pub worker: Option<u32>,
}

#[derive(Debug)]
enum Show {
    Silent,
    Plain,
    Moving { all: MultiProgress, step: ProgressBar, lanes: Vec<ProgressBar> },
}

#[derive(Debug)]
pub struct Stage {
    output: Output,
    show: Show,
    started: Instant,
    /// Nobody reads any more.
    deserted: Cell<bool>,
}

impl Stage {
    pub fn open(output: Output, lanes: &[(&'static str, &'static str)]) -> Self {
        let show = match (output.json, colours()) {
            (true, _) => Show::Silent,
            (false, false) => Show::Plain,
            (false, true) => moving(lanes),
        };
        Self { output, show, started: Instant::now(), deserted: Cell::new(false) }
    }

    pub fn begin(&self, title: &'static str) {
        if let Show::Moving { step, .. } = &self.show {
            step.set_message(title);
        }
    }

    pub fn held(&self, title: &str, detail: &str) {
        self.end(("32", "✓"), title, detail);
    }

    pub fn broke(&self, title: &str, why: &str) {
        self.end(("31", "✗"), title, why);
    }

    fn end(&self, (colour, sign): (&str, &str), title: &str, detail: &str) {
        let at = self.started.elapsed().as_secs_f32();
        match &self.show {
            Show::Silent => {}
            Show::Plain => self.line(&format!("{at:5.1}s  {sign} {title:<38} {detail}")),
            Show::Moving { all, .. } => {
                let line = format!(
                    "\x1b[2m{at:5.1}s\x1b[0m  \x1b[{colour}m{sign}\x1b[0m {title:<38} \x1b[2m{detail}\x1b[0m"
                );
                if all.println(line).is_err() {
                    self.deserted.set(true);
                }
            }
        }
    }

    /// Something worth a line where nothing moves.
    pub fn event(&self, service: &str, what: &str) {
        if let Show::Plain = self.show {
            let at = self.started.elapsed().as_secs_f32();
            self.line(&format!("{at:5.1}s      {service:<16} {what}"));
        }
    }

    pub fn lanes(&self, all: &[Lane]) {
        let Show::Moving { lanes: bars, .. } = &self.show else { return };
        for (bar, lane) in bars.iter().zip(all) {
            bar.set_position(u64::try_from(lane.left.min(LIFE).as_millis()).unwrap_or(0));
            bar.set_message(match lane {
                Lane { attempts: 0, worker: None, .. } => "not there yet".to_owned(),
                Lane { attempts, rotations, worker, left } => format!(
                    "{:.1} s left · {attempts:>3} attempts · {rotations:>2} rotations · {}",
                    left.as_secs_f32(),
                    worker.map_or("no worker".to_owned(), |pid| format!("worker {pid}")),
                ),
            });
        }
    }

    pub fn is_deserted(&self) -> bool {
        self.deserted.get()
    }

    fn line(&self, text: &str) {
        if self.output.try_line(text).is_err() {
            self.deserted.set(true);
        }
    }

    /// The moving part goes, what was checked off stays.
    pub fn close(&self) {
        if let Show::Moving { step, lanes, .. } = &self.show {
            step.finish_and_clear();
            for lane in lanes {
                lane.finish_and_clear();
            }
        }
    }

    pub fn say(&self, text: &str) {
        match &self.show {
            Show::Silent => {}
            Show::Plain => self.line(text),
            Show::Moving { all, .. } => all.suspend(|| self.line(text)),
        }
    }
}

fn moving(lanes: &[(&'static str, &'static str)]) -> Show {
    let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout_with_hz(HZ));
    // A template that doesn't parse would be a mistake of this file; the default shows as much.
    let style =
        |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let step = all.add(ProgressBar::new_spinner().with_style(style("        {spinner:.cyan} {msg}")));
    step.enable_steady_tick(FRAME);
    let lanes = lanes
        .iter()
        .map(|&(name, colour)| {
            let bar = all.add(ProgressBar::new(u64::try_from(LIFE.as_millis()).unwrap_or(1)));
            bar.set_style(
                style(match colour {
                    "green" => "          {prefix:15} {bar:20.green/238} {msg}",
                    _ => "          {prefix:15} {bar:20.magenta/238} {msg}",
                })
                .progress_chars("━╸─"),
            );
            bar.set_prefix(name);
            bar.set_message("not there yet");
            bar
        })
        .collect();
    Show::Moving { all, step, lanes }
}
