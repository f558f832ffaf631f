//! The package client: pip downloads a wheel, whatever the local Python's own version is.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::pins::Wheel;
use crate::error::{Context as _, Result, bail};

/// Tags that a pinned wheel may carry; given explicitly, so the local interpreter does not matter.
const TAGS: &[&str] = &[
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
    "--abi",
    "none",
    "--platform",
    "manylinux_2_28_x86_64",
    "--platform",
    "manylinux_2_27_x86_64",
    "--platform",
    "manylinux_2_25_x86_64",
    "--platform",
    "manylinux_2_17_x86_64",
    "--platform",
    "manylinux2014_x86_64",
    "--platform",
    "any",
];

/// Finds how to start pip here: the first of the usual ways that answers.
pub(crate) fn client() -> Option<Vec<&'static str>> {
    let ways: [&[&str]; 4] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];
    ways.into_iter().find(|way| answers(way)).map(<[_]>::to_vec)
}

fn answers(way: &[&str]) -> bool {
    Command::new(way[0])
        .args(&way[1..])
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Downloads one wheel into `folder`. pip checks the hash and uses the user's own settings.
pub(crate) fn download(wheel: &Wheel, folder: &Path) -> Result<()> {
    let Some(client) = client() else {
        bail!(
            "pip is needed to fetch {} {} and was not found: install Python with pip (Debian: `apt-get install \
             python3-pip`), then run the same command again",
            wheel.project,
            wheel.version
        )
    };
    let requirements = folder.join("requirements.txt");
    let mut file = std::fs::File::create(&requirements)
        .with_context(|| format!("writing {}", requirements.display()))?;
    writeln!(file, "{}=={} --hash=sha256:{}", wheel.project, wheel.version, wheel.sha256)
        .with_context(|| format!("writing {}", requirements.display()))?;
    drop(file);
    let status = Command::new(client[0])
        .args(&client[1..])
        .args(["download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-cache-dir"])
        .args(TAGS)
        .arg("--requirement")
        .arg(&requirements)
        .arg("--dest")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .with_context(|| format!("starting {}", client.join(" ")))?;
    if !status.success() {
        bail!(
            "{} could not fetch {}=={} ({status}); its own message is above. What is already downloaded is kept: \
             run the same command again",
            client.join(" "),
            wheel.project,
            wheel.version
        );
    }
    Ok(())
}
