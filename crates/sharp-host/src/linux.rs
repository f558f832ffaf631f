//! Reads the answers from `/proc` and `/sys`.

use procfs::process::Process;
use procfs::{CpuInfo, Current as _, Meminfo};

/// The limit that a container sets, in bytes, or `max`.
const GROUP_LIMIT: &str = "/sys/fs/cgroup/memory.max";

pub(crate) fn total_memory() -> Option<u64> {
    Some(Meminfo::current().ok()?.mem_total)
}

pub(crate) fn memory_limit() -> Option<u64> {
    let memory = Meminfo::current().ok()?;
    let group = std::fs::read_to_string(GROUP_LIMIT).ok();
    let group = group.and_then(|text| text.trim().parse().ok()).unwrap_or(u64::MAX);
    Some(memory.mem_total.saturating_add(memory.swap_total).min(group))
}

pub(crate) fn available_memory() -> Option<u64> {
    Meminfo::current().ok()?.mem_available
}

pub(crate) fn peak_memory(process: Option<u32>) -> Option<u64> {
    let process = match process {
        None => Process::myself(),
        Some(id) => Process::new(i32::try_from(id).ok()?),
    };
    Some(process.ok()?.status().ok()?.vmhwm?.saturating_mul(1024))
}

pub(crate) fn processor() -> Option<String> {
    CpuInfo::current().ok()?.model_name(0).map(str::to_owned)
}

/// Looks for the device files of NVIDIA's driver: `/dev/nvidia0` and further numbers, or WSL's `/dev/dxg`.
pub(crate) fn has_gpu() -> bool {
    let Ok(entries) = std::fs::read_dir("/dev") else { return false };
    entries.flatten().any(|entry| is_gpu(&entry.file_name().to_string_lossy()))
}

fn is_gpu(device: &str) -> bool {
    let number = device.strip_prefix("nvidia");
    device == "dxg" || number.is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_told_from_the_drivers_other_files() {
        for device in ["nvidia0", "nvidia12", "dxg"] {
            assert!(is_gpu(device), "{device}");
        }
        for device in ["nvidiactl", "nvidia", "nvidia-uvm", "null"] {
            assert!(!is_gpu(device), "{device}");
        }
    }

    #[test]
    fn memory_is_what_the_kernel_says() {
        let (total, limit) = (total_memory().unwrap(), memory_limit().unwrap());
        let free = std::process::Command::new("sh")
            .args(["-c", "grep MemTotal: /proc/meminfo | tr -dc 0-9"])
            .output()
            .unwrap();
        let kibibytes: u64 = String::from_utf8(free.stdout).unwrap().parse().unwrap();
        assert_eq!(total, kibibytes * 1024);
        assert!(available_memory().unwrap() <= total);
        assert!(limit > 0);
    }

    #[test]
    fn a_peak_covers_what_was_touched() {
        let before = peak_memory(None).unwrap();
        let large = vec![1u8; before as usize + (64 << 20)];
        assert!(large.iter().all(|byte| *byte == 1));
        assert!(peak_memory(None).unwrap() >= large.len() as u64);
        assert!(peak_memory(Some(std::process::id())).unwrap() >= large.len() as u64);
    }

    #[test]
    fn a_process_that_is_not_there_has_no_peak() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = child.id();
        child.wait().unwrap();
        assert_eq!(peak_memory(Some(id)), None);
    }
}
