//! Models of the Hugging Face Hub by their names.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// What is asked of the Hub: `org/name`, `org/name@revision`, `org/name/file.gguf`.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    repository: String,
    revision: String,
    /// One GGUF file of the repository instead of its checkpoint.
    file: Option<String>,
}

impl Name {
    /// `None` if it can only be a path.
    fn parse(typed: &str) -> Option<Self> {
        let (name, revision) = match typed.split_once('@') {
            Some((_, "")) => return None,
            Some((name, revision)) => (name, revision),
            None => (typed, "main"),
        };
        let part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let parts: Vec<&str> = name.split('/').collect();
        let (repository, file) = match parts.as_slice() {
            [org, name] if ![".sharp", ".gguf", ".safetensors"].iter().any(|end| name.ends_with(end)) => {
                (format!("{org}/{name}"), None)
            }
            [org, name, file] if file.ends_with(".gguf") => {
                (format!("{org}/{name}"), Some((*file).to_owned()))
            }
            _ => return None,
        };
        (parts.into_iter().all(part) && !revision.contains("..") && !revision.starts_with('/'))
            .then(|| Self { repository, revision: revision.to_owned(), file })
    }
}

/// Puts the folder or file of a model that is named as on the Hub in the place of its name, and brings it
/// here first if need be. What exists, or lies in a folder that exists, is a path and stays as it is.
///
/// # Errors
/// If the Hub does not have the model or cannot be reached; without the feature `hub`, for every such name.
pub(crate) fn resolve(model: &mut PathBuf) -> Result<()> {
    let folder = model.components().next().map(|c| Path::new(c.as_os_str()).to_path_buf());
    if model.exists() || folder.is_some_and(|f| f.exists()) {
        return Ok(());
    }
    let Some(name) = model.to_str().and_then(Name::parse) else { return Ok(()) };
    *model = fetch(model, &name)?;
    Ok(())
}

/// What to call a model at `path`: its repository's name if it is in the Hub's cache, else the path's own.
pub(crate) fn name(path: &Path) -> String {
    let text = |p: Option<&std::ffi::OsStr>| p.unwrap_or_default().to_string_lossy().into_owned();
    let cached = path
        .parent()
        .filter(|p| p.ends_with("snapshots"))
        .and_then(|p| text(p.parent()?.file_name()).rsplit_once("--").map(|(_, n)| n.to_owned()));
    cached.unwrap_or_else(|| text(path.file_stem()))
}

#[cfg(not(feature = "hub"))]
fn fetch(typed: &Path, name: &Name) -> Result<PathBuf> {
    let why = match sharp_model::Stored::at(typed) {
        Err(e) => e.to_string(),
        Ok(_) => return Ok(typed.to_path_buf()),
    };
    let Name { repository, revision, file } = name;
    let file = file.as_deref().unwrap_or("");
    bail!(
        "{why}; if it is a model of the Hugging Face Hub, build sharp with the feature \"hub\" (cargo install --path crates/sharp-cli \
         --features hub), or bring it here yourself (hf download {repository} {file}{}--revision {revision} --local-dir FOLDER) and give its \
         folder or file",
        if file.is_empty() { "" } else { " " }
    )
}

#[cfg(feature = "hub")]
fn fetch(_: &Path, name: &Name) -> Result<PathBuf> {
    client::fetch(name)
}

#[cfg(feature = "hub")]
mod client {
    use anyhow::{Context, anyhow};
    use hf_hub::api::sync::ApiBuilder;
    use hf_hub::{Cache, Repo, RepoType};
    use sharp_progress::{Progress, Task, Terminal};

    use super::{Name, Path, PathBuf, Result, bail};

    /// What a checkpoint is read from, beside its weights.
    const FILES: [&str; 8] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
        "modeling_sharp.py",
    ];

    /// The environment's word for yes, as huggingface_hub reads it.
    fn set(name: &str) -> bool {
        std::env::var(name)
            .is_ok_and(|v| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str()))
    }

    /// One download on the terminal.
    struct Shown {
        task: Option<Box<dyn Task>>,
    }

    impl hf_hub::api::Progress for Shown {
        fn init(&mut self, size: usize, filename: &str) {
            self.task = Some(Terminal::stderr().task(filename, size as u64, "bytes"));
        }

        fn update(&mut self, size: usize) {
            if let Some(task) = &self.task {
                task.advance(size as u64);
            }
        }

        fn finish(&mut self) {
            self.task = None;
        }
    }

    pub(super) fn fetch(name: &Name) -> Result<PathBuf> {
        let Name { repository, revision, file } = name;
        let repo = Repo::with_revision(repository.clone(), RepoType::Model, revision.clone());
        let cache = Cache::from_env();
        if set("HF_HUB_OFFLINE") {
            let at = file.as_deref().unwrap_or("config.json");
            let found = cache.repo(repo).get(at).with_context(|| {
                format!(
                    "{repository}@{revision} is not in {}, and HF_HUB_OFFLINE is set",
                    cache.path().display()
                )
            })?;
            return Ok(if file.is_some() { found } else { folder(&found)? });
        }
        let mut builder = ApiBuilder::from_env().with_retries(3);
        if let Ok(token) = std::env::var("HF_TOKEN") {
            builder = builder.with_token(Some(token).filter(|t| !t.is_empty()));
        }
        let api = builder.build().context("the Hugging Face Hub")?;
        let remote = api.repo(repo.clone());
        let info = remote.info().with_context(|| {
            format!(
                "asking the Hugging Face Hub for {repository}@{revision} (a name that it does not know, or one that needs a token in HF_TOKEN; \
                 HF_HUB_OFFLINE=1 takes what is in the cache)"
            )
        })?;
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            bail!("the Hub's answer about {repository} names no commit");
        }
        // Whatever lies in folders of the repository is of other programs.
        let all: Vec<&str> =
            info.siblings.iter().map(|s| s.rfilename.as_str()).filter(|n| !n.contains(['/', '\\'])).collect();
        let wanted = wanted(name, &all)?;
        let here = cache.repo(repo).pointer_path(&info.sha);
        for file in &wanted {
            if !here.join(file).exists() {
                remote
                    .download_with_progress(file, Shown { task: None })
                    .with_context(|| format!("bringing {file} of {repository}@{revision} here"))?;
            }
        }
        match wanted.as_slice() {
            [file] if file.ends_with(".gguf") => Ok(here.join(file)),
            _ => Ok(here),
        }
    }

    /// The files to bring here of those that there are: the one GGUF file, or a checkpoint.
    fn wanted<'a>(name: &Name, all: &[&'a str]) -> Result<Vec<&'a str>> {
        let ends = |end: &str| -> Vec<&'a str> { all.iter().copied().filter(|n| n.ends_with(end)).collect() };
        let repository = &name.repository;
        if let Some(file) = &name.file {
            let found = all.iter().copied().find(|n| n == file);
            let others = || ends(".gguf").join(", ");
            return Ok(vec![
                found.ok_or_else(|| anyhow!("{repository} has no {file}; its GGUF files: {}", others()))?,
            ]);
        }
        let mut weights = ends(".safetensors");
        if weights.iter().any(|n| n.starts_with("model")) {
            weights.retain(|n| n.starts_with("model"));
        }
        if all.contains(&"config.json") && !weights.is_empty() {
            weights.extend(FILES.iter().filter_map(|f| all.iter().copied().find(|n| n == f)));
            return Ok(weights);
        }
        match ends(".gguf").as_slice() {
            [one] => Ok(vec![one]),
            [] => bail!("{repository} has neither config.json with safetensors nor a GGUF file"),
            several => bail!(
                "{repository} has several GGUF files; say which, as {repository}/FILE: {}",
                several.join(", ")
            ),
        }
    }

    fn folder(file: &Path) -> Result<PathBuf> {
        file.parent().map(Path::to_path_buf).context("a file without a folder")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_told_apart() {
        let name = |repository: &str, revision: &str, file: Option<&str>| {
            Some(Name {
                repository: repository.into(),
                revision: revision.into(),
                file: file.map(Into::into),
            })
        };
        assert_eq!(Name::parse("org/name-1.5B"), name("org/name-1.5B", "main", None));
        assert_eq!(Name::parse("org/name@v1.0"), name("org/name", "v1.0", None));
        assert_eq!(Name::parse("org/name@refs/pr/3"), name("org/name", "refs/pr/3", None));
        assert_eq!(Name::parse("org/name/a.Q4_0.gguf@x"), name("org/name", "x", Some("a.Q4_0.gguf")));
        for path in [
            "model",
            "./org/name",
            "/org/name",
            "../name",
            "org/../name",
            "a/b/c",
            "a/model.sharp",
            "a/model.gguf",
            "a/b c",
            "a/b@",
            "a/b@../x",
            "~/model",
            "a//b",
            "",
        ] {
            assert_eq!(Name::parse(path), None, "{path}");
        }
    }

    #[test]
    fn a_model_in_the_cache_has_its_own_name() {
        assert_eq!(name(Path::new("hub/models--org--small-1.7B/snapshots/abc123")), "small-1.7B");
        assert_eq!(name(Path::new("runs/x/model.sharp")), "model");
        assert_eq!(name(Path::new("small")), "small");
    }
}
