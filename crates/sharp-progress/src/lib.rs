#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where work reports how far it is. Given to every long-running function of the workspace.
pub trait Progress: Send + Sync {
    /// Begins a task of `total` steps of `unit` ("tokens", "layers"; "bytes" is shown in KiB, MiB, GiB). A
    /// total of 0 means it is not known. The task ends when the value is dropped.
    fn task(&self, name: &str, total: u64, unit: &str) -> Box<dyn Task>;
}

/// A task under way; may be advanced from several threads.
pub trait Task: Send + Sync {
    /// Adds `n` steps that are done.
    fn advance(&self, n: u64);

    /// Shows a short word on how it goes, shown beside the bar: the loss, a layer's name.
    fn note(&self, text: &str);
}

/// Reports nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn task(&self, _name: &str, _total: u64, _unit: &str) -> Box<dyn Task> {
        Box::new(Self)
    }
}

impl Task for Silent {
    fn advance(&self, _n: u64) {}

    fn note(&self, _text: &str) {}
}

/// Reports to a person: a bar with the remaining time on a terminal, plain lines at most every five seconds
/// in a log.
pub struct Terminal {
    output: Output,
}

enum Output {
    Bar,
    Lines { every: Duration, open: fn() -> Box<dyn Write + Send> },
}

impl Terminal {
    /// Writes to the standard error stream.
    pub fn stderr() -> Self {
        if io::stderr().is_terminal() {
            return Self { output: Output::Bar };
        }
        Self { output: Output::Lines { every: Duration::from_secs(5), open: || Box::new(io::stderr()) } }
    }
}

impl Progress for Terminal {
    fn task(&self, name: &str, total: u64, unit: &str) -> Box<dyn Task> {
        match &self.output {
            Output::Bar => Box::new(Bar::new(name, total, unit)),
            Output::Lines { every, open } => Box::new(Lines::new(name, total, unit, *every, open())),
        }
    }
}

/// A bar on a terminal.
struct Bar {
    bar: ProgressBar,
}

impl Bar {
    fn new(name: &str, total: u64, unit: &str) -> Self {
        let bar = match total {
            0 => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()),
            _ => ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()),
        };
        let count = match (total, unit) {
            (0, "bytes") => "{bytes} {elapsed} {wide_msg}".to_owned(),
            (0, _) => format!("{{human_pos}} {unit} {{elapsed}} {{wide_msg}}"),
            (_, "bytes") => "{bar:28} {bytes}/{total_bytes} {eta} left {wide_msg}".to_owned(),
            _ => format!("{{bar:28}} {{human_pos}}/{{human_len}} {unit} {{eta}} left {{wide_msg}}"),
        };
        if let Ok(style) = ProgressStyle::with_template(&format!("{{prefix}} {count}")) {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar }
    }
}

impl Task for Bar {
    fn advance(&self, n: u64) {
        self.bar.inc(n);
    }

    fn note(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.abandon();
    }
}

/// Plain lines in a log.
struct Lines {
    name: String,
    unit: String,
    total: u64,
    every: Duration,
    begun: Instant,
    state: Mutex<State>,
}

struct State {
    out: Box<dyn Write + Send>,
    done: u64,
    note: String,
    last: Instant,
}

impl Lines {
    fn new(name: &str, total: u64, unit: &str, every: Duration, out: Box<dyn Write + Send>) -> Self {
        let now = Instant::now();
        let state = State { out, done: 0, note: String::new(), last: now };
        Self { name: name.into(), unit: unit.into(), total, every, begun: now, state: Mutex::new(state) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A thread that panicked while reporting leaves nothing worse than a stale count.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn line(&self, state: &mut State, ended: bool) {
        let elapsed = self.begun.elapsed();
        let text = line(&self.name, &self.unit, state.done, self.total, elapsed, ended, &state.note);
        // A closed stream is no reason to stop the work.
        let _ = writeln!(state.out, "{text}");
        let _ = state.out.flush();
        state.last = Instant::now();
    }
}

impl Task for Lines {
    fn advance(&self, n: u64) {
        let mut state = self.lock();
        state.done = state.done.saturating_add(n);
        if state.last.elapsed() >= self.every {
            self.line(&mut state, false);
        }
    }

    fn note(&self, text: &str) {
        text.clone_into(&mut self.lock().note);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let mut state = self.lock();
        self.line(&mut state, true);
    }
}

/// Writes one line of a log.
fn line(name: &str, unit: &str, done: u64, total: u64, elapsed: Duration, ended: bool, note: &str) -> String {
    let mut text = match total {
        0 => format!("{name}: {}", count(done, unit)),
        _ => format!("{name}: {} of {} ({} %)", count(done, unit), count(total, unit), percent(done, total)),
    };
    if ended {
        text += &format!(", took {}", time(elapsed));
    } else if total > done && done > 0 {
        let left = elapsed.as_secs_f64() / done as f64 * (total - done) as f64;
        text += &format!(", {} left", time(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX)));
    }
    if !note.is_empty() {
        text += ", ";
        text += note;
    }
    text
}

fn percent(done: u64, total: u64) -> u128 {
    u128::from(done) * 100 / u128::from(total.max(1))
}

fn count(n: u64, unit: &str) -> String {
    const SIZES: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    if unit == "bytes" {
        return match SIZES.into_iter().find(|&(_, size)| n >= size) {
            Some((name, size)) => format!("{:.1} {name}", n as f64 / size as f64),
            None => format!("{n} bytes"),
        };
    }
    format!("{n} {unit}")
}

fn time(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        s @ 1..=59 => format!("{s} s"),
        s @ 60..=3599 => format!("{} min {:02} s", s / 60, s % 60),
        s => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn a_log_gets_a_line_when_the_interval_is_over_and_one_at_the_end() {
        let log = Log::default();
        let task = Lines::new("warming up", 10, "layers", Duration::ZERO, Box::new(log.clone()));
        task.note("error 0.5");
        task.advance(4);
        drop(task);
        let text = log.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("warming up: 4 layers of 10 layers (40 %)"), "{text}");
        assert!(lines[0].ends_with("left, error 0.5"), "{text}");
        assert!(lines[1].contains("took"), "{text}");
    }

    #[test]
    fn a_log_stays_quiet_within_the_interval() {
        let log = Log::default();
        let task = Lines::new("reading", 0, "bytes", Duration::from_secs(3600), Box::new(log.clone()));
        for _ in 0..1000 {
            task.advance(4096);
        }
        assert_eq!(log.text(), "");
        drop(task);
        assert!(log.text().starts_with("reading: 3.9 MiB, took"), "{}", log.text());
    }

    #[test]
    fn advancing_from_several_threads_adds_up() {
        let log = Log::default();
        let task = Lines::new("t", 400, "steps", Duration::from_secs(3600), Box::new(log.clone()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| task.advance(1)));
            }
        });
        drop(task);
        assert!(log.text().contains("400 steps of 400 steps (100 %)"), "{}", log.text());
    }

    #[test]
    fn more_steps_than_announced_and_endless_times_do_not_panic() {
        let text = line("t", "steps", u64::MAX, 1, Duration::MAX, false, "");
        assert!(text.contains("of 1 steps"), "{text}");
        let text = line("t", "steps", 1, u64::MAX, Duration::MAX, false, "");
        assert!(text.contains("left"), "{text}");
    }

    #[test]
    fn the_bar_templates_are_valid() {
        for (total, unit) in [(0, "bytes"), (0, "tokens"), (5, "bytes"), (5, "tokens")] {
            let bar = Bar::new("task", total, unit);
            bar.bar.set_draw_target(ProgressDrawTarget::hidden());
            bar.advance(1);
            bar.note("fine");
        }
    }
}
