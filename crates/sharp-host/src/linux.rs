//! Reads the answers from `/proc` and `/sys`.

use std::path::PathBuf;

use procfs::process::{LimitValue, Process};
use procfs::{CpuInfo, Current as _, Meminfo};

/// Files of a control group: its limit, what it uses, and the name in its statistics of what of that the
/// kernel takes back when it needs to.
struct Group {
    root: &'static str,
    limit: &'static str,
    used: &'static str,
    reclaimable: &'static str,
}

/// Version 2, and version 1 beside it.
const GROUPS: [Group; 2] = [
    Group {
        root: "/sys/fs/cgroup",
        limit: "memory.max",
        used: "memory.current",
        reclaimable: "inactive_file",
    },
    Group {
        root: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        reclaimable: "total_inactive_file",
    },
];

fn number(path: &PathBuf) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Calls `read` with each folder of the process's control groups: its own and those that it lies in. Returns
/// the least answer.
fn least(read: impl Fn(&Group, &PathBuf) -> Option<u64>) -> Option<u64> {
    let own = Process::myself().and_then(|process| process.cgroups());
    let paths: Vec<String> =
        own.map(|own| own.0.into_iter().map(|c| c.pathname).collect()).unwrap_or_default();
    // A container sees its own group as the root, whatever its path is said to be.
    let folders = paths.iter().flat_map(|path| std::path::Path::new(path).ancestors());
    let folders: Vec<_> = folders.filter_map(|folder| folder.strip_prefix("/").ok()).collect();
    let groups = GROUPS.iter().flat_map(|group| {
        let inner = folders.iter().map(|folder| PathBuf::from(group.root).join(folder));
        inner.chain([group.root.into()]).map(move |folder| (group, folder))
    });
    groups.filter_map(|(group, folder)| read(group, &folder)).min()
}

pub(crate) fn total_memory() -> Option<u64> {
    Some(Meminfo::current().ok()?.mem_total)
}

pub(crate) fn memory_limit() -> Option<u64> {
    let memory = Meminfo::current().ok()?;
    let group = least(|group, folder| number(&folder.join(group.limit))).unwrap_or(u64::MAX);
    Some(memory.mem_total.saturating_add(memory.swap_total).min(group))
}

pub(crate) fn available_memory() -> Option<u64> {
    let machine = Meminfo::current().ok()?.mem_available?;
    let group = least(|group, folder| {
        let limit = number(&folder.join(group.limit))?;
        let used = number(&folder.join(group.used))?;
        let statistics = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let mut lines = statistics.lines().filter_map(|line| line.split_once(' '));
        let back = lines.find(|(name, _)| *name == group.reclaimable).and_then(|(_, n)| n.parse().ok());
        Some(limit.saturating_sub(used.saturating_sub(back.unwrap_or(0))))
    });
    Some(group.map_or(machine, |group| group.min(machine)))
}

pub(crate) fn resident_memory(process: Option<u32>) -> Option<u64> {
    Some(open(process)?.status().ok()?.vmrss?.saturating_mul(1024))
}

pub(crate) fn address_space_left() -> Option<u64> {
    let process = Process::myself().ok()?;
    match process.limits().ok()?.max_address_space.soft_limit {
        LimitValue::Unlimited => None,
        LimitValue::Value(limit) => Some(limit.saturating_sub(process.stat().ok()?.vsize)),
    }
}

fn open(process: Option<u32>) -> Option<Process> {
    match process {
        None => Process::myself().ok(),
        Some(id) => Process::new(i32::try_from(id).ok()?).ok(),
    }
}

pub(crate) fn peak_memory(process: Option<u32>) -> Option<u64> {
    Some(open(process)?.status().ok()?.vmhwm?.saturating_mul(1024))
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
    fn a_limit_on_addresses_is_seen() {
        // Only a process of its own can have one.
        let test = std::env::current_exe().unwrap();
        if std::env::var_os("SHARP_HOST_LIMITED").is_some() {
            let left = address_space_left().unwrap();
            assert!(left > 0 && left < 4 << 30, "{left}");
            return;
        }
        let limited = std::process::Command::new("sh")
            .args(["-c", "ulimit -v 4194304; exec \"$0\" a_limit_on_addresses_is_seen"])
            .arg(test)
            .env("SHARP_HOST_LIMITED", "1")
            .output()
            .unwrap();
        assert!(limited.status.success(), "{limited:?}");
        assert!(String::from_utf8(limited.stdout).unwrap().contains("1 passed"));
    }

    #[test]
    fn a_peak_covers_what_was_touched() {
        let before = peak_memory(None).unwrap();
        let large = vec![1u8; before as usize + (64 << 20)];
        assert!(large.iter().all(|byte| *byte == 1));
        assert!(peak_memory(None).unwrap() >= large.len() as u64);
        assert!(resident_memory(None).unwrap() >= large.len() as u64);
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
