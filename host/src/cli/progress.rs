//! What a person sees while something takes its time: a bar where the end is known, else a word
//! that moves. On a terminal alone, never beside JSON, and never before it has taken a moment:
//! what is quick shall not flicker.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is done by then needs no word.
const A_MOMENT: Duration = Duration::from_millis(300);

const TICK: Duration = Duration::from_millis(120);

static WANTED: OnceLock<bool> = OnceLock::new();

/// Said once, by the command line. Before it, nothing is shown.
pub fn allow(wanted: bool) {
    let _ = WANTED.set(wanted && std::io::stderr().is_terminal());
}

fn shown() -> bool {
    WANTED.get().copied().unwrap_or(false)
}

/// Shown until it is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    starting: Option<tokio::task::JoinHandle<()>>,
}

impl Progress {
    /// Something whose end is not known.
    pub fn of(what: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_style(style("  {spinner} {msg}, {elapsed}"));
        bar.set_message(what);
        Self::begun(bar)
    }

    /// So many of something.
    pub fn counted(total: u64, what: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        bar.set_style(style("  {bar:30} {human_pos} of {human_len} {msg}, {eta} left"));
        bar.set_message(what);
        Self::begun(bar)
    }

    fn begun(bar: ProgressBar) -> Self {
        let starting = shown().then(|| {
            let bar = bar.clone();
            tokio::spawn(async move {
                tokio::time::sleep(A_MOMENT).await;
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.enable_steady_tick(TICK);
            })
        });
        Self { bar, starting }
    }

    pub fn reached(&self, position: u64) {
        self.bar.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(starting) = self.starting.take() {
            starting.abort();
        }
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
