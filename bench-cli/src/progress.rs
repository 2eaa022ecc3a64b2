//! Progress on standard error: a bar on a terminal, a plain line every ten seconds elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gpufeed_engine::watch::{Phase, Progress as Snapshot, Watch};
use gpufeed_profiles::units::{Bytes, BytesPerSec, show_duration, three_digits};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output;

/// How often the view is refreshed.
const TICK: Duration = Duration::from_millis(100);
/// How often a plain line is written.
const LINE: Duration = Duration::from_secs(10);

/// Where progress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// Nowhere.
    Nothing,
    /// A line now and then.
    Lines,
    /// A bar.
    Bar,
}

impl Show {
    /// What suits standard error.
    pub(crate) fn fitting(quiet: bool) -> Self {
        match quiet {
            true => Self::Nothing,
            false if std::io::stderr().is_terminal() => Self::Bar,
            false => Self::Lines,
        }
    }
}

/// A view of one stretch of work, on a thread of its own; gone when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    over: Arc<AtomicBool>,
    viewer: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows `watch` under `title` until dropped. `expected` is how long it takes where time bounds it. `tick` is called
    /// at every refresh with the current view.
    pub(crate) fn new(
        show: Show,
        title: String,
        watch: Watch,
        expected: Option<Duration>,
        mut tick: impl FnMut(&Snapshot) + Send + 'static,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let viewer = std::thread::spawn(move || {
            let mut view = View::new(show, title, expected);
            while !ends.load(Ordering::Relaxed) {
                let now = watch.progress();
                tick(&now);
                view.refresh(&now);
                std::thread::park_timeout(TICK);
            }
            let last = watch.progress();
            tick(&last);
            view.close(&last);
        });
        Self { over, viewer: Some(viewer) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(viewer) = self.viewer.take() {
            viewer.thread().unpark();
            let _ = viewer.join();
        }
    }
}

struct View {
    show: Show,
    title: String,
    expected: Option<Duration>,
    bar: ProgressBar,
    before: Option<(Instant, Snapshot)>,
    rate: (f64, f64),
    line_due: Instant,
}

impl View {
    fn new(show: Show, title: String, expected: Option<Duration>) -> Self {
        let bar = match show {
            Show::Bar => ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr_with_hz(10)),
            _ => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template("{prefix:<10} {bar:24.cyan/dim} {percent:>3}% {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─"));
        bar.set_prefix(title.clone());
        Self { show, title, expected, bar, before: None, rate: (0.0, 0.0), line_due: Instant::now() + LINE }
    }

    fn refresh(&mut self, now: &Snapshot) {
        let instant = Instant::now();
        match &self.before {
            Some((then, before)) if instant - *then >= Duration::from_millis(500) => {
                let seconds = (instant - *then).as_secs_f64();
                let per_s = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
                self.rate = (per_s(now.bytes, before.bytes), per_s(now.ops, before.ops));
                self.before = Some((instant, *now));
            }
            Some(_) => {}
            None => self.before = Some((instant, *now)),
        }
        let ratio = self.ratio(now);
        self.bar.set_position((ratio.unwrap_or(0.0) * 1000.0) as u64);
        self.bar.set_message(self.words(now, ratio));
        if self.show == Show::Lines && instant >= self.line_due {
            self.line_due = instant + LINE;
            output::say(&format!("{}: {}", self.title, self.words(now, ratio)));
        }
    }

    fn ratio(&self, now: &Snapshot) -> Option<f64> {
        let by_time = || Some(now.elapsed.as_secs_f64() / self.expected?.as_secs_f64().max(1e-9));
        now.done_ratio.or_else(by_time).map(|ratio| ratio.clamp(0.0, 1.0))
    }

    fn words(&self, now: &Snapshot, ratio: Option<f64>) -> String {
        let phase = match now.phase {
            Phase::Opening => "opening",
            Phase::WarmUp => "warm-up",
            Phase::Measure => "measure",
            Phase::Drain => "drain",
            Phase::Over => "done",
        };
        let mut words = format!("{phase} · {} · {}/s", BytesPerSec(self.rate.0), three_digits(self.rate.1));
        if let Some(p99) = now.p99 {
            words += &format!(" · p99 {}", show_duration(p99));
        }
        if now.errors > 0 {
            words += &format!(" · {} errors", now.errors);
        }
        if let Some(ratio) = ratio.filter(|ratio| *ratio > 0.02 && *ratio < 1.0) {
            words += &format!(" · {} left", show_duration(now.elapsed.mul_f64((1.0 - ratio) / ratio)));
        }
        words
    }

    fn close(&mut self, last: &Snapshot) {
        self.bar.finish_and_clear();
        if self.show != Show::Nothing {
            let errors = if last.errors > 0 { format!(", {} errors", last.errors) } else { String::new() };
            output::say(&format!(
                "{:<10} {} in {} operations over {}{errors}",
                self.title,
                Bytes(last.bytes),
                last.ops,
                show_duration(last.elapsed),
            ));
        }
    }
}
