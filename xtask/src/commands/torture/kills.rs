//! Kills the tiny pipeline at random moments until it has been killed often enough.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::tiny::{Results, Tiny, end};

/// Which processes a kill is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Victim {
    Driver,
    Program,
    Both,
}

/// What was done, all of it with the bytes of an uninterrupted run at the end.
#[derive(Debug, Default, Serialize)]
pub(super) struct Figures {
    seed: u64,
    kills: u32,
    /// Kills by whom they were for.
    victims: BTreeMap<Victim, u32>,
    /// Kills by the program and command that was running.
    running: BTreeMap<String, u32>,
    /// Runs that were finished and compared.
    runs: u32,
    seconds: f64,
}

/// Kills so many times, and compares every run that gets to its end.
pub(super) fn torture(
    tiny: &Tiny,
    reference: &Results,
    whole: Duration,
    folder: &Path,
    (kills, seed): (u32, u64),
) -> Result<Figures> {
    let begun = Instant::now();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut figures = Figures { seed, ..Figures::default() };
    let mut run = folder.join("killed-0");
    while figures.kills < kills {
        let victim = [Victim::Driver, Victim::Program, Victim::Both][random.random_range(0..3)];
        let wait = whole.mul_f64(random.random_range(0.0..0.5));
        let mut driver = tiny.start(&run)?;
        match strike(&mut driver, victim, wait)? {
            Some(running) => {
                figures.kills += 1;
                *figures.victims.entry(victim).or_default() += 1;
                *figures.running.entry(running.clone()).or_default() += 1;
                let left =
                    begun.elapsed().mul_f64(f64::from(kills - figures.kills) / f64::from(figures.kills));
                eprintln!(
                    "kill {} of {kills}: {victim:?} during {running}; {} runs compared, about {:.0} s left",
                    figures.kills,
                    figures.runs,
                    left.as_secs_f64()
                );
            }
            None => {
                end(tiny, reference, &run)?;
                figures.runs += 1;
                run = folder.join(format!("killed-{}", figures.runs));
            }
        }
    }
    end(tiny, reference, &run)?;
    figures.runs += 1;
    figures.seconds = begun.elapsed().as_secs_f64();
    Ok(figures)
}

/// Waits, and kills without warning. Returns what was running; `None` where the pipeline had ended before.
fn strike(driver: &mut Child, victim: Victim, wait: Duration) -> Result<Option<String>> {
    let due = Instant::now() + wait;
    while Instant::now() < due {
        if driver.try_wait()?.is_some() {
            return Ok(None);
        }
        sleep(Duration::from_millis(2));
    }
    let child = loop {
        let children = children(driver.id());
        match children.first() {
            Some(&child) => break Some(child),
            // Between two programs only the driver can be killed.
            None if victim != Victim::Program => break None,
            None if driver.try_wait()?.is_some() => return Ok(None),
            None => sleep(Duration::from_millis(1)),
        }
    };
    let running = child.map_or_else(|| "nothing".to_owned(), what);
    match (victim, child) {
        (Victim::Program, Some(child)) => kill(&child.to_string())?,
        (Victim::Driver, _) => kill(&driver.id().to_string())?,
        _ => kill(&format!("-{}", driver.id()))?,
    }
    driver.wait().context("waiting for the driver")?;
    // A program that has outlived its driver ends by itself; the next run is refused until it has.
    let orphan = child.filter(|_| victim == Victim::Driver);
    let patience = Instant::now() + Duration::from_secs(120);
    while orphan.is_some_and(runs) {
        if Instant::now() > patience {
            bail!("{running} does not end after its driver was killed");
        }
        sleep(Duration::from_millis(20));
    }
    Ok(Some(running))
}

fn kill(whom: &str) -> Result<()> {
    // It may have ended in this moment, which is as good.
    let mut command = Command::new("kill");
    command.args(["-KILL", "--", whom]).stderr(Stdio::null()).status().context("starting kill")?;
    Ok(())
}

/// True while a process runs; one that has ended may still be listed until somebody asks how.
fn runs(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// Lists the processes that a process has started.
fn children(process: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// Names a process by its program and command, such as `sharp-train finetune`.
fn what(process: u32) -> String {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let mut words = line.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    let program = words.next().unwrap_or_default().into_owned();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("{program} {}", words.next().unwrap_or_default())
}

impl Figures {
    /// The figures in words.
    pub(super) fn text(&self) -> String {
        let list = |parts: Vec<String>| parts.join(", ");
        let victims = list(self.victims.iter().map(|(who, n)| format!("{who:?} {n}")).collect());
        let running = list(self.running.iter().map(|(what, n)| format!("{what} {n}")).collect());
        format!(
            "{} kills in {} runs, {:.0} s, seed {}: all ended with the bytes of the uninterrupted run, nothing half \
             written left\n  killed: {victims}\n  during: {running}\n",
            self.kills, self.runs, self.seconds, self.seed
        )
    }
}
