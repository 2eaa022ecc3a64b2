//! What this machine is: the `hosts[]` entry of a report, and the processors a run may use.

use std::collections::BTreeMap;
use std::fs;

use gpufeed_schema::Host;
use xxhash_rust::xxh3::xxh3_64;

/// Looks at this machine.
pub(crate) fn look() -> Host {
    let system = rustix::system::uname();
    let mut facts = BTreeMap::new();
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            facts.insert(name.to_owned(), value);
        }
    };
    fact("machine", Some(system.machine().to_string_lossy().into_owned()));
    fact("governor", read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
    fact("clock_source", read("/sys/devices/system/clocksource/clocksource0/current_clocksource"));
    fact(
        "hypervisor",
        cpu_field("flags").filter(|flags| flags.split(' ').any(|f| f == "hypervisor")).map(|_| "yes".into()),
    );
    Host {
        kernel: system.release().to_string_lossy().into_owned(),
        cpu_model: cpu_field("model name").or_else(|| cpu_field("CPU part")).unwrap_or_else(|| "unknown".to_owned()),
        cores: u32::try_from(cores().len()).unwrap_or(u32::MAX),
        memory_bytes: memory_bytes(),
        facts,
    }
}

/// A name for machines on which the same calibration holds.
pub(crate) fn fingerprint(host: &Host) -> String {
    let text = format!("{} {} {} {} {:?}", host.kernel, host.cpu_model, host.cores, host.memory_bytes, host.facts);
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

/// Physical memory.
pub(crate) fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

/// Processors this process may use, in order.
pub(crate) fn cores() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None)
        .map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect::<Vec<usize>>());
    match allowed {
        Ok(cores) if !cores.is_empty() => cores,
        _ => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

/// Which processors the client and an embedded server get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Split {
    /// The client's.
    pub client: Vec<usize>,
    /// The server's; empty for both on one.
    pub server: Vec<usize>,
}

/// Divides `cores` between a client of `threads` threads (half of them where not said) and an embedded server.
pub(crate) fn split(cores: &[usize], threads: Option<usize>) -> Split {
    if cores.len() < 2 {
        return Split { client: cores.to_vec(), server: cores.to_vec() };
    }
    let client = threads.unwrap_or(cores.len() / 2).clamp(1, cores.len() - 1);
    Split { client: cores[..client].to_vec(), server: cores[client..].to_vec() }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn cpu_field(name: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|field| field.trim() == name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_divided_without_sharing() {
        let divided = |n: usize, threads| split(&(0..n).collect::<Vec<_>>(), threads);
        assert_eq!(divided(2, None), Split { client: vec![0], server: vec![1] });
        assert_eq!(divided(8, None).client.len(), 4);
        assert_eq!(divided(8, Some(6)), Split { client: (0..6).collect(), server: vec![6, 7] });
        assert_eq!(divided(2, Some(9)), Split { client: vec![0], server: vec![1] });
        assert_eq!(divided(1, None), Split { client: vec![0], server: vec![0] });
    }

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let host = look();
        assert!(!host.kernel.is_empty() && host.memory_bytes > 0 && host.cores > 0);
        assert_eq!(fingerprint(&host), fingerprint(&look()));
    }
}
